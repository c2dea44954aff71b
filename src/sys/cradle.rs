#![expect(unsafe_code, reason = "clone(2) with shared memory")]
//! The making of a child that is to become a program.
//!
//! fork(2) copies the page tables of the manager, and afterwards every page that either writes to: with hundreds of
//! workers that is most of what starting them costs. vfork(2) copies nothing, but holds the manager up until the child has
//! executed its program, which may lie on a dead file server. So the child shares our memory *and* we go on: what it
//! lives on, its stack and its plan, is its [`Cradle`], and that outlives its need.
//!
//! The need ends when the child has let go of our memory, in execve(2) or by its death. In both the kernel lets go of the
//! memory first and then closes the descriptors: so the end of the report's pipe is the proof.

use std::ffi::{c_int, c_void};
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::child::{self, Plan};
use super::fork::make_child;
use super::raw;

/// Whose memory the child runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// Ours.
    Shared,
    /// A copy of ours.
    Copied,
}

/// What a child lives on until it becomes its program.
///
/// Dropping it gives the memory back: by then the child must have let go of it. See [`Cradle::abandon`].
#[derive(Debug)]
pub(super) struct Cradle {
    stack: Stack,
    /// Made from a box; the child's alone as long as there is one.
    plan: NonNull<Plan>,
}

impl Cradle {
    pub(super) fn new(plan: Plan) -> io::Result<Self> {
        let stack = Stack::new()?;
        Ok(Self { stack, plan: NonNull::from(Box::leak(Box::new(plan))) })
    }

    /// Makes the child, which becomes a program by the plan, or reports why not and exits. To be called once.
    ///
    /// # Errors
    /// Those of clone(2).
    pub(super) fn make_child(&mut self, memory: Memory) -> io::Result<Pid> {
        make_child(|| match self.clone_into(memory) {
            // An emulator that knows nothing but fork(2) and threads, as qemu's user mode.
            Err(Errno::EINVAL) if memory == Memory::Shared => self.clone_into(Memory::Copied),
            made => made,
        })
    }

    fn clone_into(&mut self, memory: Memory) -> nix::Result<Pid> {
        if memory == Memory::Copied
            && let Some(pid) = self.fork_into_cgroup()
        {
            return Ok(pid);
        }
        let shared = match memory {
            Memory::Shared => libc::CLONE_VM,
            Memory::Copied => 0,
        };
        // SAFETY: the stack and the plan live until the child no longer needs them, as the type's rule says; nobody else
        // looks at either meanwhile; and the child runs only what may run beside us in our memory.
        let pid = unsafe {
            libc::clone(begin, self.stack.top(), libc::SIGCHLD | shared, self.plan.as_ptr().cast::<c_void>())
        };
        Errno::result(pid).map(Pid::from_raw)
    }

    /// Makes the child in the control group that it is to join; `None` where there is none, or the kernel or a sandbox knows no such
    /// call. To join one later takes a lock of the whole machine.
    fn fork_into_cgroup(&mut self) -> Option<Pid> {
        // SAFETY: there is no child yet.
        let plan = unsafe { self.plan.as_mut() };
        let folder = plan.cgroup.take()?;
        // SAFETY: the manager has one thread, and the child runs what it runs after any other clone(2) of ours.
        match unsafe { raw::fork_into_cgroup(folder) } {
            Ok(None) => child::run(plan),
            Ok(Some(pid)) => Some(pid),
            Err(_) => {
                plan.cgroup = Some(folder);
                None
            }
        }
    }

    /// Gives the memory up for good, for a child that may still use it.
    pub(super) fn abandon(self) {
        std::mem::forget(self);
    }
}

impl Drop for Cradle {
    fn drop(&mut self) {
        // SAFETY: it was made from a box, and the child, the only other user, has let go of it.
        drop(unsafe { Box::from_raw(self.plan.as_ptr()) });
    }
}

extern "C" fn begin(plan: *mut c_void) -> c_int {
    // SAFETY: `Cradle::clone_into` passes its plan, to which nobody else has a reference.
    child::run(unsafe { &mut *plan.cast::<Plan>() })
}

/// Memory for a stack, with a page below it that nobody may touch: what overflows it ends the child, and harms nobody.
#[derive(Debug)]
pub(super) struct Stack {
    start: NonNull<c_void>,
    size: usize,
}

impl Stack {
    /// What the child's few calls need in a build without optimisation, many times over. Pages that nobody touches are
    /// never there.
    const SIZE: usize = 64 * 1024;

    pub(super) fn new() -> io::Result<Self> {
        let page =
            sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096);
        let size = Self::SIZE + page;
        let length = NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN);
        // SAFETY: it is new memory, at no address that was asked for.
        let start = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }?;
        let stack = Self { start, size };
        // SAFETY: a part of what was mapped just now.
        unsafe { mprotect(start.byte_add(page), Self::SIZE, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE) }?;
        Ok(stack)
    }

    /// Returns where it begins: stacks grow down. It is aligned as mmap(2) aligns.
    pub(super) fn top(&self) -> *mut c_void {
        // SAFETY: one past the end of the mapping.
        unsafe { self.start.byte_add(self.size) }.as_ptr()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and unmapped once. It cannot fail for a whole mapping.
        let _ = unsafe { munmap(self.start, self.size) };
    }
}
