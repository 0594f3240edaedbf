//! What one group of operations is allowed, for which endpoints, and who says so.

use std::time::Duration;

use crate::limit::quota::{Mode, Quota};
use crate::operation::{Group, Operation};

/// Who says that a number is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The document podgate was built from.
    Seed,
    /// Runpod's newer documentation.
    Docs,
    /// Nothing is documented: podgate's own choice.
    Podgate,
    /// The user's file.
    File,
}

impl Source {
    pub const fn name(self) -> &'static str {
        match self {
            Source::Seed => "seed",
            Source::Docs => "docs",
            Source::Podgate => "podgate",
            Source::File => "file",
        }
    }
}

/// A setting of a group that has a source of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knob {
    /// `requests` and `per`.
    Rate,
    Burst,
    Concurrency,
    MaxBody,
    MaxWait,
    Queue,
    ResponseTimeout,
    HeldResponseTimeout,
    Mode,
    HoldShare,
    Settle,
    Counts,
}

impl Knob {
    pub const ALL: [Knob; 12] = [
        Knob::Rate,
        Knob::Burst,
        Knob::Concurrency,
        Knob::MaxBody,
        Knob::MaxWait,
        Knob::Queue,
        Knob::ResponseTimeout,
        Knob::HeldResponseTimeout,
        Knob::Mode,
        Knob::HoldShare,
        Knob::Settle,
        Knob::Counts,
    ];

    /// Its key in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Knob::Rate => "rate",
            Knob::Burst => "burst",
            Knob::Concurrency => "concurrency",
            Knob::MaxBody => "max_body",
            Knob::MaxWait => "max_wait",
            Knob::Queue => "queue",
            Knob::ResponseTimeout => "response_timeout",
            Knob::HeldResponseTimeout => "held_response_timeout",
            Knob::Mode => "mode",
            Knob::HoldShare => "hold_share",
            Knob::Settle => "settle",
            Knob::Counts => "counts",
        }
    }
}

/// The source of each knob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources([Source; Knob::ALL.len()]);

impl Sources {
    pub(super) const fn all(source: Source) -> Self {
        Self([source; Knob::ALL.len()])
    }

    pub const fn of(&self, knob: Knob) -> Source {
        self.0[knob as usize]
    }

    pub(super) const fn set(&mut self, knob: Knob, source: Source) {
        self.0[knob as usize] = source;
    }
}

/// What one group is allowed at one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupPolicy {
    /// What this podgate may spend: its share of `whole`.
    pub quota: Quota,
    /// What all podgates of the account may spend together, as written.
    pub whole: Quota,
    /// The largest request body, in bytes.
    pub max_body: u64,
    /// The longest time in the queue.
    pub max_wait: Duration,
    /// The most waiters; 0: nobody waits.
    pub queue: usize,
    /// From the last byte of a request to the head of its response.
    pub response_timeout: Duration,
    /// The same for the calls of the status group that are held; elsewhere equal to it.
    pub held_response_timeout: Duration,
    pub mode: Mode,
    pub sources: Sources,
}

impl GroupPolicy {
    /// Allows nothing to wait and no body: what the preset is written onto, never what is served.
    pub(super) fn blank() -> Self {
        let quota = Quota {
            // Only the status group mixes held and short calls; elsewhere there is nobody to
            // keep permits free for.
            hold_share: 100,
            ..Quota::new(None, None)
        };
        Self {
            quota,
            whole: quota,
            max_body: 0,
            max_wait: Duration::ZERO,
            queue: 0,
            response_timeout: Duration::ZERO,
            held_response_timeout: Duration::ZERO,
            mode: Mode::Enforce,
            sources: Sources::all(Source::Podgate),
        }
    }

    /// How long the head of the response may take for this operation.
    pub const fn response_timeout(&self, operation: Operation) -> Duration {
        match operation.held() {
            true => self.held_response_timeout,
            false => self.response_timeout,
        }
    }
}

/// The verdict on a group that is about to get a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupVerdict<'a> {
    Policy(&'a GroupPolicy),
    /// `other: reject`: nothing of this group is forwarded.
    Reject,
}

/// One policy for each group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupTable {
    pub(super) policies: [GroupPolicy; Group::ALL.len()],
    /// `other: reject`. The policy beneath stays, so that an endpoint can allow the group again.
    pub(super) other_rejected: bool,
}

impl GroupTable {
    pub(super) fn blank() -> Self {
        Self {
            policies: [GroupPolicy::blank(); Group::ALL.len()],
            other_rejected: false,
        }
    }

    pub fn get(&self, group: Group) -> GroupVerdict<'_> {
        match group {
            Group::Other if self.other_rejected => GroupVerdict::Reject,
            _ => GroupVerdict::Policy(&self.policies[group.index()]),
        }
    }
}

/// The groups of the endpoints whose id fits a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRule {
    pub pattern: Pattern,
    /// Complete: the file's groups with the rule's own keys over them.
    pub groups: GroupTable,
}

/// An endpoint id, or a shape of ids with `*` for any number of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The longest pattern, in characters.
    pub const LONGEST: usize = 128;

    /// Letters, digits, `_`, `-` and `*`. The error says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        let odd = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '*'));
        if let Some(odd) = text.chars().find(odd) {
            return Err(format!("`{}` is in no endpoint id", odd.escape_debug()));
        }
        match text.len() {
            0 => Err("an endpoint id cannot be empty".into()),
            1..=Self::LONGEST => Ok(Self(text.to_owned())),
            _ => Err(format!("longer than {} characters", Self::LONGEST)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `endpoint` fits. Allocates nothing; at most pattern times id steps.
    pub fn matches(&self, endpoint: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), endpoint.as_bytes());
        let (mut p, mut t) = (0, 0);
        // The last star, and where in the text what follows it was last tried.
        let mut retry: Option<(usize, usize)> = None;
        while t < text.len() {
            match (pattern.get(p), retry) {
                (Some(b'*'), _) => {
                    retry = Some((p, t));
                    p += 1;
                }
                (Some(c), _) if *c == text[t] => (p, t) = (p + 1, t + 1),
                (_, Some((star, tried))) => {
                    retry = Some((star, tried + 1));
                    (p, t) = (star + 1, tried + 1);
                }
                (_, None) => return false,
            }
        }
        pattern[p..].iter().all(|c| *c == b'*')
    }

    /// Whether every id that fits `other` fits this one too. No id holds a `*`, so a star of
    /// `other` can only be taken by a star here, and then whatever it stands for can be too.
    pub fn covers(&self, other: &Pattern) -> bool {
        self.matches(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text).expect("a valid pattern")
    }

    #[test]
    fn a_star_stands_for_any_number_of_characters() {
        for (shape, fits, does_not) in [
            ("abc", "abc", "abcd"),
            ("abc*", "abc", "ab"),
            ("*", "", "-"),
            ("a*c*e", "abcde", "abcd"),
            ("*ab", "aaab", "aba"),
            ("a**b", "ab", "a"),
            ("*-eu-*", "x-eu-y", "x-eu"),
        ] {
            assert!(pattern(shape).matches(fits), "{shape} {fits}");
            assert!(
                shape == "*" || !pattern(shape).matches(does_not),
                "{shape} {does_not}"
            );
        }
    }

    #[test]
    fn patterns_hold_only_what_ids_hold() {
        for text in ["", "a b", "a/b", "ä", "a?", "[ab]", &"x".repeat(129)] {
            assert!(Pattern::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn knobs_index_their_sources() {
        for (position, knob) in Knob::ALL.into_iter().enumerate() {
            assert_eq!(knob as usize, position);
        }
    }

    /// The plainest possible matcher, to compare with.
    fn plain(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                plain(rest, text) || text.split_first().is_some_and(|(_, t)| plain(pattern, t))
            }
            (Some((c, p)), Some((d, t))) => c == d && plain(p, t),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_is_what_a_plain_matcher_says(shape in "[ab*]{1,8}", text in "[ab]{0,8}") {
            let expected = plain(shape.as_bytes(), text.as_bytes());
            prop_assert_eq!(pattern(&shape).matches(&text), expected);
        }

        #[test]
        fn what_is_covered_is_matched(over in "[ab*]{1,5}", under in "[ab*]{1,5}", text in "[ab]{0,8}") {
            let (over, under) = (pattern(&over), pattern(&under));
            prop_assert!(!over.covers(&under) || !under.matches(&text) || over.matches(&text));
        }
    }
}
