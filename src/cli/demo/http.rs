//! One HTTP/1.1 exchange, read byte for byte.
//!
//! A client library would mend what this one is here to find: it retries, opens connections anew, and overlooks bytes
//! that nobody asked for. Here whatever is not exactly the expected answer is a [`Fault`].

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest head of an answer, in bytes.
const HEAD_LIMIT: usize = 8 * 1024;

/// The longest body, in bytes.
const BODY_LIMIT: usize = 64 * 1024;

/// What can go wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The connection was refused, or reset before it stood.
    #[error("connecting: {0}")]
    Connect(io::Error),
    /// The request could not be written.
    #[error("sending the request: {0}")]
    Send(io::Error),
    /// The connection was reset.
    #[error("receiving the answer: {0}")]
    Receive(io::Error),
    /// The server closed a connection on which a request stood unanswered, and had not announced it.
    #[error("the connection was closed in place of an answer")]
    Closed,
    /// The server closed the connection in the middle of an answer.
    #[error("the answer was cut off")]
    Truncated,
    /// The head of the answer is not as expected.
    #[error("wrong answer: {0}")]
    Head(&'static str),
    /// The body is not that of a release which may answer.
    #[error("wrong answer: the body is {0:?}")]
    Body(String),
    /// More came than the answer.
    #[error("wrong answer: bytes after its end")]
    Excess,
    /// The server went on with a connection that it was asked to close.
    #[error("the connection was not closed after the answer")]
    NotClosed,
    /// No answer came in time.
    #[error("no answer in time")]
    Late,
}

/// Whether the connection is wanted for another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// One request, then the server closes.
    Once,
    /// Kept for the next one, unless the server announces that it closes.
    Kept,
}

/// A complete answer with status 200.
#[derive(Debug)]
pub struct Answer {
    /// As long as the head said.
    pub body: Vec<u8>,
    /// Whether the server announced that it closes the connection.
    pub closing: bool,
}

/// A connection to the server, between two exchanges.
pub struct Connection {
    stream: TcpStream,
    address: SocketAddr,
}

impl Connection {
    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// [`Fault::Connect`].
    pub async fn open(address: SocketAddr) -> Result<Self, Fault> {
        let stream = TcpStream::connect(address).await.map_err(Fault::Connect)?;
        Ok(Self { stream, address })
    }

    /// Asks for `path` and reads the answer to its last byte.
    ///
    /// # Errors
    ///
    /// Every [`Fault`] but those of the connection's beginning and end.
    pub async fn get(&mut self, path: &str, persistence: Persistence) -> Result<Answer, Fault> {
        let close = match persistence {
            Persistence::Once => "Connection: close\r\n",
            Persistence::Kept => "",
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{close}\r\n", self.address);
        self.stream.write_all(request.as_bytes()).await.map_err(Fault::Send)?;

        let mut received = Vec::new();
        let body_at = loop {
            if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if received.len() > HEAD_LIMIT {
                return Err(Fault::Head("the head has no end"));
            }
            self.receive(&mut received).await?;
        };
        let head = Head::parse(&received[..body_at])?;
        while received.len() < body_at + head.length {
            self.receive(&mut received).await?;
        }
        if received.len() > body_at + head.length {
            return Err(Fault::Excess);
        }
        Ok(Answer { body: received.split_off(body_at), closing: head.closing })
    }

    /// Waits for the announced end of the connection, which must be an orderly one with nothing before it.
    ///
    /// # Errors
    ///
    /// [`Fault::Receive`] or [`Fault::Excess`].
    pub async fn ended(mut self) -> Result<(), Fault> {
        let mut excess = Vec::new();
        match self.stream.read_buf(&mut excess).await.map_err(Fault::Receive)? {
            0 => Ok(()),
            _ => Err(Fault::Excess),
        }
    }

    /// Appends what has come, at least one byte.
    async fn receive(&mut self, received: &mut Vec<u8>) -> Result<(), Fault> {
        match self.stream.read_buf(received).await.map_err(Fault::Receive)? {
            0 if received.is_empty() => Err(Fault::Closed),
            0 => Err(Fault::Truncated),
            _ => Ok(()),
        }
    }
}

/// What the head of an answer says of the rest.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    length: usize,
    closing: bool,
}

impl Head {
    /// Reads a head, its closing blank line included (RFC 9112, sections 4 to 6).
    fn parse(head: &[u8]) -> Result<Self, Fault> {
        let head = str::from_utf8(head).map_err(|_| Fault::Head("the head is not text"))?;
        let mut lines = head.split_terminator("\r\n");
        if lines.next() != Some("HTTP/1.1 200 OK") {
            return Err(Fault::Head("the status is not 200 OK"));
        }
        let (mut length, mut closing) = (None, false);
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or(Fault::Head("a header has no colon"))?;
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                if length.is_some() {
                    return Err(Fault::Head("there are two lengths"));
                }
                length = Some(value.parse().map_err(|_| Fault::Head("the length is not a number"))?);
            } else if name.eq_ignore_ascii_case("connection") {
                closing |= value.split(',').any(|token| token.trim().eq_ignore_ascii_case("close"));
            }
        }
        match length {
            Some(length) if length <= BODY_LIMIT => Ok(Self { length, closing }),
            Some(_) => Err(Fault::Head("the length is beyond all measure")),
            None => Err(Fault::Head("there is no length")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Head, String> {
        Head::parse(text.as_bytes()).map_err(|fault| fault.to_string())
    }

    #[test]
    fn a_head_tells_the_length_and_an_announced_close() {
        let kept = head("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
        assert_eq!(kept, Ok(Head { length: 10, closing: false }));
        let closing = head("HTTP/1.1 200 OK\r\nconnection: foo, Close\r\ncontent-length:0\r\n\r\n");
        assert_eq!(closing, Ok(Head { length: 0, closing: true }));
    }

    #[test]
    fn every_other_head_is_a_wrong_answer() {
        for (text, reason) in [
            ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "the status is not 200 OK"),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", "the status is not 200 OK"),
            ("HTTP/1.1 200 OK\r\n\r\n", "there is no length"),
            ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "the length is not a number"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n", "there are two lengths"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "the length is beyond all measure"),
            ("HTTP/1.1 200 OK\r\ncontent-length 1\r\n\r\n", "a header has no colon"),
        ] {
            assert_eq!(head(text), Err(format!("wrong answer: {reason}")), "{text:?}");
        }
    }
}
