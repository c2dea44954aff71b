//! The files of `environment_files`.

use liveswap::config::environment::parse;
use liveswap::core::spec::is_protocol_variable;

/// Reads `bytes` as an environment file; what is accepted can be written in another way and means the same.
///
/// # Panics
///
/// Where the reader breaks its word.
pub fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match parse(text) {
        Ok(variables) => {
            for (name, value) in &variables {
                assert!(!name.is_empty() && !name.contains(['=', '\0', '\n', ' ']), "{name:?}");
                assert!(!is_protocol_variable(name) && !value.contains('\0'), "{name}={value:?}");
            }
            if variables.iter().any(|(_, value)| value.contains("\r\n")) {
                // Made of `\r\r\n`: a line break of the file is always read as one, so there is no way to write this.
                return;
            }
            let written: String = variables.iter().map(|(name, value)| assignment(name, value)).collect();
            assert_eq!(parse(&written).as_ref(), Ok(&variables), "{written:?}");
        }
        Err(bad) => {
            assert!(!bad.problems.is_empty(), "refused for nothing");
            let lines = text.matches('\n').count() + 1;
            assert!(
                bad.problems.iter().all(|(line, _)| (1..=lines).contains(line)),
                "{bad} of {lines} lines"
            );
            assert!(bad.problems.is_sorted_by_key(|(line, _)| *line), "{bad}");
            assert!(!bad.to_string().contains(char::is_control), "{bad}");
        }
    }
}

/// Writes a variable with as many quotes as can be.
fn assignment(name: &str, value: &str) -> String {
    let mut quoted = String::new();
    for character in value.chars() {
        if matches!(character, '"' | '\\' | '`' | '$') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    format!("{name}=\"{quoted}\"\n")
}
