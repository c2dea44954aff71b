//! Types of plain data that both the core and the system calls use. They decide nothing and call nothing.
//!
//! The names are those of the field: a socket's address (bind(2)), a resource limit (setrlimit(2)), who a process is
//! (credentials(7)).

mod credentials;
mod limit;
mod socket;

pub use credentials::Credentials;
pub use limit::{Limit, Resource};
pub use socket::{SocketAddress, SocketKind};
