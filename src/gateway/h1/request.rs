//! A request as it is written: its head in one piece, and how its body is framed.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderName, Method};

/// The head of a request under way.
pub struct Head(Vec<u8>);

/// Room for a head of the usual size, in bytes.
const USUAL: usize = 1_000;

impl Head {
    /// `prefix` and `target` are what is asked for: visible ASCII, without a fragment. Written into
    /// `spare`, whatever is in it.
    pub fn new(spare: Vec<u8>, method: &Method, prefix: &str, target: &str) -> Self {
        let mut bytes = spare;
        bytes.clear();
        bytes.reserve(USUAL);
        let line = [method.as_str(), " ", prefix, target, " HTTP/1.1\r\n"];
        line.iter()
            .for_each(|part| bytes.extend_from_slice(part.as_bytes()));
        Self(bytes)
    }

    /// One more field. Name and value must be ones that can stand in a head, as those of the `http`
    /// crate are.
    pub fn field(&mut self, name: &str, value: &[u8]) {
        debug_assert!(!value.iter().any(|byte| b"\r\n".contains(byte)));
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            self.0.extend_from_slice(part);
        }
    }

    /// The whole of it, before a body of `length` bytes; `None`: one in chunks.
    pub fn before(mut self, length: Option<u64>, method: &Method) -> Vec<u8> {
        let mut framed =
            |name: HeaderName, value: &str| self.field(name.as_str(), value.as_bytes());
        match length {
            None => framed(TRANSFER_ENCODING, "chunked"),
            // Who sends nothing where something is usual says so (RFC 9110, section 8.6).
            Some(0) if !matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {}
            Some(length) => framed(CONTENT_LENGTH, itoa::Buffer::new().format(length)),
        }
        self.0.extend_from_slice(b"\r\n");
        self.0
    }
}

/// What stands before a chunk of so many bytes.
pub fn chunk(length: usize) -> Vec<u8> {
    format!("{length:x}\r\n").into_bytes()
}

/// What stands behind one.
pub const CHUNK_END: &[u8] = b"\r\n";
/// What stands behind the last one.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &Method, length: Option<u64>) -> String {
        let mut head = Head::new(Vec::new(), method, "/base", "/v2/ep/run?a=b");
        head.field("host", b"up");
        String::from_utf8(head.before(length, method)).unwrap()
    }

    #[test]
    fn a_head_says_how_its_body_is_framed() {
        let post = "POST /base/v2/ep/run?a=b HTTP/1.1\r\nhost: up\r\n";
        assert_eq!(
            head(&Method::POST, Some(12)),
            format!("{post}content-length: 12\r\n\r\n")
        );
        assert_eq!(
            head(&Method::POST, Some(0)),
            format!("{post}content-length: 0\r\n\r\n")
        );
        assert_eq!(
            head(&Method::POST, None),
            format!("{post}transfer-encoding: chunked\r\n\r\n")
        );
        let get = post.replace("POST", "GET");
        assert_eq!(head(&Method::GET, Some(0)), format!("{get}\r\n"));
        assert_eq!(chunk(255), b"ff\r\n");
    }
}
