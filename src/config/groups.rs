//! From the written form to the meant one: groups and endpoints, layer over layer.
//!
//! The preset lies below, the file's `groups` over it, an endpoint's `groups` on top. Each layer
//! changes only the keys it names.

use std::num::NonZeroU32;

use super::faults::{Fault, Place};
use super::hint;
use super::keys;
use super::policy::{EndpointRule, GroupPolicy, GroupTable, Knob, Pattern, Source, Sources};
use super::raw::Value;
use super::read::{At, Entries};
use crate::limit::quota::{Burst, Counts, Mode, Rate};
use crate::operation::Group;

/// Each rule carries a policy for every group.
pub(super) const MOST_RULES: usize = 10_000;

pub(super) const SOURCES: [(&str, Source); 3] = [
    ("seed", Source::Seed),
    ("docs", Source::Docs),
    ("podgate", Source::Podgate),
];
pub(super) const MODES: [(&str, Mode); 3] = [
    ("enforce", Mode::Enforce),
    ("shadow", Mode::Shadow),
    ("disabled", Mode::Disabled),
];
pub(super) const COUNTS: [(&str, Counts); 2] = [
    ("arrival", Counts::Arrival),
    ("completion", Counts::Completion),
];

/// Whose settings are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    /// Says in `sources` where its numbers are from.
    Preset,
    /// Is the source of what it sets.
    File,
}

/// Writes a `groups` map over `table`.
pub(super) fn table(table: &mut GroupTable, at: &At<'_>, layer: Layer, faults: &mut Vec<Fault>) {
    let entries = at.entries(faults);
    for group in Group::ALL {
        let Some(at) = entries.get(group.name()) else {
            continue;
        };
        if group == Group::Other {
            table.other_rejected = at.is_the_word();
            if table.other_rejected {
                continue;
            }
        }
        policy(&mut table.policies[group.index()], group, at, layer, faults);
    }
}

/// The rules of an `endpoints` map, each complete: its own keys over `base`.
pub(super) fn endpoints(
    base: &GroupTable,
    at: &At<'_>,
    faults: &mut Vec<Fault>,
) -> Vec<EndpointRule> {
    let named = at.ids(faults);
    if named.len() > MOST_RULES {
        let what = format!("{} rules; the most is {MOST_RULES}", named.len());
        faults.push(at.key_fault(what));
        return Vec::new();
    }
    let mut rules: Vec<(EndpointRule, At<'_>)> = Vec::with_capacity(named.len());
    for (id, at) in named {
        let entries = at.entries(faults);
        let mut groups = base.clone();
        if let Some(at) = entries.get("groups") {
            table(&mut groups, at, Layer::File, faults);
        }
        let pattern = match Pattern::new(id) {
            Ok(pattern) => pattern,
            Err(why) => {
                let fault = at.key_fault("expected an endpoint id or a pattern with `*`");
                let help = "ids are letters, digits, `_` and `-`; `*` is any number of them";
                faults.push(fault.label(why).help(help));
                continue;
            }
        };
        // Only a star covers another pattern: the same one twice is a fault already.
        let mut wide = rules
            .iter()
            .filter(|(r, _)| r.pattern.as_str().contains('*'));
        if let Some((_, above)) = wide.find(|(rule, _)| rule.pattern.covers(&pattern)) {
            let fault = at.key_fault("this rule is never reached: the first match wins");
            let fault = fault.also(above.key_place(), "takes all it could match");
            faults.push(fault.label("put it above"));
        }
        rules.push((EndpointRule { pattern, groups }, at));
    }
    rules.into_iter().map(|(rule, _)| rule).collect()
}

/// Writes one group's map over its policy.
fn policy(
    policy: &mut GroupPolicy,
    group: Group,
    at: &At<'_>,
    layer: Layer,
    faults: &mut Vec<Fault>,
) {
    if !matches!(at.value, Value::Map(_) | Value::Nothing) && group == Group::Other {
        let fault = at.fault("expected `reject`, or a map of settings");
        faults.push(fault.label(format!("this is {}", at.value.kind())));
        return;
    }
    let entries = at.entries(faults);
    let mut given = Given {
        sources: &mut policy.sources,
        stated: match (entries.get("sources"), layer) {
            (None, _) => Vec::new(),
            (Some(at), Layer::Preset) => stated(at, faults),
            (Some(at), Layer::File) => {
                let help = hint::hint(&keys::GROUP, "sources");
                faults.push(at.no_such_key().maybe_help(help));
                Vec::new()
            }
        },
        layer,
    };
    let quota = &mut policy.quota;

    rate(
        &mut quota.rate,
        &mut quota.burst,
        &entries,
        &mut given,
        faults,
    );
    if entries.set("concurrency", &mut quota.concurrency, |at| {
        concurrency(at, faults)
    }) {
        given.mark(Knob::Concurrency);
    }
    if entries.set("max_body", &mut policy.max_body, |at| at.size(faults)) {
        given.mark(Knob::MaxBody);
    }
    if entries.set("max_wait", &mut policy.max_wait, |at| at.duration(faults)) {
        given.mark(Knob::MaxWait);
    }
    if entries.set("queue", &mut policy.queue, |at| at.whole(faults)) {
        given.mark(Knob::Queue);
    }
    if entries.set("response_timeout", &mut policy.response_timeout, |at| {
        at.duration(faults)
    }) {
        given.mark(Knob::ResponseTimeout);
    }
    if entries.set("mode", &mut policy.mode, |at| at.word(&MODES, faults)) {
        given.mark(Knob::Mode);
    }
    if entries.set("settle", &mut quota.settle, |at| at.duration(faults)) {
        given.mark(Knob::Settle);
    }
    if entries.set("counts", &mut quota.counts, |at| at.word(&COUNTS, faults)) {
        given.mark(Knob::Counts);
    }
    for key in ["held_response_timeout", "hold_share"] {
        if group != Group::Status
            && let Some(at) = entries.get(key)
        {
            let what = "only the group `status` has both held and short calls";
            let help = "the timeout of this group is `response_timeout`";
            let help = (key == "held_response_timeout").then(|| help.to_owned());
            faults.push(
                at.key_fault(what)
                    .label("means nothing here")
                    .maybe_help(help),
            );
        }
    }
    if group != Group::Status {
        policy.held_response_timeout = policy.response_timeout;
        return;
    }
    if entries.set(
        "held_response_timeout",
        &mut policy.held_response_timeout,
        |at| at.duration(faults),
    ) {
        given.mark(Knob::HeldResponseTimeout);
    }
    if entries.set("hold_share", &mut quota.hold_share, |at| at.whole(faults)) {
        given.mark(Knob::HoldShare);
    }
}

/// Who is the source of what this layer sets.
struct Given<'a> {
    sources: &'a mut Sources,
    stated: Vec<(Knob, Source)>,
    layer: Layer,
}

impl Given<'_> {
    fn mark(&mut self, knob: Knob) {
        let stated = self.stated.iter().find(|(of, _)| *of == knob);
        let source = match (self.layer, stated) {
            (Layer::File, _) => Source::File,
            (Layer::Preset, Some((_, source))) => *source,
            (Layer::Preset, None) => Source::Podgate,
        };
        self.sources.set(knob, source);
    }
}

/// The preset's `sources: { rate: seed }`; what it does not name is podgate's own.
fn stated(at: &At<'_>, faults: &mut Vec<Fault>) -> Vec<(Knob, Source)> {
    let mut stated = Vec::new();
    for (name, at) in at.named(faults) {
        match Knob::ALL.into_iter().find(|knob| knob.name() == name) {
            Some(knob) => stated.extend(at.word(&SOURCES, faults).map(|source| (knob, source))),
            None => faults.push(at.key_fault("there is no such setting")),
        }
    }
    stated
}

fn concurrency(at: &At<'_>, faults: &mut Vec<Fault>) -> Option<Option<NonZeroU32>> {
    Some(at.whole_or(faults)?.and_then(NonZeroU32::new))
}

/// `none`, or any of `requests`, `per` and `burst` over what is there.
fn rate(
    rate: &mut Option<Rate>,
    burst: &mut Burst,
    entries: &Entries<'_>,
    given: &mut Given<'_>,
    faults: &mut Vec<Fault>,
) {
    let Some(at) = entries.get("rate") else {
        return;
    };
    if at.is_the_word() {
        (*rate, *burst) = (None, Burst::Auto);
        given.mark(Knob::Rate);
        return;
    }
    if !matches!(at.value, Value::Map(_)) {
        let fault = at.fault("expected `none`, or a map such as `{ requests: 1000, per: 10s }`");
        faults.push(fault.label(format!("this is {}", at.value.kind())));
        return;
    }
    let before = faults.len();
    let parts = at.entries(faults);
    let mut requests = rate.map(|rate| u64::from(rate.requests()));
    let mut per = rate.map(Rate::period);
    let counted = parts.set("requests", &mut requests, |at| at.whole(faults).map(Some));
    let timed = parts.set("per", &mut per, |at| at.duration(faults).map(Some));
    let mut at_once = *burst;
    let paced = parts.set("burst", &mut at_once, |at| self::burst(at, faults));
    if faults.len() > before {
        return;
    }
    let missing = match (requests, per) {
        (Some(requests), Some(per)) => {
            if !fits(at_once, requests, &parts, faults) {
                return;
            }
            *rate = u32::try_from(requests)
                .ok()
                .and_then(|requests| Rate::new(requests, per));
            *burst = at_once;
            if counted || timed {
                given.mark(Knob::Rate);
            }
            if paced {
                given.mark(Knob::Burst);
            }
            return;
        }
        (None, Some(_)) => "`requests`",
        (Some(_), None) => "`per`",
        (None, None) => "`requests` and `per`",
    };
    let fault = at.key_fault(format!(
        "{missing} must be given: this group has no rate to change"
    ));
    faults.push(fault.label("not complete"));
}

fn burst(at: &At<'_>, faults: &mut Vec<Fault>) -> Option<Burst> {
    let burst = at.whole_or(faults)?.and_then(NonZeroU32::new);
    Some(burst.map_or(Burst::Auto, Burst::Fixed))
}

/// More at once than the window holds can never happen, so it was meant otherwise.
fn fits(burst: Burst, requests: u64, parts: &Entries<'_>, faults: &mut Vec<Fault>) -> bool {
    let burst = match burst {
        Burst::Fixed(burst) if u64::from(burst.get()) > requests => burst,
        _ => return true,
    };
    let what = format!("a burst of {burst} is more than the window's {requests} requests");
    let place = |key: &str| parts.get(key).map(At::place);
    let fault = match (parts.get("burst"), parts.get("requests")) {
        (Some(at), _) => at.fault(what).label("at once"),
        (None, Some(at)) => at.fault(what).label("a burst set above is larger"),
        (None, None) => parts.at().key_fault(what),
    };
    let other = parts.get("burst").and_then(|_| place("requests"));
    faults.push(match other {
        Some(place @ Place::Part(_)) => fault.also(place, "in a window"),
        _ => fault,
    });
    false
}
