//! What does a decision cost? Nanoseconds for everything the core does for one request (asked, sent,
//! answered, given back, and polled after each as the shell does), by lanes, waiters and flows.
//!
//! `cargo bench --bench decision` prints a table, `-- --json` the same as one JSON object. Two bars at
//! its end: the worst point at most 1 microsecond, and at most 200 ns (the aim) for the lane that need
//! not wait. Medians of several rounds; one thread; time is a number, so only the core is measured.

use std::fmt::Write;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use podgate::limit::fair_queue::Waiter;
use podgate::limit::flow::FlowId;
use podgate::limit::ledger::{Call, End, Slot};
use podgate::limit::local::{LocalLane, Settled, Verdict};
use podgate::limit::quota::{Mode, Quota, Rate, Timestamp};

const ROUNDS: usize = 7;
/// Long enough that nobody is shed.
const PATIENCE: Duration = Duration::from_secs(1 << 30);
const CAPACITY: usize = 100_000;

fn lane(now: Timestamp) -> LocalLane {
    let quota = Quota::new(
        Rate::new(1000, Duration::from_secs(10)),
        NonZeroU32::new(200),
    );
    LocalLane::new(quota, CAPACITY, Mode::Enforce, 1, now)
}

fn waiter(flow: u64, now: Timestamp) -> Waiter {
    // Spread as the shell's hashes are.
    let flow = FlowId(flow.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    Waiter {
        flow,
        call: Call::Short,
        deadline: now + PATIENCE,
    }
}

/// The rest of an admitted request's way.
fn finish(lane: &mut LocalLane, mut slot: Slot, now: Timestamp) {
    lane.sent(&mut slot, now, now);
    lane.answered(&mut slot, now);
    lane.give_back(slot, End::Complete, now);
}

/// Nanoseconds per call of `decide`, the median of several rounds.
fn measure(decisions: u32, mut decide: impl FnMut(u32)) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let started = now();
            (0..decisions).for_each(&mut decide);
            started.elapsed().as_nanos() as f64 / f64::from(decisions)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Requests that need not wait, on `lanes` lanes in turn.
fn by_lanes(lanes: u32) -> f64 {
    let mut now = Timestamp::from_nanos(1);
    let mut all: Vec<_> = (0..lanes).map(|_| lane(now)).collect();
    // Each lane is asked every 20 ms: half of what it may let out.
    let step = Duration::from_millis(20) / lanes;
    measure(200_000.max(2 * lanes), |decision| {
        now = now + step;
        let lane = &mut all[(decision % lanes) as usize];
        match lane.ask(waiter(1, now), now) {
            Verdict::Admit { slot, .. } => finish(lane, slot, now),
            verdict => panic!("it need not wait: {verdict:?}"),
        }
    })
}

/// One joins and one goes, with `waiters` standing in `flows` flows.
fn by_queue(waiters: u32, flows: u32) -> f64 {
    let mut now = Timestamp::from_nanos(1);
    let mut lane = lane(now);
    let mut asked = 0;
    // The burst and then the queue: nobody goes while time stands still.
    while lane.snapshot(now).waiting < waiters as usize {
        if let Verdict::Admit { slot, .. } = lane.ask(waiter(asked % u64::from(flows), now), now) {
            finish(&mut lane, slot, now);
        }
        asked += 1;
    }
    // A token and a slot come every 10.01 ms.
    let step = Duration::from_micros(10_020);
    measure(50_000, |_| {
        now = now + step;
        asked += 1;
        match black_box(lane.ask(waiter(asked % u64::from(flows), now), now)) {
            Verdict::Admit { slot, .. } => finish(&mut lane, slot, now),
            Verdict::Wait { .. } => {}
            Verdict::Shed(shed) => panic!("patience has no end here: {shed}"),
        }
        let mut gone = None;
        black_box(lane.poll(now, |settled| gone = Some(settled)));
        if let Some(Settled::Admitted(_, slot)) = gone {
            finish(&mut lane, slot, now);
        }
    })
}

fn main() {
    let mut points = Vec::new();
    for lanes in [1, 10, 1_000, 100_000] {
        points.push((format!("{lanes} lanes, nobody waits"), by_lanes(lanes)));
    }
    for waiters in [10, 100, 1_000, 10_000] {
        points.push((format!("{waiters} waiters, 1 flow"), by_queue(waiters, 1)));
    }
    for flows in [10, 100, 1_000, 10_000] {
        points.push((
            format!("10000 waiters, {flows} flows"),
            by_queue(10_000, flows),
        ));
    }
    if std::env::args().any(|argument| argument == "--json") {
        let all: Vec<_> = points
            .iter()
            .map(|(name, nanos)| format!("{name:?}:{nanos:.1}"))
            .collect();
        println!("{{{}}}", all.join(","));
        return;
    }
    let mut table = String::new();
    for (name, nanos) in &points {
        let _ = writeln!(table, "{name:<28} {nanos:>8.0} ns a decision");
    }
    let worst = points.iter().map(|&(_, nanos)| nanos).fold(0.0, f64::max);
    let (_, free) = points[0];
    print!("{table}");
    println!(
        "worst point {worst:.0} ns, bar 1000: {}",
        verdict(worst <= 1000.0)
    );
    println!(
        "need not wait {free:.0} ns, aim 200: {}",
        verdict(free <= 200.0)
    );
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}
