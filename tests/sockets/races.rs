//! Connections that end at any moment, thousands of times: what was submitted is there once, and
//! what was answered is there.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use podgate::demo::client::Client;
use podgate::emulator::limits::Group;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::support::{Random, Scene, Tight, job, unique, within};

/// Stands between podgate and its upstream, and ends every connection after a while: in the middle
/// of a request, of an answer, or between two.
struct Cutter {
    address: SocketAddr,
    cut: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Cutter {
    async fn before(upstream: SocketAddr, longest: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cut = Arc::<AtomicUsize>::default();
        let count = cut.clone();
        let serving = tokio::spawn(async move {
            let random = Arc::new(Mutex::new(Random::new(8)));
            let mut relays = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (random, count) = (random.clone(), count.clone());
                relays.spawn(async move {
                    let (lives, reset) = {
                        let random = random.lock();
                        let micros = random.below(longest.as_micros() as usize);
                        (Duration::from_micros(micros as u64), random.below(2) == 0)
                    };
                    relay(client, upstream, lives, reset, &count).await;
                });
            }
        });
        Self {
            address,
            cut,
            serving,
        }
    }
}

async fn relay(
    mut client: TcpStream,
    upstream: SocketAddr,
    lives: Duration,
    reset: bool,
    cut: &AtomicUsize,
) {
    let mut server = TcpStream::connect(upstream).await.unwrap();
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let relayed = tokio::io::copy_bidirectional(&mut client, &mut server);
    if tokio::time::timeout(lives, relayed).await.is_err() {
        cut.fetch_add(1, Ordering::Relaxed);
        if reset {
            client.set_zero_linger().unwrap();
        }
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// So many submissions, a hundred at once.
pub async fn submissions_over_connections_that_end(calls: usize) {
    const AT_ONCE: usize = 100;
    let none = Tight {
        requests: None,
        window: Duration::from_secs(10),
        concurrency: None,
    };
    let stand = Scene::default()
        .margin("50ms")
        .limit(Group::Run, none)
        .limit(Group::Status, none)
        .start();
    let cutter = Cutter::before(stand.upstream.address, Duration::from_millis(60)).await;
    // The stand's own podgate has nothing to do.
    let podgate = Scene::default()
        .margin("50ms")
        .limit(Group::Run, none)
        .gateway(cutter.address);
    let mut callers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let address = podgate.address();
        callers.spawn(async move {
            let mut client = Client::new(address, "key");
            let (mut known, mut failed) = (Vec::new(), 0);
            for _ in 0..calls / AT_ONCE {
                let reply = client
                    .call(Method::POST, "/v2/ep/run", &job(&unique()))
                    .await;
                let reply = reply.expect("podgate answers");
                let answer: Value = serde_json::from_slice(&reply.body).unwrap();
                match reply.status.as_u16() {
                    200 => known.push(answer["id"].as_str().unwrap().to_owned()),
                    502 => {
                        // Some do not live long enough to be connections.
                        let outcome = answer["outcome"].as_str().unwrap();
                        let known = ["upstream_broke", "upstream_unreachable"];
                        assert!(known.contains(&outcome), "{answer}");
                        failed += 1;
                    }
                    other => panic!("{other}: {answer}"),
                }
            }
            (known, failed)
        });
    }
    let (mut known, mut failed) = (HashSet::new(), 0);
    let all = async {
        while let Some(caller) = callers.join_next().await {
            let (ids, more) = caller.unwrap();
            for id in ids {
                assert!(known.insert(id), "one job is two callers'");
            }
            failed += more;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), all)
        .await
        .expect("all are answered");
    podgate.comes_to_rest().await;

    let (distinct, repeated) = stand.upstream.submissions();
    let cut = cutter.cut.load(Ordering::Relaxed);
    println!(
        "{calls} calls: {} known, {failed} failed, {distinct} jobs; {cut} cuts",
        known.len()
    );
    assert_eq!(repeated, 0);
    assert_eq!(known.len() + failed, calls);
    assert!(distinct >= known.len() as u64 && distinct <= calls as u64);
    assert!(
        failed > 0 && cut > calls / 100,
        "nothing was put to the test"
    );
    let arrived = stand.upstream.seen("ep", Group::Run)["arrived"].as_u64();
    assert!(arrived.unwrap() <= calls as u64, "one too many arrived");

    // Each that was told to its caller is there.
    let mut client = Client::new(stand.upstream.address, "key");
    let look = async {
        for id in &known {
            let path = format!("/v2/ep/status/{id}");
            let reply = client.call(Method::GET, &path, "").await.unwrap();
            assert_eq!(reply.status, 200, "{id}");
        }
    };
    within("all are looked up", look).await;
}

#[tokio::test]
async fn no_submission_is_there_twice_however_connections_end() {
    submissions_over_connections_that_end(2_000).await;
}
