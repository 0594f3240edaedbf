//! The trace a request is part of (W3C Trace Context): the client's, passed on as it is, or one made
//! here, so that the log's lines and the upstream's can be found together.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::gateway::head::Noted;
use crate::gateway::named::Named;
use crate::text::{Short, Sink, hex};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Where a trace's id stands in the field: after the version and a dash.
const TRACE_ID: std::ops::Range<usize> = 3..35;
/// The field's length, of the version there is.
const LENGTH: usize = 55;

/// Makes traces for requests that come without one. Spread and never the same twice, so that they can
/// be told apart and sampled by; not secret, as nobody is let in by one.
pub struct Traces {
    /// What all their ids begin with, in hexadecimal digits.
    first: [u8; 16],
    /// Of the second half of a trace's id, and of the span's.
    seeds: [u64; 2],
    made: AtomicU64,
}

impl Default for Traces {
    fn default() -> Self {
        let chance = RandomState::new();
        Self {
            first: hex(chance.hash_one(0u8)),
            seeds: [1u8, 2].map(|part| chance.hash_one(part)),
            made: AtomicU64::new(0),
        }
    }
}

impl Traces {
    /// The trace of a request, as the upstream is told of it: the client's `traceparent`, if it says
    /// what it should, or a new one.
    pub fn of(&self, noted: &Noted<'_>) -> Named {
        if !noted.trace {
            return self.next();
        }
        let mut given = noted.headers.get_all(TRACEPARENT).iter();
        match (given.next(), given.next()) {
            (Some(given), None) if is_sound(given.as_bytes()) => Named::Given(given.clone()),
            _ => self.next(),
        }
    }

    fn next(&self) -> Named {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let [second, span] = self.seeds.map(|seed| hex(spread(seed, number).max(1)));
        // Not sampled: whoever records it writes one of its own (`otlp`).
        let mut made = Short::new();
        for part in [&b"00-"[..], &self.first, &second, b"-", &span, b"-00"] {
            made.put(part);
        }
        Named::Made(made)
    }
}

/// SplitMix64, the `number`th of a seed's: no two numbers give the same.
fn spread(seed: u64, number: u64) -> u64 {
    let mut mixed = seed.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Whether what a client says of the state of its trace belongs to this one.
pub fn keeps_its_state(headers: &HeaderMap, trace: &Named) -> bool {
    match trace {
        // One made here is nobody else's.
        Named::Made(_) => false,
        Named::Given(trace) => {
            let given = headers.get(TRACEPARENT).map(HeaderValue::as_bytes);
            given.map(id_bytes) == Some(id_bytes(trace.as_bytes()))
        }
    }
}

/// The id by which the trace is found.
pub fn id(trace: &Named) -> &[u8] {
    id_bytes(trace.as_bytes())
}

fn id_bytes(trace: &[u8]) -> &[u8] {
    trace.get(TRACE_ID).unwrap_or_default()
}

/// Version, trace, span and flags, in lower-case hexadecimal digits; later versions may say more.
fn is_sound(field: &[u8]) -> bool {
    let Some((known, more)) = field.split_at_checked(LENGTH) else {
        return false;
    };
    let hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let some = |part: &[u8]| hex(part) && part.iter().any(|b| *b != b'0');
    let (version, trace, span, flags) =
        (&known[..2], &known[TRACE_ID], &known[36..52], &known[53..]);
    [2, 35, 52].iter().all(|dash| known[*dash] == b'-')
        && hex(version)
        && version != b"ff"
        && some(trace)
        && some(span)
        && hex(flags)
        && (more.is_empty() || (version != b"00" && more[0] == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn of(fields: &[&str]) -> HeaderValue {
        named(fields).field()
    }

    fn named(fields: &[&str]) -> Named {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(TRACEPARENT, HeaderValue::from_str(field).expect("a field"));
        }
        Traces::default().of(&Noted::of(&headers))
    }

    #[test]
    fn a_sound_one_passes_as_it_is() {
        let later = format!("01{}-more", &SOUND[2..]);
        for field in [SOUND, &later] {
            assert_eq!(of(&[field]), field);
        }
        assert_eq!(id(&named(&[SOUND])), b"4bf92f3577b34da6a3ce929d0e0e4736");
    }

    #[test]
    fn anything_else_is_no_trace() {
        let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let no_span = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01";
        let longer = format!("{SOUND}-more");
        let upper = SOUND.to_uppercase();
        let forbidden = format!("ff{}", &SOUND[2..]);
        for fields in [
            &[][..],
            &[SOUND, SOUND],
            &[&SOUND[..54]],
            &[zero],
            &[no_span],
            &[&longer],
            &[&upper],
            &[&forbidden],
            &["00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
            &["\u{e9}"],
        ] {
            let made = of(fields);
            assert!(is_sound(made.as_bytes()), "{made:?}");
            assert!(made.as_bytes().ends_with(b"-00"), "{made:?}");
            assert!(fields.iter().all(|field| made != *field), "{fields:?}");
        }
    }

    #[test]
    fn no_two_are_alike() {
        let traces = Traces::default();
        let made: std::collections::HashSet<_> =
            (0..1_000).map(|_| traces.next().field()).collect();
        assert_eq!(made.len(), 1_000);
    }

    #[test]
    fn the_state_of_another_trace_does_not_stay() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(SOUND));
        let given = |trace| Named::Given(HeaderValue::from_static(trace));
        let keeps = |trace: &Named| keeps_its_state(&headers, trace);
        assert!(keeps(&given(SOUND)));
        let below = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01";
        assert!(keeps(&given(below)));
        assert!(!keeps(&Traces::default().next()));
        assert!(!keeps_its_state(
            &HeaderMap::new(),
            &Traces::default().next()
        ));
    }
}
