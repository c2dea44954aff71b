//! Lists the tests that were skipped, at the end of `cargo test`: a test runner hides what a test that passes has printed.
//!
//! Cargo runs this file last, by its name, and it has no test runner.

#[path = "support/skipped.rs"]
#[expect(dead_code, reason = "the tests add to the list")]
mod skipped;

fn main() {
    let list = skipped::take();
    if !list.is_empty() {
        println!(
            "\n{} skipped, which proves nothing:",
            if list.len() == 1 { "1 test was" } else { "These tests were" }
        );
        for line in &list {
            println!("  {line}");
        }
        println!("Hint: .ci/run installs what they need, and runs as root");
    }
}
