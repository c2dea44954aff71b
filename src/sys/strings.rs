//! C strings for a process to be, in one piece of memory.

use std::ffi::{CStr, c_char};
use std::io;
use std::ptr;

/// Some C strings in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CStrings {
    /// Each with its NUL.
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl CStrings {
    /// Returns the given texts.
    ///
    /// # Errors
    /// As [`CStrings::push`].
    pub fn of<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> io::Result<Self> {
        let mut strings = Self::default();
        texts.into_iter().try_for_each(|text| strings.push(&[text.as_ref()]))?;
        Ok(strings)
    }

    /// Adds a string that is made of `parts`.
    ///
    /// # Errors
    /// `InvalidInput` for a NUL, which would end it early.
    pub fn push(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        if parts.iter().any(|part| part.contains(&0)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a text with a NUL in it"));
        }
        self.starts.push(self.bytes.len());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
        Ok(())
    }

    /// Adds `NAME=` with room for a number that is not known yet; [`CStrings::write_number`] fills it in.
    ///
    /// # Errors
    /// As [`CStrings::push`].
    pub(super) fn push_number(&mut self, name: &CStr) -> io::Result<Number> {
        self.push(&[name.to_bytes(), b"="])?;
        let at = self.bytes.len() - 1;
        self.bytes.extend_from_slice(&[0; Number::DIGITS]);
        Ok(Number { at })
    }

    /// Fills in a number that was left open. Async-signal-safe.
    pub(super) fn write_number(&mut self, number: &Number, value: u32) {
        let mut digits = [b'0'; Number::DIGITS];
        let mut rest = value;
        let mut count = 0;
        while let Some(digit) = digits.get_mut(count)
            && (rest > 0 || count == 0)
        {
            *digit += (rest % 10) as u8;
            rest /= 10;
            count += 1;
        }
        // What follows the digits are the NULs that were there from the start.
        let places = self.bytes.iter_mut().skip(number.at);
        for (place, digit) in places.zip(digits.iter().take(count).rev()) {
            *place = *digit;
        }
    }

    /// Returns the strings.
    pub fn iter(&self) -> impl Iterator<Item = &CStr> {
        let text = |&start: &usize| CStr::from_bytes_until_nul(self.bytes.get(start..)?).ok();
        self.starts.iter().filter_map(text)
    }
}

/// A number in a string that is filled in later.
#[derive(Debug)]
pub(super) struct Number {
    at: usize,
}

impl Number {
    /// How many digits the largest has.
    const DIGITS: usize = 10;
}

/// Room for the pointers to some strings, made in good time as it takes an allocation.
#[derive(Debug)]
pub(super) struct Pointers(Vec<*const c_char>);

impl Pointers {
    pub(super) fn room_for(strings: &[&CStrings]) -> Self {
        Self(Vec::with_capacity(strings.iter().map(|strings| strings.starts.len()).sum::<usize>() + 1))
    }

    /// Returns the vector of the strings for which there is room. Async-signal-safe.
    pub(super) fn to<'a>(&'a mut self, strings: &[&'a CStrings]) -> Vector<'a> {
        self.0.clear();
        self.0.extend(strings.iter().flat_map(|strings| strings.iter()).map(CStr::as_ptr));
        self.0.push(ptr::null());
        Vector(&self.0)
    }
}

/// Pointers to C strings with a null pointer at the end, as execve(2) wants them.
pub(super) struct Vector<'a>(&'a [*const c_char]);

impl Vector<'_> {
    pub(super) fn as_ptr(&self) -> *const *const c_char {
        self.0.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    #[test]
    fn strings_come_back_in_their_order() {
        let mut strings = CStrings::of(["one", "", "three"]).unwrap();
        strings.push(&[b"NAME", b"=", b"value"]).unwrap();
        assert_eq!(strings.iter().collect::<Vec<_>>(), [c"one", c"", c"three", c"NAME=value"]);
    }

    #[test]
    fn a_nul_is_refused_and_changes_nothing() {
        let mut strings = CStrings::of(["one"]).unwrap();
        assert_eq!(strings.push(&[b"two", b"a\0b"]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(strings, CStrings::of(["one"]).unwrap());
    }

    #[test]
    fn a_number_is_filled_in_where_room_was_left() {
        let mut strings = CStrings::default();
        let number = strings.push_number(c"LISTEN_PID").unwrap();
        strings.push(&[b"LAST"]).unwrap();
        for value in [0, 7, 4_711, u32::MAX] {
            let mut strings = strings.clone();
            strings.write_number(&number, value);
            let expected = CString::new(format!("LISTEN_PID={value}")).unwrap();
            assert_eq!(strings.iter().collect::<Vec<_>>(), [expected.as_c_str(), c"LAST"]);
        }
    }

    #[test]
    fn the_pointers_lead_to_the_strings_and_end_with_null() {
        let strings = [&CStrings::of(["one"]).unwrap(), &CStrings::of(["two"]).unwrap()];
        let mut pointers = Pointers::room_for(&strings);
        let vector = pointers.to(&strings);
        let all = strings.iter().flat_map(|strings| strings.iter());
        let expected: Vec<_> = all.map(CStr::as_ptr).chain([ptr::null()]).collect();
        assert_eq!(vector.0, expected);
        assert_eq!(vector.0.len(), 3);
    }
}
