//! What hyper does not tell of the messages on a connection, read from the same bytes beside it:
//! where two readers of one head could differ, hyper decides silently. It takes a bare line feed
//! for a line's end, drops `Content-Length` where `Transfer-Encoding` is too, takes the last coding
//! for all of them, one length of two equal ones, and a target's beginning where a `#` follows.
//!
//! Follows HTTP/1 framing to know where heads begin, more strictly than hyper does: what it cannot
//! follow it distrusts, and so is every request from there on. Holds no more than the beginning of
//! one line. HTTP/2 frames leave nothing to tell: after its preface nothing is looked at.

use memchr::memchr;
use parking_lot::Mutex;

use crate::gateway::head::BadHead;
use crate::text::{self, all};

/// As much of a line as is read. Longer lines that matter are refused.
const BEGINNING: usize = 64;
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Shared by a connection's socket and whoever answers its requests.
#[derive(Debug, Default)]
pub struct Framing(Mutex<Reader>);

impl Framing {
    /// The next bytes of the connection, in their order.
    pub fn saw(&self, bytes: &[u8]) {
        self.0.lock().saw(bytes);
    }

    /// What is wrong with the head of the next request; called once for each, in their order.
    ///
    /// # Errors
    /// [`BadHead`]: the connection has to end with this request.
    pub fn next(&self) -> Result<(), BadHead> {
        self.0.lock().next()
    }
}

#[derive(Debug, Default)]
struct Reader {
    state: State,
    line: Line,
    length: Option<u64>,
    chunked: bool,
    /// Heads that ended.
    heads: u64,
    /// Requests asked about.
    asked: u64,
    fault: Option<(u64, BadHead)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    RequestLine,
    Fields,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// Something was wrong; nothing more is looked at.
    Lost,
    Http2,
}

/// A line as far as it came.
#[derive(Debug)]
struct Line {
    beginning: [u8; BEGINNING],
    length: usize,
    last: u8,
    /// There was a space, and then a `#`.
    spaced: bool,
    fragment: bool,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            beginning: [0; BEGINNING],
            length: 0,
            last: 0,
            spaced: false,
            fragment: false,
        }
    }
}

impl Line {
    fn add(&mut self, bytes: &[u8], request_line: bool) {
        let Some(last) = bytes.last() else { return };
        self.last = *last;
        if let Some(room) = self.beginning.get_mut(self.length..) {
            let fits = room.len().min(bytes.len());
            room[..fits].copy_from_slice(&bytes[..fits]);
        }
        self.length += bytes.len();
        if request_line && !self.fragment {
            let target = match (self.spaced, memchr(b' ', bytes)) {
                (true, _) => bytes,
                (false, Some(space)) => &bytes[space..],
                (false, None) => return,
            };
            self.spaced = true;
            self.fragment = memchr(b'#', target).is_some();
        }
    }

    /// It is all there.
    fn end(&self) -> Ended<'_> {
        let text = match (self.length, self.last) {
            (1.., b'\r') => Some(&self.beginning[..(self.length - 1).min(BEGINNING)]),
            _ => None,
        };
        Ended {
            text,
            is_short: self.length <= BEGINNING,
            fragment: self.fragment,
        }
    }
}

/// A line that has ended.
struct Ended<'a> {
    /// What is known of it, without its end; `None` if that was no CR LF.
    text: Option<&'a [u8]>,
    /// Whether `text` is all of it.
    is_short: bool,
    /// It is a request's, and there was a space, and then a `#`.
    fragment: bool,
}

impl<'a> Ended<'a> {
    /// `line` is all of it but its line feed. Most lines come in one piece, and are not copied.
    fn whole(line: &'a [u8], request_line: bool) -> Self {
        let text = line.strip_suffix(b"\r");
        let target = || memchr(b' ', line).and_then(|space| memchr(b'#', &line[space..]));
        let has_any = || !all(line, |byte| byte != b'#');
        Self {
            text: text.map(|text| &text[..text.len().min(BEGINNING)]),
            is_short: line.len() <= BEGINNING,
            fragment: request_line && has_any() && target().is_some(),
        }
    }
}

impl Reader {
    fn saw(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.state {
                State::Lost | State::Http2 => return,
                State::Body(left) | State::Chunk(left) => {
                    let here = left.min(bytes.len() as u64);
                    bytes = &bytes[usize::try_from(here).unwrap_or(bytes.len())..];
                    self.state = match (self.state, left - here) {
                        (State::Body(_), 0) => State::RequestLine,
                        (State::Body(_), left) => State::Body(left),
                        (_, 0) => State::ChunkEnd,
                        (_, left) => State::Chunk(left),
                    };
                }
                _ => {
                    let request_line = self.state == State::RequestLine;
                    let end = match bytes {
                        // Of each head the last.
                        [b'\r', b'\n', ..] => Some(1),
                        _ => memchr(b'\n', bytes),
                    };
                    let Some(end) = end else {
                        self.line.add(bytes, request_line);
                        return;
                    };
                    let (last, rest) = (&bytes[..end], &bytes[end + 1..]);
                    bytes = rest;
                    if self.state == State::Fields && self.line.length == 0 && frames_nothing(last)
                    {
                        continue;
                    }
                    let read = match self.line.length {
                        0 => self.read(&Ended::whole(last, request_line)),
                        _ => {
                            let mut line = std::mem::take(&mut self.line);
                            line.add(last, request_line);
                            self.read(&line.end())
                        }
                    };
                    match read {
                        Ok(state) => self.state = state,
                        Err(fault) => {
                            self.fault = Some((self.heads, fault));
                            self.state = State::Lost;
                        }
                    }
                }
            }
        }
    }

    fn read(&mut self, line: &Ended<'_>) -> Result<State, BadHead> {
        let text = line.text.ok_or(BadHead::LineEnd)?;
        match self.state {
            State::RequestLine if text.is_empty() => Ok(State::RequestLine),
            State::RequestLine if self.heads == 0 && text == PREFACE => Ok(State::Http2),
            State::RequestLine if line.fragment => Err(BadHead::Fragment),
            State::RequestLine => {
                (self.length, self.chunked) = (None, false);
                Ok(State::Fields)
            }
            State::Fields if text.is_empty() => {
                self.heads += 1;
                Ok(match (self.chunked, self.length) {
                    (true, _) => State::ChunkSize,
                    (false, None | Some(0)) => State::RequestLine,
                    (false, Some(length)) => State::Body(length),
                })
            }
            State::Fields => self.field(text, line.is_short),
            State::ChunkSize => match chunk_size(text).ok_or(BadHead::Unframed)? {
                0 => Ok(State::Trailers),
                size => Ok(State::Chunk(size)),
            },
            State::ChunkEnd if text.is_empty() => Ok(State::ChunkSize),
            State::Trailers if text.is_empty() => Ok(State::RequestLine),
            State::Trailers => Ok(State::Trailers),
            _ => Err(BadHead::Unframed),
        }
    }

    fn field(&mut self, text: &[u8], whole: bool) -> Result<State, BadHead> {
        if let Some(value) = value(text, b"content-length") {
            if self.chunked {
                return Err(BadHead::TwoFramings);
            }
            if self.length.is_some() {
                return Err(BadHead::TwoLengths);
            }
            let length = Some(value).filter(|_| whole).and_then(text::whole);
            self.length = Some(length.ok_or(BadHead::Length)?);
        } else if let Some(value) = value(text, b"transfer-encoding") {
            if self.length.is_some() {
                return Err(BadHead::TwoFramings);
            }
            if self.chunked || !whole || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(BadHead::TransferCoding);
            }
            self.chunked = true;
        }
        Ok(State::Fields)
    }

    fn next(&mut self) -> Result<(), BadHead> {
        let number = self.asked;
        self.asked += 1;
        match self.fault {
            Some((from, fault)) if from <= number => Err(fault),
            // A request out of nothing: it was framed by somebody else's rules.
            None if self.state != State::Http2 && self.heads <= number => Err(BadHead::Unframed),
            _ => Ok(()),
        }
    }
}

/// Whether a line of a head, whole but for its line feed, ends as it should and is of none of the fields
/// that are read here: so are nearly all.
fn frames_nothing(line: &[u8]) -> bool {
    matches!(line, [first, .., b'\r'] if !matches!(first | 0x20, b'c' | b't'))
}

/// The value of a field line, if it is of the field `name`.
fn value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (before, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    before
        .eq_ignore_ascii_case(name)
        .then(|| value.trim_ascii())
}

/// The size at the beginning of a chunk's line. An extension may follow, and is dropped.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
    let (size, after) = line.split_at(digits.count());
    let ends = match after.first() {
        None => line.len() < BEGINNING,
        Some(next) => matches!(next, b';' | b' ' | b'\t'),
    };
    if !ends {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;
