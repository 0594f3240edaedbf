//! The same promises to clients of HTTP/2: one spelling, one upstream, and bodies to the byte.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use podgate::emulator::limits::Group;

use super::frames::{
    END_HEADERS, END_STREAM, GOAWAY, HEADERS, Peer, RST_STREAM, field, frame, settings,
};
use super::raw::echo;
use super::support::{Answer, Gateway, Scene, job, unique, within};

const MIB: usize = 1 << 20;
static ZEROS: [u8; 64 * 1024] = [b' '; 64 * 1024];

/// So many bytes, made as they are sent; the last ones are a submission, unless there are none.
struct Upload {
    left: usize,
    job: Option<Bytes>,
    declared: bool,
}

impl Upload {
    fn of(size: usize, declared: bool) -> Self {
        let job = Bytes::from(job(&unique()));
        Self {
            left: size - job.len().min(size),
            job: Some(job).filter(|_| size > 0),
            declared,
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = match self.left {
            0 => self.job.take(),
            left => Some(Bytes::from_static(&ZEROS[..left.min(ZEROS.len())])),
        };
        self.left -= chunk.as_ref().map_or(0, |chunk| chunk.len().min(self.left));
        Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.job.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.left + self.job.as_ref().map_or(0, Bytes::len);
        match self.declared {
            true => SizeHint::with_exact(left as u64),
            false => SizeHint::default(),
        }
    }
}

/// One connection.
struct Client(SendRequest<Upload>);

impl Client {
    async fn connect(gateway: &Gateway) -> Self {
        let io = TokioIo::new(gateway.connect().await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn call(&mut self, request: Request<Upload>) -> hyper::Result<Answer> {
        let sent = self.0.send_request(request);
        let answered = async { whole(sent.await?).await };
        within("an answer", answered).await
    }

    async fn post(&mut self, path: &str, size: usize, declared: bool) -> Answer {
        let request = request(Method::POST, path, Upload::of(size, declared));
        self.call(request).await.unwrap()
    }
}

async fn whole(response: Response<Incoming>) -> hyper::Result<Answer> {
    let (parts, body) = response.into_parts();
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: body.collect().await?.to_bytes(),
    })
}

fn request(method: Method, path: &str, body: Upload) -> Request<Upload> {
    Request::builder()
        .method(method)
        .uri(format!("http://podgate.test{path}"))
        .header("authorization", "Bearer key")
        .body(body)
        .unwrap()
}

fn get(path: &str, fields: &[(&'static str, &'static str)]) -> Request<Upload> {
    let mut request = request(Method::GET, path, Upload::of(0, true));
    for (name, value) in fields {
        let value = http::HeaderValue::from_static(value);
        request.headers_mut().append(*name, value);
    }
    request
}

#[tokio::test]
async fn a_byte_too_many_is_no_job_and_none_too_many_is_one() {
    for settings in ["", "buffers: { per_request: 4KiB, total: 4KiB }"] {
        let stand = Scene::default().settings(settings).start();
        let mut client = Client::connect(&stand.gateway).await;
        let mut fitted = 0;
        for (path, limit) in [("/v2/ep/run", 10 * MIB), ("/v2/ep/runsync", 20 * MIB)] {
            for declared in [true, false] {
                let answer = client.post(path, limit, declared).await;
                assert_eq!(answer.status, 200, "{path} {declared}: {:?}", answer.body);
                fitted += 1;
                assert_eq!(stand.upstream.submissions(), (fitted, 0));
                let answer = client.post(path, limit + 1, declared).await;
                assert_eq!(answer.status, 413, "{path} {declared}");
                assert_eq!(answer.json()["outcome"], "payload_too_large");
                assert_eq!(stand.upstream.submissions(), (fitted, 0));
            }
        }
        drop(client);
        stand.is_as_before().await;
    }
}

const UPLOAD: usize = 50_000_000;

#[tokio::test]
async fn whoever_still_uploads_reads_what_it_is_told() {
    let stand = Scene::default()
        .set(
            Group::RunSync,
            "max_body: 64MiB, rate: { requests: 1, per: 10m }, max_wait: 1s",
        )
        .start();
    let mut client = Client::connect(&stand.gateway).await;
    assert_eq!(client.post("/v2/ep/runsync", 100, true).await.status, 200);
    for (method, path, declared, status) in [
        (Method::POST, "/v2/ep/run", true, 413),
        (Method::POST, "/v2/ep/run", false, 413),
        (Method::POST, "/v2/ep/runsync", true, 429),
        (Method::POST, "/v2/ep/nowhere/", true, 404),
        (Method::PUT, "/v2/ep/run", true, 405),
        (Method::TRACE, "/v2/ep/run", true, 405),
        (Method::POST, "/v2//ep/run", true, 400),
    ] {
        for _ in 0..20 {
            let upload = Upload::of(UPLOAD, declared);
            let refused = client.call(request(method.clone(), path, upload)).await;
            let refused = refused.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
            assert_eq!(refused.status, status, "{method} {path}");
            // Beside it the connection carries on.
            let health = client.call(get("/v2/ep/health", &[])).await.unwrap();
            assert_eq!(health.status, 200, "{method} {path}");
        }
    }
    assert_eq!(stand.upstream.submissions(), (1, 0));
    drop(client);
    stand.gateway.comes_to_rest().await;
}

#[tokio::test]
async fn neither_authority_nor_host_chooses_anything() {
    let upstream = echo().await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let ours = upstream.address.to_string();
    let mut client = Client::connect(&gateway).await;
    let fields = [
        ("host", "other.example"),
        ("te", "trailers"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-original-url", "/v2/ep/run"),
        ("transfer_encoding", "chunked"),
        ("x-keep", "1"),
    ];
    let answer = client
        .call(get("/v2/ep/health?a=b", &fields))
        .await
        .unwrap();
    assert_eq!(
        (answer.status, answer.body.as_ref()),
        (200, &b"/v2/ep/health?a=b"[..])
    );
    let received = upstream.received();
    assert_eq!(received[0].line(), "GET /v2/ep/health?a=b HTTP/1.1");
    assert_eq!(received[0].field("host"), [ours.as_str()]);
    assert!(received[0].field("via")[0].starts_with("2 podgate-"));
    assert_eq!(
        received[0].names(),
        [
            "authorization",
            "host",
            "traceparent",
            "via",
            "x-keep",
            "x-request-id"
        ]
    );
    for name in ["connection", "transfer-encoding", "keep-alive"] {
        assert_eq!(answer.header(name), None, "no field of HTTP/1's: {name}");
    }
    for (fields, status) in [
        (&[("host", "a"), ("host", "b")][..], 400),
        (&[("host", "me@x")], 400),
        (&[("authorization", "another")], 400),
        (&[("expect", "something")], 417),
    ] {
        let answer = client.call(get("/v2/ep/health", fields)).await.unwrap();
        assert_eq!(answer.status, status, "{fields:?}");
        assert_eq!(answer.json()["outcome"], "bad_request", "{fields:?}");
    }
    assert_eq!(upstream.received().len(), 1);
}

#[tokio::test]
async fn one_spelling_goes_through() {
    let upstream = echo().await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let mut client = Client::connect(&gateway).await;
    for (path, status) in [
        ("/v2/ep/RUN", 404),
        ("/v2/ep/run/", 404),
        ("/v2/ep/x/../run", 404),
        ("/v2/ep/r%75n", 404),
        ("/v2/ep/run;a", 404),
        ("/v2//ep/run", 400),
    ] {
        let answer = client.post(path, 0, true).await;
        assert_eq!(answer.status, status, "{path}");
    }
    let long = format!("/v2/ep/health?{}", "a".repeat(9_000));
    let answer = client.call(get(&long, &[])).await.unwrap();
    assert_eq!(answer.status, 414);
    assert_eq!(upstream.received().len(), 0);
}

/// What is no request of HTTP/2 is none of anybody's: its stream ends, or the connection does.
#[tokio::test]
async fn what_is_malformed_is_no_request() {
    let upstream = echo().await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let sound = |method: &str, path: &str| {
        [
            field(":method", method),
            field(":scheme", "http"),
            field(":path", path),
            field(":authority", "x"),
        ]
        .concat()
    };
    for (what, block) in [
        (
            "a space in the method",
            sound("GET /v2/ep/run", "/v2/ep/health"),
        ),
        (
            "a line end in the method",
            sound("GET\r\nx: y", "/v2/ep/health"),
        ),
        (
            "a space in the path",
            sound("GET", "/v2/ep/health HTTP/1.1"),
        ),
        (
            "a line end in the path",
            sound("GET", "/v2/ep/health\r\nx: y"),
        ),
        (
            "no path",
            [field(":method", "GET"), field(":scheme", "http")].concat(),
        ),
        (
            "two paths",
            [sound("GET", "/v2/ep/health"), field(":path", "/v2/ep/run")].concat(),
        ),
        (
            "Connection",
            [sound("GET", "/v2/ep/health"), field("connection", "close")].concat(),
        ),
        (
            "Transfer-Encoding",
            [
                sound("GET", "/v2/ep/health"),
                field("transfer-encoding", "chunked"),
            ]
            .concat(),
        ),
        (
            "Upgrade",
            [sound("GET", "/v2/ep/health"), field("upgrade", "h2c")].concat(),
        ),
        (
            "a name in upper case",
            [sound("GET", "/v2/ep/health"), field("X-Y", "z")].concat(),
        ),
        (
            "a line end in a value",
            [sound("GET", "/v2/ep/health"), field("x", "y\r\nz: a")].concat(),
        ),
        (
            "NUL in a value",
            [sound("GET", "/v2/ep/health"), field("x", "y\0z")].concat(),
        ),
        (
            "another length",
            [sound("POST", "/v2/ep/run"), field("content-length", "5")].concat(),
        ),
    ] {
        let headers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
        let first = [settings(&[]), headers].concat();
        let mut peer = Peer::connect(gateway.address(), &first).await;
        let refused = async {
            while let Some(frame) = peer.next().await {
                match (frame.kind, frame.stream) {
                    (RST_STREAM, 1) | (GOAWAY, _) => return,
                    (HEADERS, 1) => {
                        // A 4xx is as good.
                        assert!(!frame.is_ok(), "{what}");
                        return;
                    }
                    _ => {}
                }
            }
        };
        within(what, refused).await;
    }
    gateway.comes_to_rest().await;
    assert_eq!(upstream.received().len(), 0, "{:?}", upstream.received());
}
