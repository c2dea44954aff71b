//! A name for each state of a small world: the same for two that no future can tell apart.
//!
//! It is made from the words that `Debug` has for the state. In them moments become what they are from now, all of the past
//! the same; workers, generations and requests get the numbers of their order; texts for people go.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};

use liveswap::core::time::Mono;

/// What is further away than this is for ever: the patience of the checker alone.
const FAR: u64 = 1_000_000_000;

/// What stands before a number of deaths, which does not matter where pauses do not grow.
const DEATHS: &str = "deaths: ";

/// What stands before a moment.
const MOMENT: &str = "Mono(";

/// What stands before the numbers that are names.
const IDS: [&str; 3] = ["WorkerId(", "GenerationId(", "RequestId("];

/// Returns the name that `words` have at a moment.
pub fn name(words: &str, now: Mono) -> u64 {
    let parts = parts(words);
    let mut order = BTreeMap::<&str, BTreeSet<u64>>::new();
    for (_, number) in &parts {
        if let Some((kind, number)) = number {
            order.entry(kind).or_default().insert(*number);
        }
    }
    let mut hasher = DefaultHasher::new();
    for (words, number) in &parts {
        hasher.write(words.as_bytes());
        hasher.write_u64(match number {
            None | Some((DEATHS, _)) => 0,
            Some((MOMENT, number)) => match number.saturating_sub(now.0) {
                FAR.. => u64::MAX,
                near => near,
            },
            Some((kind, number)) => order[kind].range(..number).count() as u64,
        });
    }
    hasher.finish()
}

/// Words, and the number that follows them with the kind that they say it is.
type Part<'a> = (&'a str, Option<(&'static str, u64)>);

/// Takes the words apart and leaves out the texts in quotes.
fn parts(words: &str) -> Vec<Part<'_>> {
    let bytes = words.as_bytes();
    let (mut parts, mut from, mut at) = (Vec::new(), 0, 0);
    while at < bytes.len() {
        let byte = bytes[at];
        at += 1;
        // Most bytes go no further than this: nothing is optimized here, and there are thousands in each state.
        if byte > b'(' {
            continue;
        }
        if byte == b'"' {
            parts.push((&words[from..at], None));
            while bytes[at] != b'"' {
                at += if bytes[at] == b'\\' { 2 } else { 1 };
            }
            at += 1;
            from = at;
        } else if let Some(kind) = kind(&words[..at]) {
            let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            let number = words[at..at + digits].parse().expect("a number follows");
            parts.push((&words[from..at], Some((kind, number))));
            at += digits;
            from = at;
        }
    }
    parts.push((&words[from..], None));
    parts
}

/// Returns the kind of the number that follows these words, if one does. One look tells which it can be.
fn kind(words: &str) -> Option<&'static str> {
    let [.., first, _, second, _] = words.as_bytes() else { return None };
    let kind = match (first, second) {
        (b'r', b'd') => IDS[0],
        (b'n', b'd') => IDS[1],
        (b't', b'd') => IDS[2],
        (b'o', b'o') => MOMENT,
        (b'h', b':') => DEATHS,
        _ => return None,
    };
    words.ends_with(kind).then_some(kind)
}

#[test]
fn what_no_future_can_tell_apart_has_one_name() {
    let later = Mono(5_000_000);
    let one = r#"{WorkerId(3): Mono(6000000), WorkerId(9): Mono(1)} "worker 9" deaths: 2 GenerationId(4)"#;
    let same = r#"{WorkerId(1): Mono(1000000), WorkerId(2): Mono(0)} "\"it\"" deaths: 7 GenerationId(1)"#;
    let other = r#"{WorkerId(3): Mono(1), WorkerId(9): Mono(6000000)} "worker 9" deaths: 2 GenerationId(4)"#;
    assert_eq!(name(one, later), name(same, Mono(0)));
    assert_ne!(name(one, later), name(one, Mono(0)));
    assert_ne!(name(one, later), name(other, later));
}
