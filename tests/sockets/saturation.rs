//! Ten seconds of more than there is room for, and the upstream never refuses anything.

use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use podgate::demo::client::Client;
use podgate::emulator::limits::Group;
use podgate::emulator::policer::Policer;
use serde_json::Value;
use tokio::task::JoinSet;

use super::support::{Scene, Stand, Tight, eventually, job, machine, unique};

/// Callers at work until they are dropped. All but the pollers have a key of their own.
pub struct Crowd(JoinSet<()>);

impl Crowd {
    /// So many submit without a pause, so many poll.
    pub fn at(address: SocketAddr, submitters: usize, pollers: usize) -> Self {
        let mut tasks = JoinSet::new();
        for number in 0..submitters {
            let client = Client::new(address, &format!("key-{number}"));
            tasks.spawn(submit_always(client));
        }
        for _ in 0..pollers {
            tasks.spawn(poll_always(Client::new(address, "key-poller")));
        }
        Self(tasks)
    }

    pub async fn leave(mut self) {
        self.0.shutdown().await;
    }
}

async fn submit(client: &mut Client) -> Option<Value> {
    let reply = client
        .call(Method::POST, "/v2/ep/run", &job(&unique()))
        .await;
    let reply = reply.ok()?;
    match reply.retry_after {
        Some(wait) => tokio::time::sleep(wait).await,
        None => return serde_json::from_slice(&reply.body).ok(),
    }
    None
}

/// Until the upstream has accepted its key, a caller shares the flow of its address.
pub async fn introduce(client: &mut Client) {
    loop {
        let reply = client.call(Method::GET, "/v2/ep/health", "").await;
        match reply.map(|reply| reply.retry_after) {
            Ok(None) => return,
            Ok(Some(wait)) => tokio::time::sleep(wait).await,
            Err(_) => {}
        }
    }
}

async fn submit_always(mut client: Client) {
    introduce(&mut client).await;
    loop {
        submit(&mut client).await;
    }
}

async fn poll_always(mut client: Client) {
    let path = loop {
        if let Some(Value::String(id)) = submit(&mut client).await.map(|view| view["id"].clone()) {
            break format!("/v2/ep/status/{id}");
        }
    };
    loop {
        let reply = client.call(Method::GET, &path, "").await;
        if let Some(wait) = reply.ok().and_then(|reply| reply.retry_after) {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Promise 1, as the upstream saw it.
pub fn assert_never_over(stand: &Stand, group: Group, requests: u32, concurrency: u32) {
    let seen = stand.upstream.seen("ep", group);
    let stall = stand.upstream.longest_stall();
    let what = format!("{}, longest stall {stall:?}: {seen}", group.name());
    stand.was_never_over();
    assert!(
        seen["max_in_window"].as_u64() <= Some(requests.into()),
        "{what}"
    );
    assert!(
        seen["max_in_flight"].as_u64() <= Some(concurrency.into()),
        "{what}"
    );
    println!("{what}");
}

/// With windows of ten seconds, and with such that many of them pass.
#[tokio::test]
async fn ten_seconds_of_saturation_without_a_429() {
    let machine = machine();
    let short = |requests, concurrency| Tight {
        requests: Some(requests),
        window: Duration::from_secs(1),
        concurrency: Some(concurrency),
    };
    let mut stands = Vec::new();
    for policer in [Policer::SlidingLog, Policer::ClosedWindow] {
        let documented = Scene::default().policer(policer);
        let many_windows = Scene::default()
            .policer(policer)
            .limit(Group::Run, short(100, 20))
            .limit(Group::Status, short(200, 40));
        for (scene, run, status) in [
            (documented, (1000, 200), (2000, 400)),
            (many_windows, (100, 20), (200, 40)),
        ] {
            let stand = scene.beside(machine.clone());
            let crowd = Crowd::at(stand.gateway.address(), 300, 60);
            stands.push((stand, crowd, run, status));
        }
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    for (stand, crowd, run, status) in stands {
        // Where there is room for all, nothing is shown. At any one moment there may be, if a busy machine
        // has not run the callers.
        eventually("somebody waits", || stand.gateway.waiting(Group::Run) > 0).await;
        crowd.leave().await;
        stand.gateway.comes_to_rest().await;
        assert_never_over(&stand, Group::Run, run.0, run.1);
        assert_never_over(&stand, Group::Status, status.0, status.1);
    }
}
