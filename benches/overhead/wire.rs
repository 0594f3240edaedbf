//! One end of a connection that never blocks, in the clear or by TLS. Made for edge-triggered epoll:
//! what has arrived is read until nothing is left.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::rc::Rc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustls::Connection;

/// Large enough that a small message is read by one call, and known to be all there is.
pub const CHUNK: usize = 256 << 10;

pub struct Wire {
    socket: TcpStream,
    tls: Option<Box<Connection>>,
    /// What is on its way in the clear, and how much of it the kernel has. By TLS, rustls keeps
    /// what is left.
    message: Rc<[u8]>,
    sent: usize,
}

/// `None`: not now.
fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

impl Wire {
    /// Of a connected socket. `tls` may have its handshake before it, or behind it.
    pub fn new(socket: TcpStream, tls: Option<Connection>) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            tls: tls.map(Box::new),
            message: Rc::new([]),
            sent: 0,
        })
    }

    /// From here on `epoll` tells of it, by `number`.
    pub fn register(&self, epoll: &OwnedFd, number: usize) -> io::Result<()> {
        let all = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let data = EventData::new_u64(number as u64);
        Ok(epoll::add(epoll, self.socket.as_fd(), data, all)?)
    }

    /// Sends a message, as much of it as the kernel takes now; [`Wire::flush`] does the rest.
    pub fn send(&mut self, message: &Rc<[u8]>) -> io::Result<()> {
        assert_eq!(self.sent, self.message.len(), "one message at a time");
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(message)?,
            None => {
                self.message = message.clone();
                self.sent = 0;
            }
        }
        self.flush()
    }

    /// Sends what is left.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                if unless_blocked(tls.write_tls(&mut self.socket))?.is_none() {
                    break;
                }
            }
            return Ok(());
        }
        while self.sent < self.message.len() {
            match unless_blocked(self.socket.write(&self.message[self.sent..]))? {
                Some(count) => self.sent += count,
                None => break,
            }
        }
        Ok(())
    }

    /// Hands what has arrived to `take`. `false`: the other side has closed.
    pub fn receive(&mut self, chunk: &mut [u8], mut take: impl FnMut(&[u8])) -> io::Result<bool> {
        loop {
            let count = match unless_blocked(self.socket.read(chunk))? {
                None => return Ok(true),
                Some(0) => return Ok(false),
                Some(count) => count,
            };
            match &mut self.tls {
                Some(tls) => decrypt(tls, &chunk[..count], &mut take)?,
                None => take(&chunk[..count]),
            }
            // A socket that had less than there was room for is empty.
            if count < chunk.len() {
                break;
            }
        }
        if self.tls.is_some() {
            self.flush()?; // handshakes have answers
        }
        Ok(true)
    }
}

fn decrypt(tls: &mut Connection, mut bytes: &[u8], take: &mut impl FnMut(&[u8])) -> io::Result<()> {
    while !bytes.is_empty() {
        tls.read_tls(&mut bytes)?;
        tls.process_new_packets().map_err(io::Error::other)?;
        let mut reader = tls.reader();
        loop {
            match reader.fill_buf() {
                // A close is followed by the socket's own.
                Ok([]) => break,
                Ok(plain) => {
                    take(plain);
                    let count = plain.len();
                    reader.consume(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
