#![expect(
    unsafe_code,
    reason = "the safe wrappers of recvmsg(2) lose descriptors of a message that was cut short"
)]
//! Receiving from a UNIX socket, whatever comes beside the bytes (unix(7), `SCM_RIGHTS`).
//!
//! A receiver that makes no room for descriptors has the kernel close them, in the receiver's own time. So there is always
//! room, and what comes is a [`ForeignFd`].

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use super::foreign::ForeignFd;
use super::retry::at_once;

/// The most descriptors that one message can bring (`SCM_MAX_FD`, unix(7)).
pub const MAX_DESCRIPTORS: usize = 253;

/// `SCM_PIDFD` of linux/socket.h, since Linux 6.5.
const SCM_PIDFD: libc::c_int = 4;

const HEADER: usize = aligned(size_of::<libc::cmsghdr>());
/// Room for all that can come beside a message, in bytes.
pub(super) const CONTROL: usize = HEADER
    + aligned(MAX_DESCRIPTORS * size_of::<libc::c_int>())
    + HEADER
    + aligned(size_of::<libc::ucred>())
    + HEADER
    + aligned(size_of::<libc::c_int>());

/// Returns `CMSG_ALIGN(len)` of cmsg(3).
const fn aligned(len: usize) -> usize {
    len.next_multiple_of(size_of::<usize>())
}

/// The identity of a sender when it sent, `SCM_CREDENTIALS` of unix(7).
#[derive(Debug)]
pub struct Sender {
    /// Its process id; 0 where it lives in a pid namespace that we cannot see. It may be dead by now.
    pub pid: i32,
    /// Its real, effective or saved user id, in the view of our user namespace.
    pub uid: u32,
    /// Its process, where the kernel hands that over (`SCM_PIDFD`) and the process has not been reaped.
    pub process: Option<OwnedFd>,
}

/// What has come.
#[derive(Debug)]
pub(super) struct Received {
    /// How many bytes of the buffer are filled.
    pub len: usize,
    /// What came along, with `FD_CLOEXEC` set.
    pub descriptors: Vec<ForeignFd>,
    /// Who sent it, where the socket was asked to tell.
    pub sender: Option<Sender>,
    /// `MSG_TRUNC`, `MSG_CTRUNC`.
    pub flags: libc::c_int,
}

/// Receives bytes into `buffer`, without waiting; descriptors that come beside them are closed in time.
///
/// # Errors
///
/// Those of recvmsg(2): `WouldBlock` where nothing has come.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(receive_in(socket, buffer, &mut [0; CONTROL])?.len)
}

/// Receives a message, without waiting, and what comes beside it as far as there is room in `control`.
///
/// # Errors
///
/// Those of recvmsg(2).
pub(super) fn receive_in(socket: impl AsFd, buffer: &mut [u8], control: &mut [u8]) -> nix::Result<Received> {
    let mut text = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain C data, for which all zeroes is a value: null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut text;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = control.len() as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    let len = at_once(|| {
        // SAFETY: the message points to two live exclusive slices, with their lengths, and to a live iovec.
        Errno::result(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) })
    })?;
    let written = control.len().min(message.msg_controllen as _);
    // SAFETY: the kernel has just written these control messages, and nobody else has read them.
    let (descriptors, sender) = unsafe { take_control(&control[..written]) };
    Ok(Received { len: len.unsigned_abs(), descriptors, sender, flags: message.msg_flags })
}

/// Takes ownership of all descriptors in the control messages, and reads the sender.
///
/// # Safety
///
/// The bytes must be what recvmsg(2) wrote, and this must be called once for them: the descriptors in them then
/// belong to us and to nobody else.
unsafe fn take_control(control: &[u8]) -> (Vec<ForeignFd>, Option<Sender>) {
    let (mut descriptors, mut credentials, mut process) = (Vec::new(), None, None);
    // SAFETY: the kernel made these descriptors for us, and by the caller's word we are the first to see their numbers.
    let own = |number| unsafe { OwnedFd::from_raw_fd(number) };
    for (level, kind, payload) in ControlMessages(control) {
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                descriptors.reserve(payload.len() / size_of::<libc::c_int>());
                descriptors.extend(integers(payload).map(own).map(ForeignFd::from));
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                let mut fields = integers(payload);
                credentials = fields.next().zip(fields.next()).map(|(pid, uid)| (pid, uid.cast_unsigned()));
            }
            // A negative number says why there is none.
            (libc::SOL_SOCKET, SCM_PIDFD) => {
                process = integers(payload).next().filter(|number| *number >= 0).map(own);
            }
            _ => {}
        }
    }
    (descriptors, credentials.map(|(pid, uid)| Sender { pid, uid, process }))
}

/// Walks over control messages: the level, the type, and as much of the payload as arrived. Any bytes will do.
///
/// The walk is our own, as the `CMSG_NXTHDR` of some C libraries passes over a last message that was cut short, and
/// with it the descriptors that did arrive.
struct ControlMessages<'a>(&'a [u8]);

impl<'a> Iterator for ControlMessages<'a> {
    type Item = (libc::c_int, libc::c_int, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.len() < HEADER {
            return None;
        }
        // SAFETY: so many bytes are there; a cmsghdr is plain integers, and the read needs no alignment.
        let header: libc::cmsghdr = unsafe { self.0.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
        let len = self.0.len().min(header.cmsg_len as _);
        let payload = self.0.get(HEADER..len)?;
        self.0 = self.0.get(aligned(len)..).unwrap_or_default();
        Some((header.cmsg_level, header.cmsg_type, payload))
    }
}

fn integers(payload: &[u8]) -> impl Iterator<Item = libc::c_int> {
    let (whole, _cut_short) = payload.as_chunks();
    whole.iter().copied().map(libc::c_int::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What makes no system call, so that Miri can look at it.
    mod memory {
        use super::*;

        /// A control message as the kernel lays it out (cmsg(3)), whose header says `len`.
        fn message(len: usize, kind: libc::c_int, payload: &[i32]) -> Vec<u8> {
            let mut bytes =
                [len.to_ne_bytes().as_slice(), &libc::SOL_SOCKET.to_ne_bytes(), &kind.to_ne_bytes()].concat();
            bytes.extend(payload.iter().flat_map(|number| number.to_ne_bytes()));
            bytes.resize(aligned(bytes.len()), 0);
            bytes
        }

        /// The payloads of all messages, wherever in memory they stand.
        fn payloads(control: &[u8]) -> Vec<Vec<i32>> {
            fn walk(control: &[u8]) -> Vec<Vec<i32>> {
                ControlMessages(control).map(|(_, _, payload)| integers(payload).collect()).collect()
            }
            let found = walk(control);
            for shift in 1..8 {
                let moved = [&[0; 8][..shift], control].concat();
                assert_eq!(walk(&moved[shift..]), found);
            }
            found
        }

        #[test]
        fn what_arrived_of_a_message_that_was_cut_short_is_found_at_every_length() {
            let rights = message(HEADER + 12, libc::SCM_RIGHTS, &[7, 8, 9]);
            let whole = [rights.clone(), message(HEADER + 12, libc::SCM_CREDENTIALS, &[1, 2, 3])].concat();
            for end in 0..=whole.len() {
                let first = end.saturating_sub(HEADER).min(12) / 4;
                let second = end.saturating_sub(rights.len() + HEADER).min(12) / 4;
                let expected = [(HEADER, &[7, 8, 9][..first]), (rights.len() + HEADER, &[1, 2, 3][..second])];
                let expected: Vec<_> = expected
                    .into_iter()
                    .filter(|(from, _)| end >= *from)
                    .map(|(_, found)| found.to_vec())
                    .collect();
                assert_eq!(payloads(&whole[..end]), expected, "{end} bytes");
            }
        }

        #[test]
        fn a_length_that_is_a_lie_ends_the_walk_within_the_bytes() {
            for len in [0, 1, HEADER - 1] {
                assert_eq!(payloads(&message(len, libc::SCM_RIGHTS, &[7])), [[0; 0]; 0], "{len}");
            }
            for len in [HEADER + 5, HEADER + 8, HEADER + 9, 1 << 40, usize::MAX - 7, usize::MAX] {
                let found = payloads(&message(len, libc::SCM_RIGHTS, &[7]));
                // With the padding that is there.
                assert!(found == [vec![7]] || found == [vec![7, 0]], "{len}: {found:?}");
            }
            assert_eq!(payloads(&message(HEADER, libc::SCM_RIGHTS, &[])), [[0; 0]]);
        }
    }
}
