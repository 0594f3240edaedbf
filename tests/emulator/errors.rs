//! Every row of the contract's error table that the service itself answers.

use podgate::emulator::Config;
use serde_json::{Value, json};

use super::support::{Answer, request, start, with_workers};

fn assert_problem(answer: &Answer, status: u16, title: &str) -> Value {
    let problem = answer.json();
    assert_eq!(answer.status, status, "{problem}");
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(
        (&problem["status"], &problem["title"]),
        (&json!(status), &json!(title))
    );
    assert!(problem["detail"].is_string(), "{problem}");
    problem
}

#[tokio::test]
async fn what_is_no_submission_is_400() {
    let upstream = start(with_workers(1)).await;
    for body in ["", "{", "[]", "{}", r#"{"inputs": 1}"#, r#"{"input": 1} x"#] {
        for operation in ["run", "runsync"] {
            let answer = upstream.call("POST", operation, body).await;
            assert_problem(&answer, 400, "Bad Request");
        }
    }
    assert_eq!(upstream.emulator.stats_json()["submissions"]["distinct"], 0);
}

#[tokio::test]
async fn a_body_above_the_limit_is_400_in_the_services_words() {
    let upstream = start(with_workers(1)).await;
    for (operation, mib) in [("run", 10), ("runsync", 20)] {
        let limit = mib << 20;
        let frame = r#"{"input":""}"#.len();
        let body = |bytes: usize| format!(r#"{{"input":"{}"}}"#, "x".repeat(bytes - frame));
        let answer = upstream.call("POST", operation, body(limit + 1)).await;
        let problem = assert_problem(&answer, 400, "Bad Request");
        let detail = format!("bad request: body: exceeded max body size of {mib}MiB");
        assert_eq!(problem["detail"], detail);
        let answer = upstream.call("POST", operation, body(limit)).await;
        assert_eq!(answer.status, 200, "exactly the limit");
    }
    assert_eq!(upstream.emulator.stats_json()["submissions"]["distinct"], 2);
}

#[tokio::test]
async fn a_missing_key_is_401_and_not_counted() {
    let upstream = start(with_workers(1)).await;
    for key in [None, Some(""), Some("Bearer "), Some("Bearer")] {
        let answer = request("GET", "/v2/ep/health", key, "".into());
        let answer = upstream.try_call(answer).await.unwrap();
        assert_problem(&answer, 401, "Unauthorized");
    }
    assert_eq!(upstream.seen("health")["arrived"], 0);
}

#[tokio::test]
async fn a_wrong_key_is_401_where_keys_are_named() {
    let upstream = start(Config {
        keys: ["secret".to_owned()].into(),
        ..with_workers(1)
    })
    .await;
    let keys = [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("secret", 200),
        ("Bearer other", 401),
        ("Basic secret", 401),
    ];
    for (key, status) in keys {
        let answer = request("GET", "/v2/ep/health", Some(key), "".into());
        assert_eq!(
            upstream.try_call(answer).await.unwrap().status,
            status,
            "{key}"
        );
    }
}

#[tokio::test]
async fn an_unknown_endpoint_and_an_unknown_path_are_404() {
    let upstream = start(with_workers(1)).await;
    for path in [
        "/v2/other/health",
        "/v2/ep/nothing",
        "/v2/ep/run/",
        "/v2//ep/run",
        "/",
    ] {
        let answer = request("POST", path, Some("key"), "".into());
        let answer = upstream.try_call(answer).await.unwrap();
        // `/health` is not for POST, but there is no endpoint to say so of.
        assert!(matches!(answer.status, 404 | 405), "{path}");
    }
    let answer = request("GET", "/v2/other/health", Some("key"), "".into());
    let answer = upstream.try_call(answer).await.unwrap();
    assert_problem(&answer, 404, "Not Found");
}

#[tokio::test]
async fn any_endpoint_is_there_unless_some_are_named_up_to_a_bound() {
    let upstream = start(Config {
        most_endpoints: 2,
        ..Config::default()
    })
    .await;
    for (name, status) in [("a", 200), ("b", 200), ("c", 404), ("a", 200)] {
        let answer = request("GET", &format!("/v2/{name}/health"), Some("key"), "".into());
        assert_eq!(
            upstream.try_call(answer).await.unwrap().status,
            status,
            "{name}"
        );
    }
}

#[tokio::test]
async fn an_unknown_job_is_404_with_a_numeric_status() {
    let upstream = start(with_workers(1)).await;
    let id = upstream.run(json!({"fail": "x"})).await;
    let cut = id.trim_end_matches("-u1").to_owned();
    let other = id.replace("-u1", "-u2");
    for id in [
        "undefined",
        &cut,
        &other,
        "00000000-0000-4000-8000-000000000000-u1",
    ] {
        for operation in ["status", "status-sync", "stream", "cancel", "retry"] {
            let answer = upstream
                .call("POST", &format!("{operation}/{id}"), "")
                .await;
            let problem = assert_problem(&answer, 404, "Not Found");
            assert_eq!(problem["detail"], "job not found", "{operation}/{id}");
        }
    }
    assert_eq!(upstream.get(&format!("status/{id}")).await.status, 200);
}

#[tokio::test]
async fn a_job_that_has_not_failed_is_not_retried() {
    let upstream = start(with_workers(1)).await;
    let id = upstream.run(json!(1)).await;
    upstream.until(&id, "COMPLETED").await;
    let answer = upstream.call("POST", &format!("retry/{id}"), "").await;
    assert_problem(&answer, 400, "Bad Request");
}

#[tokio::test]
async fn a_wrong_method_is_405_and_says_which_are_right() {
    let upstream = start(with_workers(1)).await;
    let answer = upstream.get("run").await;
    assert_problem(&answer, 405, "Method Not Allowed");
    assert_eq!(answer.header("allow"), Some("POST"));
    let answer = upstream.call("DELETE", "status/x", "").await;
    assert_eq!(answer.header("allow"), Some("GET, POST"));
}

#[tokio::test]
async fn the_emulators_own_routes_say_what_is_wrong() {
    let upstream = start(with_workers(1)).await;
    let answer = upstream
        .control("POST", "faults", &json!({"latency": 1}))
        .await;
    let problem = assert_problem(&answer, 400, "Bad Request");
    assert!(
        problem["detail"].as_str().unwrap().contains("`latency`"),
        "{problem}"
    );
    assert_eq!(
        upstream.control("GET", "faults", &json!({})).await.status,
        405
    );
    assert_eq!(
        upstream.control("POST", "stats", &json!({})).await.status,
        405
    );
    assert_eq!(
        upstream.control("GET", "nothing", &json!({})).await.status,
        404
    );
}
