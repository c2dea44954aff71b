//! Messages for the workers: by the channel of a Node worker, or by the pipe that other workers inherit under `messages = true`.
//!
//! A line on a pipe is written whole or not at all. What waits for a channel is bounded. A worker that does not read is named, and holds up
//! neither the manager nor other workers.

use std::io;

use super::super::launch::MESSAGE_VARIABLE;
use super::super::run::Daemon;
use crate::core::ids::WorkerId;
use crate::sys::output::write_message;
use crate::wire::control::Reply;
use crate::wire::message::Message;

/// How many workers that were not reached are named.
const NAMED: usize = 5;

impl Daemon {
    /// Hands a message to every worker that serves or is about to, or to none where it is no message for one of them.
    pub(super) fn send_message(&mut self, message: &Message) -> Reply {
        let (mut reached, mut failures, mut is_taken) = (0_usize, Vec::new(), false);
        let live: Vec<_> = self.manager.live_workers().map(|(worker, _)| worker).collect();
        let (text, json) = (message.for_pipe(), message.for_node());
        for worker in &live {
            let why = match self.processes.get(worker).map(|process| (&process.messages, &process.channel)) {
                Some((Some(_), _)) => text.as_ref().err(),
                Some((None, Some(_))) => json.as_ref().err(),
                Some((None, None)) | None => None,
            };
            if let Some(why) = why {
                return Reply::failed("message", why);
            }
        }
        let (text, json) = (text.unwrap_or_default(), json.unwrap_or_default());
        for worker in live {
            match self.hand_over(worker, &text, json) {
                Some(Ok(())) => reached += 1,
                Some(Err(why)) => failures.push(why),
                None => continue,
            }
            is_taken = true;
        }
        if !is_taken {
            let hint =
                "set `messages = true` in [service] and upgrade; workers then read LIVESWAP_MESSAGE_FD";
            let reply = Reply::failed("message", "no worker of this service takes messages");
            return Reply { hint: Some(hint.into()), ..reply };
        }
        if failures.is_empty() {
            return Reply::ok("message");
        }
        let (count, all) = (failures.len(), failures.len() + reached);
        let others = if count > NAMED { format!(" and {} others", count - NAMED) } else { String::new() };
        failures.truncate(NAMED);
        let why = format!("{count} of {all} workers were not handed it: {}{others}", failures.join("; "));
        Reply::failed("message", why)
    }

    /// `None` for a worker without such a pipe.
    fn hand_over(&mut self, worker: WorkerId, text: &str, json: &str) -> Option<Result<(), String>> {
        let process = self.processes.get_mut(&worker)?;
        let slot = process.slot;
        let (handed, way) = match (&process.messages, &mut process.channel) {
            (Some(pipe), _) => (write_message(pipe, text.as_bytes()), MESSAGE_VARIABLE),
            (None, Some(channel)) => (channel.tell(json), "channel"),
            (None, None) => return None,
        };
        // What a channel did not take at once goes when it does.
        self.tend_channel(worker);
        Some(handed.map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::WouldBlock => "has not read its earlier messages".to_owned(),
                io::ErrorKind::BrokenPipe => format!("has closed its {way}"),
                _ => error.to_string(),
            };
            format!("worker {worker} (slot {slot}) {why}")
        }))
    }
}
