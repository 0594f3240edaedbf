//! Answers on their way to clients that are slower than the upstream, and to those that leave.

use std::sync::Arc;
use std::time::Duration;

use podgate::emulator::limits::Group;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::scripted::Scripted;
use super::support::{Gateway, Scene, eventually, now, post, together, within};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const CHUNKS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                      transfer-encoding: chunked\r\n\r\n";
/// Larger than every buffer between here and there.
const LARGE: usize = 24 << 20;

/// Answers its first request with a large body of a declared length, and serves after that.
async fn large() -> Scripted {
    Scripted::start(|mut connection| async move {
        while let Some(received) = connection.receive().await {
            if received.body == b"large" {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
                connection.write(head).await;
                connection.write(vec![b'x'; LARGE]).await;
            } else {
                connection.write(OK).await;
            }
        }
    })
    .await
}

/// One permit, and a least rate of 64 KiB a second.
fn one_at_a_time() -> Scene {
    Scene::default()
        .margin("50ms")
        .settings("buffers: { per_request: 64KiB }\ntimeouts: { write: 1s }")
        .set(Group::Run, "rate: none, concurrency: 1, max_wait: 25s")
}

async fn ask_for(gateway: &Gateway, body: &str) -> TcpStream {
    let mut client = gateway.connect_slowly().await;
    let call = post("/v2/ep/run", body);
    client.write_all(call.as_bytes()).await.unwrap();
    client
}

/// Reads 16 KiB a second: something all the time, and never enough.
async fn trickle(mut client: TcpStream) -> usize {
    let mut read = 0;
    let mut some = [0; 1_600];
    loop {
        match client.read(&mut some).await {
            Ok(0) | Err(_) => return read,
            Ok(bytes) => read += bytes,
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_slow_reader_does_not_keep_the_permit_from_others() {
    let upstream = large().await;
    let (gateway, _machine) = one_at_a_time().before(upstream.address);
    let slow = ask_for(&gateway, "large").await;
    eventually("the permit is out", || gateway.permits(Group::Run) == 1).await;
    let other = async {
        let asked = now();
        let answer = gateway.post("/v2/ep/run", "{}").await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        asked.elapsed()
    };
    let mut trickling = tokio::spawn(trickle(slow));
    let waited = within("another is served", other).await;
    // Two rounds of the least rate, on a busy machine.
    assert!(waited < Duration::from_secs(15), "{waited:?}");
    // What is left in the buffers is its own; that it is not all it sees at their end.
    let ended = tokio::time::timeout(Duration::from_millis(500), &mut trickling).await;
    match ended {
        Ok(read) => assert!(read.unwrap() < LARGE),
        Err(_) => trickling.abort(),
    }
    gateway.comes_to_rest().await;
}

#[tokio::test]
async fn a_reader_that_is_fast_enough_gets_all_of_it() {
    let upstream = large().await;
    // One worker has one pool.
    let (gateway, _machine) = one_at_a_time().workers(1).before(upstream.address);
    for _ in 0..3 {
        let mut client = ask_for(&gateway, "large").await;
        let mut read = vec![0; 64 * 1024];
        let mut all = 0;
        let take = async {
            while all < LARGE {
                all += client.read(&mut read).await.unwrap();
            }
        };
        within("all of it", take).await;
        eventually("the permit is back", || gateway.permits(Group::Run) == 0).await;
    }
    assert_eq!(upstream.connections(), 1, "its connection is used again");
    gateway.comes_to_rest().await;
}

/// Chunks that come in the upstream's own time; nobody reads them.
#[tokio::test]
async fn what_fits_the_buffer_gives_the_permit_back_with_the_upstreams_end() {
    let upstream = Scripted::start(|mut connection| async move {
        connection.receive().await;
        connection.write(CHUNKS).await;
        for _ in 0..50 {
            let chunk = "x".repeat(10_000);
            connection.write(format!("2710\r\n{chunk}\r\n")).await;
            sleep(Duration::from_millis(2)).await;
        }
        connection.write("0\r\n\r\n").await;
        connection.receive().await;
    })
    .await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let mut slow = ask_for(&gateway, "{}").await;
    eventually("it has begun", || gateway.permits(Group::Run) == 1).await;
    eventually("the permit is back", || gateway.permits(Group::Run) == 0).await;
    assert_eq!(gateway.connections(), 1, "it has not been read");
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n0\r\n\r\n") {
        let mut some = [0; 4_096];
        let bytes = within("more of it", slow.read(&mut some)).await.unwrap();
        assert_ne!(bytes, 0, "cut");
        read.extend_from_slice(&some[..bytes]);
    }
    let sent = read.iter().filter(|&&byte| byte == b'x').count();
    // One in the head: `text/event-stream` has none, `x-request-id` has.
    let head = read
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let of_head = read[..head].iter().filter(|&&byte| byte == b'x').count();
    assert_eq!(sent - of_head, 500_000);
}

#[tokio::test]
async fn each_event_is_passed_on_before_the_next_is_there() {
    let next = Arc::<Notify>::default();
    let told = next.clone();
    let upstream = Scripted::start(move |mut connection| {
        let told = told.clone();
        async move {
            connection.answer(CHUNKS).await;
            for number in 0..20 {
                told.notified().await;
                let event = format!("data: {number:02}\n\n");
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                connection.write(chunk).await;
            }
            told.notified().await;
            connection.write("0\r\n\r\n").await;
            connection.receive().await;
        }
    })
    .await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let mut client = gateway.send(post("/v2/ep/run", "{}")).await;
    let mut read = String::new();
    let mut until = async |end: &str| {
        while !read.ends_with(end) {
            let byte = within(end, client.read_u8()).await.unwrap();
            read.push(char::from(byte));
        }
    };
    // The head comes before there is anything else.
    until("\r\n\r\n").await;
    for number in 0..20 {
        next.notify_one();
        until(&format!("data: {number:02}\n\n\r\n")).await;
        assert_eq!(gateway.permits(Group::Run), 1);
    }
    next.notify_one();
    until("\r\n0\r\n\r\n").await;
    eventually("the permit is back", || gateway.permits(Group::Run) == 0).await;
}

/// Whether it was fast or slow, and whatever waits for it.
#[tokio::test]
async fn who_leaves_in_the_middle_takes_its_exchange_along() {
    let upstream = large().await;
    let (gateway, _machine) = Scene::default()
        .margin("50ms")
        .set(Group::Run, "rate: none, concurrency: 20, max_wait: 25s")
        .before(upstream.address);
    together((0..60).map(|number| {
        let gateway = &gateway;
        async move {
            let mut client = ask_for(gateway, "large").await;
            let mut some = vec![0; 1 + number * 2_000];
            client.read_exact(&mut some).await.unwrap();
            if number % 2 == 0 {
                client.set_zero_linger().unwrap();
            }
        }
    }))
    .await;
    gateway.comes_to_rest().await;
    assert_eq!(gateway.post("/v2/ep/run", "{}").await.status, 200);
    assert_eq!(gateway.running.shared.metrics.buffered().get(), 0);
}

/// The buffers of all answers together stay within their bound; beyond it answers stream.
#[tokio::test]
async fn slow_readers_hold_no_more_than_the_buffers_of_the_process() {
    const TOTAL: i64 = 4 << 20;
    let upstream = large().await;
    let (gateway, _machine) = Scene::default()
        .margin("50ms")
        .settings("buffers: { per_request: 1MiB, total: 4MiB }")
        .set(Group::Run, "rate: none, concurrency: none")
        .before(upstream.address);
    let buffered = || gateway.running.shared.metrics.buffered().get();
    let mut readers = Vec::new();
    for _ in 0..20 {
        readers.push(ask_for(&gateway, "large").await);
    }
    eventually("the buffers are full", || buffered() > TOTAL - (1 << 20)).await;
    for _ in 0..20 {
        assert!(buffered() <= TOTAL, "{}", buffered());
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(gateway.post("/v2/ep/run", "{}").await.status, 200);
    drop(readers);
    gateway.comes_to_rest().await;
    assert_eq!(buffered(), 0);
}
