//! Every input that the fuzz targets ever had trouble with, and thousands near them, against the oracles.
//!
//! An oracle says what must hold of any bytes whatever at one of the doors that strangers' bytes come in by, and panics
//! where it does not. It says more than that nothing panics: what is accepted is compared with a second reading by other
//! means, or with what must follow from it.
//!
//! This searches without a view of the code; `fuzz/run` searches with one. What that finds becomes a file of the corpus.
//! A door more is an oracle in `fuzz/oracles/`, a target in `fuzz/targets/` and in
//! `fuzz/Cargo.toml`, a dictionary, a folder in `fuzz/corpus/`, and a line in [`ORACLES`].

#[path = "../fuzz/oracles"]
mod oracles {
    pub mod control_line;
    pub mod environment_file;
    pub mod lines;
    pub mod node;
    pub mod notify;
    pub mod service_file;
}
#[path = "support/dice.rs"]
mod dice;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use dice::Dice;

/// How many variations of each file are tried; `CORPUS_ROUNDS` sets another number.
const ROUNDS: u64 = 200;

/// Panics where the bytes break it.
type Oracle = fn(&[u8]);

/// Every oracle by the name of its corpus.
const ORACLES: [(&str, Oracle); 6] = [
    ("service_file", oracles::service_file::check),
    ("environment_file", oracles::environment_file::check),
    ("notify", oracles::notify::check),
    ("lines", oracles::lines::check),
    ("control_line", oracles::control_line::check),
    ("node", oracles::node::check),
];

/// The files of a corpus, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry"))
        .map(|entry| (entry.file_name().display().to_string(), fs::read(entry.path()).expect("a file")))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
}

/// Changes a few places: a byte, a piece left out, a piece of another file put in.
fn vary(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(4) {
            0 if at < bytes.len() => bytes[at] = u8::try_from(dice.below(256)).expect("a byte"),
            1 => bytes.insert(at, b"\0\n\r\"'=[]{}#\\1\xff"[dice.below(14)]),
            2 => drop(bytes.drain(at..(at + dice.below(20)).min(bytes.len()))),
            _ => {
                let from = dice.below(other.len() + 1);
                let piece = &other[from..(from + dice.below(60)).min(other.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
        }
    }
}

#[test]
fn no_input_of_the_corpus_and_none_near_it_breaks_an_oracle() {
    let rounds = std::env::var("CORPUS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    for (target, oracle) in ORACLES {
        let files = corpus(target);
        for (name, whole) in &files {
            for round in 0..=rounds {
                let mut dice = Dice(0x9E37_79B9 + round);
                let mut bytes = whole.clone();
                if round > 0 {
                    let other = dice.below(files.len());
                    vary(&mut bytes, &files[other].1, &mut dice);
                }
                let held = catch_unwind(AssertUnwindSafe(|| oracle(&bytes))).is_ok();
                assert!(
                    held,
                    "{target}: round {round} of {name} breaks the oracle: {}",
                    bytes.escape_ascii()
                );
            }
        }
    }
}
