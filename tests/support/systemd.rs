//! The test in the part of systemd: the receiving end of the manager's `NOTIFY_SOCKET`.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;

use super::log::Log;

/// Everything that the manager has said upward, in order; each datagram is one line of a [`Log`].
#[derive(Clone)]
pub struct Systemd {
    pub said: Log,
}

/// One datagram of the manager.
#[derive(Clone, Debug, Default)]
pub struct Message(pub BTreeMap<String, String>);

impl Message {
    fn read(line: &str) -> Self {
        let fields = line.split('\u{1f}').filter_map(|field| field.split_once('='));
        Self(fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    pub fn is(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| value == "1")
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

impl Systemd {
    /// Binds the socket and receives from then on.
    ///
    /// # Errors
    ///
    /// Those of bind(2).
    pub fn listen(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        let systemd = Self { said: Log::default() };
        let receiving = systemd.said.clone();
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            // The thread ends with the process of the test; it holds one descriptor until then.
            while let Ok(length) = socket.recv(&mut buffer) {
                receiving.push(String::from_utf8_lossy(&buffer[..length]).trim_end().replace('\n', "\u{1f}"));
            }
        });
        Ok(systemd)
    }

    /// Waits for a message at or after `place`; returns it and the place after it.
    pub fn wait(&self, place: usize, mut wanted: impl FnMut(&Message) -> bool) -> Option<(Message, usize)> {
        self.said.wait(place, super::PATIENCE, |line| Some(Message::read(line)).filter(&mut wanted))
    }

    /// Returns the newest STATUS.
    pub fn status(&self) -> String {
        let messages: Vec<Message> = self.said.since(0).iter().map(|line| Message::read(line)).collect();
        messages.iter().rev().find_map(|message| message.get("STATUS")).unwrap_or_default().to_owned()
    }
}
