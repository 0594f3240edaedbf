//! Webhook delivery (contract, section 1.12).
//!
//! | row | test |
//! | --- | --- |
//! | POST of the object `/status` gives, plus `input` and `webhook` | [`a_webhook_is_told_what_status_says_and_its_input`] |
//! | on completion, failure and timeout, of `/run` and `/runsync` alike | [`every_end_but_a_cancelling_is_told`] |
//! | anything but 200 is a failure; 2 more tries | [`a_webhook_is_posted_again_until_it_answers_200_three_times_at_most`] |
//! | 10 s apart | [`tries_are_ten_seconds_apart`], [`between_two_tries_lies_the_gap`] |
//! | nobody there | [`a_webhook_that_nobody_answers_is_given_up`] |

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use podgate::emulator::Config;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::support::{Upstream, eventually, start, with_workers};

#[expect(clippy::disallowed_methods, reason = "tests measure gaps in real time")]
fn now() -> Instant {
    Instant::now()
}

/// What was posted, and when.
struct Posted {
    at: Instant,
    content_type: Option<String>,
    body: Value,
}

/// A server that answers the k-th post with `statuses[k]`, and what was posted.
async fn hook(statuses: Vec<u16>) -> (String, mpsc::UnboundedReceiver<Posted>) {
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
                    assert_eq!(
                        (
                            request.method().as_str(),
                            request.uri().to_string().as_str()
                        ),
                        ("POST", "/hook?x=1")
                    );
                    let content_type = request.headers().get("content-type");
                    let content_type = content_type.map(|value| value.to_str().unwrap().to_owned());
                    let body = request.collect().await.unwrap().to_bytes();
                    let body = serde_json::from_slice(&body).unwrap();
                    seen.send(Posted {
                        at: now(),
                        content_type,
                        body,
                    })
                    .unwrap_or_else(|_| panic!("nobody listens"));
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

const GAP: Duration = Duration::from_millis(50);

async fn upstream() -> Upstream {
    start(Config {
        webhook_gap: GAP,
        ..with_workers(1)
    })
    .await
}

/// How many were delivered and given up.
fn counted(upstream: &Upstream) -> (u64, u64) {
    let stats = upstream.emulator.stats_json();
    let number = |name: &str| stats["webhooks"][name].as_u64().unwrap();
    (number("delivered"), number("failed"))
}

#[tokio::test]
async fn a_webhook_is_told_what_status_says_and_its_input() {
    let upstream = upstream().await;
    let (url, mut posted) = hook(vec![200]).await;
    let input = json!({"sleep": 0.05, "z": [1, {"a": null}]});
    let body = json!({"input": input, "webhook": url});
    let id = upstream.post("run", &body).await.json()["id"].clone();
    let notice = posted.recv().await.unwrap();
    assert_eq!(notice.content_type.as_deref(), Some("application/json"));
    let mut expected = upstream.until(id.as_str().unwrap(), "COMPLETED").await;
    expected["input"] = input;
    expected["webhook"] = json!(url);
    assert_eq!(notice.body, expected);
    eventually("delivered", || counted(&upstream) == (1, 0)).await;
}

#[tokio::test]
async fn every_end_but_a_cancelling_is_told() {
    let upstream = upstream().await;
    let (url, mut posted) = hook(vec![200; 5]).await;
    let order = |input: Value| json!({"input": input, "webhook": url, "webhookV2": url});
    let cancelled = upstream
        .post("run", &order(json!({"sleep": 60})))
        .await
        .json();
    let cancel = format!("cancel/{}", cancelled["id"].as_str().unwrap());
    assert_eq!(upstream.call("POST", &cancel, "").await.status, 200);
    for (operation, input, status) in [
        ("run", json!(1), "COMPLETED"),
        ("run", json!({"fail": "x"}), "FAILED"),
        ("run", json!({"lost": 9}), "TIMED_OUT"),
        ("runsync", json!(1), "COMPLETED"),
        ("runsync", json!({"fail": "x"}), "FAILED"),
    ] {
        upstream.post(operation, &order(input)).await;
        let notice = posted.recv().await.unwrap().body;
        assert_eq!(notice["status"], status, "{operation}: {notice}");
        let sync = notice["id"].as_str().unwrap().starts_with("sync-");
        assert_eq!(sync, operation == "runsync");
    }
    // One each: the cancelled job rang nothing, and `webhookV2` means nothing here.
    eventually("delivered", || counted(&upstream) == (5, 0)).await;
}

#[tokio::test]
async fn a_webhook_is_posted_again_until_it_answers_200_three_times_at_most() {
    let upstream = upstream().await;
    let (url, mut posted) = hook(vec![500, 200]).await;
    let input = json!({"sleep": 0.05});
    let body = json!({"input": input, "webhook": url});
    let id = upstream.post("run", &body).await.json()["id"].clone();
    for _ in 0..2 {
        let notice = posted.recv().await.unwrap().body;
        assert_eq!(
            (&notice["id"], &notice["status"]),
            (&id, &json!("COMPLETED"))
        );
        assert_eq!((&notice["input"], &notice["output"]), (&input, &input));
        assert_eq!(notice["webhook"], url);
    }
    eventually("delivered", || counted(&upstream) == (1, 0)).await;

    let (url, mut posted) = hook(vec![500, 404, 201]).await;
    let body = json!({"input": {"fail": "x"}, "webhook": url});
    upstream.post("run", &body).await;
    for _ in 0..3 {
        assert_eq!(posted.recv().await.unwrap().body["status"], "FAILED");
    }
    eventually("given up", || counted(&upstream) == (1, 1)).await;
}

#[test]
fn tries_are_ten_seconds_apart() {
    assert_eq!(Config::default().webhook_gap, Duration::from_secs(10));
}

#[tokio::test]
async fn between_two_tries_lies_the_gap() {
    let upstream = upstream().await;
    let (url, mut posted) = hook(vec![500, 500, 200]).await;
    upstream
        .post("run", &json!({"input": 1, "webhook": url}))
        .await;
    let mut before = posted.recv().await.unwrap().at;
    for _ in 0..2 {
        let next = posted.recv().await.unwrap().at;
        // Counted from the answer, which is later than what was read here.
        assert!(next - before >= GAP, "{:?}", next - before);
        before = next;
    }
}

#[tokio::test]
async fn a_webhook_that_nobody_answers_is_given_up() {
    let upstream = upstream().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}/", nobody.local_addr().unwrap());
    drop(nobody);
    for (number, url) in [closed.as_str(), "https://127.0.0.1/", "nowhere", ""]
        .into_iter()
        .enumerate()
    {
        let body = json!({"input": 1, "webhook": url});
        let id = upstream.post("run", &body).await.json()["id"].clone();
        upstream.until(id.as_str().unwrap(), "COMPLETED").await;
        eventually("given up", || counted(&upstream) == (0, number as u64 + 1)).await;
    }
}
