//! How commands find the service that is meant: by name, by file, by user; and what they say where they do not.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use support::control::Ended;
use support::manager::{Manager, Starter};
use support::service::Service;
use support::{is_installed, is_root, loopback};

fn service() -> Service {
    Service::worker().listen(loopback())
}

fn run(command: &mut Command) -> Ended {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ended::of(command.spawn().expect("the program"))
}

/// The program, where managers are looked for in a world of the test's own.
fn liveswap(world: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
    command.env_remove("RUNTIME_DIRECTORY").env_remove("XDG_RUNTIME_DIR").env("TMPDIR", world).args(words);
    command
}

#[test]
fn a_service_file_stands_for_its_service() {
    let manager = Manager::start(service().set("service.name", "'shop'"));
    for words in [["upgrade", "web.toml"], ["reload", "./web.toml"], ["restart", "shop"]] {
        let ended = run(manager.command(words).current_dir(manager.path("")));
        ended.assert(0, []);
    }
    // One that cannot be read at present has its name from its own.
    manager.rewrite("[service");
    let ended = run(manager.command(["status", "./web.toml"]).current_dir(manager.path("")));
    ended.assert(4, ["no manager runs service `web`", "start it with `liveswap run`"]);
    manager.stop();
}

#[test]
fn a_name_that_is_nearly_right_is_corrected() {
    let manager = Manager::start(service());
    manager.cli(["upgrade", "wbe"]).assert(4, ["no manager runs service `wbe`", "did you mean `web`?"]);
    manager.cli(["upgrade", "else"]).assert(4, ["start it with `liveswap run`"]);
    manager.stop();
}

#[test]
fn commands_of_other_tools_lead_to_ours() {
    let manager = Manager::start(service());
    for (command, ours) in
        [("start", "liveswap run FILE"), ("list", "liveswap status"), ("logs", "journalctl")]
    {
        manager.cli([command]).assert(2, ["unrecognized subcommand", "tip: ", ours]);
    }
    manager.stop();
}

#[test]
fn wrong_words_of_a_service_without_a_file_are_wrong_usage() {
    let folder = tempfile::tempdir().expect("a folder");
    for words in [["run", "-n", "x", "--", "true"], ["run", "-l", "nowhere", "--", "true"]] {
        run(liveswap(folder.path(), &words).current_dir(folder.path())).assert(2, ["must be"]);
    }
}

#[test]
fn a_runtime_directory_in_use_is_said_to_be_that_of_the_other_service() {
    let manager = Manager::start(service().set("service.name", "'shop'"));
    let file = manager.path("blog.toml");
    fs::write(&file, service().set("service.name", "'blog'").to_string()).expect("a service file");
    let ended = run(manager.command(["run", "blog.toml"]).current_dir(manager.path("")));
    let pid = format!("(pid {})", manager.pid());
    ended.assert(
        1,
        ["is the runtime directory of service `shop`", &pid, "service `blog` needs one of its own"],
    );
    ended.assert(1, ["Hint: unset RUNTIME_DIRECTORY"]);
    manager.stop();
}

#[test]
fn the_status_shows_each_socket_once_with_what_it_carries() {
    let (tcp, udp) = (loopback(), loopback());
    let named = format!("listen = '{udp}'\ntype = 'datagram'\nname = 'dns'");
    let manager = Manager::start(Service::worker().listen(tcp).socket(&named));
    let status = manager.cli(["status"]);
    status.assert(0, []);
    for line in [format!("  socket: tcp {tcp}\n"), format!("  socket dns: udp {udp}\n")] {
        assert!(status.stdout.contains(&line), "{status:?}");
    }
    manager.stop();
}

#[test]
fn a_service_of_single_connections_is_not_said_to_have_no_workers() {
    let socket = format!("listen = '{}'\naccept = true", loopback());
    let service =
        Service::command(["cat"]).unset("upgrade.min_ready").unset("upgrade.strategy").socket(&socket);
    let manager = Manager::start(service);
    for command in [["check", "web.toml"], ["status", "web"]] {
        let ended = run(manager.command(command).current_dir(manager.path("")));
        ended.assert(0, []);
        assert!(ended.stdout.contains("a process for each connection"), "{ended:?}");
        assert!(!ended.stdout.contains("0 of 0") && !ended.stdout.contains("0 workers"), "{ended:?}");
    }
    manager.stop();
}

/// A manager of another user, in a world of its own that root sees.
fn of_another(world: &Path, starter: Starter) -> Manager {
    let starter = starter.of_a_user().variable("TMPDIR", world.display());
    let starter = starter.variable("RUNTIME_DIRECTORY", "").variable("XDG_RUNTIME_DIR", "");
    let program = starter.worker_program();
    let mut manager = starter.start(service().program(program.display()));
    manager.wait_ready();
    manager
}

#[test]
fn root_finds_the_services_of_other_users_and_changes_them_by_their_full_name_alone() {
    if !is_root("to be another user") {
        return;
    }
    let starter = Starter::default();
    let world = starter.path("world");
    fs::create_dir(&world).expect("a folder");
    fs::set_permissions(&world, Permissions::from_mode(0o1777)).expect("as /tmp is");
    let manager = of_another(&world, starter);
    let user = fs::read_dir(&world).expect("the folder").next().expect("its folder").expect("an entry");
    let user = user.file_name().into_string().expect("text").replace("liveswap-", "");
    let name = format!("{user}/web");

    let all = run(&mut liveswap(&world, &["status"]));
    // What another user runs answers for nothing of root's.
    all.assert(4, []);
    assert!(all.stdout.starts_with(&format!("{name}: serving")), "{all:?}");
    run(&mut liveswap(&world, &["status", "web"])).assert(4, [&format!("another user runs it: `{name}`")]);
    run(&mut liveswap(&world, &["status", &name])).assert(0, []);
    let refused = run(&mut liveswap(&world, &["upgrade", "web"]));
    refused.assert(4, [&format!("another user runs it: `{name}`")]);
    run(&mut liveswap(&world, &["upgrade"])).assert(4, []);
    run(&mut liveswap(&world, &["upgrade", &name])).assert(0, []);
    run(&mut liveswap(&world, &["status", "4711/web"])).assert(4, []);
    // No user can make a health check of root's fail.
    run(&mut liveswap(&world, &["status", "--check"])).assert(4, []);
    manager.stop();
}

#[test]
fn a_shell_completes_the_names_of_services_and_no_commands_of_our_own_use() {
    let manager = Manager::start(service());
    for shell in ["bash", "zsh", "fish"] {
        let script = manager.cli(["completions", shell]);
        script.assert(0, []);
        assert!(script.stdout.contains("completions --services"), "{shell}");
        for hidden in ["demo-worker", "try-handover"] {
            assert!(!script.stdout.contains(hidden), "{shell}: {hidden}");
        }
    }
    let services = manager.cli(["completions", "--services"]);
    services.assert(0, []);
    assert_eq!(services.stdout, "web\n");
    if is_installed("bash") {
        let text = "PATH=\"$PROGRAMS:$PATH\"; source <(liveswap completions bash)
            COMP_WORDS=(liveswap upgrade w) COMP_CWORD=2
            _liveswap_with_services liveswap w upgrade; echo \"${COMPREPLY[@]}\"";
        let programs = Path::new(env!("CARGO_BIN_EXE_liveswap")).parent().expect("a folder");
        let mut bash = Command::new("bash");
        bash.args(["-c", text]).env("PROGRAMS", programs).env("RUNTIME_DIRECTORY", manager.path("run"));
        let completed = run(&mut bash);
        assert_eq!(completed.stdout.trim(), "web", "{completed:?}");
    }
    manager.stop();
}
