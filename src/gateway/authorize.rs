//! Whose request it is: the flow it is queued in. Credentials are hashed where they are read and
//! kept nowhere.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;
use parking_lot::RwLock;

use crate::limit::flow::AsItIs;

/// Credentials remembered in each of two generations.
const REMEMBERED: usize = 8_192;
/// Of them those that a worker knows by itself.
const RECENT: usize = 64;

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
    /// Generations so far.
    turns: AtomicU64,
}

/// What one worker found in the newer generation lately, so that it need not ask what it shares with the
/// others: each has its place by its hash. To be used by one thread at a time.
pub struct Recent {
    /// The generation they were found in; those of an earlier one are to be looked for again.
    turn: AtomicU64,
    found: [AtomicU64; RECENT],
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            turn: AtomicU64::new(0),
            found: [const { AtomicU64::new(0) }; RECENT],
        }
    }
}

impl Recent {
    fn place(&self, Credential(hash): Credential) -> &AtomicU64 {
        &self.found[hash as usize % RECENT]
    }

    fn has(&self, credential: Credential, turn: u64) -> bool {
        // Zero is a place that nobody has.
        self.turn.load(Ordering::Relaxed) == turn
            && credential.0 != 0
            && self.place(credential).load(Ordering::Relaxed) == credential.0
    }

    fn keep(&self, credential: Credential, turn: u64) {
        if self.turn.swap(turn, Ordering::Relaxed) != turn {
            for found in &self.found {
                found.store(0, Ordering::Relaxed);
            }
        }
        self.place(credential)
            .store(credential.0, Ordering::Relaxed);
    }
}

/// The older one is forgotten when the newer is full: what is in use is soon in the newer again.
#[derive(Default)]
struct Generations {
    newer: Credentials,
    older: Credentials,
}

impl Accepted {
    /// The credential a request carries in its `Authorization`, if it carries one.
    pub fn credential(&self, authorization: Option<&HeaderValue>) -> Option<Credential> {
        let value = authorization?.as_bytes().trim_ascii();
        let bare = match value.split_at_checked(b"bearer".len()) {
            Some((scheme, [])) if scheme.eq_ignore_ascii_case(b"bearer") => return None,
            Some((scheme, rest @ [b' ', ..])) if scheme.eq_ignore_ascii_case(b"bearer") => {
                rest.trim_ascii()
            }
            _ => value,
        };
        (!bare.is_empty()).then(|| {
            let mut hasher = self.hasher.build_hasher();
            // Nothing but this is hashed: there is no length to tell it from another's.
            hasher.write(bare);
            Credential(hasher.finish())
        })
    }

    /// `credential`, if the upstream has accepted it before.
    pub fn known(&self, credential: Option<Credential>, recent: &Recent) -> Option<u64> {
        let credential = credential?;
        let turn = self.turns.load(Ordering::Acquire);
        if recent.has(credential, turn) {
            return Some(credential.0);
        }
        let seen = self.seen.read();
        let newer = seen.newer.contains(&credential);
        if newer {
            recent.keep(credential, turn);
        }
        (newer || seen.older.contains(&credential)).then_some(credential.0)
    }

    /// The upstream answered a request with this credential.
    pub fn answered(&self, credential: Option<Credential>, status: u16, recent: &Recent) {
        let Some(credential) = credential.filter(|_| !matches!(status, 401 | 403)) else {
            return;
        };
        let turn = self.turns.load(Ordering::Acquire);
        if recent.has(credential, turn) || self.seen.read().newer.contains(&credential) {
            return;
        }
        let mut seen = self.seen.write();
        if seen.newer.len() >= REMEMBERED {
            seen.older = std::mem::take(&mut seen.newer);
            self.turns.fetch_add(1, Ordering::Release);
        }
        seen.newer.insert(credential);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(authorization: &str) -> HeaderValue {
        HeaderValue::from_str(authorization).unwrap()
    }

    #[test]
    fn the_scheme_makes_no_difference_and_another_key_does() {
        let accepted = Accepted::default();
        let bare = accepted.credential(Some(&field("rpa_KEY")));
        assert!(bare.is_some());
        assert_eq!(bare, accepted.credential(Some(&field("Bearer rpa_KEY"))));
        assert_eq!(bare, accepted.credential(Some(&field("bearer  rpa_KEY"))));
        assert_ne!(bare, accepted.credential(Some(&field("rpa_key"))));
        assert_eq!(accepted.credential(Some(&field("Bearer "))), None);
        assert_eq!(accepted.credential(None), None);
    }

    #[test]
    fn only_what_the_upstream_accepted_tells_flows_apart() {
        let (accepted, recent) = (Accepted::default(), Recent::default());
        let key = accepted.credential(Some(&field("rpa_KEY")));
        assert_eq!(accepted.known(key, &recent), None);
        accepted.answered(key, 401, &recent);
        assert_eq!(accepted.known(key, &recent), None);
        accepted.answered(key, 200, &recent);
        assert!(accepted.known(key, &recent).is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (accepted, recent) = (Accepted::default(), Recent::default());
        for key in 0..5 * REMEMBERED as u64 {
            accepted.answered(Some(Credential(key)), 200, &recent);
        }
        let seen = accepted.seen.read();
        assert!(seen.newer.len() + seen.older.len() <= 2 * REMEMBERED);
    }

    /// A worker that goes on using one has it remembered for the others too.
    #[test]
    fn what_one_worker_knows_by_itself_is_in_the_newer_generation() {
        let (accepted, recent) = (Accepted::default(), Recent::default());
        let key = Some(Credential(7));
        for other in 1..5 * REMEMBERED as u64 {
            accepted.answered(key, 200, &recent);
            assert!(accepted.known(key, &recent).is_some());
            let other = Some(Credential(other << 8));
            accepted.answered(other, 200, &Recent::default());
            let seen = accepted.seen.read();
            let remembered = [&seen.newer, &seen.older].map(|all| all.contains(&Credential(7)));
            assert!(remembered.contains(&true));
        }
        let unknown = Some(Credential(7 + RECENT as u64));
        assert_eq!(accepted.known(unknown, &recent), None, "the same place");
        assert_eq!(accepted.known(Some(Credential(0)), &recent), None);
    }
}
