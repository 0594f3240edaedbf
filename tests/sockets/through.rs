//! A request goes through and comes back as it was; what is not let through is told why.

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use podgate::emulator::limits::Group;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::scripted::Scripted;
use super::support::{Scene, Tight, call, eventually, job, request, together, unique, within};

/// Not text in any encoding.
const BINARY: &[u8] = &[0x1f, 0x8b, 8, 0, 0xff, 0, b'\r', b'\n', 0xc3, 0x28];

#[tokio::test]
async fn a_request_and_its_answer_pass_untouched() {
    let answer: Vec<u8> = [
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\n\
          x-request-id: up-1\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nkeep-alive: timeout=5\r\n\
          content-length: 10\r\n\r\n"
            .as_slice(),
        BINARY,
    ]
    .concat();
    let upstream = Scripted::answering(answer.leak()).await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let path = "/v2/ep-1_A/run?webhook=https%3A%2F%2Fx%2F%3Fa%3D1&&b=%zz+&c";
    let sent = Request::builder()
        .method("POST")
        .uri(path)
        .header("host", "podgate.test")
        .header("authorization", "rpa_BARE")
        .header("content-type", "application/json; charset=utf-8")
        .header("content-encoding", "gzip")
        .header("accept-encoding", "br;q=0.5, gzip")
        .header("user-agent", "RunPod-Python-SDK/1.0")
        .header("x-twice", "one")
        .header("x-twice", "two")
        .header("connection", "x-hop")
        .header("x-hop", "mine")
        .header("x-forwarded-for", "10.0.0.1")
        .body(Full::new(BINARY.into()))
        .unwrap();
    let came_back = gateway.call(sent).await;

    let received = upstream.received();
    let [received] = received.as_slice() else {
        panic!("one request: {received:?}")
    };
    assert_eq!(received.line(), format!("POST {path} HTTP/1.1"));
    assert_eq!(received.body, BINARY);
    let host = upstream.address.to_string();
    for (name, values) in [
        ("host", vec![host.as_str()]),
        ("authorization", vec!["rpa_BARE"]),
        ("content-type", vec!["application/json; charset=utf-8"]),
        ("content-encoding", vec!["gzip"]),
        ("accept-encoding", vec!["br;q=0.5, gzip"]),
        ("user-agent", vec!["RunPod-Python-SDK/1.0"]),
        ("x-twice", vec!["one", "two"]),
        ("content-length", vec!["10"]),
        ("connection", vec![]),
        ("x-hop", vec![]),
        ("x-forwarded-for", vec![]),
        ("transfer-encoding", vec![]),
    ] {
        assert_eq!(received.field(name), values, "{name}");
    }
    let [via] = received.field("via")[..] else {
        panic!("one hop: {received:?}")
    };
    let number = via.strip_prefix("1.1 podgate-").unwrap();
    assert!(number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit()));

    assert_eq!(came_back.status, 200);
    assert_eq!(came_back.body, BINARY);
    for (name, value) in [
        ("content-type", "application/json"),
        ("content-encoding", "gzip"),
        ("x-request-id", "up-1"),
        ("content-length", "10"),
        ("via", "1.1 podgate"),
    ] {
        assert_eq!(came_back.header(name), Some(value), "{name}");
    }
    let cookies: Vec<_> = came_back.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    assert!(!came_back.headers.contains_key("keep-alive"));
}

#[tokio::test]
async fn every_answer_of_the_upstream_passes_with_its_status_and_body() {
    let upstream = Scripted::start(|mut connection| async move {
        while let Some(received) = connection.receive().await {
            // The endpoint's name says what to answer.
            let status = received.line().split('/').nth(2).unwrap().to_owned();
            let answer = match status.as_str() {
                "204" | "304" => format!("HTTP/1.1 {status} X\r\nx-s: {status}\r\n\r\n"),
                _ => format!(
                    "HTTP/1.1 {status} X\r\nx-s: {status}\r\ncontent-length: 3\r\n\r\n{status}"
                ),
            };
            connection.write(answer).await;
        }
    })
    .await;
    // Nobody has time for another try after the 429.
    let scene = Scene::default().set(Group::Health, "max_wait: 0s");
    let (gateway, _machine) = scene.before(upstream.address);
    for status in [
        200, 201, 202, 204, 206, 301, 304, 307, 400, 401, 402, 403, 404, 409, 410, 413, 418, 422,
        429, 499, 500, 502, 503, 504, 599,
    ] {
        let answer = gateway.get(&format!("/v2/{status}/health")).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("x-s"), Some(status.to_string().as_str()));
        let body = match status {
            204 | 304 => String::new(),
            _ => status.to_string(),
        };
        assert_eq!(answer.body, body);
        let said = format!("podgate; received-status={status}");
        assert_eq!(answer.header("proxy-status"), Some(said.as_str()));
    }
    assert_eq!(upstream.received().len(), 25, "one for each");
}

#[tokio::test]
async fn an_answer_without_a_length_passes_whole() {
    for (ending, answer) in [
        (
            "chunked",
            &b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n4\r\ndefg\r\n0\r\nx-trailer: 1\r\n\r\n"[..],
        ),
        ("closed", b"HTTP/1.1 200 OK\r\n\r\nabcdefg"),
    ] {
        let upstream = Scripted::start(move |mut connection| async move {
            connection.answer(answer).await;
        })
        .await;
        let (gateway, _machine) = Scene::default().before(upstream.address);
        let came_back = gateway.get("/v2/ep/health").await;
        assert_eq!(came_back.body, "abcdefg", "{ending}");
        gateway.comes_to_rest().await;
    }
}

#[tokio::test]
async fn a_chunked_request_is_declared_upstream() {
    let upstream = Scripted::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let mut client = gateway
        .send(
            "POST /v2/ep/run HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
             4;a=b\r\nabcd\r\n3\r\nefg\r\n0\r\nx-trailer: 1\r\n\r\n",
        )
        .await;
    let mut head = [0; 15];
    within("an answer", client.read_exact(&mut head))
        .await
        .unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    let received = upstream.received();
    assert_eq!(received[0].field("content-length"), ["7"]);
    assert_eq!(received[0].field("transfer-encoding"), [""; 0]);
    assert_eq!(received[0].body, b"abcdefg");
}

/// Submits, polls until it is done, and gets its input back.
#[tokio::test]
async fn a_job_goes_its_whole_way_with_one_worker_and_with_two() {
    for workers in [1, 2] {
        let stand = Scene::default().workers(workers).start();
        let calls = (0..100).map(|_| async {
            let id = unique();
            let submitted = stand.gateway.post("/v2/ep/run", job(&id)).await.json();
            assert_eq!(submitted["status"], "IN_QUEUE");
            let path = format!("/v2/ep/status/{}", submitted["id"].as_str().unwrap());
            loop {
                let view = stand.gateway.get(&path).await.json();
                if view["status"] == "COMPLETED" {
                    assert_eq!(view["output"]["id"], id);
                    return;
                }
            }
        });
        let all = together(calls);
        within("all jobs are done", all).await;
        stand.gateway.comes_to_rest().await;
        assert_eq!(stand.upstream.submissions(), (100, 0));
        stand.was_never_over();
    }
}

#[tokio::test]
async fn what_is_no_operation_is_told_so_and_goes_nowhere() {
    let upstream = Scripted::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    for (method, path, status, outcome) in [
        ("GET", "/", 404, "no_route"),
        ("GET", "/metrics", 404, "no_route"),
        ("POST", "/v2/ep/RUN", 404, "no_route"),
        ("POST", "/v2/ep/run/", 404, "no_route"),
        ("POST", "/v2/e%70/run", 404, "no_route"),
        ("GET", "/v2/ep/status/a/b", 404, "no_route"),
        ("POST", "/v2//ep/run", 400, "bad_request"),
        ("GET", "/v2/ep/run", 405, "method_not_allowed"),
        ("DELETE", "/v2/ep/status/j", 405, "method_not_allowed"),
    ] {
        let answer = gateway.call(request(method, path, "")).await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json")
        );
        let problem = answer.json();
        assert_eq!(
            problem["status"],
            json!(status),
            "a number: {method} {path}"
        );
        assert_eq!(problem["outcome"], outcome, "{method} {path}");
        for member in ["type", "title", "detail"] {
            assert!(problem[member].is_string(), "{member}: {problem}");
        }
        let error = match outcome {
            "bad_request" => "http_request_error",
            _ => "http_request_denied",
        };
        let said = format!("podgate; error={error}; details=\"{outcome}\"");
        assert_eq!(answer.header("proxy-status"), Some(said.as_str()));
        let allow = (status == 405).then_some(match method {
            "GET" => "POST",
            _ => "GET, POST",
        });
        assert_eq!(answer.header("allow"), allow, "{method} {path}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn what_is_too_large_is_told_so_declared_or_not() {
    let upstream = Scripted::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (gateway, _machine) = Scene::default()
        .set(Group::Run, "max_body: 64KiB")
        .before(upstream.address);
    let whole = vec![b'x'; 65_536];
    assert_eq!(gateway.post("/v2/ep/run", whole.clone()).await.status, 200);
    let larger = [whole.as_slice(), b"x"].concat();
    let answer = gateway.post("/v2/ep/run", larger.clone()).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.json()["status"], 413);
    assert_eq!(answer.header("retry-after"), None);

    let chunked = [
        b"POST /v2/ep/run HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n10001\r\n",
        larger.as_slice(),
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    let mut client = gateway.send(chunked).await;
    let mut head = [0; 12];
    within("an answer", client.read_exact(&mut head))
        .await
        .unwrap();
    assert_eq!(&head, b"HTTP/1.1 413");
    assert_eq!(upstream.received().len(), 1, "the one that fitted");
    assert_eq!(gateway.ended("payload_too_large"), 2);
}

#[tokio::test]
async fn who_cannot_make_its_deadline_is_told_when_to_come_back() {
    let stand = Scene::default()
        .limit(
            Group::Run,
            Tight {
                requests: Some(2),
                window: Duration::from_secs(10),
                concurrency: None,
            },
        )
        .set(Group::Run, "max_wait: 1s")
        .start();
    for _ in 0..2 {
        stand.still_serves().await;
    }
    let answer = stand.gateway.post("/v2/ep/run", job(&unique())).await;
    assert_eq!(answer.status, 429);
    let problem = answer.json();
    assert_eq!(problem["status"], 429);
    assert_eq!(problem["outcome"], "out_of_reach");
    let kind = problem["type"].as_str().unwrap();
    assert!(kind.ends_with("#quota-exceeded"), "{kind}");
    let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=15).contains(&seconds), "{seconds}");
    assert_eq!(stand.upstream.seen("ep", Group::Run)["arrived"], 2);
    stand.was_never_over();
}

#[tokio::test]
async fn the_counter_tells_how_every_request_ended() {
    let stand = Scene::default()
        .limit(
            Group::Run,
            Tight {
                requests: Some(2),
                window: Duration::from_secs(60),
                concurrency: Some(2),
            },
        )
        .set(Group::Run, "max_wait: 2m, queue: 1, max_body: 1KiB")
        .start();
    let gateway = &stand.gateway;
    stand.still_serves().await;
    stand.still_serves().await;
    gateway.get("/v2/ep/health").await;
    gateway.get("/nowhere").await;
    gateway.get("/v2/ep/run").await;
    gateway.post("/v2/ep/run", vec![b'x'; 2_000]).await;
    stand.upstream.faults(json!({"status": 500}));
    assert_eq!(gateway.get("/v2/ep/health").await.status, 500);
    stand.upstream.faults(json!({"reset_before_head": true}));
    assert_eq!(gateway.get("/v2/ep/health").await.status, 502);
    let waits = gateway
        .send(super::support::post("/v2/ep/run", &job(&unique())))
        .await;
    eventually("it waits", || gateway.waiting(Group::Run) == 1).await;
    let shed = gateway.post("/v2/ep/run", job(&unique())).await;
    assert_eq!(shed.json()["outcome"], "queue_full");
    drop(waits);
    gateway.comes_to_rest().await;

    let page = gateway.admin("/metrics").await;
    assert_eq!(
        page.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    for (endpoint, operation, outcome, count) in [
        ("ep", "run", "forwarded", 2),
        ("ep", "health", "forwarded", 2),
        ("other", "other", "no_route", 1),
        ("other", "other", "method_not_allowed", 1),
        ("ep", "run", "payload_too_large", 1),
        ("ep", "health", "upstream_broke", 1),
        ("ep", "run", "queue_full", 1),
        ("ep", "run", "client_gone", 1),
    ] {
        let line = format!(
            "podgate_requests_total{{endpoint=\"{endpoint}\",operation=\"{operation}\",\
             outcome=\"{outcome}\"}} {count}\n"
        );
        assert!(page.contains(&line), "{line}{page}");
    }
    let requests = page
        .lines()
        .filter(|line| line.starts_with("podgate_requests_total{") && !line.ends_with(" 0"));
    assert_eq!(requests.count(), 8, "{page}");
    let answered =
        "podgate_upstream_responses_total{endpoint=\"ep\",operation=\"health\",status=\"5xx\"} 1\n";
    assert!(page.contains(answered), "{page}");
}

#[tokio::test]
async fn the_admin_door_shows_the_lane() {
    let stand = Scene::default().start();
    assert_eq!(stand.gateway.admin("/lanes").await.json(), json!([]));
    stand.still_serves().await;
    stand.gateway.get("/v2/another/health").await;
    eventually("the permit is back", || {
        stand.gateway.permits(Group::Run) == 0
    })
    .await;
    let lanes = stand.gateway.admin("/lanes").await.json();
    let names: Vec<_> = lanes
        .as_array()
        .unwrap()
        .iter()
        .map(|lane| (lane["endpoint"].as_str(), lane["group"].as_str()))
        .collect();
    assert_eq!(
        names,
        [(Some("another"), Some("health")), (Some("ep"), Some("run"))]
    );
    let run = &lanes[1];
    let window = json!({
        "limit": 1000, "effective_limit": 1000, "used": 1, "burst": 250, "next_free_ms": 0
    });
    assert_eq!(run["window"], window);
    assert_eq!(run["permits"], json!({"limit": 200, "in_use": 0}));
    assert_eq!(run["waiting"], json!({"total": 0, "flows": {}}));
    assert_eq!(
        (&run["paused_ms"], &run["mode"]),
        (&json!(0), &json!("enforce"))
    );
    assert_eq!(lanes[0]["window"]["limit"], Value::Null);

    for (path, status) in [
        ("/livez", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/x", 404),
    ] {
        assert_eq!(stand.gateway.admin(path).await.status, status, "{path}");
    }
    let written = request("POST", "/lanes", "");
    let answer = call(stand.gateway.running.admin, written).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("allow")),
        (405, Some("GET, HEAD"))
    );
}
