//! How a podgate that runs as a process is ended.

use rustix::process::Signal;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::support::{Scene, eventually, job, long_job, post, unique, within};

async fn send(process: &super::process::Process, path: &str, body: &str) -> TcpStream {
    use tokio::io::AsyncWriteExt;
    let mut stream = TcpStream::connect(process.listen).await.unwrap();
    let bytes = post(path, body);
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream
}

/// Waits until something is under way.
async fn is_busy(process: &super::process::Process) {
    within("it is under way", async {
        while process.under_way().await == 0 {}
    })
    .await;
}

#[tokio::test]
async fn a_signal_lets_what_is_under_way_end_and_tells_the_client_to_go_elsewhere() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut process = Scene::default().process();
        let mut caller = send(&process, "/v2/ep/runsync", &long_job(&unique(), 1.0)).await;
        is_busy(&process).await;
        process.signal(signal);
        let mut answer = String::new();
        within("an answer", caller.read_to_string(&mut answer))
            .await
            .unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(answer.contains("COMPLETED"), "{answer}");
        let status = process.ends().await;
        assert_eq!(status.code(), Some(0), "{signal:?}");
        assert_eq!(process.upstream.submissions(), (1, 0));
    }
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut process = Scene::default().process();
    process.upstream.faults(json!({"stall": "head"}));
    let _caller = send(&process, "/v2/ep/run", &job(&unique())).await;
    is_busy(&process).await;
    process.signal(Signal::TERM);
    eventually("it drains", || process.has_said("draining") > 0).await;
    process.signal(Signal::TERM);
    let status = process.ends().await;
    assert_eq!(status.code(), Some(1));
}
