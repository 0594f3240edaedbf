//! The async shell round the core: lanes made, shared and forgotten, permits that come back, wake-ups
//! at the time that was named. Paused time, but for the one test about threads.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use podgate::admission::lane::{Ask, LaneCell};
use podgate::admission::permit::Permit;
use podgate::admission::{Account, Admission};
use podgate::config::Config;
use podgate::config::policy::{GroupPolicy, GroupVerdict};
use podgate::limit::flow::FlowId;
use podgate::limit::lane::Shed;
use podgate::limit::ledger::Call;
use podgate::limit::quota::{Burst, Mode, Quota, Rate};
use podgate::metrics::Metrics;
use podgate::operation::Group;
use tokio::time::{Instant, advance};

const W: Duration = Duration::from_secs(10);
/// W, and the thousandth that clocks may differ.
const HOLD: Duration = Duration::from_millis(10_010);

fn policy(requests: u32, concurrency: u32) -> GroupPolicy {
    let preset = Config::preset();
    let GroupVerdict::Policy(policy) = preset.group("any", Group::Run) else {
        panic!("runs are not rejected")
    };
    let quota = Quota::new(Rate::new(requests, W), NonZeroU32::new(concurrency));
    GroupPolicy { quota, ..*policy }
}

fn admission(capacity: usize) -> Admission {
    Admission::new(
        capacity,
        Metrics::new().expect("series have names of their own"),
    )
}

fn lane(admission: &Admission, endpoint: &str, policy: &GroupPolicy) -> Arc<LaneCell> {
    admission.lane(Account::default(), endpoint, Group::Run, policy)
}

fn ask(flow: u64, patience: Duration) -> Ask {
    Ask {
        flow: FlowId(flow),
        call: Call::Short,
        patience,
    }
}

fn patient(flow: u64) -> Ask {
    ask(flow, Duration::from_secs(60))
}

#[expect(clippy::disallowed_methods, reason = "paused time is read here")]
fn now() -> Instant {
    Instant::now()
}

/// Ends an exchange as one that went well.
fn finish(mut permit: Permit) {
    permit.wrote(now());
    permit.sent();
    permit.answered();
    permit.complete();
}

fn in_use(lane: &LaneCell) -> u32 {
    lane.view().snapshot.permits_in_use
}

fn used(lane: &LaneCell) -> u32 {
    lane.view().snapshot.window_used
}

#[tokio::test(start_paused = true)]
async fn a_waiter_is_woken_when_the_window_turns_over_to_the_millisecond() {
    let lane = lane(&admission(10), "a", &policy(2, 10));
    for _ in 0..2 {
        finish(lane.admit(patient(1)).await.expect("there is room"));
    }
    let asked = now();
    finish(lane.admit(patient(1)).await.expect("its turn comes"));
    let waited = asked.elapsed();
    assert!(
        waited >= HOLD && waited <= HOLD + Duration::from_millis(2),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_settles_wakes_the_next() {
    let lane = lane(&admission(10), "a", &policy(100, 1));
    let held = lane.admit(patient(1)).await.expect("there is room");
    let waiting = tokio::spawn({
        let lane = lane.clone();
        async move { lane.admit(patient(1)).await.map(|permit| permit.waited()) }
    });
    tokio::task::yield_now().await;
    advance(Duration::from_secs(3)).await;
    finish(held);
    let waited = waiting.await.expect("no panic").expect("its turn comes");
    let settled = Duration::from_secs(3) + Quota::SETTLE;
    assert!(
        waited >= settled && waited <= settled + Duration::from_millis(2),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_past_the_deadline() {
    let lane = lane(&admission(10), "a", &policy(100, 1));
    let _held = lane.admit(patient(1)).await.expect("there is room");
    let asked = now();
    let shed = lane.admit(ask(1, Duration::from_millis(2_500))).await.err();
    assert!(matches!(shed, Some(Shed::WaitExpired { .. })), "{shed:?}");
    let waited = asked.elapsed();
    assert!(waited >= Duration::from_millis(2_500) && waited <= Duration::from_millis(2_502));
}

#[tokio::test(start_paused = true)]
async fn what_certainly_comes_too_late_is_shed_at_once() {
    let lane = lane(&admission(10), "a", &policy(1, 10));
    finish(lane.admit(patient(1)).await.expect("there is room"));
    let asked = now();
    let shed = lane.admit(ask(1, Duration::from_secs(8))).await.err();
    assert!(matches!(shed, Some(Shed::OutOfReach { .. })), "{shed:?}");
    assert_eq!(asked.elapsed(), Duration::ZERO);
    assert_eq!(shed.map(|shed| shed.retry_after().as_secs()), Some(10));
}

#[tokio::test(start_paused = true)]
async fn an_unsent_permit_costs_nothing() {
    let lane = lane(&admission(10), "a", &policy(1, 1));
    for _ in 0..50 {
        drop(
            lane.admit(patient(1))
                .await
                .expect("there is room each time"),
        );
    }
    assert_eq!((in_use(&lane), used(&lane)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_torn_exchange_keeps_its_slot_and_its_permit_for_the_margin() {
    let lane = lane(&admission(10), "a", &policy(5, 5));
    let mut permit = lane.admit(patient(1)).await.expect("there is room");
    permit.wrote(now());
    drop(permit);
    assert_eq!((in_use(&lane), used(&lane)), (1, 1));
    advance(Quota::MARGIN).await;
    assert_eq!((in_use(&lane), used(&lane)), (0, 1));
    advance(HOLD + Duration::from_nanos(1)).await;
    assert_eq!(used(&lane), 0);
}

#[tokio::test(start_paused = true)]
async fn a_complete_exchange_gives_its_permit_back_once_settled() {
    let lane = lane(&admission(10), "a", &policy(5, 5));
    finish(lane.admit(patient(1)).await.expect("there is room"));
    assert_eq!(in_use(&lane), 1);
    advance(Quota::SETTLE).await;
    assert_eq!((in_use(&lane), used(&lane)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_dropped_leaves_at_once_and_takes_nothing() {
    let lane = lane(&admission(10), "a", &policy(100, 1));
    let held = lane.admit(patient(1)).await.expect("there is room");
    let waiting = tokio::spawn({
        let lane = lane.clone();
        async move { drop(lane.admit(patient(1)).await) }
    });
    tokio::task::yield_now().await;
    assert_eq!(lane.view().snapshot.waiting, 1);
    waiting.abort();
    assert!(waiting.await.is_err());
    assert_eq!(lane.view().snapshot.waiting, 0);
    drop(held);
    assert_eq!((in_use(&lane), used(&lane)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn flows_take_turns_and_each_keeps_its_order() {
    let mut policy = policy(1000, 1);
    policy.quota.burst = Burst::Fixed(NonZeroU32::MIN.saturating_add(999));
    let lane = lane(&admission(10), "a", &policy);
    let held = lane.admit(patient(9)).await.expect("there is room");
    let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
    for (flow, number) in [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)] {
        let (lane, told) = (lane.clone(), told.clone());
        tokio::spawn(async move {
            let permit = lane.admit(patient(flow)).await.expect("its turn comes");
            told.send((flow, number)).expect("somebody listens");
            finish(permit);
        });
        tokio::task::yield_now().await;
    }
    drop((held, told));
    let mut seen = Vec::new();
    while let Some(one) = order.recv().await {
        seen.push(one);
    }
    assert_eq!(seen, [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (1, 2)]);
}

#[tokio::test(start_paused = true)]
async fn shadow_and_disabled_let_everything_pass_and_count_it() {
    for mode in [Mode::Shadow, Mode::Disabled] {
        let policy = GroupPolicy {
            mode,
            ..policy(2, 1)
        };
        let lane = lane(&admission(10), "a", &policy);
        for _ in 0..5 {
            finish(
                lane.admit(ask(1, Duration::ZERO))
                    .await
                    .expect("everything passes"),
            );
        }
        assert_eq!(used(&lane), 5, "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_past_the_cap_share_one_lane() {
    let admission = admission(2);
    let policy = policy(3, 10);
    let (a, b) = (
        lane(&admission, "a", &policy),
        lane(&admission, "b", &policy),
    );
    assert!(!Arc::ptr_eq(&a, &b));
    let (c, d) = (
        lane(&admission, "c", &policy),
        lane(&admission, "d", &policy),
    );
    assert!(Arc::ptr_eq(&c, &d), "they share the overflow lane");
    assert!(!Arc::ptr_eq(&a, &c));
    assert!(
        Arc::ptr_eq(&a, &lane(&admission, "a", &policy)),
        "whoever has a lane keeps it"
    );
    assert_eq!(admission.list().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_lane_is_forgotten_only_when_idle_empty_and_unheld() {
    let admission = admission(1);
    let policy = policy(3, 10);
    finish(
        lane(&admission, "a", &policy)
            .admit(patient(1))
            .await
            .expect("there is room"),
    );
    let other = |endpoint| lane(&admission, endpoint, &policy);
    let own = |endpoint: &str| {
        let listed = admission.list();
        listed
            .iter()
            .any(|listed| listed.endpoint.as_deref() == Some(endpoint))
    };
    advance(Duration::from_secs(5)).await;
    drop(other("b"));
    assert!(own("a") && !own("b"), "its window has not emptied");
    advance(W).await;
    let held = other("a");
    drop(other("b"));
    assert!(own("a") && !own("b"), "somebody holds it");
    drop(held);
    advance(Duration::from_secs(2)).await;
    drop(other("b"));
    assert!(!own("a") && own("b"), "nobody could notice");
}

/// Invariant 7.
#[tokio::test(start_paused = true)]
async fn a_lane_made_while_the_overflow_window_is_not_empty_starts_as_spent() {
    let admission = admission(1);
    let policy = policy(3, 10);
    let held = lane(&admission, "a", &policy);
    let overflow = lane(&admission, "b", &policy);
    let mut out = overflow.admit(patient(1)).await.expect("there is room");
    out.wrote(now());
    drop(held);
    advance(Duration::from_secs(2)).await;
    let still = lane(&admission, "b", &policy);
    assert!(
        Arc::ptr_eq(&still, &overflow),
        "what is out may be this endpoint's"
    );
    drop(still);
    out.sent();
    out.answered();
    out.complete();
    drop(out);
    advance(Duration::from_secs(2)).await;
    let own = lane(&admission, "b", &policy);
    assert!(!Arc::ptr_eq(&own, &overflow));
    assert_eq!(used(&own), 3);
    let asked = now();
    finish(own.admit(patient(1)).await.expect("its turn comes"));
    assert!(asked.elapsed() >= HOLD, "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn addresses_are_told_apart_and_a_64_is_one() {
    let admission = admission(1);
    let flow = |address: &str, key| admission.flow(address.parse().expect("an address"), key);
    assert_ne!(flow("10.0.0.1", None), flow("10.0.0.2", None));
    assert_eq!(flow("2001:db8::1", None), flow("2001:db8::2", None));
    assert_ne!(flow("2001:db8::1", None), flow("2001:db8:0:1::1", None));
    assert_eq!(flow("::ffff:10.0.0.1", None), flow("10.0.0.1", None));
    assert_ne!(flow("10.0.0.1", Some(1)), flow("10.0.0.1", None));
    assert_ne!(
        flow("10.0.0.1", Some(1)),
        flow("10.0.0.2", Some(1)),
        "hosts sharing one key"
    );
}

/// Real threads and real time: no wake-up is lost and nothing leaks, whoever leaves when.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_on_one_lane_lose_nothing() {
    let mut policy = policy(1_000_000, 3);
    policy.quota.settle = Duration::ZERO;
    policy.quota.margin = Duration::from_millis(1);
    policy.queue = 100_000;
    let admission = admission(10);
    let lane = lane(&admission, "a", &policy);
    let tasks: Vec<_> = (0..2_000u64)
        .map(|number| {
            let lane = lane.clone();
            tokio::spawn(async move {
                let admitted = lane.admit(patient(number % 7));
                if number % 5 == 0 {
                    // Some leave, at whatever moment that is.
                    let brief = Duration::from_micros(number % 900);
                    drop(tokio::time::timeout(brief, admitted).await);
                    return;
                }
                let mut permit = admitted.await.expect("patience is long");
                permit.wrote(now());
                tokio::task::yield_now().await;
                match number % 3 {
                    0 => drop(permit),
                    _ => finish(permit),
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let drained = async {
        while in_use(&lane) > 0 || lane.view().snapshot.waiting > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), drained)
        .await
        .expect("everything comes back");
}
