//! Job ids as the service makes them: a UUID, a suffix, and `sync-` before those of `/runsync`
//! (contract, section 2).

use std::fmt;

/// What the real suffix means is unknown; one of those seen is given to every job, so that a gateway
/// that loses it is found out.
const SUFFIX: &str = "-u1";
const SYNC_PREFIX: &str = "sync-";

/// The name of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    uuid: u128,
    /// Submitted by `/runsync`.
    pub sync: bool,
}

impl JobId {
    /// The id of exactly this text; any other text names no job.
    pub fn parse(text: &str) -> Option<JobId> {
        let (sync, text) = match text.strip_prefix(SYNC_PREFIX) {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let uuid = text.strip_suffix(SUFFIX)?.as_bytes();
        if uuid.len() != UUID {
            return None;
        }
        let mut value = 0_u128;
        for (at, &byte) in uuid.iter().enumerate() {
            if matches!(at, 8 | 13 | 18 | 23) {
                if byte != b'-' {
                    return None;
                }
                continue;
            }
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                _ => return None,
            };
            value = value << 4 | u128::from(digit);
        }
        Some(JobId { uuid: value, sync })
    }
}

/// The longest text of an id.
const TEXT: usize = SYNC_PREFIX.len() + UUID + SUFFIX.len();
const UUID: usize = 36;

impl JobId {
    /// Its text, written into `buffer`.
    fn text(self, buffer: &mut [u8; TEXT]) -> &str {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let (prefix, rest) = buffer.split_at_mut(SYNC_PREFIX.len());
        let (uuid, suffix) = rest.split_at_mut(UUID);
        prefix.copy_from_slice(SYNC_PREFIX.as_bytes());
        suffix.copy_from_slice(SUFFIX.as_bytes());
        let mut value = self.uuid;
        for (at, byte) in uuid.iter_mut().enumerate().rev() {
            *byte = match at {
                8 | 13 | 18 | 23 => b'-',
                _ => {
                    let digit = HEX[(value & 0xf) as usize];
                    value >>= 4;
                    digit
                }
            };
        }
        let start = if self.sync { 0 } else { SYNC_PREFIX.len() };
        // All of it is ASCII.
        std::str::from_utf8(&buffer[start..]).unwrap_or_default()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; TEXT]))
    }
}

impl serde::Serialize for JobId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text(&mut [0; TEXT]))
    }
}

/// Numbers that look random and follow from the seed (splitmix64). Not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From zero up to, not including, one.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A version 4 UUID's id.
    pub fn job_id(&mut self, sync: bool) -> JobId {
        let uuid = u128::from(self.next_u64()) << 64 | u128::from(self.next_u64());
        let version = uuid & !(0xf << 76) | 0x4 << 76;
        let variant = version & !(0x3 << 62) | 0x2 << 62;
        JobId {
            uuid: variant,
            sync,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_and_nothing_else_is() {
        let mut random = Random::new(7);
        for sync in [false, true] {
            let id = random.job_id(sync);
            let text = id.to_string();
            assert_eq!(text.starts_with("sync-"), sync);
            assert_eq!(text.as_bytes()[text.len() - 25], b'4', "{text}");
            assert_eq!(JobId::parse(&text), Some(id));
            let cut = text.strip_suffix("-u1").unwrap();
            for wrong in [cut, &format!("{cut}-u2"), &text.to_uppercase(), "", "-u1"] {
                assert_eq!(JobId::parse(wrong), None, "{wrong}");
            }
        }
    }

    #[test]
    fn ids_differ_and_follow_from_the_seed() {
        let ids = |seed| {
            let mut random = Random::new(seed);
            (0..1000)
                .map(|_| random.job_id(false))
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(ids(1).len(), 1000);
        assert_eq!(ids(1), ids(1));
        assert!(ids(1).is_disjoint(&ids(2)));
    }
}
