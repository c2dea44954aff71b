//! The exact text that people see.

use super::*;

fn rendered(text: &str) -> String {
    refuse(text).render(false)
}

#[test]
fn all_problems_are_shown_at_once_in_the_order_of_the_file() {
    let text = "[service]\ncomand = [\"./server\"]\nworkers = 0\n\n[[socket]]\nlisten = \"localhost:8080\"\n\n\
                [ready]\ntimeout = 30\n";
    let expected = r#"
error: unknown key `comand` in [service]
 --> /srv/web.toml:2:1
  |
2 | comand = ["./server"]
  | ^^^^^^ unknown key
  |
  = help: did you mean `command`?

error: `workers` must be an integer from 1 to 4096 or "auto"
 --> /srv/web.toml:3:11
  |
3 | workers = 0
  |           ^ out of range

error: `listen` must be an address
 --> /srv/web.toml:6:10
  |
6 | listen = "localhost:8080"
  |          ^^^^^^^^^^^^^^^^ a name
  |
  = help: names are not looked up; write "127.0.0.1:8080" or "[::1]:8080"

error: `timeout` must be a duration
 --> /srv/web.toml:9:11
  |
9 | timeout = 30
  |           ^^ this is an integer
  |
  = help: write "30s" for seconds; durations are written as "1500ms", "30s", "5min" or "1h""#;
    assert_eq!(rendered(text), expected.trim_start());
    assert_eq!(refuse(text).summary(), "web.toml:2:1: unknown key `comand` in [service] (and 3 more)");
    assert_eq!(refuse(text).to_string(), refuse(text).summary());
}

#[test]
fn syntax_errors_come_with_the_other_problems() {
    let text = "[service]\ncommand = [\"a\"]\nname = web\nworkers = 2\nworkers = 3\n\n[drain]\ntimeout \"1s\"\n\n\
                [restart]\nmaxdelay = \"1s\"\n";
    let expected = r#"
error: syntax error: string values must be quoted
 --> /srv/web.toml:3:8
  |
3 | name = web
  |        ^^^
  |
  = help: write "web"

error: `workers` is defined twice
 --> /srv/web.toml:5:1
  |
5 | workers = 3
  | ^^^^^^^ defined before

error: syntax error: key with no value
 --> /srv/web.toml:8:9
  |
8 | timeout "1s"
  |         ^ expected `=`

error: unknown key `maxdelay` in [restart]
  --> /srv/web.toml:11:1
   |
11 | maxdelay = "1s"
   | ^^^^^^^^ unknown key
   |
   = help: did you mean `max_delay`?"#;
    assert_eq!(rendered(text), expected.trim_start());
}

#[test]
fn a_value_that_never_ends_hides_nothing() {
    let text =
        "[service]\nworker = 1\ncommand = [\"a\"\n\n[[socket]]\nlisten = \"8080\"\n[drain]\nsignal = TERM\n";
    let expected = r#"
error: unknown key `worker` in [service]
 --> /srv/web.toml:2:1
  |
2 | worker = 1
  | ^^^^^^ unknown key
  |
  = help: did you mean `workers`?

error: syntax error: this value never ends
 --> /srv/web.toml:3:11
  |
3 | command = ["a"
  |           ^ opened here
  |
  = help: its closing bracket or quotes are missing

error: `listen` must be an address
 --> /srv/web.toml:6:10
  |
6 | listen = "8080"
  |          ^^^^^^ a port alone
  |
  = help: write "0.0.0.0:8080" for IPv4, "[::]:8080" for IPv6 (and IPv4, unless bind_ipv6_only says otherwise)

error: syntax error: invalid boolean
 --> /srv/web.toml:8:10
  |
8 | signal = TERM
  |          ^^^^
  |
  = help: write "TERM""#;
    assert_eq!(rendered(text), expected.trim_start());
}

#[test]
fn one_syntax_error_is_one_problem() {
    for (text, summary) in [
        ("command = [\"a]\n[drain]\nsignal = \"TERM\"\n", "1:15: syntax error: invalid basic string"),
        ("command = \"\"\"a\n[drain]\nsignal = \"TERM\"\n", "1:11: syntax error: this value never ends"),
        ("command = [\"a\"]\nlimits = { nofile = 1\n[drain]\n", "2:10: syntax error: this value never ends"),
        (
            "command = [\n  \"a\"\n  \"b\",\n]\nname = \"x\"\n",
            "3:3: syntax error: missing comma between array elements",
        ),
        ("command = [a,\n  \"b\",\n]\nname = \"x\"\n", "1:12: syntax error: string values must be quoted"),
        (
            "command = [\"a\"]\n[drain\nx = 1\n[ready]\nwhen = \"settled\"\n",
            "2:7: syntax error: unclosed table",
        ),
        ("command = [\"a\"]\n[drain]\n[[drain]]\nx = 1\n", "3:3: `drain` is defined twice"),
        ("command \"a\"\nname = \"x\"\n", "1:9: syntax error: key with no value"),
    ] {
        let text = format!("[service]\n{text}");
        let summary =
            summary.split_once(':').map(|(line, rest)| (line.parse::<u32>().unwrap() + 1, rest)).unwrap();
        assert_eq!(refuse(&text).summary(), format!("web.toml:{}:{}", summary.0, summary.1), "{text}");
    }
}

#[test]
fn an_empty_file_is_told_what_it_lacks() {
    let expected = r#"
error: missing table [service]
 --> /srv/web.toml:1:1
  |
1 |
  | ^
  |
  = help: the shortest service file: [service] with command = ["./server"]"#;
    assert_eq!(rendered(""), expected.trim_start());
}

#[test]
fn bytes_that_are_no_text_are_pointed_at() {
    let problems = decode(b"[service]\nname = \"\xc3\xa9 \xff \xfe\"\n", &origin()).unwrap_err();
    let expected = "
error: the file is not UTF-8
 --> /srv/web.toml:2:11
  |
2 | name = \"é \u{fffd} \u{fffd}\"
  |           ^ byte 0xff
  |
  = help: save the file in the encoding UTF-8";
    assert_eq!(problems.render(false), expected.trim_start());
    assert_eq!(problems.summary(), "web.toml:2:11: the file is not UTF-8");
    assert_eq!(decode("é".as_bytes(), &origin()), Ok("é"));
}

#[test]
fn positions_are_counted_in_characters() {
    let text = "\u{feff}[service]\r\nenvironment = { \"é\" = 1 }\r\ncommand = [\"a\"]\r\n";
    assert_eq!(refuse(text).summary(), "web.toml:2:23: `environment.é` must be a string");
    assert!(rendered(text).contains("/srv/web.toml:2:23"));
}

#[test]
fn colour_is_only_added_where_it_is_asked_for() {
    assert!(refuse("").render(true).contains("\u{1b}["));
    assert!(!refuse("").render(false).contains('\u{1b}'));
    assert!(!rendered("[service]\n\"\\u001b[31m\" = 1\n").contains('\u{1b}'), "nor smuggled in by the file");
}

#[test]
fn problems_beyond_a_hundred_are_counted() {
    let keys = (0..150).fold(MINIMAL.to_owned(), |text, key| format!("{text}x{key} = 1\n"));
    assert!(rendered(&keys).ends_with("\n\nand 50 more"));
    assert_eq!(rendered(&keys).matches("error: ").count(), 100);
}

#[test]
fn the_problems_can_be_sent_to_another_process() {
    let problems = refuse("[service]\n");
    let sent = serde_json::to_string(&problems).unwrap();
    assert_eq!(serde_json::from_str::<Diagnostics>(&sent).unwrap(), problems);
}
