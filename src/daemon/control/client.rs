//! One connection: lines in, lines out, nothing waited for.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::token::{ClientId, Poller, Token, Watched};
use crate::core::time::Mono;
use crate::sys::foreign::are_too_many;
use crate::sys::handover::hand_over;
use crate::sys::stream_socket::StreamSocket;
use crate::sys::wait::Interest;
use crate::wire::control::{BadRequest, MAX_FIRST_LINE, MAX_LINE, Request};
use crate::wire::lines::Lines;
use crate::wire::secret::Secret;

/// How long a client may say nothing that is whole, or read nothing of what waits for it.
const IDLE: Duration = Duration::from_secs(60);

/// How long a client may take to show the token.
const TIME_TO_PROVE: Duration = Duration::from_secs(10);

/// What is said to a client that must show the token, and has not.
const NO_TOKEN: &str = "the first line must have the `token`: what stands in `[control] token_file`, or without one in the file \
                        `token` of the manager's runtime directory";

/// How much is read of a client in a turn, in bytes.
const READ_SIZE: usize = 16 * 1024;

/// The most events that wait for a client which does not read them, in bytes.
const MAX_EVENTS: usize = 256 * 1024;

/// A connection.
#[derive(Debug)]
pub struct Client {
    pub(super) stream: Watched<StreamSocket>,
    lines: Lines,
    output: VecDeque<u8>,
    /// How many of its requests are not answered.
    pub(super) asked: usize,
    /// Whether it is told what happens.
    pub(super) subscribed: bool,
    /// When it last said something whole, or read something.
    pub(super) heard_at: Mono,
    /// The most that may wait in its output when an event comes: so much beyond the answers to what it asked.
    room: usize,
    standing: Standing,
    pub(super) trust: Trust,
}

hand_over!(Client as ClientState {
    stream: Watched<StreamSocket>,
    lines: Lines,
    output: VecDeque<u8>,
    asked: usize,
    subscribed: bool,
    heard_at: Mono,
    room: usize,
    standing: Standing,
    trust: Trust,
});

/// How far the conversation has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It may say more.
    Open,
    /// It will say no more, and still hears what it asked for.
    Silent,
    /// It is not heard any more, and closed as soon as it has read what waits.
    Parting,
    /// It cannot be spoken to.
    Lost,
}

/// What is known of who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trust {
    /// It came by the control socket, which nobody reaches unawares: it may speak, and may err.
    Full,
    /// It came by TCP and may speak. As a browser may be made to speak to any port in its user's name, what is no command
    /// ends it.
    Wary,
    /// It came by TCP, and its first line must show the token.
    Unproven,
    /// It came by TCP, and a child looks who holds its end of the connection. It is not heard before that is known.
    Examined,
}

impl Trust {
    /// Whether it is not known yet that it may speak.
    pub(super) fn is_unproven(self) -> bool {
        matches!(self, Self::Unproven | Self::Examined)
    }
}

impl Client {
    pub(super) fn new(stream: StreamSocket, trust: Trust, now: Mono) -> Self {
        let limit = if trust.is_unproven() { MAX_FIRST_LINE } else { MAX_LINE };
        Self {
            stream: stream.into(),
            lines: Lines::new(limit),
            output: VecDeque::new(),
            asked: 0,
            subscribed: false,
            heard_at: now,
            room: MAX_EVENTS,
            standing: Standing::Open,
            trust,
        }
    }

    /// Takes what the look at its end of the connection has shown: it may speak, or it must show the token.
    pub(super) fn examined(&mut self, may_speak: bool, now: Mono) {
        self.heard_at = now;
        self.trust = if may_speak { Trust::Wary } else { Trust::Unproven };
        if may_speak {
            self.lines.raise_limit(MAX_LINE);
        }
    }

    /// Whether the other end was closed, so that no answer reaches it. Asked when there was an event: nothing but that was waited for.
    pub(super) fn has_gone(&self) -> bool {
        self.standing == Standing::Lost || self.stream.interest() == Some(Interest::Nothing)
    }

    /// Takes what it has written by now, a bounded piece of it, and returns the requests in it. `token` is what it must show
    /// where it must show one.
    pub(super) fn listen(&mut self, now: Mono, token: Option<&Secret>) -> Vec<Result<Request, BadRequest>> {
        let mut requests = Vec::new();
        if self.awaited() != Interest::Read || self.standing != Standing::Open || are_too_many() {
            return requests;
        }
        let mut buffer = [0; READ_SIZE];
        // One byte more tells a line that just fits from one that is too long.
        let most = if self.trust.is_unproven() { MAX_FIRST_LINE + 1 } else { READ_SIZE };
        match self.stream.read(&mut buffer[..most]) {
            Ok(0) => self.standing = Standing::Silent,
            Ok(count) => self.lines.push(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.standing = Standing::Lost,
        }
        while self.standing != Standing::Parting
            && let Some(line) = self.lines.next_line()
        {
            if !line.ended {
                let most = if self.trust.is_unproven() { MAX_FIRST_LINE } else { MAX_LINE };
                let reason = format!("a line has at most {most} bytes");
                requests.push(Err(BadRequest { id: None, cmd: String::new(), reason }));
                self.standing = Standing::Parting;
                break;
            }
            self.heard_at = now;
            if self.trust != Trust::Full || !line.bytes.trim_ascii().is_empty() {
                let request = Request::parse(line.bytes);
                requests.push(self.judge(request, token));
            }
        }
        requests
    }

    /// Decides whether it is heard any more after a line by TCP.
    fn judge(
        &mut self,
        request: Result<Request, BadRequest>,
        token: Option<&Secret>,
    ) -> Result<Request, BadRequest> {
        match (self.trust, request) {
            (Trust::Full, request) => request,
            // A command that is wrong is a command all the same.
            (Trust::Wary, Err(bad)) if bad.cmd.is_empty() => self.let_down(bad),
            (Trust::Wary, request) => request,
            // Not heard before it is known.
            (Trust::Examined, Ok(Request { id, command, .. })) => {
                let cmd = command.name().into();
                self.let_down(BadRequest { id, cmd, reason: NO_TOKEN.into() })
            }
            (Trust::Unproven, Ok(request)) if token.is_some() && request.token.as_ref() == token => {
                self.trust = Trust::Wary;
                self.lines.raise_limit(MAX_LINE);
                Ok(request)
            }
            (Trust::Unproven, Ok(Request { id, command, token, .. })) => {
                let what = if token.is_some() { "the `token` is not the right one" } else { NO_TOKEN };
                self.let_down(BadRequest { id, cmd: command.name().into(), reason: what.into() })
            }
            (Trust::Unproven | Trust::Examined, Err(bad)) => self.let_down(bad),
        }
    }

    /// Hears it no more once it knows why.
    fn let_down(&mut self, bad: BadRequest) -> Result<Request, BadRequest> {
        self.standing = Standing::Parting;
        Err(bad)
    }

    /// Has it told what it asked for, when it takes it.
    pub(super) fn say(&mut self, line: &[u8]) {
        self.output.extend(line);
        self.room = self.output.len() + MAX_EVENTS;
    }

    /// Has it told what happens; one that does not read it is lost.
    pub(super) fn tell(&mut self, event: &[u8]) {
        if self.output.len() + event.len() > self.room {
            self.standing = Standing::Lost;
        } else {
            self.output.extend(event);
        }
    }

    /// Says a last line, as far as there is room for it now.
    pub(super) fn part(&mut self, line: &[u8]) {
        if self.output.is_empty() {
            let _ = self.stream.write(line);
        }
        self.standing = Standing::Parting;
    }

    /// Writes what is taken.
    pub(super) fn flush(&mut self, now: Mono) {
        while !self.output.is_empty() && self.standing != Standing::Lost {
            match self.stream.write(self.output.as_slices().0) {
                Ok(count) => {
                    self.output.drain(..count);
                    self.heard_at = now;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.standing = Standing::Lost,
            }
        }
        self.room = MAX_EVENTS;
        self.output.shrink_to(4096);
    }

    /// Has it watched for what is to come.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub(super) fn watch(&self, poller: &Poller, id: ClientId) -> io::Result<()> {
        self.stream.watch(poller, Token::Client(id), self.awaited())
    }

    /// What is to come next. A client that does not read is not heard.
    fn awaited(&self) -> Interest {
        if !self.output.is_empty() {
            Interest::Write
        } else if self.standing == Standing::Silent || self.trust == Trust::Examined {
            Interest::Nothing
        } else {
            Interest::Read
        }
    }

    /// Whether nobody has any more use for it.
    pub(super) fn is_over(&self) -> bool {
        let has_all = self.output.is_empty();
        let wants_nothing = self.asked == 0 && !self.subscribed;
        match self.standing {
            Standing::Open => false,
            Standing::Silent => has_all && wants_nothing,
            Standing::Parting => has_all,
            Standing::Lost => true,
        }
    }

    /// Whether it waits for nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.asked == 0 && !self.subscribed
    }

    /// Returns when it has been silent, or has read nothing, for too long.
    pub(super) fn deadline(&self) -> Option<Mono> {
        let patience = if self.trust.is_unproven() { TIME_TO_PROVE } else { IDLE };
        (self.is_idle() || !self.output.is_empty()).then(|| self.heard_at + patience)
    }

    /// Says what it did not do in time.
    pub(super) fn why_late(&self) -> &'static str {
        match (self.trust, self.output.is_empty()) {
            (Trust::Unproven | Trust::Examined, _) => "the token was not shown within 10 s",
            (_, true) => "idle for a minute",
            (_, false) => "what waits was not read for a minute",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::foreign::Closers;

    fn pair() -> (Client, UnixStream) {
        pair_of(Trust::Full)
    }

    fn pair_of(trust: Trust) -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Client::new(OwnedFd::from(ours).into(), trust, Mono::ZERO), theirs)
    }

    #[test]
    fn half_a_line_is_no_request_and_does_not_keep_it_alive() {
        let (mut client, mut theirs) = pair();
        theirs.write_all(b"{\"cmd\":").unwrap();
        assert!(client.listen(Mono(5), None).is_empty());
        assert_eq!(client.deadline(), Some(Mono::ZERO + IDLE));
        theirs.write_all(b"\"ping\"}\n\n").unwrap();
        assert!(client.listen(Mono(7), None).pop().unwrap().is_ok());
        assert_eq!(client.deadline(), Some(Mono(7) + IDLE));
        client.asked = 1;
        assert_eq!(client.deadline(), None, "it waits for us");
    }

    #[test]
    fn a_line_without_end_is_refused_in_bounded_memory() {
        let (mut client, theirs) = pair();
        let writer = std::thread::spawn(move || {
            let mut theirs = theirs;
            // Its end may be closed before all is written.
            let _ = theirs.write_all(&vec![b'x'; 10 << 20]);
        });
        let refused = loop {
            let heard = client.listen(Mono::ZERO, None);
            if let Some(request) = heard.into_iter().next() {
                break request.unwrap_err();
            }
        };
        assert!(refused.reason.contains(&format!("{MAX_LINE} bytes")));
        assert!(client.listen(Mono::ZERO, None).is_empty(), "nothing more is read of it");
        assert!(client.is_over());
        drop(client);
        Closers::default().finish();
        writer.join().unwrap();
    }

    #[test]
    fn who_does_not_read_events_is_lost() {
        let (mut client, theirs) = pair();
        client.subscribed = true;
        let event = vec![b'x'; 1024];
        for _ in 0..10_000 {
            client.tell(&event);
            client.flush(Mono::ZERO);
        }
        assert!(client.is_over());
        assert!(client.output.len() <= MAX_EVENTS);
        drop(theirs);
    }

    #[test]
    fn a_long_answer_leaves_room_for_events() {
        let (mut client, theirs) = pair();
        client.say(&vec![b'x'; 4 << 20]);
        client.tell(b"event\n");
        assert!(!client.is_over());
        drop(theirs);
    }

    #[test]
    fn who_does_not_read_is_not_heard_until_it_does() {
        let (mut client, theirs) = pair();
        client.say(&vec![b'x'; 4 << 20]);
        client.say(b"\n");
        client.flush(Mono(1));
        assert_eq!(client.awaited(), Interest::Write);
        assert!(client.deadline().is_some());
        let mut reader = io::BufReader::new(theirs);
        let reading = std::thread::spawn(move || {
            let mut line = Vec::new();
            reader.read_until(b'\n', &mut line).unwrap();
            (line.len(), reader)
        });
        while !client.output.is_empty() {
            client.flush(Mono(2));
        }
        assert_eq!(client.awaited(), Interest::Read);
        assert_eq!(reading.join().unwrap().0, (4 << 20) + 1);
    }

    #[test]
    fn who_shuts_its_mouth_still_hears_its_answer() {
        let (mut client, mut theirs) = pair();
        theirs.write_all(b"{\"cmd\":\"upgrade\"}\n").unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.listen(Mono::ZERO, None).len(), 1);
        client.asked = 1;
        assert!(client.listen(Mono::ZERO, None).is_empty());
        assert_eq!(client.awaited(), Interest::Nothing);
        // The end of what it says may be reported once more in the turn in which it was read.
        assert!(!client.has_gone());
        client.watch(&Poller::new().unwrap(), ClientId(1)).unwrap();
        assert!(client.has_gone(), "nothing but its end is waited for");
        assert!(!client.is_over());
        client.asked = 0;
        client.say(b"done\n");
        assert!(!client.is_over());
        client.flush(Mono::ZERO);
        assert!(client.is_over());
    }

    /// What a client of this trust is answered when it writes `text` in one piece: the `cmd` of what is obeyed, and why the
    /// rest is not.
    fn heard(trust: Trust, text: &str) -> (Vec<String>, Standing) {
        let (mut client, mut theirs) = pair_of(trust);
        theirs.write_all(text.as_bytes()).unwrap();
        let token = Secret::from("0123456789abcdef");
        let requests = client.listen(Mono(1), Some(&token));
        let said = |request: Result<Request, BadRequest>| match request {
            Ok(request) => request.command.name().to_owned(),
            Err(bad) => bad.reason,
        };
        (requests.into_iter().map(said).collect(), client.standing)
    }

    #[test]
    fn by_tcp_what_is_no_command_is_the_last_that_is_heard() {
        let ping = "{\"cmd\":\"ping\"}\n";
        for line in
            ["POST / HTTP/1.1\r\n", "\r\n", "\n", "{}\n", "[]\n", "\u{16}\u{3}\u{1}\n", "{\"cmd\":\"\"}\n"]
        {
            let (said, standing) = heard(Trust::Wary, &format!("{line}{ping}"));
            assert_eq!((said.len(), standing), (1, Standing::Parting), "{line:?}: {said:?}");
            let (said, standing) = heard(Trust::Wary, &format!("{ping}{line}{ping}"));
            assert_eq!((said.len(), standing), (2, Standing::Parting), "{line:?}: {said:?}");
            let (said, standing) = heard(Trust::Full, &format!("{line}{ping}"));
            assert_eq!((said.last().map(String::as_str), standing), (Some("ping"), Standing::Open));
        }
        let (said, standing) = heard(Trust::Wary, &format!("{{\"cmd\":\"fly\"}}\n{ping}"));
        assert_eq!((said, standing), (vec!["unknown cmd `fly`".into(), "ping".into()], Standing::Open));
    }

    #[test]
    fn a_token_is_shown_once_and_at_once() {
        let shown = "{\"cmd\":\"ping\",\"token\":\"0123456789abcdef\"}\n";
        let long = format!("{{\"cmd\":\"ping\",\"more\":\"{}\"}}\n", "x".repeat(10_000));
        let (said, standing) = heard(Trust::Unproven, &format!("{shown}{{\"cmd\":\"status\"}}\n"));
        assert_eq!((said, standing), (vec!["ping".into(), "status".into()], Standing::Open));
        for (line, why) in [
            ("{\"cmd\":\"die\"}\n", NO_TOKEN),
            ("{\"cmd\":\"die\",\"token\":\"\"}\n", "the `token` is not the right one"),
            ("{\"cmd\":\"die\",\"token\":\"0123456789abcdeF\"}\n", "the `token` is not the right one"),
            ("{\"cmd\":\"die\",\"token\":null}\n", NO_TOKEN),
            ("{\"cmd\":\"fly\",\"token\":\"0123456789abcdef\"}\n", "unknown cmd `fly`"),
            (&long, "a line has at most 4096 bytes"),
        ] {
            let (said, standing) = heard(Trust::Unproven, &format!("{line}{shown}"));
            assert_eq!((said, standing), (vec![why.to_owned()], Standing::Parting), "{line}");
        }
        let (mut client, mut theirs) = pair_of(Trust::Unproven);
        theirs.write_all(format!("{shown}{long}").as_bytes()).unwrap();
        let token = Secret::from("0123456789abcdef");
        let mut heard = client.listen(Mono(1), Some(&token));
        heard.extend(client.listen(Mono(2), None));
        assert_eq!(heard.len(), 2, "lines may be long from then on");
        let (mut client, mut theirs) = pair_of(Trust::Unproven);
        theirs.write_all(shown.as_bytes()).unwrap();
        assert!(client.listen(Mono(1), None)[0].is_err(), "where there is no token, none is right");
    }

    #[test]
    fn who_shows_no_token_has_ten_seconds() {
        let (mut client, mut theirs) = pair_of(Trust::Unproven);
        theirs.write_all(b"{\"cmd\":").unwrap();
        assert!(client.listen(Mono(5), None).is_empty());
        assert_eq!(client.deadline(), Some(Mono::ZERO + TIME_TO_PROVE));
    }
}
