//! Whose request it is: the flow it is queued in. Credentials are hashed where they are read and
//! kept nowhere.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, BuildHasherDefault};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use parking_lot::RwLock;

use crate::limit::flow::AsItIs;

/// Credentials remembered in each of two generations.
const REMEMBERED: usize = 8_192;

/// A credential's hash, keyed anew in each process. With or without `Bearer` it is the same one
/// (contract, section 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Credential(u64);

/// A credential is a keyed hash already: hashing it again would protect nothing.
type Credentials = HashSet<Credential, BuildHasherDefault<AsItIs>>;

/// Which credentials the upstream has accepted. Made-up ones share their address's flow, or a
/// flood of them would starve everybody.
#[derive(Default)]
pub struct Accepted {
    hasher: RandomState,
    seen: RwLock<Generations>,
}

/// The older one is forgotten when the newer is full: what is in use is soon in the newer again.
#[derive(Default)]
struct Generations {
    newer: Credentials,
    older: Credentials,
}

impl Accepted {
    /// The credential a request carries, if it carries one.
    pub fn credential(&self, headers: &HeaderMap) -> Option<Credential> {
        let value = headers.get(AUTHORIZATION)?.as_bytes().trim_ascii();
        let bare = match value.split_at_checked(b"bearer".len()) {
            Some((scheme, [])) if scheme.eq_ignore_ascii_case(b"bearer") => return None,
            Some((scheme, rest @ [b' ', ..])) if scheme.eq_ignore_ascii_case(b"bearer") => {
                rest.trim_ascii()
            }
            _ => value,
        };
        (!bare.is_empty()).then(|| Credential(self.hasher.hash_one(bare)))
    }

    /// `credential`, if the upstream has accepted it before.
    pub fn known(&self, credential: Option<Credential>) -> Option<u64> {
        let credential = credential?;
        let seen = self.seen.read();
        let known = seen.newer.contains(&credential) || seen.older.contains(&credential);
        known.then_some(credential.0)
    }

    /// The upstream answered a request with this credential.
    pub fn answered(&self, credential: Option<Credential>, status: u16) {
        let Some(credential) = credential.filter(|_| !matches!(status, 401 | 403)) else {
            return;
        };
        if self.seen.read().newer.contains(&credential) {
            return;
        }
        let mut seen = self.seen.write();
        if seen.newer.len() >= REMEMBERED {
            seen.older = std::mem::take(&mut seen.newer);
        }
        seen.newer.insert(credential);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(authorization).unwrap());
        headers
    }

    #[test]
    fn the_scheme_makes_no_difference_and_another_key_does() {
        let accepted = Accepted::default();
        let bare = accepted.credential(&headers("rpa_KEY"));
        assert!(bare.is_some());
        assert_eq!(bare, accepted.credential(&headers("Bearer rpa_KEY")));
        assert_eq!(bare, accepted.credential(&headers("bearer  rpa_KEY")));
        assert_ne!(bare, accepted.credential(&headers("rpa_key")));
        assert_eq!(accepted.credential(&headers("Bearer ")), None);
        assert_eq!(accepted.credential(&HeaderMap::new()), None);
    }

    #[test]
    fn only_what_the_upstream_accepted_tells_flows_apart() {
        let accepted = Accepted::default();
        let key = accepted.credential(&headers("rpa_KEY"));
        assert_eq!(accepted.known(key), None);
        accepted.answered(key, 401);
        assert_eq!(accepted.known(key), None);
        accepted.answered(key, 200);
        assert!(accepted.known(key).is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let accepted = Accepted::default();
        for key in 0..5 * REMEMBERED as u64 {
            accepted.answered(Some(Credential(key)), 200);
        }
        let seen = accepted.seen.read();
        assert!(seen.newer.len() + seen.older.len() <= 2 * REMEMBERED);
    }
}
