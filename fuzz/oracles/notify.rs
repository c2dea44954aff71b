//! The notify datagram.

use std::collections::BTreeMap;
use std::time::Duration;

use liveswap::core::word::{STATUS_LIMIT, Word, one_line};
use liveswap::wire::notify::{Descriptors, MAX_DATAGRAM, Message, parse};

/// Reads the first byte as how many descriptors came along and the rest as a datagram, and compares what the reader
/// makes of it with the protocol read word for word ([`by_the_book`]).
///
/// # Panics
///
/// Where the two differ, or where what was understood does not survive being said again.
pub fn check(bytes: &[u8]) {
    let Some((&count, datagram)) = bytes.split_first() else { return };
    let count = usize::from(count);
    let message = parse(datagram, count).ok();
    assert_eq!(message, by_the_book(datagram, count));
    let Some(message) = message else { return };

    assert!(message.words.len() <= 9, "more words than keys");
    for word in &message.words {
        if let Word::Status(status) = word {
            assert!(status.len() <= STATUS_LIMIT && !status.contains(char::is_control));
            assert_eq!(*status, one_line(status), "harmless only at the second look");
        }
    }
    if message.descriptors == Descriptors::Barrier {
        assert_eq!((message.words.len(), message.main_pid, count), (0, None, 1));
        return;
    }
    let said: Vec<String> = message.words.iter().map(say).collect();
    let again = parse(said.join("\n").as_bytes(), 0).expect("what we say ourselves");
    assert_eq!(again.words, message.words);
    if datagram.len() + 16 <= MAX_DATAGRAM {
        let text = datagram.strip_suffix(b"\0").unwrap_or(datagram);
        let longer = [text, b"\r\nX_UNKNOWN=1\n\0"].concat();
        assert_eq!(parse(&longer, count).as_ref(), Ok(&message), "what says nothing changes something");
    }
}

/// Reads a datagram by sd_notify(3), slowly.
fn by_the_book(datagram: &[u8], count: usize) -> Option<Message> {
    let text = datagram.strip_suffix(b"\0").unwrap_or(datagram);
    if datagram.len() > MAX_DATAGRAM || text.contains(&0) {
        return None;
    }
    let lines: Vec<&[u8]> =
        text.split(|byte| b"\r\n".contains(byte)).filter(|line| !line.is_empty()).collect();
    let mut values: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    for line in &lines {
        let mut parts = line.splitn(2, |byte| *byte == b'=');
        if let (Some(key), Some(value)) = (parts.next(), parts.next()) {
            values.entry(key).or_insert(value);
        }
    }
    let value = |key: &str| values.get(key.as_bytes()).copied();
    let is = |key: &str, wanted: &str| value(key) == Some(wanted.as_bytes());
    let within =
        |key: &str, most: u64| value(key).and_then(number).filter(|number| *number <= u128::from(most));
    let micros = |key: &str| {
        // UINT64_MAX stands for no limit, and we have no timer without one.
        let micros = within(key, u64::MAX)? % u128::from(u64::MAX);
        Some(Duration::from_micros(u64::try_from(micros).ok()?))
    };
    if is("BARRIER", "1") {
        let alone = lines.len() == 1 && count == 1;
        return alone.then(|| Message { descriptors: Descriptors::Barrier, ..Message::default() });
    }

    let mut words = Vec::new();
    let states = [("STOPPING", Word::Stopping), ("READY", Word::Ready), ("RELOADING", Word::Reloading)];
    words.extend(states.into_iter().find(|(key, _)| is(key, "1")).map(|(_, word)| word));
    words.extend(value("STATUS").and_then(|status| str::from_utf8(status).ok()).map(Word::status));
    words.extend(within("ERRNO", 4095).and_then(|number| i32::try_from(number).ok()).map(Word::Errno));
    words.extend(
        within("EXIT_STATUS", 255).and_then(|number| u8::try_from(number).ok()).map(Word::ExitStatus),
    );
    words.extend(micros("EXTEND_TIMEOUT_USEC").filter(|time| !time.is_zero()).map(Word::ExtendTimeout));
    words.extend(is("WATCHDOG", "1").then_some(Word::Watchdog));
    words.extend(is("WATCHDOG", "trigger").then_some(Word::WatchdogTrigger));
    words.extend(micros("WATCHDOG_USEC").map(Word::WatchdogInterval));
    let connections = within("X_LIVESWAP_CONNECTIONS", u64::MAX);
    words.extend(connections.and_then(|number| u64::try_from(number).ok()).map(Word::Connections));
    words.extend(is("X_LIVESWAP_DRAINED", "1").then_some(Word::Drained));

    let largest = u64::from(i32::MAX.unsigned_abs());
    let main_pid = within("MAINPID", largest).and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let is_named = |name: &[u8]| {
        let legal = |byte: &u8| byte.is_ascii_graphic() && *byte != b':' || *byte == b' ';
        (1..=255).contains(&name.len()) && name.iter().all(legal)
    };
    let name =
        value("FDNAME").filter(|name| is_named(name)).map(|name| String::from_utf8_lossy(name).into_owned());
    let removes = is("FDSTOREREMOVE", "1");
    let descriptors = if count > 0 && is("FDSTORE", "1") && !removes {
        Descriptors::Store { name: name.clone().unwrap_or("stored".into()), polled: !is("FDPOLL", "0") }
    } else {
        Descriptors::Unclaimed
    };
    Some(Message { words, main_pid, descriptors, forget: name.filter(|_| removes) })
}

/// A decimal number of any length, as large as it may be: more than any key may have where it does not fit.
fn number(digits: &[u8]) -> Option<u128> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        digits
            .iter()
            .fold(0, |sum: u128, digit| sum.saturating_mul(10).saturating_add(u128::from(digit - b'0'))),
    )
}

/// Says a word as a worker does.
fn say(word: &Word) -> String {
    match word {
        Word::Ready => "READY=1".to_owned(),
        Word::Reloading => "RELOADING=1".to_owned(),
        Word::Stopping => "STOPPING=1".to_owned(),
        Word::Status(status) => format!("STATUS={status}"),
        Word::Errno(errno) => format!("ERRNO={errno}"),
        Word::ExitStatus(status) => format!("EXIT_STATUS={status}"),
        Word::ExtendTimeout(time) => format!("EXTEND_TIMEOUT_USEC={}", time.as_micros()),
        Word::Watchdog => "WATCHDOG=1".to_owned(),
        Word::WatchdogTrigger => "WATCHDOG=trigger".to_owned(),
        Word::WatchdogInterval(time) => format!("WATCHDOG_USEC={}", time.as_micros()),
        Word::Connections(count) => format!("X_LIVESWAP_CONNECTIONS={count}"),
        Word::Drained => "X_LIVESWAP_DRAINED=1".to_owned(),
    }
}
