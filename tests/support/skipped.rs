//! The list of the tests that were skipped in this run of `cargo test`.
//!
//! All test programs of a run are children of one cargo, so its pid names the list.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::thread;

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(format!("skipped-{}", parent_id()))
}

/// Says that the running test proves nothing, and why.
pub fn add(why: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("SKIPPED: {why}");
    // Where cargo builds elsewhere, the folder is not there.
    let _ = fs::create_dir_all(path().parent().expect("a folder"));
    // CI has a list of its own, which it shows at its end.
    for list in [Some(path()), env::var_os("SKIPPED").map(PathBuf::from)].into_iter().flatten() {
        let file = OpenOptions::new().create(true).append(true).open(list);
        // Lines of this length are written at once.
        file.and_then(|mut file| file.write_all(format!("{test}: {why}\n").as_bytes()))
            .expect("the list of skipped tests");
    }
}

/// Returns the list, and removes it.
pub fn take() -> Vec<String> {
    let text = fs::read_to_string(path()).unwrap_or_default();
    // There is none where nothing was skipped.
    let _ = fs::remove_file(path());
    text.lines().map(str::to_owned).collect()
}
