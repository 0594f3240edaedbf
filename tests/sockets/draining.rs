//! The way down: what was taken ends.

use std::time::Duration;

use podgate::emulator::limits::Group;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::support::{Scene, Tight, eventually, job, post, unique, within};

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
