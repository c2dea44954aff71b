//! Text from outside, made fit to be printed.
//!
//! A terminal obeys what it is sent, and a reader believes what he sees. So every character that steers a terminal, breaks a
//! line, turns the direction of the text or is drawn as nothing is written as an escape, such as `\x1b`, `\n` or `\u{202e}`.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};

/// The colours and the weight of our own reports (ECMA-48, "select graphic rendition"). None of them hides text.
const STYLES: [&str; 15] =
    ["0", "1", "2", "31", "32", "33", "34", "35", "36", "91", "92", "93", "94", "95", "96"];

/// Tells whether a character is drawn as itself, and does nothing else.
///
/// The rest is: control characters (C0, DEL, C1), line and paragraph separators, and all that Unicode has no glyph for
/// (`Default_Ignorable_Code_Point`: bidirectional controls, zero-width and tag characters, fillers). The variation selectors
/// U+FE00 to U+FE0F are let through, as every second emoji has one.
#[must_use]
pub fn is_printable(character: char) -> bool {
    !(character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'))
}

/// Shows a value as one line that can neither steer a terminal nor be taken for another line.
#[derive(Clone, Copy, Debug)]
pub struct Printable<T>(pub T);

impl<T: Display> Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// Passes on what is written to it, with everything escaped that is not printable.
#[derive(Debug)]
pub struct Escaping<W>(pub W);

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, character)) = rest.char_indices().find(|(_, character)| !is_printable(*character))
        {
            self.0.write_str(&rest[..at])?;
            escape(&mut self.0, character)?;
            rest = &rest[at + character.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

fn escape(to: &mut impl Write, character: char) -> fmt::Result {
    match character {
        '\n' => to.write_str("\\n"),
        '\r' => to.write_str("\\r"),
        '\t' => to.write_str("\\t"),
        '\0'..='\u{ff}' => write!(to, "\\x{:02x}", u32::from(character)),
        other => write!(to, "\\u{{{:x}}}", u32::from(other)),
    }
}

/// Returns a text as [`Printable`] shows it.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) { text.into() } else { Printable(text).to_string().into() }
}

/// Returns bytes as [`Printable`] shows text, tabs as they are; a byte that is no UTF-8 is escaped as well.
#[must_use]
pub fn printable_bytes(bytes: &[u8]) -> String {
    let mut shown = String::new();
    for chunk in bytes.utf8_chunks() {
        for piece in chunk.valid().split_inclusive('\t') {
            let (text, tab) = piece.strip_suffix('\t').map_or((piece, ""), |text| (text, "\t"));
            shown.extend([&*printable(text), tab]);
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

/// Returns a text of several lines with its newlines, tabs and our own colours as they are, and the rest of it escaped.
///
/// It is for text that is laid out already; the values in it went through [`Printable`] before.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let plain = rest.find(['\n', '\t', '\x1b']).unwrap_or(rest.len());
        shown.push_str(&printable(&rest[..plain]));
        rest = &rest[plain..];
        // At most a character of one byte, or a style.
        let kept = if rest.starts_with('\x1b') { style(rest) } else { Some(rest.len().min(1)) };
        match kept {
            Some(length) => shown.push_str(&rest[..length]),
            None => shown.push_str("\\x1b"),
        }
        rest = &rest[kept.unwrap_or(1)..];
    }
    shown
}

/// Returns the length of the style that a text begins with, if it is one of ours.
fn style(text: &str) -> Option<usize> {
    let (number, _) = text.strip_prefix("\x1b[")?.split_once('m')?;
    STYLES.contains(&number).then_some("\x1b[m".len() + number.len())
}

/// Returns JSON that means the same and has no character that is not printable: in JSON such stand in strings only, where
/// `\u202e` is another way to write one (RFC 8259, section 7).
#[must_use]
pub fn printable_json(json: &str) -> Cow<'_, str> {
    if json.chars().all(|character| character == '\n' || is_printable(character)) {
        return json.into();
    }
    let mut written = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if character == '\n' || is_printable(character) {
            written.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a String cannot fail.
            let _ = write!(written, "\\u{unit:04x}");
        }
    }
    written.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_breaks_or_hides_is_escaped_and_all_else_is_not() {
        assert_eq!(printable("4 of 4 ready, π ✓ e\u{301} ❤\u{fe0f}"), "4 of 4 ready, π ✓ e\u{301} ❤\u{fe0f}");
        assert_eq!(printable("\x1b]0;x\x07\u{9b}\x7f"), r"\x1b]0;x\x07\x9b\x7f");
        assert_eq!(printable("a\nb\r\tc\0"), r"a\nb\r\tc\x00");
        assert_eq!(
            printable("\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}"),
            r"\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}"
        );
        assert_eq!(printable("\u{200b}\u{feff}\u{e0041}\u{ad}"), r"\u{200b}\u{feff}\u{e0041}\xad");
        assert_eq!(Printable(format_args!("{}\n", "\x1b")).to_string(), r"\x1b\n");
    }

    #[test]
    fn bytes_keep_their_tabs_and_show_what_is_no_text() {
        assert_eq!(printable_bytes(b"a\tb\x1b[31m\xff\xc3\xa9\r"), "a\tb\\x1b[31m\\xff\u{e9}\\r");
    }

    #[test]
    fn laid_out_text_keeps_its_lines_and_our_styles_alone() {
        let ours = "\x1b[1m\x1b[91merror\x1b[0m: x\n\tcaret\n";
        assert_eq!(printable_lines(ours), ours);
        assert_eq!(printable_lines("\x1b[8m\x1b[31;8mx\x1b[2J\x1b"), r"\x1b[8m\x1b[31;8mx\x1b[2J\x1b");
        assert_eq!(printable_lines("a\r\u{202e}\n"), "a\\r\\u{202e}\n");
    }

    #[test]
    fn json_means_the_same_in_printable_characters() {
        let text = "\u{9b}\u{202e}\x7f\u{e0041}π\"\\";
        let json = serde_json::to_string(&[text]).unwrap();
        let escaped = printable_json(&json);
        assert!(escaped.chars().all(is_printable) && escaped.contains('π'), "{escaped}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&escaped).unwrap(), [text]);
    }
}
