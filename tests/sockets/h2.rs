//! HTTP/2 in: by prior knowledge, beside HTTP/1.1 on the same port, and by the book where its client
//! is not.

use std::collections::BTreeSet;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use podgate::emulator::limits::Group;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PREFACE, Peer,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, field, fields, frame, request, settings, window_update,
};
use super::scripted::Scripted;
use super::support::{self, Answer, Gateway, Scene, eventually, job, together, unique, within};

type Sender = SendRequest<Full<bytes::Bytes>>;

/// A client as they are, on one connection.
async fn client(gateway: &Gateway) -> Sender {
    let io = TokioIo::new(gateway.connect().await);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn call(sender: &Sender, method: &str, path: &str, body: String) -> Answer {
    let mut request = support::request(method, &format!("http://podgate.test{path}"), body);
    request.headers_mut().remove("host");
    let answer = async {
        let response = sender.clone().send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    };
    within("an answer", answer).await
}

#[tokio::test]
async fn a_hundred_requests_at_once_on_one_connection() {
    let stand = Scene::default().start();
    let sender = client(&stand.gateway).await;
    together((0..300).map(|number| {
        let sender = &sender;
        async move {
            let id = unique();
            let work = format!(r#"{{"input":{{"id":"{id}","sleep":0.05}}}}"#);
            let answer = call(sender, "POST", "/v2/ep/runsync", work).await;
            assert_eq!(answer.status, 200, "{number}: {:?}", answer.body);
            assert_eq!(answer.json()["output"]["id"], id, "another's answer");
        }
    }))
    .await;
    assert_eq!(stand.gateway.connections(), 1);
    assert_eq!(stand.upstream.submissions(), (300, 0));
    drop(sender);
    stand.is_as_before().await;
}

#[tokio::test]
async fn what_is_refused_is_refused_in_the_same_words() {
    let stand = Scene::default().start();
    let sender = client(&stand.gateway).await;
    let answer = call(&sender, "GET", "/nothing", String::new()).await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["outcome"], "no_route");
    assert!(!answer.headers.contains_key("connection"));
    let answer = call(&sender, "DELETE", "/v2/ep/run", String::new()).await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    // More than the operation takes, and more than the windows: all of it is read and thrown away.
    let answer = call(&sender, "POST", "/v2/ep/run", "x".repeat(12_000_000)).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.json()["outcome"], "payload_too_large");
    // As much as it takes, in a body that is streamed.
    let large = job(&"x".repeat(9_000_000));
    let answer = call(&sender, "POST", "/v2/ep/run", large).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    drop(sender);
    stand.is_as_before().await;
}

#[tokio::test]
async fn the_upstream_gets_http1_as_it_would_from_an_http1_client() {
    let upstream = Scripted::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let mut peer = Peer::connect(gateway.address(), &settings(&[])).await;
    let block = [
        fields("POST", "/v2/ep/run?a=%20b"),
        field("cookie", "a=1"),
        field("cookie", "b=2"),
        field("te", "trailers"),
        field("x-own", "kept"),
        field("content-length", "5"),
    ]
    .concat();
    peer.send(frame(HEADERS, END_HEADERS, 1, &block)).await;
    peer.send(frame(DATA, 0, 1, b"12")).await;
    peer.send(frame(DATA, 0, 1, b"345")).await;
    // Trailers end with the hop.
    let trailers = field("x-trailer", "dropped");
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers))
        .await;
    assert!(peer.is_ok(1).await);
    let received = &upstream.received()[0];
    assert_eq!(received.line(), "POST /v2/ep/run?a=%20b HTTP/1.1");
    assert_eq!(received.field("host"), [upstream.address.to_string()]);
    assert_eq!(received.field("authorization"), ["Bearer key"]);
    assert_eq!(received.field("x-own"), ["kept"]);
    assert_eq!(received.field("cookie"), ["a=1; b=2"]);
    assert_eq!(received.field("content-length"), ["5"]);
    assert_eq!(received.body, b"12345");
    for name in ["te", "x-trailer", ":authority", "transfer-encoding"] {
        assert_eq!(received.field(name), Vec::<&str>::new(), "{name}");
    }
}

/// By a byte at a time, and with a request right behind it.
#[tokio::test]
async fn a_preface_may_come_in_pieces() {
    let stand = Scene::default().start();
    for pieces in [1, 3, 23, 24, 25] {
        let call = request(1, "POST", "/v2/ep/run", &job(&unique()));
        let all = [PREFACE, &settings(&[]), &call].concat();
        let mut stream = stand.gateway.connect().await;
        let (pieced, rest) = all.split_at(40);
        for piece in pieced.chunks(pieces) {
            stream.write_all(piece).await.unwrap();
            sleep(Duration::from_millis(1)).await;
        }
        stream.write_all(rest).await.unwrap();
        let mut peer = Peer {
            stream,
            polite: true,
        };
        assert!(peer.is_ok(1).await, "{pieces}");
    }
    // Nearly one is none.
    for almost in [
        "PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n",
        "PRI * HTTP/1.1\r\n\r\n",
        "PRIX",
    ] {
        let mut stream = stand.gateway.send(format!("{almost}\r\n\r\n")).await;
        let mut told = [0; 10];
        let read = within("an answer", stream.read_exact(&mut told)).await;
        read.unwrap();
        assert_eq!(&told, b"HTTP/1.1 4", "{almost:?}");
    }
    stand.is_as_before().await;
}

const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const REFUSED: u32 = 7;
const COMPRESSION: u32 = 9;

/// What a peer that breaks the rules is told. `PROTOCOL` may stand for any other code (section 5.4),
/// and a stream's own fault may end the connection (section 5.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// The connection ends.
    Goaway(u32),
    Reset(u32),
    /// Nothing: the next request is answered.
    Nothing,
}

/// What comes back for `bytes`, and the request on stream 99 behind them.
async fn told(gateway: &Gateway, bytes: &[u8]) -> Told {
    let mut peer = Peer::connect(gateway.address(), &settings(&[])).await;
    let acked = |frame: &Frame| (frame.kind, frame.flags) == (SETTINGS, ACK);
    peer.until("its settings are known", acked).await;
    peer.send(bytes).await;
    // It may have ended already.
    let next = request(99, "GET", "/nothing", "");
    let _ = peer.stream.write_all(&next).await;
    let mut reset = None;
    while let Some(frame) = peer.next().await {
        match frame.kind {
            GOAWAY => return Told::Goaway(frame.code()),
            RST_STREAM => reset = Some(frame.code()),
            HEADERS if frame.stream == 99 => return reset.map_or(Told::Nothing, Told::Reset),
            _ => {}
        }
    }
    panic!("the connection ended without a word");
}

/// A request whose only fault is among its fields.
fn with(block: &[Vec<u8>]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &block.concat())
}

#[tokio::test]
async fn who_breaks_the_rules_is_told_so() {
    let stand = Scene::default().start();
    let open = frame(HEADERS, END_HEADERS, 1, &fields("POST", "/v2/ep/run"));
    let whole = request(1, "GET", "/nothing", "");
    let pseudo = |name: &str, value: &str| field(name, value);
    let (method, path, scheme) = (
        pseudo(":method", "GET"),
        pseudo(":path", "/nothing"),
        pseudo(":scheme", "http"),
    );
    let authority = pseudo(":authority", "podgate.test");
    let basic = [
        method.clone(),
        path.clone(),
        scheme.clone(),
        authority.clone(),
    ];
    let more = |extra: Vec<u8>| with(&[&basic[..], &[extra]].concat());
    let cases = [
        (
            "4.2 a frame too large",
            [open.clone(), frame(DATA, 0, 1, &[0; 16_385])].concat(),
            Told::Goaway(FRAME_SIZE),
        ),
        (
            "4.3 fields that cannot be read",
            frame(HEADERS, 5, 1, &[0xFF; 20]),
            Told::Goaway(COMPRESSION),
        ),
        (
            "5.1 DATA on an idle stream",
            frame(DATA, 0, 1, b"x"),
            Told::Goaway(PROTOCOL),
        ),
        (
            "5.1 RST_STREAM on an idle stream",
            super::frames::reset(1),
            Told::Goaway(PROTOCOL),
        ),
        (
            "5.1 WINDOW_UPDATE on an idle stream",
            window_update(1, 1),
            Told::Goaway(PROTOCOL),
        ),
        (
            "5.1 DATA after the end",
            [request(1, "POST", "/nothing", "x"), frame(DATA, 0, 1, b"x")].concat(),
            Told::Reset(STREAM_CLOSED),
        ),
        (
            "5.1.1 a stream of ours",
            request(2, "GET", "/nothing", ""),
            Told::Goaway(PROTOCOL),
        ),
        (
            "5.1.1 a stream before the last one",
            [
                request(5, "GET", "/nothing", ""),
                request(3, "GET", "/nothing", ""),
            ]
            .concat(),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.1 DATA on no stream",
            frame(DATA, 0, 0, b"x"),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.1 more padding than frame",
            [open.clone(), frame(DATA, 8, 1, &[200, 1, 2])].concat(),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.2 HEADERS on no stream",
            frame(HEADERS, 5, 0, &basic.concat()),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.2 another frame between fields",
            [
                frame(HEADERS, END_STREAM, 1, &basic.concat()),
                frame(PING, 0, 0, &[0; 8]),
            ]
            .concat(),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.4 RST_STREAM on no stream",
            super::frames::reset(0),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.4 RST_STREAM of three bytes",
            [open.clone(), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
            Told::Goaway(FRAME_SIZE),
        ),
        (
            "6.5 SETTINGS acknowledged with some",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            Told::Goaway(FRAME_SIZE),
        ),
        (
            "6.5 SETTINGS on a stream",
            frame(SETTINGS, 0, 1, &[]),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.5 SETTINGS of five bytes",
            frame(SETTINGS, 0, 0, &[0; 5]),
            Told::Goaway(FRAME_SIZE),
        ),
        (
            "6.5.2 push neither on nor off",
            settings(&[(2, 2)]),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.5.2 a window past its bound",
            settings(&[(4, 1 << 31)]),
            Told::Goaway(FLOW_CONTROL),
        ),
        (
            "6.5.2 frames smaller than they may be",
            settings(&[(5, 1_000)]),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.5.2 settings nobody knows",
            settings(&[(0xFF, 7)]),
            Told::Nothing,
        ),
        (
            "6.6 PUSH_PROMISE from a client",
            [open.clone(), frame(5, END_HEADERS, 1, &[0, 0, 0, 2, 0x82])].concat(),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.7 PING on a stream",
            frame(PING, 0, 1, &[0; 8]),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.7 PING of seven bytes",
            frame(PING, 0, 0, &[0; 7]),
            Told::Goaway(FRAME_SIZE),
        ),
        (
            "6.8 GOAWAY on a stream",
            frame(GOAWAY, 0, 1, &[0; 8]),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.9 a window of nothing more",
            window_update(0, 0),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.9 a stream's of nothing more",
            [open.clone(), window_update(1, 0)].concat(),
            Told::Reset(PROTOCOL),
        ),
        (
            "6.9 WINDOW_UPDATE of three bytes",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            Told::Goaway(FRAME_SIZE),
        ),
        (
            "6.9.1 a window past its bound",
            window_update(0, (1 << 31) - 1),
            Told::Goaway(FLOW_CONTROL),
        ),
        (
            "6.9.1 a stream's past its bound",
            [open.clone(), window_update(1, (1 << 31) - 1)].concat(),
            Told::Reset(FLOW_CONTROL),
        ),
        (
            "6.10 CONTINUATION of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &[]),
            Told::Goaway(PROTOCOL),
        ),
        (
            "6.10 CONTINUATION after the end",
            [whole.clone(), frame(CONTINUATION, END_HEADERS, 1, &[])].concat(),
            Told::Goaway(PROTOCOL),
        ),
        (
            "5.5 a frame nobody knows",
            frame(0x42, 0xFF, 0, b"whatever"),
            Told::Nothing,
        ),
        (
            "5.3 PRIORITY, which means nothing any more",
            frame(2, 0, 1, &[0, 0, 0, 0, 1]),
            Told::Nothing,
        ),
        (
            "8.2 a name in capitals",
            more(field("X-Own", "a")),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.2 a name with a space",
            more(field("x own", "a")),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.2 a value with a line's end",
            more(field("x-own", "a\r\nb: c")),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.2.2 a connection's own field",
            more(field("connection", "x-own")),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.2.2 another framing",
            more(field("transfer-encoding", "chunked")),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.2.2 te, and not for trailers",
            more(field("te", "gzip")),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.3 a pseudo-field nobody knows",
            more(field(":nobody", "a")),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.3 a pseudo-field of answers",
            more(field(":status", "200")),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.3 a pseudo-field after others",
            with(&[
                method.clone(),
                scheme.clone(),
                field("x-own", "a"),
                path.clone(),
            ]),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.3.1 no path",
            with(&[method.clone(), scheme.clone(), authority.clone()]),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.3.1 no scheme",
            with(&[method.clone(), path.clone()]),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.3.1 no method",
            with(&[scheme.clone(), path.clone()]),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.3.1 two methods",
            with(&[method.clone(), method.clone(), scheme.clone(), path.clone()]),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.3.1 two paths",
            with(&[method.clone(), path.clone(), scheme.clone(), path.clone()]),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.3.1 a method with a space",
            with(&[
                field(":method", "GET /v2/ep/run"),
                path.clone(),
                scheme.clone(),
            ]),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.1.1 a body shorter than declared",
            [
                frame(
                    HEADERS,
                    END_HEADERS,
                    1,
                    &[fields("POST", "/v2/ep/run"), field("content-length", "3")].concat(),
                ),
                frame(DATA, END_STREAM, 1, b"12"),
            ]
            .concat(),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.1.1 a body longer than declared",
            [
                frame(
                    HEADERS,
                    END_HEADERS,
                    1,
                    &[fields("POST", "/v2/ep/run"), field("content-length", "1")].concat(),
                ),
                frame(DATA, END_STREAM, 1, b"12"),
            ]
            .concat(),
            Told::Reset(PROTOCOL),
        ),
        (
            "8.1.1 two lengths",
            with(&[
                fields("POST", "/v2/ep/run"),
                field("content-length", "0"),
                field("content-length", "1"),
            ]),
            Told::Reset(PROTOCOL),
        ),
    ];
    let mut wrong = Vec::new();
    for (what, bytes, expected) in cases {
        let seen = told(&stand.gateway, &bytes).await;
        let fits = match (expected, seen) {
            (Told::Goaway(code), Told::Goaway(seen))
            | (Told::Reset(code), Told::Reset(seen) | Told::Goaway(seen)) => {
                seen == code || seen == PROTOCOL
            }
            _ => seen == expected,
        };
        if !fits {
            wrong.push(format!("{what}: {seen:?}, and not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(stand.upstream.submissions(), (0, 0));
    stand.is_as_before().await;
}

#[tokio::test]
async fn more_streams_than_there_may_be_are_refused_and_the_others_go_on() {
    let stand = Scene::default().start();
    let mut peer = Peer::connect(stand.gateway.address(), &settings(&[])).await;
    for stream in (1..220).step_by(2) {
        let work = format!(r#"{{"input":{{"id":"{}","sleep":0.3}}}}"#, unique());
        peer.send(request(stream, "POST", "/v2/ep/runsync", &work))
            .await;
    }
    let (mut ok, mut refused) = (0, BTreeSet::new());
    while ok + refused.len() < 110 {
        let frame = peer.next().await.expect("the connection goes on");
        match frame.kind {
            // And once more, for the body that was on its way.
            RST_STREAM if refused.insert(frame.stream) => assert_eq!(frame.code(), REFUSED),
            HEADERS => {
                assert!(frame.is_ok());
                ok += 1;
            }
            _ => {}
        }
    }
    let last: BTreeSet<_> = (201..220).step_by(2).collect();
    assert_eq!((ok, refused), (100, last));
    drop(peer);
    assert_eq!(stand.upstream.submissions(), (100, 0));
    stand.is_as_before().await;
}

#[tokio::test]
async fn a_ping_is_answered_while_a_request_waits() {
    let stand = Scene::default().start();
    let mut peer = Peer::connect(stand.gateway.address(), &settings(&[])).await;
    let work = format!(r#"{{"input":{{"id":"{}","sleep":0.3}}}}"#, unique());
    peer.send(request(1, "POST", "/v2/ep/runsync", &work)).await;
    peer.send(frame(PING, 0, 0, b"pingpong")).await;
    let ponged = |frame: &Frame| (frame.kind, frame.flags) == (PING, ACK);
    let pong = peer.until("a pong", ponged).await;
    assert_eq!(pong.payload, b"pingpong");
    assert!(peer.is_ok(1).await);
    drop(peer);
    stand.is_as_before().await;
}

/// One stream's request leaves the queue, its neighbours stay.
#[tokio::test]
async fn a_request_that_is_reset_is_not_submitted_and_its_neighbours_are() {
    let stand = Scene::default()
        .limit(
            Group::Run,
            support::Tight {
                requests: Some(1),
                window: Duration::from_millis(500),
                concurrency: None,
            },
        )
        .set(Group::Run, "max_wait: 30s")
        .margin("100ms")
        .start();
    let gateway = &stand.gateway;
    let mut peer = Peer::connect(gateway.address(), &settings(&[])).await;
    for stream in [1, 3, 5, 7] {
        peer.send(request(stream, "POST", "/v2/ep/run", &job(&unique())))
            .await;
    }
    eventually("three wait", || gateway.waiting(Group::Run) == 3).await;
    peer.send(super::frames::reset(5)).await;
    eventually("two wait", || gateway.waiting(Group::Run) == 2).await;
    for stream in [3, 7] {
        assert!(peer.is_ok(stream).await);
    }
    drop(peer);
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.upstream.submissions(), (3, 0));
    assert_eq!(stand.gateway.ended("client_gone"), 1);
}
