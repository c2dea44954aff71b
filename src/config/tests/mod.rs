//! The room as a whole: what good files mean, and what is said of bad ones.

mod accepted;
mod refused;
mod rendered;
mod robust;

use super::*;

/// The shortest good file.
const MINIMAL: &str = "[service]\ncommand = [\"a\"]\n";

fn origin() -> Origin {
    Origin { path: "/srv/web.toml".into(), cpus: 6 }
}

fn accept(text: &str) -> ServiceSpec {
    parse(text, &origin()).unwrap_or_else(|problems| panic!("{}\n{text}", problems.render(false)))
}

fn refuse(text: &str) -> Diagnostics {
    match parse(text, &origin()) {
        Ok(spec) => panic!("was accepted:\n{text}\n{spec:#?}"),
        Err(problems) => problems,
    }
}

/// What each problem says, and the text that its caret stands under.
fn said<'a>(text: &'a str, problems: &Diagnostics) -> Vec<(String, &'a str)> {
    let problems = problems.problems().iter();
    problems.map(|problem| (problem.message.clone(), &text[problem.span.clone()])).collect()
}
