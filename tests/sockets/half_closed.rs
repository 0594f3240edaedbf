//! Clients that say they send no more and stay: an answer would have no reader, so each is let go at
//! once, whatever is waited for, and answered nothing (more).

use std::time::Duration;

use podgate::emulator::limits::Group;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::disconnects::{at_once, unlimited};
use super::support::{eventually, long_job, post, unique};

/// Much shorter than anything that is waited for here, and longer than a busy machine takes.
const AT_ONCE: Duration = Duration::from_secs(10);

/// What comes until the connection ends.
async fn until_it_ends(mut client: TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    let ended = timeout(AT_ONCE, client.read_to_end(&mut read)).await;
    // What is unread when a connection ends may have it reset.
    let _ = ended.expect("it is let go");
    read
}

#[tokio::test]
async fn while_the_upstream_works() {
    let stand = unlimited().limit(Group::RunSync, at_once(1)).start();
    let gateway = &stand.gateway;
    // What lies unread behind the request hides its sender's end from hyper, and not from the kernel.
    for behind in ["", "GET "] {
        let work = post("/v2/ep/runsync", &long_job(&unique(), 60.0));
        let mut client = gateway.send(work + behind).await;
        eventually("it works", || gateway.permits(Group::RunSync) == 1).await;
        client.shutdown().await.unwrap();
        assert_eq!(until_it_ends(client).await, b"");
        gateway.comes_to_rest().await;
    }
    assert_eq!(gateway.ended("client_gone"), 2);
    stand.is_as_before().await;
}

#[tokio::test]
async fn while_a_stream_is_silent() {
    let stand = unlimited().limit(Group::OpenAi, at_once(1)).start();
    let gateway = &stand.gateway;
    let call = json!({
        "stream": true, "gap": 60,
        "messages": [{"role": "user", "content": "word word"}],
    });
    let call = post("/v2/ep/openai/v1/chat/completions", &call.to_string());
    let mut client = gateway.send(call).await;
    client.read_exact(&mut [0; 100]).await.unwrap();
    client.shutdown().await.unwrap();
    let read = until_it_ends(client).await;
    assert!(!read.ends_with(b"\r\n0\r\n\r\n"), "it is cut");
    stand.is_as_before().await;
}

#[tokio::test]
async fn while_it_takes_nothing_of_its_answer() {
    let stand = unlimited()
        .limit(Group::RunSync, at_once(1))
        .settings("buffers: { per_request: 16KiB }")
        .start();
    let gateway = &stand.gateway;
    let mut client = gateway.connect_slowly().await;
    let call = format!(r#"{{"input":{{"id":"{}","bytes":2000000}}}}"#, unique());
    let call = post("/v2/ep/runsync", &call);
    client.write_all(call.as_bytes()).await.unwrap();
    client.read_exact(&mut [0; 100]).await.unwrap();
    client.shutdown().await.unwrap();
    // Nothing of it is read any more, and yet the permit comes back.
    gateway.comes_to_rest().await;
    let read = until_it_ends(client).await;
    assert!(read.len() < 2_000_000, "{}", read.len());
    stand.is_as_before().await;
}
