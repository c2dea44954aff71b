//! Takes a TOML tree apart key by key, and collects what is wrong instead of stopping at the first.
//!
//! A [`Table`] remembers which keys were asked for; [`Table::finish`] reports the others as unknown. So the code that
//! reads a table is the only list of its keys. A table that the file lacks is read all the same, as an empty one: the
//! defaults stand in one place.

use std::cell::RefCell;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::diagnostics::{Problem, SHOWN_MAX};
use super::suggest::closest;

/// A range of bytes of the file.
pub(super) type Span = Range<usize>;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub value: T,
    /// The key, or the element itself in an array.
    pub key: Span,
    pub span: Span,
}

impl<T> At<T> {
    pub fn value(self) -> T {
        self.value
    }
}

impl<T> At<Vec<At<T>>> {
    pub fn values(self) -> Vec<T> {
        self.value.into_iter().map(At::value).collect()
    }
}

/// What is wrong with one value. The message goes on from the key's name: "must be a string".
#[derive(Debug)]
pub(super) struct Flaw {
    message: String,
    label: String,
    help: Option<String>,
}

impl Flaw {
    pub fn new(message: impl Into<String>, label: impl Into<String>) -> Self {
        Self { message: message.into(), label: label.into(), help: None }
    }

    /// A value of the wrong type.
    pub fn kind(message: impl Into<String>, found: &DeValue<'_>) -> Self {
        let label = match found {
            DeValue::String(_) => "this is a string",
            DeValue::Integer(_) => "this is an integer",
            DeValue::Float(_) => "this is a float",
            DeValue::Boolean(_) => "this is a boolean",
            DeValue::Datetime(_) => "this is a date or time",
            DeValue::Array(_) => "this is an array",
            DeValue::Table(_) => "this is a table",
        };
        Self::new(message, label)
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// The problems found so far.
#[derive(Debug)]
pub(super) struct Problems {
    list: RefCell<Vec<Problem>>,
    unknown: RefCell<Vec<Unknown>>,
    /// The keys of each table read so far.
    known: RefCell<Vec<(&'static str, Vec<&'static str>)>>,
    /// What may have been misread since its syntax is broken.
    shadows: Vec<Span>,
}

/// A key that its table does not have.
#[derive(Debug)]
struct Unknown {
    key: String,
    table: &'static str,
    span: Span,
}

impl Problems {
    /// Begins with the syntax errors of the file, and what they make doubtful.
    pub fn new(syntax: Vec<Problem>, shadows: Vec<Span>) -> Self {
        Self { list: syntax.into(), unknown: RefCell::default(), known: RefCell::default(), shadows }
    }

    /// Reports what can be said of one place alone, unless a syntax error casts a doubt on it.
    pub fn report(&self, span: Span, flaw: Flaw) {
        if self
            .shadows
            .iter()
            .any(|shadow| span.start < shadow.end && shadow.start < span.end.max(span.start + 1))
        {
            return;
        }
        let Flaw { message, label, help } = flaw;
        self.list.borrow_mut().push(Problem { message, span, label, help });
    }

    /// Reports what follows from several places, or from what is missing: only where the whole file could be read.
    pub fn conclude(&self, span: Span, flaw: Flaw) {
        if self.shadows.is_empty() {
            self.report(span, flaw);
        }
    }

    /// Returns all problems, unknown keys included.
    pub fn into_list(self) -> Vec<Problem> {
        let known = self.known.take();
        let mut unknown = self.unknown.take();
        unknown.sort_by_key(|unknown| unknown.span.start);
        for (place, Unknown { key, table, span }) in unknown.into_iter().enumerate() {
            let message = if table.is_empty() {
                format!("unknown key `{}`", shown(&key))
            } else {
                format!("unknown key `{}` in {table}", shown(&key))
            };
            if place >= SHOWN_MAX {
                self.report(span, Flaw::new(message, "unknown key"));
                continue;
            }
            let here: Vec<&str> = keys_of(&known, table).collect();
            let homes: Vec<&str> = known
                .iter()
                .filter(|(name, keys)| name.starts_with('[') && keys.contains(&key.as_str()))
                .map(|(name, _)| *name)
                .collect();
            let help = match (homes.as_slice(), closest(&key, &here)) {
                ([], Some(near)) => format!("did you mean `{near}`?"),
                ([], None) if keys_of(&known, "").any(|table| table == key) => {
                    let line = if key == "socket" { "[[socket]]".into() } else { format!("[{key}]") };
                    format!("`{key}` is a table of its own: begin it with a line {line}")
                }
                ([], None) => {
                    let mut here = here;
                    here.sort_unstable();
                    format!("known here: {}", here.join(", "))
                }
                (homes, _) => format!("`{key}` belongs in {}", homes.join(" or ")),
            };
            self.report(span, Flaw::new(message, "unknown key").help(help));
        }
        self.list.into_inner()
    }
}

/// Returns the keys that were asked for in `table`.
fn keys_of<'a>(
    known: &'a [(&'static str, Vec<&'static str>)],
    table: &str,
) -> impl Iterator<Item = &'static str> + use<'a> {
    known.iter().find(|(name, _)| *name == table).into_iter().flat_map(|(_, keys)| keys.iter().copied())
}

/// Returns a key of the file in a form that is safe in one line.
pub(super) fn shown(key: &str) -> String {
    key.chars().take(64).flat_map(char::escape_debug).collect()
}

/// A table of the file, or one that it lacks.
#[derive(Debug)]
pub(super) struct Table<'a> {
    /// As messages name it: `[service]`; empty for the file itself.
    name: &'static str,
    entries: Option<&'a DeTable<'a>>,
    header: Span,
    problems: &'a Problems,
    asked: Vec<&'static str>,
}

impl<'a> Table<'a> {
    /// Returns the table that is the file itself.
    pub fn root(tree: &'a DeTable<'a>, problems: &'a Problems) -> Self {
        Self::new("", Some(tree), 0..0, problems)
    }

    fn new(
        name: &'static str,
        entries: Option<&'a DeTable<'a>>,
        header: Span,
        problems: &'a Problems,
    ) -> Self {
        Self { name, entries, header, problems, asked: Vec::new() }
    }

    /// Where problems go.
    pub fn problems(&self) -> &'a Problems {
        self.problems
    }

    /// Whether the file has it.
    pub fn is_present(&self) -> bool {
        self.entries.is_some()
    }

    /// Whether the file has `key` in it, good or bad.
    pub fn has(&self, key: &str) -> bool {
        self.entries.is_some_and(|entries| entries.contains_key(key))
    }

    /// What messages call it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where the table begins.
    pub fn header(&self) -> Span {
        self.header.clone()
    }

    /// Takes `key` for its place alone.
    pub fn key(&mut self, key: &'static str) -> Option<Span> {
        self.take(key).map(|raw| raw.key)
    }

    /// Takes `key`; `None` where it is absent, or bad (and then reported).
    pub fn read<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&DeValue<'a>) -> Result<T, Flaw>,
    ) -> Option<At<T>> {
        let raw = self.take(key)?;
        let value = self.judge(key, &raw.span, parse(raw.value))?;
        Some(At { value, key: raw.key, span: raw.span })
    }

    /// Takes `key`, which is `default` where absent; `None` where it is bad (and then reported).
    pub fn read_or<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&DeValue<'a>) -> Result<T, Flaw>,
    ) -> Option<T> {
        let absent = !self.has(key);
        let value = self.read(key, parse).map(At::value);
        if absent { Some(default) } else { value }
    }

    /// Takes `key`, an array whose elements `parse` reads; `None` where it is absent or any of it is bad.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&DeValue<'a>) -> Result<T, Flaw>,
    ) -> Option<At<Vec<At<T>>>> {
        let raw = self.take(key)?;
        let array = match raw.value {
            DeValue::Array(array) => Ok(array),
            other => Err(not_an_array(key, other)),
        };
        let array = self.judge(key, &raw.span, array)?;
        let mut value = Vec::with_capacity(array.len());
        for (index, element) in array.iter().enumerate() {
            let parsed = parse(element.get_ref());
            if let Some(parsed) = self.judge(&format!("{key}[{index}]"), &element.span(), parsed) {
                value.push(At { value: parsed, key: element.span(), span: element.span() });
            }
        }
        (value.len() == array.len()).then_some(At { value, key: raw.key, span: raw.span })
    }

    /// Takes the table `key`, which messages call `name`; it is an empty one where absent or bad.
    pub fn table(&mut self, key: &'static str, name: &'static str) -> Self {
        let raw = self.take(key);
        let entries = raw.as_ref().and_then(|raw| match raw.value {
            DeValue::Table(entries) => Some(entries),
            other => self.judge(
                key,
                &raw.span,
                Err(Flaw::kind("must be a table", other).help(format!("begin it with {name}"))),
            ),
        });
        let header = raw.map_or(0..0, |raw| raw.span);
        Self::new(name, entries, header, self.problems)
    }

    /// Takes the array of tables `key`, of which messages call each `name`.
    pub fn tables(&mut self, key: &'static str, name: &'static str) -> Vec<Self> {
        let Some(raw) = self.take(key) else { return Vec::new() };
        let flaw =
            |found| Flaw::kind("must be an array of tables", found).help(format!("begin each with {name}"));
        match raw.value {
            DeValue::Array(array) => array
                .iter()
                .filter_map(|element| match element.get_ref() {
                    DeValue::Table(entries) => {
                        Some(Self::new(name, Some(entries), element.span(), self.problems))
                    }
                    other => self.judge(key, &element.span(), Err(flaw(other))),
                })
                .collect(),
            // `[socket]` for `[[socket]]`: what stands in it is checked all the same.
            DeValue::Table(entries) => {
                let _: Option<()> = self.judge(key, &raw.span, Err(flaw(raw.value)));
                vec![Self::new(name, Some(entries), raw.span, self.problems)]
            }
            other => {
                let _: Option<()> = self.judge(key, &raw.span, Err(flaw(other)));
                Vec::new()
            }
        }
    }

    /// Takes all entries of a table whose keys are free.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, At<&'a DeValue<'a>>)> + use<'a> {
        self.entries.into_iter().flat_map(|entries| entries.iter()).map(|(key, value)| {
            (key.get_ref().as_ref(), At { value: value.get_ref(), key: key.span(), span: value.span() })
        })
    }

    /// Reports the flaw, if it is one, of the value of `key`.
    pub fn judge<T>(&self, key: &str, span: &Span, value: Result<T, Flaw>) -> Option<T> {
        value
            .map_err(|mut flaw| {
                flaw.message = format!("`{}` {}", shown(key), flaw.message);
                self.problems.report(span.clone(), flaw);
            })
            .ok()
    }

    /// Reports that `key` must be there, unless it is or a misspelling of it is.
    pub fn require(&self, key: &'static str, help: &str) {
        let misspelt = self.entries().any(|(found, _)| closest(found, &[key]).is_some());
        if !self.has(key) && !misspelt {
            let message = if self.is_present() {
                format!("missing key `{key}` in {}", self.name)
            } else {
                format!("missing table {}", self.name)
            };
            self.problems.conclude(self.header.clone(), Flaw::new(message, "").help(help));
        }
    }

    /// Reports every key that nobody asked for.
    pub fn finish(self) {
        for (key, at) in self.entries() {
            if !self.asked.contains(&key) {
                let unknown = Unknown { key: key.to_owned(), table: self.name, span: at.key };
                self.problems.unknown.borrow_mut().push(unknown);
            }
        }
        let mut known = self.problems.known.borrow_mut();
        if known.iter().all(|(name, _)| *name != self.name) {
            known.push((self.name, self.asked));
        }
    }

    fn take(&mut self, key: &'static str) -> Option<At<&'a DeValue<'a>>> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        let (name, value) = self.entries?.get_key_value(key)?;
        Some(At { value: value.get_ref(), key: name.span(), span: value.span() })
    }
}

/// Words that an array was expected; text gets shown as the array that it could be.
fn not_an_array(key: &str, found: &DeValue<'_>) -> Flaw {
    let flaw = Flaw::kind("must be an array of strings", found);
    let DeValue::String(text) = found else { return flaw };
    let words: Vec<String> = text.split_whitespace().map(|word| format!("{word:?}")).collect();
    flaw.help(format!("there is no shell; write {key} = [{}]", words.join(", ")))
}
