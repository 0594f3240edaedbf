//! A naive gateway, over sockets: what most people would write, and what they would leave out.
//!
//! A token bucket of depth N, refilled at N per W; permits given back with the answer's head; a submission
//! sent again when its connection broke, or at once when it was answered 429; lengths believed; no timeouts.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use podgate::emulator::policer::{Policer, RateDoor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

pub struct Naive {
    upstream: SocketAddr,
    bucket: Mutex<RateDoor>,
    permits: Semaphore,
    since: Instant,
}

/// What a caller of it gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Taken for the upstream's whole answer.
    Answer(u16, String),
    /// The bucket is empty.
    NoToken,
    /// Given up.
    Broken,
}

impl Outcome {
    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::Answer(status, _) => Some(*status),
            Outcome::NoToken | Outcome::Broken => None,
        }
    }
}

impl Naive {
    /// Of one request.
    pub const MOST_TRIES: u32 = 5;

    #[expect(
        clippy::disallowed_methods,
        reason = "the naive gateway's clock; no test depends on what it shows"
    )]
    pub fn before(upstream: SocketAddr, requests: u32, concurrency: usize) -> Self {
        let bucket = Policer::TokenBucket {
            depth: 0,
            refill: 0,
        };
        // So long a window that no test sees it refilled.
        let window = Duration::from_secs(100_000);
        Self {
            upstream,
            bucket: Mutex::new(RateDoor::new(bucket, requests, window)),
            permits: Semaphore::new(concurrency),
            since: Instant::now(),
        }
    }

    pub async fn submit(&self, path: &str, body: &str) -> Outcome {
        for _ in 0..Self::MOST_TRIES {
            if !self.bucket.lock().arrive(self.since.elapsed()) {
                return Outcome::NoToken;
            }
            match self.exchange(path, body).await {
                Ok((429, retry_after, _)) => {
                    let seconds = retry_after.and_then(|text| text.parse().ok());
                    tokio::time::sleep(Duration::from_secs(seconds.unwrap_or(0))).await;
                }
                Ok((status, _, body)) => return Outcome::Answer(status, body),
                Err(_) => {}
            }
        }
        Outcome::Broken
    }

    /// Status, `Retry-After` and body.
    async fn exchange(&self, path: &str, body: &str) -> io::Result<(u16, Option<String>, String)> {
        let permit = self.permits.acquire().await.map_err(io::Error::other)?;
        let mut stream = TcpStream::connect(self.upstream).await?;
        let length = body.len();
        let request = format!(
            "POST /v2/ep/{path} HTTP/1.1\r\nhost: e\r\nauthorization: key\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        drop(permit);
        let head = String::from_utf8(head).map_err(io::Error::other)?;
        let field = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines
                .find(|(field, _)| *field == name)
                .map(|(_, value)| value.to_owned())
        };
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
        let length = field("content-length").and_then(|text| text.parse().ok());
        let mut body = Vec::new();
        stream
            .take(length.unwrap_or(u64::MAX))
            .read_to_end(&mut body)
            .await?;
        let body = String::from_utf8(body).map_err(io::Error::other)?;
        Ok((status.unwrap_or(502), field("retry-after"), body))
    }
}
