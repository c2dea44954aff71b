//! The notify protocol, `sd_notify(3)`, in both directions: what workers send us and what we send to systemd.
//!
//! Workers are not trusted: any datagram whatever gives either a [`Message`] or the reason why it is dropped whole,
//! in time linear in its length. Nothing here touches a socket; the descriptors that came along are known by count.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::core::word::{Word, one_line};

/// The longest datagram that is read, in bytes, a trailing NUL included; systemd has the same limit.
pub const MAX_DATAGRAM: usize = 4096;

/// The greatest errno that the kernel can return (`MAX_ERRNO` of Linux).
const MAX_ERRNO: i32 = 4095;

/// The name in the store of what has no valid one.
const STORED: &str = "stored";

/// The longest name of a descriptor, in bytes (sd_listen_fds(3)).
const MAX_NAME: usize = 255;

/// What one datagram of a worker says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What the core is to be told, in this order; at most one of ready, reloading and stopping.
    pub words: Vec<Word>,
    /// `MAINPID=`: a claim, to be believed only of a pid in the worker's own tree.
    pub main_pid: Option<i32>,
    /// What the sender wants done with the descriptors that came along.
    pub descriptors: Descriptors,
    /// The name of those in the store that it no longer wants kept (`FDSTOREREMOVE=1`).
    pub forget: Option<String>,
}

/// What a sender wants done with the descriptors of its message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Descriptors {
    /// It does not say, or there are none: they are closed.
    #[default]
    Unclaimed,
    /// It waits until its descriptor is closed, which tells it that all it sent before has been acted on.
    Barrier,
    /// It wants them kept (`FDSTORE=1`).
    Store {
        /// Under this name.
        name: String,
        /// Not beyond the hang-up of what is at their other end.
        polled: bool,
    },
}

/// Why a datagram is dropped whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// It is longer than [`MAX_DATAGRAM`].
    #[error("it is longer than {MAX_DATAGRAM} bytes")]
    TooLong,
    /// A NUL stands elsewhere than at its very end.
    #[error("it has a NUL byte inside")]
    EmbeddedNul,
    /// Other lines stand beside `BARRIER=1`.
    #[error("BARRIER=1 does not stand alone")]
    BarrierInCompany,
    /// `BARRIER=1` comes with this many descriptors.
    #[error("BARRIER=1 comes with {0} descriptors instead of one")]
    BarrierDescriptors(usize),
}

/// Reads one datagram that came with so many `descriptors`.
///
/// Of a key that occurs twice the first counts. Unknown keys are ignored, and so is a value that makes no sense: the
/// rest of the message still counts. Lines end with a newline or a carriage return, as in systemd.
///
/// # Errors
///
/// Returns why the datagram is dropped whole, see [`Dropped`].
pub fn parse(datagram: &[u8], descriptors: usize) -> Result<Message, Dropped> {
    if datagram.len() > MAX_DATAGRAM {
        return Err(Dropped::TooLong);
    }
    let text = datagram.strip_suffix(b"\0").unwrap_or(datagram);
    if text.contains(&0) {
        return Err(Dropped::EmbeddedNul);
    }
    let fields = Fields::of(text);
    if fields.barrier == Some(b"1") {
        return match (fields.lines, descriptors) {
            (1, 1) => Ok(Message { descriptors: Descriptors::Barrier, ..Message::default() }),
            (1, count) => Err(Dropped::BarrierDescriptors(count)),
            _ => Err(Dropped::BarrierInCompany),
        };
    }
    Ok(Message {
        words: fields.words(),
        main_pid: fields.main_pid.and_then(number).filter(|&pid| pid > 0),
        descriptors: fields.store(descriptors),
        forget: fields.forgotten(),
    })
}

/// The first value of each key that we know.
#[derive(Default)]
struct Fields<'a> {
    /// How many lines are not blank, whatever they hold.
    lines: usize,
    ready: Option<&'a [u8]>,
    reloading: Option<&'a [u8]>,
    stopping: Option<&'a [u8]>,
    status: Option<&'a [u8]>,
    errno: Option<&'a [u8]>,
    exit_status: Option<&'a [u8]>,
    main_pid: Option<&'a [u8]>,
    extend_timeout: Option<&'a [u8]>,
    watchdog: Option<&'a [u8]>,
    watchdog_usec: Option<&'a [u8]>,
    fd_store: Option<&'a [u8]>,
    fd_store_remove: Option<&'a [u8]>,
    fd_name: Option<&'a [u8]>,
    fd_poll: Option<&'a [u8]>,
    barrier: Option<&'a [u8]>,
    connections: Option<&'a [u8]>,
    drained: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn of(text: &'a [u8]) -> Self {
        let mut fields = Self::default();
        for line in text.split(|&byte| byte == b'\n' || byte == b'\r').filter(|line| !line.is_empty()) {
            fields.lines += 1;
            let Some(equals) = line.iter().position(|&byte| byte == b'=') else { continue };
            let (key, value) = (&line[..equals], &line[equals + 1..]);
            let field = match key {
                b"READY" => &mut fields.ready,
                b"RELOADING" => &mut fields.reloading,
                b"STOPPING" => &mut fields.stopping,
                b"STATUS" => &mut fields.status,
                b"ERRNO" => &mut fields.errno,
                b"EXIT_STATUS" => &mut fields.exit_status,
                b"MAINPID" => &mut fields.main_pid,
                b"EXTEND_TIMEOUT_USEC" => &mut fields.extend_timeout,
                b"WATCHDOG" => &mut fields.watchdog,
                b"WATCHDOG_USEC" => &mut fields.watchdog_usec,
                b"FDSTORE" => &mut fields.fd_store,
                b"FDSTOREREMOVE" => &mut fields.fd_store_remove,
                b"FDNAME" => &mut fields.fd_name,
                b"FDPOLL" => &mut fields.fd_poll,
                b"BARRIER" => &mut fields.barrier,
                b"X_LIVESWAP_CONNECTIONS" => &mut fields.connections,
                b"X_LIVESWAP_DRAINED" => &mut fields.drained,
                _ => continue,
            };
            field.get_or_insert(value);
        }
        fields
    }

    /// The state comes first, as a time-out that is extended in the same message is that of the new state.
    fn words(&self) -> Vec<Word> {
        [
            self.state(),
            self.status.and_then(|value| str::from_utf8(value).ok()).map(Word::status),
            self.errno.and_then(number).filter(|errno| (0..=MAX_ERRNO).contains(errno)).map(Word::Errno),
            self.exit_status.and_then(number).map(Word::ExitStatus),
            self.extend_timeout.and_then(micros).filter(|v| !v.is_zero()).map(Word::ExtendTimeout),
            match self.watchdog {
                Some(b"1") => Some(Word::Watchdog),
                Some(b"trigger") => Some(Word::WatchdogTrigger),
                _ => None,
            },
            self.watchdog_usec.and_then(micros).map(Word::WatchdogInterval),
            self.connections.and_then(number).map(Word::Connections),
            (self.drained == Some(b"1")).then_some(Word::Drained),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// A removal wins over what comes with it, as in systemd.
    fn store(&self, descriptors: usize) -> Descriptors {
        if descriptors == 0 || self.fd_store != Some(b"1") || self.fd_store_remove == Some(b"1") {
            return Descriptors::Unclaimed;
        }
        let name = self.fd_name.and_then(store_name).unwrap_or(STORED);
        Descriptors::Store { name: name.into(), polled: self.fd_poll != Some(b"0") }
    }

    fn forgotten(&self) -> Option<String> {
        let name = self.fd_name.filter(|_| self.fd_store_remove == Some(b"1"))?;
        store_name(name).map(Into::into)
    }

    /// STOPPING wins over READY, and READY over RELOADING.
    fn state(&self) -> Option<Word> {
        [(self.stopping, Word::Stopping), (self.ready, Word::Ready), (self.reloading, Word::Reloading)]
            .into_iter()
            .find_map(|(value, word)| (value == Some(b"1")).then_some(word))
    }
}

/// Reads a name for a descriptor in the store: one that `LISTEN_FDNAMES` can have (sd_listen_fds(3)).
fn store_name(value: &[u8]) -> Option<&str> {
    let legal = |byte: &u8| (0x20..=0x7e).contains(byte) && *byte != b':';
    let is_name = !value.is_empty() && value.len() <= MAX_NAME && value.iter().all(legal);
    str::from_utf8(value).ok().filter(|_| is_name)
}

/// Reads a decimal number of digits alone: no sign, no space.
fn number<T: FromStr>(value: &[u8]) -> Option<T> {
    if !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(value).ok()?.parse().ok()
}

/// Reads a span in microseconds. `UINT64_MAX` is systemd's "no limit", which none of our timers has: it reads as
/// zero, and zero means to every key that no time is given.
fn micros(value: &[u8]) -> Option<Duration> {
    number(value).map(|micros| Duration::from_micros(if micros == u64::MAX { 0 } else { micros }))
}

/// One thing that the manager says to systemd, or to whoever set its `NOTIFY_SOCKET`. It displays as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upward<'a> {
    /// The service serves, or serves again after a reload, be it the old code.
    Ready,
    /// A reload has begun. `Type=notify-reload` wants a stamp of `CLOCK_MONOTONIC` in microseconds that was taken
    /// after the signal came; without it `systemctl reload` never returns.
    Reloading {
        /// The clock's own value, not the time since the manager's start.
        monotonic_micros: u64,
    },
    /// The service is on its way out.
    Stopping,
    /// The state in words; sent as one harmless line.
    Status(&'a str),
    /// The manager is alive.
    Watchdog,
    /// The present start, reload or stop may take this much longer from now.
    ExtendTimeout(Duration),
    /// The descriptor beside it is to be kept under this name, whatever becomes of it meanwhile, for whoever is started next.
    Store(&'a str),
    /// What has this name is kept no longer.
    Discard(&'a str),
}

impl fmt::Display for Upward<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("READY=1"),
            Self::Reloading { monotonic_micros } => {
                write!(f, "RELOADING=1\nMONOTONIC_USEC={monotonic_micros}")
            }
            Self::Stopping => f.write_str("STOPPING=1"),
            Self::Status(text) => write!(f, "STATUS={}", one_line(text)),
            Self::Watchdog => f.write_str("WATCHDOG=1"),
            Self::ExtendTimeout(time) => write!(f, "EXTEND_TIMEOUT_USEC={}", time.as_micros()),
            Self::Store(name) => write!(f, "FDSTORE=1\nFDNAME={name}\nFDPOLL=0"),
            Self::Discard(name) => write!(f, "FDSTOREREMOVE=1\nFDNAME={name}"),
        }
    }
}

/// Returns one datagram that says all of `parts`, each of which should occur once at most.
#[must_use]
pub fn compose(parts: &[Upward<'_>]) -> String {
    let lines: Vec<String> = parts.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::word::STATUS_LIMIT;

    fn words(text: &str) -> Vec<Word> {
        parse(text.as_bytes(), 0).unwrap_or_else(|dropped| panic!("{text:?}: {dropped}")).words
    }

    #[test]
    fn every_key_is_understood() {
        let usec = Duration::from_micros;
        for (text, expected) in [
            ("READY=1", Word::Ready),
            ("RELOADING=1\nMONOTONIC_USEC=77", Word::Reloading),
            ("STOPPING=1", Word::Stopping),
            ("STATUS=12 open", Word::Status("12 open".into())),
            ("STATUS=", Word::Status(String::new())),
            ("STATUS=a=b", Word::Status("a=b".into())),
            ("STATUS=\x1b[31mred", Word::Status("\u{fffd}[31mred".into())),
            ("ERRNO=2", Word::Errno(2)),
            ("ERRNO=4095", Word::Errno(4095)),
            ("EXIT_STATUS=255", Word::ExitStatus(255)),
            ("EXTEND_TIMEOUT_USEC=1", Word::ExtendTimeout(usec(1))),
            ("EXTEND_TIMEOUT_USEC=18446744073709551614", Word::ExtendTimeout(usec(u64::MAX - 1))),
            ("WATCHDOG=1", Word::Watchdog),
            ("WATCHDOG=trigger", Word::WatchdogTrigger),
            ("WATCHDOG_USEC=20000000", Word::WatchdogInterval(usec(20_000_000))),
            ("WATCHDOG_USEC=0", Word::WatchdogInterval(Duration::ZERO)),
            ("WATCHDOG_USEC=18446744073709551615", Word::WatchdogInterval(Duration::ZERO)),
            ("X_LIVESWAP_CONNECTIONS=0", Word::Connections(0)),
            ("X_LIVESWAP_CONNECTIONS=18446744073709551615", Word::Connections(u64::MAX)),
            ("X_LIVESWAP_DRAINED=1", Word::Drained),
        ] {
            assert_eq!(words(text), [expected], "{text:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_ignored_and_the_rest_counts() {
        for value in [
            "READY=",
            "READY=0",
            "READY=2",
            "READY=1 ",
            "READY= 1",
            "READY=yes",
            " READY=1",
            "ready=1",
            "READY",
            "=1",
            "=",
            "RELOADING=true",
            "STOPPING=0",
            "ERRNO=-1",
            "ERRNO=4096",
            "ERRNO=ENOENT",
            "ERRNO=",
            "EXIT_STATUS=256",
            "EXIT_STATUS=+1",
            "EXTEND_TIMEOUT_USEC=0",
            "EXTEND_TIMEOUT_USEC=18446744073709551615",
            "EXTEND_TIMEOUT_USEC=18446744073709551616",
            "EXTEND_TIMEOUT_USEC=1s",
            "EXTEND_TIMEOUT_USEC=+1",
            "EXTEND_TIMEOUT_USEC= 1",
            "EXTEND_TIMEOUT_USEC=-1",
            "EXTEND_TIMEOUT_USEC=0x10",
            "WATCHDOG=0",
            "WATCHDOG=Trigger",
            "WATCHDOG_USEC=",
            "WATCHDOG_USEC=-5",
            "X_LIVESWAP_CONNECTIONS=1.5",
            "X_LIVESWAP_CONNECTIONS=-1",
            "X_LIVESWAP_DRAINED=true",
            "MAINPID=0",
            "MAINPID=-4",
            "MAINPID=2147483648",
            "MAINPID=self",
            "FDSTORE=1",
            "FDSTOREREMOVE=1",
            "FDNAME=x",
            "FDPOLL=0",
            "MONOTONIC_USEC=5",
            "BARRIER=0",
            "X_OTHER=1",
            "NOTIFYACCESS=all",
            "BUSERROR=org.example.Failed",
            "garbage",
        ] {
            let message = parse(format!("{value}\nX_LIVESWAP_CONNECTIONS=7").as_bytes(), 0).unwrap();
            let own = value.starts_with("X_LIVESWAP_CONNECTIONS");
            let rest = if own { vec![] } else { vec![Word::Connections(7)] };
            assert_eq!(message, Message { words: rest, ..Message::default() }, "{value:?}");
        }
    }

    #[test]
    fn stopping_wins_over_ready_and_ready_over_reloading() {
        for (text, expected) in [
            ("RELOADING=1\nREADY=1\nSTOPPING=1", Word::Stopping),
            ("STOPPING=1\nREADY=1", Word::Stopping),
            ("RELOADING=1\nREADY=1", Word::Ready),
            ("RELOADING=1\nREADY=0", Word::Reloading),
            ("STOPPING=0\nREADY=1", Word::Ready),
        ] {
            assert_eq!(words(text), [expected], "{text:?}");
        }
    }

    #[test]
    fn the_first_occurrence_of_a_key_counts() {
        assert_eq!(words("STATUS=one\nSTATUS=two"), [Word::Status("one".into())]);
        assert_eq!(words("READY=0\nREADY=1"), []);
        assert_eq!(parse(b"MAINPID=x\nMAINPID=5", 0).unwrap().main_pid, None);
    }

    #[test]
    fn the_state_comes_before_what_belongs_to_it() {
        let text = "X_LIVESWAP_DRAINED=1\nX_LIVESWAP_CONNECTIONS=0\nWATCHDOG=1\nEXTEND_TIMEOUT_USEC=9\n\
                    EXIT_STATUS=0\nERRNO=0\nSTATUS=bye\nSTOPPING=1\nMAINPID=4711";
        let message = parse(text.as_bytes(), 0).unwrap();
        assert_eq!(message.main_pid, Some(4711));
        let expected = [
            Word::Stopping,
            Word::Status("bye".into()),
            Word::Errno(0),
            Word::ExitStatus(0),
            Word::ExtendTimeout(Duration::from_micros(9)),
            Word::Watchdog,
            Word::Connections(0),
            Word::Drained,
        ];
        assert_eq!(message.words, expected);
    }

    #[test]
    fn blank_lines_and_other_line_ends_do_no_harm() {
        for text in
            ["READY=1\n", "\n\nREADY=1\n\n\n", "READY=1\r\n", "\rREADY=1\r", "READY=1\0", "READY=1\n\0"]
        {
            assert_eq!(words(text), [Word::Ready], "{text:?}");
        }
        for text in ["", "\0", "\n", "\r\n\0"] {
            assert_eq!(parse(text.as_bytes(), 0), Ok(Message::default()), "{text:?}");
        }
    }

    #[test]
    fn a_status_that_is_not_utf_8_is_ignored_alone() {
        let message = parse(b"STATUS=caf\xe9\nSTATUS=tea\nREADY=1\nX_\xff=\xfe", 0).unwrap();
        assert_eq!(message.words, [Word::Ready]);
    }

    #[test]
    fn a_nul_inside_drops_the_datagram() {
        for text in ["\0READY=1", "READY=1\0STATUS=x", "READY=1\0\0", "\0\0", "READY=1\0\n"] {
            assert_eq!(parse(text.as_bytes(), 0), Err(Dropped::EmbeddedNul), "{text:?}");
        }
    }

    #[test]
    fn a_datagram_over_the_limit_is_dropped_whole() {
        let fill = |len: usize| format!("READY=1\nX_={}", "x".repeat(len - "READY=1\nX_=".len()));
        assert_eq!(words(&fill(MAX_DATAGRAM)), [Word::Ready]);
        assert_eq!(words(&(fill(MAX_DATAGRAM - 1) + "\0")), [Word::Ready]);
        assert_eq!(parse(fill(MAX_DATAGRAM + 1).as_bytes(), 0), Err(Dropped::TooLong));
        assert_eq!(parse((fill(MAX_DATAGRAM) + "\0").as_bytes(), 0), Err(Dropped::TooLong));
    }

    #[test]
    fn a_barrier_stands_alone_with_one_descriptor() {
        let barrier = Message { descriptors: Descriptors::Barrier, ..Message::default() };
        for text in ["BARRIER=1", "BARRIER=1\n", "\nBARRIER=1\0"] {
            assert_eq!(parse(text.as_bytes(), 1).as_ref(), Ok(&barrier), "{text:?}");
        }
        assert_eq!(parse(b"BARRIER=1", 0), Err(Dropped::BarrierDescriptors(0)));
        assert_eq!(parse(b"BARRIER=1", 2), Err(Dropped::BarrierDescriptors(2)));
        for text in ["READY=1\nBARRIER=1", "BARRIER=1\nX_ANY=1", "BARRIER=1\nBARRIER=1", "BARRIER=1\nnoise"] {
            assert_eq!(parse(text.as_bytes(), 1), Err(Dropped::BarrierInCompany), "{text:?}");
        }
    }

    #[test]
    fn descriptors_to_be_stored_are_told_from_stray_ones() {
        let use_of = |text: &str, count| parse(text.as_bytes(), count).unwrap().descriptors;
        let store = |name: &str, polled| Descriptors::Store { name: name.into(), polled };
        assert_eq!(use_of("FDSTORE=1\nFDNAME=db", 2), store("db", true));
        assert_eq!(use_of("FDSTORE=1\nFDPOLL=0", 1), store("stored", false));
        for name in ["", "a:b", "\u{e9}", &"x".repeat(256)] {
            assert_eq!(use_of(&format!("FDSTORE=1\nFDNAME={name}"), 1), store("stored", true), "{name}");
        }
        assert_eq!(use_of("FDSTORE=1\nFDSTOREREMOVE=1\nFDNAME=db", 1), Descriptors::Unclaimed);
        let forgotten = |text: &str| parse(text.as_bytes(), 0).unwrap().forget;
        assert_eq!(forgotten("FDSTOREREMOVE=1\nFDNAME=db"), Some("db".into()));
        assert_eq!(forgotten("FDSTOREREMOVE=1"), None);
        assert_eq!(forgotten("FDNAME=db"), None);
        assert_eq!(use_of("FDSTORE=1", 0), Descriptors::Unclaimed);
        assert_eq!(use_of("FDSTOREREMOVE=1\nFDNAME=db", 1), Descriptors::Unclaimed);
        assert_eq!(use_of("READY=1", 3), Descriptors::Unclaimed);
    }

    /// The generator of Steele, Lea and Flood (2014), so that a failure can be run again from its seed.
    fn splitmix(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `bound`.
    fn below(state: &mut u64, bound: usize) -> usize {
        usize::try_from(splitmix(state) % bound as u64).unwrap()
    }

    /// Returns some lines that might be meant, with a few bytes of them spoilt.
    fn hostile(state: &mut u64) -> Vec<u8> {
        const PIECES: [&str; 22] = [
            "READY",
            "RELOADING",
            "STOPPING",
            "STATUS",
            "ERRNO",
            "EXIT_STATUS",
            "MAINPID",
            "EXTEND_TIMEOUT_USEC",
            "WATCHDOG",
            "WATCHDOG_USEC",
            "FDSTORE",
            "BARRIER",
            "X_LIVESWAP_CONNECTIONS",
            "X_LIVESWAP_DRAINED",
            "=1",
            "=trigger",
            "=18446744073709551615",
            "=-1",
            "\n",
            "\r\n",
            "\0",
            "π\u{202e}\x1b]0;",
        ];
        let mut bytes = Vec::new();
        for _ in 0..below(state, 40) {
            bytes.extend_from_slice(PIECES[below(state, PIECES.len())].as_bytes());
            if below(state, 3) == 0 {
                bytes.extend_from_slice(b"=1\n");
            }
        }
        bytes.resize(bytes.len() + below(state, 20) / 19 * below(state, 6000), b'x');
        for _ in 0..below(state, 4) {
            if !bytes.is_empty() {
                let at = below(state, bytes.len());
                bytes[at] = splitmix(state).to_le_bytes()[0];
            }
        }
        bytes
    }

    #[test]
    fn no_datagram_breaks_the_reader() {
        let mut state = 20_260_101;
        let (mut understood, mut dropped) = (0, 0);
        // Miri takes minutes for what is a moment elsewhere.
        let turns = if cfg!(miri) { 200 } else { 50_000 };
        for turn in 0..turns {
            let bytes = hostile(&mut state);
            let Ok(message) = parse(&bytes, below(&mut state, 3)) else {
                dropped += 1;
                continue;
            };
            understood += usize::from(!message.words.is_empty());
            let states = [Word::Ready, Word::Reloading, Word::Stopping];
            let said = message.words.iter().filter(|word| states.contains(word)).count();
            assert!(said <= 1 && message.words.len() <= 9, "turn {turn}: {message:?}");
            assert!(message.main_pid.is_none_or(|pid| pid > 0), "turn {turn}: {message:?}");
            for word in &message.words {
                let Word::Status(text) = word else { continue };
                assert!(
                    text.len() <= STATUS_LIMIT && !text.contains(char::is_control),
                    "turn {turn}: {text:?}"
                );
            }
        }
        assert!(
            understood > turns / 10 && dropped > turns / 10,
            "{understood} understood, {dropped} dropped"
        );
    }

    #[test]
    fn systemd_is_spoken_to_in_its_own_words() {
        assert_eq!(compose(&[Upward::Ready]), "READY=1");
        assert_eq!(
            compose(&[
                Upward::Reloading { monotonic_micros: 123_456 },
                Upward::Status("generation 2: checking")
            ]),
            "RELOADING=1\nMONOTONIC_USEC=123456\nSTATUS=generation 2: checking"
        );
        assert_eq!(compose(&[Upward::Stopping, Upward::Status("")]), "STOPPING=1\nSTATUS=");
        assert_eq!(compose(&[Upward::Watchdog]), "WATCHDOG=1");
        assert_eq!(
            compose(&[Upward::ExtendTimeout(Duration::from_millis(1500))]),
            "EXTEND_TIMEOUT_USEC=1500000"
        );
    }

    #[test]
    fn a_status_cannot_smuggle_in_a_second_line_or_outgrow_the_datagram() {
        let text = "worker 3 said:\nREADY=1\r".to_owned() + &"x".repeat(10_000);
        let datagram = compose(&[Upward::Stopping, Upward::Status(&text)]);
        assert!(datagram.starts_with("STOPPING=1\nSTATUS=worker 3 said: READY=1 xxx"));
        assert_eq!(datagram.lines().count(), 2);
        assert!(datagram.len() <= MAX_DATAGRAM);
    }
}
