//! Clients that take their time: with a head, with the next one, with reading. Each is given its
//! own, and costs nobody else anything.

use std::time::Duration;

use podgate::emulator::limits::Group;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::frames::{
    CANCEL, DATA, END_STREAM, HEADERS, NO_ERROR, PREFACE, Peer, RST_STREAM, request, settings,
    window, window_update,
};
use super::support::{
    Gateway, Scene, Stand, Tight, eventually, head_of_answer, job, now, post, together, unique,
    within,
};

/// Everything a client sends before it is cut. A reset is an end too.
async fn to_the_end(client: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = within("the end", client.read_to_end(&mut all)).await;
    all
}

/// Callers that do nothing wrong are served until `others` are done.
async fn while_others_are_served(stand: &Stand, others: impl Future<Output = ()>) {
    let served = async {
        loop {
            stand.still_serves().await;
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = others => {}
        () = served => unreachable!("it serves on"),
    }
}

#[tokio::test]
async fn who_never_says_anything_is_cut() {
    let stand = Scene::default()
        .settings("timeouts: { header: 400ms, keep_alive: 30s }")
        .start();
    let gateway = &stand.gateway;
    while_others_are_served(&stand, async {
        together((0..300).map(|number| async move {
            // Some have begun to say that they speak HTTP/2.
            let first = &PREFACE[..if number % 3 == 0 {
                number % PREFACE.len()
            } else {
                0
            }];
            let began = now();
            let mut silent = gateway.send(first).await;
            assert_eq!(to_the_end(&mut silent).await, b"", "{number}");
            assert!(began.elapsed() >= Duration::from_millis(400));
        }))
        .await;
    })
    .await;
    stand.is_as_before().await;
}

#[tokio::test]
async fn a_head_that_does_not_come_is_told_so_and_cut() {
    let stand = Scene::default()
        .settings("timeouts: { header: 400ms, keep_alive: 30s }")
        .start();
    let gateway = &stand.gateway;
    let head = "GET /v2/ep/health HTTP/1.1\r\nhost: x\r\nauthorization: key\r\nx-long: ";
    while_others_are_served(&stand, async {
        together((0..100).map(|number| async move {
            let mut client = gateway.connect().await;
            if number % 2 == 1 {
                // Not its first request.
                let first = format!("{}a\r\n\r\n", head);
                client.write_all(first.as_bytes()).await.unwrap();
                assert!(
                    head_of_answer(&mut client)
                        .await
                        .starts_with("HTTP/1.1 200")
                );
            }
            let (mut reader, mut writer) = client.into_split();
            let drips = async {
                for byte in head.bytes().chain(std::iter::repeat(b'x')) {
                    if writer.write_all(&[byte]).await.is_err() {
                        break;
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            };
            let mut told = Vec::new();
            tokio::select! {
                _ = within("the end", reader.read_to_end(&mut told)) => {}
                () = drips => {}
            }
            let told = String::from_utf8(told).unwrap();
            assert!(told.starts_with("HTTP/1.1 408 "), "{number}: {told}");
        }))
        .await;
    })
    .await;
    stand.is_as_before().await;
}

#[tokio::test]
async fn an_idle_connection_is_kept_for_longer_than_a_head_may_take() {
    let stand = Scene::default()
        .settings("timeouts: { header: 200ms, keep_alive: 800ms }")
        .start();
    let gateway = &stand.gateway;
    let mut client = gateway.connect().await;
    for _ in 0..3 {
        client
            .write_all(post("/v2/ep/run", &job(&unique())).as_bytes())
            .await
            .unwrap();
        assert!(
            head_of_answer(&mut client)
                .await
                .starts_with("HTTP/1.1 200")
        );
        sleep(Duration::from_millis(400)).await;
    }
    let idle = now();
    assert_eq!(to_the_end(&mut client).await, b"");
    assert!(idle.elapsed() >= Duration::from_millis(350));
    stand.is_as_before().await;
}

/// The same of HTTP/2, where it is told that it ends.
#[tokio::test]
async fn an_idle_http2_connection_ends_when_none_of_its_streams_is_left() {
    let stand = Scene::default()
        .settings("timeouts: { header: 200ms, keep_alive: 500ms }")
        .start();
    let mut peer = Peer::connect(stand.gateway.address(), &settings(&[])).await;
    for stream in [1, 3] {
        let call = request(stream, "POST", "/v2/ep/run", &job(&unique()));
        peer.send(call).await;
        assert!(peer.is_ok(stream).await);
        sleep(Duration::from_millis(250)).await;
    }
    // One under way is no idle connection.
    let work = format!(r#"{{"input":{{"id":"{}","sleep":0.8}}}}"#, unique());
    peer.send(request(5, "POST", "/v2/ep/runsync", &work)).await;
    assert!(peer.is_ok(5).await);
    let idle = now();
    assert_eq!(peer.end().await, Some(NO_ERROR));
    assert!(idle.elapsed() >= Duration::from_millis(450));
    stand.is_as_before().await;
}

/// One permit, and whoever asks for it waits.
fn one_at_a_time(settings: &'static str) -> Scene {
    let one = Tight {
        requests: None,
        window: Duration::from_secs(10),
        concurrency: Some(1),
    };
    Scene::default()
        .limit(Group::RunSync, one)
        .set(Group::RunSync, "max_wait: 30s")
        .margin("100ms")
        .settings(settings)
}

fn large(bytes: usize) -> String {
    format!(r#"{{"input":{{"id":"{}","bytes":{bytes}}}}}"#, unique())
}

async fn another_is_served(gateway: &Gateway) {
    let answer = gateway.post("/v2/ep/runsync", job(&unique())).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
}

/// An answer that is passed on as it comes holds its permit.
#[tokio::test]
async fn a_reader_that_stops_gives_its_permit_back() {
    let stand =
        one_at_a_time("timeouts: { write: 400ms }\nbuffers: { per_request: 16KiB }").start();
    let gateway = &stand.gateway;
    let mut stopped = gateway.connect_slowly().await;
    let call = post("/v2/ep/runsync", &large(8_000_000));
    stopped.write_all(call.as_bytes()).await.unwrap();
    eventually("it has the permit", || gateway.permits(Group::RunSync) == 1).await;
    another_is_served(gateway).await;
    assert!(to_the_end(&mut stopped).await.len() < 8_000_000);
    stand.is_as_before().await;
}

/// It has nothing but a connection, and that ends too.
#[tokio::test]
async fn a_reader_that_stops_at_an_answer_that_is_held_is_cut() {
    let stand = one_at_a_time("timeouts: { write: 400ms }").start();
    let gateway = &stand.gateway;
    let mut stopped = gateway.connect_slowly().await;
    let call = post("/v2/ep/runsync", &large(1_000_000));
    stopped.write_all(call.as_bytes()).await.unwrap();
    another_is_served(gateway).await;
    eventually("it is cut", || gateway.connections() == 0).await;
    assert!(to_the_end(&mut stopped).await.len() < 1_000_000);
    stand.is_as_before().await;
}

#[tokio::test]
async fn a_reader_that_trickles_is_cut() {
    let stand =
        one_at_a_time("timeouts: { write: 400ms }\nbuffers: { per_request: 16KiB }").start();
    let gateway = &stand.gateway;
    let mut slow = gateway.connect_slowly().await;
    let call = post("/v2/ep/runsync", &large(8_000_000));
    slow.write_all(call.as_bytes()).await.unwrap();
    let trickles = async {
        while let Ok(1..) = slow.read(&mut [0; 16]).await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let ends = async {
        eventually("it has the permit", || gateway.permits(Group::RunSync) == 1).await;
        another_is_served(gateway).await;
    };
    tokio::select! {
        () = within("it ends", ends) => {}
        () = trickles => {}
    }
    drop(slow);
    stand.is_as_before().await;
}

#[tokio::test]
async fn a_slow_reader_gets_all_of_it() {
    let stand = Scene::default()
        .settings("timeouts: { write: 400ms }\nbuffers: { per_request: 16KiB }")
        .start();
    let mut slow = stand.gateway.connect_slowly().await;
    let call = post("/v2/ep/runsync", &large(300_000));
    slow.write_all(call.as_bytes()).await.unwrap();
    let (mut read, mut some) = (0, [0; 8_192]);
    while read < 300_000 {
        let more = within("more of it", slow.read(&mut some)).await.unwrap();
        assert!(more > 0, "cut after {read}");
        read += more;
        // About 300 KB a second.
        sleep(Duration::from_micros(more as u64 * 3)).await;
    }
    drop(slow);
    stand.is_as_before().await;
}

/// A stream without a window is no reason to end the connection, nor to keep its permit.
#[tokio::test]
async fn a_stream_that_is_starved_is_reset_and_the_others_go_on() {
    for settings in [
        "timeouts: { write: 400ms }",
        "timeouts: { write: 400ms }\nbuffers: { per_request: 16KiB }",
    ] {
        let stand = one_at_a_time(settings).start();
        let gateway = &stand.gateway;
        let mut peer = Peer::connect(gateway.address(), &window(0)).await;
        peer.send(request(1, "POST", "/v2/ep/runsync", &large(900_000)))
            .await;
        assert!(peer.is_ok(1).await);
        another_is_served(gateway).await;
        let reset = peer
            .until("it is reset", |frame| frame.kind == RST_STREAM)
            .await;
        assert_eq!((reset.stream, reset.code()), (1, CANCEL));
        // The next one is granted what it needs.
        peer.send(request(3, "POST", "/v2/ep/runsync", &job(&unique())))
            .await;
        peer.send(window_update(3, 10_000)).await;
        assert!(peer.is_ok(3).await);
        peer.until("its end", |frame| {
            (frame.kind, frame.stream, frame.flags) == (DATA, 3, END_STREAM)
        })
        .await;
        drop(peer);
        stand.is_as_before().await;
    }
}

#[tokio::test]
async fn a_stream_that_is_granted_a_byte_at_a_time_is_reset() {
    let stand =
        one_at_a_time("timeouts: { write: 400ms }\nbuffers: { per_request: 16KiB }").start();
    let gateway = &stand.gateway;
    let mut peer = Peer::connect(gateway.address(), &window(0)).await;
    peer.send(request(1, "POST", "/v2/ep/runsync", &large(900_000)))
        .await;
    let mut taken = 0;
    let reset = loop {
        let Ok(frame) = timeout(Duration::from_millis(20), peer.next()).await else {
            peer.send(window_update(1, 1)).await;
            continue;
        };
        match frame.expect("the connection goes on") {
            frame if frame.kind == RST_STREAM => break frame,
            frame if frame.kind == DATA => taken += frame.payload.len(),
            _ => {}
        }
    };
    assert_eq!(reset.code(), CANCEL);
    assert!(taken < 1_000, "{taken}");
    another_is_served(gateway).await;
    drop(peer);
    stand.is_as_before().await;
}

/// Answers of which nearly everything was taken, for as long as their connections last.
#[tokio::test]
async fn the_end_of_an_answer_that_nobody_takes_costs_what_it_is_long() {
    const LONG: u32 = 100_000;
    let process = Scene::default().process();
    let mut peers = Vec::new();
    let mut sizes = Vec::new();
    for round in 0..8 {
        // More is to come: what is around the output.
        let first = [window(LONG), window_update(0, 1 << 30)].concat();
        let mut peer = Peer::connect(process.listen, &first).await;
        for stream in (1..200).step_by(2) {
            let call = request(stream, "POST", "/v2/ep/runsync", &large(LONG as usize));
            peer.send(call).await;
        }
        let mut taken = 0;
        while taken < 100 * LONG as usize {
            let frame = peer.next().await.expect("the connection goes on");
            if frame.kind == DATA {
                taken += frame.payload.len();
            }
        }
        within("every permit is back", async {
            while process.under_way().await > 0 {}
        })
        .await;
        // The first ones are for what the allocator keeps, and the upstream's connections.
        if round >= 3 {
            peers.push(peer);
            sizes.push(process.resident());
        }
    }
    let more = sizes[4].saturating_sub(sizes[0]);
    assert!(more < 20_000_000, "40 MB of answers later: {sizes:?}");
}

#[tokio::test]
async fn a_peer_that_reads_nothing_is_cut() {
    let stand =
        one_at_a_time("timeouts: { write: 400ms }\nbuffers: { per_request: 16KiB }").start();
    let gateway = &stand.gateway;
    let stream = gateway.connect_slowly().await;
    let mut peer = Peer {
        stream,
        polite: true,
    };
    let grants = [PREFACE, &window(1 << 30), &window_update(0, 1 << 30)].concat();
    peer.send(grants).await;
    peer.send(request(1, "POST", "/v2/ep/runsync", &large(8_000_000)))
        .await;
    eventually("it has the permit", || gateway.permits(Group::RunSync) == 1).await;
    another_is_served(gateway).await;
    eventually("it is cut", || gateway.connections() == 0).await;
    stand.is_as_before().await;
}

/// Its kernel is well and nobody is behind it: it waits in the queue, and would for long.
#[tokio::test]
async fn a_peer_that_answers_no_ping_leaves_the_queue() {
    let stand = one_at_a_time("timeouts: { header: 300ms, keep_alive: 900ms }").start();
    let gateway = &stand.gateway;
    let work = format!(r#"{{"input":{{"id":"{}","sleep":1.5}}}}"#, unique());
    let blocker = gateway.send(post("/v2/ep/runsync", &work)).await;
    eventually("the permit is out", || gateway.permits(Group::RunSync) == 1).await;
    let mut here = Peer::connect(gateway.address(), &settings(&[])).await;
    let mut gone = Peer::connect(gateway.address(), &settings(&[])).await;
    gone.polite = false;
    for peer in [&mut here, &mut gone] {
        peer.send(request(1, "POST", "/v2/ep/runsync", &job(&unique())))
            .await;
    }
    eventually("both wait", || gateway.waiting(Group::RunSync) == 2).await;
    let leaves = async {
        gone.end().await;
        eventually("one waits", || gateway.waiting(Group::RunSync) == 1).await;
    };
    let ((), served) = tokio::join!(leaves, here.is_ok(1));
    assert!(served, "whoever answers is served");
    drop((blocker, here, gone));
    stand.is_as_before().await;
    assert_eq!(
        stand.upstream.submissions().0,
        2 + 1,
        "two, and the last check's"
    );
}

/// The body of an upload that is too slow; `payload` says how slow that is.
#[tokio::test]
async fn a_body_that_drips_is_told_so_over_http2_too() {
    let stand = Scene::default()
        .settings("timeouts: { body_idle: 300ms, body_total: 1s }")
        .start();
    let mut peer = Peer::connect(stand.gateway.address(), &settings(&[])).await;
    // Nothing may come between the bytes of a frame.
    peer.polite = false;
    let whole = request(1, "POST", "/v2/ep/run", &job(&unique()));
    peer.send(&whole[..whole.len() - 5]).await;
    let head = peer
        .until("an answer", |frame| {
            frame.kind == HEADERS && frame.stream == 1
        })
        .await;
    assert!(!head.is_ok());
    drop(peer);
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.gateway.ended("client_timeout"), 1);
    assert_eq!(stand.upstream.submissions(), (0, 0));
    stand.is_as_before().await;
}
