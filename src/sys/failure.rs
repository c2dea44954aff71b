//! Why a process could not become its program, as its child reports it and as people read it.

use std::fmt;
use std::io;

use super::interpreter::Interpreter;
use super::spawn::Step;

/// Why a process could not become its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it was doing.
    pub step: Step,
    /// The error's number (errno(3)).
    pub errno: i32,
    /// What the program is to be interpreted by, where that is to blame and not the program.
    pub interpreter: Interpreter,
}

impl Failure {
    /// How many bytes it takes in a report at most: what write(2) puts into a pipe in one piece.
    pub(super) const LENGTH: usize = 128;

    /// Returns the step's code, the error's number and the interpreter's name, as a report has them, and how many bytes that are.
    pub(super) fn encode(self) -> ([u8; Self::LENGTH], usize) {
        let mut text = [0; Self::LENGTH];
        let errno = self.errno.to_ne_bytes();
        let parts =
            [self.step.encode()].into_iter().chain(errno).chain(self.interpreter.name().iter().copied());
        let mut length = 0;
        for (to, from) in text.iter_mut().zip(parts) {
            *to = from;
            length += 1;
        }
        (text, length)
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let [code, a, b, c, d, interpreter @ ..] = bytes else { return None };
        let errno = i32::from_ne_bytes([*a, *b, *c, *d]);
        Some(Self { step: Step::decode(*code)?, errno, interpreter: Interpreter::named(interpreter) })
    }

    /// Returns the error in words, with the interpreter that it is about.
    pub fn reason(self) -> String {
        let error = io::Error::from_raw_os_error(self.errno);
        let name = self.interpreter.name();
        if name.is_empty() {
            return error.to_string();
        }
        let hint = if name.ends_with(b"\r") {
            "; the line ends in a carriage return: save the file with the line ends of Unix"
        } else {
            ""
        };
        format!("its interpreter `{}`: {error}{hint}", String::from_utf8_lossy(name).escape_debug())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.reason())
    }
}
