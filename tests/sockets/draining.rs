//! The way down: what was taken ends.

use std::time::Duration;

use podgate::emulator::limits::Group;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::support::{Scene, Tight, eventually, job, now, post, unique, within};

/// Whoever waits is served, also where the worker that wakes its lane has nothing left of its own.
#[tokio::test]
async fn who_waits_when_podgate_ends_is_served() {
    let stand = Scene::default()
        .workers(4)
        .limit(
            Group::Run,
            Tight {
                requests: Some(1),
                window: Duration::from_millis(100),
                concurrency: None,
            },
        )
        .margin("300ms")
        .set(Group::Run, "max_wait: 20s")
        .start();
    let mut callers = Vec::new();
    for waiting in 0..20_usize {
        callers.push(
            stand
                .gateway
                .send(post("/v2/ep/run", &job(&unique())))
                .await,
        );
        // One after the other: the first to wait is the one whose worker wakes the lane.
        eventually("it waits or has gone", || {
            let lane = stand.gateway.lane(Group::Run);
            lane.is_some_and(|lane| lane.waiting + lane.window_used as usize > waiting)
        })
        .await;
    }
    let (address, gateway) = (stand.gateway.address(), stand.gateway);
    let drained = tokio::task::spawn_blocking(move || gateway.running.drain());
    for (number, mut caller) in callers.into_iter().enumerate() {
        let mut head = [0; 15];
        within("an answer", caller.read_exact(&mut head))
            .await
            .unwrap_or_else(|error| panic!("{number}: {error}"));
        assert_eq!(&head, b"HTTP/1.1 200 OK", "{number}");
    }
    within("it ends", drained).await.unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    assert_eq!(stand.upstream.submissions(), (20, 0));
}

/// A call that never ends holds the process no longer than it was told.
#[tokio::test]
async fn what_does_not_end_within_the_drain_is_cut() {
    let stand = Scene::default()
        .settings("timeouts: { drain: 200ms }")
        .start();
    stand.upstream.faults(json!({"stall": "head"}));
    let gateway = stand.gateway;
    let _caller = gateway.send(post("/v2/ep/run", &job(&unique()))).await;
    eventually("it is under way", || gateway.permits(Group::Run) == 1).await;
    let began = now();
    let drained = tokio::task::spawn_blocking(move || gateway.running.drain());
    within("it ends", drained).await.unwrap();
    // Far below the response timeout of the group and the default of the drain, 30 s each.
    assert!(began.elapsed() < Duration::from_secs(15));
}
