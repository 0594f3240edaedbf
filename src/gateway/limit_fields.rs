//! `RateLimit-Policy` and `RateLimit`, in the form of draft 10 of the IETF's httpapi group; the one
//! place that writes them. Later drafts rename their parameters, so nothing is promised of the form.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::admission::lane::{Budget, LaneCell};
use crate::text::{Short, Sink, number};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Longer than either field: a group's name, and two numbers of up to 20 digits.
const LONGEST: usize = 80;

/// Says what is left of a lane's rate, if it has one that binds.
pub fn add(headers: &mut HeaderMap, lane: &LaneCell) {
    let Some(budget) = lane.budget() else { return };
    let (policy, left) = fields(lane.group().name(), &budget);
    for (name, value) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, left)] {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.append(name, value);
        }
    }
}

fn fields(policy: &str, budget: &Budget) -> (Short<LONGEST>, Short<LONGEST>) {
    let Budget {
        rate,
        remaining,
        reset,
    } = *budget;
    let field = |parameters: [(&[u8], u64); 2]| {
        let mut field = Short::new();
        field.put(b"\"");
        field.put(policy.as_bytes());
        field.put(b"\"");
        for (name, value) in parameters {
            field.put(name);
            number(value, &mut field);
        }
        field
    };
    (
        field([
            (b";q=", rate.requests().into()),
            (b";w=", seconds(rate.period())),
        ]),
        field([(b";r=", remaining.into()), (b";t=", seconds(reset))]),
    )
}

/// Whole seconds, rounded up: nothing is there before it is said to be.
fn seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::quota::Rate;

    #[test]
    fn the_draft_s_form_in_whole_seconds() {
        let rate = Rate::new(1_000, Duration::from_millis(9_500)).unwrap();
        let budget = |remaining, reset| Budget {
            rate,
            remaining,
            reset: Duration::from_millis(reset),
        };
        let (policy, left) = fields("run", &budget(12, 9_500));
        assert_eq!(policy.as_bytes(), br#""run";q=1000;w=10"#);
        assert_eq!(left.as_bytes(), br#""run";r=12;t=10"#);
        let (_, left) = fields("run", &budget(0, 1));
        assert_eq!(left.as_bytes(), br#""run";r=0;t=1"#);
        let longest = crate::operation::Group::ALL.map(|group| group.name().len());
        assert!(longest.iter().max() < Some(&(LONGEST - 2 * 23 - 2)));
    }
}
