//! What a worker says of itself, as plain data.
//!
//! `wire` makes words out of notify datagrams (`sd_notify(3)`). A word holds no pid and no descriptor, and its text
//! is fit to be shown: whoever prints a [`Word::Status`] need not clean it first.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::printable::is_printable;

/// The longest status text that is kept, in bytes.
pub const STATUS_LIMIT: usize = 1024;

/// One thing that a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// `READY=1`: it serves.
    Ready,
    /// `RELOADING=1`: it reads its configuration again. It goes on serving, so a ready worker stays ready.
    Reloading,
    /// `STOPPING=1`: it has begun to leave, and there is no way back.
    Stopping,
    /// `STATUS=`: its state in words for people; empty clears. Made by [`Word::status`].
    Status(String),
    /// `ERRNO=`: why it failed, 0 to 4095.
    Errno(i32),
    /// `EXIT_STATUS=`: the status that it is going to exit with.
    ExitStatus(u8),
    /// `EXTEND_TIMEOUT_USEC=`: the deadline of the present state, and of the watchdog, comes no sooner than this
    /// long from now. Never zero.
    ExtendTimeout(Duration),
    /// `WATCHDOG=1`: it is alive.
    Watchdog,
    /// `WATCHDOG=trigger`: it wants to be treated as if the watchdog had expired, whether one is set or not.
    WatchdogTrigger,
    /// `WATCHDOG_USEC=`: from now on it must speak this often; the timer starts afresh. Zero turns the watchdog off.
    WatchdogInterval(Duration),
    /// `X_LIVESWAP_CONNECTIONS=`: how many connections it still has open.
    Connections(u64),
    /// `X_LIVESWAP_DRAINED=1`: nothing is left to finish, it may be retired at once.
    Drained,
}

impl Word {
    /// Returns the status that `text` stands for: one line, fit to be shown, of at most [`STATUS_LIMIT`] bytes.
    #[must_use]
    pub fn status(text: &str) -> Self {
        Self::Status(one_line(text))
    }
}

/// Returns `text` as one line that can neither break a log nor steer a terminal.
///
/// White space becomes a space, and every other character that is not printable becomes U+FFFD
/// ([`is_printable`](super::printable::is_printable)). More than [`STATUS_LIMIT`] bytes are cut,
/// and `…` shows it.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(harmless).collect();
    if line.len() > STATUS_LIMIT {
        let mut end = STATUS_LIMIT - '…'.len_utf8();
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push('…');
    }
    line
}

fn harmless(character: char) -> char {
    match character {
        '\t' | '\n' | '\r' | '\u{2028}' | '\u{2029}' => ' ',
        other if is_printable(other) => other,
        _ => char::REPLACEMENT_CHARACTER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_harmless_line() {
        assert_eq!(one_line("4 of 4 ready, π ✓"), "4 of 4 ready, π ✓");
        assert_eq!(one_line("a\nb\r\tc"), "a b  c");
        assert_eq!(one_line("\x1b[2Jgone\x07\u{9b}\u{202e}"), "\u{fffd}[2Jgone\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(one_line("a\u{200b}\u{61c}\u{e0041}b"), "a\u{fffd}\u{fffd}\u{fffd}b");
        assert_eq!(Word::status(""), Word::Status(String::new()));
    }

    #[test]
    fn a_long_status_is_cut_between_characters() {
        let fits = "x".repeat(STATUS_LIMIT);
        assert_eq!(one_line(&fits), fits);
        for lead in 0..4 {
            let line = one_line(&("x".repeat(lead) + &"π".repeat(STATUS_LIMIT)));
            assert!(line.len() <= STATUS_LIMIT && line.len() > STATUS_LIMIT - 3, "{}", line.len());
            assert!(line.ends_with("π…"));
        }
    }
}
