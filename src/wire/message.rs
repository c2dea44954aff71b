//! A message for the workers of a service: any JSON value for Node workers, a line of text for the pipe of other workers.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

/// The longest message, in bytes of JSON.
pub const MAX_MESSAGE: usize = 1 << 20;

/// The longest text for a pipe, in bytes: with its newline it is taken whole or not at all (pipe(7), `PIPE_BUF`).
pub const MAX_TEXT: usize = 4095;

/// Node takes a message with such a `cmd` for one of its own (`lib/internal/child_process.js`, `INTERNAL_PREFIX`).
const RESERVED: &str = "NODE_";

/// A JSON value as its sender wrote it, on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(String);

impl Message {
    /// Makes a message of a text.
    pub fn text(text: &str) -> Self {
        Self(Value::from(text).to_string())
    }

    /// Reads the `value` of a request, which is a line of JSON without its newline.
    ///
    /// # Errors
    ///
    /// There is none, or it is too long.
    pub(super) fn of_request(line: &[u8]) -> Result<Self, String> {
        let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(line).unwrap_or_default();
        match fields.get("value").map(|value| value.get()) {
            None => Err("`value` must be the message".into()),
            Some(json) if json.len() > MAX_MESSAGE => {
                Err(format!("a message has at most {MAX_MESSAGE} bytes of JSON"))
            }
            Some(json) => Ok(Self(json.to_owned())),
        }
    }

    /// Returns the JSON, without a newline.
    pub fn json(&self) -> &str {
        &self.0
    }

    /// Returns the value; `null` where it is no JSON.
    pub(super) fn value(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or_default()
    }

    /// Returns the JSON for a Node worker.
    ///
    /// # Errors
    ///
    /// Node would take the message for one of its own.
    pub fn for_node(&self) -> Result<&str, String> {
        match self.value().get("cmd").and_then(Value::as_str) {
            Some(cmd) if cmd.starts_with(RESERVED) => Err(format!(
                "a message for Node workers has no `cmd` that begins with {RESERVED}: Node keeps these to itself"
            )),
            Some(_) | None => Ok(&self.0),
        }
    }

    /// Returns the line for the pipe of a worker that is no Node program, with its newline.
    ///
    /// # Errors
    ///
    /// The message is no text, or not one short line.
    pub fn for_pipe(&self) -> Result<String, String> {
        let Value::String(text) = self.value() else {
            return Err("`value` must be the text of the message: only Node workers take other values".into());
        };
        match text {
            text if text.contains(['\n', '\0']) => Err("a message is one line, without NUL".into()),
            text if text.len() > MAX_TEXT => Err(format!("a message has at most {MAX_TEXT} bytes")),
            text => Ok(text + "\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Result<Message, String> {
        Message::of_request(format!(r#"{{"cmd":"message","value":{value}}}"#).as_bytes())
    }

    #[test]
    fn any_json_value_is_a_message_as_it_was_written() {
        for json in
            ["null", "0", "1.50", "12345678901234567890123", "[1, {\"b\":1,\"a\":2}]", "\"a\\nb\"", "{}"]
        {
            assert_eq!(of(json).unwrap().json(), json);
        }
        assert_eq!(Message::text("a\nb").json(), "\"a\\nb\"");
        let largest = format!("\"{}\"", "x".repeat(MAX_MESSAGE - 2));
        assert_eq!(of(&largest).unwrap().json().len(), MAX_MESSAGE);
        assert!(of(&format!("{largest} ")).is_ok(), "spaces around it do not count");
        assert!(of(&format!("[{largest}]")).unwrap_err().contains("at most 1048576 bytes"));
        assert!(Message::of_request(br#"{"cmd":"message"}"#).unwrap_err().contains("must be the message"));
    }

    #[test]
    fn a_pipe_takes_one_line_of_text() {
        assert_eq!(Message::text("good morning").for_pipe().unwrap(), "good morning\n");
        for json in ["null", "1", "{}", "[\"a\"]"] {
            assert!(of(json).unwrap().for_pipe().unwrap_err().contains("only Node workers"), "{json}");
        }
        for text in ["a\nb", "a\0b"] {
            assert!(Message::text(text).for_pipe().unwrap_err().contains("one line"));
        }
        assert!(Message::text(&"x".repeat(MAX_TEXT)).for_pipe().is_ok());
        assert!(Message::text(&"x".repeat(MAX_TEXT + 1)).for_pipe().unwrap_err().contains("4095"));
    }

    #[test]
    fn what_node_takes_for_its_own_is_no_message() {
        let own = of(r#"{"cmd":"NODE_CLUSTER","act":"disconnect"}"#).unwrap();
        assert!(own.for_node().unwrap_err().contains("NODE_"));
        assert!(of(r#"{"cmd":"reload","NODE_":1}"#).unwrap().for_node().is_ok());
        assert!(of(r#"["NODE_"]"#).unwrap().for_node().is_ok());
    }
}
