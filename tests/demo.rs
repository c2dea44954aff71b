//! `liveswap demo`, whole: what the README promises of it.

use std::process::{Command, Stdio};

#[test]
fn the_demo_swaps_without_a_failed_request_and_rolls_a_bad_release_back() {
    let demo = Command::new(env!("CARGO_BIN_EXE_liveswap"))
        .args(["demo", "--json"])
        .stdin(Stdio::null())
        .output()
        .expect("the demo");
    let text = String::from_utf8_lossy(&demo.stdout);
    assert!(demo.status.success(), "{text}\n{}", String::from_utf8_lossy(&demo.stderr));
    let events: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect();
    let summary = events.last().expect("a summary");
    assert_eq!(summary["ok"], true, "{text}");
    assert_eq!(summary["failed"], 0, "{text}");
    assert!(summary.to_string().contains("rolled back"), "{text}");
}
