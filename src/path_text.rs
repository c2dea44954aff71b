//! Paths and other names in states and records: as text where they are text, as bytes where they are not. A folder may
//! have any name.
//!
//! For `#[serde(with = "crate::path_text")]`, and its kin for optional ones and lists.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path as it is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    /// As serde has it: its bytes.
    Raw(OsString),
}

impl From<&OsStr> for Written {
    fn from(name: &OsStr) -> Self {
        name.to_str().map_or_else(|| Self::Raw(name.into()), |text| Self::Text(text.to_owned()))
    }
}

impl From<Written> for OsString {
    fn from(written: Written) -> Self {
        match written {
            Written::Text(text) => text.into(),
            Written::Raw(bytes) => bytes,
        }
    }
}

/// Writes a path or a name.
///
/// # Errors
///
/// Those of the format.
pub fn serialize<S: Serializer>(name: &impl AsRef<OsStr>, serializer: S) -> Result<S::Ok, S::Error> {
    Written::from(name.as_ref()).serialize(serializer)
}

/// Reads a path or a name.
///
/// # Errors
///
/// Those of the format, and what is neither.
pub fn deserialize<'de, T: From<OsString>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(OsString::from(Written::deserialize(deserializer)?).into())
}

/// The same of a path that there may be.
pub mod option {
    use super::{Deserialize, Deserializer, OsString, PathBuf, Serialize, Serializer, Written};

    /// Writes it.
    ///
    /// # Errors
    ///
    /// Those of the format.
    #[expect(clippy::ref_option, reason = "serde hands it over so")]
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_ref().map(|path| Written::from(path.as_os_str())).serialize(serializer)
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// Those of the format, and what is no path.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Written>::deserialize(deserializer)?.map(OsString::from).map(PathBuf::from))
    }
}

/// The same of a list that there may be.
pub mod list {
    use super::{Deserialize, Deserializer, OsString, PathBuf, Serialize, Serializer, Written};

    /// Writes it.
    ///
    /// # Errors
    ///
    /// Those of the format.
    #[expect(clippy::ref_option, reason = "serde hands it over so")]
    pub fn serialize<S: Serializer>(paths: &Option<Vec<PathBuf>>, serializer: S) -> Result<S::Ok, S::Error> {
        let written = paths.as_ref().map(|paths| paths.iter().map(|path| Written::from(path.as_os_str())));
        written.map(Iterator::collect::<Vec<_>>).serialize(serializer)
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// Those of the format, and what is no path.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<PathBuf>>, D::Error> {
        let written = Option::<Vec<Written>>::deserialize(deserializer)?;
        Ok(written.map(|written| written.into_iter().map(OsString::from).map(PathBuf::from).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct All {
        #[serde(with = "super")]
        path: PathBuf,
        #[serde(with = "super")]
        name: OsString,
        #[serde(with = "super::option")]
        option: Option<PathBuf>,
        #[serde(with = "super::list")]
        list: Option<Vec<PathBuf>>,
    }

    #[test]
    fn every_path_comes_back() {
        for bytes in [&b"/srv/web"[..], b"", b"/\xff\xfe/a b\n", "/\u{fffd}".as_bytes()] {
            let path = PathBuf::from(OsStr::from_bytes(bytes));
            let all = All {
                path: path.clone(),
                name: path.clone().into(),
                option: Some(path.clone()),
                list: Some(vec![path.clone(), path]),
            };
            assert_eq!(serde_json::from_slice::<All>(&serde_json::to_vec(&all).unwrap()).unwrap(), all);
        }
        let none = All { path: "/a".into(), name: "b".into(), option: None, list: None };
        let text = serde_json::to_string(&none).unwrap();
        assert_eq!(text, r#"{"path":"/a","name":"b","option":null,"list":null}"#);
        assert_eq!(serde_json::from_str::<All>(&text).unwrap(), none);
    }
}
