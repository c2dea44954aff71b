//! The program that `tests/mutants.rs` builds with each mutant of the core: prints the first seed that fails, and why.

extern crate self as liveswap;

pub mod core;
mod path_text;
#[path = "../pid1.rs"]
mod pid1;
mod plain;
#[path = "../sim/mod.rs"]
mod sim;
#[path = "../story.rs"]
mod story;

/// How many seeds a mutant may survive: one that takes two rare things at once to be seen is met by the 3,519th.
const SEEDS: u64 = 20_000;

fn main() {
    if let Some((seed, why)) = pid1::search(0..SEEDS) {
        println!("{seed} {why}");
        return;
    }
    let (_, failures) = sim::search(0..SEEDS, 1);
    if let Some((seed, failure)) = failures.first() {
        println!("{seed} {}", failure.why);
    }
}
