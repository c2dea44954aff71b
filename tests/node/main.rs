//! Node programs, unmodified, on the real Node: each form of `listen()`, each upgrade without a lost request.
//!
//! ```text
//! hello   the classic program, by each version of Node      listen   every form of listen()      life    messages, drains, ends
//! apps    applications as they come from npm                target   `head` and `pre_upgrade`
//! ```

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

mod apps;
mod hello;
mod life;
mod listen;
mod target;

use std::path::{Path, PathBuf};
use std::{env, fs};

use support::client::{Load, Mode, Response, Target};
use support::manager::Manager;
use support::node::MODES;

/// How many upgrades make a series. They follow each other faster than the linger ends: so many generations drain, and none is killed for
/// that.
const UPGRADES: usize = 20;

/// How many clients with think times make a series.
const THINKING: usize = 32;

/// Upgrades to one program and back, twenty times under load; each answers in its way.
fn upgrade_to_and_fro(manager: &Manager, target: &Target, programs: &[(&str, Response); 2]) {
    let answers = programs.each_ref().map(|(_, answer)| answer.clone());
    let modes = [&MODES[..], &[Mode::Thinking; THINKING]].concat();
    let load = Load::start_on_others(std::slice::from_ref(target), &modes, &answers);
    load.wait_for_more_of(&answers[0].body, 20);
    for round in 1..=UPGRADES {
        let (program, answer) = &programs[round % 2];
        manager.upgrade_to(program);
        load.wait_for_more_of(&answer.body, 20);
    }
    let report = load.stop();
    println!("{UPGRADES} upgrades: {report}");
    // Not one was closed while its client could still use it.
    if !report.failed.is_empty() || report.closed_idle > 0 {
        manager.fail(&report.to_string());
    }
    manager.assert_ended_well();
}

/// Returns the path of something that npm has installed, by .ci/run; where it is not there, the test says so and proves
/// nothing, and in CI it fails.
fn installed(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/node-apps/node_modules").join(name);
    let found = fs::exists(&path).expect("the folder of packages");
    if !found {
        assert!(env::var_os("CI").is_none(), "{} is missing, and CI must not do without it", path.display());
        support::skipped::add(&format!("{name} is not installed; tests/node/install does it"));
    }
    found.then_some(path)
}
