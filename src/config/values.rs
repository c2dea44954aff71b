//! Reads single values: text, numbers, durations, sizes, modes, signals, shares and limits.
//!
//! Each function returns what is wrong as a [`Flaw`], whose message goes on from the name of the key.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeInteger, DeValue};

use super::reader::{Flaw, shown};
use super::suggest::closest;
use crate::core::spec::{Allowance, Limit};

/// No duration of a service file is longer: a year.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

const DURATION_HELP: &str = r#"durations are written as "1500ms", "30s", "5min" or "1h""#;

/// The names of signal(7), without `SIG`. The two that no program can catch are left out: no worker could drain by them.
const SIGNALS: [(&str, i32); 29] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("PIPE", libc::SIGPIPE),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

/// Reads `true` or `false`.
pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, Flaw> {
    value.as_bool().ok_or_else(|| Flaw::kind("must be true or false", value))
}

/// Reads text that can be handed to a system call.
pub(super) fn text(value: &DeValue<'_>) -> Result<String, Flaw> {
    let Some(text) = value.as_str() else {
        let flaw = Flaw::kind("must be a string", value);
        return Err(match value {
            DeValue::Integer(number) => flaw.help(format!("write \"{number}\"")),
            DeValue::Boolean(word) => flaw.help(format!("write \"{word}\"")),
            _ => flaw,
        });
    };
    if text.contains('\0') {
        return Err(Flaw::new("must not contain a NUL character", "has a NUL character"));
    }
    Ok(text.to_owned())
}

/// Reads text that is not empty.
pub(super) fn nonempty(value: &DeValue<'_>) -> Result<String, Flaw> {
    let text = text(value)?;
    if text.is_empty() { Err(Flaw::new("must not be empty", "empty")) } else { Ok(text) }
}

/// Reads an integer within `range`.
pub(super) fn number<T>(value: &DeValue<'_>, range: RangeInclusive<T>) -> Result<T, Flaw>
where
    T: Copy + PartialOrd + TryFrom<i128> + std::fmt::Display,
{
    let message = format!("must be an integer from {} to {}", range.start(), range.end());
    let DeValue::Integer(integer) = value else { return Err(Flaw::kind(message, value)) };
    whole(integer)
        .and_then(|number| T::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| Flaw::new(message, "out of range"))
}

/// Returns the value of an integer of any radix; `None` where it is beyond all our ranges.
fn whole(integer: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// Reads one of several words.
pub(super) fn choice<T: Copy>(value: &DeValue<'_>, choices: &[(&'static str, T)]) -> Result<T, Flaw> {
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let message = format!("must be {}", alternatives(&words));
    let Some(text) = value.as_str() else { return Err(Flaw::kind(message, value)) };
    if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
        return Ok(*choice);
    }
    let flaw = Flaw::new(message, "none of them");
    Err(match closest(text, &words) {
        Some(near) => flaw.help(format!("did you mean \"{near}\"?")),
        None => flaw,
    })
}

/// Returns `"a", "b" or "c"`.
fn alternatives(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// Reads a duration, which may be zero.
pub(super) fn duration(value: &DeValue<'_>) -> Result<Duration, Flaw> {
    let message = "must be a duration";
    let text = match value {
        DeValue::String(text) => text.as_ref(),
        DeValue::Integer(number) => {
            let help = format!("write \"{number}s\" for seconds; {DURATION_HELP}");
            return Err(Flaw::kind(message, value).help(help));
        }
        _ => return Err(Flaw::kind(message, value).help(DURATION_HELP)),
    };
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    if digits.is_empty() {
        return Err(Flaw::new(message, "does not begin with a number").help(DURATION_HELP));
    }
    let (unit_ms, meant) = match unit {
        "ms" => (1, ""),
        "s" => (1_000, ""),
        "min" => (60_000, ""),
        "h" => (3_600_000, ""),
        "" | "sec" | "secs" | "second" | "seconds" => (0, "s"),
        "m" | "mins" | "minute" | "minutes" => (0, "min"),
        "hr" | "hours" | "hour" => (0, "h"),
        "msec" | "millis" => (0, "ms"),
        _ => return Err(Flaw::new(message, "unknown unit").help(DURATION_HELP)),
    };
    if unit_ms == 0 {
        let label = if unit.is_empty() { "has no unit" } else { "unknown unit" };
        return Err(Flaw::new(message, label).help(format!("write \"{digits}{meant}\"")));
    }
    let ms = digits.parse().ok().and_then(|count: u64| count.checked_mul(unit_ms));
    ms.map(Duration::from_millis)
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or_else(|| Flaw::new("must not be longer than a year (\"8760h\")", "too long"))
}

/// Reads a duration that is not zero.
pub(super) fn positive_duration(value: &DeValue<'_>) -> Result<Duration, Flaw> {
    let duration = duration(value)?;
    if duration.is_zero() { Err(Flaw::new("must be longer than zero", "zero")) } else { Ok(duration) }
}

/// Reads a timer of tcp(7): whole seconds, 1 to 32767.
pub(super) fn tcp_seconds(value: &DeValue<'_>) -> Result<Duration, Flaw> {
    let duration = duration(value)?;
    let whole = duration.subsec_nanos() == 0 && (1..=32_767).contains(&duration.as_secs());
    let message = "must be a whole number of seconds, \"1s\" to \"32767s\"";
    if whole { Ok(duration) } else { Err(Flaw::new(message, "the kernel has no such timer")) }
}

/// Reads a size in bytes: an integer, or text with K, M or G for powers of 1024; at most what setsockopt(2) takes.
pub(super) fn size(value: &DeValue<'_>) -> Result<u32, Flaw> {
    const MAX: u64 = i32::MAX as u64;
    let message = "must be a size in bytes";
    let bytes = match value {
        DeValue::Integer(number) => whole(number).and_then(|number| u64::try_from(number).ok()),
        DeValue::String(text) => {
            let (digits, unit) =
                text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
            let unit: u64 = match unit {
                "" => 1,
                "K" => 1 << 10,
                "M" => 1 << 20,
                "G" => 1 << 30,
                _ => {
                    return Err(Flaw::new(message, "unknown unit")
                        .help(r#"sizes are written as 65536, "64K" or "8M""#));
                }
            };
            digits.parse().ok().and_then(|count: u64| count.checked_mul(unit))
        }
        _ => return Err(Flaw::kind(message, value).help(r#"sizes are written as 65536, "64K" or "8M""#)),
    };
    bytes
        .filter(|bytes| (1..=MAX).contains(bytes))
        .and_then(|bytes| u32::try_from(bytes).ok())
        .ok_or_else(|| Flaw::new(format!("must be a size from 1 to {MAX} bytes"), "out of range"))
}

/// Reads permissions, 0 to 0o777: text in octal digits, or an integer that is written in octal.
pub(super) fn mode(value: &DeValue<'_>) -> Result<u32, Flaw> {
    let message = "must be permissions in octal, \"0000\" to \"0777\"";
    let octal =
        |digits: &str| digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit)).then(|| digits.to_owned());
    let digits = match value {
        DeValue::String(text) => octal(text.trim_start_matches("0o")),
        DeValue::Integer(number) if number.radix() == 8 || number.as_str() == "0" => octal(number.as_str()),
        DeValue::Integer(number) => {
            let flaw = Flaw::new(message, "this integer is not written in octal");
            return Err(match octal(number.as_str()) {
                Some(digits) if number.radix() == 10 => {
                    flaw.help(format!("write \"0{digits}\" or 0o{digits}"))
                }
                _ => flaw,
            });
        }
        _ => return Err(Flaw::kind(message, value)),
    };
    digits
        .and_then(|digits| u32::from_str_radix(&digits, 8).ok())
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| Flaw::new(message, "out of range"))
}

/// Reads a signal that a program can catch: a name, with or without `SIG`, or a number.
pub(super) fn signal(value: &DeValue<'_>) -> Result<i32, Flaw> {
    let message = "must be the name or the number of a signal";
    let uncatchable = || Flaw::new("must be a signal that a worker can catch", "cannot be caught");
    match value {
        DeValue::String(text) => {
            let name = text.strip_prefix("SIG").unwrap_or(text);
            if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
                return Ok(*number);
            }
            if matches!(name, "KILL" | "STOP") {
                return Err(uncatchable());
            }
            let names = SIGNALS.map(|(name, _)| name);
            let bare = name.to_uppercase();
            let flaw = Flaw::new(message, "no such signal");
            Err(match closest(bare.strip_prefix("SIG").unwrap_or(&bare), &names) {
                Some(near) => flaw.help(format!("did you mean \"SIG{near}\"?")),
                None => flaw.help(r#"such as "SIGTERM", "SIGQUIT", "SIGINT", "SIGUSR1", "SIGWINCH" or 15"#),
            })
        }
        DeValue::Integer(_) => match number(value, 1..=64)? {
            libc::SIGKILL | libc::SIGSTOP => Err(uncatchable()),
            number => Ok(number),
        },
        _ => Err(Flaw::kind(message, value)),
    }
}

/// Reads a count of workers, or a share of them.
pub(super) fn allowance(value: &DeValue<'_>) -> Result<Allowance, Flaw> {
    let message = "must be a count or a share such as \"25%\"";
    match value {
        DeValue::Integer(_) => number(value, 0..=super::service::WORKERS_MAX).map(Allowance::Count),
        DeValue::String(text) => {
            let percent = text.strip_suffix('%').and_then(|digits| digits.parse().ok());
            match percent {
                Some(percent @ 0..=100) => Ok(Allowance::Percent(percent)),
                Some(_) => Err(Flaw::new("must be a share from \"0%\" to \"100%\"", "out of range")),
                None if text.parse::<u32>().is_ok() => {
                    Err(Flaw::new(message, "neither").help(format!("write {text} or \"{text}%\"")))
                }
                None => Err(Flaw::new(message, "neither")),
            }
        }
        _ => Err(Flaw::kind(message, value)),
    }
}

/// Reads a resource limit: a number for both, "infinity", or "soft:hard".
pub(super) fn limit(value: &DeValue<'_>) -> Result<Limit, Flaw> {
    let message = "must be a number, \"infinity\" or \"soft:hard\"";
    let bound = |text: &str| match text {
        "infinity" => Some(None),
        digits => digits.parse().ok().map(Some),
    };
    let (soft, hard) = match value {
        DeValue::Integer(_) => {
            let bound = Some(number(value, 0..=u64::MAX)?);
            (bound, bound)
        }
        DeValue::String(text) => {
            let (soft, hard) = text.split_once(':').unwrap_or((text, text));
            bound(soft).zip(bound(hard)).ok_or_else(|| Flaw::new(message, "none of them"))?
        }
        _ => return Err(Flaw::kind(message, value)),
    };
    if soft.unwrap_or(u64::MAX) > hard.unwrap_or(u64::MAX) {
        return Err(Flaw::new(
            "must not have a soft limit above the hard one",
            "the first is the soft limit",
        ));
    }
    Ok(Limit { soft, hard })
}

/// Reads a user or group: a name, or a number as an integer or in digits; returns digits for a number.
pub(super) fn principal(value: &DeValue<'_>) -> Result<String, Flaw> {
    let message = "must be a name or a number";
    let text = match value {
        // The highest number means "leave as it is" to chown(2) and setresuid(2).
        DeValue::Integer(_) => return number(value, 0..=u32::MAX - 1).map(|number| number.to_string()),
        DeValue::String(text) => text.as_ref(),
        _ => return Err(Flaw::kind(message, value)),
    };
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits && !text.parse().is_ok_and(|number: u32| number < u32::MAX) {
        return Err(Flaw::new(format!("must be a number up to {}", u32::MAX - 1), "out of range"));
    }
    let bad = text.chars().find(|c| c.is_whitespace() || c.is_control() || matches!(c, ':' | '/'));
    match bad {
        _ if text.is_empty() => Err(Flaw::new(message, "empty")),
        Some(bad) => {
            Err(Flaw::new(message, format!("no name has the character `{}`", shown(&bad.to_string()))))
        }
        None => Ok(text.to_owned()),
    }
}
