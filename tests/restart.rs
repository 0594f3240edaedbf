//! A podgate that ends, by signal or by being killed, and the next one that takes its place: the
//! upstream never sees more than its limit, however often that happens.

mod process;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use podgate::emulator::limits::Group;
use process::{Podgate, folder, upstream};
use tokio::net::TcpStream;

const N: u32 = 20;

/// Calls `address` for as long as it answers and nobody says to stop; counts what was forwarded.
async fn call_on(address: SocketAddr, stop: Arc<AtomicBool>, forwarded: Arc<AtomicUsize>) {
    let Ok(stream) = TcpStream::connect(address).await else {
        return;
    };
    let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(stream)).await else {
        return;
    };
    tokio::spawn(connection);
    while !stop.load(Ordering::Relaxed) {
        let request = Request::get("/v2/ep/health").header("host", "podgate");
        let request = request.header("authorization", "Bearer k");
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let Ok(answer) = sender.send_request(request).await else {
            return;
        };
        if answer.status() == 200 {
            forwarded.fetch_add(1, Ordering::Relaxed);
        }
        if answer.into_body().collect().await.is_err() {
            return;
        }
    }
}

/// Six lives under full load, each ended by `signal`; what the upstream saw of it.
async fn lives(name: &str, signal: &str, remembers: bool) -> (u64, u64, usize) {
    let (emulator, upstream) = upstream(Group::Health, N, None);
    let folder = folder(name);
    let config = folder.join("podgate.yaml");
    let state = if remembers { "state_dir: state\n" } else { "" };
    let text = format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nworkers: 1\n{state}\
         upstream: {{ url: 'http://{upstream}' }}\n\
         groups: {{ health: {{ rate: {{ requests: {N}, per: 1s }}, concurrency: none }} }}\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut forwarded = 0;
    for _ in 0..6 {
        let podgate = Podgate::start(&config);
        let (stop, count) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let callers: Vec<_> = (0..8)
            .map(|_| tokio::spawn(call_on(podgate.address, stop.clone(), count.clone())))
            .collect();
        // It ends in the middle of its work, with a window spent and callers waiting.
        tokio::time::timeout(Duration::from_secs(30), async {
            while count.load(Ordering::Relaxed) < N as usize {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("a window is forwarded");
        stop.store(true, Ordering::Relaxed);
        let signal = signal.to_owned();
        let ended = tokio::task::spawn_blocking(move || podgate.end(&signal));
        ended.await.unwrap();
        for caller in callers {
            caller.await.unwrap();
        }
        forwarded += count.load(Ordering::Relaxed);
    }
    let seen = &emulator.stats_json()["endpoints"]["ep"]["health"];
    let most = seen["max_in_window"].as_u64().unwrap();
    let refused = seen["refused"]["rate"].as_u64().unwrap();
    (most, refused, forwarded)
}

#[tokio::test]
async fn a_podgate_that_ends_well_tells_the_next_one_what_was_spent() {
    let (most, refused, forwarded) = lives("restart-term", "-TERM", true).await;
    assert_eq!((most, refused), (u64::from(N), 0));
    assert!(forwarded >= 6 * N as usize);
}

#[tokio::test]
async fn one_that_is_killed_leaves_a_window_in_which_nothing_goes() {
    let (most, refused, _) = lives("restart-kill", "-KILL", true).await;
    assert_eq!((most, refused), (u64::from(N), 0));
}

/// What the README says of it, and the proof that the two above could fail.
#[tokio::test]
async fn one_that_keeps_no_state_may_spend_a_window_twice() {
    let (_, refused, _) = lives("restart-forgets", "-KILL", false).await;
    assert!(refused > 0);
}

#[test]
fn a_second_podgate_waits_for_the_state_of_the_first() {
    let folder = folder("restart-lock");
    let config = folder.join("podgate.yaml");
    let text = "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nworkers: 1\nstate_dir: state\n\
                upstream: { url: 'http://127.0.0.1:9' }\n";
    std::fs::write(&config, text).unwrap();
    let mut first = Some(Podgate::start(&config));
    let second = Podgate::start_seeing(&config, |line| {
        if line.contains("waiting for it to end") {
            first.take().expect("it says so once").end("-TERM");
        }
    });
    assert!(first.is_none(), "two at once");
    second.end("-TERM");
    assert!(folder.join("state/lanes.json").exists());
    assert!(!folder.join("state/beat.json").exists());
}
