//! Which requests are which, and whose limit they count against.

use std::collections::BTreeMap;

use podgate::emulator::limits::Group;
use podgate::operation::Operation;

use super::raw::{Raw, echo};
use super::scripted::Scripted;
use super::support::{Gateway, Scene, eventually, request, together};

/// How many requests have been forwarded as `operation`.
fn forwarded(gateway: &Gateway, operation: Operation) -> u64 {
    let page = gateway.running.shared.metrics.page().unwrap();
    let label = format!("operation=\"{}\"", operation.name());
    String::from_utf8(page)
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("podgate_requests_total{") && line.contains(&label))
        .filter(|line| line.contains("outcome=\"forwarded\""))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[tokio::test]
async fn every_operation_is_known_by_its_path_and_takes_its_methods() {
    let upstream = echo().await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let mut expected = BTreeMap::<Operation, u64>::new();
    let methods = ["GET", "POST", "PUT", "PATCH", "DELETE"];
    for (path, operation, taken) in [
        ("run", Operation::Run, "POST"),
        ("runsync?wait=1000", Operation::RunSync, "POST"),
        ("status/j-u1", Operation::Status, "GET, POST"),
        (
            "status-sync/sync-j?wait=1",
            Operation::StatusSync,
            "GET, POST",
        ),
        ("stream/j", Operation::Stream, "GET, POST"),
        ("cancel/j", Operation::Cancel, "POST"),
        ("retry/j", Operation::Retry, "POST"),
        ("purge-queue", Operation::PurgeQueue, "POST"),
        ("health", Operation::Health, "GET"),
        ("requests", Operation::Requests, "GET"),
        ("openai/v1/chat/completions", Operation::OpenAi, "GET, POST"),
        (
            "job-take/w?gpu=A+B&job_in_progress=0",
            Operation::Worker,
            "GET, POST",
        ),
        (
            "job-take-batch/w?batch_size=2",
            Operation::Worker,
            "GET, POST",
        ),
        ("job-stop/w?gpu=A", Operation::Worker, "GET, POST"),
        (
            "job-done/w/j-u1?isStream=false",
            Operation::Worker,
            "GET, POST",
        ),
        (
            "job-stream/w/j-u1&isStream=false",
            Operation::Worker,
            "GET, POST",
        ),
        (
            "ping/w&job_id=a%2Cb&runpod_version=1.12.0",
            Operation::Worker,
            "GET, POST",
        ),
        ("metrics", Operation::Other, "GET, POST, PUT, PATCH, DELETE"),
        (
            "batch/b1/requests?offset=0",
            Operation::Other,
            "GET, POST, PUT, PATCH, DELETE",
        ),
    ] {
        let path = format!("/v2/ep-1_A/{path}");
        for method in methods {
            let sent = upstream.received().len();
            let answer = gateway.call(request(method, &path, "")).await;
            if taken.split(", ").any(|taken| taken == method) {
                assert_eq!(
                    (answer.status, answer.body.as_ref()),
                    (200, path.as_bytes())
                );
                *expected.entry(operation).or_default() += 1;
                let received = upstream.received();
                assert_eq!(received.len(), sent + 1, "{method} {path}");
                assert_eq!(received[sent].line(), format!("{method} {path} HTTP/1.1"));
            } else {
                assert_eq!(answer.status, 405, "{method} {path}");
                assert_eq!(answer.header("allow"), Some(taken), "{method} {path}");
                assert_eq!(upstream.received().len(), sent, "{method} {path}");
            }
        }
    }
    for (operation, count) in expected {
        assert_eq!(
            forwarded(&gateway, operation),
            count,
            "{}",
            operation.name()
        );
    }
}

/// A 429 to a worker throws a result away: whatever it sends passes, however many of them there are
/// and whatever the upstream has answered.
#[tokio::test]
async fn workers_are_never_in_a_queue_and_never_refused() {
    let upstream = Scripted::start(|mut connection| async move {
        let busy = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n";
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        while let Some(received) = connection.receive().await {
            let busy_now = received.line().contains("busy");
            connection.write(if busy_now { busy } else { ok }).await;
        }
    })
    .await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    for _ in 0..5 {
        let answer = gateway.post("/v2/ep/job-done/w/j?busy", "{}").await;
        assert_eq!(answer.status, 429, "the upstream's own");
        assert_eq!(answer.header("retry-after"), Some("60"));
    }
    together((0..50).map(|_| async {
        let mut client = Raw::connect(&gateway).await;
        for number in 0..60 {
            let post = format!("POST /v2/ep/job-done/w/j-{number}?a=b HTTP/1.1\r\nhost: x\r\n");
            client
                .write(format!("{post}content-length: 2\r\n\r\n{{}}"))
                .await;
            assert_eq!(client.reply().await.unwrap().status, 200);
        }
    }))
    .await;
    assert_eq!(upstream.received().len(), 3_005, "each once");
    assert_eq!(gateway.ended("forwarded"), 3_005);
}

/// A worker's poll is held for a minute and a half: it takes nobody's place.
#[tokio::test]
async fn a_workers_long_poll_takes_nobodys_place() {
    let upstream = Scripted::start(|mut connection| async move {
        let Some(received) = connection.receive().await else {
            return;
        };
        if received.line().contains("job-take") {
            // It never answers.
            connection.receive().await;
        }
        connection
            .write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
    })
    .await;
    let (gateway, _machine) = Scene::default()
        .margin("50ms")
        .set(Group::Health, "concurrency: 1, max_wait: 1s")
        .before(upstream.address);
    let mut polls = Vec::new();
    for number in 0..100 {
        let poll = format!("GET /v2/ep/job-take/w{number}?gpu=x HTTP/1.1\r\nhost: x\r\n\r\n");
        polls.push(gateway.send(poll).await);
    }
    eventually("all are there", || upstream.received().len() == 100).await;
    for _ in 0..20 {
        assert_eq!(gateway.get("/v2/ep/health").await.status, 200);
    }
    drop(polls);
    gateway.comes_to_rest().await;
    assert_eq!(upstream.received().len(), 120);
}

/// Callers of one address are told apart by keys that the upstream has accepted. Where podgate puts its
/// own in their place it accepts whatever they make up.
#[tokio::test]
async fn a_made_up_key_proves_nothing_where_ours_is_sent() {
    let key = std::env::temp_dir().join(format!("podgate-key-{}", std::process::id()));
    std::fs::write(&key, "rpa_OURS").unwrap();
    let injected = format!("60s, api_key: {{ file: '{}' }}", key.display());
    for (idle_timeout, sent, flows) in [
        ("60s", "rpa_MADE_UP_1", 2),
        (&*injected.leak(), "Bearer rpa_OURS", 1),
    ] {
        let upstream = Scripted::start(|mut connection| async move {
            while let Some(received) = connection.receive().await {
                if received.body == b"held" {
                    // Until its caller leaves.
                    connection.receive().await;
                    return;
                }
                connection
                    .write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await;
            }
        })
        .await;
        let (gateway, _machine) = Scene::default()
            .margin("50ms")
            .idle_timeout(idle_timeout)
            .set(Group::Run, "concurrency: 1, max_wait: 30s")
            .before(upstream.address);
        let post = |key: &str, body: &str| {
            format!(
                "POST /v2/ep/run HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let keys = ["rpa_MADE_UP_1", "rpa_MADE_UP_2"];
        for key in keys {
            let mut client = Raw::connect(&gateway).await;
            client.write(post(key, "")).await;
            assert_eq!(client.reply().await.unwrap().status, 200);
        }
        assert_eq!(upstream.received()[0].field("authorization"), [sent]);
        let holder = gateway.send(post(keys[0], "held")).await;
        eventually("it is there", || upstream.received().len() == 3).await;
        let mut waiting = Vec::new();
        for key in keys {
            waiting.push(gateway.send(post(key, "x")).await);
        }
        eventually("both wait", || gateway.waiting(Group::Run) == 2).await;
        let lanes = gateway.running.shared.admission.list();
        let lane = lanes
            .iter()
            .find(|listed| listed.lane.group().name() == "run");
        assert_eq!(lane.unwrap().lane.view().flows.len(), flows, "{sent}");
        drop((holder, waiting));
        gateway.comes_to_rest().await;
    }
    std::fs::remove_file(key).unwrap();
}
