//! Never over, never idle (semantics, section 1): the whole core against pure policers under
//! simulated time.

mod sim;

use std::time::Duration;

use podgate::emulator::policer::Policer;
use sim::{
    Appetite, Outsider, Report, Scenario, W, at, caller, millis, percentile, quota, with_burst,
};

fn policers(random: &mut sim::Random, n: u32) -> Vec<Policer> {
    vec![
        Policer::SlidingLog,
        Policer::ClosedWindow,
        Policer::FixedWindow {
            phase: Duration::from_nanos(random.below(10_000_000_000)),
        },
        Policer::TokenBucket {
            depth: n,
            refill: n,
        },
    ]
}

/// Promise 1, on what the upstream saw.
fn assert_never_over(report: &Report, n: u32, c: u32, what: &str) {
    assert_eq!(report.refused.len(), 0, "{what}: the upstream refused");
    assert!(
        report.most_in(W) <= n as usize,
        "{what}: {} in one W",
        report.most_in(W)
    );
    assert!(
        report.most_in_flight <= c,
        "{what}: {} in flight",
        report.most_in_flight
    );
    assert_eq!(report.in_use_at_end, 0, "{what}: permits lost");
    assert!(
        report.idle < Duration::from_millis(1),
        "{what}: idle {:?}",
        report.idle
    );
}

#[test]
fn a_saturated_lane_is_never_over_and_never_idle() {
    let mut random = sim::Random(11);
    for (n, c) in [(1000, 200), (2000, 400), (100, 20)] {
        for (there, bar) in [
            (0..1, 0.99),
            (5..60, 0.99),
            (0..200, 0.97),
            (199..200, 0.97),
        ] {
            for policer in policers(&mut random, n) {
                let what = format!("N={n} transit {there:?} ms, {policer:?}");
                let scenario = Scenario {
                    seed: random.next(),
                    length: Duration::from_secs(60),
                    there: millis(there.start)..millis(there.end),
                    back: millis(0)..millis(10),
                    service: millis(0)..millis(10),
                    ppm: random.below(601) as i64 - 300,
                    callers: vec![caller(1, Appetite::Saturating(n as usize / 4))],
                    ..Scenario::new(quota(n, c), policer)
                };
                let report = scenario.run();
                assert_never_over(&report, n, c, &what);
                let used = report.use_of_budget(n, W).expect("enough intervals");
                println!("{what}: {used:.4}");
                assert!(used >= bar, "{what}: used {used:.4}");
            }
        }
    }
}

/// A burst out of idleness, also right after another, never finds the window over.
#[test]
fn bursts_out_of_idleness_are_never_over() {
    let mut random = sim::Random(12);
    for (n, c, size, every) in [
        (1000, 400, 1_500, 13_000),
        (100, 100, 300, 7_000),
        (2, 2, 5, 4_000),
    ] {
        for burst in [0, n] {
            for policer in policers(&mut random, n) {
                let what = format!("N={n} burst {burst}, {size} every {every} ms, {policer:?}");
                let appetite = Appetite::Bursty {
                    size,
                    every: millis(every),
                };
                let scenario = Scenario {
                    seed: random.next(),
                    length: Duration::from_secs(120),
                    there: millis(0)..millis(200),
                    ppm: random.below(601) as i64 - 300,
                    callers: vec![caller(1, appetite), caller(2, appetite)],
                    aborts: 10,
                    ..Scenario::new(with_burst(quota(n, c), burst), policer)
                };
                assert_never_over(&scenario.run(), n, c, &what);
            }
        }
    }
}

/// When round trip and service pass C * W / N, permits bind: then they are all out.
#[test]
fn where_permits_bind_they_are_all_out() {
    for (service, back) in [(2_500..3_500, 0..50), (8_000..12_000, 0..200)] {
        let (n, c) = (1000, 200);
        let scenario = Scenario {
            length: Duration::from_secs(120),
            there: millis(0)..millis(100),
            service: millis(service.start)..millis(service.end),
            back: millis(back.start)..millis(back.end),
            callers: vec![caller(1, Appetite::Saturating(300))],
            ..Scenario::new(quota(n, c), Policer::SlidingLog)
        };
        let report = scenario.run();
        assert_never_over(&report, n, c, &format!("service {service:?} ms"));
        let used = report.permit_use(c);
        assert!(
            report.permits_bound > Duration::from_secs(60),
            "{:?}",
            report.permits_bound
        );
        assert!(used >= 0.99, "permits out {used:.4}");
    }
}

const MINUTE: u64 = 60_000;

/// A saturated lane before an upstream that is not what we were told, for ten minutes.
fn misinformed(policer: Policer) -> Scenario {
    Scenario {
        length: Duration::from_secs(600),
        callers: vec![caller(1, Appetite::Saturating(300))],
        ..Scenario::new(quota(1000, 200), policer)
    }
}

/// From 100 s on: the share refused, and the share of N per W that was accepted.
fn after_a_while(report: &Report) -> (f64, f64) {
    let (from, to) = (at(100_000), at(10 * MINUTE));
    let accepted = report.accepted_between(from, to) as f64;
    let refused = report.refused_between(from, to) as f64;
    (
        refused / (accepted + refused),
        accepted / (1000.0 * to.since(from).as_secs_f64() / 10.0),
    )
}

#[test]
fn the_ladder_finds_what_a_misinformed_lane_can_use() {
    let fixed = Policer::FixedWindow {
        phase: millis(1_234),
    };
    for (policer, real_requests) in [
        (
            Policer::WeightedCounter {
                phase: Duration::ZERO,
            },
            1000,
        ),
        (
            Policer::WeightedCounter {
                phase: millis(3_700),
            },
            1000,
        ),
        (
            Policer::TokenBucket {
                depth: 250,
                refill: 1000,
            },
            1000,
        ),
        (Policer::SlidingLog, 900),
        (fixed, 900),
    ] {
        for (there, seed) in [(5..20, 1), (0..200, 2), (80..90, 3)] {
            let there = millis(there.start)..millis(there.end);
            let scenario = Scenario {
                there,
                seed,
                real_requests,
                ..misinformed(policer)
            };
            // What is possible: the same lane, told the truth of a policer that counts as we do.
            let told = Scenario {
                quota: quota(real_requests, 200),
                ..scenario.clone()
            };
            let (_, possible) = after_a_while(
                &Scenario {
                    policer: fixed,
                    ..told
                }
                .run(),
            );
            let report = scenario.run();
            let (refused, used) = after_a_while(&report);
            let what = format!("{policer:?} of {real_requests}, seed {seed}");
            println!("{what}: refused {refused:.4}, used {used:.4} of {possible:.4}");
            assert!(refused < 0.01, "{what}: refused {refused:.4}");
            assert!(
                used >= possible - 0.03,
                "{what}: used {used:.4} of {possible:.4}"
            );
            assert_eq!(report.in_use_at_end, 0);
        }
    }
}

/// Somebody else spends 40% of the budget for five minutes, then leaves.
#[test]
fn an_outside_spender_is_made_room_for_and_its_share_taken_back() {
    for (seed, there) in [(1, 5..20), (2, 0..200)] {
        let scenario = Scenario {
            seed,
            there: millis(there.start)..millis(there.end),
            outsider: Some(Outsider {
                every: millis(25),
                until: millis(5 * MINUTE),
            }),
            ..misinformed(Policer::SlidingLog)
        };
        let report = scenario.run();
        let during = report.accepted_between(at(100_000), at(5 * MINUTE)) as f64 / 20.0;
        let refused = report.refused_between(at(100_000), at(5 * MINUTE)) as f64 / 20.0;
        let after = report.accepted_between(at(6 * MINUTE), at(10 * MINUTE)) as f64 / 24.0;
        println!("during {during} a window, {refused} refused; after {after}");
        assert!(
            during > 0.9 * 600.0,
            "only {during} of the 600 a window that are left"
        );
        assert!(
            refused / (refused + during) < 0.01,
            "{refused} refused a window"
        );
        assert!(after >= 950.0, "only {after} a window after it left");
    }
}

#[test]
fn nine_small_callers_do_not_feel_a_hog() {
    let hog = sim::Caller {
        patience: Duration::from_secs(600),
        ..caller(0, Appetite::Saturating(2_000))
    };
    for burst in [0, 1000] {
        let mut callers = vec![hog];
        let steady = Appetite::Steady {
            every: Duration::from_secs(1),
        };
        callers.extend((1..10).map(|flow| caller(flow, steady)));
        let scenario = Scenario {
            length: Duration::from_secs(120),
            queue: 2_000,
            callers,
            ..Scenario::new(with_burst(quota(1000, 200), burst), Policer::SlidingLog)
        };
        let report = scenario.run();
        assert_never_over(&report, 1000, 200, &format!("burst {burst}"));
        let small = report.waits_of(1..10, at(0));
        let settled = report.waits_of(1..10, at(10_500));
        let p99 = percentile(&settled, 99);
        let used = report.use_of_budget(1000, W).expect("enough intervals");
        println!("burst {burst}: p99 {p99:?}, used {used:.4}");
        // A burst of the whole window leaves nothing for W: who cannot wait that long is shed.
        if burst == 0 {
            assert!(
                small.iter().all(|wait| wait.admitted),
                "one of the nine was shed"
            );
        }
        assert!(
            settled.iter().all(|wait| wait.admitted),
            "shed after the first W"
        );
        assert!(p99 < millis(200), "burst {burst}: p99 {p99:?}");
        assert!(used >= 0.97, "burst {burst}: used {used:.4}");
    }
}
