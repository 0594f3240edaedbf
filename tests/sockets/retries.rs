//! What is sent again after an upstream's 429, and what is not (semantics, section 7).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use podgate::emulator::limits::Group;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::scripted::{Connection, Scripted};
use super::support::{
    Answer, Gateway, Machine, Scene, Tight, eventually, job, now, request, together, unique, within,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A refusal with so much `Retry-After`.
fn refusal(retry_after: &str) -> String {
    format!(
        "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/problem+json\r\n\
         retry-after: {retry_after}\r\nx-said: upstream\r\ncontent-length: 7\r\n\r\nrefused"
    )
}

/// Refuses so many requests, then does what it is asked.
async fn refusing(times: usize, retry_after: &'static str) -> Scripted {
    let left = Arc::new(AtomicUsize::new(times));
    Scripted::start(move |mut connection| {
        let left = left.clone();
        async move {
            while connection.receive().await.is_some() {
                let one_less = |left: usize| left.checked_sub(1);
                let refused = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
                match refused {
                    Ok(_) => connection.write(refusal(retry_after)).await,
                    Err(_) => connection.write(OK).await,
                }
            }
        }
    })
    .await
}

fn is_the_upstreams_own(answer: &Answer, retry_after: &str) {
    assert_eq!(answer.status, 429);
    assert_eq!(answer.body, "refused");
    assert_eq!(answer.header("retry-after"), Some(retry_after));
    assert_eq!(answer.header("x-said"), Some("upstream"));
    let said = Some("podgate; received-status=429");
    assert_eq!(answer.header("proxy-status"), said);
}

#[tokio::test]
async fn after_a_429_the_same_is_asked_again_and_each_try_counts() {
    for (method, path, body, group) in [
        ("POST", "/v2/ep/run", "the job", Group::Run),
        ("POST", "/v2/ep/runsync", "the job", Group::RunSync),
        ("GET", "/v2/ep/status/j", "", Group::Status),
        ("GET", "/v2/ep/status-sync/j?wait=1000", "", Group::Status),
        ("GET", "/v2/ep/stream/j", "", Group::Status),
        ("POST", "/v2/ep/cancel/j", "{}", Group::Cancel),
        ("GET", "/v2/ep/health", "", Group::Health),
    ] {
        let upstream = refusing(2, "0").await;
        let (gateway, _machine) = Scene::default().before(upstream.address);
        let answer = gateway.call(request(method, path, body)).await;
        assert_eq!((answer.status, answer.body.as_ref()), (200, &b"ok"[..]));
        let received = upstream.received();
        assert_eq!(received.len(), 3, "{path}");
        for received in &received {
            assert_eq!(received.line(), format!("{method} {path} HTTP/1.1"));
            assert_eq!(received.body, body.as_bytes());
        }
        let limited = gateway.lane(group).unwrap().quota.rate.is_some();
        assert_eq!(gateway.window_used(group), if limited { 3 } else { 0 });
        assert_eq!(gateway.ended("forwarded"), 1);
        gateway.comes_to_rest().await;
    }
}

#[tokio::test]
async fn who_cannot_make_another_try_gets_the_upstreams_own_words_at_once() {
    let upstream = refusing(usize::MAX, "60").await;
    let (gateway, _machine) = Scene::default()
        .set(Group::Run, "max_wait: 20s")
        .before(upstream.address);
    let asked = now();
    let answer = gateway.post("/v2/ep/run", "{}").await;
    is_the_upstreams_own(&answer, "60");
    assert!(asked.elapsed() < Duration::from_secs(10), "it waited");
    assert_eq!(upstream.received().len(), 1);
    let paused = gateway.lane(Group::Run).unwrap().paused;
    assert!(paused > Duration::from_secs(40), "{paused:?}");
    // Who comes now is refused by podgate, and that is never asked again.
    let answer = gateway.post("/v2/ep/run", "{}").await;
    assert_eq!(answer.json()["outcome"], "paused");
    assert_eq!(upstream.received().len(), 1);
    gateway.comes_to_rest().await;
}

#[tokio::test]
async fn tries_end_with_the_deadline_the_request_came_with() {
    let upstream = refusing(usize::MAX, "0").await;
    let (gateway, _machine) = Scene::default()
        .set(Group::Run, "max_wait: 1s")
        .before(upstream.address);
    let asked = now();
    let answer = gateway.post("/v2/ep/run", "{}").await;
    let took = asked.elapsed();
    is_the_upstreams_own(&answer, "0");
    assert!(
        took < Duration::from_secs(5),
        "each try had a deadline of its own: {took:?}"
    );
    let tries = upstream.received().len();
    assert!((2..=10).contains(&tries), "{tries} tries");
    assert_eq!(gateway.window_used(Group::Run) as usize, tries);
    gateway.comes_to_rest().await;
}

/// A date is a time to stay away like any other.
#[tokio::test]
async fn retry_after_is_obeyed_as_a_date_too() {
    let date = httpdate::fmt_http_date(wall_clock() + Duration::from_secs(30)).leak();
    let upstream = refusing(usize::MAX, date).await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let answer = gateway.get("/v2/ep/health").await;
    is_the_upstreams_own(&answer, date);
    let paused = gateway.lane(Group::Health).unwrap().paused;
    let about = Duration::from_secs(15)..Duration::from_secs(34);
    assert!(about.contains(&paused), "{paused:?}");
    assert_eq!(upstream.received().len(), 1);
}

#[expect(clippy::disallowed_methods, reason = "a date is of the wall clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// What may have been lost is never asked for again, nor what cannot be sent again.
#[tokio::test]
async fn what_cannot_be_sent_again_is_passed_on() {
    let long = format!(
        "HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\ncontent-length: 100000\r\n\r\n{}",
        "x".repeat(100_000)
    );
    let short = refusal("0");
    let settings = "buffers: { per_request: 16KiB }";
    for (what, settings, answer, size, length) in [
        ("a body that was streamed", settings, &short, 40_000, 7),
        ("a refusal too long to keep", "", &long, 10, 100_000),
        (
            "a refusal longer than the buffer",
            settings,
            &long,
            10,
            100_000,
        ),
    ] {
        let answer = answer.clone().leak().as_bytes();
        let upstream = Scripted::answering(answer).await;
        let scene = Scene::default().settings(settings);
        let (gateway, _machine) = scene.before(upstream.address);
        let answer = gateway.post("/v2/ep/run", "x".repeat(size)).await;
        assert_eq!((answer.status, answer.body.len()), (429, length), "{what}");
        assert_eq!(upstream.received().len(), 1, "{what}");
        gateway.comes_to_rest().await;
    }
}

/// It is passed on as it comes: nobody knows whether its end does.
#[tokio::test]
async fn a_refusal_without_an_end_in_sight_is_passed_on() {
    let end = Arc::<Notify>::default();
    let told = end.clone();
    let upstream = Scripted::start(move |mut connection| {
        let told = told.clone();
        async move {
            let head = "HTTP/1.1 429 Too Many Requests\r\ntransfer-encoding: chunked\r\n\r\n";
            connection.answer(format!("{head}3\r\nabc\r\n")).await;
            told.notified().await;
            connection.write("0\r\n\r\n").await;
        }
    })
    .await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let call = async { gateway.get("/v2/ep/health").await };
    let end = async {
        eventually("the lane has heard of it", || {
            let lane = gateway.lane(Group::Health);
            lane.is_some_and(|lane| !lane.paused.is_zero())
        })
        .await;
        end.notify_one();
    };
    let (answer, ()) = tokio::join!(call, end);
    assert_eq!((answer.status, answer.body.as_ref()), (429, &b"abc"[..]));
    assert_eq!(upstream.received().len(), 1);
}

#[tokio::test]
async fn where_nothing_is_enforced_nothing_is_sent_again() {
    for mode in ["mode: shadow", "mode: disabled"] {
        let upstream = refusing(usize::MAX, "0").await;
        let scene = Scene::default().set(Group::Run, mode);
        let (gateway, _machine) = scene.before(upstream.address);
        for _ in 0..3 {
            is_the_upstreams_own(&gateway.post("/v2/ep/run", "{}").await, "0");
        }
        assert_eq!(upstream.received().len(), 3, "{mode}");
    }
}

/// A gateway with one permit, before an upstream that answers when it is told, and by then has
/// refused the first.
async fn one_at_a_time() -> (Scripted, Arc<Notify>, Gateway, Machine) {
    let go = Arc::<Notify>::default();
    let told = go.clone();
    let upstream = Scripted::start(move |mut connection: Connection| {
        let told = told.clone();
        async move {
            let mut first = connection.number == 0;
            while connection.receive().await.is_some() {
                told.notified().await;
                let answer = if first { refusal("0") } else { OK.to_owned() };
                connection.write(answer).await;
                first = false;
            }
        }
    })
    .await;
    // One worker has one pool, and so one connection.
    let (gateway, machine) = Scene::default()
        .workers(1)
        .margin("50ms")
        .set(Group::Run, "rate: none, concurrency: 1, max_wait: 60s")
        .before(upstream.address);
    (upstream, go, gateway, machine)
}

#[tokio::test]
async fn it_comes_back_to_the_front_of_its_flow() {
    let (upstream, go, gateway, _machine) = one_at_a_time().await;
    let call = async |name: &'static str| {
        assert_eq!(gateway.post("/v2/ep/run", name).await.status, 200, "{name}");
    };
    let a = async { call("a").await };
    let b = async {
        eventually("a is there", || upstream.received().len() == 1).await;
        call("b").await;
    };
    let c = async {
        eventually("b waits", || gateway.waiting(Group::Run) == 1).await;
        call("c").await;
    };
    let upstream_goes = async {
        eventually("c waits", || gateway.waiting(Group::Run) == 2).await;
        for _ in 0..4 {
            go.notify_one();
            let before = upstream.received().len();
            eventually("the next is there, or none is left", || {
                upstream.received().len() > before || gateway.ended("forwarded") == 3
            })
            .await;
        }
    };
    within("all are done", async {
        tokio::join!(a, b, c, upstream_goes)
    })
    .await;
    let order: Vec<_> = upstream
        .received()
        .iter()
        .map(|one| one.body.clone())
        .collect();
    assert_eq!(order, [b"a", b"a", b"b", b"c"]);
}

#[tokio::test]
async fn who_leaves_while_it_waits_for_another_try_is_not_sent_again() {
    let (upstream, go, gateway, _machine) = one_at_a_time().await;
    let caller = gateway.send(super::support::post("/v2/ep/run", "a")).await;
    eventually("it is there", || upstream.received().len() == 1).await;
    let other = gateway.send(super::support::post("/v2/ep/run", "b")).await;
    eventually("another waits", || gateway.waiting(Group::Run) == 1).await;
    go.notify_one();
    eventually("the first waits again", || gateway.waiting(Group::Run) == 2).await;
    drop(caller);
    drop(other);
    gateway.comes_to_rest().await;
    assert_eq!(gateway.ended("client_gone"), 2);
    assert_eq!(upstream.received().len(), 1);
}

/// Hundreds of jobs before an upstream that refuses some of them, whatever we keep to.
#[tokio::test]
async fn a_job_that_was_refused_and_sent_again_is_there_once() {
    let stand = Scene::default()
        .limit(
            Group::Run,
            Tight {
                requests: None,
                window: Duration::from_secs(10),
                concurrency: Some(20),
            },
        )
        .set(Group::Run, "max_wait: 60s")
        .start();
    stand.upstream.faults(json!({
        "status": 429, "retry_after": 0, "probability": 0.3, "count": 60,
    }));
    let calls = (0..400).map(|_| async {
        let answer = stand.gateway.post("/v2/ep/run", job(&unique())).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
    });
    within("all are taken", together(calls)).await;
    assert_eq!(stand.upstream.submissions(), (400, 0));
    let seen = stand.upstream.seen("ep", Group::Run);
    let arrived = seen["arrived"].as_u64().unwrap();
    assert!(
        (430..=460).contains(&arrived),
        "{arrived} arrivals for 400 jobs and 60 refusals"
    );
    stand.gateway.comes_to_rest().await;
}

/// An upstream's failure may have come after it did what it was asked.
#[tokio::test]
async fn a_submission_that_failed_is_never_sent_again() {
    for (faults, status) in [
        (json!({"status": 500}), 500),
        (json!({"status": 502}), 502),
        (json!({"status": 503, "retry_after": 0}), 503),
        (json!({"status": 504}), 504),
        (json!({"reset_before_head": true}), 502),
        (json!({"reset_mid_body": true}), 502),
    ] {
        let stand = Scene::default().margin("100ms").start();
        stand.upstream.faults(faults.clone());
        let mut ended = BTreeMap::<u16, usize>::new();
        for _ in 0..20 {
            let answer = stand.gateway.post("/v2/ep/run", job(&unique())).await;
            *ended.entry(answer.status).or_default() += 1;
            if faults["retry_after"] != Value::Null {
                assert_eq!(answer.header("retry-after"), Some("0"));
            }
        }
        assert_eq!(ended, BTreeMap::from([(status, 20)]), "{faults}");
        let seen = stand.upstream.seen("ep", Group::Run);
        assert_eq!(seen["arrived"], 20, "{faults}");
        assert_eq!(stand.upstream.submissions().1, 0, "{faults}");
        stand.gateway.comes_to_rest().await;
    }
}
