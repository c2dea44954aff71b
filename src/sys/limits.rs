//! Resource limits (setrlimit(2)), for a worker to be and for the manager itself.

use std::io;

use crate::plain::{Limit, Resource};
use nix::sys::resource::{self, RLIM_INFINITY, rlim_t};

/// Returns a resource's number (getrlimit(2)).
pub(super) fn number(resource: Resource) -> u32 {
    native(resource) as u32
}

fn native(resource: Resource) -> resource::Resource {
    match resource {
        Resource::As => resource::Resource::RLIMIT_AS,
        Resource::Core => resource::Resource::RLIMIT_CORE,
        Resource::Cpu => resource::Resource::RLIMIT_CPU,
        Resource::Data => resource::Resource::RLIMIT_DATA,
        Resource::Fsize => resource::Resource::RLIMIT_FSIZE,
        Resource::Locks => resource::Resource::RLIMIT_LOCKS,
        Resource::Memlock => resource::Resource::RLIMIT_MEMLOCK,
        Resource::Msgqueue => resource::Resource::RLIMIT_MSGQUEUE,
        Resource::Nice => resource::Resource::RLIMIT_NICE,
        Resource::Nofile => resource::Resource::RLIMIT_NOFILE,
        Resource::Nproc => resource::Resource::RLIMIT_NPROC,
        Resource::Rss => resource::Resource::RLIMIT_RSS,
        Resource::Rtprio => resource::Resource::RLIMIT_RTPRIO,
        Resource::Rttime => resource::Resource::RLIMIT_RTTIME,
        Resource::Sigpending => resource::Resource::RLIMIT_SIGPENDING,
        Resource::Stack => resource::Resource::RLIMIT_STACK,
    }
}

/// Returns the limit of this process.
///
/// # Errors
/// Those of getrlimit(2).
pub fn own(resource: Resource) -> io::Result<Limit> {
    let finite = |value: rlim_t| (value != RLIM_INFINITY).then_some(value);
    let (soft, hard) = resource::getrlimit(native(resource))?;
    Ok(Limit { soft: finite(soft), hard: finite(hard) })
}

/// Sets the limit of this process, which its children inherit.
///
/// # Errors
/// Those of setrlimit(2): `EPERM` for a hard limit raised without `CAP_SYS_RESOURCE`, `EINVAL` for a soft limit
/// above the hard one.
pub fn set_own(resource: Resource, limit: Limit) -> nix::Result<()> {
    let value = |value: Option<u64>| value.unwrap_or(RLIM_INFINITY);
    resource::setrlimit(native(resource), value(limit.soft), value(limit.hard))
}

#[cfg(test)]
mod tests {
    use super::*;

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
