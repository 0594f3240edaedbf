//! Clients that write bytes and read bytes, and an upstream that tells each request's own answer.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::scripted::Scripted;
use super::support::{Gateway, within};

/// Answers each request with its own target.
pub async fn echo() -> Scripted {
    Scripted::start(|mut connection| async move {
        while let Some(received) = connection.receive().await {
            let target = received.line().split(' ').nth(1).unwrap().to_owned();
            let length = target.len();
            connection
                .write(format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{target}"
                ))
                .await;
        }
    })
    .await
}

/// An answer as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// Status line and fields.
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// A connection to podgate.
pub struct Raw {
    from: Answers,
    to: OwnedWriteHalf,
}

/// What it reads.
pub struct Answers(BufReader<OwnedReadHalf>);

impl Raw {
    pub async fn connect(gateway: &Gateway) -> Self {
        let (from, to) = gateway.connect().await.into_split();
        let from = Answers(BufReader::new(from));
        Self { from, to }
    }

    /// Writes what is taken; whoever refuses need not take all of it.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.to.write_all(bytes.as_ref()).await.is_ok()
    }

    pub fn split(self) -> (Answers, OwnedWriteHalf) {
        (self.from, self.to)
    }

    pub async fn reply(&mut self) -> Option<Reply> {
        self.from.reply().await
    }

    pub async fn reply_to_head(&mut self) -> Option<Reply> {
        self.from.reply_to_head().await
    }

    pub async fn replies(&mut self) -> Vec<Reply> {
        self.from.replies().await
    }
}

impl Answers {
    /// The next answer, interim ones too; `None` once the connection has ended in order.
    pub async fn reply(&mut self) -> Option<Reply> {
        within("an answer, or the end", self.read(true)).await
    }

    /// The same of a HEAD request.
    pub async fn reply_to_head(&mut self) -> Option<Reply> {
        within("an answer, or the end", self.read(false)).await
    }

    async fn read(&mut self, with_body: bool) -> Option<Reply> {
        let mut head = String::new();
        loop {
            let before = head.len();
            let read = self.0.read_line(&mut head).await;
            if read.expect("it ends in order") == 0 {
                assert_eq!(head, "", "cut in the head");
                return None;
            }
            if &head[before..] == "\r\n" {
                break;
            }
        }
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let mut reply = Reply {
            status: status.unwrap_or_else(|| panic!("an answer: {head}")),
            head,
            body: Vec::new(),
        };
        if !with_body || reply.status < 200 {
            return Some(reply);
        }
        match reply.field("content-length") {
            Some(length) => {
                reply.body = vec![0; length.parse().unwrap()];
                self.0.read_exact(&mut reply.body).await.unwrap();
            }
            None if reply.field("transfer-encoding").is_some() => {
                self.chunks(&mut reply.body).await
            }
            None => {
                self.0.read_to_end(&mut reply.body).await.unwrap();
            }
        }
        Some(reply)
    }

    async fn chunks(&mut self, body: &mut Vec<u8>) {
        loop {
            let mut size = String::new();
            self.0.read_line(&mut size).await.unwrap();
            let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            self.0.read_exact(&mut chunk).await.unwrap();
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return;
            }
        }
    }

    /// Every answer to the end of the connection.
    pub async fn replies(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        while let Some(reply) = self.reply().await {
            replies.push(reply);
        }
        replies
    }
}
