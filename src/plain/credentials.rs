//! Who a process is.

use serde::{Deserialize, Serialize};

/// The user and the groups of a process, by number (credentials(7)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective and saved user.
    pub uid: u32,
    /// Real, effective and saved group.
    pub gid: u32,
    /// All supplementary groups.
    pub groups: Vec<u32>,
}
