//! The target of a service: what `head` records of it, and what `pre_upgrade` makes of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::client::{Target, ask_any};
use crate::support::manager::{Manager, Place, Starter, text_of};
use crate::support::node::{service, write_program};
use crate::support::{eventually, is_installed, loopback};

const SERVES: &str = "server().listen(PORT, HOST)";

/// What answers at an address.
fn answer(target: &Target) -> String {
    ask_any(target, "/").expect("an answer").body
}

/// Asserts that a program is what answers from now on.
fn assert_serves(target: &Target, program: &str) {
    eventually(&format!("an answer of {program}"), || (answer(target) == program).then_some(()));
}

/// What `head` holds.
fn recorded(manager: &Manager) -> String {
    text_of(&manager.path("HEAD"))
}

/// What `head` is to hold of a target.
fn record(folder: &Path, target: &str) -> String {
    folder.join(target).display().to_string()
}

#[test]
fn head_is_written_when_an_upgrade_is_committed_and_not_before() {
    if !is_installed("node") {
        return;
    }
    let address = loopback();
    let service = service("one.js", address).set("upgrade.head", "'HEAD'").set("ready.timeout", "'10s'");
    let starter = Starter::default().programs(SERVES).program("broken.js", "process.exit(5)");
    let manager = starter.start_ready(&service);
    let (folder, target) = (manager.path(""), Target::Tcp(address));
    manager.wait_until("a record of the first", || {
        (recorded(&manager) == record(&folder, "one.js")).then_some(())
    });
    // Whoever has the answer finds the record.
    for program in ["two", "one", "two"] {
        manager.upgrade_to(&format!("{program}.js"));
        assert_eq!(recorded(&manager), record(&folder, &format!("{program}.js")));
        assert_serves(&target, program);
    }
    let rolled_back = manager.ask_target("broken.js");
    assert_eq!(rolled_back["outcome"], "rolled-back", "{rolled_back}");
    assert_eq!(recorded(&manager), record(&folder, "two.js"));
    let refused = manager.ask_target("no-such-file.js");
    assert_eq!(refused["outcome"], "refused", "{refused}");
    assert_eq!(recorded(&manager), record(&folder, "two.js"));
    // SIGHUP is an upgrade to the same target.
    let place = manager.place();
    manager.signal(Signal::SIGHUP);
    manager.wait_log(place, ["generation 7 committed"]);
    assert_serves(&target, "two");
    assert_eq!(recorded(&manager), record(&folder, "two.js"));
    manager.cli(["upgrade", "--target", "one.js"]).assert(0, []);
    assert_serves(&target, "one");
    assert_eq!(recorded(&manager), record(&folder, "one.js"));
    manager.cli(["rollback"]).assert(0, []);
    assert_serves(&target, "two");
    assert_eq!(recorded(&manager), record(&folder, "two.js"));
    manager.stop();
}

#[test]
fn a_service_starts_with_what_head_has_recorded() {
    if !is_installed("node") {
        return;
    }
    let address = loopback();
    let starter = Starter::default().programs(SERVES);
    let head = record(&starter.path(""), "two.js");
    let manager = starter
        .file("HEAD", &head)
        .file("HEAD.chosen", "one.js")
        .start_ready(&service("one.js", address).set("upgrade.head", "'HEAD'"));
    assert_serves(&Target::Tcp(address), "two");
    assert_eq!(recorded(&manager), head);
    manager.stop();
}

#[test]
fn a_head_that_is_no_use_is_told_and_passed_over() {
    if !is_installed("node") {
        return;
    }
    for (head, why) in [
        ("rubbish\0\n".to_owned(), "it does not hold the path of a release"),
        ("two.js\n".to_owned(), "it does not hold the path of a release"),
        (String::new(), "it does not hold the path of a release"),
        ("/no-such-folder/two.js\n".to_owned(), "No such file or directory"),
    ] {
        let address = loopback();
        let service = service("one.js", address).set("upgrade.head", "'HEAD'").workers(1);
        let starter = Starter::default().programs(SERVES).file("HEAD.chosen", "one.js");
        let manager = starter.file("HEAD", &head).start_ready(&service);
        manager.wait_log(Place::START, ["WARN", "HEAD", why, "starting one.js"]);
        assert_serves(&Target::Tcp(address), "one");
        manager.wait_until("a record of what serves", || {
            (recorded(&manager) == record(&manager.path(""), "one.js")).then_some(())
        });
        manager.stop();
    }
}

/// A service whose hook each test replaces.
struct Hooked {
    manager: Manager,
    target: Target,
}

impl Hooked {
    fn start() -> Self {
        let address = loopback();
        let manager = Starter::default().programs(SERVES).start_ready(&service("one.js", address));
        Self { manager, target: Target::Tcp(address) }
    }

    /// Upgrades to a target with this hook, which has the time that it needs.
    fn upgrade(&self, hook: &str, text: &str, target: &str) -> Value {
        self.upgrade_within("1h", hook, text, target)
    }

    fn upgrade_within(&self, timeout: &str, hook: &str, text: &str, target: &str) -> Value {
        let path = self.manager.path(hook);
        fs::write(&path, text).expect("a hook");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        let Target::Tcp(address) = self.target else { panic!("a TCP address") };
        self.manager.rewrite(
            service("one.js", address)
                .set("upgrade.pre_upgrade", format!("'{hook}'"))
                .set("upgrade.hook_timeout", format!("'{timeout}'")),
        );
        self.manager.ask_target(target)
    }

    /// Upgrades to `two.js` with a hook that names, makes or leaves what serves then.
    fn assert_leads(&self, hook: &str, text: &str, program: &str) {
        let answer = self.upgrade(hook, text, "two.js");
        assert_eq!(answer["value"], "OK", "{text}: {answer}");
        assert_serves(&self.target, program);
        self.manager.upgrade_to_first();
    }

    /// Upgrades with a hook that refuses, by these very words.
    fn assert_refuses(&self, hook: &str, text: &str, words: &str) {
        let answer = self.upgrade(hook, text, "two.js");
        assert_eq!(answer["value"], words, "{text}: {answer}");
        assert_eq!((&answer["ok"], &answer["outcome"]), (&false.into(), &"refused".into()), "{answer}");
        assert_serves(&self.target, "one");
    }
}

impl Manager {
    /// Goes back to `one.js`, past all hooks.
    fn upgrade_to_first(&self) {
        self.cli(["rollback"]).assert(0, []);
    }
}

#[test]
fn a_module_refuses_by_its_error() {
    if !is_installed("node") {
        return;
    }
    let hooked = Hooked::start();
    let refuses = |text: &str, words: &str| hooked.assert_refuses("pre.js", text, words);
    refuses("module.exports = (data, callback) => callback(new Error('not on a Friday'))", "not on a Friday");
    refuses("module.exports = (data, callback) => callback('not \"yet\", ü')", "not \"yet\", ü");
    refuses("module.exports = (data, callback) => setTimeout(callback, 100, new Error('late'))", "late");
    refuses("module.exports = () => { throw new Error('thrown') }", "thrown");
    refuses("module.exports = async () => { throw new Error('rejected') }", "rejected");
    refuses(
        "module.exports = () => setTimeout(() => { throw new Error('thrown late') }, 100)",
        "thrown late",
    );
    refuses("throw new Error('at once')", "at once");
    let silent = "the hook `pre_upgrade` ended without a call of its callback";
    refuses("module.exports = () => {}", silent);
    refuses("module.exports = () => { console.log(JSON.stringify({ value: '/etc/passwd' })) }", silent);
    refuses("module.exports = () => process.exit(4)", "the hook `pre_upgrade` exited with status 4");
    let missing = hooked.upgrade("pre.js", "require('./no-such-module')", "two.js");
    assert!(missing["value"].to_string().contains("Cannot find module './no-such-module'"), "{missing}");
    let endless = "module.exports = () => setInterval(() => {}, 1000)";
    let late = hooked.upgrade_within("1s", "pre.js", endless, "two.js");
    assert_eq!(late["value"], "a hook before the upgrade was not done in time");
    assert_serves(&hooked.target, "one");
    hooked.manager.stop();
}

#[test]
fn a_module_may_name_another_target() {
    if !is_installed("node") {
        return;
    }
    let hooked = Hooked::start();
    let folder = hooked.manager.path("");
    write_program(&folder, "three.js", SERVES);
    let leads = |text: &str, program: &str| hooked.assert_leads("pre.js", text, program);
    leads("module.exports = (data, callback) => callback()", "two");
    leads("module.exports = (data, callback) => callback(null, data.value)", "two");
    leads("module.exports = (data, callback) => callback(null, __dirname + '/three.js')", "three");
    let checks = format!(
        "module.exports = (data, callback) => {{
  if (data.cmd !== 'upgrade' || data.value !== '{0}/two.js' || String(data) !== data.value) callback('what is this?')
  callback(null, '{0}/three.js')
  callback('too late')
}}",
        folder.display().to_string().trim_end_matches('/')
    );
    leads(&checks, "three");
    leads(
        "const fs = require('fs')
module.exports = (data, callback) => {
  fs.copyFileSync(__dirname + '/three.js', __dirname + '/made.js')
  callback(null, __dirname + '/made.js')
}",
        "made",
    );
    hooked.assert_leads(
        "pre.mjs",
        "import { dirname } from 'path'
export default (data, callback) => callback(null, dirname(data.value) + '/three.js')",
        "three",
    );
    hooked.assert_refuses(
        "pre.mjs",
        "export default (data, callback) => callback('no, by a module')",
        "no, by a module",
    );
    let nowhere = hooked.upgrade(
        "pre.js",
        "module.exports = (data, callback) => callback(null, '/nowhere.js')",
        "two.js",
    );
    assert_eq!(nowhere["outcome"], "refused", "{nowhere}");
    assert!(nowhere["value"].to_string().contains("/nowhere.js"), "{nowhere}");
    hooked.manager.stop();
}

#[test]
fn a_target_may_come_into_being_in_the_hook() {
    if !is_installed("node") {
        return;
    }
    let hooked = Hooked::start();
    let text = "const fs = require('fs')
module.exports = (data, callback) => { fs.copyFileSync(__dirname + '/two.js', data.value); callback() }";
    let answer = hooked.upgrade("pre.js", text, "later.js");
    assert_eq!(answer["value"], "OK", "{answer}");
    assert_serves(&hooked.target, "later");
    let answer = hooked.upgrade("pre.js", "module.exports = (data, callback) => callback()", "never.js");
    assert_eq!(answer["outcome"], "refused", "{answer}");
    assert_serves(&hooked.target, "later");
    hooked.manager.stop();
}

#[test]
fn a_script_names_a_target_by_its_last_line() {
    if !is_installed("node") {
        return;
    }
    let hooked = Hooked::start();
    write_program(&hooked.manager.path(""), "three.js", SERVES);
    let leads =
        |text: &str, program: &str| hooked.assert_leads("pre.sh", &format!("#!/bin/sh\n{text}\n"), program);
    leads("true", "two");
    leads("echo \"looking at $1\"; echo \"${1%/*}/three.js\"; echo", "three");
    leads("printf '%s' \"${1%/*}/three.js\"", "three");
    leads("echo 'this is no path' >&2", "two");
    hooked.manager.wait_log(Place::START, ["this is no path"]);
    hooked.assert_refuses(
        "pre.sh",
        "#!/bin/sh\necho \"$1\"; exit 4\n",
        "the hook `pre_upgrade` exited with status 4",
    );
    let rubbish = hooked.upgrade("pre.sh", "#!/bin/sh\necho done\n", "two.js");
    assert_eq!(rubbish["outcome"], "refused", "{rubbish}");
    hooked.manager.stop();
}
