//! Resource limits (setrlimit(2)), for a worker to be and for the manager itself.

use std::fmt;
use std::io;

use nix::sys::resource::{self, RLIM_INFINITY, rlim_t};
use serde::{Deserialize, Serialize};

/// A resource of setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are setrlimit(2)'s own")]
pub enum Resource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

impl Resource {
    /// Every resource, in the order of the names.
    pub const ALL: [Self; 16] = [
        Self::As,
        Self::Core,
        Self::Cpu,
        Self::Data,
        Self::Fsize,
        Self::Locks,
        Self::Memlock,
        Self::Msgqueue,
        Self::Nice,
        Self::Nofile,
        Self::Nproc,
        Self::Rss,
        Self::Rtprio,
        Self::Rttime,
        Self::Sigpending,
        Self::Stack,
    ];

    /// Returns the name of setrlimit(2) in lower case without `RLIMIT_`.
    pub fn name(self) -> &'static str {
        match self {
            Self::As => "as",
            Self::Core => "core",
            Self::Cpu => "cpu",
            Self::Data => "data",
            Self::Fsize => "fsize",
            Self::Locks => "locks",
            Self::Memlock => "memlock",
            Self::Msgqueue => "msgqueue",
            Self::Nice => "nice",
            Self::Nofile => "nofile",
            Self::Nproc => "nproc",
            Self::Rss => "rss",
            Self::Rtprio => "rtprio",
            Self::Rttime => "rttime",
            Self::Sigpending => "sigpending",
            Self::Stack => "stack",
        }
    }

    /// Returns its number (getrlimit(2)).
    pub(super) fn number(self) -> u32 {
        self.native() as u32
    }

    fn native(self) -> resource::Resource {
        match self {
            Self::As => resource::Resource::RLIMIT_AS,
            Self::Core => resource::Resource::RLIMIT_CORE,
            Self::Cpu => resource::Resource::RLIMIT_CPU,
            Self::Data => resource::Resource::RLIMIT_DATA,
            Self::Fsize => resource::Resource::RLIMIT_FSIZE,
            Self::Locks => resource::Resource::RLIMIT_LOCKS,
            Self::Memlock => resource::Resource::RLIMIT_MEMLOCK,
            Self::Msgqueue => resource::Resource::RLIMIT_MSGQUEUE,
            Self::Nice => resource::Resource::RLIMIT_NICE,
            Self::Nofile => resource::Resource::RLIMIT_NOFILE,
            Self::Nproc => resource::Resource::RLIMIT_NPROC,
            Self::Rss => resource::Resource::RLIMIT_RSS,
            Self::Rtprio => resource::Resource::RLIMIT_RTPRIO,
            Self::Rttime => resource::Resource::RLIMIT_RTTIME,
            Self::Sigpending => resource::Resource::RLIMIT_SIGPENDING,
            Self::Stack => resource::Resource::RLIMIT_STACK,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A resource limit, in the resource's own unit; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// What the kernel enforces.
    pub soft: Option<u64>,
    /// How far the soft limit may be raised.
    pub hard: Option<u64>,
}

/// Returns the limit of this process.
///
/// # Errors
/// Those of getrlimit(2).
pub fn own(resource: Resource) -> io::Result<Limit> {
    let finite = |value: rlim_t| (value != RLIM_INFINITY).then_some(value);
    let (soft, hard) = resource::getrlimit(resource.native())?;
    Ok(Limit { soft: finite(soft), hard: finite(hard) })
}

/// Sets the limit of this process, which its children inherit.
///
/// # Errors
/// Those of setrlimit(2): `EPERM` for a hard limit raised without `CAP_SYS_RESOURCE`, `EINVAL` for a soft limit
/// above the hard one.
pub fn set_own(resource: Resource, limit: Limit) -> nix::Result<()> {
    let native = |value: Option<u64>| value.unwrap_or(RLIM_INFINITY);
    resource::setrlimit(resource.native(), native(limit.soft), native(limit.hard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_is_listed_under_its_own_place() {
        for (index, resource) in Resource::ALL.into_iter().enumerate() {
            assert_eq!(resource as usize, index, "{resource}");
        }
    }

    #[test]
    fn a_limit_is_set_and_read_back() {
        // The limits belong to the whole test process: lower one that no test needs, and only its soft half.
        let before = own(Resource::Msgqueue).unwrap();
        let lowered = Limit { soft: Some(4_096), hard: before.hard };
        set_own(Resource::Msgqueue, lowered).unwrap();
        assert_eq!(own(Resource::Msgqueue).unwrap(), lowered);
        set_own(Resource::Msgqueue, before).unwrap();
    }

    #[test]
    fn a_soft_limit_above_the_hard_one_is_refused() {
        let upside_down = Limit { soft: Some(2), hard: Some(1) };
        assert_eq!(set_own(Resource::Msgqueue, upside_down), Err(nix::errno::Errno::EINVAL));
    }
}
