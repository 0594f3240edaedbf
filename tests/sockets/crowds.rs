//! Many clients: how many may be connected, what they cost, and what happens when there is no room.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::frames::PREFACE;
use super::process::Process;
use super::support::{
    PATIENCE, Scene, eventually, head_of_answer, job, now, post, together, unique, within,
};

/// So many connect at a time.
const AT_ONCE: usize = 250;

/// So many open connections, each after `first` was written to it.
async fn connections(
    process: &Process,
    many: usize,
    first: impl Fn(usize) -> Vec<u8>,
) -> Vec<TcpStream> {
    let all = Mutex::new(Vec::new());
    for number in (0..many).step_by(AT_ONCE) {
        together((number..many.min(number + AT_ONCE)).map(|number| {
            let (all, first) = (&all, first(number));
            async move {
                let mut stream = TcpStream::connect(process.listen).await.unwrap();
                stream.write_all(&first).await.unwrap();
                all.lock().push(stream);
            }
        }))
        .await;
    }
    all.into_inner()
}

/// What podgate answers by itself, on a connection that stays open.
fn call(_: usize) -> Vec<u8> {
    b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()
}

/// Reads the beginning of the answer. The rest is left: it is small.
async fn is_answered(stream: &mut TcpStream) {
    let mut head = [0; 12];
    let read = within("an answer", stream.read_exact(&mut head)).await;
    read.unwrap();
    assert_eq!(&head, b"HTTP/1.1 404");
}

async fn serves(process: &Process) {
    let answer = process.post("/v2/ep/run", job(&unique())).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
}

#[tokio::test]
async fn five_thousand_idle_clients_and_three_hundred_silent_ones_cost_nobody_anything() {
    const IDLE: usize = 5_000;
    let process = Scene::default()
        .settings("timeouts: { header: 1s, keep_alive: 5m }")
        .process();
    serves(&process).await;
    process.has_connections(0).await;
    let before = process.resident();
    let mut idle = connections(&process, IDLE, call).await;
    for stream in &mut idle {
        is_answered(stream).await;
    }
    let silent = connections(&process, 300, |number| {
        PREFACE[..if number % 2 == 0 { 0 } else { 20 }].to_vec()
    })
    .await;
    process.has_connections(5_300).await;
    let each = process.peak().saturating_sub(before) / 5_300;
    println!("{each} bytes a client");
    assert!(each < 16 * 1024, "{each} bytes a client");
    let mut slowest = Duration::ZERO;
    for _ in 0..100 {
        let asked = now();
        serves(&process).await;
        slowest = slowest.max(asked.elapsed());
    }
    println!("the slowest of 100 callers meanwhile: {slowest:?}");
    process.has_connections(5_000).await;
    drop((idle, silent));
    process.has_connections(0).await;
    serves(&process).await;
}

/// They wait where they are, as they do before any server that is full, and come in one by one.
#[tokio::test]
async fn at_the_cap_further_clients_wait_until_one_leaves() {
    let process = Scene::default()
        .settings("limits: { connections: 20 }")
        .process();
    let mut first = connections(&process, 20, call).await;
    for stream in &mut first {
        is_answered(stream).await;
    }
    let mut more = connections(&process, 10, call).await;
    for round in 0..10 {
        // Nobody else is let in meanwhile.
        sleep(Duration::from_millis(20)).await;
        assert_eq!(process.metric("podgate_connections").await, 20, "{round}");
        assert_eq!(
            process.metric("podgate_connections_total").await,
            20 + round
        );
        drop(first.pop());
        is_answered(&mut more[round as usize]).await;
    }
    drop((first, more));
    process.has_connections(0).await;
    assert_eq!(process.has_said("20 clients are connected"), 1);
    serves(&process).await;
}

#[tokio::test]
async fn clients_may_not_take_all_files() {
    let process = Scene::default().process_by("ulimit -n 100; exec \"$@\"");
    let said = process.said();
    assert!(said[0].contains("43 clients at most"), "{said:?}");
    let mut all = connections(&process, 100, call).await;
    let full = "43 clients are connected";
    eventually("it is full", || process.has_said(full) > 0).await;
    for stream in &mut all[1..43] {
        is_answered(stream).await;
    }
    // Those who are in are served, upstream and all.
    let asked = post("/v2/ep/run", &job(&unique()));
    head_of_answer(&mut all[0]).await;
    all[0].write_all(asked.as_bytes()).await.unwrap();
    let head = head_of_answer(&mut all[0]).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

/// For whatever reason there is none: who comes then waits, and the log does not say it without end.
#[tokio::test]
async fn without_a_file_left_clients_wait() {
    let process = Scene::default().process();
    process.limit_files(40);
    let all = connections(&process, 60, call).await;
    let failed = "connections cannot be accepted";
    eventually("no file is left", || process.has_said(failed) > 0).await;
    // Long enough to say it often: it tries again every 50 ms.
    sleep(Duration::from_millis(300)).await;
    assert!(
        process.has_said(failed) <= 2,
        "once for each worker: {:?}",
        process.said()
    );
    // In their order: whoever waits is let in when one before it leaves.
    for mut stream in all {
        is_answered(&mut stream).await;
    }
    serves(&process).await;
}

/// There is one listening socket, and nobody binds it a second time.
#[tokio::test]
async fn a_second_podgate_cannot_bind_the_address() {
    let mut first = Scene::default().process();
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_podgate"))
        .args(["serve", "--admin", "127.0.0.1:0", "--listen"])
        .arg(first.listen.to_string())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("cannot listen on"), "{said}");
    serves(&first).await;
    assert_eq!(first.ended(), None);
}

#[tokio::test]
async fn every_worker_serves() {
    let process = Scene::default().workers(3).process();
    let before = process.ticks("worker-");
    assert_eq!(before.len(), 3);
    let ran = || {
        let ticks = process.ticks("worker-").into_iter().zip(&before);
        ticks.map(|(now, before)| now - before).collect::<Vec<_>>()
    };
    let ends = now() + PATIENCE;
    while ran().iter().any(|ticks| *ticks < 3) {
        assert!(now() < ends, "ticks of the workers: {:?}", ran());
        together((0..50).map(|_| serves(&process))).await;
    }
}
