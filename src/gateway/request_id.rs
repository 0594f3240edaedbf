//! The name by which a request is found again in logs: the client's own, or one of ours.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{HeaderMap, HeaderName, HeaderValue};

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A longer name is not a name.
const LONGEST: usize = 128;

/// Names for requests that come without one: which process, and which of its requests.
pub struct RequestIds {
    process: u32,
    made: AtomicU64,
}

impl Default for RequestIds {
    fn default() -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "32 bits of chance tell processes apart well enough"
        )]
        let process = RandomState::new().hash_one(0u8) as u32;
        Self {
            process,
            made: AtomicU64::new(0),
        }
    }
}

impl RequestIds {
    /// What the client calls its request, if that can stand in a log, or a new name.
    pub fn of(&self, headers: &HeaderMap) -> HeaderValue {
        let given = headers.get(X_REQUEST_ID).filter(|given| is_name(given));
        given.cloned().unwrap_or_else(|| self.next())
    }

    fn next(&self) -> HeaderValue {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let name = format!("{:08x}-{number:08x}", self.process);
        // Hexadecimal digits and a dash can stand in a field.
        HeaderValue::try_from(name).unwrap_or(HeaderValue::from_static("none"))
    }
}

fn is_name(given: &HeaderValue) -> bool {
    let bytes = given.as_bytes();
    (1..=LONGEST).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(given: &[u8]) -> HeaderValue {
        let mut headers = HeaderMap::new();
        let given = HeaderValue::from_bytes(given).unwrap();
        headers.insert(X_REQUEST_ID, given);
        RequestIds::default().of(&headers)
    }

    #[test]
    fn a_client_may_name_its_request() {
        assert_eq!(of(b"job-1/a:b"), "job-1/a:b");
    }

    #[test]
    fn what_is_no_name_is_replaced() {
        for given in [&b""[..], b"a b", b"\xff\xfe", &[b'x'; 129]] {
            let name = of(given);
            assert_eq!(name.len(), 17, "{name:?}");
            assert!(is_name(&name));
        }
    }

    #[test]
    fn no_two_requests_have_one_name() {
        let ids = RequestIds::default();
        let none = HeaderMap::new();
        assert_ne!(ids.of(&none), ids.of(&none));
        assert_ne!(
            RequestIds::default().of(&none),
            RequestIds::default().of(&none)
        );
    }
}
