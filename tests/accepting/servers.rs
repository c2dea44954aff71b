//! Servers as they are written for activation, each with its own way to wait.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::support::is_installed;
use super::support::loopback;
use super::support::manager::{Place, Starter};
use super::support::service::Service;
use super::{answers, fifo, is_not_ready, worker};

/// Starts a server that loads until it is told to go on, and checks that it is ready only then.
fn is_ready_once_it_serves(name: &str, text: &str, command: [&str; 2], starter: Starter) {
    fs::write(starter.path(name), text).expect("the program");
    let fifo = fifo(&starter.path(""));
    let address = loopback();
    let service = Service::command(command)
        .set("service.protocol", "'plain'")
        .set("service.environment", format!("{{ GO_ON = '{fifo}' }}"))
        .set("ready.when", "'accepting'")
        .set("ready.settle", "'1ms'")
        .listen(address);
    let mut manager = starter.start(service);
    manager.wait_log(Place::START, ["it loads"]);
    is_not_ready(&manager, name);
    fs::write(&fifo, "x").expect("a word to the server");
    manager.wait_ready();
    assert_eq!(worker(&manager)["unseen"], Value::Null, "{name}: it was seen");
    assert!(answers(address), "{name}: it answers");
    manager.stop();
}

#[test]
fn a_python_socketserver_that_loads_first() {
    if !is_installed("python3") {
        return;
    }
    let text = r#"
import http.server, os, signal, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
server = http.server.ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=3)
print("it loads", file=sys.stderr, flush=True)
open(os.environ["GO_ON"]).read(1)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server.serve_forever(poll_interval=None)
"#;
    is_ready_once_it_serves("server.py", text, ["python3", "server.py"], Starter::default());
}

#[test]
fn a_python_asyncio_server_that_fills_its_set_before_it_loads() {
    if !is_installed("python3") {
        return;
    }
    let text = r#"
import asyncio, os, signal, socket, sys
async def answer(reader, writer):
    await reader.readline()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, sock=socket.socket(fileno=3))
    print("it loads", file=sys.stderr, flush=True)
    open(os.environ["GO_ON"]).read(1)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: os._exit(0))
    await server.serve_forever()
asyncio.run(main())
"#;
    is_ready_once_it_serves("server.py", text, ["python3", "server.py"], Starter::default());
}

#[test]
fn a_node_server_that_loads_first() {
    if !is_installed("node") {
        return;
    }
    let text = r#"
const fs = require("fs"), http = require("http");
const server = http.createServer((request, response) => response.end("ok"));
console.error("it loads");
fs.readSync(fs.openSync(process.env.GO_ON), Buffer.alloc(1));
process.on("SIGTERM", () => process.exit(0));
server.listen({ fd: 3 });
"#;
    is_ready_once_it_serves("server.js", text, ["node", "server.js"], Starter::default());
}

#[test]
fn a_go_server_that_takes_its_socket_last() {
    if !is_installed("go") {
        return;
    }
    let text = r#"package main

import (
	"net"
	"net/http"
	"os"
)

func main() {
	println("it loads")
	fifo, err := os.Open(os.Getenv("GO_ON"))
	if err != nil {
		panic(err)
	}
	fifo.Read(make([]byte, 1))
	listener, err := net.FileListener(os.NewFile(3, "http"))
	if err != nil {
		panic(err)
	}
	http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
}
"#;
    let starter = Starter::default();
    fs::write(starter.path("main.go"), text).expect("the program");
    let mut build = Command::new("go");
    build.args(["build", "-o", "server", "main.go"]).current_dir(starter.path(""));
    // Without cgo no C compiler is needed.
    let output = build.env("CGO_ENABLED", "0").env("GOFLAGS", "").output().expect("go build");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    is_ready_once_it_serves("main.go", text, ["./server", ""], starter);
}
