//! A name for each state of a small world: the same for two that no future can tell apart.
//!
//! It is made from the words that `Debug` has for the state. In them moments become what they are from now, all of the past
//! the same; workers, generations and requests get the numbers of their order; texts for people go.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use liveswap::core::time::Mono;

/// What is further away than this is for ever: the patience of the checker alone.
const FAR: u64 = 1_000_000_000;

/// What stands before a number of deaths, which does not matter where pauses do not grow.
const DEATHS: &str = "deaths: ";

/// What stands before the numbers that are names.
const IDS: [&str; 3] = ["WorkerId(", "GenerationId(", "RequestId("];

/// What stands before all numbers that are not taken as they are.
const KINDS: [&str; 5] = ["WorkerId(", "GenerationId(", "RequestId(", "Mono(", DEATHS];

pub fn name(words: &str, now: Mono) -> u64 {
    let mut hasher = DefaultHasher::new();
    plain(words, now).hash(&mut hasher);
    hasher.finish()
}

fn plain(words: &str, now: Mono) -> String {
    let parts = parts(words);
    let mut numbers = BTreeMap::<&str, BTreeSet<u64>>::new();
    for part in &parts {
        if let Part::Number(kind, number) = part
            && IDS.contains(kind)
        {
            numbers.entry(kind).or_default().insert(*number);
        }
    }
    let mut plain = String::with_capacity(words.len());
    for part in parts {
        match part {
            Part::Words(words) => plain.push_str(words),
            Part::Number(kind, number) => {
                let number = match numbers.get(kind) {
                    Some(all) => all.range(..number).count() as u64,
                    None if kind == DEATHS => 0,
                    None => match number.saturating_sub(now.0) {
                        FAR.. => u64::MAX,
                        near => near,
                    },
                };
                plain.push_str(&number.to_string());
            }
        }
    }
    plain
}

enum Part<'a> {
    Words(&'a str),
    /// A number, and what kind the words before it say it is.
    Number(&'a str, u64),
}

/// Takes the words apart and leaves out the texts in quotes.
fn parts(words: &str) -> Vec<Part<'_>> {
    let bytes = words.as_bytes();
    let (mut parts, mut from, mut at) = (Vec::new(), 0, 0);
    while at < bytes.len() {
        let byte = bytes[at];
        at += 1;
        if byte == b'"' {
            parts.push(Part::Words(&words[from..at]));
            while bytes[at] != b'"' {
                at += if bytes[at] == b'\\' { 2 } else { 1 };
            }
            at += 1;
            from = at;
        } else if (byte == b'(' || byte == b' ')
            && let Some(kind) = KINDS.iter().find(|kind| words[from..at].ends_with(**kind))
        {
            parts.push(Part::Words(&words[from..at]));
            let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            parts.push(Part::Number(kind, words[at..at + digits].parse().expect("a number follows")));
            at += digits;
            from = at;
        }
    }
    parts.push(Part::Words(&words[from..]));
    parts
}

#[test]
fn what_no_future_can_tell_apart_has_one_name() {
    let later = Mono(5_000_000);
    let one = r#"{WorkerId(3): Mono(6000000), WorkerId(9): Mono(1)} "worker 9" deaths: 2 GenerationId(4)"#;
    let same = r#"{WorkerId(1): Mono(1000000), WorkerId(2): Mono(0)} "\"it\"" deaths: 7 GenerationId(1)"#;
    assert_eq!(plain(one, later), plain(same, Mono(0)));
    assert_ne!(plain(one, later), plain(one, Mono(0)));
}
