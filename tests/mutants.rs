//! Does the simulator find bugs? Each file in `tests/core/mutants` breaks the core in one way, and the simulator must notice.
//!
//! Such a file says in a sentence what it breaks; below stand the lines to change, as a diff writes them, but without their
//! place: what is taken away must stand in `src/core` exactly once. One that no longer fits is an error. The core itself
//! knows nothing of this: each mutant is a copy of it, built together with the simulator as a program of its own.
//! `cargo test --test mutants -- --ignored --nocapture` prints who is caught by what, after how many seeds; `MUTANT=stop` tries
//! those alone whose name contains that.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::{env, fs, io, thread};

/// A way to break the core.
struct Mutant {
    name: String,
    /// What it breaks.
    says: String,
    /// The lines that go, and those that come in their place.
    old: String,
    new: String,
}

impl Mutant {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("a mutant");
        let (says, diff) = text.split_once("\n\n").unwrap_or_else(|| panic!("{}: no diff", path.display()));
        let side = |mark: char| {
            let lines = diff.lines().filter(|line| line.starts_with([' ', mark]));
            lines.flat_map(|line| [&line[1..], "\n"]).collect::<String>()
        };
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        Self { name, says: says.replace('\n', " "), old: side('-'), new: side('+') }
    }

    /// Returns the one file of the core that the mutant changes, and what it makes of it.
    fn change(&self, core: &[(PathBuf, String)]) -> Result<(PathBuf, String), String> {
        // Whole lines.
        let (old, new) = (format!("\n{}", self.old), format!("\n{}", self.new));
        let fits = core.iter().filter(|(_, text)| text.contains(&old)).collect::<Vec<_>>();
        match fits[..] {
            [(path, text)] if text.matches(&old).count() == 1 => Ok((path.clone(), text.replace(&old, &new))),
            [] => Err(format!("{}: its lines no longer stand in the core:\n{}", self.name, self.old)),
            _ => Err(format!("{}: its lines stand there more than once:\n{}", self.name, self.old)),
        }
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a folder, by their names, with the folders in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.into_iter().flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The files of a folder relative to it, with what stands in them.
fn texts(folder: &Path) -> Vec<(PathBuf, String)> {
    let text = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source file");
        (path.strip_prefix(folder).expect("it is inside").to_owned(), text)
    };
    files(folder).into_iter().map(text).collect()
}

/// All mutants; of these only those whose name contains `MUTANT`.
fn mutants() -> Vec<Mutant> {
    let wanted = env::var("MUTANT").unwrap_or_default();
    let paths = files(&repository().join("tests/core/mutants")).into_iter();
    let diffs = paths.filter(|path| path.extension().is_some_and(|end| end == "diff"));
    diffs.map(|path| Mutant::read(&path)).filter(|mutant| mutant.name.contains(&wanted)).collect()
}

/// Writes a file, unless that is what stands there: cargo builds what has changed.
fn put(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().expect("a file is in a folder"))?;
    fs::write(path, text)
}

/// The package of all mutants: one program each, and one of the core as it is.
struct Nursery {
    folder: PathBuf,
    manifest: String,
}

impl Nursery {
    fn new() -> io::Result<Self> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
        for (path, text) in texts(&repository().join("tests/core")) {
            put(&folder.join(path), &text)?;
        }
        put(&folder.join("Cargo.lock"), &fs::read_to_string(repository().join("Cargo.lock"))?)?;
        let manifest = "[package]\nname = \"mutants\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n\
            serde = { version = \"1\", features = [\"derive\"] }\nserde_json = \"1\"\n\
            [profile.dev]\ndebug = 0\nincremental = false\n";
        Ok(Self { folder, manifest: manifest.into() })
    }

    /// Adds the program `name`: the core with one file changed, or with none.
    fn add(
        &mut self,
        name: &str,
        core: &[(PathBuf, String)],
        change: Option<&(PathBuf, String)>,
    ) -> io::Result<()> {
        let folder = self.folder.join(name);
        for (path, text) in core {
            let changed = change.filter(|(changed, _)| changed == path);
            put(&folder.join("core").join(path), changed.map_or(text, |(_, text)| text))?;
        }
        put(&folder.join("main.rs"), &fs::read_to_string(self.folder.join("mutants/hunt.rs"))?)?;
        // What all rooms may know: how paths are written, and the plain types.
        let leaf = fs::read_to_string(repository().join("src/path_text.rs"))?;
        put(&folder.join("path_text.rs"), &leaf)?;
        for (path, text) in texts(&repository().join("src/plain")) {
            put(&folder.join("plain").join(path), &text)?;
        }
        let _ = write!(self.manifest, "[[bin]]\nname = \"{name}\"\npath = \"{name}/main.rs\"\n");
        Ok(())
    }

    fn build(&self) -> io::Result<()> {
        put(&self.folder.join("Cargo.toml"), &self.manifest)?;
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--offline", "--bins"])
            .current_dir(&self.folder)
            .env("CARGO_TARGET_DIR", self.folder.join("target"))
            .env("RUSTFLAGS", "--cap-lints allow")
            .status()?;
        assert!(status.success(), "every mutant must compile");
        Ok(())
    }

    /// Lets the simulator loose on a program; returns the first seed that fails and why, if any does.
    fn hunt(&self, name: &str) -> Option<(u64, String)> {
        let program = self.folder.join("target/debug").join(name);
        let output = Command::new(program).stderr(Stdio::null()).output().expect("a mutant runs");
        let words = String::from_utf8_lossy(&output.stdout);
        let (seed, why) = words.trim().split_once(' ')?;
        Some((seed.parse().expect("the number of a seed"), why.into()))
    }
}

#[test]
fn every_mutant_fits_the_core() {
    let core = texts(&repository().join("src/core"));
    let wrong: Vec<_> = mutants().iter().filter_map(|mutant| mutant.change(&core).err()).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
#[ignore = "builds the core once for each mutant, which takes minutes"]
fn every_mutant_is_caught() -> io::Result<()> {
    const UNCHANGED: &str = "unchanged";
    let (core, mutants) = (texts(&repository().join("src/core")), mutants());
    let mut nursery = Nursery::new()?;
    nursery.add(UNCHANGED, &core, None)?;
    for mutant in &mutants {
        let change = mutant.change(&core).unwrap_or_else(|wrong| panic!("{wrong}"));
        nursery.add(&mutant.name, &core, Some(&change))?;
    }
    nursery.build()?;

    let (next, survivors) = (Mutex::new(mutants.iter()), Mutex::new(Vec::new()));
    let hunt = || {
        while let Some(mutant) = { next.lock().expect("no hunt panics").next() } {
            match nursery.hunt(&mutant.name) {
                Some((seed, why)) => {
                    let why: String = why.chars().take(90).collect();
                    println!("{:32} caught by seed {seed:4}: {why}", mutant.name);
                }
                None => survivors
                    .lock()
                    .expect("no hunt panics")
                    .push(format!("{}: {}", mutant.name, mutant.says)),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(hunt);
        }
    });
    assert_eq!(
        nursery.hunt(UNCHANGED),
        None,
        "the core as it is must pass, or it is no wonder that all are caught"
    );
    let survivors = survivors.into_inner().expect("no hunt panics");
    println!("{} of {} mutants are caught", mutants.len() - survivors.len(), mutants.len());
    assert!(survivors.is_empty(), "these survive:\n{}", survivors.join("\n"));
    Ok(())
}
