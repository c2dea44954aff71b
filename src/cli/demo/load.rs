//! The load: clients that ask without pause for thought and believe nothing.
//!
//! Half of them open a connection for each request, the other half keep theirs. A request has failed unless the
//! whole answer, and nothing else, came from a release that may answer. A kept connection may be closed by the
//! server only as HTTP has it: announced by `Connection: close` with an answer. The client then opens another.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::http::{Connection, Fault, Persistence};
use super::tally::Tally;

/// The pause of a client between two requests: two processors should be busy, not drowned.
const PAUSE: Duration = Duration::from_millis(15);

/// A request without a complete answer by then has failed.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The load on one server, as seen by whoever watches it. Copies are of the same load.
#[derive(Clone)]
pub struct Load {
    shared: Arc<Shared>,
}

struct Shared {
    address: SocketAddr,
    /// The newest release that may answer; the older ones may, too, as they drain in their own time.
    newest: AtomicU32,
    stopping: AtomicBool,
    tally: Mutex<Tally>,
}

impl Load {
    /// Prepares a load on a server whose release 1 serves; it does nothing until it is started.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            shared: Arc::new(Shared {
                address,
                newest: AtomicU32::new(1),
                stopping: AtomicBool::new(false),
                tally: Mutex::default(),
            }),
        }
    }

    /// Starts the clients: `once` with a connection for each request, `kept` over keep-alive.
    pub fn start(&self, once: u32, kept: u32) -> Clients {
        let kinds = (0..once).map(|_| Persistence::Once).chain((0..kept).map(|_| Persistence::Kept));
        let mut tasks = JoinSet::new();
        for (number, persistence) in (0..).zip(kinds) {
            tasks.spawn(self.shared.clone().ask_on(persistence, PAUSE * number / (once + kept)));
        }
        Clients { shared: self.shared.clone(), tasks }
    }

    /// Lets `release`, and every one before it, answer from now on.
    pub fn expect_up_to(&self, release: u32) {
        self.shared.newest.store(release, Ordering::Relaxed);
    }

    /// Returns the counts so far.
    pub fn tally(&self) -> Tally {
        self.shared.with_tally(|tally| tally.clone())
    }

    /// Returns how many requests `release` has answered so far.
    pub fn answered_by(&self, release: u32) -> u64 {
        self.shared.with_tally(|tally| tally.by_release().get(&release).copied().unwrap_or(0))
    }
}

/// The clients at work; dropping them cuts them off in the middle of their requests.
pub struct Clients {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Clients {
    /// Waits until each client has finished its request; none starts another. Takes no longer than one request may.
    pub async fn stop(self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
    }
}

impl Shared {
    /// The life of one client.
    async fn ask_on(self: Arc<Self>, persistence: Persistence, delay: Duration) {
        sleep(delay).await;
        let mut connection = None;
        while !self.stopping.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let asked = timeout(ANSWER_LIMIT, self.ask(&mut connection, persistence)).await;
            match asked.unwrap_or(Err(Fault::Late)) {
                Ok(release) => self.with_tally(|tally| tally.answered(release, begun.elapsed())),
                Err(fault) => self.with_tally(|tally| tally.failed(fault.to_string())),
            }
            sleep(PAUSE).await;
        }
    }

    /// Makes one request, and returns the release that answered.
    ///
    /// Leaves `connection` empty unless it may be used again.
    async fn ask(&self, connection: &mut Option<Connection>, persistence: Persistence) -> Result<u32, Fault> {
        let mut used = match connection.take() {
            Some(kept) => kept,
            None => Connection::open(self.address).await?,
        };
        let answer = used.get("/", persistence).await?;
        let release = self.identify(&answer.body)?;
        if answer.closing {
            used.ended().await?;
        } else if persistence == Persistence::Kept {
            *connection = Some(used);
        } else {
            return Err(Fault::NotClosed);
        }
        Ok(release)
    }

    /// Finds the release that sent `body`, among those that may answer.
    fn identify(&self, body: &[u8]) -> Result<u32, Fault> {
        let newest = self.newest.load(Ordering::Relaxed);
        (1..=newest)
            .find(|release| body == format!("release {release}\n").as_bytes())
            .ok_or_else(|| Fault::Body(String::from_utf8_lossy(body).into_owned()))
    }

    fn with_tally<T>(&self, f: impl FnOnce(&mut Tally) -> T) -> T {
        f(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nrelease 1\n";
    const LAST: &str = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\nconnection: close\r\n\r\nrelease 1\n";

    /// Asks for each answer of each connection that a made-up server gives (it closes after the last one), and
    /// returns what the client makes of them.
    async fn ask(connections: &'static [&'static [&'static str]], persistence: Persistence) -> Vec<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let load = Load::new(listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            for answers in connections {
                let (mut stream, _) = listener.accept().await.unwrap();
                for answer in *answers {
                    let mut request = [0; 1024];
                    assert!(stream.read(&mut request).await.unwrap() > 0);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        let mut connection = None;
        let mut results = Vec::new();
        for _ in connections.iter().flat_map(|answers| answers.iter()) {
            let asked = load.shared.ask(&mut connection, persistence).await;
            results
                .push(asked.map_or_else(|fault| fault.to_string(), |release| format!("release {release}")));
        }
        server.await.unwrap();
        results
    }

    #[tokio::test]
    async fn right_answers_are_counted() {
        assert_eq!(ask(&[&[LAST], &[LAST]], Persistence::Once).await, ["release 1", "release 1"]);
        assert_eq!(ask(&[&[GOOD, GOOD]], Persistence::Kept).await, ["release 1", "release 1"]);
    }

    #[tokio::test]
    async fn an_announced_close_leads_to_a_new_connection() {
        assert_eq!(ask(&[&[LAST], &[GOOD]], Persistence::Kept).await, ["release 1", "release 1"]);
    }

    #[tokio::test]
    async fn a_close_without_an_announcement_fails_the_request_that_it_hits() {
        let results = ask(&[&[GOOD, ""]], Persistence::Kept).await;
        assert_eq!(results, ["release 1", "the connection was closed in place of an answer"]);
    }

    #[tokio::test]
    async fn wrong_answers_fail() {
        for (answer, reason) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nrelease", "the answer was cut off"),
            ("HTTP/1.1 200 OK\r\ncont", "the answer was cut off"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nrelease 1\n", "wrong answer: bytes after its end"),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nrelease 2\n",
                "wrong answer: the body is \"release 2\\n\"",
            ),
            ("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", "wrong answer: the status is not 200 OK"),
        ] {
            let answers: &'static [&'static str] = vec![answer].leak();
            assert_eq!(ask(vec![answers].leak(), Persistence::Kept).await, [reason]);
        }
        assert_eq!(
            ask(&[&[GOOD]], Persistence::Once).await,
            ["the connection was not closed after the answer"]
        );
    }

    #[tokio::test]
    async fn a_refused_connection_fails() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let load = Load::new(free);
        let clients = load.start(1, 1);
        while load.tally().requests() < 2 {
            sleep(Duration::from_millis(1)).await;
        }
        clients.stop().await;
        let tally = load.tally();
        assert_eq!(tally.failures(), tally.requests());
        let reasons: Vec<_> = tally.reasons().keys().collect();
        assert_eq!(reasons, ["connecting: Connection refused (os error 111)"]);
    }
}
