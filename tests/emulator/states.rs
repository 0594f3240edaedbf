//! The arrows of the contract's state machine as a caller sees them, and the webhooks they ring. At
//! their exact times they are tested beside the code.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use podgate::emulator::Config;
use podgate::emulator::site::Fleet;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::support::{eventually, start, with_workers};

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

/// A server that answers the k-th post with `statuses[k]`, and what was posted.
async fn hook(statuses: Vec<u16>) -> (String, mpsc::UnboundedReceiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?x=1", listener.local_addr().unwrap());
    let (seen, posted) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for status in statuses {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let seen = seen.clone();
                async move {
                    assert_eq!(request.uri().path(), "/hook");
                    let body = request.collect().await.unwrap().to_bytes();
                    seen.send(serde_json::from_slice(&body).unwrap()).unwrap();
                    let response = Response::builder().status(status);
                    Ok::<_, hyper::Error>(response.body(Full::<Bytes>::default()).unwrap())
                }
            });
            let serve = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(serve);
        }
    });
    (url, posted)
}

#[tokio::test]
async fn a_webhook_is_posted_again_until_it_answers_200_three_times_at_most() {
    let upstream = start(Config {
        webhook_gap: Duration::from_millis(20),
        ..with_workers(1)
    })
    .await;
    let (url, mut posted) = hook(vec![500, 200]).await;
    let input = json!({"sleep": 0.05});
    let body = json!({"input": input, "webhook": url});
    let id = upstream.post("run", &body).await.json()["id"].clone();
    for _ in 0..2 {
        let notice = posted.recv().await.unwrap();
        assert_eq!(
            (&notice["id"], &notice["status"]),
            (&id, &json!("COMPLETED"))
        );
        assert_eq!((&notice["input"], &notice["output"]), (&input, &input));
        assert_eq!(notice["webhook"], url);
    }
    let webhooks = || upstream.emulator.stats_json()["webhooks"].clone();
    eventually("delivered", || webhooks()["delivered"] == 1).await;

    let (url, mut posted) = hook(vec![500, 404, 201]).await;
    let body = json!({"input": {"fail": "x"}, "webhook": url});
    upstream.post("run", &body).await;
    for _ in 0..3 {
        assert_eq!(posted.recv().await.unwrap()["status"], "FAILED");
    }
    eventually("given up", || webhooks()["failed"] == 1).await;
}
