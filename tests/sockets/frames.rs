//! HTTP/2 frame by frame (RFC 9113), for clients that do what no library would.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::within;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Of DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// Of SETTINGS and PING.
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const NO_ERROR: u32 = 0;
pub const CANCEL: u32 = 8;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

pub fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let pairs = settings
        .iter()
        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(SETTINGS, 0, 0, &pairs.collect::<Vec<_>>())
}

/// SETTINGS_INITIAL_WINDOW_SIZE: what each stream may be sent at first.
pub fn window(bytes: u32) -> Vec<u8> {
    settings(&[(4, bytes)])
}

pub fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// Length with a prefix of 7 bits (RFC 7541, section 5.1), and the bytes.
fn text(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match bytes.len() {
        length @ 0..=126 => out.push(length as u8),
        length => {
            out.push(127);
            let mut rest = length - 127;
            while rest >= 128 {
                out.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            out.push(rest as u8);
        }
    }
    out.extend(bytes);
    out
}

/// A field as a literal that is not indexed.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    [vec![0], text(name.as_bytes()), text(value.as_bytes())].concat()
}

/// The fields of a request of podgate's.
pub fn fields(method: &str, path: &str) -> Vec<u8> {
    [
        field(":method", method),
        field(":scheme", "http"),
        field(":path", path),
        field(":authority", "podgate.test"),
        field("authorization", "Bearer key"),
    ]
    .concat()
}

/// A whole request.
pub fn request(stream: u32, method: &str, path: &str, body: &str) -> Vec<u8> {
    let block = fields(method, path);
    if body.is_empty() {
        return frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
    }
    let mut all = frame(HEADERS, END_HEADERS, stream, &block);
    for (number, part) in body.as_bytes().chunks(16_384).enumerate() {
        let last = (number + 1) * 16_384 >= body.len();
        all.extend(frame(DATA, u8::from(last), stream, part));
    }
    all
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of a RST_STREAM or a GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// Whether these are the fields of a 200.
    pub fn is_ok(&self) -> bool {
        self.kind == HEADERS && self.payload.first() == Some(&0x88)
    }
}

/// A client that sends frames. It acknowledges settings and pings unless told otherwise.
pub struct Peer {
    pub stream: TcpStream,
    pub polite: bool,
}

impl Peer {
    /// Connects and says what it grants.
    pub async fn connect(address: SocketAddr, first: &[u8]) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut peer = Self {
            stream,
            polite: true,
        };
        peer.send([PREFACE, first].concat()).await;
        peer
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = within("it is taken", self.stream.write_all(bytes.as_ref())).await;
        sent.unwrap();
    }

    /// The next frame; `None` once the connection has ended.
    pub async fn next(&mut self) -> Option<Frame> {
        within("a frame", self.read()).await
    }

    async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await.ok()?;
        let frame = Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes(head[5..].try_into().unwrap()) & 0x7FFF_FFFF,
            payload,
        };
        if self.polite && matches!(frame.kind, SETTINGS | PING) && frame.flags & ACK == 0 {
            let payload: &[u8] = if frame.kind == PING {
                &frame.payload
            } else {
                &[]
            };
            let ack = self::frame(frame.kind, ACK, 0, payload);
            // Whoever ends the connection does not need it.
            let _ = self.stream.write_all(&ack).await;
        }
        Some(frame)
    }

    /// Reads until a frame is what is looked for; panics if the connection ends before.
    pub async fn until(&mut self, what: &str, mut is: impl FnMut(&Frame) -> bool) -> Frame {
        let mut last = None;
        while let Some(frame) = self.next().await {
            if is(&frame) {
                return frame;
            }
            last = Some(frame);
        }
        panic!("{what}: the connection ended after {last:?}");
    }

    /// Reads the head of the answer on a stream: whether it is a 200.
    pub async fn is_ok(&mut self, stream: u32) -> bool {
        let head = |frame: &Frame| (frame.kind, frame.stream) == (HEADERS, stream);
        self.until("an answer", head).await.is_ok()
    }

    /// Reads to the connection's end; the code of the GOAWAY that came before.
    pub async fn end(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                code = Some(frame.code());
            }
        }
        code
    }
}
