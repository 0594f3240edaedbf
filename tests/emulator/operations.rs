//! Every row of the contract's operation table.

use std::time::{Duration, Instant};

use podgate::emulator::Config;
use podgate::emulator::jobs::Keeping;
use serde_json::{Value, json};

use super::support::{Upstream, start, with_workers};

#[expect(
    clippy::disallowed_methods,
    reason = "tests measure holds in real time"
)]
fn now() -> Instant {
    Instant::now()
}

async fn upstream() -> Upstream {
    start(with_workers(4)).await
}

#[tokio::test]
async fn run_answers_at_once_with_an_id_and_in_queue() {
    let upstream = upstream().await;
    let answer = upstream.post("run", &json!({"input": {"sleep": 60}})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    let id = body["id"].as_str().unwrap();
    assert!(id.ends_with("-u1") && !id.starts_with("sync-"), "{id}");
    assert_eq!(body, json!({"id": id, "status": "IN_QUEUE"}));
}

#[tokio::test]
async fn runsync_answers_with_the_ended_job() {
    let upstream = upstream().await;
    let input = json!({"prompt": "hi", "sleep": 0.05});
    let answer = upstream.post("runsync", &json!({"input": input})).await;
    assert_eq!(answer.status, 200);
    let view = answer.json();
    assert!(view["id"].as_str().unwrap().starts_with("sync-"), "{view}");
    assert_eq!(
        (&view["status"], &view["output"]),
        (&json!("COMPLETED"), &input)
    );
    assert!(view["executionTime"].as_u64().unwrap() >= 50);
    assert!(view["delayTime"].is_u64() && view["workerId"].is_string());
}

#[tokio::test]
async fn runsync_holds_no_longer_than_wait_and_the_job_lives_on() {
    let upstream = upstream().await;
    let started = now();
    let answer = upstream
        .post("runsync?wait=1000", &json!({"input": {"sleep": 1.5}}))
        .await;
    assert!(started.elapsed() >= Duration::from_secs(1));
    let view = answer.json();
    assert_eq!(
        (answer.status, &view["status"]),
        (200, &json!("IN_PROGRESS"))
    );
    let id = view["id"].as_str().unwrap();
    let ended = upstream.get(&format!("status-sync/{id}?wait=60000")).await;
    assert_eq!(ended.json()["status"], "COMPLETED");
}

#[tokio::test]
async fn the_status_family_takes_get_and_post() {
    let upstream = upstream().await;
    let id = upstream.run(json!({"n": 1})).await;
    upstream.until(&id, "COMPLETED").await;
    for method in ["GET", "POST"] {
        for operation in ["status", "status-sync", "stream"] {
            let answer = upstream
                .call(method, &format!("{operation}/{id}"), "")
                .await;
            assert_eq!(answer.status, 200, "{method} {operation}");
            assert_eq!(answer.json()["status"], "COMPLETED", "{method} {operation}");
        }
    }
}

#[tokio::test]
async fn status_gives_back_the_input_byte_by_byte() {
    let upstream = upstream().await;
    let input = r#"{"z":1.50,"a":"é","big":123456789012345678901234567890}"#;
    let body = format!(r#"{{"input":{input}}}"#);
    let id = upstream.call("POST", "run", body).await.json()["id"].clone();
    let answer = upstream
        .get(&format!("status/{}", id.as_str().unwrap()))
        .await;
    let text = std::str::from_utf8(&answer.body).unwrap();
    assert!(text.contains(&format!(r#""output":{input}"#)), "{text}");
}

#[tokio::test]
async fn a_status_call_with_ttl_shortens_the_jobs_life() {
    let upstream = upstream().await;
    let id = upstream.run(json!(1)).await;
    assert_eq!(
        upstream.get(&format!("status/{id}?ttl=0")).await.status,
        404
    );
    assert_eq!(upstream.get(&format!("status/{id}")).await.status, 404);
}

#[tokio::test]
async fn status_sync_is_held_until_the_job_has_ended() {
    let upstream = upstream().await;
    let id = upstream.run(json!({"sleep": 0.3})).await;
    let started = now();
    let view = upstream.get(&format!("status-sync/{id}")).await.json();
    assert_eq!(view["status"], "COMPLETED");
    // The job had begun before.
    assert!(started.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn stream_hands_every_chunk_over_once_and_is_held_while_there_is_none() {
    let upstream = upstream().await;
    let id = upstream
        .run(json!({"sleep": 0.1, "n": 4, "gap": 0.1}))
        .await;
    let mut chunks = Vec::new();
    let mut calls = 0;
    loop {
        let reply = upstream.get(&format!("stream/{id}")).await.json();
        let stream = reply["stream"].as_array().unwrap();
        chunks.extend(stream.iter().map(|chunk| chunk["output"].clone()));
        calls += 1;
        if reply["status"] != "IN_PROGRESS" {
            break;
        }
        assert!(!stream.is_empty(), "held, not answered empty");
    }
    assert_eq!(chunks, [json!(0), json!(1), json!(2), json!(3)]);
    assert!(calls <= 4, "{calls} calls");
    let after = upstream.get(&format!("stream/{id}")).await.json();
    assert_eq!(after, json!({"status": "COMPLETED", "stream": []}));
}

#[tokio::test]
async fn an_empty_stream_is_held_for_wait() {
    let upstream = start(with_workers(0)).await;
    let id = upstream.run(json!(1)).await;
    let started = now();
    let reply = upstream.get(&format!("stream/{id}?wait=1000")).await.json();
    assert_eq!(reply, json!({"status": "IN_QUEUE", "stream": []}));
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn cancel_ends_a_running_and_a_waiting_job_at_once() {
    let upstream = start(with_workers(1)).await;
    let running = upstream.run(json!({"sleep": 60})).await;
    let waiting = upstream.run(json!({"sleep": 60})).await;
    let reply = upstream
        .call("POST", &format!("cancel/{waiting}"), "{}")
        .await;
    assert_eq!(reply.json(), json!({"id": waiting, "status": "CANCELLED"}));
    let reply = upstream
        .call("POST", &format!("cancel/{running}"), "")
        .await;
    assert_eq!(reply.json()["status"], "CANCELLED");
    let view = upstream.until(&running, "CANCELLED").await;
    assert!(view["executionTime"].is_u64(), "{view}");
    let next = upstream.run(json!(1)).await;
    upstream.until(&next, "COMPLETED").await;
}

#[tokio::test]
async fn retry_runs_a_failed_job_again_under_its_name() {
    let upstream = upstream().await;
    let id = upstream.run(json!({"fail": "boom"})).await;
    upstream.until(&id, "FAILED").await;
    let reply = upstream.call("POST", &format!("retry/{id}"), "").await;
    assert_eq!(
        (reply.status, reply.json()),
        (200, json!({"id": id, "status": "IN_QUEUE"}))
    );
    assert_eq!(upstream.until(&id, "FAILED").await["error"], "boom");
    assert_eq!(upstream.get("health").await.json()["jobs"]["retried"], 1);
}

#[tokio::test]
async fn purge_queue_removes_what_waits() {
    let upstream = start(with_workers(1)).await;
    let running = upstream.run(json!({"sleep": 60})).await;
    let waiting = upstream.run(json!(1)).await;
    let reply = upstream.call("POST", "purge-queue", "").await;
    assert_eq!(reply.json(), json!({"removed": 1, "status": "completed"}));
    assert_eq!(upstream.get(&format!("status/{waiting}")).await.status, 404);
    assert_eq!(upstream.until(&running, "IN_PROGRESS").await["id"], running);
}

#[tokio::test]
async fn health_has_all_eleven_counts() {
    let upstream = start(with_workers(2)).await;
    for input in [
        json!({"sleep": 60}),
        json!({"sleep": 60}),
        json!({"sleep": 60}),
    ] {
        upstream.run(input).await;
    }
    assert_eq!(
        upstream.get("health").await.json(),
        json!({
            "jobs": {"completed": 0, "failed": 0, "inProgress": 2, "inQueue": 1, "retried": 0},
            "workers": {
                "idle": 0, "initializing": 0, "ready": 0, "running": 2, "throttled": 0,
                "unhealthy": 0,
            },
        })
    );
}

#[tokio::test]
async fn requests_lists_what_is_open() {
    let upstream = start(with_workers(1)).await;
    let running = upstream.run(json!({"sleep": 60})).await;
    let waiting = upstream.run(json!(1)).await;
    let list = upstream.get("requests").await.json();
    let ids: Vec<&Value> = list["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["id"])
        .collect();
    assert_eq!(ids, [&json!(running), &json!(waiting)]);
}

#[tokio::test]
async fn ended_jobs_are_gone_after_their_retention() {
    let upstream = start(Config {
        keeping: Keeping {
            run: Duration::from_millis(150),
            runsync: Duration::ZERO,
            ..Keeping::default()
        },
        ..with_workers(2)
    })
    .await;
    let id = upstream.run(json!(1)).await;
    upstream.until(&id, "COMPLETED").await;
    let gone = async {
        while upstream.get(&format!("status/{id}")).await.status != 404 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .unwrap();
    let id = upstream
        .post("runsync", &json!({"input": {"sleep": 0.05}}))
        .await;
    assert_eq!(id.status, 404, "gone at its end, by this configuration");
}
