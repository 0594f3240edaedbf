//! The contract's state machine as a caller sees it (section 2). All its edges, at exact times: `edges`.

use std::time::Duration;

use podgate::emulator::Config;
use podgate::emulator::site::Fleet;
use serde_json::json;

use super::support::{start, with_workers};

#[tokio::test]
async fn waiting_then_running_then_completed() {
    let upstream = start(with_workers(1)).await;
    let first = upstream.run(json!({"sleep": 0.3})).await;
    let second = upstream.run(json!({"sleep": 0.3})).await;
    upstream.until(&first, "IN_PROGRESS").await;
    let view = upstream.until(&second, "IN_QUEUE").await;
    assert_eq!(view, json!({"id": second, "status": "IN_QUEUE"}));
    let view = upstream.until(&second, "IN_PROGRESS").await;
    assert!(
        view["delayTime"].is_u64() && view["workerId"].is_string(),
        "{view}"
    );
    let view = upstream.until(&second, "COMPLETED").await;
    assert!(view["delayTime"].as_u64().unwrap() >= 200, "{view}");
}

#[tokio::test]
async fn an_error_and_an_exceeded_execution_timeout_are_failed() {
    let upstream = start(with_workers(2)).await;
    let id = upstream.run(json!({"fail": "boom"})).await;
    let view = upstream.until(&id, "FAILED").await;
    assert_eq!((&view["error"], view.get("output")), (&json!("boom"), None));
    let body = json!({"input": {"sleep": 60}, "policy": {"executionTimeout": 50}});
    let id = upstream.post("run", &body).await.json()["id"].clone();
    let view = upstream.until(id.as_str().unwrap(), "FAILED").await;
    assert_eq!(view["error"], "executionTimeout exceeded");
}

#[tokio::test]
async fn a_job_whose_workers_are_lost_is_requeued_and_then_timed_out() {
    let upstream = start(with_workers(1)).await;
    let id = upstream.run(json!({"lost": 1})).await;
    assert_eq!(upstream.until(&id, "COMPLETED").await["retries"], 1);
    let id = upstream.run(json!({"lost": 99})).await;
    upstream.until(&id, "TIMED_OUT").await;
    assert_eq!(
        upstream
            .call("POST", &format!("retry/{id}"), "")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_job_whose_ttl_is_over_is_gone_even_while_it_runs() {
    let upstream = start(with_workers(1)).await;
    let body = json!({"input": {"sleep": 60}, "policy": {"ttl": 200}});
    let id = upstream.post("run", &body).await.json()["id"].clone();
    // A held call is answered when the job goes.
    let gone = upstream
        .get(&format!("status-sync/{}", id.as_str().unwrap()))
        .await;
    assert_eq!((gone.status, &gone.json()["status"]), (404, &json!(404)));
}

#[tokio::test]
async fn an_output_too_large_is_completed_without_it() {
    let upstream = start(with_workers(1)).await;
    let id = upstream.run(json!({"bytes": 11_000_000})).await;
    let view = upstream.until(&id, "COMPLETED").await;
    assert!(view.get("output").is_none());
}

#[tokio::test]
async fn cold_workers_keep_the_first_job_waiting() {
    let fleet = Fleet {
        workers: 2,
        cold_start: Duration::from_millis(200),
    };
    let config = Config {
        endpoints: [("ep".to_owned(), fleet)].into(),
        ..Config::default()
    };
    let upstream = start(config).await;
    let view = upstream.post("runsync", &json!({"input": 1})).await.json();
    assert_eq!(view["status"], "COMPLETED");
    assert!(view["delayTime"].as_u64().unwrap() >= 200, "{view}");
}
