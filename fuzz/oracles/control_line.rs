//! The lines of the control socket, in both directions.

use liveswap::wire::control::{Line, Reply, Request, line};
use serde_json::Value;

/// Reads a line as the manager does and as its client does.
///
/// # Panics
///
/// Where what was understood does not survive being said again, or a refusal gives no reason that a terminal may show,
/// or loses the id of a request.
pub fn check(bytes: &[u8]) {
    if bytes.contains(&b'\n') {
        // These are two lines.
        return;
    }
    match Request::parse(bytes) {
        Ok(request) => {
            assert_eq!(request.id, id(bytes));
            let said = request.to_line();
            assert!(!said.contains('\n'), "{said:?} is no line");
            assert_eq!(Request::parse(said.as_bytes()), Ok(request));
        }
        Err(bad) => {
            assert_eq!(bad.id, id(bytes));
            assert!(!bad.reason.is_empty() && !bad.reason.contains(char::is_control), "{:?}", bad.reason);
            let reply = Reply { id: bad.id.clone(), ..Reply::failed(&bad.cmd, &bad.reason) };
            let Line::Reply(read) = said_again(&line(&reply)) else { panic!("a reply is no event") };
            assert_eq!((read.id, read.cmd, read.reason), (bad.id, bad.cmd, Some(bad.reason)));
        }
    }
    let Some(heard) = str::from_utf8(bytes).ok().and_then(|text| Line::parse(text).ok()) else { return };
    match heard {
        Line::Event(event) => {
            let Line::Event(again) = said_again(&line(&event)) else { panic!("an event is no reply") };
            assert_eq!(again, event);
        }
        Line::Reply(reply) => {
            let said = line(&reply);
            let Line::Reply(again) = said_again(&said) else { panic!("a reply is no event") };
            assert_eq!(line(&again).escape_ascii().to_string(), said.escape_ascii().to_string());
        }
    }
}

/// The id of a request, whatever else stands in its line.
fn id(bytes: &[u8]) -> Option<Value> {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(bytes) else { return None };
    fields.remove("id").filter(|id| id.is_string() || id.is_number())
}

/// Reads what [`line`] wrote.
fn said_again(said: &[u8]) -> Line {
    let text = str::from_utf8(said).expect("JSON is text");
    let text = text.strip_suffix('\n').expect("a line ends");
    assert!(!text.contains('\n'), "{text:?} is no line");
    Line::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}
