//! Splits a stream of bytes into lines, in bounded memory.
//!
//! No byte but the newlines themselves is lost, added or reordered, and the splitter never holds more than one
//! unfinished line of the limit's length beside the bytes of the last push.

use serde::{Deserialize, Serialize};

/// A stream of bytes that is taken apart into lines.
///
/// After each push all lines should be taken, or the memory is not bounded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lines {
    limit: usize,
    buffer: Vec<u8>,
    /// Where the next line begins in the buffer.
    start: usize,
    /// Up to where the buffer is known to hold no newline, so that no byte is searched twice.
    searched: usize,
}

/// A line, or a piece of one that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The bytes without the newline.
    pub bytes: &'a [u8],
    /// Whether a newline ended it; without one it is a piece, and more of the line may follow.
    pub ended: bool,
}

impl Lines {
    /// Makes a splitter whose lines have at most `limit` bytes, the newline not counted. The limit is at least 4, so
    /// that a character always fits.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.max(4), buffer: Vec::new(), start: 0, searched: 0 }
    }

    /// Lets lines be longer from the next one on.
    pub fn raise_limit(&mut self, limit: usize) {
        self.limit = self.limit.max(limit);
    }

    /// Takes in the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next line, or the next piece of a line that is longer than the limit, or `None` until more is
    /// pushed. A piece ends between two characters where the line is UTF-8.
    pub fn next_line(&mut self) -> Option<Line<'_>> {
        let rest = &self.buffer[self.start..];
        // One byte beyond the limit tells a line that just fits from one that does not.
        let window = &rest[..rest.len().min(self.limit + 1)];
        let searched = self.searched - self.start;
        let newline = window[searched..].iter().position(|&byte| byte == b'\n');
        let (len, ended) = match newline {
            Some(offset) => (searched + offset, true),
            None if window.len() > self.limit => (whole_characters(window, self.limit), false),
            None => {
                self.searched = self.start + window.len();
                return None;
            }
        };
        let begin = self.start;
        self.start += len + usize::from(ended);
        // What a piece leaves behind was searched, but it is at most three bytes.
        self.searched = self.start;
        Some(Line { bytes: &self.buffer[begin..begin + len], ended })
    }

    /// Returns what is left where the stream ends without a newline, if anything is.
    pub fn finish(&mut self) -> Option<Line<'_>> {
        let begin = self.start;
        self.start = self.buffer.len();
        self.searched = self.start;
        let bytes = &self.buffer[begin..];
        (!bytes.is_empty()).then_some(Line { bytes, ended: false })
    }
}

/// Returns where to cut `bytes`, at `limit` or up to three bytes before it, so that no UTF-8 character is torn.
fn whole_characters(bytes: &[u8], limit: usize) -> usize {
    let continues = |at: usize| bytes[at] & 0b1100_0000 == 0b1000_0000;
    (limit - 3..=limit).rev().find(|&at| !continues(at)).unwrap_or(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes the chunks and returns all that comes out: pieces are marked by a trailing `…`.
    fn split(limit: usize, chunks: &[&str]) -> Vec<String> {
        let mut lines = Lines::new(limit);
        let mut all = Vec::new();
        let text = |line: Line<'_>| {
            let text = str::from_utf8(line.bytes).unwrap();
            if line.ended { text.to_owned() } else { format!("{text}…") }
        };
        for chunk in chunks {
            lines.push(chunk.as_bytes());
            while let Some(line) = lines.next_line() {
                all.push(text(line));
            }
        }
        all.extend(lines.finish().map(text));
        all
    }

    #[test]
    fn lines_come_out_whole_however_they_went_in() {
        assert_eq!(split(80, &["one\ntwo\n"]), ["one", "two"]);
        assert_eq!(split(80, &["o", "ne", "\n", "\nthr", "ee\n"]), ["one", "", "three"]);
        assert_eq!(split(80, &["one\nleft"]), ["one", "left…"]);
        assert_eq!(split(80, &[]), [""; 0]);
        assert_eq!(split(80, &["cr\r\n"]), ["cr\r"]);
    }

    #[test]
    fn a_line_of_just_the_limit_is_whole_and_a_longer_one_comes_in_pieces() {
        assert_eq!(split(4, &["abcd\nabcde\nx\n"]), ["abcd", "abcd…", "e", "x"]);
        assert_eq!(split(4, &["abcd", "\n"]), ["abcd"]);
        assert_eq!(split(4, &["abcdefghij"]), ["abcd…", "efgh…", "ij…"]);
    }

    #[test]
    fn a_limit_can_be_raised_between_two_lines() {
        let mut lines = Lines::new(4);
        lines.push(b"abcd\nabcdefgh\n");
        assert_eq!(lines.next_line(), Some(Line { bytes: b"abcd", ended: true }));
        lines.raise_limit(8);
        assert_eq!(lines.next_line(), Some(Line { bytes: b"abcdefgh", ended: true }));
    }

    #[test]
    fn a_piece_does_not_tear_a_character() {
        assert_eq!(split(4, &["abcπd\n"]), ["abc…", "πd"]);
        assert_eq!(split(5, &["a😀😀\n"]), ["a😀…", "😀"]);
        let mut lines = Lines::new(4);
        lines.push(&[0x80; 9]);
        assert_eq!(lines.next_line(), Some(Line { bytes: &[0x80; 4], ended: false }));
        assert_eq!(lines.next_line(), Some(Line { bytes: &[0x80; 4], ended: false }));
        assert_eq!(lines.next_line(), None);
    }

    #[test]
    fn nothing_is_lost_and_memory_stays_bounded() {
        // Miri takes minutes for what is a moment elsewhere.
        let length = if cfg!(miri) { 200 } else { 50_000_u32 };
        let stream: Vec<u8> =
            (0..length).map(|i| if i % 97 == 0 { b'\n' } else { i.to_le_bytes()[0] }).collect();
        for size in [1, 2, 3, 7, 64, 65, 4096] {
            let mut lines = Lines::new(64);
            let mut joined = Vec::new();
            for chunk in stream.chunks(size) {
                lines.push(chunk);
                while let Some(line) = lines.next_line() {
                    assert!(line.bytes.len() <= 64 && !line.bytes.contains(&b'\n'));
                    joined.extend_from_slice(line.bytes);
                    joined.extend_from_slice(if line.ended { b"\n" } else { b"" });
                }
                assert!(lines.buffer.len() <= 65 + size);
            }
            joined.extend(lines.finish().iter().flat_map(|line| line.bytes));
            assert_eq!(joined, stream, "chunks of {size}");
        }
    }
}
