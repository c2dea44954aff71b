//! Searches for bytes that break the oracle of the same name; see `fuzz/run`.
#![no_main]

#[path = "../oracles/node.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oracle::check(bytes));
