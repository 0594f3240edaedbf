//! What a request costs, for how long, and that it is sent once.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use podgate::demo::client::Client;
use podgate::emulator::limits::Group;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::scripted::{Connection, Scripted};
use super::support::{Scene, Tight, eventually, job, post, together, unique, within};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn an_upstream_that_is_down_costs_nothing() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let (gateway, _machine) = Scene::default().before(address);
    // Never more at once than a window holds: the others would be told to come back.
    for _ in 0..3 {
        together((0..400).map(|_| async {
            let answer = gateway.post("/v2/ep/run", job(&unique())).await;
            assert_eq!(answer.status, 502);
            assert_eq!(answer.json()["outcome"], "upstream_unreachable");
        }))
        .await;
    }
    gateway.comes_to_rest().await;
    assert_eq!(
        gateway.window_used(Group::Run),
        0,
        "more than N were answered"
    );
}

/// Answers one request a connection, closes it, and counts what it has closed.
async fn one_each(closed: Arc<AtomicUsize>, mut connection: Connection) {
    connection.answer(OK).await;
    drop(connection);
    closed.fetch_add(1, Ordering::Release);
}

#[tokio::test]
async fn on_a_connection_the_upstream_has_closed_nothing_is_sent() {
    let closed = Arc::<AtomicUsize>::default();
    let count = closed.clone();
    let upstream = Scripted::start(move |connection| one_each(count.clone(), connection)).await;
    let (gateway, _machine) = Scene::default()
        .settings("buffers: { per_request: 16KiB }")
        .before(upstream.address);
    let mut client = Client::new(gateway.address(), "key");
    // A body that is held, and one that can be sent once only.
    for (number, size) in [10, 30_000].repeat(200).into_iter().enumerate() {
        let body = format!("{number:size$}");
        let reply = client.call(Method::POST, "/v2/ep/run", &body).await;
        assert_eq!(reply.unwrap().status, 200, "{number}");
        eventually("it is closed", || {
            closed.load(Ordering::Acquire) == number + 1
        })
        .await;
    }
    let bodies = upstream.received().into_iter().map(|sent| sent.body);
    assert_eq!(bodies.collect::<BTreeSet<_>>().len(), 400);
    assert_eq!(
        (upstream.received().len(), upstream.connections()),
        (400, 400)
    );
    assert_eq!(gateway.window_used(Group::Run), 400);
}

/// The same where the end comes while the request goes: sent again it may be done twice.
#[tokio::test]
async fn what_may_have_arrived_is_never_sent_again() {
    let upstream = Scripted::start(|mut connection| async move {
        connection.answer(OK).await;
        // The second one on a connection gets no answer.
        connection.receive().await;
    })
    .await;
    // One worker has one pool.
    let scene = Scene::default().workers(1).margin("50ms");
    let (gateway, _machine) = scene.before(upstream.address);
    for number in 0..40 {
        let answer = gateway.post("/v2/ep/run", number.to_string()).await;
        let status = if number % 2 == 0 { 200 } else { 502 };
        assert_eq!(answer.status, status, "{number}");
        eventually("the permit is back", || gateway.permits(Group::Run) == 0).await;
    }
    let sent: Vec<_> = upstream
        .received()
        .iter()
        .map(|sent| String::from_utf8(sent.body.clone()).unwrap())
        .collect();
    let once: Vec<_> = (0..40).map(|number| number.to_string()).collect();
    assert_eq!(sent, once);
}

#[tokio::test]
async fn an_answer_that_fits_the_buffer_gives_its_permit_back_whatever_its_reader_does() {
    let stand = Scene::default().start();
    let gateway = &stand.gateway;
    let mut reader = gateway.connect_slowly().await;
    let call = r#"{"input":{"bytes":1000000}}"#;
    reader
        .write_all(post("/v2/ep/runsync", call).as_bytes())
        .await
        .unwrap();
    eventually("it has been answered", || gateway.ended("forwarded") == 1).await;
    eventually("its permit is back", || {
        gateway.permits(Group::RunSync) == 0
    })
    .await;
    assert_eq!(gateway.connections(), 1, "it has not read it yet");
    let mut answer = vec![0; 1_000_000];
    within("all of it", reader.read_exact(&mut answer))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_streamed_answer_holds_its_permit_to_its_last_byte() {
    let stand = Scene::default()
        .limit(
            Group::OpenAi,
            Tight {
                requests: None,
                window: Duration::from_secs(10),
                concurrency: Some(8),
            },
        )
        .start();
    let call = json!({
        "stream": true, "gap": 0.01,
        "messages": [{"role": "user", "content": "word ".repeat(30)}],
    });
    together((0..24).map(|_| async {
        let path = "/v2/ep/openai/v1/chat/completions";
        let answer = stand.gateway.post(path, call.to_string()).await;
        assert_eq!(answer.status, 200);
        assert!(answer.body.ends_with(b"data: [DONE]\n\n"));
    }))
    .await;
    let seen = stand.upstream.seen("ep", Group::OpenAi);
    assert_eq!(
        (&seen["accepted"], &seen["max_in_flight"]),
        (&json!(24), &json!(8))
    );
    stand.was_never_over();
    stand.is_as_before().await;
}

#[tokio::test]
async fn the_permit_is_out_until_the_last_chunk_and_not_longer() {
    let end = Arc::<Notify>::default();
    let told = end.clone();
    let upstream = Scripted::start(move |mut connection| {
        let told = told.clone();
        async move {
            connection
                .answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n")
                .await;
            told.notified().await;
            connection.write("0\r\n\r\n").await;
            connection.receive().await;
        }
    })
    .await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let mut client = gateway.send(post("/v2/ep/run", "{}")).await;
    let mut begun = Vec::new();
    while !begun.ends_with(b"ab\r\n") {
        begun.push(within("its beginning", client.read_u8()).await.unwrap());
    }
    assert_eq!(gateway.permits(Group::Run), 1);
    end.notify_one();
    eventually("it is back", || gateway.permits(Group::Run) == 0).await;
    assert_eq!(gateway.connections(), 1);
}

/// An answer before the request has ended is passed on; its connection carries nothing else.
#[tokio::test]
async fn an_answer_may_come_before_the_request_has_ended() {
    let upstream = Scripted::start(|mut connection| async move {
        if connection.number > 0 {
            connection.answer(OK).await;
            return;
        }
        let mut begun = vec![0; 20_000];
        connection.stream.read_exact(&mut begun).await.unwrap();
        connection
            .write("HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\n\r\nbad")
            .await;
        connection.receive().await;
    })
    .await;
    let (gateway, _machine) = Scene::default()
        .margin("100ms")
        .settings("buffers: { per_request: 16KiB }")
        .before(upstream.address);
    let whole = post("/v2/ep/run", &"x".repeat(64_000));
    let mut client = gateway.send(&whole[..40_000]).await;
    let mut head = [0; 12];
    within("the answer", client.read_exact(&mut head))
        .await
        .unwrap();
    assert_eq!(&head, b"HTTP/1.1 400");
    drop(client);
    gateway.comes_to_rest().await;
    assert_eq!(gateway.post("/v2/ep/run", "{}").await.status, 200);
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn an_interim_answer_is_none() {
    let upstream = Scripted::start(|mut connection| async move {
        let interim = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
        while connection.answer(format!("{interim}{interim}{OK}")).await {}
    })
    .await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let answer = gateway.post("/v2/ep/run", "{}").await;
    assert_eq!((answer.status, answer.body.as_ref()), (200, &b"ok"[..]));
    let switching =
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n";
    let upstream = Scripted::answering(switching).await;
    drop((gateway, _machine));
    let (gateway, _machine) = Scene::default().margin("100ms").before(upstream.address);
    let answer = gateway.post("/v2/ep/run", "{}").await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["outcome"], Value::from("upstream_broke"));
    gateway.comes_to_rest().await;
}
