//! `RateLimit-Policy` and `RateLimit`, in the form of draft 10 of the IETF's httpapi group; the one
//! place that writes them. Later drafts rename their parameters, so nothing is promised of the form.

use std::cell::RefCell;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::limit::local::Budget;
use crate::limit::quota::Rate;
use crate::operation::Group;
use crate::text::{Short, Sink, number};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Longer than either field: a group's name, and two numbers of up to 20 digits.
pub const LONGEST: usize = 80;

/// Policies of which the field is kept: those of a configuration that most requests meet.
const KEPT: usize = 32;

thread_local! {
    /// A policy's field changes with a reload only, and is not written anew for each answer.
    static POLICIES: RefCell<Vec<(Group, Rate, HeaderValue)>> = const { RefCell::new(Vec::new()) };
}

/// Says by what policy a group's lane goes, and what [`left`] has said is left of it.
pub fn add(headers: &mut HeaderMap, group: Group, rate: Rate, left: HeaderValue) {
    if let Some(policy) = policy(group, rate) {
        headers.append(RATE_LIMIT_POLICY, policy);
    }
    headers.append(RATE_LIMIT, left);
}

fn policy(group: Group, rate: Rate) -> Option<HeaderValue> {
    let find = |kept: &RefCell<Vec<_>>| {
        let mut kept = kept.borrow_mut();
        let mut known = kept.iter().filter(|(g, r, _)| (*g, *r) == (group, rate));
        if let Some((.., field)) = known.next() {
            return Some(HeaderValue::clone(field));
        }
        let text = [
            (&b";q="[..], rate.requests().into()),
            (b";w=", seconds(rate.period())),
        ];
        let mut said = Short::<LONGEST>::new();
        field(group, text, &mut said);
        // Owned, not copied: each answer shares it.
        let field = HeaderValue::from_maybe_shared(Bytes::from_owner(said)).ok()?;
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.push((group, rate, field.clone()));
        Some(field)
    };
    POLICIES.try_with(find).ok().flatten()
}

/// What is left of a lane's rate, as `RateLimit` says it.
pub fn left(group: Group, budget: &Budget, to: &mut impl Sink) {
    let (remaining, reset) = (budget.remaining.into(), seconds(budget.reset));
    field(group, [(b";r=", remaining), (b";t=", reset)], to);
}

fn field(group: Group, parameters: [(&[u8], u64); 2], to: &mut impl Sink) {
    to.put(b"\"");
    to.put(group.name().as_bytes());
    to.put(b"\"");
    for (name, value) in parameters {
        to.put(name);
        number(value, to);
    }
}

/// Whole seconds, rounded up: nothing is there before it is said to be.
fn seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_draft_s_form_in_whole_seconds() {
        let rate = Rate::new(1_000, Duration::from_millis(9_500)).unwrap();
        let left = |remaining, reset| {
            let budget = Budget {
                rate,
                remaining,
                reset: Duration::from_millis(reset),
            };
            let mut field = Vec::new();
            super::left(Group::Run, &budget, &mut field);
            String::from_utf8(field).unwrap()
        };
        assert_eq!(policy(Group::Run, rate).unwrap(), r#""run";q=1000;w=10"#);
        assert_eq!(left(12, 9_500), r#""run";r=12;t=10"#);
        assert_eq!(left(0, 1), r#""run";r=0;t=1"#);
        let longest = Group::ALL.map(|group| group.name().len());
        assert!(longest.iter().max() < Some(&(LONGEST - 2 * 23 - 2)));
    }

    #[test]
    fn a_policy_that_is_kept_is_its_own() {
        for requests in (1..=2 * KEPT as u32).chain(1..=3) {
            let rate = Rate::new(requests, Duration::from_secs(10)).unwrap();
            for group in [Group::Run, Group::Status] {
                let field = format!("\"{}\";q={requests};w=10", group.name());
                assert_eq!(policy(group, rate).unwrap(), field);
            }
        }
        assert!(POLICIES.with_borrow(Vec::len) <= KEPT);
    }
}
