//! Every knob does what it says.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use podgate::emulator::Config;
use podgate::emulator::limits::{Group, Limit, Limits};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{Upstream, connect, eventually, request, start, with_workers};

#[expect(
    clippy::disallowed_methods,
    reason = "tests measure delays in real time"
)]
fn now() -> Instant {
    Instant::now()
}

async fn upstream() -> Upstream {
    start(with_workers(4)).await
}

/// A request of `head` and as much of a body as is given, as bytes; the connection.
async fn send_raw(upstream: &Upstream, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(upstream.address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// All that comes, and how it ended.
async fn read_raw(mut stream: TcpStream) -> (String, std::io::Result<usize>) {
    let mut bytes = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes));
    let ended = ended.await.expect("the connection ends");
    (String::from_utf8(bytes).unwrap(), ended)
}

const HEALTH: &str = "GET /v2/ep/health HTTP/1.1\r\nhost: e\r\nauthorization: key\r\n\r\n";

#[tokio::test]
async fn latency_and_jitter_pass_before_anything_counts() {
    let upstream = upstream().await;
    upstream
        .faults(json!({"latency_ms": 200, "jitter_ms": 50}))
        .await;
    let started = now();
    let address = upstream.address;
    let call = tokio::spawn(async move {
        let request = request("GET", "/v2/ep/health", Some("key"), Bytes::new());
        let response = connect(address).await.send_request(request).await.unwrap();
        response.status().as_u16()
    });
    eventually("counted", || upstream.seen("health")["arrived"] == 1).await;
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(call.await.unwrap(), 200);
    assert_eq!(upstream.seen("health")["accepted"], 1);
}

#[tokio::test]
async fn a_request_on_its_way_arrives_though_its_client_has_left() {
    let upstream = upstream().await;
    upstream.faults(json!({"latency_ms": 200})).await;
    let body = r#"{"input":{"id":7}}"#;
    let head = format!(
        "POST /v2/ep/run HTTP/1.1\r\nhost: e\r\nauthorization: key\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let stream = send_raw(&upstream, &head).await;
    drop(stream);
    eventually("the job", || {
        upstream.emulator.stats_json()["submissions"]["distinct"] == 1
    })
    .await;
    assert_eq!(upstream.seen("run")["accepted"], 1);
}

#[tokio::test]
async fn refuse_resets_and_counts_nothing() {
    let upstream = upstream().await;
    upstream.faults(json!({"refuse": true, "count": 1})).await;
    let (text, ended) = read_raw(send_raw(&upstream, HEALTH).await).await;
    assert_eq!((text.as_str(), ended.is_err()), ("", true));
    assert_eq!(upstream.seen("health")["arrived"], 0);
    assert_eq!(upstream.get("health").await.status, 200, "once");
}

#[tokio::test]
async fn reset_before_head_does_the_work_and_tells_nobody() {
    let upstream = upstream().await;
    upstream
        .faults(json!({"reset_before_head": true, "count": 1}))
        .await;
    let request = request("POST", "/v2/ep/run", Some("key"), r#"{"input":1}"#.into());
    assert!(upstream.try_call(request).await.is_err());
    assert_eq!(upstream.emulator.stats_json()["submissions"]["distinct"], 1);
    assert_eq!(upstream.seen("run")["accepted"], 1);
}

#[tokio::test]
async fn reset_mid_body_sends_half_of_it() {
    let upstream = upstream().await;
    upstream
        .faults(json!({"reset_mid_body": true, "count": 1}))
        .await;
    let (text, ended) = read_raw(send_raw(&upstream, HEALTH).await).await;
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    assert!(
        text.contains("inProgress") && !text.contains("unhealthy"),
        "{text}"
    );
    assert!(ended.is_err());
}

#[tokio::test]
async fn stall_says_nothing_or_only_half() {
    let upstream = upstream().await;
    for (stall, head) in [
        (json!(true), false),
        (json!("head"), false),
        (json!("body"), true),
    ] {
        upstream.faults(json!({"stall": stall, "count": 1})).await;
        let mut stream = send_raw(&upstream, HEALTH).await;
        let mut bytes = Vec::new();
        let patience = Duration::from_secs(1);
        let ended = tokio::time::timeout(patience, stream.read_to_end(&mut bytes)).await;
        assert!(ended.is_err(), "{stall}: the connection stays open");
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.contains("200 OK"), head, "{stall}");
        assert!(!text.contains("unhealthy"), "{stall}");
    }
}

#[tokio::test]
async fn wrong_length_promises_more_than_is_sent() {
    let upstream = upstream().await;
    upstream
        .faults(json!({"wrong_length": 5, "count": 1}))
        .await;
    let (text, ended) = read_raw(send_raw(&upstream, HEALTH).await).await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let promised = format!("content-length: {}", body.len() + 5);
    assert!(head.contains(&promised), "{head}");
    assert!(body.ends_with("}}") && ended.is_ok());
}

#[tokio::test]
async fn any_status_with_or_without_retry_after() {
    let upstream = upstream().await;
    let cases = [
        (json!({"status": 429}), 429, None),
        (json!({"status": 503, "retry_after": 7}), 503, Some("7")),
        (
            json!({"status": 500, "retry_after": "0.5"}),
            500,
            Some("0.5"),
        ),
        (json!({"status": 202}), 202, None),
    ];
    for (faults, status, retry_after) in cases {
        upstream.faults(faults).await;
        let answer = upstream.post("run", &json!({"input": 1})).await;
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (status, retry_after)
        );
        assert_eq!(answer.json()["status"], status);
    }
    assert_eq!(upstream.emulator.stats_json()["submissions"]["distinct"], 0);
    assert_eq!(upstream.seen("run")["accepted"], 4, "counted all the same");
}

#[tokio::test]
async fn the_limits_own_429_can_carry_a_retry_after() {
    let upstream = upstream().await;
    upstream.faults(json!({"retry_after": 3})).await;
    for retry_after in [None, None, Some("3")] {
        let answer = upstream.call("POST", "purge-queue", "").await;
        assert_eq!(answer.header("retry-after"), retry_after);
    }
}

#[tokio::test]
async fn a_fault_may_strike_one_group_only_and_some_of_its_requests() {
    let upstream = upstream().await;
    upstream
        .faults(json!({"status": 500, "group": "health", "probability": 0.5}))
        .await;
    let mut struck = 0;
    for _ in 0..60 {
        struck += u32::from(upstream.get("health").await.status == 500);
    }
    assert!((5..=55).contains(&struck), "{struck}");
    assert_eq!(upstream.post("run", &json!({"input": 1})).await.status, 200);
    upstream.faults(json!({})).await;
    assert_eq!(upstream.get("health").await.status, 200);
}

fn one_at_a_time(group: Group) -> Config {
    let mut limits = Limits::default();
    limits[group] = Limit {
        concurrency: Some(1),
        ..Limit::documented(group)
    };
    Config {
        limits,
        ..with_workers(1)
    }
}

#[tokio::test]
async fn a_late_decrement_keeps_a_place_taken_after_the_answer() {
    let upstream = start(one_at_a_time(Group::Health)).await;
    assert_eq!(upstream.get("health").await.status, 200);
    assert_eq!(upstream.get("health").await.status, 200);
    upstream.faults(json!({"decrement_delay_ms": 300})).await;
    assert_eq!(upstream.get("health").await.status, 200);
    let answered = now();
    let mut refused = 0;
    while upstream.get("health").await.status == 429 {
        refused += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(refused > 0 && answered.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn a_slow_clock_keeps_the_window_closed_longer() {
    let mut limits = Limits::default();
    limits[Group::Health] = Limit {
        requests: Some(1),
        window: Duration::from_millis(300),
        ..Limit::documented(Group::Health)
    };
    let upstream = start(Config {
        limits,
        ..with_workers(1)
    })
    .await;
    upstream.faults(json!({"clock_ppm": -500_000})).await;
    let started = now();
    assert_eq!(upstream.get("health").await.status, 200);
    while upstream.get("health").await.status == 429 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(started.elapsed() >= Duration::from_millis(600));
}

#[tokio::test]
async fn an_arrival_counts_at_its_head_or_when_its_body_has_ended() {
    let upstream = upstream().await;
    let head = "POST /v2/ep/run HTTP/1.1\r\nhost: e\r\nauthorization: key\r\ncontent-length: 11\r\n\r\n{\"inp";
    let mut stream = send_raw(&upstream, head).await;
    eventually("counted at the head", || {
        upstream.seen("run")["accepted"] == 1
    })
    .await;
    stream.write_all(b"ut\":1}").await.unwrap();

    upstream.faults(json!({"counts": "body-end"})).await;
    let mut stream = send_raw(&upstream, head).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(upstream.seen("run")["accepted"], 1);
    stream.write_all(b"ut\":1}").await.unwrap();
    eventually("counted at the end", || {
        upstream.seen("run")["accepted"] == 2
    })
    .await;
}

#[tokio::test]
async fn an_arrival_can_count_only_when_it_is_over() {
    let upstream = upstream().await;
    upstream.faults(json!({"counts": "completion"})).await;
    let address = upstream.address;
    let held = tokio::spawn(async move {
        let body = r#"{"input":{"sleep":0.4}}"#;
        let request = request("POST", "/v2/ep/runsync", Some("key"), body.into());
        let response = connect(address).await.send_request(request).await.unwrap();
        response.into_body().collect().await.unwrap();
    });
    eventually("inside", || upstream.seen("runsync")["arrived"] == 1).await;
    assert_eq!(upstream.seen("runsync")["accepted"], 0);
    held.await.unwrap();
    eventually("counted", || upstream.seen("runsync")["accepted"] == 1).await;
}
