//! The async shell round the core, in paused time: lanes made and forgotten, permits that come back,
//! waiters woken at the time that was named.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use podgate::admission::lane::{Ask, LaneCell};
use podgate::admission::permit::Permit;
use podgate::admission::resolved::Resolved;
use podgate::admission::{Account, Admission};
use podgate::config::Config;
use podgate::config::policy::{GroupPolicy, GroupVerdict};
use podgate::limit::flow::FlowId;
use podgate::limit::lane::Shed;
use podgate::limit::ledger::Call;
use podgate::limit::local::Snapshot;
use podgate::metrics::Metrics;
use podgate::operation::Group;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, advance, sleep, timeout};

const W: Duration = Duration::from_secs(10);
/// W and a thousandth of it: how long a slot is kept past its bound.
const HOLD: Duration = Duration::from_millis(10_010);
const MARGIN: Duration = Duration::from_millis(250);
const SETTLE: Duration = Duration::from_millis(5);
/// What timers resolve, and what is rounded up to it.
const TICK: Duration = Duration::from_millis(2);
const LONG: Duration = Duration::from_secs(600);

#[expect(clippy::disallowed_methods, reason = "the paused clock is the test's")]
fn now() -> Instant {
    Instant::now()
}

/// The policy of `run` with these settings over the preset's.
fn policy(run: &str) -> GroupPolicy {
    let text = format!("groups: {{ run: {{ {run} }} }}");
    let config = Config::parse("test.yaml", &text).unwrap_or_else(|faults| panic!("{faults}"));
    match config.group("any", podgate::operation::Group::Run) {
        GroupVerdict::Policy(policy) => *policy,
        GroupVerdict::Reject => unreachable!("only `other` can be rejected"),
    }
}

/// N per W.
fn rate(requests: u32) -> GroupPolicy {
    policy(&format!(
        "rate: {{ requests: {requests}, per: 10s }}, concurrency: none"
    ))
}

/// C at once.
fn permits(permits: u32) -> GroupPolicy {
    policy(&format!("rate: none, concurrency: {permits}"))
}

struct House {
    admission: Admission,
    policy: GroupPolicy,
}

impl House {
    fn new(capacity: usize, policy: GroupPolicy) -> Self {
        Self {
            admission: Admission::new(capacity, Metrics::new().unwrap()),
            policy,
        }
    }

    fn lane(&self, endpoint: &str) -> Arc<LaneCell> {
        self.lane_of(endpoint, Group::Run)
    }

    fn lane_of(&self, endpoint: &str, group: Group) -> Arc<LaneCell> {
        self.admission
            .lane(Account::default(), endpoint, group, &self.policy)
    }

    fn resolve(&self, resolved: &Resolved, endpoint: &str) -> Arc<LaneCell> {
        let (account, group) = (Account::default(), Group::Run);
        self.admission
            .resolve(resolved, account, endpoint, group, &self.policy)
    }

    /// Endpoints with a lane of their own.
    fn own(&self) -> Vec<String> {
        let lanes = self.admission.list();
        let mut own: Vec<_> = lanes
            .into_iter()
            .filter_map(|listed| Some(listed.endpoint?.into()))
            .collect();
        own.sort();
        own
    }

    fn has_overflow(&self) -> bool {
        let lanes = self.admission.list();
        lanes.iter().any(|listed| listed.endpoint.is_none())
    }
}

fn ask(flow: u64, patience: Duration) -> Ask {
    Ask {
        flow: FlowId(flow),
        call: Call::Short,
        patience,
        held: 0,
    }
}

fn snapshot(lane: &LaneCell) -> Snapshot {
    lane.view().snapshot
}

fn waiting(lane: &LaneCell) -> usize {
    snapshot(lane).waiting
}

fn in_use(lane: &LaneCell) -> u32 {
    snapshot(lane).permits_in_use
}

async fn admit(lane: &Arc<LaneCell>) -> Permit {
    lane.admit(ask(1, LONG)).await.expect("admitted")
}

/// A whole exchange that takes no time.
fn exchange(mut permit: Permit) {
    permit.wrote(now());
    permit.sent();
    permit.answered();
    permit.complete();
}

/// Somebody who waits.
async fn waiter(
    lane: &Arc<LaneCell>,
    flow: u64,
    patience: Duration,
) -> JoinHandle<Result<Permit, Shed>> {
    let (lane, before) = (lane.clone(), waiting(lane));
    let asking = lane.clone();
    let task = tokio::spawn(async move { asking.admit(ask(flow, patience)).await });
    while waiting(&lane) == before {
        yield_now().await;
    }
    task
}

#[tokio::test(start_paused = true)]
async fn a_lane_is_made_on_demand_and_stays_the_same() {
    let house = House::new(10, rate(5));
    assert!(house.admission.list().is_empty());
    let lane = house.lane("a");
    assert!(Arc::ptr_eq(&lane, &house.lane("a")));
    let others = [
        house.lane("b"),
        house.lane_of("a", Group::Status),
        house
            .admission
            .lane(Account(1), "a", Group::Run, &house.policy),
    ];
    for other in &others {
        assert!(!Arc::ptr_eq(&lane, other));
    }
    exchange(admit(&lane).await);
    assert_eq!(snapshot(&lane).window_used, 1);
    for other in &others {
        assert_eq!(snapshot(other).window_used, 0);
    }
    assert_eq!(house.own(), ["a", "a", "a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn endpoints_past_the_cap_share_one_lane_and_its_budget() {
    let house = House::new(2, rate(2));
    let own = [house.lane("a"), house.lane("b")];
    let (c, d) = (house.lane("c"), house.lane("d"));
    assert!(Arc::ptr_eq(&c, &d));
    assert!(own.iter().all(|own| !Arc::ptr_eq(own, &c)));
    let of_another_group = house.lane_of("c", Group::Status);
    assert!(!Arc::ptr_eq(&c, &of_another_group));
    exchange(admit(&c).await);
    exchange(admit(&d).await);
    let shed = house.lane("e").admit(ask(1, Duration::from_secs(1))).await;
    assert!(matches!(shed, Err(Shed::OutOfReach { .. })));
    drop(admit(&own[0]).await);

    for number in 0..1_000 {
        house.lane(&format!("made-up-{number}"));
    }
    assert_eq!(house.admission.list().len(), 4, "two, and one a group");
}

/// Invariant 7, and what makes it hold: no more than N of one endpoint in any W, whichever lanes they
/// went through.
#[tokio::test(start_paused = true)]
async fn a_lane_made_after_the_shared_one_was_used_starts_as_spent() {
    let house = House::new(1, rate(2));
    let first = house.lane("a");
    for _ in 0..2 {
        exchange(admit(&house.lane("c")).await);
    }
    let used = now();
    drop(first);
    advance(Duration::from_secs(2)).await;
    let lane = house.lane("c");
    assert_eq!(house.own(), ["c"]);
    let made = now();
    drop(admit(&lane).await);
    let waited = made.elapsed();
    assert!(used.elapsed() > W, "{:?}", used.elapsed());
    assert!(waited <= HOLD + MARGIN + TICK, "{waited:?}");

    let untouched = House::new(1, rate(2));
    let first = untouched.lane("a");
    untouched.lane("c");
    drop(first);
    advance(Duration::from_secs(2)).await;
    let made = now();
    drop(admit(&untouched.lane("c")).await);
    assert_eq!(made.elapsed(), Duration::ZERO, "nothing was spent");
}

#[tokio::test(start_paused = true)]
async fn while_the_shared_lane_is_in_use_nobody_leaves_it() {
    let house = House::new(1, rate(1));
    let first = house.lane("a");
    let shared = house.lane("c");
    let permit = admit(&shared).await;
    drop(first);
    advance(Duration::from_secs(2)).await;
    assert!(Arc::ptr_eq(&shared, &house.lane("c")), "a permit is out");

    exchange(permit);
    let arrived = now();
    let later = waiter(&shared, 1, LONG).await;
    drop(shared);
    advance(Duration::from_secs(2)).await;
    // Whoever waits there may go at any time: a lane beside it would let out as many again.
    let next = house.lane("c");
    exchange(later.await.unwrap().unwrap());
    let second = arrived.elapsed();
    exchange(admit(&next).await);
    let third = arrived.elapsed();
    assert!(second > W && third - second > W, "{second:?}, {third:?}");
}

/// Asks for another lane than the one there is room for; true if it was forgotten.
async fn is_forgotten(house: &House) -> bool {
    // Lanes are looked through once a second at most.
    advance(Duration::from_secs(1)).await;
    house.lane("z");
    !house.own().contains(&"a".to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_lane_is_forgotten_only_when_nobody_could_notice() {
    let house = House::new(1, policy("rate: { requests: 1, per: 10s }, concurrency: 1"));
    let lane = house.lane("a");
    assert!(!is_forgotten(&house).await, "somebody holds it");
    let permit = admit(&lane).await;
    drop(lane);
    assert!(!is_forgotten(&house).await, "a permit is out");
    exchange(permit);
    assert!(!is_forgotten(&house).await, "its window is not empty");
    let waits = waiter(&house.lane("a"), 1, LONG).await;
    assert!(!is_forgotten(&house).await, "somebody waits");
    waits.abort();
    assert!(waits.await.is_err());
    advance(HOLD - Duration::from_secs(4)).await;
    assert!(!is_forgotten(&house).await, "not quite empty");
    advance(Duration::from_secs(2)).await;
    assert!(is_forgotten(&house).await);
    assert!(house.has_overflow(), "what was asked for meanwhile");
}

#[tokio::test(start_paused = true)]
async fn what_a_worker_has_found_is_forgotten_and_not_used_again() {
    let house = House::new(1, rate(100));
    let resolved = Resolved::default();
    let find = || house.resolve(&resolved, "a");
    let first = Arc::downgrade(&find());
    // The second time it is found and kept, the third time it is found here.
    for _ in 0..2 {
        assert!(Arc::ptr_eq(&find(), &house.lane("a")));
    }
    assert!(is_forgotten(&house).await);
    assert_eq!(first.strong_count(), 0);
    assert!(Arc::ptr_eq(&find(), &house.lane("a")), "the one for all");
    for endpoint in 0..100 {
        let endpoint = format!("e{endpoint}");
        assert!(Arc::ptr_eq(
            &house.resolve(&resolved, &endpoint),
            &house.lane(&endpoint)
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_lane_has_learnt_is_not_forgotten() {
    let house = House::new(1, permits(1));
    let mut permit = admit(&house.lane("a")).await;
    permit.wrote(now());
    permit.sent();
    permit.throttled(Some(Duration::from_secs(30)));
    permit.complete();
    drop(permit);
    advance(Duration::from_secs(5)).await;
    assert!(!is_forgotten(&house).await, "it is paused");
}

#[tokio::test(start_paused = true)]
async fn who_is_dropped_while_waiting_leaves_at_once_and_costs_nothing() {
    let house = House::new(1, permits(1));
    let lane = house.lane("a");
    let permit = admit(&lane).await;
    let first = waiter(&lane, 1, LONG).await;
    let second = waiter(&lane, 1, LONG).await;
    let third = waiter(&lane, 1, LONG).await;
    first.abort();
    assert!(first.await.is_err());
    assert_eq!(waiting(&lane), 2);
    exchange(permit);
    let left = now();
    exchange(second.await.unwrap().unwrap());
    assert!(left.elapsed() <= SETTLE + TICK, "the next one's turn");
    third.abort();
    assert!(third.await.is_err());
    assert_eq!(waiting(&lane), 0);
    sleep(SETTLE).await;
    assert_eq!(in_use(&lane), 0);
}

/// Granted, and gone before it has heard of it.
#[tokio::test(start_paused = true)]
async fn who_is_dropped_when_granted_gives_all_of_it_back() {
    let house = House::new(1, policy("rate: { requests: 2, per: 10s }, concurrency: 1"));
    let lane = house.lane("a");
    let permit = admit(&lane).await;
    let asking = lane.clone();
    let mut waits = Box::pin(async move { asking.admit(ask(1, LONG)).await });
    assert!(futures_poll(&mut waits).is_pending());
    assert_eq!(waiting(&lane), 1);
    drop(permit);
    assert_eq!(
        (waiting(&lane), in_use(&lane)),
        (0, 1),
        "it has been granted"
    );
    drop(waits);
    assert_eq!((in_use(&lane), snapshot(&lane).window_used), (0, 0));
}

fn futures_poll<F: Future + Unpin>(future: &mut F) -> std::task::Poll<F::Output> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::Pin::new(future).poll(&mut cx)
}

/// How long after now the lane has its permit and its slot back.
async fn back(lane: &LaneCell) -> (Duration, Duration) {
    let started = now();
    let (mut permit, mut slot) = (None, None);
    while permit.is_none() || slot.is_none() {
        let lane = snapshot(lane);
        if lane.permits_in_use == 0 {
            permit.get_or_insert(started.elapsed());
        }
        if lane.window_used == 0 {
            slot.get_or_insert(started.elapsed());
        }
        advance(Duration::from_millis(1)).await;
    }
    (permit.unwrap_or_default(), slot.unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn a_dropped_permit_gives_back_what_its_exchange_did_not_use() {
    let later = Duration::from_millis(40);
    let house = House::new(1, rate(1));
    let lane = house.lane("a");

    drop(admit(&lane).await);
    assert_eq!(
        back(&lane).await,
        (Duration::ZERO, Duration::ZERO),
        "unsent"
    );

    let mut permit = admit(&lane).await;
    permit.wrote(now());
    advance(later).await;
    drop(permit);
    let (permit, slot) = back(&lane).await;
    assert_eq!(permit, MARGIN, "torn while it was being written");
    // From the last byte, which was some time ago.
    assert_about(slot, MARGIN + HOLD - later);

    let mut permit = admit(&lane).await;
    permit.wrote(now());
    permit.sent();
    advance(later).await;
    drop(permit);
    let (permit, slot) = back(&lane).await;
    assert_eq!(permit, MARGIN, "torn while the upstream worked");
    assert_about(slot, MARGIN + HOLD - later);

    let mut permit = admit(&lane).await;
    permit.wrote(now());
    permit.sent();
    permit.answered();
    advance(later).await;
    drop(permit);
    let (permit, slot) = back(&lane).await;
    assert_eq!(permit, MARGIN, "torn in the middle of the answer");
    assert_about(slot, HOLD - later);

    exchange(admit(&lane).await);
    let (permit, slot) = back(&lane).await;
    assert_eq!(permit, SETTLE, "complete");
    assert_about(slot, HOLD);

    let mut permit = admit(&lane).await;
    permit.wrote(now());
    permit.sent();
    permit.answered();
    permit.complete();
    permit.wrote(now());
    drop(permit);
    assert_eq!(
        back(&lane).await.0,
        SETTLE,
        "what comes after changes nothing"
    );
}

fn assert_about(took: Duration, expected: Duration) {
    assert!(
        (expected..=expected + TICK).contains(&took),
        "{took:?} for {expected:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_at_the_time_that_was_named() {
    let house = House::new(2, rate(2));
    let lane = house.lane("a");
    exchange(admit(&lane).await);
    let first = now();
    advance(Duration::from_secs(3)).await;
    exchange(admit(&lane).await);
    let named = snapshot(&lane).next_free;
    let asked = now();
    exchange(admit(&lane).await);
    assert_about(asked.elapsed(), named);
    assert_about(first.elapsed(), HOLD);
    exchange(admit(&lane).await);
    assert_about(first.elapsed(), HOLD + Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_earlier_wakes_earlier() {
    let house = House::new(
        1,
        policy("rate: { requests: 1, per: 10s }, concurrency: none"),
    );
    let lane = house.lane("a");
    let permit = admit(&lane).await;
    let waits = waiter(&lane, 1, LONG).await;
    let asked = now();
    advance(Duration::from_secs(1)).await;
    // Its driver sleeps until the slot would be free, many seconds from now.
    drop(permit);
    drop(waits.await.unwrap().unwrap());
    assert_eq!(asked.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_past_the_deadline() {
    let house = House::new(2, permits(1));
    let lane = house.lane("a");
    let permit = admit(&lane).await;
    for millis in [1, 100, 8_000] {
        let patience = Duration::from_millis(millis);
        let asked = now();
        let shed = lane.admit(ask(1, patience)).await;
        assert!(matches!(shed, Err(Shed::WaitExpired { .. })));
        assert_about(asked.elapsed(), patience);
    }
    // A shorter deadline behind a longer one is not kept waiting for it.
    let patient = waiter(&lane, 1, LONG).await;
    let asked = now();
    let shed = lane.admit(ask(1, Duration::from_secs(1))).await;
    assert!(shed.is_err());
    assert_about(asked.elapsed(), Duration::from_secs(1));
    drop(permit);
    drop(patient.await.unwrap().unwrap());

    let house = House::new(2, rate(1));
    let lane = house.lane("a");
    exchange(admit(&lane).await);
    let asked = now();
    let shed = lane.admit(ask(1, W)).await;
    assert!(matches!(shed, Err(Shed::OutOfReach { .. })));
    assert_eq!(asked.elapsed(), Duration::ZERO, "told at once");
}

#[tokio::test(start_paused = true)]
async fn flows_take_turns_and_each_goes_in_its_order() {
    let house = House::new(1, permits(1));
    let lane = house.lane("a");
    let permit = admit(&lane).await;
    let order = Arc::<Mutex<Vec<(u64, u32)>>>::default();
    let mut tasks = Vec::new();
    for (flow, number) in [
        (1, 1),
        (1, 2),
        (1, 3),
        (1, 4),
        (2, 1),
        (1, 5),
        (3, 1),
        (2, 2),
    ] {
        let waits = waiter(&lane, flow, LONG).await;
        let order = order.clone();
        tasks.push(tokio::spawn(async move {
            let permit = waits.await.unwrap().unwrap();
            order.lock().push((flow, number));
            exchange(permit);
        }));
    }
    exchange(permit);
    for task in tasks {
        task.await.unwrap();
    }
    let turns = [
        (1, 1),
        (2, 1),
        (3, 1),
        (1, 2),
        (2, 2),
        (1, 3),
        (1, 4),
        (1, 5),
    ];
    assert_eq!(*order.lock(), turns);
}

#[tokio::test(start_paused = true)]
async fn hosts_that_share_a_key_are_told_apart_and_strangers_are_not() {
    let house = House::new(1, permits(1));
    let flow = |address: &str, key| {
        let address: IpAddr = address.parse().unwrap();
        house.admission.flow(address, key)
    };
    assert_eq!(flow("10.0.0.1", Some(7)), flow("10.0.0.1", Some(7)));
    assert_ne!(flow("10.0.0.1", Some(7)), flow("10.0.0.2", Some(7)));
    assert_ne!(flow("10.0.0.1", Some(7)), flow("10.0.0.1", Some(8)));
    assert_eq!(flow("10.0.0.1", None), flow("::ffff:10.0.0.1", None));
    assert_eq!(flow("2001:db8::1", None), flow("2001:db8::ffff:2", None));
    assert_ne!(flow("2001:db8::1", None), flow("2001:db8:0:1::1", None));
    let another = House::new(1, permits(1));
    let here = IpAddr::from(Ipv4Addr::LOCALHOST);
    assert_ne!(
        house.admission.flow(here, None),
        another.admission.flow(here, None),
        "nobody can choose whose flow to share"
    );
}

/// Real threads, real time: every task ends, and never more than C are out.
async fn hammer(policy: GroupPolicy, most: u32) {
    let house = House::new(1, policy);
    let lane = house.lane("a");
    let out = Arc::<AtomicU32>::default();
    let mut tasks = tokio::task::JoinSet::new();
    for flow in 0..64_u64 {
        let (lane, out) = (lane.clone(), out.clone());
        tasks.spawn(async move {
            for turn in 0..100_u64 {
                let asked = lane.admit(ask(flow % 7, LONG));
                let granted = match (flow + turn) % 5 {
                    // Leaves, mostly while it waits.
                    0 => timeout(Duration::from_micros(flow * 20), asked).await.ok(),
                    _ => Some(asked.await),
                };
                let Some(permit) = granted else { continue };
                let mut permit = permit.expect("admitted");
                let held = out.fetch_add(1, Ordering::SeqCst) + 1;
                assert!(held <= most, "{held} out");
                yield_now().await;
                out.fetch_sub(1, Ordering::SeqCst);
                match (flow ^ turn) % 4 {
                    0 => drop(permit),
                    1 => permit.wrote(now()),
                    _ => exchange(permit),
                }
            }
        });
    }
    let all = async { while tasks.join_next().await.map(Result::unwrap).is_some() {} };
    let ended = timeout(Duration::from_secs(60), all).await;
    assert!(ended.is_ok(), "not woken: {:?}", snapshot(&lane));
    assert_eq!(waiting(&lane), 0);
    let rest = async {
        while in_use(&lane) > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let ended = timeout(Duration::from_secs(10), rest).await;
    assert!(ended.is_ok(), "{:?}", snapshot(&lane));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost_among_threads_where_permits_bind() {
    let mut policy = policy("rate: none, concurrency: 8, settle: 0s");
    policy.quota.margin = Duration::from_millis(1);
    hammer(policy, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost_among_threads_where_the_window_binds() {
    let mut policy =
        policy("rate: { requests: 500, per: 200ms, burst: 500 }, concurrency: none, queue: 1000");
    policy.quota.margin = Duration::from_millis(1);
    hammer(policy, u32::MAX).await;
}

/// Three of one flow, and one permit: the first comes back before the others, whose deadline it does
/// not outlive.
#[tokio::test(start_paused = true)]
async fn who_comes_back_keeps_its_place_and_its_deadline() {
    let house = House::new(10, permits(1));
    let lane = house.lane("ep");
    let mut turn = lane.turn(ask(1, Duration::from_secs(20)));
    let mut first = turn.admit().await.unwrap();
    let order = Arc::<Mutex<Vec<u32>>>::default();
    let others: Vec<_> = (2..=3)
        .map(|number| {
            let (lane, order) = (lane.clone(), order.clone());
            tokio::spawn(async move {
                let permit = lane.admit(ask(1, LONG)).await.unwrap();
                order.lock().push(number);
                done(permit).await;
            })
        })
        .collect();
    yield_now().await;
    assert_eq!(snapshot(&lane).waiting, 2);
    first.wrote(now());
    first.throttled(Some(Duration::from_secs(1)));
    first.complete();
    drop(first);
    let permit = turn.admit().await.unwrap();
    assert!(order.lock().is_empty(), "it went first");
    assert!(
        permit.waited() >= Duration::from_secs(1),
        "when the pause was over"
    );
    done(permit).await;
    for other in others {
        other.await.unwrap();
    }
    assert_eq!(*order.lock(), [2, 3]);

    // The third try would be within a patience of its own, and is past the one it came with.
    let mut again = turn.admit().await.unwrap();
    again.wrote(now());
    again.throttled(Some(Duration::from_secs(19)));
    again.complete();
    drop(again);
    let asked = now();
    assert!(matches!(turn.admit().await, Err(Shed::Paused { .. })));
    assert_eq!(asked.elapsed(), Duration::ZERO, "it is told at once");
}

/// An exchange that ends well.
async fn done(mut permit: Permit) {
    permit.wrote(now());
    permit.sent();
    permit.answered();
    permit.complete();
    drop(permit);
    yield_now().await;
}
