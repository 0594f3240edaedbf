//! The contract's state machine as a table (section 2), and what `/status` shows in each state (1.4),
//! at exact times, without sockets.
//!
//! | edge | test |
//! | --- | --- |
//! | take, done(output), done(error), executionTimeout, worker lost, never reported | [`every_edge_a_job_takes_by_itself`] |
//! | `/cancel`, `/retry`, `/purge-queue`, ttl, `?ttl=`, retention: in each of the six states | [`every_event_in_every_state`] |
//! | ttl over while running frees the worker | [`a_job_whose_life_is_over_leaves_its_worker_to_the_next`] |
//! | a retried job is as new but for its name and its age | [`a_retried_job_shows_nothing_of_its_first_run`] |
//! | no worker ever: in the queue until the ttl | [`without_workers_a_job_waits_for_a_day`] |
//! | the fields of each state | [`the_fields_of_every_state`] |
//! | output above the payload limit | [`an_output_of_exactly_the_limit_is_kept_and_a_byte_more_is_lost`] |
//!
//! As a caller sees them: `states`. RUNNING is documented and was never seen; nothing here is in it.

use std::sync::Arc;
use std::time::Duration;

use podgate::emulator::id::JobId;
use podgate::emulator::job::{Order, State};
use podgate::emulator::jobs::{EndpointId, Jobs, Keeping};
use podgate::emulator::site::Fleet;
use serde_json::value::RawValue;
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
const NS: Duration = Duration::from_nanos(1);
const RETENTION: Duration = Duration::from_secs(30 * 60);
const STATES: [State; 6] = [
    State::InQueue,
    State::InProgress,
    State::Completed,
    State::Failed,
    State::Cancelled,
    State::TimedOut,
];

fn order(input: &str) -> Order {
    let input = RawValue::from_string(input.to_owned()).unwrap();
    Order::new(Arc::from(input), false)
}

/// Work that does not end by itself.
fn endless() -> Order {
    Order {
        execution_timeout: Order::LONGEST,
        ttl: Order::LONGEST,
        ..order(r#"{"sleep": 604800}"#)
    }
}

struct World {
    jobs: Jobs,
    endpoint: EndpointId,
}

impl World {
    fn new(workers: u32) -> Self {
        let mut jobs = Jobs::new(Keeping::default(), 1);
        let endpoint = jobs.add_endpoint(Fleet {
            workers,
            ..Fleet::default()
        });
        Self { jobs, endpoint }
    }

    fn submit(&mut self, order: Order, now: Duration) -> JobId {
        self.jobs.submit(self.endpoint, order, now).unwrap()
    }

    /// `None`: gone.
    fn state(&mut self, id: JobId, now: Duration) -> Option<State> {
        self.jobs.advance(now);
        let view = self.jobs.status(self.endpoint, id);
        view.map(|view| view.status)
    }

    /// As `/status` says it.
    fn view(&mut self, id: JobId, now: Duration) -> Value {
        self.jobs.advance(now);
        serde_json::to_value(self.jobs.status(self.endpoint, id).unwrap()).unwrap()
    }

    /// One worker, a job that has come to `state` by 0, and somebody else's at the worker ever after.
    fn with_a_job_in(state: State, ttl: Duration) -> (Self, JobId) {
        let mut world = World::new(1);
        let input = match state {
            State::InQueue | State::InProgress | State::Cancelled => endless(),
            State::Completed => order("1"),
            State::Failed => order(r#"{"fail": "x"}"#),
            State::TimedOut => order(r#"{"lost": 9}"#),
        };
        if state == State::InQueue {
            world.submit(endless(), Duration::ZERO);
        }
        let id = world.submit(Order { ttl, ..input }, Duration::ZERO);
        if state == State::Cancelled {
            world.jobs.cancel(world.endpoint, id, Duration::ZERO);
        }
        world.submit(endless(), Duration::ZERO);
        assert_eq!(world.state(id, Duration::ZERO), Some(state));
        (world, id)
    }
}

#[test]
fn every_edge_a_job_takes_by_itself() {
    use State::*;
    type Seen = &'static [(u64, State)];
    let cases: [(&str, Seen); 7] = [
        // Take: the one worker is free after a second.
        (
            r#"{"sleep": 1}"#,
            &[
                (0, InQueue),
                (999, InQueue),
                (1_000, InProgress),
                (1_999, InProgress),
                (2_000, Completed),
            ],
        ),
        (
            r#"{"sleep": 1, "fail": "x"}"#,
            &[(1_999, InProgress), (2_000, Failed)],
        ),
        (
            r#"{"n": 3, "gap": 0.5}"#,
            &[(1_999, InProgress), (2_000, Completed)],
        ),
        // executionTimeout, which the time in the queue is not part of.
        (r#"{"sleep": 60}"#, &[(5_999, InProgress), (6_000, Failed)]),
        // Lost once: the queue again, and the free worker at once.
        (
            r#"{"sleep": 1, "lost": 1}"#,
            &[(2_000, InProgress), (2_999, InProgress), (3_000, Completed)],
        ),
        (
            r#"{"sleep": 1, "lost": 2}"#,
            &[(3_999, InProgress), (4_000, Completed)],
        ),
        // Never reported.
        (
            r#"{"sleep": 1, "lost": 3}"#,
            &[(3_999, InProgress), (4_000, TimedOut)],
        ),
    ];
    for (input, expected) in cases {
        let mut world = World::new(1);
        world.submit(order(r#"{"sleep": 1}"#), Duration::ZERO);
        let id = world.submit(
            Order {
                execution_timeout: 5 * SECOND,
                ..order(input)
            },
            Duration::ZERO,
        );
        for &(ms, state) in expected {
            let seen = world.state(id, Duration::from_millis(ms));
            assert_eq!(seen, Some(state), "{input} at {ms}");
        }
    }
}

/// What may happen to a job from outside, or by the passing of time.
#[derive(Clone, Copy, Debug)]
enum Event {
    Cancel,
    Retry,
    Purge,
    /// `policy.ttl`, of ten seconds here.
    TtlOver,
    /// `/status?ttl=`, of three seconds.
    ShortenedTtlOver,
    RetentionOver,
}

/// Where `event` takes a job.
fn after(event: Event, state: State) -> Option<State> {
    use State::*;
    let ttl = match event {
        Event::TtlOver => 10 * SECOND,
        _ => Order::LONGEST,
    };
    let (mut world, id) = World::with_a_job_in(state, ttl);
    let endpoint = world.endpoint;
    let at = SECOND;
    world.jobs.advance(at);
    match event {
        Event::Cancel => {
            let view = world.jobs.cancel(endpoint, id, at).unwrap();
            assert_eq!(Some(view.status), world.state(id, at), "told what it is");
        }
        Event::Retry => {
            let retried = world.jobs.retry(endpoint, id, at);
            assert_eq!(retried, Some(matches!(state, Failed | TimedOut)));
        }
        Event::Purge => {
            // The endless one behind it, too.
            let waiting = if state == InQueue { 2 } else { 0 };
            let behind = u64::from(state == InProgress);
            assert_eq!(world.jobs.purge(endpoint), waiting + behind, "{state:?}");
        }
        Event::TtlOver => {
            assert_eq!(world.state(id, 10 * SECOND - NS), Some(state));
            world.jobs.advance(10 * SECOND);
        }
        Event::ShortenedTtlOver => {
            world.jobs.shorten(endpoint, id, 3 * SECOND, at);
            assert_eq!(world.state(id, 4 * SECOND - NS), Some(state));
            world.jobs.advance(4 * SECOND);
        }
        Event::RetentionOver => {
            assert_eq!(world.state(id, RETENTION - NS), Some(state));
            world.jobs.advance(RETENTION);
        }
    }
    let now = world.jobs.status(endpoint, id);
    now.map(|view| view.status)
}

#[test]
fn every_event_in_every_state() {
    use State::*;
    const GONE: Option<State> = None;
    let stays = STATES.map(Some);
    let table = [
        (
            Event::Cancel,
            // What the service answers for an ended job is unknown: it stays what it is.
            [
                Some(Cancelled),
                Some(Cancelled),
                Some(Completed),
                Some(Failed),
                Some(Cancelled),
                Some(TimedOut),
            ],
        ),
        (
            Event::Retry,
            [
                Some(InQueue),
                Some(InProgress),
                Some(Completed),
                Some(InQueue),
                Some(Cancelled),
                Some(InQueue),
            ],
        ),
        // What `/status` says of a purged job is unknown: it is gone.
        (
            Event::Purge,
            [GONE, stays[1], stays[2], stays[3], stays[4], stays[5]],
        ),
        (Event::TtlOver, [GONE; 6]),
        (Event::ShortenedTtlOver, [GONE; 6]),
        // Retention begins with the end.
        (
            Event::RetentionOver,
            [stays[0], stays[1], GONE, GONE, GONE, GONE],
        ),
    ];
    for (event, expected) in table {
        for (state, expected) in STATES.into_iter().zip(expected) {
            assert_eq!(after(event, state), expected, "{event:?} in {state:?}");
        }
    }
}

#[test]
fn a_job_whose_life_is_over_leaves_its_worker_to_the_next() {
    let mut world = World::new(1);
    let short = Order {
        ttl: 10 * SECOND,
        ..endless()
    };
    world.submit(short, Duration::ZERO);
    let next = world.submit(order(r#"{"sleep": 1}"#), SECOND);
    assert_eq!(world.state(next, 10 * SECOND - NS), Some(State::InQueue));
    assert_eq!(world.state(next, 10 * SECOND), Some(State::InProgress));
    assert_eq!(world.state(next, 11 * SECOND), Some(State::Completed));
}

#[test]
fn a_retried_job_shows_nothing_of_its_first_run() {
    for state in [State::Failed, State::TimedOut] {
        let (mut world, id) = World::with_a_job_in(state, Order::TTL);
        world.jobs.retry(world.endpoint, id, SECOND);
        let mut expected = json!({"id": id.to_string(), "status": "IN_QUEUE"});
        if state == State::TimedOut {
            expected["retries"] = json!(2);
        }
        assert_eq!(world.view(id, SECOND), expected);
        // Its life is counted from its first submission.
        assert_eq!(world.state(id, Order::TTL - NS), Some(State::InQueue));
        assert_eq!(world.state(id, Order::TTL), None);
    }
}

#[test]
fn without_workers_a_job_waits_for_a_day() {
    let mut world = World::new(0);
    let id = world.submit(order("1"), Duration::ZERO);
    let day = 86_400 * SECOND;
    assert_eq!(world.state(id, day - NS), Some(State::InQueue));
    assert_eq!(world.state(id, day), None);
}

/// A job that came at 0, was taken at 2 s and ended at 5 s, by the clock; the view of it at `at`.
fn life(input: &str, at: u32, cancelled: bool) -> Value {
    let mut world = World::new(1);
    world.submit(order(r#"{"sleep": 2}"#), Duration::ZERO);
    let id = world.submit(order(input), Duration::ZERO);
    if cancelled {
        let at = SECOND * at;
        world.jobs.advance(at);
        world.jobs.cancel(world.endpoint, id, at);
    }
    let mut view = world.view(id, SECOND * at);
    assert_eq!(view["id"], id.to_string());
    view.as_object_mut().unwrap().remove("id");
    view
}

#[test]
fn the_fields_of_every_state() {
    let work = json!({"sleep": 3});
    let failing = json!({"sleep": 3, "fail": "boom"});
    let with_progress = json!({"sleep": 3, "progress": [1, 2]});
    let lost_once = json!({"sleep": 1.5, "lost": 1});
    let lost = json!({"sleep": 1, "lost": 3});
    let queued = json!({"status": "IN_QUEUE"});
    let taken = json!({"delayTime": 2000, "status": "IN_PROGRESS", "workerId": "emulated0"});
    let with = |base: &Value, more: Value| {
        let mut all = base.clone();
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        all
    };
    let ended = with(&taken, json!({"executionTime": 3000}));
    let cases = [
        (&work, 1, false, queued),
        (&work, 2, false, taken.clone()),
        (
            &with_progress,
            4,
            false,
            with(&taken, json!({"output": [1, 2]})),
        ),
        (
            &work,
            5,
            false,
            with(&ended, json!({"status": "COMPLETED", "output": work})),
        ),
        (
            &failing,
            5,
            false,
            with(&ended, json!({"status": "FAILED", "error": "boom"})),
        ),
        (&work, 1, true, json!({"status": "CANCELLED"})),
        (
            &with_progress,
            3,
            true,
            with(
                &ended,
                json!({"status": "CANCELLED", "executionTime": 1000}),
            ),
        ),
        // The time in the queue is counted to the last taking, the running time from it.
        (
            &lost_once,
            5,
            false,
            json!({
                "delayTime": 3500, "executionTime": 1500, "output": lost_once, "retries": 1,
                "status": "COMPLETED", "workerId": "emulated0",
            }),
        ),
        (
            &lost,
            5,
            false,
            json!({
                "delayTime": 4000, "executionTime": 1000, "retries": 2, "status": "TIMED_OUT",
                "workerId": "emulated0",
            }),
        ),
    ];
    for (input, at, cancelled, expected) in cases {
        let seen = life(&input.to_string(), at, cancelled);
        assert_eq!(seen, expected, "{input} at {at} s");
    }
    // executionTimeout has words of its own.
    let mut world = World::new(1);
    let id = world.submit(order(r#"{"sleep": 9999}"#), Duration::ZERO);
    let view = world.view(id, 600 * SECOND);
    assert_eq!(
        (&view["status"], &view["error"], &view["executionTime"]),
        (
            &json!("FAILED"),
            &json!("executionTimeout exceeded"),
            &json!(600_000)
        )
    );
}

#[test]
fn an_output_of_exactly_the_limit_is_kept_and_a_byte_more_is_lost() {
    for (sync, mib) in [(false, 10), (true, 20)] {
        for (bytes, kept) in [(mib << 20, true), ((mib << 20) + 1, false)] {
            let mut world = World::new(1);
            let input = format!(r#"{{"bytes": {bytes}}}"#);
            let order = Order {
                sync,
                ..order(&input)
            };
            let id = world.submit(order, Duration::ZERO);
            let view = world.jobs.status(world.endpoint, id).unwrap();
            assert_eq!(view.status, State::Completed, "{bytes}");
            let length = view.output.map(|output| output.get().len());
            assert_eq!(length, kept.then_some(bytes), "{bytes}");
        }
    }
}
