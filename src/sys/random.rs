#![expect(unsafe_code, reason = "getrandom(2), which nix does not have")]
//! What nobody can guess.

use std::fmt::Write;
use std::io;

use nix::errno::Errno;

use super::retry::at_once;

/// Returns as many random bytes in hexadecimal.
///
/// # Errors
///
/// Those of getrandom(2).
pub fn hexadecimal<const BYTES: usize>() -> io::Result<String> {
    const { assert!(BYTES <= 256, "so many come whole or not at all") };
    let mut bytes = [0_u8; BYTES];
    // SAFETY: the buffer has as many bytes as said.
    at_once(|| Errno::result(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), BYTES, 0) }))?;
    let mut text = String::with_capacity(2 * BYTES);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_length_and_is_another_each_time() {
        let (one, other) = (hexadecimal::<32>().unwrap(), hexadecimal::<32>().unwrap());
        assert_eq!((one.len(), other.len()), (64, 64));
        assert_ne!(one, other);
    }
}
