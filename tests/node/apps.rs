//! Applications of npm, unmodified.

use std::os::unix::fs::symlink;

use crate::support::client::{Response, Target};
use crate::support::manager::Starter;
use crate::support::node::service;
use crate::support::{is_installed, loopback};
use crate::{UPGRADES, installed, upgrade_to_and_fro};

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

const HONO: &str = "
const { Hono } = require('hono')
const app = new Hono()
app.get('/', context => context.text('hono, RELEASE'))
require('@hono/node-server').serve({ fetch: app.fetch, hostname: process.env.HOST, port: +process.env.PORT })
";

/// Without a compiler, its decorators are called.
const NEST: &str = "
require('reflect-metadata')
const { Controller, Get, Module } = require('@nestjs/common')
class Root { get() { return 'nest, RELEASE' } }
Get()(Root.prototype, 'get', Object.getOwnPropertyDescriptor(Root.prototype, 'get'))
Controller()(Root)
class App {}
Module({ controllers: [Root] })(App)
require('@nestjs/core').NestFactory.create(App).then(app => app.listen(process.env.PORT, process.env.HOST))
";

/// Upgrades an application to another release and back under load.
fn upgrade(name: &str, packages: &[&str], text: &str) {
    let paths: Option<Vec<_>> = packages.iter().map(|package| installed(package)).collect();
    let Some(paths) = paths.filter(|_| is_installed("node")) else { return };
    let starter = Starter::default()
        .file("one.js", &text.replace("RELEASE", "one"))
        .file("two.js", &text.replace("RELEASE", "two"));
    let packages = paths[0].ancestors().find(|folder| folder.ends_with("node_modules"));
    symlink(packages.expect("their folder"), starter.path("node_modules")).expect("a link");
    let address = loopback();
    let service = service("one.js", address).set("drain.max_generations", 2 * UPGRADES);
    let manager = starter.start_ready(&service);
    let answer = |release: &str| Response::new(200, &format!("{name}, {release}"));
    let programs = [("one.js", answer("one")), ("two.js", answer("two"))];
    upgrade_to_and_fro(&manager, &Target::Tcp(address), &programs);
    manager.stop();
}

#[test]
fn twenty_upgrades_of_an_express_application_lose_no_request() {
    upgrade("express", &["express"], EXPRESS);
}

#[test]
fn twenty_upgrades_of_a_fastify_application_lose_no_request() {
    upgrade("fastify", &["fastify"], FASTIFY);
}

#[test]
fn twenty_upgrades_of_a_hono_application_lose_no_request() {
    upgrade("hono", &["hono", "@hono/node-server"], HONO);
}

#[test]
fn twenty_upgrades_of_a_nest_application_lose_no_request() {
    let packages = ["@nestjs/core", "@nestjs/common", "@nestjs/platform-express", "reflect-metadata", "rxjs"];
    upgrade("nest", &packages, NEST);
}
