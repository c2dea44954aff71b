//! Rust source text, as far as the rules of the house need to understand it.

use std::ops::RangeInclusive;

/// What may follow `#[cfg(test)]` and other attributes.
const ITEMS: &str = "async const enum extern fn impl macro_rules mod pub static struct trait type unsafe use";

/// Returns the text with blanks in the place of comments, strings and characters. Lines and columns stay what they are.
pub fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let dead = comment(rest).or_else(|| literal(rest));
        let length = dead.unwrap_or_else(|| word(rest).len().max(first.len_utf8()));
        let (token, after) = rest.split_at(length);
        match dead {
            Some(_) => code.extend(token.chars().map(|c| if c == '\n' { c } else { ' ' })),
            None => code.push_str(token),
        }
        rest = after;
    }
    code
}

/// Returns the length of the comment at the start of `rest`. Block comments nest.
fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    let mut depth = 0;
    let mut marks = rest.char_indices().peekable();
    while let Some((place, first)) = marks.next() {
        let pair = (first, marks.peek().map(|(_, second)| *second));
        match pair {
            ('/', Some('*')) => depth += 1,
            ('*', Some('/')) => depth -= 1,
            _ if depth == 0 => return None,
            _ => continue,
        }
        marks.next();
        if depth == 0 {
            return Some(place + 2);
        }
    }
    (depth > 0).then_some(rest.len())
}

/// Returns the length of the string or character at the start of `rest`, without the prefixes `b` and `c`.
fn literal(rest: &str) -> Option<usize> {
    let prefix = word(rest);
    if matches!(prefix, "r" | "br" | "cr") {
        let opening = &rest[prefix.len()..];
        let hashes = opening.len() - opening.trim_start_matches('#').len();
        let inner = opening[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let start = rest.len() - inner.len();
        return Some(inner.find(&end).map_or(rest.len(), |place| start + place + end.len()));
    }
    let quote = rest.chars().next().filter(|first| matches!(first, '"' | '\''))?;
    let mut inner = rest[1..].chars();
    let (first, second) = (inner.next(), inner.next());
    // Else it is a lifetime or a label.
    if quote == '\'' && first != Some('\\') && second != Some('\'') {
        return None;
    }
    let mut is_escaped = false;
    let end = rest.char_indices().skip(1).find(|(_, c)| {
        let is_end = *c == quote && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        is_end
    });
    Some(end.map_or(rest.len(), |(place, _)| place + 1))
}

/// Returns the identifier, keyword or number at the start of `rest`; empty if there is none.
fn word(rest: &str) -> &str {
    &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())]
}

/// Returns the place after the item at the start of `code`, which is blanked: after its block, or its semicolon.
fn item_end(code: &str) -> usize {
    let mut depth = 0;
    let end = code.char_indices().find(|(_, c)| {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        depth <= 0 && matches!(c, ';' | '}')
    });
    end.map_or(code.len(), |(place, _)| place + 1)
}

/// Returns the line of `place`, from 1.
fn line(code: &str, place: usize) -> usize {
    code[..place].matches('\n').count() + 1
}

/// Returns each item under `#[cfg(test)]`: its lines, and its text after the attribute.
///
/// # Panics
///
/// If the attribute stands on a field, a statement or an arm. This reader does not know where these end.
pub fn test_items(code: &str) -> Vec<(RangeInclusive<usize>, &str)> {
    const ATTRIBUTE: &str = "#[cfg(test)]";
    let items = code.match_indices(ATTRIBUTE).map(|(start, _)| {
        let mut item = code[start + ATTRIBUTE.len()..].trim_start();
        while item.starts_with("#[") {
            item = item[item.find(']').map_or(item.len(), |end| end + 1)..].trim_start();
        }
        assert!(
            ITEMS.split(' ').any(|first| first == word(item)),
            "line {}: {ATTRIBUTE} on what is no item",
            line(code, start)
        );
        let item = &item[..item_end(item)];
        let end = item.as_ptr().addr() - code.as_ptr().addr() + item.len();
        (line(code, start)..=line(code, end), item)
    });
    items.collect()
}

/// Returns the lines of each function that has a body.
pub fn functions(code: &str) -> Vec<RangeInclusive<usize>> {
    let starts = code
        .match_indices("fn ")
        .filter(|(start, _)| !code[..*start].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
    let lines = starts.map(|(start, _)| (start, start + item_end(&code[start..])));
    lines
        .filter(|(_, end)| code[..*end].ends_with('}'))
        .map(|(start, end)| line(code, start)..=line(code, end))
        .collect()
}
