//! What a client and podgate agree on, and what becomes of those who do not.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::authority::{Authority, Folder};
use super::client::{Client, NAME, exchange};
use super::scripted::Scripted;
use super::support::{Scene, eventually, head_of_answer, job, post, request, unique, within};

/// `listen` with a certificate in `folder`, and whoever has signed it.
pub fn listener(folder: &Folder) -> (String, Authority) {
    let root = Authority::new("root");
    root.signs(NAME, 2090).put(folder);
    (listen(folder, "127.0.0.1:0", ""), root)
}

pub fn listen(folder: &Folder, at: &str, more: &str) -> String {
    let folder = folder.path().display();
    format!("{{ at: '{at}', tls: {{ cert: {folder}/tls.crt, key: {folder}/tls.key{more} }} }}")
}

#[tokio::test]
async fn what_is_spoken_is_what_was_agreed_on() {
    let folder = Folder::new();
    let (listen, root) = listener(&folder);
    let stand = Scene::default().listen(listen).start();
    let address = stand.gateway.address();
    for (offers, agreed) in [
        (&["h2", "http/1.1"][..], Some(&b"h2"[..])),
        (&["http/1.1", "h2"], Some(b"h2")),
        (&["http/1.1"], Some(b"http/1.1")),
        (&["h2"], Some(b"h2")),
        (&[], None),
    ] {
        let client = Client::new(&root, None, offers);
        let stream = client.connect(address).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed, "{offers:?}");
        drop(stream);
        let run = request("POST", "/v2/ep/run", job(&unique()));
        let answer = client.call(address, run).await.unwrap();
        assert_eq!(answer.status, 200, "{offers:?}");
    }
    // HTTP/2 without having said so.
    let client = Client::new(&root, None, &[]);
    let stream = client.connect(address).await.unwrap();
    let run = request("POST", "/v2/ep/run", job(&unique()));
    assert_eq!(exchange(stream, run, true).await.unwrap().status, 200);
    stand.gateway.comes_to_rest().await;
    stand.was_never_over();
}

#[tokio::test]
async fn who_speaks_something_else_or_believes_nobody_harms_nobody() {
    let folder = Folder::new();
    let (listen, root) = listener(&folder);
    let stand = Scene::default().listen(listen).start();
    let address = stand.gateway.address();

    let mut plain = stand.gateway.send(post("/v2/ep/run", "{}")).await;
    let mut said = Vec::new();
    // An alert, or a reset behind it.
    let _ = within("it ends", plain.read_to_end(&mut said)).await;
    assert!(!said.starts_with(b"HTTP"), "{said:?}");

    let stranger = Client::new(&Authority::new("another"), None, &[]);
    let refused = stranger.connect(address).await.unwrap_err();
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
    let other = Client::new(&root, None, &["smtp"]);
    other.connect(address).await.unwrap_err();

    let client = Client::new(&root, None, &["http/1.1"]);
    let run = request("POST", "/v2/ep/run", job(&unique()));
    assert_eq!(client.call(address, run).await.unwrap().status, 200);
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.upstream.submissions(), (1, 0));
}

#[tokio::test]
async fn a_handshake_that_never_comes_is_cut() {
    let folder = Folder::new();
    let (listen, _) = listener(&folder);
    let scene = Scene::default().listen(listen);
    let stand = scene.settings("timeouts: { header: 200ms }").start();
    // The beginning of a hello that announces more.
    for begun in [&b""[..], &[0x16, 3, 1, 0, 200, 1, 0, 0, 196]] {
        let mut client = stand.gateway.connect().await;
        client.write_all(begun).await.unwrap();
        let ended = within("it ends", client.read_to_end(&mut Vec::new())).await;
        assert_eq!(ended.unwrap_or(0), 0);
    }
    stand.gateway.comes_to_rest().await;
}

/// A cut could be an attacker's: what ends well says so.
#[tokio::test]
async fn the_end_is_said() {
    let folder = Folder::new();
    let (listen, root) = listener(&folder);
    let scene = Scene::default().listen(listen);
    let stand = scene.settings("timeouts: { header: 500ms }").start();
    let client = Client::new(&root, None, &["http/1.1"]);
    let close =
        "GET /v2/ep/health HTTP/1.1\r\nhost: a\r\nauthorization: key\r\nconnection: close\r\n\r\n";
    let too_long = "POST /v2/ep/run HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999\r\n\r\n{";
    for (what, sent, status) in [
        ("asked for", close, "200"),
        ("not HTTP", "what?\r\n\r\n", "400"),
        ("half a head", "GET /v2/ep/health HTTP/1.1\r\n", "408"),
        ("too long a body", too_long, "413"),
    ] {
        let mut stream = client.connect(stand.gateway.address()).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut said = String::new();
        let ended = within(what, stream.read_to_string(&mut said)).await;
        ended.unwrap_or_else(|error| panic!("{what}: {error}\n{said}"));
        assert!(
            said.starts_with(&format!("HTTP/1.1 {status}")),
            "{what}: {said}"
        );
    }
    // Left idle by a podgate that ends.
    let mut idle = client.connect(stand.gateway.address()).await.unwrap();
    idle.write_all(b"GET /v2/ep/health HTTP/1.1\r\nhost: a\r\nauthorization: key\r\n\r\n")
        .await
        .unwrap();
    let mut said = [0; 12];
    idle.read_exact(&mut said).await.unwrap();
    let drains = tokio::task::spawn_blocking(move || stand.gateway.running.drain());
    let mut rest = Vec::new();
    within("it ends", idle.read_to_end(&mut rest))
        .await
        .unwrap();
    within("drained", drains).await.unwrap();
}

/// In frames too.
#[tokio::test]
async fn the_end_of_http2_is_said() {
    let folder = Folder::new();
    let (listen, root) = listener(&folder);
    let scene = Scene::default().listen(listen);
    let stand = scene
        .settings("timeouts: { keep_alive: 300ms, header: 300ms }")
        .start();
    let client = Client::new(&root, None, &["h2"]);
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    for (what, sent) in [
        (
            "idle",
            [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], settings].concat(),
        ),
        (
            "not HTTP/2",
            b"GET / HTTP/1.1\r\nhost: podgate.test\r\n\r\n".to_vec(),
        ),
    ] {
        let mut stream = client.connect(stand.gateway.address()).await.unwrap();
        stream.write_all(&sent).await.unwrap();
        let mut said = Vec::new();
        let ended = within(what, stream.read_to_end(&mut said)).await;
        ended.unwrap_or_else(|error| panic!("{what}: {error}"));
        // A frame of settings, and one that says goodbye.
        assert_eq!(said.get(3), Some(&4), "{what}: {said:?}");
    }
    stand.gateway.comes_to_rest().await;
}

/// TLS takes some of an answer into its own memory before it is seen that nobody reads.
#[tokio::test]
async fn who_takes_nothing_of_an_answer_is_cut() {
    let folder = Folder::new();
    let (listen, root) = listener(&folder);
    let large = 8 << 20;
    let upstream = Scripted::start(move |mut connection| async move {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {large}\r\n\r\n");
        let answer = [head.as_bytes(), &vec![b'x'; large]].concat();
        while connection.answer(&answer).await {}
    })
    .await;
    let scene = Scene::default().listen(listen);
    let scene = scene.settings("timeouts: { write: 300ms }\nbuffers: { per_request: 64KiB }");
    let (gateway, _machine) = scene.before(upstream.address);
    let client = Client::new(&root, None, &["http/1.1"]);
    let mut slow = client.over(gateway.connect_slowly().await).await.unwrap();
    let ask = "GET /v2/ep/health HTTP/1.1\r\nhost: a\r\n\r\n";
    slow.write_all(ask.as_bytes()).await.unwrap();
    eventually("it is served", || gateway.connections() == 1).await;
    gateway.comes_to_rest().await;
    // Who reads has it whole.
    let whole = client.call(gateway.address(), request("GET", "/v2/ep/health", ""));
    assert_eq!(whole.await.unwrap().body.len(), large);
}

#[tokio::test]
async fn the_first_byte_of_a_stream_comes_at_once() {
    let folder = Folder::new();
    let (listen, root) = listener(&folder);
    let (tell, told) = tokio::sync::watch::channel(false);
    let upstream = Scripted::start(move |mut connection| {
        let mut told = told.clone();
        async move {
            connection.receive().await;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                        transfer-encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n";
            connection.write(head).await;
            told.wait_for(|told| *told).await.unwrap();
            connection.write("8\r\ndata: 2\n\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let (gateway, _machine) = Scene::default().listen(listen).before(upstream.address);
    let client = Client::new(&root, None, &["http/1.1"]);
    let mut stream = client.connect(gateway.address()).await.unwrap();
    let ask = post("/v2/ep/openai/v1/chat/completions", r#"{"stream":true}"#);
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"data: 1\n") {
        said.push(within("the first event", stream.read_u8()).await.unwrap());
    }
    tell.send_replace(true);
    while !said.ends_with(b"data: 2\n") {
        said.push(within("the second", stream.read_u8()).await.unwrap());
    }
}

#[tokio::test]
async fn one_podgate_listens_in_the_clear_and_with_tls() {
    let folder = Folder::new();
    let (listen, root) = listener(&folder);
    let scene = Scene::default().listen(format!("[127.0.0.1:0, {listen}]"));
    let stand = scene.start();
    let places = stand.gateway.running.places();
    let (plain, tls) = places.split_once(", ").unwrap();
    let plain = plain.strip_prefix("http://").unwrap().parse().unwrap();
    let tls = tls.strip_prefix("https://").unwrap().parse().unwrap();
    let mut stream = TcpStream::connect::<std::net::SocketAddr>(plain)
        .await
        .unwrap();
    let run = post("/v2/ep/run", &job(&unique()));
    stream.write_all(run.as_bytes()).await.unwrap();
    assert!(
        head_of_answer(&mut stream)
            .await
            .starts_with("HTTP/1.1 200")
    );
    let client = Client::new(&root, None, &["h2"]);
    let run = request("POST", "/v2/ep/run", job(&unique()));
    assert_eq!(client.call(tls, run).await.unwrap().status, 200);
}
