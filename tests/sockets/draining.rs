//! The way down: what was taken ends, whoever came in time is answered, and nobody holds it up. How a
//! process is told, and how it exits, is in `signals.rs`.

use std::time::Duration;

use podgate::emulator::limits::Group;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::frames::{
    ACK, DATA, END_STREAM, Frame, GOAWAY, HEADERS, NO_ERROR, PING, Peer, frame, request, settings,
};
use super::support::{
    Gateway, Scene, Tight, eventually, head_of_answer, job, long_job, now, post, unique, within,
};

/// No bound of a connection's own is what ends it, nor the drain's: both are longer than any test.
const PATIENT: &str = "timeouts: { header: 5m, keep_alive: 5m, drain: 5m }";

/// Asks it to end, and returns once it takes nothing new.
async fn drains(gateway: Gateway) -> JoinHandle<()> {
    let mut told = Peer::connect(gateway.address(), &settings(&[])).await;
    let drained = tokio::task::spawn_blocking(move || gateway.running.drain());
    told.until("it drains", |frame| frame.kind == GOAWAY).await;
    drained
}

/// A connection that has carried a request and can carry another.
async fn kept(gateway: &Gateway) -> TcpStream {
    let mut kept = gateway.send(post("/v2/ep/run", &job(&unique()))).await;
    let head = head_of_answer(&mut kept).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    kept
}

/// What comes until the connection ends, in whatever way.
async fn rest(mut stream: TcpStream) -> String {
    let mut rest = Vec::new();
    let _ = within("the end", stream.read_to_end(&mut rest)).await;
    String::from_utf8(rest).unwrap()
}

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

/// There is no room for most of them: they have connected, sent their requests, and know no better.
#[tokio::test]
async fn whoever_the_kernel_has_let_in_is_served() {
    let stand = Scene::default()
        .settings("limits: { connections: 2 }")
        .start();
    let mut all = Vec::new();
    for _ in 0..12 {
        all.push(
            stand
                .gateway
                .send(post("/v2/ep/run", &job(&unique())))
                .await,
        );
    }
    // Kept as they are, these leave no room before they are told to.
    eventually("two are served", || stand.upstream.submissions() == (2, 0)).await;
    assert_eq!(stand.gateway.connections(), 2);
    let gateway = stand.gateway;
    let drained = tokio::task::spawn_blocking(move || gateway.running.drain());
    for (number, stream) in all.iter_mut().enumerate() {
        let head = head_of_answer(stream).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{number}: {head}");
    }
    within("it ends", drained).await.unwrap();
    assert_eq!(stand.upstream.submissions(), (12, 0));
}

/// Its client could not know when it sent it.
#[tokio::test]
async fn a_request_on_a_kept_connection_is_answered_and_is_the_last_on_it() {
    let stand = Scene::default().settings(PATIENT).start();
    let mut kept = kept(&stand.gateway).await;
    let drained = drains(stand.gateway).await;
    let two = post("/v2/ep/run", &job(&unique())).repeat(2);
    kept.write_all(two.as_bytes()).await.unwrap();
    let head = head_of_answer(&mut kept).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    assert_eq!(rest(kept).await, "");
    within("it ends", drained).await.unwrap();
    assert_eq!(stand.upstream.submissions(), (2, 0));
}

/// The same over HTTP/2, where a client is asked whether it knows by now.
#[tokio::test]
async fn a_request_that_crosses_the_goaway_is_answered() {
    let stand = Scene::default().settings(PATIENT).start();
    let mut peer = Peer::connect(stand.gateway.address(), &settings(&[])).await;
    peer.send(request(1, "GET", "/nothing", "")).await;
    assert!(!peer.is_ok(1).await);
    peer.polite = false;
    let drained = drains(stand.gateway).await;
    peer.send(request(3, "POST", "/v2/ep/run", &job(&unique())))
        .await;
    let (mut told, mut asked) = (None, None);
    let answer = peer.until("an answer", |frame| {
        match frame.kind {
            GOAWAY => told = Some(frame.code()),
            PING => asked = Some(frame.payload.clone()),
            _ => {}
        }
        (frame.kind, frame.stream) == (HEADERS, 3)
    });
    assert!(answer.await.is_ok());
    assert_eq!(told, Some(NO_ERROR));
    peer.send(frame(PING, ACK, 0, &asked.expect("a ping")))
        .await;
    assert_eq!(peer.end().await, Some(NO_ERROR));
    within("it ends", drained).await.unwrap();
    assert_eq!(stand.upstream.submissions(), (1, 0));
}

#[tokio::test]
async fn streams_under_way_end_as_if_nothing_were() {
    let stand = Scene::default().settings(PATIENT).start();
    // Long enough to be told in the middle of it.
    let words = json!({
        "stream": true, "gap": 0.02,
        "messages": [{"role": "user", "content": "word ".repeat(60)}],
    });
    let path = "/v2/ep/openai/v1/chat/completions";
    let mut events = stand.gateway.send(post(path, &words.to_string())).await;
    let mut begun = [0; 400];
    events.read_exact(&mut begun).await.unwrap();
    let mut peer = Peer::connect(stand.gateway.address(), &settings(&[])).await;
    let work = long_job(&unique(), 1.5);
    peer.send(request(1, "POST", "/v2/ep/runsync", &work)).await;
    peer.send(request(3, "POST", path, &words.to_string()))
        .await;
    peer.until("its events", |frame| {
        (frame.kind, frame.stream) == (DATA, 3)
    })
    .await;
    eventually("its job is there", || {
        stand.upstream.seen("ep", Group::RunSync)["arrived"] == 1
    })
    .await;

    let drained = drains(stand.gateway).await;
    let (mut whole, mut told, mut job, mut said) = (0, None, None, Vec::new());
    while whole < 2 || told.is_none() {
        let next = peer.next().await.expect("neither stream is cut");
        match (next.kind, next.stream) {
            (GOAWAY, _) => told = Some(next.code()),
            (HEADERS, 1) => job = Some(next.is_ok()),
            (DATA, 3) => said.extend_from_slice(&next.payload),
            _ => {}
        }
        whole += u32::from(is_last(&next));
    }
    assert_eq!(told, Some(NO_ERROR));
    assert_eq!(job, Some(true));
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("data: [DONE]"), "{said}");
    peer.end().await;

    let said = rest(events).await;
    assert!(said.contains("data: [DONE]"), "{said}");
    assert!(said.ends_with("0\r\n\r\n"), "cut: {said}");
    within("it ends", drained).await.unwrap();
}

fn is_last(frame: &Frame) -> bool {
    frame.kind == DATA && frame.flags & END_STREAM != 0
}

/// Its clients have nothing to wait for, and are told so.
#[tokio::test]
async fn with_nothing_under_way_it_ends_long_before_its_bound() {
    let stand = Scene::default().settings(PATIENT).start();
    let idle = kept(&stand.gateway).await;
    let silent = stand.gateway.connect().await;
    let mut peer = Peer::connect(stand.gateway.address(), &settings(&[])).await;
    eventually("all are in", || stand.gateway.connections() == 3).await;
    let drained = drains(stand.gateway).await;
    assert_eq!(peer.end().await, Some(NO_ERROR));
    assert_eq!(rest(idle).await, "");
    assert_eq!(rest(silent).await, "");
    within("it ends", drained).await.unwrap();
}

/// Each of them would wait for minutes more.
#[tokio::test]
async fn who_still_waits_at_the_bound_is_told_so_and_nothing_is_submitted_for_it() {
    let one = Tight {
        requests: None,
        window: Duration::from_secs(10),
        concurrency: Some(1),
    };
    let stand = Scene::default()
        .limit(Group::RunSync, one)
        .set(Group::RunSync, "max_wait: 5m")
        // A tenth of it is left for their answers.
        .settings("timeouts: { drain: 5s }")
        .start();
    let gateway = stand.gateway;
    let work = long_job(&unique(), 60.0);
    let works = gateway.send(post("/v2/ep/runsync", &work)).await;
    eventually("it works", || stand.upstream.submissions() == (1, 0)).await;
    let mut waiters = Vec::new();
    for _ in 0..20 {
        waiters.push(gateway.send(post("/v2/ep/runsync", &job(&unique()))).await);
    }
    let mut peer = Peer::connect(gateway.address(), &settings(&[])).await;
    peer.send(request(1, "POST", "/v2/ep/runsync", &job(&unique())))
        .await;
    eventually("all wait", || gateway.waiting(Group::RunSync) == 21).await;

    let drained = drains(gateway).await;
    for waiter in waiters {
        let told = rest(waiter).await;
        assert!(told.starts_with("HTTP/1.1 503"), "{told}");
        assert!(told.contains("\r\nretry-after: "), "{told}");
        assert!(told.contains("\r\nconnection: close\r\n"), "{told}");
        assert!(told.contains(r#""outcome":"draining""#), "{told}");
    }
    let told = peer.until("an answer", |frame| frame.kind == DATA).await;
    let told = String::from_utf8(told.payload).unwrap();
    assert!(told.contains(r#""outcome":"draining""#), "{told}");
    // Nobody can say what has become of the one that works: it is cut.
    assert_eq!(rest(works).await, "");
    within("it ends", drained).await.unwrap();
    assert_eq!(stand.upstream.submissions(), (1, 0));
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

/// Neither does one that says half of a head, or one that does not say that it knows.
#[tokio::test]
async fn no_client_holds_it_longer_than_its_bound() {
    let stand = Scene::default()
        .settings("timeouts: { header: 5m, keep_alive: 5m, drain: 1s }")
        .start();
    let half = "POST /v2/ep/run HTTP/1.1\r\nhost: x\r\ncont";
    let slow = stand.gateway.send(half).await;
    let mut deaf = Peer::connect(stand.gateway.address(), &settings(&[])).await;
    deaf.polite = false;
    eventually("both are in", || stand.gateway.connections() == 2).await;
    let drained = drains(stand.gateway).await;
    within("it ends", drained).await.unwrap();
    drop((slow, deaf));
}
