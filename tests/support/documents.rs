//! The documents as text: their blocks, links and headings.

use std::fs;
use std::path::{Path, PathBuf};

/// A fenced block of a document.
pub struct Block<'a> {
    pub language: &'a str,
    pub text: &'a str,
    /// The last line before it that is not blank.
    pub before: &'a str,
}

/// The fenced blocks of a document, in its order.
pub fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some((before, opened)) = rest.split_once("```") {
        let (language, opened) = opened.split_once('\n').expect("a fence is a line");
        let (text, after) = opened.split_once("```\n").expect("a fence that is closed");
        let before = before.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        blocks.push(Block { language, text, before });
        rest = after;
    }
    blocks
}

/// The text of all `code` outside of blocks, a line end in it as a blank.
pub fn spans(text: &str) -> Vec<String> {
    let mut spans = Vec::new();
    for paragraph in text.split("```").step_by(2).flat_map(|part| part.split("\n\n")) {
        let mut rest = paragraph;
        while let Some(start) = rest.find('`') {
            let fence = rest[start..].len() - rest[start..].trim_start_matches('`').len();
            let opened = &rest[start + fence..];
            let Some((span, after)) = opened.split_once(&"`".repeat(fence)) else { break };
            let words: Vec<_> = span.split_whitespace().collect();
            spans.push(words.join(" "));
            rest = after;
        }
    }
    spans
}

/// The targets of all `[text](target)`.
pub fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0))
}

/// The names under which headings can be linked to, by the rules of the common forges.
pub fn anchors(text: &str) -> Vec<String> {
    let headings =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let slug = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|one| one.is_alphanumeric() || matches!(one, '-' | '_')).collect()
    };
    headings.map(slug).collect()
}

/// The paths of the documents.
pub fn documents() -> Vec<PathBuf> {
    let mut found = vec![document("README.md"), document("SECURITY.md"), document("CHANGELOG.md")];
    for folder in ["docs", "docs/adr"] {
        let entries = fs::read_dir(document(folder)).expect("a folder of documents");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        found.extend(paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    found
}

/// The path of a file of the repository.
pub fn document(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
