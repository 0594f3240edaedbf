//! Clients and upstreams that leave, a thousand times at each stage of a request's way: every permit
//! comes back, nothing is submitted twice, and nothing for a caller that left the queue.

use std::time::Duration;

use podgate::emulator::limits::Group;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::support::{
    Random, Scene, Stand, Tight, eventually, job, long_job, post, request, together, unique, within,
};

const TIMES: usize = 1_000;
/// So many at a time.
const AT_ONCE: usize = 125;
const MARGIN: &str = "300ms";

/// In rounds, all of one round at once.
async fn a_thousand_times<F: Future<Output = ()>>(one: impl Fn(usize) -> F) {
    for round in 0..TIMES / AT_ONCE {
        let numbers = round * AT_ONCE..(round + 1) * AT_ONCE;
        within("a round ends", together(numbers.map(&one))).await;
    }
}

/// Every other client is reset instead of closed.
fn leave(client: TcpStream, number: usize) {
    if number.is_multiple_of(2) {
        client.set_zero_linger().unwrap();
    }
    drop(client);
}

/// No limit but what a test adds. Torn exchanges are over soon, but not before an emulator on a busy
/// machine can have noticed.
pub fn unlimited() -> Scene {
    let none = Tight {
        requests: None,
        window: Duration::from_secs(10),
        concurrency: None,
    };
    [Group::Run, Group::RunSync, Group::OpenAi]
        .into_iter()
        .fold(Scene::default().margin(MARGIN), |scene, group| {
            scene.limit(group, none)
        })
}

pub fn at_once(permits: u32) -> Tight {
    Tight {
        requests: None,
        window: Duration::from_secs(10),
        concurrency: Some(permits),
    }
}

#[tokio::test]
async fn while_the_head_is_being_sent() {
    let stand = Scene::default().start();
    let random = Random::new(1);
    let whole = post("/v2/ep/run", "");
    a_thousand_times(|number| {
        let part = &whole[..random.below(whole.len())];
        let gateway = &stand.gateway;
        async move { leave(gateway.send(part).await, number) }
    })
    .await;
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.upstream.seen("ep", Group::Run), Value::Null);
    stand.is_as_before().await;
}

/// The upstream has its head, and will not get the rest.
#[tokio::test]
async fn while_the_body_is_being_passed_on() {
    let stand = unlimited()
        .settings("buffers: { per_request: 16KiB }")
        .start();
    let random = Random::new(7);
    let whole = post("/v2/ep/run", &job(&"x".repeat(64_000)));
    for round in 1..=TIMES / AT_ONCE {
        let mut callers = Vec::new();
        for _ in 0..AT_ONCE {
            let part = &whole[..20_000 + random.below(44_000)];
            callers.push(stand.gateway.send(part).await);
        }
        eventually("all have been begun", || {
            stand.upstream.seen("ep", Group::Run)["arrived"] == round * AT_ONCE
        })
        .await;
        for (number, caller) in callers.into_iter().enumerate() {
            leave(caller, number);
        }
    }
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.upstream.submissions(), (0, 0), "none was whole");
    stand.is_as_before().await;
}

/// Bodies that are held, streamed, and of no declared length.
#[tokio::test]
async fn while_the_body_is_being_sent() {
    let stand = unlimited()
        .settings("buffers: { per_request: 16KiB }")
        .start();
    let random = Random::new(2);
    let text = |size: usize| job(&"x".repeat(size));
    let chunked = format!(
        "POST /v2/ep/run HTTP/1.1\r\nhost: x\r\nauthorization: key\r\n\
         transfer-encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        text(8_000).len(),
        text(8_000)
    );
    let requests = [
        post("/v2/ep/run", &text(8_000)),
        post("/v2/ep/run", &text(64_000)),
        chunked,
    ];
    a_thousand_times(|number| {
        let whole = &requests[number % 3];
        let head = whole.find("\r\n\r\n").unwrap() + 4;
        let part = &whole[..head + random.below(whole.len() - head - 1)];
        let gateway = &stand.gateway;
        async move { leave(gateway.send(part).await, number) }
    })
    .await;
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.upstream.submissions(), (0, 0), "none was whole");
    stand.is_as_before().await;
}

/// Few enough to go at once.
const WINDOW: usize = 50;

/// What keeps callers of `/v2/ep/run` waiting.
#[derive(Clone, Copy, Debug)]
enum Gate {
    Permits,
    Window,
    Pause,
}

/// A stand whose gate is closed for as long as the streams that come with it are open.
async fn closed(gate: Gate, settings: &'static str) -> (Stand, Vec<TcpStream>) {
    let scene = match gate {
        Gate::Permits => unlimited().limit(Group::Run, at_once(1)),
        Gate::Window => unlimited().limit(
            Group::Run,
            Tight {
                requests: Some(WINDOW as u32),
                window: Duration::from_secs(60),
                concurrency: None,
            },
        ),
        Gate::Pause => unlimited(),
    };
    let stand = scene
        .set(Group::Run, "max_wait: 5m")
        .settings(settings)
        .start();
    stand.upstream.faults(match gate {
        Gate::Permits => json!({"stall": "head", "count": 1}),
        Gate::Window => json!({}),
        Gate::Pause => json!({"status": 429, "retry_after": 60, "count": 1}),
    });
    let closers = match gate {
        Gate::Window => WINDOW,
        Gate::Permits | Gate::Pause => 1,
    };
    let mut blockers = Vec::new();
    for _ in 0..closers {
        // Without time for another try: what closes the gate does not wait there itself.
        let call =
            post("/v2/ep/run", &job(&unique())).replace("\r\n\r\n", "\r\nprefer: wait=0\r\n\r\n");
        blockers.push(stand.gateway.send(call).await);
    }
    eventually("the gate is closed", || {
        let seen = stand.upstream.seen("ep", Group::Run)["arrived"] == closers;
        let lane = stand.gateway.lane(Group::Run);
        seen && lane.is_some_and(|lane| match gate {
            Gate::Permits => lane.permits_in_use == 1,
            Gate::Window => lane.window_used == WINDOW as u32 && lane.permits_in_use == 0,
            Gate::Pause => !lane.paused.is_zero() && lane.permits_in_use == 0,
        })
    })
    .await;
    (stand, blockers)
}

/// Everybody who waits leaves; nothing of them is left behind, here or there.
async fn leave_the_queue(gate: Gate, settings: &'static str, request: impl Fn() -> String) {
    let (stand, blockers) = closed(gate, settings).await;
    let gateway = &stand.gateway;
    let arrived = stand.upstream.seen("ep", Group::Run)["arrived"].clone();
    let before = gateway.lane(Group::Run).unwrap();
    let submitted = stand.upstream.submissions();
    let mut left = 0;
    for _ in 0..TIMES / AT_ONCE {
        let mut waiters = Vec::new();
        for _ in 0..AT_ONCE {
            waiters.push(gateway.send(request()).await);
        }
        eventually("all wait", || gateway.waiting(Group::Run) == AT_ONCE).await;
        for waiter in waiters {
            left += 1;
            leave(waiter, left);
        }
        eventually("none waits", || gateway.waiting(Group::Run) == 0).await;
    }
    let after = gateway.lane(Group::Run).unwrap();
    assert_eq!(after.window_used, before.window_used, "{gate:?}");
    assert_eq!(after.permits_in_use, before.permits_in_use, "{gate:?}");
    drop(blockers);
    gateway.comes_to_rest().await;
    let gone = TIMES as u64 + u64::from(matches!(gate, Gate::Permits));
    assert_eq!(gateway.ended("client_gone"), gone, "{gate:?}");
    assert_eq!(stand.upstream.submissions(), submitted, "{gate:?}");
    assert_eq!(stand.upstream.seen("ep", Group::Run)["arrived"], arrived);
    stand.serves("another").await;
    if matches!(gate, Gate::Permits) {
        stand.is_as_before().await;
    }
}

#[tokio::test]
async fn while_waiting_in_the_queue() {
    for gate in [Gate::Permits, Gate::Window, Gate::Pause] {
        leave_the_queue(gate, "", || post("/v2/ep/run", &job(&unique()))).await;
    }
}

/// hyper does not look for a client's end behind bytes it has not read.
#[tokio::test]
async fn while_waiting_with_the_next_request_behind() {
    leave_the_queue(Gate::Permits, "", || {
        post("/v2/ep/run", &job(&unique())).repeat(2)
    })
    .await;
}

#[tokio::test]
async fn while_waiting_with_a_body_that_is_not_all_read() {
    let settings = "buffers: { per_request: 16KiB }";
    leave_the_queue(Gate::Permits, settings, || {
        post("/v2/ep/run", &job(&format!("{:64000}", unique())))
    })
    .await;
}

/// All permits come back at one known moment; everybody who waits leaves about then.
#[tokio::test]
async fn just_when_being_granted() {
    let stand = unlimited()
        .limit(Group::RunSync, at_once(AT_ONCE as u32))
        .set(Group::RunSync, "max_wait: 1m")
        .start();
    let gateway = &stand.gateway;
    let random = Random::new(3);
    for _ in 0..TIMES / AT_ONCE {
        // Held by their own work: a fault that strikes so many might strike who has left the round before
        // and arrives only now.
        let mut blockers = Vec::new();
        for _ in 0..AT_ONCE {
            let work = post("/v2/ep/runsync", &long_job(&unique(), 600.0));
            blockers.push(gateway.send(work).await);
        }
        eventually("no permit is left", || {
            gateway.permits(Group::RunSync) == AT_ONCE as u32
        })
        .await;
        let mut waiters = Vec::new();
        for _ in 0..AT_ONCE {
            waiters.push(gateway.send(post("/v2/ep/runsync", &job(&unique()))).await);
        }
        eventually("all wait", || gateway.waiting(Group::RunSync) == AT_ONCE).await;
        drop(blockers);
        together(waiters.into_iter().enumerate().map(|(number, waiter)| {
            // The margin, and what it takes to notice.
            let about_then = Duration::from_micros(298_000 + random.below(8_000) as u64);
            async move {
                sleep(about_then).await;
                leave(waiter, number);
            }
        }))
        .await;
        gateway.comes_to_rest().await;
    }
    let (distinct, _) = stand.upstream.submissions();
    println!("{distinct} of {} submitted", 2 * TIMES);
    stand.is_as_before().await;
}

/// The job is there, its answer is not: it arrives once, and is nobody's.
#[tokio::test]
async fn while_the_upstream_works() {
    let stand = unlimited()
        .limit(Group::RunSync, at_once(AT_ONCE as u32))
        .start();
    let gateway = &stand.gateway;
    for _ in 0..TIMES / AT_ONCE {
        let mut callers = Vec::new();
        let (submitted, _) = stand.upstream.submissions();
        for number in 0..AT_ONCE {
            let work = post("/v2/ep/runsync", &long_job(&unique(), 60.0));
            // Some have begun their next request.
            let next = if number.is_multiple_of(3) { "GET " } else { "" };
            callers.push(gateway.send(work + next).await);
        }
        eventually("all are there", || {
            stand.upstream.submissions() == (submitted + AT_ONCE as u64, 0)
        })
        .await;
        for (number, caller) in callers.into_iter().enumerate() {
            leave(caller, number);
        }
    }
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.upstream.submissions(), (TIMES as u64, 0));
    stand.is_as_before().await;
}

/// At any moment from the sending to the answer.
#[tokio::test]
async fn while_the_request_is_on_its_way() {
    let stand = unlimited().start();
    stand
        .upstream
        .faults(json!({"latency_ms": 10, "jitter_ms": 10}));
    let random = Random::new(4);
    a_thousand_times(|number| {
        let moment = Duration::from_micros(random.below(30_000) as u64);
        let gateway = &stand.gateway;
        async move {
            let caller = gateway.send(post("/v2/ep/run", &job(&unique()))).await;
            sleep(moment).await;
            leave(caller, number);
        }
    })
    .await;
    stand.gateway.comes_to_rest().await;
    let (distinct, repeated) = stand.upstream.submissions();
    assert!(distinct <= TIMES as u64 && repeated == 0);
    stand.is_as_before().await;
}

/// Reads so many bytes of an answer, then leaves.
async fn leave_after(mut client: TcpStream, bytes: usize, number: usize) {
    let mut some = vec![0; bytes];
    client.read_exact(&mut some).await.unwrap();
    leave(client, number);
}

#[tokio::test]
async fn in_the_middle_of_a_stream_of_events() {
    let stand = unlimited()
        .limit(Group::OpenAi, at_once(AT_ONCE as u32))
        .start();
    let call = json!({
        "stream": true, "gap": 0.05,
        "messages": [{"role": "user", "content": "word ".repeat(1_000)}],
    });
    let call = post("/v2/ep/openai/v1/chat/completions", &call.to_string());
    let random = Random::new(5);
    a_thousand_times(|number| {
        let (gateway, call) = (&stand.gateway, &call);
        let bytes = 100 + random.below(600);
        async move { leave_after(gateway.send(call).await, bytes, number).await }
    })
    .await;
    stand.is_as_before().await;
}

#[tokio::test]
async fn in_the_middle_of_a_large_answer() {
    let stand = unlimited()
        .limit(Group::RunSync, at_once(AT_ONCE as u32))
        .settings("buffers: { per_request: 16KiB }")
        .start();
    let random = Random::new(6);
    a_thousand_times(|number| {
        let gateway = &stand.gateway;
        let call = format!(r#"{{"input":{{"id":"{}","bytes":200000}}}}"#, unique());
        let bytes = 1 + random.below(20_000);
        async move {
            let mut client = gateway.connect_slowly().await;
            let call = post("/v2/ep/runsync", &call);
            client.write_all(call.as_bytes()).await.unwrap();
            leave_after(client, bytes, number).await;
        }
    })
    .await;
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.upstream.submissions(), (TIMES as u64, 0));
    stand.is_as_before().await;
}

/// The upstream leaves: before it has done anything, after, in the middle of its answer; or stays and
/// says nothing more.
#[tokio::test]
async fn the_upstream_goes_away() {
    for (faults, status, outcome, submitted) in [
        (json!({"refuse": true}), 502, "upstream_broke", 0),
        (json!({"reset_before_head": true}), 502, "upstream_broke", 1),
        (json!({"reset_mid_body": true}), 502, "upstream_broke", 1),
        (json!({"wrong_length": 5}), 502, "upstream_broke", 1),
        (json!({"stall": "head"}), 504, "upstream_timeout", 1),
        (json!({"stall": "body"}), 504, "upstream_timeout", 1),
    ] {
        // Only silence is to be waited for: on a busy machine any other answer may take longer.
        let is_silent = status == 504;
        let (response_timeout, idle_timeout) = match is_silent {
            true => ("response_timeout: 200ms", "200ms"),
            false => ("response_timeout: 60s", "60s"),
        };
        let stand = unlimited()
            .set(Group::Run, response_timeout)
            .idle_timeout(idle_timeout)
            .start();
        stand.upstream.faults(faults.clone());
        a_thousand_times(|_| {
            let (gateway, faults) = (&stand.gateway, &faults);
            async move {
                let answer = gateway.post("/v2/ep/run", job(&unique())).await;
                assert_eq!(answer.status, status, "{faults}: {:?}", answer.body);
                assert_eq!(answer.json()["outcome"], outcome, "{faults}");
            }
        })
        .await;
        stand.gateway.comes_to_rest().await;
        let submitted = submitted * TIMES as u64;
        // Who was given up may arrive after its permit has come back.
        eventually("all have arrived", || {
            stand.upstream.submissions().0 >= submitted
        })
        .await;
        assert_eq!(stand.upstream.submissions(), (submitted, 0), "{faults}");
        stand.upstream.faults(json!({}));
        stand.is_as_before().await;
    }
}

/// What was begun cannot be answered otherwise: the client sees that it was cut.
#[tokio::test]
async fn the_upstream_goes_away_in_the_middle_of_a_streamed_answer() {
    for faults in [
        json!({"reset_mid_body": true}),
        json!({"stall": "body"}),
        json!({"wrong_length": 5}),
    ] {
        let stand = unlimited()
            .settings("buffers: { per_request: 16KiB }")
            .idle_timeout("200ms")
            .start();
        stand.upstream.faults(faults.clone());
        a_thousand_times(|_| {
            let gateway = &stand.gateway;
            let call = format!(r#"{{"input":{{"id":"{}","bytes":40000}}}}"#, unique());
            async move {
                let call = request("POST", "/v2/ep/runsync", call);
                let cut = super::support::call(gateway.address(), call).await;
                assert!(cut.is_err(), "taken for whole");
            }
        })
        .await;
        stand.gateway.comes_to_rest().await;
        assert_eq!(stand.upstream.submissions(), (TIMES as u64, 0), "{faults}");
        stand.upstream.faults(json!({}));
        stand.is_as_before().await;
    }
}
