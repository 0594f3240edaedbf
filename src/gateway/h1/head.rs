//! The head of an answer: its fields as the client gets them, and where its body ends (RFC 9112,
//! section 6.3).

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderName, HeaderValue, InvalidHeaderName,
    SERVER, TRANSFER_ENCODING,
};
use http::{Response, StatusCode};
use httparse::ParserConfig;
use hyper::ext::ReasonPhrase;

use crate::gateway::fields::TowardsClient;
use crate::text::whole;

/// The most bytes of a head.
pub const LARGEST: usize = 64 * 1024;
/// The most fields, as hyper has it.
const MOST_FIELDS: usize = 100;

/// Why an answer cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("its answer is not HTTP/1: {0}")]
    Head(httparse::Error),
    #[error("its answer's head is larger than {LARGEST} bytes")]
    TooLarge,
    #[error("its answer has a status of no meaning")]
    Status,
    #[error("it switched protocols unasked")]
    Switched,
    #[error("its answer has a length that is none, or several")]
    Length,
    #[error("its answer has a transfer coding that nobody asked for")]
    Coding,
}

/// How much body there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    Exact(u64),
    Chunked,
    /// All that comes until the connection ends.
    UntilClose,
}

/// What is at the beginning of the bytes that came.
#[derive(Debug)]
pub enum Read {
    /// A head without an end, so far.
    Partly,
    /// So many bytes of an interim answer (1xx), which says nothing that anybody needs.
    Interim(usize),
    Final(Final),
}

/// The head of a final answer.
#[derive(Debug)]
pub struct Final {
    /// Its own bytes.
    pub bytes: usize,
    /// As the client gets it.
    pub response: Response<()>,
    pub length: Length,
    /// Its connection carries no other: it says so, or says two things of its length.
    pub last: bool,
}

/// Reads the head at the beginning of `bytes`. `to_head`: the request asked for a head only.
///
/// # Errors
/// [`Malformed`]: it is none, or says of its body what nobody can follow.
pub fn read(bytes: &Bytes, to_head: bool) -> Result<Read, Malformed> {
    let mut room = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let end = ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, bytes, &mut room)
        .map_err(Malformed::Head)?;
    let httparse::Status::Complete(end) = end else {
        return match bytes.len() < LARGEST {
            true => Ok(Read::Partly),
            false => Err(Malformed::TooLarge),
        };
    };
    if end > LARGEST {
        return Err(Malformed::TooLarge);
    }
    let status = StatusCode::from_u16(parsed.code.unwrap_or_default());
    let status = status.map_err(|_| Malformed::Status)?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Malformed::Switched);
    }
    if status.is_informational() {
        return Ok(Read::Interim(end));
    }
    let http10 = parsed.version == Some(0);
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Some(reason) = parsed.reason
        && Some(reason) != status.canonical_reason()
        && let Ok(reason) = ReasonPhrase::try_from(reason.as_bytes())
    {
        response.extensions_mut().insert(reason);
    }
    let mut said = Said::default();
    let mut fields = TowardsClient::new(parsed.headers.len());
    for field in &*parsed.headers {
        if field.name.eq_ignore_ascii_case(CONNECTION.as_str()) {
            said.of_connection(field.value);
            fields.connection(field.value);
        }
    }
    for field in &*parsed.headers {
        let malformed = |what| Malformed::Head(what);
        let name = name(field.name).map_err(|_| malformed(httparse::Error::HeaderName))?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value))
            .map_err(|_| malformed(httparse::Error::HeaderValue))?;
        said.of_body(&name, field.value)?;
        fields.add(name, value);
    }
    // An empty one, which holds no memory: to drop it costs more than to know that.
    let none = std::mem::replace(response.headers_mut(), fields.finish());
    debug_assert_eq!(none.capacity(), 0);
    std::mem::forget(none);
    let keeps = !said.close && (!http10 || said.keep_alive);
    let length = said.length(http10, to_head, status)?;
    Ok(Read::Final(Final {
        bytes: end,
        response,
        length,
        last: !keeps || said.is_doubtful() || length == Length::UntilClose,
    }))
}

/// Most fields of most answers are of these, and written in one of two ways: to see that takes less than
/// to read a name.
fn name(text: &str) -> Result<HeaderName, InvalidHeaderName> {
    Ok(match text {
        "content-type" | "Content-Type" => CONTENT_TYPE,
        "content-length" | "Content-Length" => CONTENT_LENGTH,
        "connection" | "Connection" => CONNECTION,
        "date" | "Date" => DATE,
        "server" | "Server" => SERVER,
        _ => HeaderName::from_bytes(text.as_bytes())?,
    })
}

/// What a head says of its body and its connection.
#[derive(Default)]
struct Said {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Said {
    fn of_connection(&mut self, value: &[u8]) {
        for item in value.split(|byte| *byte == b',') {
            let item = item.trim_ascii();
            self.close |= item.eq_ignore_ascii_case(b"close");
            self.keep_alive |= item.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn of_body(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), Malformed> {
        if name == CONTENT_LENGTH {
            for item in value.split(|byte| *byte == b',') {
                let length = whole(item.trim_ascii()).ok_or(Malformed::Length)?;
                if self.length.is_some_and(|known| known != length) {
                    return Err(Malformed::Length);
                }
                self.length = Some(length);
            }
        } else if name == TRANSFER_ENCODING {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed::Coding);
            }
            self.chunked = true;
        }
        Ok(())
    }

    /// Two lengths: the one that is gone by need not be what the upstream went by.
    fn is_doubtful(&self) -> bool {
        self.chunked && self.length.is_some()
    }

    fn length(&self, http10: bool, to_head: bool, status: StatusCode) -> Result<Length, Malformed> {
        // HTTP/1.0 knows no codings: whoever says so means something else.
        if self.chunked && http10 {
            return Err(Malformed::Coding);
        }
        if to_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Length::Exact(0));
        }
        Ok(match (self.chunked, self.length) {
            (true, _) => Length::Chunked,
            (false, Some(length)) => Length::Exact(length),
            (false, None) => Length::UntilClose,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn final_of(text: &str) -> Result<Final, Malformed> {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        match read(&bytes, false)? {
            Read::Final(head) => {
                assert_eq!(head.bytes, text.len(), "{text:?}");
                Ok(head)
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn with(fields: &str) -> Result<Final, Malformed> {
        final_of(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"))
    }

    #[test]
    fn where_a_body_ends_is_what_the_fields_say() {
        let length = |fields: &str| with(fields).map(|head| (head.length, head.last));
        assert_eq!(
            length("content-length: 5\r\n"),
            Ok((Length::Exact(5), false))
        );
        assert_eq!(
            length("Content-Length:05\r\n"),
            Ok((Length::Exact(5), false))
        );
        for twice in [
            "content-length: 5, 5\r\n",
            "content-length: 5\r\ncontent-length: 5\r\n",
        ] {
            assert_eq!(length(twice), Ok((Length::Exact(5), false)), "{twice}");
        }
        assert_eq!(
            length("transfer-encoding: Chunked\r\n"),
            Ok((Length::Chunked, false))
        );
        assert_eq!(
            length("transfer-encoding: chunked\r\ncontent-length: 5\r\n"),
            Ok((Length::Chunked, true)),
            "chunks win, and nothing follows on that connection"
        );
        assert_eq!(length(""), Ok((Length::UntilClose, true)));
        for none in [
            "",
            "-5",
            "+5",
            "5,4",
            "5 5",
            "5,",
            "five",
            "0x5",
            "99999999999999999999",
        ] {
            let said = length(&format!("content-length: {none}\r\n"));
            assert_eq!(said, Err(Malformed::Length), "{none:?}");
        }
        for other in ["gzip, chunked", "gzip", "identity", "chunked, chunked", ""] {
            let said = length(&format!("transfer-encoding: {other}\r\n"));
            assert_eq!(said, Err(Malformed::Coding), "{other:?}");
        }
        let twice = "transfer-encoding: chunked\r\n".repeat(2);
        assert_eq!(length(&twice), Err(Malformed::Coding));
        let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(final_of(old).err(), Some(Malformed::Coding));
    }

    #[test]
    fn some_answers_have_no_body_whatever_they_say() {
        for status in ["204 No Content", "304 Not Modified"] {
            let head = final_of(&format!("HTTP/1.1 {status}\r\ncontent-length: 5\r\n\r\n"));
            assert_eq!(head.unwrap().length, Length::Exact(0));
        }
        let bytes = Bytes::from_static(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
        match read(&bytes, true) {
            Ok(Read::Final(head)) => {
                assert_eq!(head.length, Length::Exact(0));
                assert_eq!(head.response.headers()["content-length"], "5");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_connection_goes_on_unless_it_is_said_otherwise() {
        let last = |version: &str, fields: &str| {
            let text = format!("HTTP/{version} 200 OK\r\ncontent-length: 0\r\n{fields}\r\n");
            final_of(&text).unwrap().last
        };
        assert!(!last("1.1", ""));
        assert!(!last("1.1", "connection: keep-alive\r\n"));
        assert!(last("1.1", "connection: x, Close\r\n"));
        assert!(last("1.0", ""));
        assert!(!last("1.0", "connection: Keep-Alive\r\n"));
        assert!(last("1.0", "connection: keep-alive, close\r\n"));
    }

    #[test]
    fn what_is_said_before_an_answer_is_passed_over() {
        let read = |text: &'static str| read(&Bytes::from_static(text.as_bytes()), false);
        assert!(matches!(
            read("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP"),
            Ok(Read::Interim(40))
        ));
        let switched = read("HTTP/1.1 101 X\r\nupgrade: h2c\r\n\r\n");
        assert_eq!(switched.err(), Some(Malformed::Switched));
        assert!(matches!(
            read("HTTP/1.1 200 OK\r\ncontent-le"),
            Ok(Read::Partly)
        ));
        assert!(matches!(read(""), Ok(Read::Partly)));
    }

    #[test]
    fn a_reason_of_its_own_is_kept() {
        let own = final_of("HTTP/1.1 500 Its Own\r\ncontent-length: 0\r\n\r\n").unwrap();
        let reason = own.response.extensions().get::<ReasonPhrase>();
        assert_eq!(reason.map(ReasonPhrase::as_bytes), Some(&b"Its Own"[..]));
        let usual = with("content-length: 0\r\n").unwrap();
        assert!(usual.response.extensions().is_empty());
    }

    #[test]
    fn heads_are_bounded() {
        let field =
            |length: usize| Bytes::from(format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(length)));
        assert!(matches!(
            read(&field(LARGEST - 100), false),
            Ok(Read::Partly)
        ));
        assert_eq!(
            read(&field(LARGEST), false).err(),
            Some(Malformed::TooLarge)
        );
        let many = |fields: usize| with(&"a: b\r\n".repeat(fields));
        assert!(many(MOST_FIELDS).is_ok());
        let too_many = Malformed::Head(httparse::Error::TooManyHeaders);
        assert_eq!(many(MOST_FIELDS + 1).err(), Some(too_many));
    }
}
