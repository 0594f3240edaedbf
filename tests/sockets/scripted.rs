//! An upstream that does what a test says, byte for byte, and remembers what it was sent.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    /// Request line and fields, without the empty line.
    pub head: String,
    pub body: Vec<u8>,
}

impl Received {
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    /// The names of its fields, sorted.
    pub fn names(&self) -> Vec<&str> {
        let fields = self.head.lines().skip(1);
        let mut names: Vec<_> = fields.map(|line| line.split(':').next().unwrap()).collect();
        names.sort_unstable();
        names
    }

    /// The values of a field, in their order.
    pub fn field(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1);
        fields
            .filter_map(|line| line.split_once(": "))
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }
}

/// One connection to it.
pub struct Connection {
    pub stream: TcpStream,
    /// From 0.
    pub number: usize,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Connection {
    /// The next request, whole; `None` once there is none.
    pub async fn receive(&mut self) -> Option<Received> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).unwrap();
        let mut received = Received {
            head: head.trim_end().to_owned(),
            body: Vec::new(),
        };
        let length = received.field("content-length").first().map(|l| l.parse());
        received.body = vec![0; length.map_or(0, Result::unwrap)];
        self.stream.read_exact(&mut received.body).await.ok()?;
        self.received.lock().push(received.clone());
        Some(received)
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        // Whoever has gone meanwhile does not read it.
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Receives a request and answers it; `false` once there is none.
    pub async fn answer(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        if self.receive().await.is_none() {
            return false;
        }
        self.write(bytes).await;
        true
    }
}

pub struct Scripted {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    connections: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Scripted {
    /// Every connection plays `script`, on the runtime this is called on.
    pub async fn start<S, F>(script: S) -> Self
    where
        S: Fn(Connection) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let connections = Arc::<AtomicUsize>::default();
        let (to, count) = (received.clone(), connections.clone());
        let serving = tokio::spawn(async move {
            let mut playing = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                playing.spawn(script(Connection {
                    stream,
                    number: count.fetch_add(1, Ordering::Relaxed),
                    received: to.clone(),
                }));
            }
        });
        Self {
            address,
            received,
            connections,
            serving,
        }
    }

    /// Answers everything with the same bytes.
    pub async fn answering(bytes: &'static [u8]) -> Self {
        Self::start(move |mut connection| async move { while connection.answer(bytes).await {} })
            .await
    }

    /// Whole requests, in the order they came.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
