//! What a target may be: where it lies, and who may write to it.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use serde_json::Value;
use support::is_root;
use support::manager::{Manager, Place, Starter};
use support::service::Service;

/// Puts a program into the test's folder.
fn program(starter: &Starter, path: &str) {
    let path = starter.path(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(&path, "#!/bin/sh\nexec sleep 600\n").expect("a program");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod");
}

fn service(target: &str) -> Service {
    Service::target(target).set("service.protocol", "'plain'").set("ready.settle", "'20ms'")
}

/// Releases, and what lies beside them.
fn releases() -> Starter {
    let starter = Starter::default();
    for path in ["releases/one", "releases/two", "releases-evil/one", "evil"] {
        program(&starter, path);
    }
    symlink("../evil", starter.path("releases/link")).expect("a link");
    symlink("one", starter.path("releases/current")).expect("a link");
    starter
}

fn refused(manager: &Manager, target: &str) -> String {
    let answer = manager.ask_target(target);
    assert_eq!(answer["outcome"], "refused", "{target}: {answer}");
    answer["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_target_lies_below_the_folder_that_it_is_bound_to() {
    let starter = releases();
    let mut manager = starter.start(service("releases/current").set("service.target_within", "'releases'"));
    manager.wait_ready();
    assert_eq!(manager.ask_target("releases/two")["outcome"], "committed");
    for target in ["evil", "releases/../evil", "releases/link", "releases-evil/one", "releases", "releases/."]
    {
        let why = refused(&manager, target);
        assert!(why.contains("which is not below `target_within`"), "{target}: {why}");
    }
    // It is the resolved one that counts, from wherever it is named.
    symlink("releases/one", manager.path("elsewhere")).expect("a link");
    assert_eq!(manager.ask_target("elsewhere")["outcome"], "committed");
    // The folder itself may be reached by a link.
    fs::rename(manager.path("releases"), manager.path("moved")).expect("a move");
    symlink("moved", manager.path("releases")).expect("a link");
    assert_eq!(manager.ask_target("releases/two")["outcome"], "committed");
    fs::remove_file(manager.path("releases")).expect("the link");
    let why = refused(&manager, "moved/two");
    assert!(why.contains("cannot resolve `target_within`"), "{why}");
    manager.stop();
}

#[test]
fn a_target_that_a_hook_is_to_make_is_bound_too() {
    let starter = releases();
    program(&starter, "hook");
    fs::write(
        starter.path("hook"),
        "#!/bin/sh\nln -sf \"$PWD/evil\" releases/new\necho \"$PWD/releases/new\"\n",
    )
    .expect("a hook");
    let service = service("releases/one").set("service.target_within", "'releases'");
    let mut manager = starter.start(service.set("upgrade.pre_upgrade", "'./hook'"));
    manager.wait_ready();
    let is_bound = |why: &str| why.contains("which is not below `target_within`");
    let hooks = || manager.log.since(0).iter().filter(|line| line.contains("running the hook")).count();
    for target in ["nowhere/new", "releases/none/../../evil2", "releases-evil/new"] {
        let why = refused(&manager, target);
        assert!(is_bound(&why), "{target}: {why}");
    }
    assert_eq!(hooks(), 0, "it is refused before a hook runs");
    let why = refused(&manager, "releases/new");
    assert!(is_bound(&why), "{why}");
    assert_eq!(hooks(), 1);
    manager.stop();
}

#[test]
fn what_head_has_recorded_is_bound_too() {
    let starter = releases();
    fs::write(starter.path("head"), format!("{}", starter.path("evil").display())).expect("a record");
    fs::write(starter.path("head.chosen"), "releases/one").expect("a record");
    let service = service("releases/one").set("service.target_within", "'releases'");
    let mut manager = starter.start(service.set("upgrade.head", "'head'"));
    manager.wait_ready();
    manager.wait_log(Place::START, ["which is not below `target_within`", "starting releases/one"]);
    manager.stop();
}

#[test]
fn a_head_that_a_stranger_has_written_chooses_nothing() {
    if !is_root("a file of another user") {
        return;
    }
    for (user, mode, why) in
        [(4711, 0o644, "it belongs to user 4711"), (0, 0o666, "anybody may write to it (mode 0666)")]
    {
        let starter = releases();
        let head = starter.path("head");
        fs::write(&head, format!("{}", starter.path("releases/two").display())).expect("a record");
        fs::write(starter.path("head.chosen"), "releases/one").expect("a record");
        chown(&head, Some(user), None).expect("chown");
        fs::set_permissions(&head, Permissions::from_mode(mode)).expect("chmod");
        let mut manager = starter.start(service("releases/one").set("upgrade.head", "'head'"));
        manager.wait_ready();
        manager.wait_log(Place::START, [why, "starting releases/one"]);
        manager.stop();
    }
}

#[test]
fn root_runs_no_target_that_others_may_write() {
    if !is_root("workers of root") {
        return;
    }
    let starter = releases();
    let mut manager = starter.start(service("releases/one"));
    manager.wait_ready();
    let path = manager.path("releases/two");
    let is_refused = |words: &str| {
        let why = refused(&manager, "releases/two");
        assert!(why.contains("workers are root, and") && why.contains(words), "{words}: {why}");
        assert!(why.contains("set `user` in [service]"), "{why}");
    };
    chown(&path, Some(4711), None).expect("chown");
    is_refused("two belongs to user 4711");
    chown(&path, Some(0), None).expect("chown");
    fs::set_permissions(&path, Permissions::from_mode(0o757)).expect("chmod");
    is_refused("two may be written to by others (mode 0757");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod");
    fs::set_permissions(manager.path("releases"), Permissions::from_mode(0o777)).expect("chmod");
    is_refused("releases may be written to by others (mode 0777");
    fs::set_permissions(manager.path("releases"), Permissions::from_mode(0o755)).expect("chmod");
    chown(manager.path("releases"), Some(4711), None).expect("chown");
    is_refused("releases belongs to user 4711");
    chown(manager.path("releases"), Some(0), None).expect("chown");
    assert_eq!(manager.ask_target("releases/two")["outcome"], "committed");
    manager.stop();
}

#[test]
fn workers_of_another_user_run_what_that_user_may_write() {
    if !is_root("workers of another user") {
        return;
    }
    let starter = releases();
    fs::set_permissions(starter.path(""), Permissions::from_mode(0o755)).expect("chmod");
    chown(starter.path("releases/two"), Some(4711), None).expect("chown");
    let mut manager =
        starter.start(service("releases/one").set("service.user", 4711).set("service.group", 4711));
    manager.wait_ready();
    assert_eq!(manager.ask_target("releases/two")["outcome"], "committed");
    manager.stop();
}

#[test]
fn a_target_that_cannot_be_executed_is_named_and_not_its_placeholder() {
    let starter = releases();
    let path = starter.path("releases/data");
    fs::write(&path, "no program").expect("a file");
    let mut manager = starter.start(service("releases/one"));
    manager.wait_ready();
    let answer = manager.ask_target("releases/data");
    let why = answer["reason"].as_str().unwrap_or_default();
    assert!(why.contains(&format!("executing {}", path.display())) && !why.contains("{target}"), "{answer}");
    assert_eq!(answer["outcome"], Value::from("rolled-back"));
    manager.stop();
}

#[test]
fn root_runs_no_target_that_the_kernel_makes_up_or_that_anybody_can_put_there() {
    if !is_root("workers of root") {
        return;
    }
    let starter = releases();
    let mut manager = starter.start(service("releases/one"));
    manager.wait_ready();
    // The words of a process are its own to choose, and its files in /proc are root's where it has changed its user.
    let why = refused(&manager, &format!("/proc/{}/cmdline", std::process::id()));
    assert!(why.contains("is no file or folder on a disk"), "{why}");
    let shared = manager.path("shared");
    fs::create_dir(&shared).expect("a folder");
    fs::copy(manager.path("evil"), shared.join("two")).expect("a program");
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).expect("chmod");
    let why = refused(&manager, "shared/two");
    assert!(why.contains("lies in a folder in which others may put another one"), "{why}");
    manager.stop();
}

#[test]
fn what_lies_in_a_target_that_is_a_folder_is_looked_at_too() {
    if !is_root("workers of root") {
        return;
    }
    let starter = releases();
    fs::create_dir(starter.path("app")).expect("a folder");
    fs::write(starter.path("app/index.js"), "").expect("a program");
    let service = service("releases/one").set("service.command", "['sleep', '600']");
    let mut manager = starter.start(service);
    manager.wait_ready();
    assert_eq!(manager.ask_target("app")["outcome"], "committed");
    chown(manager.path("app/index.js"), Some(4711), None).expect("chown");
    let why = refused(&manager, "app");
    assert!(why.contains("index.js belongs to user 4711"), "{why}");
    chown(manager.path("app/index.js"), Some(0), None).expect("chown");
    fs::write(manager.path("app/package.json"), r#"{"main":"../elsewhere/main"}"#).expect("a package");
    fs::create_dir(manager.path("elsewhere")).expect("a folder");
    fs::write(manager.path("elsewhere/main.js"), "").expect("a program");
    chown(manager.path("elsewhere/main.js"), Some(4711), None).expect("chown");
    let why = refused(&manager, "app");
    assert!(why.contains("main.js belongs to user 4711"), "{why}");
    manager.stop();
}

#[test]
fn head_is_not_written_where_a_link_of_another_user_leads() {
    if !is_root("to be another user") {
        return;
    }
    let starter = releases();
    for folder in ["theirs", "private"] {
        fs::create_dir(starter.path(folder)).expect("a folder");
    }
    fs::write(starter.path("private/head"), "untouched").expect("a file");
    chown(starter.path("theirs"), Some(4711), None).expect("chown");
    symlink(starter.path("private"), starter.path("theirs/state")).expect("a link");
    std::os::unix::fs::lchown(starter.path("theirs/state"), Some(4711), None).expect("chown");
    let service = service("releases/one").set("upgrade.head", "'theirs/state/head'");
    let mut manager = starter.start(service);
    manager.wait_ready();
    manager
        .wait_log(Place::START, ["head", "a symbolic link of user 4711 leads to a folder of another user"]);
    assert_eq!(fs::read_to_string(manager.path("private/head")).expect("a file"), "untouched");
    manager.stop();
}
