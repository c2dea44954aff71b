//! The lines in which the keys of a service file stand, for what is found wrong only when a value is used.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

/// The lines of keys, from 1, by their paths: `service.directory`, `socket.0.user`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyLines(BTreeMap<String, usize>);

impl KeyLines {
    /// Finds the keys of a text that is sound TOML.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let (tree, _) = DeTable::parse_recoverable(text);
        let mut lines = Self::default();
        lines.add(text, "", tree.get_ref());
        lines
    }

    fn add(&mut self, text: &str, above: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = format!("{above}{}", key.get_ref());
            let before = text.get(..key.span().start).unwrap_or_default();
            self.0.insert(path.clone(), before.matches('\n').count() + 1);
            match value.get_ref() {
                DeValue::Table(inner) => self.add(text, &format!("{path}."), inner),
                DeValue::Array(elements) => {
                    for (number, element) in elements.iter().enumerate() {
                        if let DeValue::Table(inner) = element.get_ref() {
                            self.add(text, &format!("{path}.{number}."), inner);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Says of what is wrong with the value of a key where that stands; as it is, if the file does not have the key.
    #[must_use]
    pub fn at(&self, path: &str, wrong: &str) -> String {
        let key = path.rsplit('.').next().unwrap_or(path);
        match self.0.get(path) {
            Some(line) => format!("line {line}: `{key}`: {wrong}"),
            None => wrong.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_its_table() {
        let lines = KeyLines::of(
            "[service]\ncommand = ['x']\ndirectory = '/a'\n\n[[socket]]\nlisten = '@a'\n[[socket]]\nlisten = '@b'\nuser = 'web'\n",
        );
        assert_eq!(lines.at("service.directory", "no"), "line 3: `directory`: no");
        assert_eq!(lines.at("socket.1.user", "no"), "line 9: `user`: no");
        assert_eq!(lines.at("socket.0.user", "no"), "no");
    }
}
