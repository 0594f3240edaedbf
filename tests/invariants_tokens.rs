//! The bucket (semantics, section 3), judged by one made of plain numbers: what may go at once, and
//! what must not be saved up.

mod plain;

use std::time::Duration;

use plain::world::World;
use plain::{PATIENT, START, W, hold, millis, quota, with_burst};
use podgate::limit::ledger::{Call, Effective, End, Ledger, Limit, Slot};
use podgate::limit::quota::Timestamp;
use proptest::prelude::*;

/// Tokens in nanoseconds' worth: one is W / N of them.
struct Bucket {
    requests: u64,
    depth: u64,
    level: u64,
    credit: u64,
}

impl Bucket {
    fn token(&self) -> u64 {
        W.as_nanos() as u64 / self.requests
    }

    fn pass(&mut self, span: Duration, somebody_waits: bool) {
        let full = self.depth * self.token();
        let most = match somebody_waits {
            true => (self.requests / 100 + 1) * self.token(),
            false => full,
        };
        let accrued = self.level + span.as_nanos() as u64;
        self.level = accrued.min(most.max(self.level)).min(full);
    }

    fn take(&mut self) -> bool {
        if self.credit > 0 {
            self.credit -= 1;
        } else if self.level >= self.token() {
            self.level -= self.token();
        } else {
            return false;
        }
        true
    }

    fn put_back(&mut self) {
        self.credit = (self.credit + 1).min(self.depth);
    }

    fn reshape(&mut self, depth: u64) {
        self.depth = depth;
        self.level = self.level.min(depth * self.token());
        self.credit = self.credit.min(depth);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Pass(Duration, bool),
    Take(usize),
    /// Nothing of it was written.
    Unsent(usize),
    Burst(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u64..80, any::<bool>()).prop_map(|(span, waits)| Step::Pass(millis(span), waits)),
        4 => (1usize..30).prop_map(Step::Take),
        2 => (1usize..30).prop_map(Step::Unsent),
        1 => (1u32..60).prop_map(Step::Burst),
    ];
    prop::collection::vec(step, 1..100)
}

proptest! {
    #![proptest_config(plain::config(500))]

    /// Level, ceiling, credit and clipping, token by token.
    #[test]
    fn a_token_is_there_when_the_plain_bucket_has_one(
        requests in prop_oneof![Just(100u32), Just(500), Just(2_000)],
        burst in 1u32..60,
        steps in steps(),
    ) {
        let quota = with_burst(quota(requests, 0), burst);
        let mut ledger = Ledger::new(quota, START);
        let mut plain = Bucket { requests: requests.into(), depth: 0, level: 0, credit: 0 };
        plain.reshape(burst.into());
        plain.pass(W, false);
        let (mut now, mut out): (Timestamp, Vec<Slot>) = (START, Vec::new());
        for step in steps {
            match step {
                Step::Pass(span, waits) => {
                    now = now + span;
                    ledger.advance(waits, now);
                    plain.pass(span, waits);
                }
                Step::Take(count) => for _ in 0..count {
                    match ledger.take(Call::Short, now) {
                        Ok(slot) => {
                            prop_assert!(plain.take(), "a token from nowhere");
                            out.push(slot);
                        }
                        Err(denied) if denied.by == Limit::Tokens => {
                            prop_assert!(!plain.take(), "a token lost");
                            let missing = plain.token() - plain.level;
                            prop_assert_eq!(denied.until, Some(now + Duration::from_nanos(missing)));
                        }
                        Err(denied) => prop_assert_eq!(denied.by, Limit::Window),
                    }
                },
                Step::Unsent(count) => for slot in out.drain(out.len().saturating_sub(count)..) {
                    ledger.unsent(slot);
                    plain.put_back();
                },
                Step::Burst(burst) => {
                    let effective = Effective { burst, ..ledger.effective() };
                    ledger.set_effective(effective, now);
                    plain.reshape(burst.into());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(plain::config(60))]

    /// By the rule's own words: while somebody waits, no more goes than was there, or N/100 above
    /// the one that is due, and what accrues meanwhile.
    #[test]
    fn a_stall_saves_up_no_burst(
        requests in 100u32..400,
        burst in 1u32..400,
        stall in 0u64..2_000,
        spread in 0u64..2_000,
    ) {
        let mut world = World::new(with_burst(quota(requests, 0), burst), 10_000);
        for _ in 0..requests * 2 {
            world.ask(1, Call::Short, PATIENT);
        }
        world.wire = Some(Box::new(|_| (millis(20), millis(1))));
        let at_once = world.attempts.len();
        prop_assert_eq!(at_once, burst.min(requests) as usize);
        // The first ones are answered late: the window stalls.
        world.pass_to(world.now + millis(stall));
        for index in 0..at_once {
            world.head(index);
            world.end(index, End::Complete);
        }
        world.pass_to(world.now + W + millis(spread));
        let mut admitted: Vec<_> = world.attempts.iter().map(|attempt| attempt.admitted).collect();
        admitted.retain(|&admitted| admitted > START);
        let interval = W / requests;
        for (first, &from) in admitted.iter().enumerate() {
            for (count, &to) in admitted[first..].iter().enumerate() {
                let accrued = (to.since(from).as_nanos() / interval.as_nanos()) as usize;
                prop_assert!(count < requests as usize / 100 + 1 + accrued + 1);
            }
        }
    }
}

/// A pause is no wait for tokens: what accrued meanwhile goes when it is over.
#[test]
fn tokens_accrue_during_a_pause() {
    let mut world = World::new(with_burst(quota(1_000, 0), 200), 10_000);
    for _ in 0..400 {
        world.ask(1, Call::Short, PATIENT);
    }
    assert_eq!(world.attempts.len(), 200);
    world.refused(0, Some(W / 2));
    assert_eq!(world.effective().burst, 50);
    world.pass_to(world.now + W * 6 / 10);
    assert_eq!(world.attempts.len(), 201, "the probe");
    world.head(200);
    assert_eq!(world.attempts.len(), 251, "and the burst that was learnt");
}

/// Below a hundred a window the shaper would only make the second wait in vain.
#[test]
fn small_windows_go_out_at_once() {
    for (requests, at_once) in [(99, 99), (100, 25)] {
        let mut world = World::new(quota(requests, 0), 1_000);
        for _ in 0..200 {
            world.ask(1, Call::Short, PATIENT);
        }
        assert_eq!(world.attempts.len(), at_once);
    }
}

#[test]
fn a_deep_bucket_lets_the_whole_window_out_and_never_more() {
    let mut world = World::new(with_burst(quota(200, 0), 200), 1_000);
    for _ in 0..300 {
        world.ask(1, Call::Short, PATIENT);
    }
    assert_eq!(world.attempts.len(), 200);
    world.pass_to(world.now + hold(W));
    assert_eq!(world.attempts.len(), 200);
}

/// What a failed connection took is there for the next one, and for no more than a burst of them.
#[test]
fn tokens_of_what_was_never_sent_are_spent_first() {
    let mut world = World::new(with_burst(quota(1_000, 0), 3), 1_000);
    for _ in 0..20 {
        world.ask(1, Call::Short, PATIENT);
    }
    for index in 0..10 {
        assert_eq!(world.attempts.len(), 3 + index);
        world.unsent(index);
    }
}
