//! What podgate tells of a request: in its answer, in the access log, and in the metrics.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use podgate::emulator::limits::Group;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;

use crate::scripted::Scripted;
use crate::support::{
    Answer, Gateway, Scene, Stand, Tight, eventually, job, post, request, unique, within,
};

/// Two calls a minute, and nobody waits for the third.
fn two_a_minute() -> Scene {
    Scene::default()
        .limit(
            Group::Run,
            Tight {
                requests: Some(2),
                window: Duration::from_secs(60),
                concurrency: Some(9),
            },
        )
        .logged()
}

async fn run(gateway: &Gateway) -> Answer {
    gateway.post("/v2/ep/run", job(&unique())).await
}

/// `key=value` in a line of the access log.
fn value<'a>(line: &'a str, key: &str) -> &'a str {
    let word = line
        .split(' ')
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    word.unwrap_or_else(|| panic!("no {key} in {line}"))
}

#[tokio::test]
async fn every_answer_of_a_limited_lane_says_what_is_left() {
    let Stand { gateway, .. } = &two_a_minute().start();
    for left in ["\"run\";r=1;t=60", "\"run\";r=0;t=61"] {
        let answer = run(gateway).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("ratelimit"), Some(left));
        assert_eq!(answer.header("ratelimit-policy"), Some("\"run\";q=2;w=60"));
    }
    let refused = run(gateway).await;
    assert_eq!(refused.status, 429);
    let left = refused.header("ratelimit").unwrap();
    assert!(left.starts_with("\"run\";r=0;t="), "{left}");
    let unlimited = gateway.get("/v2/ep/health").await;
    assert_eq!(unlimited.header("ratelimit"), None);
    let nowhere = gateway.get("/nowhere").await;
    assert_eq!(nowhere.header("ratelimit"), None);
}

#[tokio::test]
async fn a_refusal_names_the_lane_its_figures_and_the_request() {
    let Stand { gateway, .. } = &two_a_minute().start();
    run(gateway).await;
    run(gateway).await;
    let refused = run(gateway).await;
    let problem = refused.json();
    assert_eq!(problem["violated-policies"], json!(["run"]));
    let lane = &problem["lane"];
    for (member, expected) in [
        ("endpoint", json!("ep")),
        ("group", json!("run")),
        ("requests", json!(2)),
        ("window_seconds", json!(60.0)),
        ("used", json!(2)),
        ("concurrency", json!(9)),
    ] {
        assert_eq!(lane[member], expected, "{problem}");
    }
    let wait = problem["retry_after"].as_u64().unwrap().to_string();
    assert_eq!(refused.header("retry-after"), Some(wait.as_str()));
    let id = problem["request_id"].as_str().unwrap();
    assert_eq!(refused.header("x-request-id"), Some(id));
    assert!(
        refused
            .header("server-timing")
            .unwrap()
            .starts_with("queue;dur=")
    );
    let lines = gateway.log(3).await;
    assert_eq!(value(&lines[2], "id"), id);
}

#[tokio::test]
async fn what_an_upstream_says_of_itself_is_kept_and_ours_comes_behind() {
    let upstream = Scripted::answering(
        b"HTTP/1.1 200 OK\r\nproxy-status: edge; hit\r\nserver-timing: gpu;dur=5\r\n\
          x-request-id: theirs\r\nratelimit: \"theirs\";r=5;t=1\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let answer = gateway.get("/v2/ep/status/j").await;
    let all = |name: &str| -> Vec<_> {
        let values = answer.headers.get_all(name).iter();
        values.map(|value| value.to_str().unwrap()).collect()
    };
    assert_eq!(
        all("proxy-status"),
        ["edge; hit", "podgate; received-status=200"]
    );
    let timing = all("server-timing");
    assert_eq!(timing[0], "gpu;dur=5");
    assert!(timing[1].starts_with("queue;dur="), "{timing:?}");
    assert!(timing[1].contains(", upstream;dur="), "{timing:?}");
    assert_eq!(all("x-request-id"), ["theirs"]);
    assert_eq!(all("ratelimit").len(), 2);
}

#[tokio::test]
async fn a_request_keeps_the_name_it_came_with_and_gets_one_if_it_has_none() {
    let upstream = Scripted::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (gateway, _machine) = Scene::default().logged().before(upstream.address);
    let named = Request::builder()
        .uri("/v2/ep/health")
        .header("host", "podgate")
        .header("x-request-id", "mine-1")
        .body(Full::default())
        .unwrap();
    gateway.call(named).await;
    gateway.get("/v2/ep/health").await;
    let received = upstream.received();
    assert_eq!(received[0].field("x-request-id"), ["mine-1"]);
    let made = received[1].field("x-request-id");
    let lines = gateway.log(2).await;
    assert_eq!(value(&lines[0], "id"), "mine-1");
    assert_eq!([value(&lines[1], "id")], made[..]);
}

#[tokio::test]
async fn a_request_stays_in_its_trace_and_gets_one_if_it_has_none() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let upstream = Scripted::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (gateway, _machine) = Scene::default().logged().before(upstream.address);
    for trace in [TRACE, "garbage"] {
        let traced = Request::builder()
            .uri("/v2/ep/health")
            .header("host", "podgate")
            .header("traceparent", trace)
            .header("tracestate", "vendor=1")
            .body(Full::default())
            .unwrap();
        gateway.call(traced).await;
    }
    let received = upstream.received();
    assert_eq!(received[0].field("traceparent"), [TRACE]);
    assert_eq!(received[0].field("tracestate"), ["vendor=1"]);
    let made = &received[1].field("traceparent")[0];
    assert_eq!(received[1].field("tracestate"), [""; 0]);
    let lines = gateway.log(2).await;
    assert_eq!(value(&lines[0], "trace"), &TRACE[3..35]);
    assert_eq!(value(&lines[1], "trace"), &made[3..35]);
}

#[tokio::test]
async fn of_what_goes_well_a_sample_is_logged_and_of_the_rest_all() {
    let stand = Scene::default()
        .settings("log: { sample: 4 }")
        .logged()
        .start();
    for _ in 0..8 {
        stand
            .gateway
            .call(request("GET", "/v2/ep/health", ""))
            .await;
        stand.gateway.get("/nowhere").await;
    }
    let lines = stand.gateway.log(10).await;
    let of = |outcome: &str| lines.iter().filter(|line| line.contains(outcome)).count();
    assert_eq!((of(" forwarded "), of(" no_route ")), (2, 8), "{lines:#?}");
}

#[tokio::test]
async fn the_access_log_has_one_line_for_every_request_however_it_ended() {
    let stand = two_a_minute().set(Group::Run, "max_wait: 2m").start();
    let gateway = &stand.gateway;
    let body = job(&unique());
    let answer = gateway.post("/v2/ep/run?secret=1", body.clone()).await;
    gateway.get("/nowhere?secret=2").await;
    run(gateway).await;
    let waits = gateway.send(post("/v2/ep/run", &job(&unique()))).await;
    eventually("it waits", || gateway.waiting(Group::Run) == 1).await;
    drop(waits);
    let lines = gateway.log(4).await;
    assert_eq!(lines.len(), 4, "{lines:#?}");

    let words: Vec<_> = lines[0].split(' ').collect();
    assert_eq!(
        words[1..6],
        ["127.0.0.1", "POST", "/v2/ep/run", "200", "forwarded"]
    );
    assert_eq!(value(&lines[0], "in"), body.len().to_string());
    assert_eq!(value(&lines[0], "out"), answer.body.len().to_string());
    assert_eq!(value(&lines[0], "tries"), "1");
    let seconds = |key| value(&lines[0], key).parse::<f64>().unwrap();
    assert!(seconds("upstream") > 0.0, "{}", lines[0]);
    assert!(seconds("total") >= seconds("upstream"), "{}", lines[0]);

    assert!(
        lines[1].contains(" /nowhere 404 no_route tries=0 "),
        "{}",
        lines[1]
    );
    assert!(
        lines[3].contains(" - client_gone cut tries=0 "),
        "{}",
        lines[3]
    );
    assert!(!lines.concat().contains("secret"), "{lines:#?}");
}

#[tokio::test]
async fn an_answer_cut_short_is_logged_as_cut() {
    let begun = Arc::<Notify>::default();
    let told = begun.clone();
    let upstream = Scripted::start(move |mut connection| {
        let told = told.clone();
        async move {
            connection
                .answer(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
                .await;
            told.notified().await;
        }
    })
    .await;
    let (gateway, _machine) = Scene::default().logged().before(upstream.address);
    let mut stream = gateway
        .send("GET /v2/ep/health HTTP/1.1\r\nhost: podgate\r\n\r\n")
        .await;
    let mut read = Vec::new();
    while !read.ends_with(b"abc\r\n") {
        read.push(within("its beginning", stream.read_u8()).await.unwrap());
    }
    begun.notify_one();
    let _ = stream.read_to_end(&mut read).await;
    let lines = gateway.log(1).await;
    assert!(lines[0].contains(" 200 forwarded cut "), "{}", lines[0]);
}

#[tokio::test]
async fn the_access_log_can_be_json() {
    let stand = Scene::default()
        .settings("log: { format: json }")
        .logged()
        .start();
    stand
        .gateway
        .call(request("GET", "/v2/ep/health", ""))
        .await;
    let line: Value = serde_json::from_str(&stand.gateway.log(1).await[0]).unwrap();
    for (member, expected) in [
        ("method", json!("GET")),
        ("path", json!("/v2/ep/health")),
        ("operation", json!("health")),
        ("endpoint", json!("ep")),
        ("status", json!(200)),
        ("outcome", json!("forwarded")),
        ("complete", json!(true)),
        ("client", json!("127.0.0.1")),
    ] {
        assert_eq!(line[member], expected, "{line}");
    }
}

async fn page(gateway: &Gateway) -> String {
    let page = gateway.admin("/metrics").await;
    String::from_utf8(page.body.to_vec()).unwrap()
}

#[tokio::test]
async fn who_waits_is_shown_with_what_is_held_for_it_and_since_when() {
    let stand = two_a_minute().set(Group::Run, "max_wait: 2m").start();
    let gateway = &stand.gateway;
    run(gateway).await;
    run(gateway).await;
    let body = job(&unique());
    let _waits = gateway.send(post("/v2/ep/run", &body)).await;
    eventually("it waits", || gateway.waiting(Group::Run) == 1).await;
    let page = page(gateway).await;
    let labels = "{endpoint=\"ep\",group=\"run\"}";
    for series in [
        format!("podgate_queue_depth{labels} 1\n"),
        format!("podgate_queue_bytes{labels} {}\n", body.len()),
        format!("podgate_buffered_bytes {}\n", body.len()),
        format!("podgate_window_used{labels} 2\n"),
    ] {
        assert!(page.contains(&series), "{series}{page}");
    }
    let oldest = format!("podgate_queue_oldest_seconds{labels} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&oldest));
    assert!(line.unwrap().parse::<f64>().unwrap() > 0.0, "{page}");
}

#[tokio::test]
async fn every_request_is_in_the_histograms_once() {
    let stand = two_a_minute().start();
    let gateway = &stand.gateway;
    for _ in 0..3 {
        run(gateway).await;
    }
    gateway.comes_to_rest().await;
    let page = page(gateway).await;
    for series in [
        "podgate_request_duration_seconds_count{operation=\"run\"} 3\n",
        "podgate_upstream_duration_seconds_count{operation=\"run\"} 2\n",
        "podgate_overhead_seconds_count{operation=\"run\"} 3\n",
        "podgate_queue_wait_seconds_count{operation=\"run\",outcome=\"forwarded\"} 2\n",
        "podgate_queue_wait_seconds_count{operation=\"run\",outcome=\"out_of_reach\"} 1\n",
    ] {
        assert!(page.contains(series), "{series}{page}");
    }
}

#[tokio::test]
async fn endpoints_the_configuration_names_are_there_from_the_start() {
    let stand = Scene::default()
        .settings("endpoints: { known: {}, 'batch-*': {} }")
        .start();
    let lanes = stand.gateway.admin("/lanes").await.json();
    let lanes = lanes.as_array().unwrap();
    assert!(lanes.iter().all(|lane| lane["endpoint"] == "known"));
    assert!(lanes.iter().any(|lane| lane["group"] == "runsync"));
    let page = page(&stand.gateway).await;
    for series in [
        "podgate_requests_total{endpoint=\"known\",operation=\"run\",outcome=\"wait_expired\"} 0\n",
        "podgate_window_limit{endpoint=\"known\",group=\"run\"} 1000\n",
        "podgate_upstream_throttled_total{cause=\"rate\",endpoint=\"known\",group=\"run\"} 0\n",
    ] {
        assert!(page.contains(series), "{series}{page}");
    }
}

#[tokio::test]
#[ignore = "needs promtool: tests/run installs it"]
async fn the_page_is_what_prometheus_wants() {
    let stand = two_a_minute().start();
    for _ in 0..3 {
        run(&stand.gateway).await;
    }
    let page = page(&stand.gateway).await;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(page.as_bytes()).unwrap();
    drop(stdin);
    let said = promtool.wait_with_output().unwrap();
    let said = [said.stdout, said.stderr].concat();
    assert_eq!(
        String::from_utf8(said).unwrap(),
        "",
        "nothing to complain of"
    );
}
