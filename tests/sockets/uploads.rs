//! Bodies: what is too large is no job, whoever is refused reads why, and nobody holds what others
//! need by sending slowly.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use podgate::emulator::limits::Group;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::raw::{Raw, Reply, echo};
use super::scripted::Scripted;
use super::support::{Gateway, Scene, Stand, eventually, job, now, together, unique, within};

const MIB: usize = 1 << 20;

/// A submission of so many bytes.
fn padded(size: usize) -> Vec<u8> {
    let mut body = job(&unique()).into_bytes();
    assert!(body.len() <= size);
    body.resize(size, b' ');
    body
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    Declared,
    Chunked,
}

fn head(path: &str, framing: Framing, size: usize, more: &str) -> String {
    let framing = match framing {
        Framing::Declared => format!("content-length: {size}"),
        Framing::Chunked => "transfer-encoding: chunked".to_owned(),
    };
    format!("POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: key\r\n{framing}\r\n{more}\r\n")
}

fn framed(framing: Framing, body: &[u8]) -> Vec<u8> {
    match framing {
        Framing::Declared => body.to_vec(),
        Framing::Chunked => {
            let mut framed = Vec::with_capacity(body.len() + 64);
            for chunk in body.chunks(100_000) {
                framed.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                framed.extend_from_slice(chunk);
                framed.extend_from_slice(b"\r\n");
            }
            framed.extend_from_slice(b"0\r\n\r\n");
            framed
        }
    }
}

/// One upload, sent to its end, and its answer.
async fn upload(gateway: &Gateway, path: &str, framing: Framing, body: &[u8]) -> Reply {
    let mut client = Raw::connect(gateway).await;
    let head = head(path, framing, body.len(), "");
    assert!(client.write(head).await && client.write(framed(framing, body)).await);
    client.reply().await.unwrap()
}

async fn to_the_limit(stand: &Stand) {
    let mut fitted = 0;
    for (path, limit) in [("/v2/ep/run", 10 * MIB), ("/v2/ep/runsync", 20 * MIB)] {
        for framing in [Framing::Declared, Framing::Chunked] {
            let reply = upload(&stand.gateway, path, framing, &padded(limit)).await;
            assert_eq!(reply.status, 200, "{path} {framing:?}: {}", reply.text());
            fitted += 1;
            assert_eq!(stand.upstream.submissions(), (fitted, 0));
            let reply = upload(&stand.gateway, path, framing, &padded(limit + 1)).await;
            assert_eq!(reply.status, 413, "{path} {framing:?}");
            assert_eq!(reply.field("retry-after"), None);
            assert_eq!(stand.upstream.submissions(), (fitted, 0));
        }
        let mut client = Raw::connect(&stand.gateway).await;
        let expect = "expect: 100-continue\r\n";
        client
            .write(head(path, Framing::Declared, limit + 1, expect))
            .await;
        let replies = client.replies().await;
        assert_eq!(replies.len(), 1, "no 100, and the end: {replies:?}");
        assert_eq!(replies[0].status, 413);
        assert_eq!(stand.upstream.submissions(), (fitted, 0));
    }
    stand.is_as_before().await;
    assert_eq!(stand.gateway.ended("payload_too_large"), 6);
}

#[tokio::test]
async fn a_byte_too_many_is_no_job_and_none_too_many_is_one() {
    to_the_limit(&Scene::default().start()).await;
}

/// What no buffer has room for is sent on as it comes, and cut where it passes its limit.
#[tokio::test]
async fn nor_is_it_where_nothing_can_be_held() {
    let scene = Scene::default().settings("buffers: { per_request: 4KiB, total: 4KiB }");
    to_the_limit(&scene.start()).await;
}

#[tokio::test]
async fn past_the_budget_bodies_are_sent_on_unheld() {
    let upstream = Scripted::start(|mut connection| async move {
        let mut all = Vec::new();
        while !all.ends_with(b"0\r\n\r\n") {
            let mut some = [0; 4_096];
            let read = connection.stream.read(&mut some).await.unwrap();
            assert!(read > 0, "cut");
            all.extend_from_slice(&some[..read]);
        }
        let all = String::from_utf8(all).unwrap();
        assert!(
            all.to_lowercase()
                .contains("transfer-encoding: chunked\r\n")
        );
        connection
            .write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
    })
    .await;
    let (gateway, _machine) = Scene::default()
        .settings("buffers: { per_request: 64KiB, total: 64KiB }")
        .before(upstream.address);
    // Somebody takes all there is and keeps it.
    let mut hog = Raw::connect(&gateway).await;
    let most = 60 * 1024;
    hog.write(head("/v2/hog/run", Framing::Chunked, 0, ""))
        .await;
    hog.write(format!("{most:x}\r\n{}\r\n", "x".repeat(most)))
        .await;
    sleep(Duration::from_millis(100)).await;
    for _ in 0..10 {
        let reply = upload(&gateway, "/v2/ep/run", Framing::Chunked, &padded(30_000)).await;
        assert_eq!(reply.status, 200);
    }
    drop(hog);
    gateway.comes_to_rest().await;
}

/// So much is sent, in whole or until nobody takes it.
const UPLOAD: usize = 50_000_000;

static ZEROS: [u8; 256 * 1024] = [b'0'; 256 * 1024];

/// How a client goes about an upload that is refused.
#[derive(Clone, Copy, Debug)]
enum Manners {
    /// Sends all of it, or until the first write fails, and reads only then.
    Stubborn,
    /// Reads beside it, and stops once it is answered.
    Attentive,
}

/// Sends one upload; its answer's status, or nothing where it was lost.
async fn refused(gateway: &Gateway, head: &str, manners: Manners) -> Option<u16> {
    let stream = gateway.connect().await;
    let (mut from, mut to) = stream.into_split();
    let send = async {
        let mut sent = 0;
        to.write_all(head.as_bytes()).await.ok()?;
        let chunked = head.contains("chunked");
        while sent < UPLOAD {
            let size = ZEROS.len().min(UPLOAD - sent);
            if chunked {
                to.write_all(format!("{size:x}\r\n").as_bytes())
                    .await
                    .ok()?;
            }
            to.write_all(&ZEROS[..size]).await.ok()?;
            if chunked {
                to.write_all(b"\r\n").await.ok()?;
            }
            sent += size;
        }
        if chunked {
            to.write_all(b"0\r\n\r\n").await.ok()?;
        }
        Some(())
    };
    let mut line = [0; 12];
    let read = async { from.read_exact(&mut line).await.ok() };
    match manners {
        Manners::Stubborn => {
            send.await;
            read.await?;
        }
        Manners::Attentive => {
            tokio::pin!(send, read);
            tokio::select! {
                read = &mut read => drop(read?),
                _ = &mut send => drop(read.await?),
            }
        }
    }
    std::str::from_utf8(&line[9..]).ok()?.parse().ok()
}

/// Every one of so many tries reads its answer.
async fn everybody_reads(gateway: &Gateway, head: &str, status: u16, tries: usize) {
    let began = now();
    for manners in [Manners::Stubborn, Manners::Attentive] {
        let tries = match manners {
            Manners::Stubborn => tries,
            Manners::Attentive => tries.min(20),
        };
        let left = AtomicUsize::new(tries);
        let lost = AtomicUsize::new(0);
        let one = || async {
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok()
            {
                let read = within("an answer", refused(gateway, head, manners)).await;
                if read != Some(status) {
                    println!("{manners:?}: {read:?} for {head}");
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        together((0..4).map(|_| one())).await;
        assert_eq!(
            lost.into_inner(),
            0,
            "of {tries} {manners:?}, {status}: {head}"
        );
    }
    println!("{status}: {tries} in {:?}", began.elapsed());
}

#[tokio::test]
async fn whoever_still_uploads_reads_its_413() {
    let stand = Scene::default().start();
    let declared = head("/v2/ep/run", Framing::Declared, UPLOAD, "");
    everybody_reads(&stand.gateway, &declared, 413, 200).await;
    let chunked = head("/v2/ep/run", Framing::Chunked, UPLOAD, "");
    everybody_reads(&stand.gateway, &chunked, 413, 20).await;
    let expecting = head(
        "/v2/ep/run",
        Framing::Declared,
        UPLOAD,
        "expect: 100-continue\r\n",
    );
    everybody_reads(&stand.gateway, &expecting, 413, 20).await;
    assert_eq!(stand.upstream.submissions(), (0, 0));
    stand.is_as_before().await;
}

#[tokio::test]
async fn whoever_still_uploads_reads_its_429() {
    let stand = Scene::default()
        .set(
            Group::Run,
            "max_body: 64MiB, rate: { requests: 1, per: 10m }, max_wait: 1s",
        )
        .start();
    stand.still_serves().await;
    let declared = head("/v2/ep/run", Framing::Declared, UPLOAD, "");
    everybody_reads(&stand.gateway, &declared, 429, 200).await;
    let expecting = head(
        "/v2/ep/run",
        Framing::Declared,
        UPLOAD,
        "expect: 100-continue\r\n",
    );
    everybody_reads(&stand.gateway, &expecting, 429, 20).await;
    assert_eq!(stand.upstream.submissions(), (1, 0));
    stand.gateway.comes_to_rest().await;
}

/// Whichever stage refuses it, and however.
#[tokio::test]
async fn whoever_still_uploads_reads_whatever_it_is_told() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let (gateway, _machine) = Scene::default()
        .set(Group::Run, "max_body: 64MiB")
        .before(address);
    let length = format!("host: x\r\ncontent-length: {UPLOAD}");
    for (lines, status) in [
        (format!("POST /v2/ep/nowhere/ HTTP/1.1\r\n{length}"), 404),
        (format!("PUT /v2/ep/run HTTP/1.1\r\n{length}"), 405),
        (format!("TRACE /v2/ep/run HTTP/1.1\r\n{length}"), 405),
        (format!("POST /v2//ep/run HTTP/1.1\r\n{length}"), 400),
        (
            format!("POST /v2/ep/run HTTP/1.1\r\nhost: y\r\n{length}"),
            400,
        ),
        (
            format!("POST /v2/ep/run HTTP/1.1\r\n{length}\r\ncontent-length: 5"),
            400,
        ),
        (
            format!("POST /v2/ep/run HTTP/1.1\r\n{length}\r\nbad name: x"),
            400,
        ),
        (
            format!("POST /v2/ep/run HTTP/1.1\r\n{length}\r\nexpect: x"),
            417,
        ),
        (format!("POST /v2/ep/run HTTP/1.1\r\n{length}"), 502),
    ] {
        everybody_reads(&gateway, &format!("{lines}\r\n\r\n"), status, 20).await;
    }
    gateway.comes_to_rest().await;
}

/// The upstream answers before it has read all, and reads no more.
#[tokio::test]
async fn whoever_still_uploads_reads_what_the_upstream_says_early() {
    let upstream = Scripted::start(|mut connection| async move {
        let mut some = vec![0; 100_000];
        connection.stream.read_exact(&mut some).await.unwrap();
        connection
            .write("HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\n\r\nbad")
            .await;
        sleep(Duration::from_secs(60)).await;
    })
    .await;
    let (gateway, _machine) = Scene::default()
        .margin("100ms")
        .set(Group::Run, "max_body: 64MiB")
        .before(upstream.address);
    let declared = head("/v2/ep/run", Framing::Declared, UPLOAD, "");
    everybody_reads(&gateway, &declared, 400, 8).await;
}

fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4_096
}

/// What is thrown away is held nowhere: hundreds of refused uploads at once cost little.
#[tokio::test]
async fn refused_uploads_take_no_room() {
    let (gateway, _machine) = Scene::default().before("127.0.0.1:9".parse().unwrap());
    let head = head("/v2/ep/run", Framing::Declared, UPLOAD, "");
    // What is taken once stays taken.
    refused(&gateway, &head, Manners::Stubborn).await;
    let before = resident();
    let mut most = before;
    let mut clients: Vec<TcpStream> = Vec::new();
    for _ in 0..200 {
        clients.push(gateway.send(&head).await);
    }
    for _ in 0..40 {
        for client in &mut clients {
            // As much as is taken now.
            let _ = client.try_write(&ZEROS);
        }
        sleep(Duration::from_millis(5)).await;
        most = most.max(resident());
    }
    let growth = (most - before) / MIB;
    println!("{growth} MiB for 200 uploads");
    assert!(growth < 150, "{growth} MiB");
    drop(clients);
    gateway.comes_to_rest().await;
}

/// Sends a head, and then a byte now and then; its answer, and how long it took.
async fn drip(gateway: &Gateway, head: &str, first: usize, gap: Duration) -> (Reply, Duration) {
    let mut client = Raw::connect(gateway).await;
    client.write(head).await;
    client.write(vec![b'x'; first]).await;
    let began = now();
    let (mut from, mut to) = client.split();
    let dripping = async {
        while to.write_all(b"x").await.is_ok() {
            sleep(gap).await;
        }
        std::future::pending::<()>().await
    };
    let reply = tokio::select! {
        reply = from.reply() => reply.unwrap(),
        () = dripping => unreachable!(),
    };
    let took = began.elapsed();
    assert_eq!(from.reply().await, None, "and the end");
    (reply, took)
}

#[tokio::test]
async fn a_body_that_does_not_come_is_told_so() {
    let stand = Scene::default()
        .margin("100ms")
        .settings(
            "timeouts: { body_idle: 400ms, body_total: 2s }\n\
             buffers: { per_request: 16KiB }",
        )
        .start();
    let gateway = &stand.gateway;
    let often = Duration::from_millis(20);
    let never = Duration::from_secs(600);
    let small = head("/v2/ep/run", Framing::Declared, 9_000, "");
    let large = head("/v2/ep/run", Framing::Declared, 900_000, "");
    for (what, head, first, gap, at_least) in [
        ("silent", &small, 10, never, 350),
        ("silent on the way", &large, 20_000, never, 350),
        (
            "in time by the byte, and never whole",
            &small,
            10,
            often,
            1_900,
        ),
        (
            "below the least rate on the way",
            &large,
            20_000,
            often,
            350,
        ),
    ] {
        let (reply, took) = drip(gateway, head, first, gap).await;
        assert_eq!(reply.status, 408, "{what}: {}", reply.text());
        assert!(took >= Duration::from_millis(at_least), "{what}: {took:?}");
        assert!(reply.text().contains("client_timeout"));
    }
    assert_eq!(stand.upstream.submissions(), (0, 0));
    stand.is_as_before().await;
    assert_eq!(gateway.ended("client_timeout"), 4);
}

/// A slow upload holds no permit before it is here, and not for long if it does not fit.
#[tokio::test]
async fn slow_uploads_stop_nobody() {
    let upstream = echo().await;
    let (gateway, _machine) = Scene::default()
        .margin("50ms")
        .set(Group::Run, "concurrency: 2, max_wait: 20s")
        .settings("timeouts: { body_idle: 500ms }\nbuffers: { per_request: 16KiB }")
        .before(upstream.address);
    let mut slow = Vec::new();
    for _ in 0..20 {
        let small = head("/v2/ep/run", Framing::Declared, 9_000, "");
        slow.push(gateway.send(format!("{small}xxx")).await);
    }
    assert_eq!(gateway.post("/v2/ep/run", "{}").await.status, 200);
    // These have what a permit is asked for, and then nothing.
    for _ in 0..4 {
        let large = head("/v2/ep/run", Framing::Declared, 900_000, "");
        let some = "x".repeat(20_000);
        slow.push(gateway.send(format!("{large}{some}")).await);
    }
    eventually("they hold all there are", || {
        gateway.permits(Group::Run) == 2
    })
    .await;
    assert_eq!(gateway.post("/v2/ep/run", "{}").await.status, 200);
    eventually("all were told", || gateway.ended("client_timeout") == 24).await;
    drop(slow);
    gateway.comes_to_rest().await;
}

/// After a refusal the connection carries on, where its client has sent what it had.
#[tokio::test]
async fn what_was_refused_is_no_part_of_the_next_request() {
    let stand = Scene::default().set(Group::Run, "max_body: 64KiB").start();
    let mut client = Raw::connect(&stand.gateway).await;
    for number in 0..20 {
        let size = 65_537 + number * 10_000;
        for framing in [Framing::Declared, Framing::Chunked] {
            client.write(head("/v2/ep/run", framing, size, "")).await;
            client.write(framed(framing, &padded(size))).await;
            assert_eq!(client.reply().await.unwrap().status, 413);
            let body = job(&unique());
            client
                .write(super::support::post("/v2/ep/run", &body))
                .await;
            assert_eq!(client.reply().await.unwrap().status, 200);
        }
    }
    assert_eq!(stand.upstream.submissions(), (40, 0));
    assert_eq!(stand.upstream.seen("ep", Group::Run)["arrived"], json!(40));
}
