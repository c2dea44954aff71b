//! The documents against the program: links lead somewhere, quotes are exact, service files are sound.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;

use liveswap::config::{self, Origin};
use support::documents::{anchors, blocks, document, documents, links};

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let mut broken = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).expect("a document");
        for link in links(&text).filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = file.parent().expect("a folder").join(path);
            let target = if path.is_empty() { file.clone() } else { target };
            if !target.exists() {
                broken.push(format!("{}: {link}: no such file", file.display()));
            } else if !anchor.is_empty()
                && !anchors(&fs::read_to_string(&target).expect("text")).contains(&anchor.into())
            {
                broken.push(format!("{}: {link}: no such heading", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn what_the_guide_quotes_stands_in_the_examples() {
    let guide = document("docs/guide.md");
    let text = fs::read_to_string(&guide).expect("the guide");
    let mut quotes = 0;
    for block in blocks(&text) {
        // A quote names its source in the line before it.
        let Some(source) = links(block.before).last().filter(|link| link.starts_with("examples/")) else {
            continue;
        };
        let whole = fs::read_to_string(guide.with_file_name(source)).expect("a source");
        assert!(whole.contains(block.text), "{source} does not say:\n{}", block.text);
        quotes += 1;
    }
    assert!(quotes >= 4, "only {quotes} quotes were found");
}

#[test]
fn every_service_file_in_the_documents_is_sound() {
    let mut files = 0;
    for file in documents() {
        let text = fs::read_to_string(&file).expect("a document");
        for block in blocks(&text).into_iter().filter(|block| block.language == "toml") {
            let origin = Origin { path: "/srv/web.toml".into(), cpus: 2 };
            // An excerpt lacks the one key that must be there.
            let excerpt = match (block.text.contains("[service]"), block.text.contains("command =")) {
                (true, true) => block.text.to_owned(),
                (true, false) => block.text.replace("[service]\n", "[service]\ncommand = [\"./server\"]\n"),
                (false, _) => format!("{}\n[service]\ncommand = [\"./server\"]\n", block.text),
            };
            if let Err(problems) = config::parse(&excerpt, &origin) {
                panic!("{}: {}", file.display(), problems.render(false));
            }
            files += 1;
        }
    }
    assert!(files >= 5, "only {files} service files were found");
}
