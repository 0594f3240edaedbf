//! What takes minutes: the promises at their documented size over real sockets (`tests/run --full`).

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use podgate::emulator::limits::Group;
use podgate::emulator::policer::Policer;
use tokio::task::JoinSet;

use super::races::submissions_over_connections_that_end;
use super::saturation::{Crowd, assert_never_over};
use super::support::{Scene, Stand, Tight, call, job, machine, now, request, unique};

/// W, and a second for what it lets out to arrive.
const FIRST_WINDOW: Duration = Duration::from_secs(11);
const MINUTE: Duration = Duration::from_secs(60);

/// Promise 2 since the last reset, as the upstream saw it.
fn use_of_budget(stand: &Stand, group: Group, requests: u64) -> f64 {
    let seen = stand.upstream.seen("ep", group);
    let promise = &seen["promise2"];
    let intervals = promise["intervals"].as_u64().unwrap();
    assert!(
        intervals >= 2 * requests,
        "{intervals} intervals prove nothing"
    );
    promise["w_over_mean_d"].as_f64().unwrap()
}

#[tokio::test]
#[ignore = "takes a minute and more: tests/run --full"]
async fn full_a_minute_of_saturation_before_each_policer() {
    let machine = machine();
    let phase = Duration::from_millis(RandomState::new().hash_one(0) % 10_000);
    let policers = [
        Policer::SlidingLog,
        Policer::ClosedWindow,
        Policer::FixedWindow { phase },
        Policer::TokenBucket {
            depth: 1000,
            refill: 1000,
        },
    ];
    let stands: Vec<_> = policers
        .into_iter()
        .map(|policer| {
            let scene = Scene::default().margin("250ms").policer(policer);
            let stand = scene.beside(machine.clone());
            let crowd = Crowd::at(stand.gateway.address(), 400, 0);
            (policer, stand, crowd)
        })
        .collect();
    tokio::time::sleep(FIRST_WINDOW).await;
    for (_, stand, _) in &stands {
        stand.upstream.emulator.reset();
    }
    tokio::time::sleep(MINUTE).await;
    for (policer, stand, crowd) in stands {
        assert!(
            stand.gateway.waiting(Group::Run) > 0,
            "nobody waited: nothing is shown"
        );
        let used = use_of_budget(&stand, Group::Run, 1000);
        crowd.leave().await;
        stand.gateway.comes_to_rest().await;
        println!("{policer:?}: used {used:.4}");
        assert_never_over(&stand, Group::Run, 1000, 200);
        assert!(used >= 0.99, "{policer:?}: used {used:.4}");
    }
}

/// Round trip and service longer than C * W / N: then every permit is out.
#[tokio::test]
#[ignore = "takes half a minute: tests/run --full"]
async fn full_where_permits_bind_they_are_all_out() {
    let tight = Tight {
        requests: Some(1000),
        window: Duration::from_secs(10),
        concurrency: Some(50),
    };
    let stand = Scene::default().limit(Group::RunSync, tight).start();
    let address = stand.gateway.address();
    let mut callers = JoinSet::new();
    for _ in 0..150 {
        callers.spawn(async move {
            loop {
                let body = format!(r#"{{"input":{{"id":"{}","sleep":1.0}}}}"#, unique());
                drop(call(address, request("POST", "/v2/ep/runsync", body)).await);
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (mut out, mut looks) = (0, 0);
    let ends = now() + Duration::from_secs(25);
    while now() < ends {
        tokio::time::sleep(Duration::from_millis(7)).await;
        out += u64::from(stand.gateway.permits(Group::RunSync));
        looks += 1;
    }
    assert!(
        stand.gateway.waiting(Group::RunSync) > 0,
        "nobody waited: nothing is shown"
    );
    callers.shutdown().await;
    stand.gateway.comes_to_rest().await;
    assert_never_over(&stand, Group::RunSync, 1000, 50);
    let most = stand.upstream.seen("ep", Group::RunSync)["max_in_flight"].as_u64();
    assert_eq!(most, Some(50));
    let share = out as f64 / (looks * 50) as f64;
    println!("permits out {share:.4}");
    assert!(share >= 0.99, "permits out {share:.4}");
}

#[tokio::test]
#[ignore = "takes most of a minute: tests/run --full"]
async fn full_none_of_ten_thousand_submissions_is_there_twice() {
    submissions_over_connections_that_end(10_000).await;
}

#[tokio::test]
#[ignore = "takes a minute: tests/run --full"]
async fn full_nine_small_callers_do_not_feel_a_hog() {
    // The hog's patience is what makes it one: by default it would be told to come back.
    let scene = Scene::default()
        .margin("250ms")
        .set(Group::Run, "max_wait: 300s");
    let stand = scene.start();
    let address = stand.gateway.address();
    let run = async move |key: &str| {
        let mut request = request("POST", "/v2/ep/run", job(&unique()));
        let key = format!("Bearer {key}").parse().unwrap();
        request.headers_mut().insert("authorization", key);
        call(address, request).await.unwrap().status
    };
    for caller in 0..10 {
        let mut health = request("GET", "/v2/ep/health", "");
        let key = format!("Bearer caller-{caller}").parse().unwrap();
        health.headers_mut().insert("authorization", key);
        assert_eq!(call(address, health).await.unwrap().status, 200);
    }
    let began = now();
    let mut callers = JoinSet::new();
    for _ in 0..2_000 {
        callers.spawn(async move {
            loop {
                // One that made room for a small caller comes again.
                if run("caller-0").await == 429 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        });
    }
    let waits = Arc::new(Mutex::new(Vec::new()));
    for caller in 1..10 {
        let waits = waits.clone();
        callers.spawn(async move {
            let mut seconds = tokio::time::interval(Duration::from_secs(1));
            loop {
                seconds.tick().await;
                let asked = now();
                let status = run(&format!("caller-{caller}")).await;
                waits.lock().push((asked, asked.elapsed(), status));
            }
        });
    }
    tokio::time::sleep(FIRST_WINDOW).await;
    stand.upstream.emulator.reset();
    tokio::time::sleep(MINUTE).await;
    assert!(
        stand.gateway.waiting(Group::Run) > 1_500,
        "the hog did not wait"
    );
    let used = use_of_budget(&stand, Group::Run, 1000);
    callers.shutdown().await;
    stand.gateway.comes_to_rest().await;
    assert_never_over(&stand, Group::Run, 1000, 200);
    let waits = waits.lock();
    assert!(
        waits.iter().all(|&(_, _, status)| status == 200),
        "one of the nine was shed"
    );
    let settled = waits
        .iter()
        .filter(|(asked, ..)| *asked >= began + FIRST_WINDOW);
    let mut settled: Vec<_> = settled.map(|&(_, wait, _)| wait).collect();
    settled.sort_unstable();
    let p99 = settled[settled.len() * 99 / 100];
    println!("{} calls, p99 {p99:?}, used {used:.4}", settled.len());
    assert!(p99 < Duration::from_millis(200), "p99 {p99:?}");
    assert!(used >= 0.97, "used {used:.4}");
}
