//! The target that an upgrade names: what was typed, and which path that is for the client.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest path of a target, in bytes (`PATH_MAX` of limits.h, without its NUL).
pub const MAX_PATH: usize = 4095;

/// The target that an upgrade names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedTarget {
    /// The `value` as it was typed, which the hook `pre_upgrade` is told: a path, or a name that the hook understands.
    pub typed: String,
    /// The `path` that this is for the client, absolute; without it the manager finds `typed` from the service's directory.
    pub path: Option<String>,
}

impl NamedTarget {
    /// Reads the target that an upgrade names by the `value` and the `path` of its request, if it names one.
    pub(super) fn read(value: &Value, path: Option<&Value>) -> Result<Option<Self>, String> {
        let read = |value: &Value, name: &str| match value {
            Value::Null => Ok(None),
            Value::String(path) if path.contains('\0') => Err("a path has no NUL".into()),
            Value::String(path) if path.len() > MAX_PATH => {
                Err(format!("a path has at most {MAX_PATH} bytes"))
            }
            Value::String(path) => Ok(Some(path.clone()).filter(|path| !path.is_empty())),
            _ => Err(format!("`{name}` must be the path to upgrade to")),
        };
        let (typed, path) = (read(value, "value")?, read(path.unwrap_or(&Value::Null), "path")?);
        if path.as_ref().is_some_and(|path| !path.starts_with('/')) {
            return Err("`path` must be absolute".into());
        }
        Ok(typed.map(|typed| Self { typed, path }))
    }
}
