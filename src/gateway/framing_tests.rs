//! That framing is followed as hyper does it, by hyper.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

/// The request lines of a connection as they are followed here, and what is wrong with it.
fn followed(bytes: &[u8]) -> (Vec<String>, Option<(u64, BadHead)>) {
    let (mut reader, mut lines) = (Reader::default(), Vec::new());
    let mut line = Vec::new();
    for byte in bytes {
        let before = reader.state;
        reader.saw(&[*byte]);
        line.push(*byte);
        if (before, reader.state) == (State::RequestLine, State::Fields) {
            lines.push(String::from_utf8_lossy(&line).into_owned());
        }
        let within = matches!(before, State::Body(_) | State::Chunk(_));
        if *byte == b'\n' || within {
            line.clear();
        }
    }
    (lines, reader.fault)
}

/// The requests that hyper makes of the same bytes, with whether each is let pass.
async fn served(bytes: &[u8]) -> Vec<(String, Result<(), BadHead>)> {
    let framing = Framing::default();
    framing.saw(bytes);
    let (client, server) = duplex(64 * 1024);
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = requests.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let passes = framing.next();
        let (method, uri, version) = (request.method(), request.uri(), request.version());
        let line = format!("{method} {uri} {version:?}\r\n");
        seen.lock().push((line, passes));
        async move {
            let mut response = Response::new(Full::<Bytes>::default());
            let whole = request.into_body().collect().await.is_ok();
            if passes.is_err() || !whole {
                let close = http::HeaderValue::from_static("close");
                response.headers_mut().insert("connection", close);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let (mut from, mut to) = tokio::io::split(client);
    let serving = http1::Builder::new().serve_connection(TokioIo::new(server), service);
    let talks = async {
        to.write_all(bytes).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut answers = Vec::new();
    let (_, (), _) = tokio::join!(
        // Whatever becomes of it.
        serving,
        async { drop(tokio::time::timeout(std::time::Duration::from_secs(5), talks).await) },
        from.read_to_end(&mut answers)
    );
    requests.lock().clone()
}

fn request_line() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        4 => Just("GET /a HTTP/1.1\r\nhost: x\r\n"),
        4 => Just("POST /b HTTP/1.1\r\n"),
        1 => Just("POST /c HTTP/1.0\r\nconnection: keep-alive\r\n"),
        1 => Just("\r\nPUT /d HTTP/1.1\r\n"),
    ]
}

/// Fields and the body that goes with them.
fn sound() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        4 => Just("\r\n"),
        4 => Just("content-length: 5\r\n\r\nabcde"),
        1 => Just("Content-Length:0\r\n\r\n"),
        1 => Just("content-length: 05 \r\nexpect: 100-continue\r\n\r\nabcde"),
        4 => Just("transfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"),
        1 => Just("Transfer-Encoding: \t Chunked\t\r\n\r\n5;x=\"y\"\r\nabcde\r\n0\r\n\r\n"),
        2 => Just("transfer-encoding: chunked\r\n\r\n00\r\nx-trailer: y\r\nx: y\r\n\r\n"),
        1 => Just("transfer-encoding: chunked\r\n\r\n5\t\r\nabcde\r\n0 ;x\r\n\r\n"),
        1 => Just("upgrade: h2c\r\n\r\n"),
    ]
}

/// The same where they do not quite go together.
fn unsound() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        1 => Just("content-length: 4\r\n\r\nabcde"),
        1 => Just("content-length: +5\r\n\r\nabcde"),
        1 => Just("content-length: 5\r\ncontent-length: 5\r\n\r\nabcde"),
        1 => Just("content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        1 => Just("transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n"),
        1 => Just("transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        1 => Just("transfer-encoding: chunked\r\n\r\n4\r\nabcde\r\n0\r\n\r\n"),
        1 => Just("transfer-encoding: chunked\r\n\r\n0\r\na: b\nc: d\r\n\r\n"),
    ]
}

fn odd() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "#",
        " ",
        "\n",
        "\r",
        ":",
        "\u{0}",
        "\r\n",
        "x: y\r\n",
        "0",
        "5\r\n",
        "abcde",
        "content-length : 5\r\n",
        "connection: close\r\n",
        "PRI * HTTP/2.0\r\n\r\n",
        "00000000000000000000000000000000000000000000000000000000000000005\r\nabcde\r\n",
    ])
}

/// Messages one behind the other; in some something is odd somewhere.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let rest = prop_oneof![3 => sound(), 1 => unsound()];
    let messages = prop::collection::vec((request_line(), rest), 1..8);
    let oddities = prop::collection::vec((any::<prop::sample::Index>(), odd()), 0..3);
    (messages, oddities).prop_map(|(messages, oddities)| {
        let messages = messages
            .into_iter()
            .map(|(line, rest)| [line, rest].concat());
        let mut bytes = messages.collect::<String>().into_bytes();
        for (place, odd) in oddities {
            let place = place.index(bytes.len() + 1);
            bytes.splice(place..place, odd.bytes());
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// A request that hyper makes of a connection and that is let pass is the one that stands
    /// there, also where it comes behind others.
    #[test]
    fn what_passes_is_framed_as_hyper_frames_it(bytes in streams()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let served = runtime.unwrap().block_on(served(&bytes));
        let (lines, fault) = followed(&bytes);
        let mut refused = false;
        for (number, (line, passes)) in served.into_iter().enumerate() {
            prop_assert!(!refused, "served after a refusal");
            match passes {
                Ok(()) => {
                    prop_assert_eq!(lines.get(number), Some(&line), "number {}", number);
                }
                Err(_) => refused = true,
            }
            prop_assert!(fault.is_none_or(|(from, _)| from > number as u64) || refused);
        }
    }

    #[test]
    fn what_is_sound_passes(
        messages in prop::collection::vec((request_line(), sound()), 1..8),
    ) {
        let chunked = |(line, rest): &(&str, &str)| {
            // HTTP/1.0 has no chunks.
            !(line.contains("1.0") && rest.to_ascii_lowercase().contains("chunked"))
        };
        let messages: Vec<_> = messages.into_iter().filter(chunked).collect();
        let bytes = messages.iter().map(|(line, rest)| [*line, *rest].concat());
        let bytes = bytes.collect::<String>().into_bytes();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let served = runtime.unwrap().block_on(served(&bytes));
        prop_assert_eq!(served.len(), messages.len());
        prop_assert!(served.iter().all(|(_, passes)| passes.is_ok()), "{:?}", served);
    }

    #[test]
    fn how_the_bytes_come_makes_no_difference(
        bytes in streams(),
        cuts in prop::collection::vec(1usize..40, 0..40),
    ) {
        let whole = Framing::default();
        whole.saw(&bytes);
        let in_pieces = Framing::default();
        let mut rest = bytes.as_slice();
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            in_pieces.saw(now);
            rest = later;
        }
        in_pieces.saw(rest);
        for _ in 0..4 {
            prop_assert_eq!(whole.next(), in_pieces.next());
        }
    }
}

#[test]
fn after_the_preface_of_http_2_nothing_is_looked_at() {
    let framing = Framing::default();
    framing.saw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\n\n#\n");
    for _ in 0..100 {
        assert_eq!(framing.next(), Ok(()));
    }
    let later = Framing::default();
    later.saw(b"GET / HTTP/1.1\r\n\r\nPRI * HTTP/2.0\r\n\r\n");
    assert_eq!(later.next(), Ok(()));
    assert_eq!(later.next(), Ok(()), "a request like any other");
    assert_eq!(later.next(), Err(BadHead::Unframed));
}
