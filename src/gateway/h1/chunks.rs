//! A body in chunks (RFC 9112, section 7.1), read strictly: whatever could be read in two ways is an
//! error. Extensions and trailers end with the hop.

/// The most bytes of a chunk's line: nobody sends extensions that long on purpose.
const LONGEST_LINE: usize = 16 * 1024;
/// The most bytes of all trailers.
const LONGEST_TRAILERS: usize = 64 * 1024;
/// More hexadecimal digits than this are a size past all.
const DIGITS: usize = 16;

/// Why no end can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unframed {
    #[error("a chunk has no size")]
    Size,
    #[error("a chunk's line does not end in CR LF")]
    LineEnd,
    #[error("a chunk is longer than it says")]
    Longer,
    #[error("a chunk's extensions have no end")]
    Extensions,
    #[error("the trailers have no end")]
    Trailers,
}

/// Where in the body the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size {
        digits: usize,
        size: u64,
    },
    /// White space behind it, before an extension or the line's end.
    Space {
        size: u64,
    },
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    LastLf,
    Over,
}

/// What the bytes that were looked at hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes of framing, and behind them so many of the body.
    Data { skip: usize, length: usize },
    /// Framing only; there is more to come.
    Framing,
    /// So many bytes of framing, and that was all.
    End { skip: usize },
}

/// One body, as far as it was read.
#[derive(Clone, Debug)]
pub struct Chunks {
    state: State,
    /// Bytes of the line, or of the trailers, that is being read.
    spent: usize,
}

impl Default for Chunks {
    fn default() -> Self {
        Self {
            state: SIZE,
            spent: 0,
        }
    }
}

const SIZE: State = State::Size { digits: 0, size: 0 };

impl Chunks {
    /// Whether its end was read.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Reads `bytes` up to the end of the next piece of the body there is in them.
    ///
    /// # Errors
    /// [`Unframed`]: nobody can say where the body ends.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Piece, Unframed> {
        let mut skip = 0;
        loop {
            if let State::Data { left } = self.state {
                let here = bytes.len() - skip;
                let length = usize::try_from(left).map_or(here, |left| left.min(here));
                let left = left - length as u64;
                if left == 0 {
                    self.state = State::DataCr;
                } else {
                    self.state = State::Data { left };
                }
                return Ok(match length {
                    0 => Piece::Framing,
                    _ => Piece::Data { skip, length },
                });
            }
            if self.is_over() {
                return Ok(Piece::End { skip });
            }
            let Some(&byte) = bytes.get(skip) else {
                return Ok(Piece::Framing);
            };
            skip += 1;
            self.state = self.step(byte)?;
        }
    }

    fn step(&mut self, byte: u8) -> Result<State, Unframed> {
        self.spent += 1;
        let next = match self.state {
            State::Size { digits, size } => match (char::from(byte).to_digit(16), byte) {
                (Some(_), _) if digits == DIGITS => return Err(Unframed::Size),
                (Some(digit), _) => State::Size {
                    digits: digits + 1,
                    size: size << 4 | u64::from(digit),
                },
                (None, _) if digits == 0 => return Err(Unframed::Size),
                (None, b'\r') => State::SizeLf { size },
                (None, b';') => State::Extension { size },
                (None, b' ' | b'\t') => State::Space { size },
                (None, _) => return Err(Unframed::Size),
            },
            State::Space { .. } | State::Extension { .. } if self.spent > LONGEST_LINE => {
                return Err(Unframed::Extensions);
            }
            State::Space { size } => match byte {
                b' ' | b'\t' => State::Space { size },
                b';' => State::Extension { size },
                b'\r' => State::SizeLf { size },
                _ => return Err(Unframed::Size),
            },
            State::Extension { size } => match byte {
                b'\r' => State::SizeLf { size },
                b'\n' => return Err(Unframed::LineEnd),
                _ => State::Extension { size },
            },
            State::SizeLf { size } if byte == b'\n' => {
                self.spent = 0;
                match size {
                    0 => State::TrailerStart,
                    left => State::Data { left },
                }
            }
            State::DataCr if byte == b'\r' => State::DataLf,
            State::DataLf if byte == b'\n' => {
                self.spent = 0;
                SIZE
            }
            State::DataCr | State::DataLf => return Err(Unframed::Longer),
            State::TrailerStart | State::Trailer if self.spent > LONGEST_TRAILERS => {
                return Err(Unframed::Trailers);
            }
            State::TrailerStart if byte == b'\r' => State::LastLf,
            State::TrailerStart | State::Trailer => match byte {
                b'\r' => State::TrailerLf,
                b'\n' => return Err(Unframed::LineEnd),
                _ => State::Trailer,
            },
            State::TrailerLf if byte == b'\n' => State::TrailerStart,
            State::LastLf if byte == b'\n' => State::Over,
            State::SizeLf { .. } | State::TrailerLf | State::LastLf => {
                return Err(Unframed::LineEnd);
            }
            State::Data { .. } | State::Over => unreachable!("no byte of it is framing"),
        };
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `bytes` come to, read in pieces of `piece`: the body, and how much is left behind it.
    /// `None`: it has no end in them.
    fn read(bytes: &[u8], piece: usize) -> Result<Option<(Vec<u8>, usize)>, Unframed> {
        let mut chunks = Chunks::default();
        let mut body = Vec::new();
        let mut at = 0;
        for part in bytes.chunks(piece) {
            let mut part = part;
            loop {
                let taken = match chunks.next(part)? {
                    Piece::Data { skip, length } => {
                        body.extend_from_slice(&part[skip..skip + length]);
                        skip + length
                    }
                    Piece::Framing => part.len(),
                    Piece::End { skip } => return Ok(Some((body, bytes.len() - at - skip))),
                };
                at += taken;
                part = &part[taken..];
                if part.is_empty() && !chunks.is_over() {
                    break;
                }
            }
        }
        Ok(None)
    }

    /// In whatever pieces it comes.
    fn all(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Unframed> {
        let whole = read(bytes, bytes.len().max(1));
        for piece in 1..bytes.len() {
            assert_eq!(read(bytes, piece), whole, "in pieces of {piece}");
        }
        whole
    }

    #[test]
    fn a_body_ends_where_it_says() {
        let body = |text: &str| all(text.as_bytes()).unwrap();
        let hello = |left| Some((b"hello world".to_vec(), left));
        assert_eq!(body("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"), hello(0));
        assert_eq!(body("0b\r\nhello world\r\n000\r\n\r\nHTTP"), hello(4));
        assert_eq!(
            body("B;a=\"x\"\r\nhello world\r\n0 ; b\r\nx: y\r\nz: \r\n\r\n"),
            hello(0)
        );
        assert_eq!(body("0\r\n\r\n"), Some((vec![], 0)));
        for cut in [
            "",
            "5",
            "5\r\nhel",
            "5\r\nhello\r\n",
            "0\r\n",
            "0\r\n\r",
            "0\r\nx: y\r\n",
        ] {
            assert_eq!(body(cut), None, "{cut:?}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (text, why) in [
            ("\r\n", Unframed::Size),
            ("zz\r\n", Unframed::Size),
            ("-1\r\n", Unframed::Size),
            ("+1\r\n", Unframed::Size),
            ("0x5\r\n", Unframed::Size),
            (" 5\r\n", Unframed::Size),
            (";a\r\n", Unframed::Size),
            ("5\n", Unframed::Size),
            ("5 5\r\n", Unframed::Size),
            ("5 \n", Unframed::Size),
            ("fffffffffffffffff\r\n", Unframed::Size),
            ("5;a\nhello", Unframed::LineEnd),
            ("5\rx", Unframed::LineEnd),
            ("2\r\nhello\r\n", Unframed::Longer),
            ("5\r\nhello\n", Unframed::Longer),
            ("0\r\nx: y\n\r\n", Unframed::LineEnd),
            ("0\r\nx: y\rz", Unframed::LineEnd),
            ("0\r\n\rx", Unframed::LineEnd),
        ] {
            assert_eq!(all(text.as_bytes()), Err(why), "{text:?}");
        }
    }

    #[test]
    fn framing_is_bounded() {
        let long = |text: &str, byte: u8, more: usize| {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(bytes.len() + more, byte);
            read(&bytes, 1_000)
        };
        assert_eq!(long("5;", b'x', LONGEST_LINE - 10), Ok(None));
        assert_eq!(long("5;", b'x', LONGEST_LINE), Err(Unframed::Extensions));
        assert_eq!(long("0\r\nx", b'x', LONGEST_TRAILERS - 10), Ok(None));
        let trailers = long("0\r\nx", b'x', LONGEST_TRAILERS);
        assert_eq!(trailers, Err(Unframed::Trailers));
        let lines = format!("0\r\n{}", "a: b\r\n".repeat(LONGEST_TRAILERS / 6 + 1));
        assert_eq!(read(lines.as_bytes(), 1_000), Err(Unframed::Trailers));
    }
}
