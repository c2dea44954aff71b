//! The way to a manager by the address of its control server.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use super::connection::Connection;
use crate::daemon::runtime::{believed_at, places, places_of_others};
use crate::wire::printable::printable;

/// What is found of a manager by the address of its control server.
#[derive(Debug)]
pub enum At {
    /// The manager.
    Manager(Box<Connection>),
    /// Managers whose control servers have closed there for their applications, by the folders of their services.
    Elsewhere(Vec<String>),
    /// None that lets us speak.
    Nobody,
}

impl Connection {
    /// Connects by its control socket to the manager whose control server listens at `server`, or has closed there for the application of
    /// the service in `folder`.
    pub fn at(server: SocketAddr, folder: Option<&Path>) -> At {
        let believed = believed_at(server);
        let places = places(None).into_iter().chain(places_of_others(&believed));
        let answers = Self::ping(places).filter_map(|(_, answered)| answered.ok());
        let is_server = |at: SocketAddr| {
            let is_any = at.ip().is_unspecified() && server.ip().is_loopback();
            at.port() == server.port() && (is_any || at.ip().to_canonical() == server.ip().to_canonical())
        };
        let mut elsewhere = Vec::new();
        for (mut connection, reply) in answers {
            if !believed.contains(&connection.user) || !is_of_our_network(connection.pid) {
                continue;
            }
            let is_closed = reply.tcp_closed.is_some_and(is_server);
            let is_there =
                is_closed && folder.is_some() && reply.directory.as_deref().map(Path::new) == folder;
            match (reply.service, reply.directory) {
                (Some(service), _) if reply.tcp.is_some_and(is_server) || is_there => {
                    connection.service = service;
                    return At::Manager(Box::new(connection));
                }
                (Some(_), Some(directory)) if is_closed => elsewhere.push(printable(&directory).into_owned()),
                _ => {}
            }
        }
        if elsewhere.is_empty() { At::Nobody } else { At::Elsewhere(elsewhere) }
    }
}

/// Whether a process has the same network as we have, as far as we may look: addresses of two networks are not the same.
fn is_of_our_network(pid: i32) -> bool {
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let theirs = network(&pid.to_string());
    theirs.is_none() || theirs == network("self")
}
