//! The contract's operation table, cell by cell (sections 1.1, 3 and 4).
//!
//! | column | test |
//! | --- | --- |
//! | operation, methods | [`every_operation_takes_its_methods_and_no_other`] |
//! | what is not emulated (`/metrics`, `/batch`, the workers' routes) | [`what_is_not_emulated_is_404`] |
//! | body limit | [`a_body_of_exactly_the_limit_is_taken_and_a_byte_more_is_400`]; in the service's own words: `errors` |
//! | rate / 10 s | [`n_are_accepted_and_the_next_waits_for_the_window`]; over sockets, where N is small: [`the_small_rates_over_sockets`] |
//! | concurrent | [`c_are_inside_and_the_next_is_refused`], [`every_documented_concurrency_over_sockets`]; switched off: [`without_a_number_nothing_is_refused`] |
//! | one pool for the status family | [`the_status_family_spends_one_documented_pool`] |
//! | kept after completion | [`jobs_are_kept_as_long_as_documented_after_every_end`]; as a caller sees it: `operations` |
//! | `Authorization`, with or without `Bearer` | [`a_key_is_the_same_with_and_without_its_scheme`] |
//! | queue full (section 4) | [`the_queue_is_full_one_above_each_line`], [`running_jobs_are_not_in_the_queue`]; submissions only: `limits` |
//!
//! What an operation answers is in `operations`, its errors in `errors`.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use podgate::emulator::Config;
use podgate::emulator::door::{Counts, Door};
use podgate::emulator::job::Order;
use podgate::emulator::jobs::{Jobs, Keeping};
use podgate::emulator::limits::{Backlog, Group, Limit, Limits};
use podgate::emulator::policer::Policer;
use podgate::emulator::site::Fleet;
use podgate::emulator::witness::Refusal;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{Upstream, connect, request, start, with_workers};

const W: Duration = Duration::from_secs(10);
const NS: Duration = Duration::from_nanos(1);

/// One operation; `JOB` stands for an id.
struct Row {
    path: &'static str,
    /// As `Allow` says them.
    methods: &'static str,
    group: Group,
    body_limit_mib: usize,
}

const fn row(path: &'static str, methods: &'static str, group: Group, mib: usize) -> Row {
    Row {
        path,
        methods,
        group,
        body_limit_mib: mib,
    }
}

const OPERATIONS: [Row; 13] = [
    row("run", "POST", Group::Run, 10),
    row("runsync", "POST", Group::RunSync, 20),
    row("status/JOB", "GET, POST", Group::Status, 1),
    row("status-sync/JOB", "GET, POST", Group::Status, 1),
    row("stream/JOB", "GET, POST", Group::Status, 1),
    row("cancel/JOB", "POST", Group::Cancel, 1),
    row("purge-queue", "POST", Group::PurgeQueue, 1),
    row("health", "GET", Group::Health, 1),
    row("requests", "GET", Group::Requests, 1),
    row("openai/v1/chat/completions", "POST", Group::OpenAi, 20),
    row("openai/v1/completions", "POST", Group::OpenAi, 20),
    row("openai/v1/models", "GET", Group::OpenAi, 20),
    row("retry/JOB", "POST", Group::Retry, 1),
];

/// The documented numbers: N per ten seconds, and C.
const LIMITS: [(Group, Option<u32>, Option<u32>); 9] = [
    (Group::Run, Some(1000), Some(200)),
    (Group::RunSync, Some(2000), Some(400)),
    (Group::Status, Some(2000), Some(400)),
    (Group::Cancel, Some(100), Some(20)),
    (Group::PurgeQueue, Some(2), None),
    (Group::Health, None, None),
    (Group::Requests, Some(10), Some(2)),
    (Group::OpenAi, Some(2000), Some(400)),
    (Group::Retry, None, None),
];

fn allows(methods: &str, method: &str) -> bool {
    methods.split(", ").any(|allowed| allowed == method)
}

async fn failed_job(upstream: &Upstream) -> String {
    let id = upstream.run(json!({"fail": "x"})).await;
    upstream.until(&id, "FAILED").await;
    id
}

#[tokio::test]
async fn every_operation_takes_its_methods_and_no_other() {
    // The table's own rates are not asked for here.
    let upstream = start(Config {
        policer: Policer::None,
        ..with_workers(4)
    })
    .await;
    for row in OPERATIONS {
        // Every operation has something to say of a failed job.
        let path = row.path.replace("JOB", &failed_job(&upstream).await);
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"] {
            let arrived = || upstream.seen(row.group.name())["arrived"].as_u64().unwrap();
            let before = arrived();
            let answer = upstream.call(method, &path, r#"{"input":1}"#).await;
            let is_allowed = allows(row.methods, method);
            let (status, allow) = if is_allowed {
                (200, None)
            } else {
                (405, Some(row.methods))
            };
            assert_eq!(
                (answer.status, answer.header("allow")),
                (status, allow),
                "{method} {path}"
            );
            let counted = arrived() - before;
            assert_eq!(counted, u64::from(is_allowed), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn what_is_not_emulated_is_404() {
    let upstream = start(with_workers(1)).await;
    for path in [
        "metrics",
        "batch",
        "batch/b1",
        "batch/b1/requests",
        "job-take/w1",
        "job-done/w1/j1",
        "ping/w1",
    ] {
        for method in ["GET", "POST"] {
            let answer = upstream.call(method, path, "").await;
            assert_eq!(answer.status, 404, "{method} {path}");
            assert_eq!(answer.json()["status"], 404);
        }
    }
}

/// `bytes` bytes of JSON that every operation with a body understands.
fn body_of(bytes: usize) -> String {
    let frame = r#"{"input":""}"#.len();
    format!(r#"{{"input":"{}"}}"#, "x".repeat(bytes - frame))
}

/// A POST of no declared length; its status, and all that was said.
async fn post_chunked(upstream: &Upstream, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(upstream.address).await.unwrap();
    let head = format!(
        "POST /v2/ep/{path} HTTP/1.1\r\nhost: e\r\nauthorization: k\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\n\r\n{:x}\r\n",
        body.len()
    );
    for part in [head.as_str(), body, "\r\n0\r\n\r\n"] {
        stream.write_all(part.as_bytes()).await.unwrap();
    }
    let mut answer = String::new();
    let read = tokio::time::timeout(W, stream.read_to_string(&mut answer));
    read.await.expect("an answer").unwrap();
    let status = answer["HTTP/1.1 ".len()..][..3].parse().unwrap();
    (status, answer)
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_is_taken_and_a_byte_more_is_400() {
    let upstream = start(with_workers(4)).await;
    let id = failed_job(&upstream).await;
    for row in OPERATIONS.iter().filter(|row| allows(row.methods, "POST")) {
        let path = row.path.replace("JOB", &id);
        let limit = row.body_limit_mib << 20;
        let words = format!("exceeded max body size of {}MiB", row.body_limit_mib);
        let (whole, larger) = (body_of(limit), body_of(limit + 1));

        let answer = upstream.call("POST", &path, larger.clone()).await;
        assert_eq!(answer.status, 400, "{path}, declared");
        let detail = answer.json()["detail"].to_string();
        assert!(detail.contains(&words), "{path}: {detail}");
        let (status, said) = post_chunked(&upstream, &path, &larger).await;
        assert_eq!(status, 400, "{path}, undeclared");
        assert!(said.contains(&words), "{path}: {said}");

        let taken = upstream.call("POST", &path, whole).await;
        let detail = String::from_utf8_lossy(&taken.body);
        assert!(!detail.contains("max body size"), "{path}: {detail:.200}");
        // After three calls a purge has no rate left.
        if taken.status != 429 {
            assert!([200, 400].contains(&taken.status), "{path}");
        }
    }
    let distinct = upstream.emulator.stats_json()["submissions"]["distinct"].clone();
    assert_eq!(distinct, 3, "the failed job, and the two that fitted");
}

/// A door of the documented limit.
fn door(group: Group) -> Door {
    Door::new(Limit::documented(group), Policer::SlidingLog)
}

fn come_and_go(door: &mut Door, now: Duration) -> Result<(), Refusal> {
    let entered = door.arrive(now, None, Counts::Head);
    if entered.is_ok() {
        door.leave(now, Duration::ZERO, Counts::Head);
    }
    entered
}

#[test]
fn n_are_accepted_and_the_next_waits_for_the_window() {
    for (group, requests, _) in LIMITS {
        let Some(requests) = requests else { continue };
        let mut door = door(group);
        for k in 0..requests {
            // One after the other: the first is at 0.
            let now = Duration::from_millis(k.into());
            assert_eq!(come_and_go(&mut door, now), Ok(()), "{group:?} {k}");
        }
        for now in [Duration::from_millis(requests.into()), W - NS] {
            let refused = come_and_go(&mut door, now);
            assert_eq!(refused, Err(Refusal::Rate), "{group:?} {now:?}");
        }
        assert_eq!(come_and_go(&mut door, W), Ok(()), "{group:?}");
        assert_eq!(come_and_go(&mut door, W), Err(Refusal::Rate), "{group:?}");
        let seen = door.seen();
        assert_eq!(seen.accepted, u64::from(requests) + 1, "{group:?}");
        assert_eq!((seen.refused_rate, seen.max_in_flight), (3, 1), "{group:?}");
    }
}

#[test]
fn c_are_inside_and_the_next_is_refused() {
    for (group, _, concurrency) in LIMITS {
        let Some(concurrency) = concurrency else {
            continue;
        };
        let mut door = door(group);
        let mut enter = || door.arrive(Duration::ZERO, None, Counts::Head);
        for k in 0..concurrency {
            assert_eq!(enter(), Ok(()), "{group:?} {k}");
        }
        assert_eq!(enter(), Err(Refusal::Concurrency), "{group:?}");
        door.leave(NS, Duration::ZERO, Counts::Head);
        let mut enter = || door.arrive(NS, None, Counts::Head);
        assert_eq!(enter(), Ok(()), "{group:?}");
        assert_eq!(enter(), Err(Refusal::Concurrency), "{group:?}");
        let seen = door.seen();
        assert_eq!(seen.max_in_flight, u64::from(concurrency), "{group:?}");
        assert_eq!(seen.refused_concurrency, 2, "{group:?}");
    }
}

#[test]
fn without_a_number_nothing_is_refused() {
    for (group, requests, concurrency) in LIMITS {
        let held = concurrency.or(requests).unwrap_or(10_000);
        let mut door = door(group);
        for _ in 0..held {
            assert_eq!(door.arrive(NS, None, Counts::Head), Ok(()), "{group:?}");
        }
        // The contract calls "concurrent" a cap that can be switched off.
        let limit = Limit {
            concurrency: None,
            ..Limit::documented(group)
        };
        let mut door = Door::new(limit, Policer::None);
        for _ in 0..10_000 {
            assert_eq!(door.arrive(NS, None, Counts::Head), Ok(()), "{group:?}");
        }
    }
}

/// Sends `method path` so often over one connection; the statuses.
async fn statuses(upstream: &Upstream, row: &Row, path: &str, times: u32) -> Vec<u16> {
    let method = row.methods.split(", ").next().unwrap();
    let mut sender = connect(upstream.address).await;
    let mut statuses = Vec::new();
    for _ in 0..times {
        let path = format!("/v2/ep/{path}");
        let call: Request<Full<Bytes>> =
            request(method, &path, Some("key"), r#"{"input":1}"#.into());
        let response = sender.send_request(call).await.unwrap();
        statuses.push(response.status().as_u16());
        response.into_body().collect().await.unwrap();
    }
    statuses
}

/// The documented numbers, in a window that no test outlasts.
fn for_ten_minutes() -> Limits {
    let mut limits = Limits::default();
    for group in Group::ALL {
        limits[group].window = Duration::from_secs(600);
    }
    limits
}

#[tokio::test]
async fn the_small_rates_over_sockets() {
    let upstream = start(Config {
        limits: for_ten_minutes(),
        ..with_workers(4)
    })
    .await;
    let id = failed_job(&upstream).await;
    for (group, requests, _) in LIMITS {
        let Some(requests) = requests.filter(|&requests| requests <= 100) else {
            continue;
        };
        let row = OPERATIONS.iter().find(|row| row.group == group).unwrap();
        let path = row.path.replace("JOB", &id);
        let mut expected = vec![200; requests as usize];
        expected.push(429);
        let statuses = statuses(&upstream, row, &path, requests + 1).await;
        assert_eq!(statuses, expected, "{group:?}");
        assert_eq!(upstream.seen(group.name())["refused"]["rate"], 1);
    }
}

#[tokio::test]
async fn every_documented_concurrency_over_sockets() {
    let upstream = start(Config {
        limits: for_ten_minutes(),
        ..with_workers(4)
    })
    .await;
    let id = failed_job(&upstream).await;
    // A place stays taken after its exchange: who holds it need not be there.
    let seconds = 3_600;
    upstream
        .faults(json!({"decrement_delay_ms": seconds * 1000}))
        .await;
    for (group, _, concurrency) in LIMITS {
        let Some(concurrency) = concurrency else {
            continue;
        };
        let row = OPERATIONS.iter().find(|row| row.group == group).unwrap();
        let path = row.path.replace("JOB", &id);
        let mut expected = vec![200; concurrency as usize];
        expected.push(429);
        let statuses = statuses(&upstream, row, &path, concurrency + 1).await;
        assert_eq!(statuses, expected, "{group:?}");
        assert_eq!(upstream.seen(group.name())["refused"]["concurrency"], 1);
    }
}

#[test]
fn the_status_family_spends_one_documented_pool() {
    let of_status: Vec<&Row> = OPERATIONS
        .iter()
        .filter(|row| row.group == Group::Status)
        .collect();
    assert_eq!(of_status.len(), 3);
    // Whichever of them asks: the door is the group's.
    let mut door = door(of_status[0].group);
    for k in 0..2_000 {
        let row = of_status[k % 3];
        assert_eq!(come_and_go(&mut door, NS), Ok(()), "{}", row.path);
    }
    assert_eq!(come_and_go(&mut door, NS), Err(Refusal::Rate));
}

#[tokio::test]
async fn a_key_is_the_same_with_and_without_its_scheme() {
    let upstream = start(with_workers(1)).await;
    let mut seen = Vec::new();
    for key in ["Bearer k", "k", "bearer k", "Bearer other"] {
        let purge = request("POST", "/v2/ep/purge-queue", Some(key), "".into());
        seen.push(upstream.try_call(purge).await.unwrap().status);
    }
    assert_eq!(seen, [200, 200, 429, 429], "all keys are one account's");
}

#[test]
fn jobs_are_kept_as_long_as_documented_after_every_end() {
    for (sync, kept) in [
        (false, Duration::from_secs(30 * 60)),
        (true, Duration::from_secs(60)),
    ] {
        for input in [
            r#"{"sleep":1}"#,
            r#"{"sleep":1,"fail":"x"}"#,
            r#"{"sleep":0.25,"lost":9}"#,
        ] {
            let mut jobs = Jobs::new(Keeping::default(), 1);
            let endpoint = jobs.add_endpoint(Fleet::default());
            let input = RawValue::from_string(input.to_owned()).unwrap();
            let order = Order::new(input.into(), sync);
            let id = jobs.submit(endpoint, order, Duration::ZERO).unwrap();
            let mut end = Duration::ZERO;
            while !jobs.status(endpoint, id).unwrap().status.is_final() {
                end = jobs.next_event().unwrap();
                jobs.advance(end);
            }
            jobs.advance(end + kept - NS);
            assert!(jobs.status(endpoint, id).is_some(), "{sync} too early");
            jobs.advance(end + kept);
            assert!(jobs.status(endpoint, id).is_none(), "{sync} too late");
        }
    }
}

#[test]
fn the_queue_is_full_one_above_each_line() {
    for (workers_max, most) in [(0, 50), (1, 500), (2, 1_000), (3, 1_500), (60, 30_000)] {
        let mut door = Door::new(Limit::documented(Group::Run), Policer::None);
        let mut with = |queued| {
            let backlog = Some(Backlog {
                queued,
                workers_max,
            });
            let entered = door.arrive(NS, backlog, Counts::Head);
            if entered.is_ok() {
                door.leave(NS, Duration::ZERO, Counts::Head);
            }
            entered
        };
        assert_eq!(with(most), Ok(()), "{workers_max}");
        assert_eq!(with(most + 1), Err(Refusal::Backlog), "{workers_max}");
    }
}

/// One runs and 501 wait: 502 have been taken, and the next is one too many.
#[tokio::test]
async fn running_jobs_are_not_in_the_queue() {
    let upstream = start(Config {
        limits: for_ten_minutes(),
        ..with_workers(1)
    })
    .await;
    upstream.run(json!({"sleep": 3600})).await;
    let run = &OPERATIONS[0];
    let taken = statuses(&upstream, run, run.path, 502).await;
    assert_eq!(taken[..501], [200; 501]);
    assert_eq!(taken[501], 429);
    let health = upstream.get("health").await.json();
    assert_eq!(
        (
            &health["jobs"]["inProgress"],
            &health["jobs"]["inQueue"],
            &upstream.seen("run")["refused"]["backlog"]
        ),
        (&json!(1), &json!(501), &json!(1))
    );
}
