//! How long a request may wait: its group's bound, what it asks for, and what its caller is known to
//! bear. Each only shortens.

use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::gateway::head::Noted;
use crate::operation::Operation;

pub const PREFER: HeaderName = HeaderName::from_static("prefer");
/// How far below its own timeout a known caller is answered.
const BELOW: Duration = Duration::from_millis(500);

/// The longest this request waits, at most `bound`.
///
/// A submission forwarded after its caller gave up is a paid job nobody knows of.
pub fn of(noted: &Noted<'_>, operation: Operation, bound: Duration) -> Duration {
    let known = timeout(noted.user_agent, operation).map(|timeout| timeout.saturating_sub(BELOW));
    let asked = match noted.prefer {
        true => preferred(noted.headers),
        false => None,
    };
    [known, asked]
        .into_iter()
        .flatten()
        .fold(bound, Duration::min)
}

/// What the official SDKs allow a call (contract, section 5), where they say who they are.
fn timeout(agent: Option<&HeaderValue>, operation: Operation) -> Option<Duration> {
    let agent = agent?.as_bytes();
    let (js, python) = match operation {
        Operation::Cancel | Operation::Health | Operation::PurgeQueue => (Some(3), Some(3)),
        Operation::Run | Operation::Status => (Some(3), Some(10)),
        Operation::Stream => (None, Some(10)),
        _ => return None,
    };
    let seconds = match agent {
        agent if agent.starts_with(b"RunPod-JS-SDK/") => js,
        agent if agent.starts_with(b"RunPod-Python-SDK/") => python,
        _ => None,
    };
    seconds.map(Duration::from_secs)
}

/// `Prefer: wait=SECONDS` (RFC 7240, section 4.3); the first that is a number counts.
fn preferred(headers: &HeaderMap) -> Option<Duration> {
    let wait = |preference: &str| {
        let (name, value) = preference.split_once('=')?;
        let value = value.split(';').next()?.trim().trim_matches('"');
        let seconds = value
            .parse()
            .ok()
            .filter(|_| value.bytes().all(|b| b.is_ascii_digit()))?;
        name.trim()
            .eq_ignore_ascii_case("wait")
            .then(|| Duration::from_secs(seconds))
    };
    let values = headers
        .get_all(PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).find_map(wait)
}

#[cfg(test)]
mod tests {
    use http::header::USER_AGENT;

    use super::*;

    const BOUND: Duration = Duration::from_secs(8);

    fn of(headers: &HeaderMap, operation: Operation, bound: Duration) -> Duration {
        super::of(&Noted::of(headers), operation, bound)
    }

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.append(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn a_caller_may_ask_for_less_and_never_for_more() {
        let asked = |value| of(&headers(PREFER, value), Operation::Run, BOUND);
        assert_eq!(asked("wait=3"), Duration::from_secs(3));
        assert_eq!(
            asked("respond-async, Wait=\"5\"; x=1"),
            Duration::from_secs(5)
        );
        assert_eq!(asked("wait=0"), Duration::ZERO);
        assert_eq!(asked("wait=900"), BOUND);
        for nothing in [
            "wait",
            "wait=",
            "wait=-1",
            "wait=+1",
            "wait=soon",
            "waits=1",
        ] {
            assert_eq!(asked(nothing), BOUND, "{nothing}");
        }
    }

    #[test]
    fn known_callers_are_answered_before_they_give_up() {
        let js = headers(USER_AGENT, "RunPod-JS-SDK/1.1.2 (Unknown Environment)");
        let python = headers(USER_AGENT, "RunPod-Python-SDK/1.12.0 (OS; arch)");
        let brief = Duration::from_millis(2_500);
        assert_eq!(of(&js, Operation::Run, BOUND), brief);
        assert_eq!(of(&js, Operation::Status, BOUND), brief);
        assert_eq!(of(&python, Operation::Run, BOUND), BOUND);
        assert_eq!(
            of(&python, Operation::Run, BOUND * 2),
            Duration::from_millis(9_500)
        );
        assert_eq!(
            of(&python, Operation::Stream, BOUND * 2),
            Duration::from_millis(9_500)
        );
        for operation in [Operation::Cancel, Operation::Health, Operation::PurgeQueue] {
            assert_eq!(of(&js, operation, BOUND), brief);
            assert_eq!(of(&python, operation, BOUND), brief);
        }
        for operation in [Operation::RunSync, Operation::StatusSync, Operation::Stream] {
            assert_eq!(of(&js, operation, BOUND * 2), BOUND * 2);
        }
        let other = headers(USER_AGENT, "python-requests/2.34");
        assert_eq!(of(&other, Operation::Cancel, BOUND), BOUND);
    }
}
