//! No input makes this room panic, nor what it says unprintable.

use super::*;

/// A file that has every table and most kinds of value.
const WIDE: &str = r#"
[service]
name = "web"
command = ["./server", '--quiet', """x"""]
directory = "/srv/web/current"
workers = 4
environment = { RUST_LOG = "info", "quoted key" = 'v' }
environment_files = ["-/etc/web.env"]
umask = "0022"
limits = { nofile = 65536, core = "0:infinity" }
supplementary_groups = ["adm", 27]

[[socket]]
name = "http"
listen = "0.0.0.0:8080"
keep_alive_time = "60s"
receive_buffer = "64K"

[[socket]]
listen = "./é.sock"
mode = 0o660

[ready]
when = "probe"
timeout = "60s"
probe = ["curl", "-fsS"]

[upgrade]
strategy = "rolling"
max_surge = "25%"
after = ["./announce.sh"]

[drain]
signal = "SIGTERM"

[restart]
initial_delay = "100ms"

[watchdog]
timeout = "30s"

[control]
group = "ops"
"#;

/// Parses, and says all that there is to say.
fn try_all(bytes: &[u8]) {
    let origin = origin();
    let outcome = decode(bytes, &origin).map_err(Box::new).and_then(|text| {
        let _ = environment::parse(text);
        parse(text, &origin).map_err(Box::new)
    });
    if let Err(problems) = outcome {
        assert!(!problems.problems().is_empty());
        assert!(!problems.summary().contains('\n'), "{}", problems.summary());
        assert!(problems.render(false).starts_with("error: "));
    }
}

#[test]
fn a_file_cut_at_any_byte_is_no_trouble() {
    accept(WIDE);
    for end in 0..WIDE.len() {
        try_all(&WIDE.as_bytes()[..end]);
        try_all(&WIDE.as_bytes()[end..]);
    }
}

#[test]
fn a_file_with_a_line_left_out_or_twice_is_no_trouble() {
    let lines: Vec<&str> = WIDE.lines().collect();
    for (left, line) in lines.iter().enumerate() {
        let without: Vec<&str> = [&lines[..left], &lines[left + 1..]].concat();
        try_all(without.join("\n").as_bytes());
        let twice = [&lines[..], &[*line]].concat();
        try_all(twice.join("\n").as_bytes());
    }
}

#[test]
fn bytes_changed_at_random_are_no_trouble() {
    // Knuth's MMIX generator: the same run each time.
    let mut state = 20_240_229_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let marks = b"[]{}=,.\"'\\\n#\r\t \0-+_:%@/~09eE\x80\xff\xc3\xef\xbb\xbf";
    for _ in 0..4_000 {
        let mut bytes = WIDE.as_bytes().to_vec();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                1 => bytes[at] = marks[random(marks.len())],
                2 => bytes.insert(at, marks[random(marks.len())]),
                _ => drop(bytes.drain(at..(at + random(40)).min(bytes.len()))),
            }
        }
        try_all(&bytes);
    }
}

#[test]
fn odd_files_are_no_trouble() {
    let deep = "[".repeat(100_000);
    let nested = format!("a = {}", "[".repeat(100_000));
    let dotted = format!("{} = 1", vec!["a"; 10_000].join("."));
    let many = "x = 1\n".repeat(1_000);
    let long = format!("{} = 1", "k".repeat(100_000));
    let number = format!("[service]\nworkers = {}\n", "9".repeat(10_000));
    for text in [
        &deep,
        &nested,
        &dotted,
        &many,
        &long,
        &number,
        "\u{feff}",
        "\0",
        "a = \u{202e}",
        "=",
        "[",
        "[]",
        "[[]]",
    ] {
        try_all(text.as_bytes());
    }
}
