//! The runtime directory: nobody else may be able to change what lies in it, or on the way to it.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use nix::sys::signal::Signal;
use support::client::{Target, ask_any};
use support::control::Ended;
use support::manager::{Manager, Place, Starter};
use support::service::Service;
use support::{eventually, is_installed, is_root, loopback, node};

/// A user that nobody is.
const STRANGER: u32 = 4711;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("a path").permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

/// Asserts that a manager does not start with this runtime directory, and says these words.
fn assert_refused<const N: usize>(starter: Starter, folder: &Path, words: [&str; N]) -> Manager {
    let mut manager = starter.variable("RUNTIME_DIRECTORY", folder.display()).start(Service::worker());
    assert_eq!(manager.wait_exit().code(), Some(1));
    manager.wait_log(Place::START, words);
    manager.wait_log(
        Place::START,
        ["Hint: set XDG_RUNTIME_DIR or RUNTIME_DIRECTORY to a folder of this user's own"],
    );
    manager
}

#[test]
fn a_folder_below_a_strangers_is_refused_and_the_stranger_named() {
    if !is_root("a folder of another user") {
        return;
    }
    let starter = Starter::default();
    let (above, own) = (starter.path("above"), starter.path("above/own"));
    fs::create_dir_all(&own).expect("folders");
    chown(&above, Some(STRANGER), None).expect("chown");
    let named = format!("{} belongs to user {STRANGER}", above.display());
    let manager = assert_refused(starter, &own, ["cannot use", "as the runtime directory", &named]);
    assert_eq!(fs::read_dir(&own).expect("the folder").count(), 0, "nothing is made in it");
    drop(manager);
}

#[test]
fn a_strangers_folder_is_refused() {
    if !is_root("a folder of another user") {
        return;
    }
    let starter = Starter::default();
    let folder = starter.path("folder");
    fs::create_dir(&folder).expect("a folder");
    chown(&folder, Some(STRANGER), None).expect("chown");
    let named = format!("{} belongs to user {STRANGER}", folder.display());
    drop(assert_refused(starter, &folder, [&named]));
}

#[test]
fn a_folder_below_one_that_anybody_may_write_to_is_refused() {
    let starter = Starter::default();
    let (above, own) = (starter.path("above"), starter.path("above/own"));
    fs::create_dir_all(&own).expect("folders");
    set_mode(&above, 0o777);
    let named = format!("{} may be written to by others (mode 0777", above.display());
    drop(assert_refused(starter, &own, [&named]));
}

#[test]
fn what_is_no_folder_is_refused() {
    let starter = Starter::default();
    let file = starter.path("file");
    fs::write(&file, "").expect("a file");
    drop(assert_refused(starter, &file, ["is no folder"]));
}

/// A user's own folder in /tmp that another user has made before.
#[test]
fn the_usual_folder_of_a_user_is_refused_where_a_stranger_has_made_it() {
    if !is_root("being another user") {
        return;
    }
    let starter = Starter::default();
    let world = starter.path("world");
    fs::create_dir(&world).expect("a folder");
    set_mode(&world, 0o1777);
    let shared = |user: u32| world.join(format!("liveswap-{user}"));
    let as_user = starter.of_a_user().variable("TMPDIR", world.display()).variable("RUNTIME_DIRECTORY", "");
    let as_user = as_user.variable("XDG_RUNTIME_DIR", "");
    let user = as_user.user().expect("a user");
    fs::create_dir_all(shared(user).join("web")).expect("a folder of root's");
    chown(shared(user), Some(STRANGER), None).expect("chown");
    set_mode(&shared(user), 0o777);
    let program = as_user.worker_program();
    let mut manager = as_user.start(Service::worker().program(program.display()));
    // The test's folder was given to the user with all that was in it.
    assert_eq!(manager.wait_exit().code(), Some(1));
    manager.wait_log(Place::START, [&format!("{} belongs to user {STRANGER}", shared(user).display())]);
}

#[test]
fn a_wrong_mode_of_ours_is_repaired_whatever_the_mask() {
    let starter = Starter::default().by(&["sh", "-c", "umask 0077 && exec \"$@\"", "sh"]);
    let folder = starter.path("given");
    fs::create_dir(&folder).expect("a folder");
    set_mode(&folder, 0o777);
    let mut manager = starter.variable("RUNTIME_DIRECTORY", folder.display()).start(Service::worker());
    manager.wait_ready();
    assert_eq!((mode(&folder), mode(&folder.join("notify"))), (0o755, 0o711));
    assert_eq!((mode(&folder.join("state")), mode(&folder.join("token"))), (0o600, 0o600));
}

#[test]
fn a_link_of_ours_to_a_folder_of_ours_is_followed() {
    let starter = Starter::default();
    fs::create_dir(starter.path("private")).expect("a folder");
    symlink("private", starter.path("link")).expect("a link");
    let link = starter.path("link");
    let mut manager = starter.variable("RUNTIME_DIRECTORY", link.display()).start(Service::worker());
    manager.wait_ready();
    assert!(manager.path("private/control.sock").exists());
}

#[test]
fn no_link_in_it_is_followed_by_what_the_manager_writes() {
    let starter = Starter::default();
    let (folder, other) = (starter.path("given"), starter.path("other"));
    fs::create_dir(&folder).expect("a folder");
    fs::write(&other, "kept").expect("a file");
    for name in ["state", "state.new", "token", "token.new"] {
        symlink(&other, folder.join(name)).expect("a link");
    }
    let mut manager = starter.variable("RUNTIME_DIRECTORY", folder.display()).start(Service::worker());
    manager.wait_ready();
    assert_eq!(fs::read_to_string(&other).expect("the file"), "kept");
    assert!(fs::symlink_metadata(folder.join("state")).expect("the state").is_file());
}

#[test]
fn a_lock_that_is_a_link_is_no_lock() {
    let starter = Starter::default();
    let (folder, other) = (starter.path("given"), starter.path("other"));
    fs::create_dir(&folder).expect("a folder");
    fs::write(&other, "kept").expect("a file");
    symlink(&other, folder.join("lock")).expect("a link");
    let mut manager = starter.variable("RUNTIME_DIRECTORY", folder.display()).start(Service::worker());
    assert_eq!(manager.wait_exit().code(), Some(1));
    assert_eq!(fs::read_to_string(&other).expect("the file"), "kept");
}

/// The module that Node programs load first was compared by its length alone.
#[test]
fn a_module_of_the_right_length_with_other_code_is_replaced() {
    if !is_installed("node") {
        return;
    }
    let starter = Starter::default().programs("server().listen(PORT, HOST)");
    let folder = starter.path("given");
    fs::create_dir(&folder).expect("a folder");
    let module = include_str!("../src/daemon/node/first.js");
    let code = format!("require('fs').writeFileSync({:?}, '')//", starter.path("ran"));
    let planted = format!("{code}{}", " ".repeat(module.len() - code.len()));
    fs::write(folder.join("first.js"), planted).expect("the module");
    let address = loopback();
    let starter = starter.variable("RUNTIME_DIRECTORY", folder.display());
    let manager = starter.start_ready(&node::service("one.js", address));
    eventually("an answer", || ask_any(&Target::Tcp(address), "/").ok());
    assert!(!manager.path("ran").exists(), "the planted code did not run");
    assert_eq!(fs::read_to_string(folder.join("first.js")).expect("the module"), module);
}

/// Without RUNTIME_DIRECTORY, as a user who has no login: its folder is in the world's.
#[test]
fn root_speaks_to_a_users_manager_by_its_port_alone_and_no_stranger_draws_that_to_a_service_of_his() {
    if !is_root("being another user") {
        return;
    }
    let starter = Starter::default();
    let world = starter.path("world");
    fs::create_dir(&world).expect("a folder");
    fs::write(starter.path("one"), "#!/bin/sh\nexec sleep 600\n").expect("a program");
    set_mode(&starter.path("one"), 0o755);
    let host = loopback().ip().to_string();
    let starter = starter.of_a_user().original(&["-s", "./one", "-f", "1", "-a", &host]);
    let user = starter.user().expect("a user");
    let starter =
        ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].iter().fold(starter, |one, name| one.variable(name, ""));
    let mut manager = starter.variable("TMPDIR", world.display()).start("this file is not read");
    manager.wait_ready();
    // As /tmp is.
    chown(&world, Some(0), Some(0)).expect("chown");
    set_mode(&world, 0o1777);
    chown(manager.path(""), Some(0), Some(0)).expect("chown");
    set_mode(&manager.path(""), 0o755);
    let flag = |words: [&str; 3]| {
        let mut command = manager.command(words);
        command.env_remove("RUNTIME_DIRECTORY").env_remove("XDG_RUNTIME_DIR").env("TMPDIR", &world);
        String::from_utf8(command.output().expect("the program").stdout).expect("text")
    };
    assert_eq!(flag(["-k", "-a", &host]), "{ cmd: 'kill', value: 'OK' }\n");
    // In a folder that the user has not made itself it would be anybody's.
    let folder = world.join(format!("liveswap-{user}"));
    chown(&folder, Some(STRANGER), None).expect("chown");
    assert!(flag(["-k", "-a", &host]).contains("the first line must have the `token`"));
    chown(&folder, Some(user), None).expect("chown");
    assert_eq!(flag(["-d", "-a", &host]), "{ cmd: 'die', value: 'OK' }\n");
    assert!(manager.wait_exit().success());
}

/// Whoever can make a folder for a service in the world's could answer in its name.
#[test]
fn a_client_does_not_believe_a_strangers_socket_in_another_users_folder() {
    if !is_root("being another user") {
        return;
    }
    let manager = Manager::start(Service::worker());
    // The socket is root's, in a folder of another user: root answers, and is believed.
    chown(manager.path("run"), Some(STRANGER), None).expect("chown");
    manager.cli(["status"]).assert(0, []);
    chown(manager.path("run"), Some(0), None).expect("chown");
    // A stranger listens in root's folder. The one who listens is the one who is asked for, whoever has made the file.
    let fake = manager.path("fake");
    fs::create_dir(&fake).expect("a folder");
    let script = "import os, socket, sys\ns = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1])\n\
                  os.setgid(4711); os.setuid(4711); s.listen()\nprint(flush=True); s.accept()[0].recv(1)";
    let mut stranger = std::process::Command::new("python3");
    stranger.args(["-c", script]).arg(fake.join("control.sock")).stdout(std::process::Stdio::piped());
    let mut stranger = stranger.spawn().expect("python3");
    let mut line = String::new();
    let output = stranger.stdout.as_mut().expect("its output");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).expect("a line");
    let mut client = manager.command(["status"]);
    client
        .env("RUNTIME_DIRECTORY", &fake)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let ended = Ended::of(client.spawn().expect("the program"));
    stranger.kill().expect("SIGKILL");
    stranger.wait().expect("its end");
    ended.assert(1, ["user 4711 listens at", "in another user's folder"]);
    manager.stop();
}

/// A folder that was given may be anybody's to write to, and so may what a name in it leads to.
#[test]
fn a_client_follows_no_link_to_a_manager_and_none_in_a_folder_that_others_may_write_to() {
    let manager = Manager::start(Service::worker());
    let (folder, link) = (manager.path("folder"), manager.path("folder/control.sock"));
    fs::create_dir(&folder).expect("a folder");
    symlink(manager.control_path(), &link).expect("a link");
    let status = || {
        let mut client = manager.command(["status"]);
        client.env("RUNTIME_DIRECTORY", &folder).stdout(std::process::Stdio::piped());
        Ended::of(client.stderr(std::process::Stdio::piped()).spawn().expect("the program"))
    };
    status().assert(1, [&format!("{} is a symbolic link", link.display())]);
    fs::remove_file(&link).expect("the link");
    let listener = std::os::unix::net::UnixListener::bind(&link).expect("a socket");
    set_mode(&folder, 0o777);
    status().assert(1, [&format!("{} may be written to by others (mode 0777", folder.display())]);
    if is_root("a link of another user") {
        fs::remove_file(&link).expect("the socket");
        symlink(manager.control_path(), &link).expect("a link");
        chown(&folder, Some(STRANGER), None).expect("chown");
        set_mode(&folder, 0o755);
        status().assert(1, [&format!("{} is a symbolic link", link.display())]);
    }
    drop(listener);
    manager.stop();
}

#[test]
fn the_folder_of_a_service_that_has_ended_is_removed() {
    if !is_root("a manager of another user, which has no RUNTIME_DIRECTORY") {
        return;
    }
    let starter = Starter::default().of_a_user();
    let base = starter.path("base");
    fs::create_dir(&base).expect("a folder");
    let folder = base.join("liveswap/web");
    let address = loopback();
    let service = Service::worker().program(starter.worker_program().display()).listen(address);
    let starter = starter.variable("RUNTIME_DIRECTORY", "").variable("XDG_RUNTIME_DIR", base.display());
    let mut manager = starter.start(&service);
    manager.wait_ready();
    assert!(folder.join("control.sock").exists());
    manager.restart_after_crash();
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
    assert!(!folder.exists(), "the folder is left behind");

    let place = manager.place();
    manager.restart();
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
    assert!(!folder.exists(), "the folder is left behind by the second manager");

    let _taken = std::net::TcpListener::bind(address).expect("the address");
    manager.restart();
    assert_eq!(manager.wait_exit().code(), Some(1));
    assert!(!folder.exists(), "the folder is left behind by a manager that could not start");
}
