//! The upstream of both proxies, a process of its own: it answers whatever comes with the same few
//! bytes, and does not look at more of a request than where it ends.

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use memchr::memmem;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustls::{ServerConfig, ServerConnection};

use crate::peer;
use crate::wire::{CHUNK, Wire};

const EVENTS: usize = 256;
/// What epoll calls the listener, and the pipe whose end says that the benchmark has ended.
const LISTENER: u64 = u64::MAX;
const PARENT: u64 = u64::MAX - 1;

/// Where a connection is in what it is sent.
#[derive(Default)]
struct Progress {
    /// A head that has not ended yet.
    head: Vec<u8>,
    /// What of a body is still to come.
    body: usize,
}

impl Progress {
    /// Takes what has arrived; returns how many requests are whole with it.
    fn take(&mut self, mut bytes: &[u8]) -> usize {
        let mut whole = 0;
        while !bytes.is_empty() {
            if self.body == 0 {
                let before = self.head.len();
                self.head.extend_from_slice(bytes);
                let Some(end) = memmem::find(&self.head, b"\r\n\r\n") else {
                    return whole;
                };
                bytes = &bytes[end + 4 - before..];
                self.body = body_length(&self.head[..end]);
                self.head.clear();
            }
            let count = self.body.min(bytes.len());
            self.body -= count;
            bytes = &bytes[count..];
            whole += usize::from(self.body == 0);
        }
        whole
    }
}

/// The length of the body that a head announces.
fn body_length(head: &[u8]) -> usize {
    if head.starts_with(b"GET ") {
        return 0;
    }
    let text = std::str::from_utf8(head).expect("a head is text");
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim())
    });
    // Both proxies know it, so neither has a reason for chunks.
    length
        .and_then(|length| length.parse().ok())
        .unwrap_or_else(|| panic!("a request without a length: {text}"))
}

struct Upstream {
    epoll: OwnedFd,
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    /// By number, never given twice: a run has some hundreds.
    connections: Vec<Option<(Wire, Progress)>>,
    answer: Rc<[u8]>,
    chunk: Box<[u8]>,
}

/// Says where it listens, and answers until the benchmark ends.
pub fn main(tls: Option<Arc<ServerConfig>>) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    println!("{}", listener.local_addr()?);
    let mut upstream = Upstream {
        epoll: epoll::create(CreateFlags::CLOEXEC)?,
        listener,
        tls,
        connections: Vec::new(),
        answer: peer::answer().into_bytes().into(),
        chunk: vec![0; CHUNK].into(),
    };
    let (epoll, listener) = (&upstream.epoll, &upstream.listener);
    epoll::add(
        epoll,
        listener.as_fd(),
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    epoll::add(
        epoll,
        io::stdin().as_fd(),
        EventData::new_u64(PARENT),
        EventFlags::IN,
    )?;
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    loop {
        epoll::wait(&upstream.epoll, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            match event.data.u64() {
                PARENT => return Ok(()),
                LISTENER => upstream.accept()?,
                number => {
                    let number = usize::try_from(number).expect("it was one");
                    if !upstream.serve(number, event.flags).unwrap_or(false) {
                        upstream.connections[number] = None;
                    }
                }
            }
        }
    }
}

impl Upstream {
    fn accept(&mut self) -> io::Result<()> {
        let (socket, _) = match self.listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            accepted => accepted?,
        };
        let tls = self.tls.clone().map(ServerConnection::new);
        let tls = tls.transpose().map_err(io::Error::other)?;
        let wire = Wire::new(socket, tls.map(Into::into))?;
        wire.register(&self.epoll, self.connections.len())?;
        self.connections.push(Some((wire, Progress::default())));
        Ok(())
    }

    /// `false`: the other side has closed.
    fn serve(&mut self, number: usize, flags: EventFlags) -> io::Result<bool> {
        let Some((wire, progress)) = &mut self.connections[number] else {
            return Ok(true);
        };
        if flags.contains(EventFlags::OUT) {
            wire.flush()?;
        }
        let mut whole = 0;
        let open = wire.receive(&mut self.chunk, |bytes| whole += progress.take(bytes))?;
        for _ in 0..whole {
            wire.send(&self.answer)?;
        }
        Ok(open && !flags.contains(EventFlags::RDHUP))
    }
}
