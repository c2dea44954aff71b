//! A secret that a client shows, and that nobody else may learn: not from a log, and not from how long a comparison takes.

use std::fmt;
use std::hint::black_box;

use serde::{Deserialize, Serialize};

/// A text that is never shown.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The length of a token, in bytes.
    pub const LENGTH: std::ops::RangeInclusive<usize> = 16..=1024;

    /// Reads the text of a token file, without the blanks around it.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without a word of it.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let text = text.trim_ascii();
        let (least, most) = (Self::LENGTH.start(), Self::LENGTH.end());
        if !Self::LENGTH.contains(&text.len()) {
            return Err(format!("the token must have {least} to {most} characters, not {}", text.len()));
        }
        if !text.iter().all(u8::is_ascii_graphic) {
            return Err("the token must be of visible ASCII characters alone".into());
        }
        Ok(Self(String::from_utf8_lossy(text).into_owned()))
    }

    /// The text as it stands in a file, which [`Secret::read`] reads.
    #[must_use]
    pub fn to_file(&self) -> String {
        format!("{}\n", self.0)
    }

    /// The text, to be said on the wire.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl PartialEq for Secret {
    /// Takes a time that depends on the lengths alone, which are no secret: every byte is looked at, wherever the first
    /// difference is, and the compiler cannot know that only the end of the fold matters.
    fn eq(&self, other: &Self) -> bool {
        let (one, other) = (self.0.as_bytes(), other.0.as_bytes());
        let pairs = one.iter().zip(other);
        one.len() == other.len() && pairs.fold(0, |found, (a, b)| black_box(found | (a ^ b))) == 0
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    #[test]
    fn equal_secrets_are_equal_and_no_others() {
        let token = Secret::from(TOKEN);
        assert_eq!(token, Secret::from(TOKEN));
        for other in ["", "0", "0123456789abcde", "0123456789abcdeF", "X123456789abcdef", "0123456789abcdef0"]
        {
            assert_ne!(token, Secret::from(other), "{other}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Some(Secret::from(TOKEN))), "Some(Secret(…))");
    }

    #[test]
    fn a_token_is_long_enough_and_visible() {
        assert_eq!(Secret::read(b" 0123456789abcdef\r\n"), Ok(Secret::from(TOKEN)));
        assert!(Secret::read(&[b'x'; 1024]).is_ok());
        for (text, why) in [
            (&b""[..], "must have 16 to 1024 characters, not 0"),
            (b"0123456789abcde\n", "not 15"),
            (&[b'x'; 1025], "not 1025"),
            (b"01234567 89abcdef", "visible ASCII"),
            (b"0123456789abcde\xff", "visible ASCII"),
            (b"0123456789abcdef\n0123456789abcdef\n", "visible ASCII"),
        ] {
            let said = Secret::read(text).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
