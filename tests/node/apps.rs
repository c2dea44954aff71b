//! Applications of npm, unmodified.

use std::os::unix::fs::symlink;

use crate::support::client::{Response, Target};
use crate::support::manager::Starter;
use crate::support::node::service;
use crate::support::{is_installed, loopback};
use crate::{installed, upgrade_to_and_fro};

const EXPRESS: &str = "
const express = require('express')
const app = express()
app.get('/', (request, response) => response.send('express, RELEASE'))
app.listen(process.env.PORT, process.env.HOST)
";

const FASTIFY: &str = "
const fastify = require('fastify')()
fastify.get('/', async () => 'fastify, RELEASE')
fastify.listen({ host: process.env.HOST, port: process.env.PORT })
";

/// Upgrades an application to another release and back under load.
fn upgrade(package: &str, text: &str) {
    let Some(path) = installed(package).filter(|_| is_installed("node")) else { return };
    let starter = Starter::default()
        .file("one.js", &text.replace("RELEASE", "one"))
        .file("two.js", &text.replace("RELEASE", "two"));
    symlink(path.parent().expect("its folder"), starter.path("node_modules")).expect("a link");
    let address = loopback();
    let manager = starter.start_ready(&service("one.js", address));
    let answer = |release: &str| Response::new(200, &format!("{package}, {release}"));
    let programs = [("one.js", answer("one")), ("two.js", answer("two"))];
    upgrade_to_and_fro(&manager, &Target::Tcp(address), &programs);
    manager.stop();
}

#[test]
fn twenty_upgrades_of_an_express_application_lose_no_request() {
    upgrade("express", EXPRESS);
}

#[test]
fn twenty_upgrades_of_a_fastify_application_lose_no_request() {
    upgrade("fastify", FASTIFY);
}
