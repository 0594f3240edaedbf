//! Which HTTP a client speaks, told by its first bytes: HTTP/2 begins with a preface that no HTTP/1
//! request begins with.

use std::io;
use std::time::Duration;

use tokio::time::sleep;

use crate::gateway::stream::{Plain, Tls};

/// RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A preface that came in pieces is looked at again after this long: what is only looked at stays
/// readable, so that the kernel says nothing of the pieces that follow.
const PIECES: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

/// Looks at the first bytes and leaves them where they are. Does not end before there are any:
/// whoever calls bounds it.
///
/// # Errors
/// The connection broke; `UnexpectedEof`: it was closed before it said anything.
pub async fn of(stream: &Plain) -> io::Result<Version> {
    let mut first = [0; PREFACE.len()];
    let mut seen = 0;
    loop {
        let here = stream.peek(&mut first).await?;
        if here == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[..here] != PREFACE[..here] {
            return Ok(Version::Http1);
        }
        if here == PREFACE.len() {
            return Ok(Version::Http2);
        }
        // Closed in the middle of it: hyper finds out what that was.
        if here == seen && stream.readable().await?.is_read_closed() {
            return Ok(Version::Http1);
        }
        seen = here;
        sleep(PIECES).await;
    }
}

/// What was agreed on with TLS, or the same told by the first bytes where nothing was.
///
/// # Errors
/// As [`of`].
pub async fn of_tls(stream: &mut Tls) -> io::Result<Version> {
    match stream.protocol() {
        Some(b"h2") => return Ok(Version::Http2),
        Some(_) => return Ok(Version::Http1),
        None => {}
    }
    let is_told = |seen: &[u8]| !PREFACE.starts_with(seen);
    let seen = stream.look(PREFACE.len(), is_told).await?;
    Ok(match seen == PREFACE {
        true => Version::Http2,
        false => Version::Http1,
    })
}
