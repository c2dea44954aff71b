//! What a program needs beside itself: the interpreter of a script, the loader of a binary.
//!
//! Where that is missing execve(2) says "No such file or directory" as if the program itself were. Files may block, so they
//! are read where the call has failed: in a child that may share its parent's memory, see [`super::child`].

use std::ffi::{CStr, c_int};
use std::fmt;

use nix::errno::Errno;

use super::raw;

/// The kernel looks no further into a script's first line (`BINPRM_BUF_SIZE`).
const HEAD: usize = 256;

/// How much of a name is kept, in bytes.
const MOST: usize = 112;

/// The first bytes of an ELF file, and its header entry that names a loader (elf(5)).
const ELF: &[u8] = b"\x7fELF";
const PT_INTERP: u64 = 3;

/// How many header entries are looked at.
const ENTRIES: u64 = 64;

/// The interpreter that a program names, as far as it fits; empty where there is none, or where it is not to blame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Interpreter {
    name: [u8; MOST],
    length: u8,
}

impl Interpreter {
    /// None.
    pub const NONE: Self = Self { name: [0; MOST], length: 0 };

    /// Takes a name, cut off where it is too long.
    pub(super) fn named(name: &[u8]) -> Self {
        let mut kept = Self::NONE;
        for (to, from) in kept.name.iter_mut().zip(name) {
            *to = *from;
            kept.length = kept.length.saturating_add(1);
        }
        kept
    }

    /// Returns its name.
    pub fn name(&self) -> &[u8] {
        self.name.get(..usize::from(self.length)).unwrap_or_default()
    }

    /// Returns what `program` names, where that is to blame for the error with which it could not be executed.
    ///
    /// It allocates nothing, cannot panic, and makes its system calls past libc.
    pub(super) fn to_blame(program: &CStr, error: Errno) -> Self {
        let is_of_a_file = matches!(error, Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES);
        let is_of_a_script =
            matches!(error, Errno::ELOOP | Errno::ENAMETOOLONG | Errno::ENOEXEC | Errno::EISDIR);
        if !is_of_a_file && !is_of_a_script || !raw::may_execute(program) {
            return Self::NONE;
        }
        let Ok(file) = raw::open(program) else { return Self::NONE };
        let mut head = [0; HEAD];
        let head = match raw::read_at(file, &mut head, 0) {
            Ok(count) => head.get(..count).unwrap_or_default(),
            Err(_) => &[],
        };
        let found = match head {
            [b'#', b'!', line @ ..] => Self::named(first_word(line)),
            _ if is_of_a_file && head.starts_with(ELF) => loader(file, head),
            _ => Self::NONE,
        };
        raw::close(file);
        found
    }
}

/// Returns the interpreter as the kernel reads it: a carriage return is part of the name.
fn first_word(line: &[u8]) -> &[u8] {
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t' | 0));
    words.find(|word| !word.is_empty()).unwrap_or_default()
}

/// Reads which loader a binary of this machine's byte order names.
fn loader(file: c_int, head: &[u8]) -> Interpreter {
    let is_wide = head.get(4) == Some(&2);
    // Where in the file header: the entries' place, the size of one, how many; where in an entry: the place and size of what it
    // is about.
    let (entries, size, count) = if is_wide { ((32, 8), 54, 56) } else { ((28, 4), 42, 44) };
    let (place, length) = if is_wide { ((8, 8), (32, 8)) } else { ((4, 4), (16, 4)) };
    let (Some(first), Some(size), Some(count)) =
        (number(head, entries.0, entries.1), number(head, size, 2), number(head, count, 2))
    else {
        return Interpreter::NONE;
    };
    for index in 0..count.min(ENTRIES) {
        let mut entry = [0; 56];
        let at = first.saturating_add(index.saturating_mul(size));
        if raw::read_at(file, &mut entry, at).is_err() || number(&entry, 0, 4) != Some(PT_INTERP) {
            continue;
        }
        let (Some(at), Some(length)) = (number(&entry, place.0, place.1), number(&entry, length.0, length.1))
        else {
            break;
        };
        let mut name = [0; MOST];
        let count = raw::read_at(file, &mut name, at).unwrap_or(0).min(usize::try_from(length).unwrap_or(0));
        let name = name.get(..count).unwrap_or_default();
        return Interpreter::named(name.split(|byte| *byte == 0).next().unwrap_or_default());
    }
    Interpreter::NONE
}

/// Reads a number of up to eight bytes, in this machine's byte order.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    let little = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
    Some(if cfg!(target_endian = "little") {
        bytes.iter().rev().fold(0, little)
    } else {
        bytes.iter().fold(0, little)
    })
}

impl fmt::Debug for Interpreter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interpreter({})", self.name().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_read_as_the_kernel_does() {
        for (line, word) in [
            (&b"/bin/sh\r\nx"[..], &b"/bin/sh\r"[..]),
            (b" \t/usr/bin/env python3\n", b"/usr/bin/env"),
            (b"\n/bin/sh", b""),
            (b"/bin/sh\0x", b"/bin/sh"),
            (b"", b""),
        ] {
            assert_eq!(first_word(line), word);
        }
    }

    #[test]
    fn names_are_cut_off_and_binaries_that_lie_are_survived() {
        assert_eq!(Interpreter::named(&[b'x'; 300]).name().len(), MOST);
        for length in 0..64 {
            let mut head = [0xff; 64];
            head[..4].copy_from_slice(ELF);
            head[4] = if length % 2 == 0 { 2 } else { 1 };
            assert_eq!(loader(-1, &head[..length]), Interpreter::NONE);
        }
    }

    #[test]
    fn the_loader_of_a_binary_is_found() {
        let own = raw::open(c"/proc/self/exe").unwrap();
        let mut head = [0; HEAD];
        let count = raw::read_at(own, &mut head, 0).unwrap();
        let found = loader(own, &head[..count]);
        raw::close(own);
        // A program that is linked statically names none.
        let name = String::from_utf8_lossy(found.name()).into_owned();
        assert!(name.is_empty() || name.starts_with('/') && name.contains("ld"), "{name}");
    }
}
