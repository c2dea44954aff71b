//! System calls, and the only unsafe code.
//!
//! Nothing in here imports another module of ours: every function takes plain parameters and returns `io::Error` or
//! a type of its own. The manager has one thread, and everything that forks relies on it.

pub mod activation;
pub mod backlog;
pub mod bound;
pub mod cgroup;
pub mod channel;
mod child;
pub mod clock;
pub mod control_socket;
pub mod control_tcp;
mod cradle;
pub mod exec;
pub mod failure;
pub mod folder;
pub mod foreign;
pub mod fork;
pub mod handover;
pub mod held;
pub mod holders;
pub mod interpreter;
pub mod journal_stream;
pub mod limits;
pub mod listener;
pub mod memfd;
pub mod names;
pub mod notify_send;
pub mod notify_socket;
pub mod occupant;
pub mod options;
pub mod output;
pub mod own_folder;
pub mod path_watch;
pub mod paths;
pub mod pidfd;
pub mod process;
pub mod random;
mod raw;
pub mod reach;
pub mod reaper;
pub mod rest;
pub mod retry;
pub mod rights;
pub mod shared_options;
pub mod signals;
pub mod sock_diag;
pub mod socket_file;
pub mod spawn;
pub mod stall;
pub mod stream_socket;
pub mod strings;
pub mod tcp_keys;
pub mod tree_watch;
pub mod usage;
pub mod wait;
pub mod way;
