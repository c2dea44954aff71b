//! The demo's worker, and the worked example of a Rust service whose code liveswap can swap: an axum app on hyper.
//!
//! What a worker owes its manager, in the order of its life:
//!
//! 1. It takes its listening socket from the manager instead of binding one ([`Listener::inherited`]).
//! 2. It says `READY=1` once it can serve, and accepts nothing before ([`work`]).
//! 3. On SIGTERM it stops accepting, between two connections and never within one ([`accept_until`]).
//! 4. It finishes what it has: every connection that was accepted is served ([`converse`], [`drain`]).
//! 5. It exits with status 0.
//!
//! The same listening socket is open in the workers of the next release, so connections that wait in its queue are
//! accepted there: closing it here loses none.
//!
//! `axum::serve` with its graceful shutdown does nearly all of this in one line. It closes idle keep-alive
//! connections at once, though, and a client that happens to send just then finds its request reset. The accept
//! loop stands here in full because of that one difference; see [`LINGER`].

use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::extract::RawQuery;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long a draining worker keeps idle connections open for a client that is about to use them again.
///
/// A server that closes an idle connection may cross a request on its way: the one race of HTTP/1.1, which no server
/// can close alone (RFC 9112, section 9.5). A worker can avoid it for every client that is at work: who sends within
/// this time is answered, and told `Connection: close` with the answer. Only who comes back to a connection
/// in the very moment at which this time ends can still meet the race.
const LINGER: Duration = Duration::from_secs(1);

/// The pause after an accept(2) that failed for want of descriptors or memory, which only time will bring.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The longest answer of `/slow`.
const SLOWEST: Duration = Duration::from_secs(10);

/// The arguments of `liveswap demo-worker`.
#[derive(Debug, clap::Args)]
pub struct WorkerArgs {
    /// The release that the answers name
    #[arg(long, value_name = "N")]
    pub release: u32,
    /// Never become ready, like a release whose start hangs
    #[arg(long)]
    pub never_ready: bool,
}

/// Runs the worker until it was told to drain and has drained.
pub fn run(args: &WorkerArgs) -> ExitCode {
    // listenfd takes its variables out of the environment, so it comes first, while no other thread can be reading it.
    let served = Inherited::from_environment().and_then(|socket| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work(args, socket))
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: the demo's worker cannot serve\nCaused by: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The life of the worker.
async fn work(args: &WorkerArgs, socket: Inherited) -> io::Result<()> {
    // Caught before READY=1, so that a worker which was ready never dies of the request to drain.
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = Listener::inherited(socket)?;
    if args.never_ready {
        sd_notify::notify(&[NotifyState::Status("waiting for a database that never answers")])?;
        terminate.recv().await;
        return Ok(());
    }

    let (draining, _) = watch::channel(false);
    let app = app(args.release, draining.subscribe());

    // READY=1 and only then the first accept: a release that never gets this far never sees a connection.
    sd_notify::notify(&[NotifyState::Ready])?;
    let connections = accept_until(terminate.recv(), &listener, &app, &draining).await;

    draining.send_replace(true);
    drop(listener);
    drain(connections).await;
    Ok(())
}

/// The web application itself, which knows nothing of sockets.
fn app(release: u32, draining: watch::Receiver<bool>) -> Router {
    let answer = move || {
        // LIVESWAP_GENERATION and LIVESWAP_SLOT tell a worker which one it is.
        let number = |variable| std::env::var(variable).unwrap_or_else(|_| "none".to_owned());
        let headers = [
            (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
            (HeaderName::from_static("x-generation"), number("LIVESWAP_GENERATION")),
            (HeaderName::from_static("x-slot"), number("LIVESWAP_SLOT")),
        ];
        (headers, format!("release {release}\n"))
    };
    let slow = move |RawQuery(query): RawQuery| async move {
        let pause = query.as_deref().and_then(|query| query.strip_prefix("ms=")?.parse().ok());
        match pause.map(Duration::from_millis) {
            Some(pause) if pause <= SLOWEST => {
                tokio::time::sleep(pause).await;
                answer().into_response()
            }
            _ => (StatusCode::BAD_REQUEST, "use /slow?ms=N, N from 0 to 10000\n").into_response(),
        }
    };
    // Every answer given while draining, also to a request that came before, tells the client to go elsewhere next;
    // hyper reads the header too, and closes the connection after the answer.
    let announce_close = move |mut response: Response| {
        if *draining.borrow() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        std::future::ready(response)
    };
    Router::new()
        .route("/", get(move || std::future::ready(answer())))
        .route("/slow", get(slow))
        .layer(map_response(announce_close))
}

/// Accepts connections until `stop` completes, and returns those that are still open.
///
/// A connection is either left in the queue or accepted and served, never lost between the two: `accept` takes a
/// connection in the same step in which it completes, so dropping it unfinished drops nothing.
async fn accept_until<T>(
    stop: impl Future<Output = T>,
    listener: &Listener,
    app: &Router,
    draining: &watch::Sender<bool>,
) -> JoinSet<()> {
    let mut stop = pin!(stop);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = &mut stop => return connections,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok(stream) => {
                    connections.spawn(converse(stream, app.clone(), draining.subscribe()));
                }
                // This connection's own end (ECONNABORTED), or a shortage that passes: no reason to stop serving.
                Err(error) => {
                    eprintln!("accept: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

/// Serves one connection to its end.
async fn converse(stream: Box<dyn Stream>, app: Router, mut draining: watch::Receiver<bool>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new()) // closes a connection whose next request does not come within 30 s
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut connection = pin!(connection);
    let lingered = async {
        // An error would mean that the sender has gone, which it does only after this connection.
        let _ = draining.wait_for(|draining| *draining).await;
        tokio::time::sleep(LINGER).await;
    };
    // In this order: a request that has arrived is seen before the connection could be taken for idle.
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = lingered => {}
    }
    // Closes it if it is idle; otherwise the request under way is answered first.
    connection.as_mut().graceful_shutdown();
    // An error here, as above, is a client that went away: there is nobody left to tell.
    let _ = connection.await;
}

/// Waits until the last connection has ended, and lets the manager follow.
///
/// The counts are for people who watch, so one that cannot be sent is no reason to fail.
async fn drain(mut connections: JoinSet<()>) {
    loop {
        // Those that ended together make one message.
        while connections.try_join_next().is_some() {}
        let open = format!("X_LIVESWAP_CONNECTIONS={}", connections.len());
        let _ = sd_notify::notify(&[NotifyState::Custom(&open)]);
        if connections.join_next().await.is_none() {
            break;
        }
    }
    let _ = sd_notify::notify(&[NotifyState::Custom("X_LIVESWAP_DRAINED=1")]);
}

/// The first socket that the manager passed, as the standard library knows it.
enum Inherited {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Inherited {
    /// Takes the socket by the `LISTEN_FDS` protocol (`sd_listen_fds(3)`).
    fn from_environment() -> io::Result<Self> {
        let mut passed = ListenFd::from_env();
        // A socket of the other family stays in its place, so the first attempt costs nothing.
        if let Ok(Some(listener)) = passed.take_tcp_listener(0) {
            return Ok(Self::Tcp(listener));
        }
        passed.take_unix_listener(0)?.map(Self::Unix).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "no socket was passed (LISTEN_FDS is not set, or LISTEN_PID names another process); \
                 start it by `liveswap run`",
            )
        })
    }
}

/// The listening socket, in the runtime's hands.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Hands the inherited socket to the runtime, which needs it non-blocking.
    ///
    /// `O_NONBLOCK` belongs to the open file description, which is one for the manager and for every worker of every
    /// generation: who sets it here sets it for all of them. That is harmless as long as all want the same, and here
    /// all do. The service file says `non_blocking = true`, so it was set before any worker ran, and this call changes
    /// nothing. A release that would rather block in accept(2) must not clear the flag under the others; it
    /// calls poll(2) first, which serves in either state.
    fn inherited(socket: Inherited) -> io::Result<Self> {
        match socket {
            Inherited::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                TcpListener::from_std(socket).map(Self::Tcp)
            }
            Inherited::Unix(socket) => {
                socket.set_nonblocking(true)?;
                UnixListener::from_std(socket).map(Self::Unix)
            }
        }
    }

    /// Waits for a connection; dropping the future loses none.
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// An accepted connection, of whichever family.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}
