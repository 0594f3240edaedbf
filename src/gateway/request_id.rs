//! The name by which a request is found again in logs: the client's own, or one of ours.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{HeaderName, HeaderValue};

use crate::gateway::named::Named;
use crate::text::{Short, Sink, hex};

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A longer name is not a name.
const LONGEST: usize = 128;

/// Names for requests that come without one: which worker of which process, and which of its
/// requests.
pub struct RequestIds {
    /// In hexadecimal digits.
    worker: [u8; 8],
    made: AtomicU64,
}

impl Default for RequestIds {
    fn default() -> Self {
        // 32 bits of chance tell them apart well enough.
        let chance = hex(RandomState::new().hash_one(0u8));
        Self {
            worker: *chance.last_chunk().unwrap_or(b"00000000"),
            made: AtomicU64::new(0),
        }
    }
}

impl RequestIds {
    /// What the client calls its request, if that can stand in a log, or a new name.
    pub fn of(&self, given: Option<&HeaderValue>) -> Named {
        match given.filter(|given| is_name(given)) {
            Some(given) => Named::Given(given.clone()),
            None => self.next(),
        }
    }

    fn next(&self) -> Named {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        // Eight digits, and more once they are not enough.
        let zeros = (number.leading_zeros() as usize / 4).min(8);
        let mut name = Short::new();
        for part in [&self.worker[..], b"-", &hex(number)[zeros..]] {
            name.put(part);
        }
        Named::Made(name)
    }
}

fn is_name(given: &HeaderValue) -> bool {
    let bytes = given.as_bytes();
    (1..=LONGEST).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(given: &[u8]) -> Named {
        let given = HeaderValue::from_bytes(given).unwrap();
        RequestIds::default().of(Some(&given))
    }

    #[test]
    fn a_client_may_name_its_request() {
        assert_eq!(of(b"job-1/a:b").as_str(), "job-1/a:b");
    }

    #[test]
    fn what_is_no_name_is_replaced() {
        for given in [&b""[..], b"a b", b"\xff\xfe", &[b'x'; 129]] {
            let name = of(given).field();
            assert_eq!(name.len(), 17, "{name:?}");
            assert!(is_name(&name));
        }
    }

    #[test]
    fn a_name_is_a_process_and_a_number_of_eight_digits_or_more() {
        let ids = RequestIds::default();
        for (made, end) in [
            (0, "-00000000"),
            (0xabc, "-00000abc"),
            (0x1_2345_6789, "-123456789"),
        ] {
            ids.made.store(made, Ordering::Relaxed);
            let name = ids.of(None);
            let (process, number) = name.as_str().split_at(8);
            assert_eq!(number, end);
            assert!(process.bytes().all(|digit| digit.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn no_two_requests_have_one_name() {
        let ids = RequestIds::default();
        assert_ne!(ids.of(None).field(), ids.of(None).field());
        assert_ne!(
            RequestIds::default().of(None).field(),
            RequestIds::default().of(None).field()
        );
    }
}
