//! The manager's log, read as it grows.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::failure::Failure;

/// How many lines [`tail`] returns.
const TAIL: usize = 20;

/// A log that is followed.
pub struct Log {
    file: BufReader<File>,
    /// A line whose end is not yet written.
    begun: Vec<u8>,
}

impl Log {
    /// Follows the log at `path` from its beginning.
    ///
    /// # Errors
    ///
    /// [`Failure::SetUp`].
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path)
            .map_err(|error| Failure::set_up(format!("opening {}", path.display()), error))?;
        Ok(Self { file: BufReader::new(file), begun: Vec::new() })
    }

    /// Returns the next whole line, or `None` while there is none. What cannot be read has not been written.
    pub fn next_line(&mut self) -> Option<String> {
        self.file.read_until(b'\n', &mut self.begun).ok()?;
        self.begun.pop_if(|last| *last == b'\n')?;
        let line = String::from_utf8_lossy(&self.begun).into_owned();
        self.begun.clear();
        Some(line)
    }
}

/// Returns the last lines of the log at `path`, as far as it can be read.
pub fn tail(path: &Path) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_come_when_they_are_whole() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut log = Log::open(file.path()).unwrap();
        assert_eq!(log.next_line(), None);
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(log.next_line().as_deref(), Some("one"));
        assert_eq!(log.next_line(), None);
        file.write_all(b"o\n\nthree\n").unwrap();
        assert_eq!(log.next_line().as_deref(), Some("two"));
        assert_eq!(log.next_line().as_deref(), Some(""));
        assert_eq!(log.next_line().as_deref(), Some("three"));
        assert_eq!(log.next_line(), None);
    }

    #[test]
    fn a_tail_is_the_last_lines() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for number in 0..50 {
            writeln!(file, "line {number}").unwrap();
        }
        let lines = tail(file.path());
        assert_eq!((lines.len(), lines[0].as_str(), lines[19].as_str()), (20, "line 30", "line 49"));
        assert!(tail(Path::new("/nonexistent")).is_empty());
    }
}
