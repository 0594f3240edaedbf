//! The same over HTTP/2, where a caller can leave in two ways: by its stream, and by the connection it
//! shares with others.

use std::collections::BTreeSet;
use std::time::Duration;

use podgate::emulator::limits::Group;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use super::disconnects::{at_once, unlimited};
use super::frames::{
    DATA, END_HEADERS, HEADERS, PREFACE, Peer, field, fields, frame, request, reset, settings,
    window, window_update,
};
use super::support::{
    Gateway, Random, Scene, Stand, eventually, job, long_job, post, together, unique, within,
};

const ROUNDS: usize = 4;
/// Connections of one round.
const PEERS: usize = 5;
/// Callers on each: a thousand in all.
const STREAMS: u32 = 50;
const AT_ONCE: usize = PEERS * STREAMS as usize;
/// Of the callers of one connection the first that is none of them.
const NEXT: u32 = 2 * STREAMS + 1;
/// What each may send or be sent: a connection begins with 65,535 bytes, which its callers share.
const SHARE: usize = 1_000;

/// The streams of one connection's callers.
fn streams() -> impl Iterator<Item = u32> {
    (0..STREAMS).map(|number| 2 * number + 1)
}

/// One round's connections, with what is sent first on every stream.
async fn callers(gateway: &Gateway, grants: &[u8], first: impl Fn(u32) -> Vec<u8>) -> Vec<Peer> {
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        let mut peer = Peer::connect(gateway.address(), grants).await;
        let all: Vec<_> = streams().flat_map(&first).collect();
        peer.send(all).await;
        peers.push(peer);
    }
    peers
}

fn submissions(path: &'static str, work: impl Fn() -> String) -> impl Fn(u32) -> Vec<u8> {
    move |stream| request(stream, "POST", path, &work())
}

/// Some reset their streams and stay connected, some close, some are reset. Returns those who stay.
async fn leave(peers: Vec<Peer>) -> Vec<Peer> {
    let mut stay = Vec::new();
    for (number, mut peer) in peers.into_iter().enumerate() {
        match number % 3 {
            0 => {
                let all: Vec<_> = streams().flat_map(reset).collect();
                // Whoever resets many streams before they were looked at is cut, and gone as well.
                let _ = peer.stream.write_all(&all).await;
                stay.push(peer);
            }
            1 => peer.stream.set_zero_linger().unwrap(),
            _ => {}
        }
    }
    stay
}

/// Waits until every stream has been looked at: they are in their order.
async fn are_begun(peers: &mut [Peer]) {
    for peer in peers {
        peer.send(request(NEXT, "GET", "/nothing", "")).await;
        assert!(!peer.is_ok(NEXT).await, "found");
    }
}

/// Reads until something of every caller's answer is there.
async fn are_being_answered(peers: &mut [Peer]) {
    // Bounded as a whole: podgate's pings are frames as well.
    let begun = together(peers.iter_mut().map(|peer| async {
        let mut begun = BTreeSet::new();
        peer.until("some of each", |frame| {
            if frame.kind == DATA {
                begun.insert(frame.stream);
            }
            begun.len() == STREAMS as usize
        })
        .await;
    }));
    within("all are being answered", begun).await;
}

/// Everything is back while some of those who left are still connected, and they are served.
async fn is_as_before(stand: &Stand, group: Group, mut stayed: Vec<Peer>) {
    let gateway = &stand.gateway;
    eventually("nobody waits and every permit is back", || {
        (gateway.waiting(group), gateway.permits(group)) == (0, 0)
    })
    .await;
    for peer in &mut stayed {
        let another = request(NEXT, "POST", "/v2/another/run", &job(&unique()));
        peer.send(another).await;
        assert!(peer.is_ok(NEXT).await, "it may ask for something else");
    }
    drop(stayed);
    stand.is_as_before().await;
}

#[tokio::test]
async fn while_the_head_is_being_sent() {
    let stand = Scene::default().start();
    let random = Random::new(11);
    let block = fields("POST", "/v2/ep/run");
    let head = frame(HEADERS, END_HEADERS, 1, &block);
    let whole = [PREFACE, &settings(&[]), &head].concat();
    for _ in 0..ROUNDS {
        together((0..AT_ONCE).map(|number| {
            let part = &whole[..random.below(whole.len())];
            let gateway = &stand.gateway;
            async move {
                let stream = gateway.send(part).await;
                if number.is_multiple_of(2) {
                    stream.set_zero_linger().unwrap();
                }
            }
        }))
        .await;
    }
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.upstream.seen("ep", Group::Run), Value::Null);
    stand.is_as_before().await;
}

/// So many bytes of a submission that has more.
fn part(stream: u32, size: usize, declared: bool) -> Vec<u8> {
    let body = job(&"x".repeat(SHARE));
    let mut block = fields("POST", "/v2/ep/run");
    if declared {
        block.extend(field("content-length", &body.len().to_string()));
    }
    let head = frame(HEADERS, END_HEADERS, stream, &block);
    [head, frame(DATA, 0, stream, &body.as_bytes()[..size])].concat()
}

#[tokio::test]
async fn while_the_body_is_being_sent() {
    let stand = unlimited().start();
    let random = Random::new(12);
    for _ in 0..ROUNDS {
        let some = |stream| part(stream, 1 + random.below(SHARE), stream % 4 == 1);
        let mut peers = callers(&stand.gateway, &settings(&[]), some).await;
        are_begun(&mut peers).await;
        drop(leave(peers).await);
    }
    stand.gateway.comes_to_rest().await;
    // A stream's task may end after its connection.
    eventually("every caller's end is known", || {
        stand.gateway.ended("client_gone") == (ROUNDS * AT_ONCE) as u64
    })
    .await;
    assert_eq!(stand.upstream.seen("ep", Group::Run), Value::Null);
    stand.is_as_before().await;
}

/// The upstream has its head, and will not get the rest.
#[tokio::test]
async fn while_the_body_is_being_passed_on() {
    let stand = unlimited()
        .settings("buffers: { per_request: 100B }")
        .start();
    let random = Random::new(13);
    let mut stayed = Vec::new();
    for round in 1..=ROUNDS {
        let some = |stream| part(stream, 200 + random.below(SHARE - 200), true);
        let peers = callers(&stand.gateway, &settings(&[]), some).await;
        eventually("all have been begun", || {
            stand.upstream.seen("ep", Group::Run)["arrived"] == round * AT_ONCE
        })
        .await;
        stayed.extend(leave(peers).await);
    }
    is_as_before(&stand, Group::Run, stayed).await;
    let others = (ROUNDS * 2 + 1) as u64;
    assert_eq!(stand.upstream.submissions(), (others, 0), "none was whole");
}

#[tokio::test]
async fn while_waiting_in_the_queue() {
    let stand = unlimited()
        .limit(Group::Run, at_once(1))
        .set(Group::Run, "max_wait: 5m")
        .start();
    let gateway = &stand.gateway;
    stand.upstream.faults(json!({"stall": "head", "count": 1}));
    let blocker = gateway.send(post("/v2/ep/run", &job(&unique()))).await;
    eventually("no permit is left", || {
        stand.upstream.seen("ep", Group::Run)["arrived"] == 1
    })
    .await;
    let submitted = stand.upstream.submissions();
    let before = gateway.lane(Group::Run).unwrap();
    let mut stayed = Vec::new();
    for _ in 0..ROUNDS {
        let call = submissions("/v2/ep/run", || job(&unique()));
        let peers = callers(gateway, &settings(&[]), call).await;
        eventually("all wait", || gateway.waiting(Group::Run) == AT_ONCE).await;
        stayed.extend(leave(peers).await);
        eventually("none waits", || gateway.waiting(Group::Run) == 0).await;
    }
    let after = gateway.lane(Group::Run).unwrap();
    assert_eq!(after.window_used, before.window_used);
    assert_eq!(after.permits_in_use, before.permits_in_use);
    drop(blocker);
    eventually("its permit is back", || gateway.permits(Group::Run) == 0).await;
    assert_eq!(stand.upstream.submissions(), submitted);
    assert_eq!(stand.upstream.seen("ep", Group::Run)["arrived"], 1);
    let gone = (ROUNDS * AT_ONCE) as u64 + 1;
    assert_eq!(gateway.ended("client_gone"), gone);
    is_as_before(&stand, Group::Run, stayed).await;
}

/// All permits come back at one known moment; everybody who waits leaves about then.
#[tokio::test]
async fn just_when_being_granted() {
    let stand = unlimited()
        .limit(Group::RunSync, at_once(AT_ONCE as u32))
        .set(Group::RunSync, "max_wait: 1m")
        .start();
    let gateway = &stand.gateway;
    let random = Random::new(15);
    for _ in 0..ROUNDS {
        let work = submissions("/v2/ep/runsync", || long_job(&unique(), 600.0));
        let blockers = callers(gateway, &settings(&[]), work).await;
        eventually("no permit is left", || {
            gateway.permits(Group::RunSync) == AT_ONCE as u32
        })
        .await;
        let work = submissions("/v2/ep/runsync", || job(&unique()));
        let waiters = callers(gateway, &settings(&[]), work).await;
        eventually("all wait", || gateway.waiting(Group::RunSync) == AT_ONCE).await;
        drop(blockers);
        // The margin, and what it takes to notice.
        sleep(Duration::from_micros(296_000 + random.below(8_000) as u64)).await;
        drop(leave(waiters).await);
        gateway.comes_to_rest().await;
    }
    let (distinct, repeated) = stand.upstream.submissions();
    println!("{distinct} of {} submitted", 2 * ROUNDS * AT_ONCE);
    assert!(distinct <= 2 * (ROUNDS * AT_ONCE) as u64 && repeated == 0);
    stand.is_as_before().await;
}

/// At any moment from the sending to the answer.
#[tokio::test]
async fn while_the_request_is_on_its_way() {
    let stand = unlimited().start();
    let gateway = &stand.gateway;
    let faults = json!({"latency_ms": 10, "jitter_ms": 10});
    stand.upstream.faults(faults);
    let random = Random::new(14);
    for _ in 0..ROUNDS {
        let call = submissions("/v2/ep/run", || job(&unique()));
        let peers = callers(gateway, &settings(&[]), call).await;
        let moments = peers.into_iter().map(|peer| {
            let moment = Duration::from_micros(random.below(30_000) as u64);
            async move {
                sleep(moment).await;
                drop(leave(vec![peer]).await);
            }
        });
        together(moments).await;
    }
    gateway.comes_to_rest().await;
    let (distinct, repeated) = stand.upstream.submissions();
    assert!(distinct <= (ROUNDS * AT_ONCE) as u64 && repeated == 0);
    stand.is_as_before().await;
}

/// The jobs are there, their answers are nobody's.
#[tokio::test]
async fn while_the_upstream_works() {
    let stand = unlimited()
        .limit(Group::RunSync, at_once(AT_ONCE as u32))
        .start();
    let gateway = &stand.gateway;
    let mut stayed = Vec::new();
    for round in 1..=ROUNDS {
        let work = submissions("/v2/ep/runsync", || long_job(&unique(), 60.0));
        let peers = callers(gateway, &settings(&[]), work).await;
        eventually("all are there", || {
            stand.upstream.submissions() == ((round * AT_ONCE) as u64, 0)
        })
        .await;
        stayed.extend(leave(peers).await);
    }
    is_as_before(&stand, Group::RunSync, stayed).await;
}

/// Their windows are full: what is left of the answers is held for them, and then for nobody.
#[tokio::test]
async fn in_the_middle_of_a_large_answer() {
    let stand = unlimited()
        .limit(Group::RunSync, at_once(AT_ONCE as u32))
        .settings("buffers: { per_request: 16KiB }")
        .start();
    let gateway = &stand.gateway;
    let mut stayed = Vec::new();
    for _ in 0..ROUNDS {
        let work = submissions("/v2/ep/runsync", || {
            format!(r#"{{"input":{{"id":"{}","bytes":200000}}}}"#, unique())
        });
        let mut peers = callers(gateway, &window(SHARE as u32), work).await;
        are_being_answered(&mut peers).await;
        stayed.extend(leave(peers).await);
    }
    is_as_before(&stand, Group::RunSync, stayed).await;
    let all = (ROUNDS * AT_ONCE + ROUNDS * 2 + 1) as u64;
    assert_eq!(stand.upstream.submissions(), (all, 0));
}

#[tokio::test]
async fn in_the_middle_of_a_stream_of_events() {
    let stand = unlimited()
        .limit(Group::OpenAi, at_once(AT_ONCE as u32))
        .start();
    let words = json!({
        "stream": true, "gap": 0.05,
        "messages": [{"role": "user", "content": "word ".repeat(150)}],
    });
    let mut stayed = Vec::new();
    for _ in 0..ROUNDS {
        let call = submissions("/v2/ep/openai/v1/chat/completions", || words.to_string());
        // Or those who are answered first leave the others no window.
        let grants = [settings(&[]), window_update(0, 1 << 24)].concat();
        let mut peers = callers(&stand.gateway, &grants, call).await;
        are_being_answered(&mut peers).await;
        stayed.extend(leave(peers).await);
    }
    is_as_before(&stand, Group::OpenAi, stayed).await;
}
