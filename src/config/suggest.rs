//! "Did you mean": the known word that an unknown one was most likely meant to be.

/// What systemd and other supervisors call a key of ours, in the form that [`plain`] gives.
const SYNONYMS: [(&str, &str); 21] = [
    ("argv", "command"),
    ("cmd", "command"),
    ("execstart", "command"),
    ("program", "command"),
    ("cwd", "directory"),
    ("workingdirectory", "directory"),
    ("instances", "workers"),
    ("processes", "workers"),
    ("env", "environment"),
    ("environmentfile", "environment_files"),
    ("address", "listen"),
    ("bind", "listen"),
    ("listenstream", "listen"),
    ("filedescriptorname", "name"),
    ("socketmode", "mode"),
    ("socketuser", "user"),
    ("socketgroup", "group"),
    ("killsignal", "signal"),
    ("timeoutstart", "timeout"),
    ("timeoutstop", "timeout"),
    ("watchdog", "timeout"),
];

/// Returns the one of `known` that `word` is a misspelling or another program's name of.
#[must_use]
pub fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = plain(word);
    let synonym = SYNONYMS.iter().find(|(name, _)| *name == word).map(|(_, ours)| *ours);
    if let Some(found) = known.iter().find(|candidate| Some(**candidate) == synonym) {
        return Some(found);
    }
    known
        .iter()
        .map(|candidate| (distance(&word, &plain(candidate)), *candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).clamp(1, 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns `word` without what spellings differ in: case, `-`, `_`, and systemd's `Sec` at the end.
fn plain(word: &str) -> String {
    let word: String =
        word.chars().take(64).filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect();
    match word.strip_suffix("sec") {
        Some(stem) if stem.len() > 4 => stem.to_owned(),
        _ => word,
    }
}

/// Returns the Levenshtein distance, a swap of two neighbours counting as one.
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![(0..=right.len()).collect::<Vec<_>>()];
    for i in 1..=left.len() {
        let mut row = vec![i];
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_is_recognised() {
        let known = ["command", "directory", "workers", "keep_alive_time", "name", "listen"];
        assert_eq!(closest("comand", &known), Some("command"));
        assert_eq!(closest("wrokers", &known), Some("workers"));
        assert_eq!(closest("KeepAliveTimeSec", &known), Some("keep_alive_time"));
        assert_eq!(closest("keep-alive-time", &known), Some("keep_alive_time"));
        assert_eq!(closest("ListenStream", &known), Some("listen"));
        assert_eq!(closest("cwd", &known), Some("directory"));
        assert_eq!(closest("frobnicate", &known), None);
        assert_eq!(closest("", &known), None);
    }

    #[test]
    fn neighbours_swapped_count_once() {
        assert_eq!(distance("ab", "ba"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
