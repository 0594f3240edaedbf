//! Every arrow of the contract's state machine, at its exact time.

use super::*;
use serde_json::value::RawValue;

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn order(input: &str) -> Order {
    let input = RawValue::from_string(input.to_owned()).unwrap();
    Order::new(Arc::from(input), false)
}

struct World {
    jobs: Jobs,
    endpoint: EndpointId,
}

impl World {
    fn new(workers: u32) -> Self {
        Self::with(
            Fleet {
                workers,
                ..Fleet::default()
            },
            Keeping::default(),
        )
    }

    fn with(fleet: Fleet, keeping: Keeping) -> Self {
        let mut jobs = Jobs::new(keeping, 1);
        let endpoint = jobs.add_endpoint(fleet);
        Self { jobs, endpoint }
    }

    fn submit(&mut self, ms: u64, order: Order) -> JobId {
        self.jobs.submit(self.endpoint, order, at(ms)).unwrap()
    }

    fn view(&mut self, ms: u64, id: JobId) -> Option<View> {
        self.jobs.advance(at(ms));
        self.jobs.status(self.endpoint, id)
    }

    fn state(&mut self, ms: u64, id: JobId) -> Option<State> {
        self.view(ms, id).map(|view| view.status)
    }
}

#[test]
fn a_job_waits_runs_and_gives_its_input_back() {
    let mut world = World::new(1);
    let first = world.submit(0, order(r#"{"sleep": 2}"#));
    let second = world.submit(100, order(r#"{"b": 1, "a": [1.50]}"#));
    assert_eq!(world.state(100, first), Some(State::InProgress));
    assert_eq!(world.state(1_999, second), Some(State::InQueue));
    let view = world.view(5_000, first).unwrap();
    assert_eq!(view.status, State::Completed);
    assert_eq!(
        (view.delay_time, view.execution_time),
        (Some(0), Some(2_000))
    );
    let view = serde_json::to_string(&world.view(5_000, second).unwrap()).unwrap();
    assert_eq!(
        view,
        format!(
            "{{\"delayTime\":1900,\"executionTime\":0,\"id\":\"{second}\",\
             \"output\":{{\"b\": 1, \"a\": [1.50]}},\"status\":\"COMPLETED\",\
             \"workerId\":\"emulated0\"}}"
        )
    );
}

#[test]
fn a_waiting_job_shows_no_more_than_its_state() {
    let mut world = World::new(0);
    let id = world.submit(0, order("{}"));
    let view = serde_json::to_string(&world.view(9, id).unwrap()).unwrap();
    assert_eq!(view, format!("{{\"id\":\"{id}\",\"status\":\"IN_QUEUE\"}}"));
}

#[test]
fn an_ended_job_is_gone_after_its_retention() {
    let mut world = World::new(1);
    let run = world.submit(0, order("1"));
    let sync = world.submit(
        0,
        Order {
            sync: true,
            ..order("1")
        },
    );
    assert_eq!(world.state(59_999, sync), Some(State::Completed));
    assert_eq!(world.state(60_000, sync), None);
    assert_eq!(world.state(1_799_999, run), Some(State::Completed));
    assert_eq!(world.state(1_800_000, run), None);
    assert_eq!(world.jobs.next_event(), None);
    assert_eq!(world.jobs.bytes, 0);
}

#[test]
fn a_handlers_error_fails_the_job() {
    let mut world = World::new(1);
    let id = world.submit(0, order(r#"{"fail": "boom", "sleep": 1}"#));
    let view = world.view(1_000, id).unwrap();
    assert_eq!(view.status, State::Failed);
    assert_eq!(view.error.as_deref(), Some("boom"));
    assert!(view.output.is_none());
}

#[test]
fn an_exceeded_execution_timeout_fails_the_job_and_frees_the_worker() {
    let mut world = World::new(1);
    let slow = world.submit(
        0,
        Order {
            execution_timeout: at(5_000),
            ..order(r#"{"sleep": 60}"#)
        },
    );
    let next = world.submit(1, order("1"));
    assert_eq!(world.state(4_999, slow), Some(State::InProgress));
    let view = world.view(5_000, slow).unwrap();
    assert_eq!(view.status, State::Failed);
    assert_eq!(view.error.as_deref(), Some("executionTimeout exceeded"));
    assert_eq!(world.state(5_000, next), Some(State::Completed));
}

#[test]
fn the_ttl_deletes_a_job_in_any_state() {
    let mut world = World::new(1);
    let short = |input| Order {
        ttl: at(10_000),
        ..order(input)
    };
    let done = world.submit(0, short("1"));
    let running = world.submit(0, short(r#"{"sleep": 100}"#));
    let waiting = world.submit(0, short("2"));
    let after = world.submit(1, order("3"));
    assert_eq!(world.state(9_999, done), Some(State::Completed));
    assert_eq!(world.state(9_999, running), Some(State::InProgress));
    assert_eq!(world.state(9_999, waiting), Some(State::InQueue));
    for id in [done, running, waiting] {
        assert_eq!(world.state(10_000, id), None);
    }
    assert_eq!(world.state(10_000, after), Some(State::Completed));
}

#[test]
fn a_status_call_can_shorten_a_life_and_not_lengthen_it() {
    let mut world = World::new(1);
    let id = world.submit(0, order("1"));
    world.jobs.shorten(world.endpoint, id, at(6_000), at(1_000));
    world
        .jobs
        .shorten(world.endpoint, id, at(90_000), at(2_000));
    assert_eq!(world.state(6_999, id), Some(State::Completed));
    assert_eq!(world.state(7_000, id), None);
}

#[test]
fn a_cancelled_job_ends_at_once_and_its_worker_goes_on() {
    let mut world = World::new(1);
    let running = world.submit(0, order(r#"{"sleep": 100}"#));
    let waiting = world.submit(0, order(r#"{"sleep": 100}"#));
    let third = world.submit(0, order("1"));
    let endpoint = world.endpoint;
    let view = world.jobs.cancel(endpoint, waiting, at(500)).unwrap();
    assert_eq!((view.status, view.delay_time), (State::Cancelled, None));
    let view = world.jobs.cancel(endpoint, running, at(1_000)).unwrap();
    assert_eq!(view.status, State::Cancelled);
    assert_eq!(
        (view.delay_time, view.execution_time),
        (Some(0), Some(1_000))
    );
    assert_eq!(world.state(1_000, third), Some(State::Completed));
    let view = world.jobs.cancel(endpoint, third, at(1_001)).unwrap();
    assert_eq!(view.status, State::Completed, "an ended job stays as it is");
    assert!(
        world
            .jobs
            .take_happened()
            .iter()
            .all(|h| matches!(h, Happened::Changed(_)))
    );
}

#[test]
fn only_failed_and_timed_out_jobs_are_retried() {
    let mut world = World::new(1);
    let endpoint = world.endpoint;
    let failed = world.submit(0, order(r#"{"fail": "x", "sleep": 1}"#));
    assert_eq!(world.jobs.retry(endpoint, failed, at(500)), Some(false));
    assert_eq!(world.state(1_000, failed), Some(State::Failed));
    assert_eq!(world.jobs.retry(endpoint, failed, at(2_000)), Some(true));
    let view = world.view(2_500, failed).unwrap();
    assert_eq!((view.status, view.error), (State::InProgress, None));
    assert_eq!(world.state(3_000, failed), Some(State::Failed));
    let done = world.submit(4_000, order("1"));
    assert_eq!(world.jobs.retry(endpoint, done, at(4_000)), Some(false));
    assert_eq!(world.jobs.health(endpoint).jobs.retried, 1);
    // Its retention began again with its second end.
    assert_eq!(world.state(1_802_999, failed), Some(State::Failed));
    assert_eq!(world.state(1_803_000, failed), None);
}

#[test]
fn a_lost_worker_means_the_queue_again_and_in_the_end_timed_out() {
    let mut world = World::new(1);
    let once = world.submit(0, order(r#"{"lost": 1, "sleep": 1}"#));
    let other = world.submit(1, order("1"));
    assert_eq!(
        world.state(1_000, other),
        Some(State::Completed),
        "to the back of the queue"
    );
    let view = world.view(2_000, once).unwrap();
    assert_eq!((view.status, view.retries), (State::Completed, 1));
    let always = world.submit(3_000, order(r#"{"lost": 99, "sleep": 1}"#));
    assert_eq!(world.state(5_999, always), Some(State::InProgress));
    assert_eq!(world.state(6_000, always), Some(State::TimedOut));
    assert_eq!(
        world.jobs.retry(world.endpoint, always, at(6_000)),
        Some(true)
    );
}

#[test]
fn chunks_are_handed_over_once() {
    let mut world = World::new(1);
    let endpoint = world.endpoint;
    let id = world.submit(0, order(r#"{"n": 3, "gap": 1}"#));
    assert_eq!(
        world.jobs.drain(endpoint, id),
        Some((State::InProgress, 0..1))
    );
    assert_eq!(
        world.jobs.drain(endpoint, id),
        Some((State::InProgress, 1..1))
    );
    world.jobs.advance(at(5_000));
    assert_eq!(
        world.jobs.drain(endpoint, id),
        Some((State::Completed, 1..3))
    );
    assert_eq!(
        world.jobs.drain(endpoint, id),
        Some((State::Completed, 3..3))
    );
}

#[test]
fn progress_is_shown_while_the_job_runs() {
    let mut world = World::new(1);
    let id = world.submit(0, order(r#"{"progress": "half", "sleep": 1}"#));
    let output = |view: Option<View>| view.unwrap().output.unwrap().get().to_owned();
    assert_eq!(output(world.view(500, id)), "\"half\"");
    assert!(output(world.view(1_000, id)).starts_with('{'));
}

#[test]
fn an_output_above_the_payload_limit_is_lost() {
    let mut world = World::new(2);
    let small = world.submit(0, order(r#"{"bytes": 1000}"#));
    let large = world.submit(0, order(r#"{"bytes": 10485761}"#));
    let output = world.view(0, small).unwrap().output.unwrap();
    assert_eq!(output.get().len(), 1000);
    let view = world.view(0, large).unwrap();
    assert_eq!(view.status, State::Completed);
    assert!(view.output.is_none());
}

#[test]
fn purging_removes_what_waits_and_nothing_else() {
    let mut world = World::new(1);
    let running = world.submit(0, order(r#"{"sleep": 1}"#));
    let waiting = world.submit(0, order("1"));
    assert_eq!(world.jobs.purge(world.endpoint), 1);
    assert_eq!(world.state(0, waiting), None);
    assert_eq!(world.state(0, running), Some(State::InProgress));
    assert_eq!(world.jobs.queued(world.endpoint), 0);
}

#[test]
fn cold_workers_boot_when_a_job_needs_them_and_stay() {
    let fleet = Fleet {
        workers: 3,
        cold_start: at(2_000),
    };
    let mut world = World::with(fleet, Keeping::default());
    assert_eq!(world.jobs.health(world.endpoint).workers.ready, 0);
    let id = world.submit(0, order("1"));
    let health = world.jobs.health(world.endpoint);
    assert_eq!((health.workers.initializing, health.jobs.in_queue), (1, 1));
    assert_eq!(world.state(1_999, id), Some(State::InQueue));
    let view = world.view(2_000, id).unwrap();
    assert_eq!(
        (view.status, view.delay_time),
        (State::Completed, Some(2_000))
    );
    let warm = world.submit(2_500, order("1"));
    assert_eq!(world.state(2_500, warm), Some(State::Completed));
    let health = world.jobs.health(world.endpoint);
    assert_eq!((health.workers.idle, health.jobs.completed), (1, 2));
}

#[test]
fn a_webhook_is_told_once_the_job_has_ended() {
    let mut world = World::new(1);
    let with = |input| Order {
        webhook: Some(Arc::from("http://hook/")),
        ..order(input)
    };
    world.submit(0, with(r#"{"fail": "x"}"#));
    let notices: Vec<_> = world
        .jobs
        .take_happened()
        .into_iter()
        .filter_map(|h| match h {
            Happened::Notify(notice) => Some(serde_json::to_value(notice).unwrap()),
            Happened::Changed(_) => None,
        })
        .collect();
    assert_eq!(notices.len(), 1);
    assert_eq!(notices[0]["status"], "FAILED");
    assert_eq!(notices[0]["input"]["fail"], "x");
    assert_eq!(notices[0]["webhook"], "http://hook/");
    let cancelled = world.submit(0, with(r#"{"sleep": 1}"#));
    world.jobs.cancel(world.endpoint, cancelled, at(1));
    assert!(
        world
            .jobs
            .take_happened()
            .iter()
            .all(|h| matches!(h, Happened::Changed(_)))
    );
}

#[test]
fn a_full_store_drops_the_oldest_ended_job_and_then_refuses() {
    let keeping = Keeping {
        most_jobs: 2,
        ..Keeping::default()
    };
    let mut world = World::with(Fleet::default(), keeping);
    let first = world.submit(0, order("1"));
    let second = world.submit(1, order("1"));
    let third = world.submit(2, order(r#"{"sleep": 9}"#));
    assert_eq!(world.state(2, first), None);
    assert!(world.state(2, second).is_some());
    let fourth = world.submit(3, order(r#"{"sleep": 9}"#));
    assert!(world.state(3, third).is_some() && world.state(3, fourth).is_some());
    let refused = world.jobs.submit(world.endpoint, order("1"), at(4));
    assert_eq!(refused, Err(Full));
    assert_eq!(world.jobs.open(world.endpoint, 9).len(), 2);
}

#[test]
fn a_job_belongs_to_its_endpoint() {
    let mut world = World::new(1);
    let id = world.submit(0, order("1"));
    let other = world.jobs.add_endpoint(Fleet::default());
    assert!(world.jobs.status(other, id).is_none());
    assert!(world.jobs.cancel(other, id, at(0)).is_none());
    assert!(world.jobs.retry(other, id, at(0)).is_none());
    assert!(world.jobs.drain(other, id).is_none());
}

#[test]
fn many_jobs_have_one_timer_each_and_leave_nothing_behind() {
    let mut world = World::new(50);
    for k in 0..20_000 {
        let input = match k % 4 {
            0 => r#"{"sleep": 0.5}"#,
            1 => r#"{"fail": "x"}"#,
            2 => r#"{"n": 3, "gap": 0.1}"#,
            _ => r#"{"lost": 1}"#,
        };
        let id = world.submit(k, order(input));
        if k % 7 == 0 {
            world.jobs.cancel(world.endpoint, id, at(k));
        }
    }
    assert_eq!(world.jobs.timers.len(), world.jobs.jobs.len());
    world.jobs.advance(Duration::from_secs(2 * 24 * 3600));
    let jobs = &world.jobs;
    assert_eq!(
        (jobs.jobs.len(), jobs.timers.len(), jobs.ended.len()),
        (0, 0, 0)
    );
    let health = jobs.health(world.endpoint);
    assert_eq!(
        (jobs.bytes, health.workers.idle, health.jobs.in_queue),
        (0, 50, 0)
    );
}
