//! The `liveswap` program: parse, dispatch, exit code.

fn main() {}
