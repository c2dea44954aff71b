//! The classic program, and the same with another answer.

use crate::support::client::{Response, Target};
use crate::support::manager::Starter;
use crate::support::node::service;
use crate::support::{is_installed, loopback};
use crate::{UPGRADES, installed, upgrade_to_and_fro};

/// The program that everybody's first was, but for the address.
fn classic(status: u16, text: &str) -> String {
    format!(
        "var http = require('http');

http.createServer(function (req, res) {{
  res.writeHead({status}, {{'Content-Type': 'text/plain'}});
  res.end('{text}\\n');
}}).listen(process.env.PORT, process.env.HOST);

console.log('Server running at http://' + process.env.HOST + ':' + process.env.PORT + '/');
"
    )
}

/// Upgrades the classic program to its like and back under load, by a Node of our choice.
fn upgrade_by(node: &str) {
    let starter = Starter::default()
        .file("index1.js", &classic(200, "Hello World"))
        .file("index2.js", &classic(404, "Not Found"));
    let address = loopback();
    let service = service("index1.js", address).by([node, "{target}"]);
    let service = service.set("drain.max_generations", 2 * UPGRADES);
    let manager = starter.start_ready(&service);
    let programs = [
        ("index1.js", Response::new(200, "Hello World\n")),
        ("index2.js", Response::new(404, "Not Found\n")),
    ];
    upgrade_to_and_fro(&manager, &Target::Tcp(address), &programs);
    manager.stop();
}

#[test]
fn twenty_upgrades_of_the_classic_program_lose_no_request() {
    if is_installed("node") {
        upgrade_by("node");
    }
}

#[test]
fn node_18_loses_no_request() {
    if let Some(package) = installed("node-18") {
        upgrade_by(&package.join("bin/node").display().to_string());
    }
}

#[test]
fn node_22_loses_no_request() {
    if let Some(package) = installed("node-22") {
        upgrade_by(&package.join("bin/node").display().to_string());
    }
}

#[test]
fn node_24_loses_no_request() {
    if let Some(package) = installed("node-24") {
        upgrade_by(&package.join("bin/node").display().to_string());
    }
}
