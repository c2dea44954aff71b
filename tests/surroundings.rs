//! The manager in its surroundings: under a watchdog, with a log that is JSON or that nobody reads.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::time::Duration;

use nix::sys::signal::Signal;
use support::client::{Target, ask};
use support::loopback;
use support::manager::{Place, Starter};
use support::service::Service;

#[test]
fn the_watchdog_of_the_service_manager_is_fed() {
    let starter = Starter::default().variable("WATCHDOG_USEC", Duration::from_millis(100).as_micros());
    let mut manager = starter.start(Service::worker().release(1));
    manager.wait_ready();
    for _ in 0..3 {
        let place = manager.place();
        manager.wait_said(place, "WATCHDOG=1", |message| message.is("WATCHDOG"));
    }
    manager.stop();
}

#[test]
fn a_drain_that_may_take_long_asks_for_time() {
    let service = Service::worker().release(1).args(["--ignore-term"]).set("drain.timeout", "'500s'");
    let mut manager = Starter::default().start(service);
    manager.wait_ready();
    let place = manager.place();
    manager.signal(Signal::SIGTERM);
    let message =
        manager.wait_said(place, "more time", |message| message.get("EXTEND_TIMEOUT_USEC").is_some());
    let micros: u64 = message.get("EXTEND_TIMEOUT_USEC").unwrap().parse().unwrap();
    assert!(micros > 490_000_000, "{micros}");
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
}

#[test]
fn the_log_can_be_json() {
    let mut manager = Starter::default().flag("--log-format=json").start(Service::worker().release(1));
    manager.wait_ready();
    let line = manager.wait_log(Place::START, ["generation 1 serving"]);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["message"], "generation 1 serving");
    assert_eq!(value["level"], "INFO");
    let line = manager.wait_log(Place::START, ["started"]);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&value["worker"], &value["generation"], &value["slot"]), (&1.into(), &1.into(), &0.into()));
    let line = manager.wait_log(Place::START, ["worker 1", "ready"]);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&value["event"], &value["slot"]), (&"worker-ready".into(), &0.into()));
    assert!(value["pid"].is_number() && value.get("reason").is_none(), "{line}");
    manager.rewrite(Service::worker().release(2).args(["--exit", "3"]));
    manager.signal(Signal::SIGHUP);
    let line = manager.wait_log(Place::START, ["rolled-back"]);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&value["generation"], &value["outcome"]), (&2.into(), &"rolled-back".into()));
    assert_eq!(value["reason"], "worker 2 (slot 0) exited with status 3 before it was ready");
    manager.stop();
}

#[test]
fn nobody_has_to_read_the_log() {
    let address = loopback();
    let worker = support::worker_program();
    // More than any pipe holds, from the workers themselves.
    let script = format!(
        "head -c 1000000 /dev/zero | tr '\\0' x | fold -w 2000 >&2; exec {} --linger 10000",
        worker.display()
    );
    let service =
        || Service::command(["sh", "-c", &script]).listen(address).set("service.output", "'prefix'");
    let mut manager = Starter::default().log_unread().start(service().workers(2));
    manager.wait_ready();
    for _ in 0..3 {
        let place = manager.place();
        manager.signal(Signal::SIGHUP);
        manager.wait_said(place, "RELOADING=1", |message| message.is("RELOADING"));
        manager.wait_said(place, "READY=1", |message| message.is("READY"));
        ask(&Target::Tcp(address)).unwrap();
    }
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
}

#[test]
fn output_without_end_holds_nobody_up() {
    // What leaves its worker's group goes on writing to the worker's pipe after the worker has gone.
    let service = Service::command(["sh", "-c", "setsid yes & sleep 0.2; exit 7"]).no_sockets();
    let service = service
        .set("service.output", "'prefix'")
        .set("service.protocol", "'plain'")
        .set("ready.settle", "'50ms'");
    let mut manager = Starter::default().start(service.workers(1));
    manager.wait_log(Place::START, ["exited with status 7"]);
    manager.wait_log(Place::START, ["worker 2", "exited with status 7"]);
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
}
