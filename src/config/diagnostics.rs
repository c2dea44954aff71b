//! The problems of a service file, as people read them.
//!
//! [`Diagnostics`] owns the text that it points into, so it can be made in one process and shown by another.

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::{Deserialize, Serialize};

use crate::core::printable::{Printable, printable};

/// More problems than this are counted but not shown.
pub(super) const SHOWN_MAX: usize = 100;

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong, in one line.
    pub message: String,
    /// Where, in bytes of the text.
    pub span: Range<usize>,
    /// A few words beside the caret.
    pub label: String,
    /// What would be right.
    pub help: Option<String>,
}

/// All problems of a file, in its order; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostics {
    path: PathBuf,
    text: String,
    problems: Vec<Problem>,
}

impl Diagnostics {
    /// Puts `problems` in the order of the file and their spans within `text`.
    pub(super) fn new(text: &str, path: &Path, mut problems: Vec<Problem>) -> Self {
        for problem in &mut problems {
            let end = floor_char_boundary(text, problem.span.end);
            problem.span = floor_char_boundary(text, problem.span.start.min(end))..end;
        }
        problems.sort_by_key(|problem| (problem.span.start, problem.span.end));
        Self { path: path.to_owned(), text: text.to_owned(), problems }
    }

    /// The problems, in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns the problems with the lines that they stand in, a caret under the place and the help beneath.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        // What a file says is quoted, and a file may be anybody's.
        let path = self.path.to_string_lossy();
        let path = printable(&path);
        let mut blocks: Vec<String> = self
            .problems
            .iter()
            .take(SHOWN_MAX)
            .map(|problem| {
                let Problem { message, span, label, help } = problem;
                let (message, label) = (printable(message), printable(label));
                let help = help.as_deref().map(printable);
                let caret = AnnotationKind::Primary.span(span.clone()).label(&*label);
                let snippet = Snippet::source(&self.text).path(&*path).annotation(caret);
                let group = Level::ERROR.primary_title(&*message).element(snippet);
                let help = help.as_deref().map(|help| Level::HELP.message(help));
                renderer.render(&[group.elements(help)])
            })
            .collect();
        if let Some(more) = self.problems.len().checked_sub(SHOWN_MAX).filter(|more| *more > 0) {
            blocks.push(format!("and {more} more"));
        }
        blocks.join("\n\n")
    }

    /// Returns one printable line for a log: `web.toml:3:1: unknown key `comand` in [service] (and 2 more)`.
    pub fn summary(&self) -> String {
        let file = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy();
        let Some(first) = self.problems.first() else { return file.into_owned() };
        let (line, column) = self.position(first.span.start);
        let more = match self.problems.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Printable(format_args!("{file}:{line}:{column}: {}{more}", first.message)).to_string()
    }

    /// Returns the line and the column, in characters, both from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        (line, before[line_start..].trim_start_matches('\u{feff}').chars().count() + 1)
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())
    }
}

impl Error for Diagnostics {}

/// Returns the start of the character at `offset`, or the end of the text.
fn floor_char_boundary(text: &str, offset: usize) -> usize {
    (0..=offset.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}
