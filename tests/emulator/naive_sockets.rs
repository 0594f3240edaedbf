//! Where a naive gateway ([`super::naive_gateway`]) fails over real sockets, fault by fault. What is a
//! matter of time alone: `naive`.
//!
//! | knob | test |
//! | --- | --- |
//! | none | [`without_a_fault_it_does_well`] |
//! | `refuse` | [`what_is_refused_spends_its_tokens`] |
//! | `reset_before_head`, `reset_mid_body` | [`a_broken_connection_makes_it_submit_twice`] |
//! | `stall` of the head | [`a_stalled_head_keeps_its_caller_and_its_permit`] |
//! | `stall` of the body | [`a_stalled_body_is_above_the_concurrency_it_counts`] |
//! | `wrong_length` | [`a_truncated_answer_is_taken_for_the_whole`] |
//! | `status` 429, with and without `retry_after` | [`a_429_without_a_time_makes_it_hammer`], [`a_429_with_a_time_it_cannot_read_makes_it_hammer`], [`a_429_with_a_time_is_waited_for`] |
//! | `status`, any other | [`any_other_status_is_passed_on`] |
//! | `decrement_delay_ms` | [`a_place_noticed_late_is_not_free_yet`] |
//! | `probability` | [`some_broken_connections_are_some_second_jobs`] |
//! | `count`, `endpoint`, `group` | [`a_fault_strikes_so_often_and_there_only`] |

use std::time::Duration;

use podgate::emulator::Config;
use podgate::emulator::limits::{Group, Limit, Limits};
use serde_json::{Value, json};

use super::naive_gateway::{Naive, Outcome};
use super::support::{Upstream, eventually, start, with_workers};

/// Long enough for an answer that comes at all.
const PATIENCE: Duration = Duration::from_secs(1);

/// A naive gateway before an emulator, which allow the same of `run`.
async fn stand(requests: u32, concurrency: u32) -> (Upstream, Naive) {
    let mut limits = Limits::default();
    limits[Group::Run] = Limit {
        requests: Some(requests),
        window: Duration::from_secs(600),
        concurrency: Some(concurrency),
        policer: None,
    };
    let upstream = start(Config {
        limits,
        seed: 1,
        ..with_workers(4)
    })
    .await;
    let naive = Naive::before(upstream.address, requests, concurrency as usize);
    (upstream, naive)
}

fn job(number: u32) -> String {
    json!({"input": {"number": number}}).to_string()
}

/// Jobs, and how many of them came twice.
fn submissions(upstream: &Upstream) -> (u64, u64) {
    let stats = upstream.emulator.stats_json();
    let number = |name: &str| stats["submissions"][name].as_u64().unwrap();
    (number("distinct"), number("repeated"))
}

fn refused(upstream: &Upstream) -> Value {
    upstream.seen("run")["refused"].clone()
}

#[tokio::test]
async fn without_a_fault_it_does_well() {
    let (upstream, naive) = stand(20, 1).await;
    for number in 0..20 {
        let outcome = naive.submit("run", &job(number)).await;
        let Outcome::Answer(200, body) = outcome else {
            panic!("{outcome:?}")
        };
        let view: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(view["status"], "IN_QUEUE");
    }
    assert_eq!(naive.submit("run", &job(20)).await, Outcome::NoToken);
    assert_eq!(submissions(&upstream), (20, 0));
    assert_eq!(
        refused(&upstream),
        json!({"rate": 0, "concurrency": 0, "backlog": 0})
    );
}

/// Nothing was counted, and yet a third of its budget is gone: callers wait for nothing.
#[tokio::test]
async fn what_is_refused_spends_its_tokens() {
    let (upstream, naive) = stand(9, 1).await;
    upstream.faults(json!({"refuse": true, "count": 3})).await;
    let mut served = 0;
    while naive.submit("run", &job(served)).await.status() == Some(200) {
        served += 1;
    }
    assert_eq!(served, 6);
    assert_eq!(upstream.seen("run")["arrived"], 6, "of 9");
}

#[tokio::test]
async fn a_broken_connection_makes_it_submit_twice() {
    for fault in ["reset_before_head", "reset_mid_body"] {
        let (upstream, naive) = stand(20, 1).await;
        upstream.faults(json!({fault: true, "count": 1})).await;
        let outcome = naive.submit("run", &job(1)).await;
        assert_eq!(outcome.status(), Some(200), "{fault}: nobody noticed");
        assert_eq!(submissions(&upstream), (1, 1), "{fault}: paid twice");
        let (upstream, naive) = stand(20, 1).await;
        upstream.faults(json!({fault: true})).await;
        assert_eq!(naive.submit("run", &job(1)).await, Outcome::Broken);
        let repeats = u64::from(Naive::MOST_TRIES) - 1;
        assert_eq!(submissions(&upstream), (1, repeats), "{fault}: for nobody");
    }
}

#[tokio::test]
async fn a_stalled_head_keeps_its_caller_and_its_permit() {
    let (upstream, naive) = stand(20, 1).await;
    upstream.faults(json!({"stall": "head", "count": 1})).await;
    let (first, second) = (job(1), job(2));
    let callers = async { tokio::join!(naive.submit("run", &first), naive.submit("run", &second)) };
    let answered = tokio::time::timeout(PATIENCE, callers).await;
    assert!(answered.is_err(), "never answered");
    assert_eq!(submissions(&upstream), (1, 0), "the second was never sent");
}

#[tokio::test]
async fn a_stalled_body_is_above_the_concurrency_it_counts() {
    let (upstream, naive) = stand(20, 1).await;
    upstream.faults(json!({"stall": "body", "count": 1})).await;
    let first = job(1);
    let mut stalled = Box::pin(naive.submit("run", &first));
    let answered = tokio::time::timeout(PATIENCE, &mut stalled).await;
    assert!(answered.is_err(), "never answered");
    let second = naive.submit("run", &job(2)).await;
    assert_eq!(second, Outcome::Broken);
    assert_eq!(refused(&upstream)["concurrency"], Naive::MOST_TRIES);
}

#[tokio::test]
async fn a_truncated_answer_is_taken_for_the_whole() {
    let (upstream, naive) = stand(20, 1).await;
    // Seven bytes are missing, by what the head says.
    upstream
        .faults(json!({"wrong_length": 7, "count": 1}))
        .await;
    let outcome = naive.submit("run", &job(1)).await;
    assert_eq!(outcome.status(), Some(200), "{outcome:?}");
    // The same answer to who looks at the length.
    upstream
        .faults(json!({"wrong_length": 7, "count": 1}))
        .await;
    let request = super::support::request("POST", "/v2/ep/run", Some("key"), job(2).into());
    assert!(upstream.try_call(request).await.is_err());
}

/// Its own retries meet the limit, as a refusal is counted.
#[tokio::test]
async fn a_429_without_a_time_makes_it_hammer() {
    let (upstream, naive) = stand(20, 1).await;
    upstream.faults(json!({"status": 429, "count": 5})).await;
    let mut served = 0;
    for number in 0..4 {
        served += u32::from(naive.submit("run", &job(number)).await.status() == Some(200));
    }
    assert_eq!(served, 3, "the first was given up");
    assert_eq!(upstream.seen("run")["arrived"], 8, "for four callers");

    // A burst elsewhere has spent the window: every try is one more refusal.
    let (upstream, naive) = stand(3, 1).await;
    for number in 0..3 {
        upstream.post("run", &json!({"input": number})).await;
    }
    assert_eq!(naive.submit("run", &job(9)).await, Outcome::NoToken);
    assert_eq!(
        refused(&upstream)["rate"],
        3,
        "at once, one after the other"
    );
}

#[tokio::test]
async fn a_429_with_a_time_it_cannot_read_makes_it_hammer() {
    let (upstream, naive) = stand(20, 1).await;
    let later = "Fri, 01 Jan 2100 00:00:00 GMT";
    for (times, retry_after) in [(1, "86400.5"), (2, later)] {
        upstream
            .faults(json!({"status": 429, "retry_after": retry_after}))
            .await;
        assert_eq!(naive.submit("run", &job(1)).await, Outcome::Broken);
        let arrived = upstream.seen("run")["arrived"].as_u64();
        assert_eq!(arrived, Some(times * u64::from(Naive::MOST_TRIES)));
    }
}

/// What it does right, or the tests before would show nothing.
#[tokio::test]
async fn a_429_with_a_time_is_waited_for() {
    let (upstream, naive) = stand(20, 1).await;
    upstream
        .faults(json!({"status": 429, "retry_after": 86_400}))
        .await;
    let told = job(1);
    let submitted = naive.submit("run", &told);
    assert!(tokio::time::timeout(PATIENCE, submitted).await.is_err());
    assert_eq!(upstream.seen("run")["arrived"], 1);
}

/// The rows of the error table that this API does not say of itself: 402, 403 and 502 are an account's
/// or an edge's.
#[tokio::test]
async fn any_other_status_is_passed_on() {
    let (upstream, naive) = stand(20, 1).await;
    for status in [202, 402, 403, 404, 500, 502, 503] {
        upstream.faults(json!({"status": status})).await;
        let outcome = naive.submit("run", &job(1)).await;
        assert_eq!(outcome.status(), Some(status));
    }
    assert_eq!(submissions(&upstream), (0, 0), "counted, and not done");
    assert_eq!(upstream.seen("run")["accepted"], 7);
}

#[tokio::test]
async fn a_place_noticed_late_is_not_free_yet() {
    let (upstream, naive) = stand(20, 1).await;
    upstream
        .faults(json!({"decrement_delay_ms": 3_600_000}))
        .await;
    assert_eq!(naive.submit("run", &job(1)).await.status(), Some(200));
    assert_eq!(naive.submit("run", &job(2)).await, Outcome::Broken);
    assert_eq!(refused(&upstream)["concurrency"], Naive::MOST_TRIES);
}

#[tokio::test]
async fn some_broken_connections_are_some_second_jobs() {
    for (probability, some) in [(0.0, false), (0.3, true)] {
        let (upstream, naive) = stand(1_000, 1).await;
        upstream
            .faults(json!({"reset_before_head": true, "probability": probability}))
            .await;
        for number in 0..60 {
            naive.submit("run", &job(number)).await;
        }
        let (distinct, repeated) = submissions(&upstream);
        assert_eq!(distinct, 60);
        assert_eq!(repeated > 0, some, "{probability}: {repeated}");
        assert!(repeated < 60, "{probability}: {repeated}");
    }
}

#[tokio::test]
async fn a_fault_strikes_so_often_and_there_only() {
    for (faults, repeated) in [
        (json!({"count": 3}), 3),
        (json!({"endpoint": "ep", "count": 2}), 2),
        (json!({"group": "run", "count": 2}), 2),
        (json!({"endpoint": "another"}), 0),
        (json!({"group": "status"}), 0),
        (json!({"count": 0}), 0),
    ] {
        let (upstream, naive) = stand(100, 1).await;
        let mut broken = faults.clone();
        broken["reset_before_head"] = json!(true);
        upstream.faults(broken).await;
        for number in 0..10 {
            let outcome = naive.submit("run", &job(number)).await;
            assert_eq!(outcome.status(), Some(200), "{faults}");
        }
        eventually("all are there", || submissions(&upstream) == (10, repeated)).await;
    }
}
