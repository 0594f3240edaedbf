//! What a hostile client writes, byte for byte: each row says what it is answered, whether the
//! connection ends, and what the upstream sees of it. Behind every row's bytes comes another request
//! in the same segment: where the connection goes on it gets its own answer, where it ends nobody
//! takes it for anything.

use super::raw::{Raw, Reply, echo};
use super::scripted::{Received, Scripted};
use super::support::{Gateway, Machine, Scene, eventually};

/// What comes of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The upstream sees it, once.
    Through,
    /// Answered by us; the connection goes on.
    Refused(u16),
    /// Answered by us, and the connection ends.
    Ends(u16),
}

use Outcome::{Ends, Refused, Through};

struct Stage {
    gateway: Gateway,
    upstream: Scripted,
    _machine: Machine,
}

const SECOND: &str = "/v2/ep/health?second";

impl Stage {
    async fn set() -> Self {
        let upstream = echo().await;
        let (gateway, _machine) = Scene::default()
            .settings("buffers: { per_request: 16KiB }")
            .before(upstream.address);
        Self {
            gateway,
            upstream,
            _machine,
        }
    }

    /// Plays one row. What the upstream saw of it, if anything, and its answer.
    async fn row(&self, bytes: &[u8], outcome: Outcome) -> (Option<Received>, Reply) {
        let name = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        let before = self.upstream.received().len();
        let second = format!("GET {SECOND} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut client = Raw::connect(&self.gateway).await;
        client.write([bytes, second.as_bytes()].concat()).await;
        let replies = client.replies().await;
        let mut seen = self.upstream.received().split_off(before);
        let Some(first) = replies.first().cloned() else {
            panic!("no answer: {name:?}")
        };
        match outcome {
            Ends(status) => {
                assert_eq!(replies.len(), 1, "nothing is read after it: {name:?}");
                assert_eq!(first.status, status, "{name:?}");
                assert_eq!(seen.len(), 0, "{name:?}: {seen:?}");
                let said = first.field("connection").map(str::to_ascii_lowercase);
                assert_eq!(said.as_deref(), Some("close"), "it says so: {name:?}");
                return (None, first);
            }
            Refused(status) => assert_eq!(first.status, status, "{name:?}"),
            Through => assert_eq!(first.status, 200, "{name:?}: {first:?}"),
        }
        assert_eq!(replies.len(), 2, "{name:?}: {replies:?}");
        assert_eq!(
            replies[1].text(),
            SECOND,
            "it gets its own answer: {name:?}"
        );
        let last = seen.pop().unwrap();
        assert_eq!(last.line(), format!("GET {SECOND} HTTP/1.1"), "{name:?}");
        let own = usize::from(outcome == Through);
        assert_eq!(seen.len(), own, "{name:?}: {seen:?}");
        (seen.pop(), first)
    }

    /// A row whose head has these lines and this body.
    async fn head(&self, lines: &str, body: &str, outcome: Outcome) -> Option<Received> {
        let text = format!("{lines}\r\n\r\n{body}");
        self.row(text.as_bytes(), outcome).await.0
    }

    /// Every request has an outcome, and nobody is left behind.
    async fn clear(&self, requests: u64) {
        self.gateway.comes_to_rest().await;
        let page = self.gateway.running.shared.metrics.page().unwrap();
        let counted: u64 = String::from_utf8(page)
            .unwrap()
            .lines()
            .filter(|line| line.starts_with("podgate_requests_total{"))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(counted, requests);
    }
}

/// The body that the upstream must have got, if it got any: framed by us, once.
fn framed(received: &Received, body: &str) {
    assert_eq!(received.body, body.as_bytes());
    let length = body.len().to_string();
    assert_eq!(received.field("content-length"), [length.as_str()]);
    assert_eq!(received.field("transfer-encoding"), [""; 0]);
}

/// A second request hidden in what one reader takes for a body.
const HIDDEN: &str = "GET /v2/ep/health?hidden HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn two_framings_are_none() {
    let stage = Stage::set().await;
    let post = "POST /v2/ep/run HTTP/1.1\r\nhost: x";
    let smuggled = format!("0\r\n\r\n{HIDDEN}");
    let length = smuggled.len();
    let mut rows = 0;
    for (fields, body) in [
        // CL.TE and TE.CL, in either order.
        (
            format!("content-length: {length}\r\ntransfer-encoding: chunked"),
            smuggled.as_str(),
        ),
        (
            format!("transfer-encoding: chunked\r\ncontent-length: {length}"),
            &smuggled,
        ),
        (
            "content-length: 4\r\ntransfer-encoding: chunked".into(),
            "5c\r\nGET /v2/ep/run",
        ),
        (
            "transfer-encoding: chunked\r\ncontent-length: 0".into(),
            "3\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "CONTENT-LENGTH:0\r\nTransfer-Encoding:chunked".into(),
            HIDDEN,
        ),
        // TE.TE.
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked".into(),
            &smuggled,
        ),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: identity".into(),
            &smuggled,
        ),
        (
            "transfer-encoding: identity\r\ntransfer-encoding: chunked".into(),
            &smuggled,
        ),
        ("transfer-encoding: gzip, chunked".into(), &smuggled),
        ("transfer-encoding: chunked, gzip".into(), &smuggled),
        ("transfer-encoding: chunked, chunked".into(), &smuggled),
        ("transfer-encoding: , chunked".into(), &smuggled),
        ("transfer-encoding: chunked,".into(), &smuggled),
        ("transfer-encoding: chunked;a=b".into(), &smuggled),
        ("transfer-encoding: \"chunked\"".into(), &smuggled),
        ("transfer-encoding: xchunked".into(), &smuggled),
        ("transfer-encoding: identity".into(), &smuggled),
        ("transfer-encoding:".into(), &smuggled),
        ("transfer-encoding: \u{b}chunked".into(), &smuggled),
        ("transfer-encoding: chunked\u{a0}".into(), &smuggled),
        ("transfer-encoding : chunked".into(), &smuggled),
        ("transfer-encoding\t: chunked".into(), &smuggled),
        ("x: y\r\n transfer-encoding: chunked".into(), &smuggled),
        ("transfer-encoding:\r\n chunked".into(), &smuggled),
        ("x: y\ntransfer-encoding: chunked".into(), &smuggled),
        ("x: y\rtransfer-encoding: chunked".into(), &smuggled),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding : x".into(),
            &smuggled,
        ),
    ] {
        stage
            .head(&format!("{post}\r\n{fields}"), body, Ends(400))
            .await;
        rows += 1;
    }
    let old = "POST /v2/ep/run HTTP/1.0\r\nhost: x\r\nconnection: keep-alive";
    stage
        .head(
            &format!("{old}\r\ntransfer-encoding: chunked"),
            &smuggled,
            Ends(400),
        )
        .await;
    rows += 1;

    for fields in [
        "transfer-encoding: chunked",
        "Transfer-Encoding: Chunked",
        "TRANSFER-ENCODING:\t CHUNKED \t",
        // No framing to us, and nobody else is told of it.
        "transfer-encoding: chunked\r\ntransfer_encoding: identity\r\ncontent_length: 3",
    ] {
        let seen = stage
            .head(
                &format!("{post}\r\n{fields}"),
                "7\r\n{\"a\":1}\r\n0\r\n\r\n",
                Through,
            )
            .await
            .unwrap();
        framed(&seen, "{\"a\":1}");
        assert_eq!(seen.field("transfer_encoding"), [""; 0]);
        assert_eq!(seen.field("content_length"), [""; 0]);
        rows += 2;
    }
    stage.clear(rows).await;
}

#[tokio::test]
async fn a_length_is_digits_given_once() {
    let stage = Stage::set().await;
    let post = "POST /v2/ep/run HTTP/1.1\r\nhost: x";
    let mut rows = 0;
    for length in [
        "+5",
        "-5",
        "-0",
        "0x5",
        "5,5",
        "5, 5",
        "5 5",
        "5;",
        "5.0",
        "5e0",
        "five",
        "",
        " ",
        "\"5\"",
        "18446744073709551616",
        "18446744073709551621",
        "99999999999999999999999999",
        "5\u{0}",
        "4294967301 ,",
        "\u{0665}",
    ] {
        let head = format!("{post}\r\ncontent-length: {length}");
        stage.head(&head, "abcde", Ends(400)).await;
        rows += 1;
    }
    for fields in [
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5\r\nx: y\r\nContent-Length: 0",
        "content-length : 5",
        "content-length: 5\n",
        "x: y\r\n content-length: 5",
        "content-length:\r\n 5",
    ] {
        stage
            .head(&format!("{post}\r\n{fields}"), "abcde", Ends(400))
            .await;
        rows += 1;
    }
    for (length, body) in [
        ("5", "abcde"),
        ("0005", "abcde"),
        ("\t 5 ", "abcde"),
        ("0", ""),
    ] {
        let head = format!("{post}\r\ncontent-length: {length}");
        let seen = stage.head(&head, body, Through).await.unwrap();
        assert_eq!(seen.body, body.as_bytes());
        rows += 2;
    }
    // More than may be sent, and more than anybody can send.
    for length in ["10485761", "18446744073709551615", "18446744073709551613"] {
        let mut client = Raw::connect(&stage.gateway).await;
        client
            .write(format!("{post}\r\ncontent-length: {length}\r\n\r\n"))
            .await;
        let status = client.reply().await.unwrap().status;
        // The largest numbers are hyper's own marks, which it takes from nobody.
        let expected = if length == "18446744073709551615" {
            431
        } else {
            413
        };
        assert_eq!(status, expected, "{length}");
        rows += 1;
    }
    stage.clear(rows).await;
}

#[tokio::test]
async fn a_chunk_that_breaks_its_framing_is_the_clients_fault() {
    let stage = Stage::set().await;
    let post = "POST /v2/ep/run HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked";
    let extension = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(17_000));
    let trailers = format!("3\r\nabc\r\n0\r\n{}\r\n", "a: b\r\n".repeat(200));
    let zeros = format!("{}3\r\nabc\r\n0\r\n\r\n", "0".repeat(80));
    let mut rows = 0;
    for body in [
        "g\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        ";x\r\nabc\r\n0\r\n\r\n",
        "3 3\r\nabc\r\n0\r\n\r\n",
        "3,\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3;x\nabc\r\n0\r\n\r\n",
        "3;a=\"\n\"\r\nabc\r\n0\r\n\r\n",
        "3\rabc\r\n0\r\n\r\n",
        "10000000000000000\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\rX0\r\n\r\n",
        "2\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nbad trailer\r\n\r\n",
        "3\r\nabc\r\n0\r\na: b\rc\r\n\r\n",
        "3\r\nabc\r\n0\r\n : b\r\n\r\n",
        &extension,
        &trailers,
    ] {
        stage.head(post, body, Ends(400)).await;
        rows += 1;
    }
    for body in [
        "3\r\nabc\r\n0\r\n\r\n",
        "3;a=b;c=\"d\"\r\nabc\r\n0;x\r\n\r\n",
        "3 \t\r\nabc\r\n0\r\n\r\n",
        "003\r\nabc\r\n000\r\n\r\n",
        "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nx-trailer: 1\r\ncontent-length: 9\r\nauthorization: other\r\n\r\n",
    ] {
        let seen = stage.head(post, body, Through).await.unwrap();
        framed(&seen, "abc");
        for dropped in ["x-trailer", "authorization"] {
            assert_eq!(seen.field(dropped), [""; 0], "trailers end here: {body:?}");
        }
        rows += 2;
    }
    // hyper follows it and we do not: it passes, and nothing after it is trusted.
    let mut client = Raw::connect(&stage.gateway).await;
    client
        .write(format!("{post}\r\n\r\n{zeros}{HIDDEN}{HIDDEN}"))
        .await;
    let statuses: Vec<_> = client
        .replies()
        .await
        .iter()
        .map(|reply| reply.status)
        .collect();
    assert_eq!(statuses, [200, 400]);
    drop(client);
    rows += 2;
    stage.clear(rows).await;
}

/// The same where the body is sent on while it comes in.
#[tokio::test]
async fn a_chunk_that_breaks_its_framing_on_the_way_is_the_clients_fault_too() {
    let upstream = Scripted::start(|mut connection| async move {
        let mut all = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut connection.stream, &mut all).await;
        assert!(!all.ends_with(b"0\r\n\r\n"), "it looks whole");
    })
    .await;
    let (gateway, _machine) = Scene::default()
        .settings("buffers: { per_request: 1KiB, total: 1KiB }")
        .before(upstream.address);
    let filler = "x".repeat(4_000);
    for bad in [
        "g\r\n",
        "3\r\nabcd\r\n",
        "fffffffffffffffff\r\n",
        "3\nabc\r\n",
    ] {
        let mut client = Raw::connect(&gateway).await;
        client
            .write(format!(
                "POST /v2/ep/run HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
                 {:x}\r\n{filler}\r\n{bad}0\r\n\r\n{HIDDEN}",
                filler.len()
            ))
            .await;
        let replies = client.replies().await;
        assert_eq!(replies.len(), 1, "{bad:?}");
        assert_eq!(replies[0].status, 400, "{bad:?}: {}", replies[0].text());
    }
    gateway.comes_to_rest().await;
    assert_eq!(gateway.ended("bad_request"), 4);
}

#[tokio::test]
async fn a_head_is_lines_of_visible_text() {
    let stage = Stage::set().await;
    let get = "GET /v2/ep/health HTTP/1.1\r\nhost: x";
    let many = "a: b\r\n".repeat(120);
    let mut rows = 0;
    for lines in [
        // Line ends.
        "GET /v2/ep/health HTTP/1.1\nhost: x",
        "GET /v2/ep/health HTTP/1.1\r\nhost: x\n",
        "GET /v2/ep/health HTTP/1.1\r\nhost: x\nx: y",
        "\nGET /v2/ep/health HTTP/1.1\r\nhost: x",
        "GET /v2/ep/health HTTP/1.1\rhost: x",
        "GET /v2/ep/health HTTP/1.1\r\nhost: x\rx: y",
        // Names and values.
        &format!("{get}\r\nx y: z"),
        &format!("{get}\r\nx : z"),
        &format!("{get}\r\n: z"),
        &format!("{get}\r\nx"),
        &format!("{get}\r\n folded: z"),
        &format!("{get}\r\nx: y\r\n\tfolded"),
        &format!("{get}\r\nx\u{0}: z"),
        &format!("{get}\r\nx: y\u{0}z"),
        &format!("{get}\r\nx: y\u{1}z"),
        &format!("{get}\r\nx: y\u{7f}z"),
        &format!("{get}\r\nx(y): z"),
        &format!("{get}\r\nx\u{e9}: z"),
        // The request line.
        "GET /v2/ep/health HTTP/0.9\r\nhost: x",
        "GET /v2/ep/health HTTP/1.2\r\nhost: x",
        "GET /v2/ep/health HTTP/1.10\r\nhost: x",
        "GET /v2/ep/health HTTP/2.0\r\nhost: x",
        "GET /v2/ep/health HTTP/3\r\nhost: x",
        "GET /v2/ep/health http/1.1\r\nhost: x",
        "GET /v2/ep/health HTTP/1.1 \r\nhost: x",
        "GET /v2/ep/health\r\nhost: x",
        "GET  /v2/ep/health HTTP/1.1\r\nhost: x",
        "GET /v2/ep/health  HTTP/1.1\r\nhost: x",
        "GET\t/v2/ep/health HTTP/1.1\r\nhost: x",
        "GET /v2/ep/health x HTTP/1.1\r\nhost: x",
        " GET /v2/ep/health HTTP/1.1\r\nhost: x",
        "GET /v2/ep/\u{0}health HTTP/1.1\r\nhost: x",
        "G@T /v2/ep/health HTTP/1.1\r\nhost: x",
        "PRI * HTTP/2.0\r\nx: y",
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}",
    ] {
        stage.head(lines, "", Ends(400)).await;
        rows += 1;
    }
    stage
        .head(&format!("{get}\r\n{many}x: y"), "", Ends(431))
        .await;
    rows += 1;
    for lines in [
        "\r\n\r\nGET /v2/ep/health HTTP/1.1\r\nhost: x",
        &format!("{get}\r\nx:"),
        &format!("{get}\r\nx:y\r\nX-Y_Z: \t caf\u{e9} \t"),
    ] {
        stage.head(lines, "", Through).await;
        rows += 2;
    }
    stage.clear(rows).await;
}

#[tokio::test]
async fn a_host_is_named_once_and_chooses_nothing() {
    let stage = Stage::set().await;
    let ours = stage.upstream.address.to_string();
    let line = "GET /v2/ep/health HTTP/1.1";
    let mut rows = 0;
    for fields in [
        "x: y",
        "host: x\r\nhost: x",
        "host: x\r\nHost: y",
        "host: x, y",
        "host: me@x",
        "host: me:pw@x",
        "host: x/v2",
        "host: x?y",
        "host: x#y",
        "host: x:y",
        "host: x:80:80",
        "host: x y",
        "host: [::1",
        "host: ::1",
        "host: http://x",
        "host: x\\y",
        "host: x%00",
        "host: \u{e9}",
        "host:",
    ] {
        stage
            .head(&format!("{line}\r\n{fields}"), "", Ends(400))
            .await;
        rows += 1;
    }
    for fields in [
        "host: x",
        "Host:evil.example:8080",
        "host: [::1]:80",
        "host: a_b.c-d",
    ] {
        let seen = stage
            .head(&format!("{line}\r\n{fields}"), "", Through)
            .await
            .unwrap();
        assert_eq!(seen.field("host"), [ours.as_str()]);
        rows += 2;
    }
    for target in [
        "http://evil.example",
        "https://evil.example:444",
        "HTTP://[::1]:80",
    ] {
        let head = format!("GET {target}/v2/ep/health?a=b HTTP/1.1\r\nhost: other");
        let seen = stage.head(&head, "", Through).await.unwrap();
        assert_eq!(seen.line(), "GET /v2/ep/health?a=b HTTP/1.1");
        assert_eq!(seen.field("host"), [ours.as_str()]);
        rows += 2;
    }
    let both = "GET http://x/v2/ep/health HTTP/1.1";
    stage.head(&format!("{both}\r\nx: y"), "", Ends(400)).await;
    rows += 1;
    for target in [
        "http://me@x/v2/ep/health",
        "http://me:pw@x/v2/ep/health",
        "ftp://x/v2/ep/health",
        "podgate://x/v2/ep/health",
        "//x/v2/ep/health",
        "*",
        "x:80",
    ] {
        stage
            .head(
                &format!("GET {target} HTTP/1.1\r\nhost: x"),
                "",
                Refused(400),
            )
            .await;
        rows += 2;
    }
    for target in [
        "v2/ep/health",
        "http:/v2/ep/health",
        "http:///v2/ep/health",
        "?x",
        "http://",
    ] {
        stage
            .head(&format!("GET {target} HTTP/1.1\r\nhost: x"), "", Ends(400))
            .await;
        rows += 1;
    }
    stage.clear(rows).await;
}

#[tokio::test]
async fn only_the_spelling_that_is_counted_goes_through() {
    let stage = Stage::set().await;
    let mut rows = 0;
    for target in [
        "/v2/ep/RUN",
        "/v2/ep/run/",
        "/v2/ep/run/.",
        "/v2/ep/./run",
        "/v2/ep/x/../run",
        "/v2/x/../ep/run",
        "/v2/ep/r%75n",
        "/v2/ep/%72un",
        "/v2/ep%2frun",
        "/v2/ep/run%2f",
        "/v2/ep/run%00",
        "/v2/ep/run%20",
        "/v2/ep/run;a=b",
        "/v2/ep;a=b/run",
        "/v2/ep/x%2f..%2frun",
        "/v2/ep/x/%2e%2e/run",
        "/v2/ep/x/.%2e/run",
        "/v2/ep\\run",
        "/v2/ep/status/a/../../run",
        "/v2/ep/status/a%2f..%2f..%2frun",
        "/v2/ep/job-take/..%2frun",
        "/v2/ep/job-take/w&a=%2f..%2f..%2frun",
        "/v2/ep/job-done/../run",
        "/V2/ep/run",
        "/v2",
        "/",
        "/v1/ep/run",
        "/v2/run",
        "/metrics",
    ] {
        let head = format!("POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 2");
        stage.head(&head, "{}", Refused(404)).await;
        rows += 2;
    }
    for target in [
        "//v2/ep/run",
        "/v2//ep/run",
        "/v2/ep//run",
        "/v2/ep/run//",
        "/v2/ep/health?\u{e9}",
    ] {
        let head = format!("POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 2");
        stage.head(&head, "{}", Refused(400)).await;
        rows += 2;
    }
    for target in [
        "/v2/ep/health#",
        "/v2/ep/health#/../run",
        "/v2/ep/health?a#b",
        "/#",
        "/v2/ep/run?\u{e9}#",
    ] {
        stage
            .head(&format!("GET {target} HTTP/1.1\r\nhost: x"), "", Ends(400))
            .await;
        rows += 1;
    }
    for target in ["/v2/ep/\u{ff}", "/v2/ep/health?\u{80}\u{80}"] {
        // As bytes that are no text in any encoding.
        let bytes: Vec<u8> = format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n")
            .chars()
            .map(|c| c as u8)
            .collect();
        stage.row(&bytes, Ends(400)).await;
        rows += 1;
    }
    for target in ["/v2/ep/health?<", "/v2/ep/health?\"", "/v2/ep/<x>"] {
        stage
            .head(&format!("GET {target} HTTP/1.1\r\nhost: x"), "", Ends(400))
            .await;
        rows += 1;
    }
    for target in [
        "/v2/ep/health?",
        "/v2/ep/health?a=b&&c=%zz+&d",
        "/v2/ep/health?/../run?x;y={}|^`\\'[]",
        "/v2/ep/status/a-u1?ttl=6000",
        "/v2/ep/requests?%00%0d%0a",
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nhost: x");
        let seen = stage.head(&head, "", Through).await.unwrap();
        assert_eq!(
            seen.line(),
            format!("GET {target} HTTP/1.1"),
            "byte for byte"
        );
        rows += 2;
    }
    let long = |length: usize| {
        format!(
            "GET /v2/ep/health?{} HTTP/1.1\r\nhost: x",
            "a".repeat(length)
        )
    };
    stage.head(&long(8_000), "", Through).await;
    stage.head(&long(8_192), "", Refused(414)).await;
    rows += 4;
    // What no buffer for heads holds: refused before it is a target.
    for length in [70_000, 1_000_000] {
        let mut client = Raw::connect(&stage.gateway).await;
        client.write(format!("{}\r\n\r\n", long(length))).await;
        let status = client.reply().await.unwrap().status;
        assert!([414, 431].contains(&status), "{length}: {status}");
        assert_eq!(client.reply().await, None);
        rows += 1;
    }
    stage.clear(rows).await;
}

#[tokio::test]
async fn a_method_is_what_it_says_and_nothing_else_overrides_it() {
    let stage = Stage::set().await;
    let mut rows = 0;
    for target in ["/v2/ep/run", "x:443", "http://x/v2/ep/run", "x"] {
        for method in ["CONNECT", "TRACE"] {
            let head = format!("{method} {target} HTTP/1.1\r\nhost: x");
            let (_, reply) = stage
                .row(format!("{head}\r\n\r\n").as_bytes(), Ends(405))
                .await;
            assert!(reply.field("allow").is_some(), "{reply:?}");
            rows += 1;
        }
    }
    for (method, target) in [
        ("GET", "/v2/ep/run"),
        ("post", "/v2/ep/run"),
        ("Post", "/v2/ep/run"),
        ("PUT", "/v2/ep/run"),
        ("OPTIONS", "/v2/ep/run"),
        ("PO#T", "/v2/ep/run"),
        ("DELETE", "/v2/ep/status/j"),
        ("GET", "/v2/ep/cancel/j"),
        ("POST", "/v2/ep/health"),
        ("POSTPOSTPOSTPOSTPOST", "/v2/ep/status/j"),
        ("OPTIONS", "*"),
        ("OPTIONS", "/v2/ep/whatever"),
        ("get", "/v2/ep/whatever"),
    ] {
        let head =
            format!("{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}");
        let (_, reply) = stage.row(head.as_bytes(), Refused(405)).await;
        assert!(reply.field("allow").is_some(), "{reply:?}");
        rows += 2;
    }
    for target in ["/v2/ep/health", "/v2/ep/whatever"] {
        let mut client = Raw::connect(&stage.gateway).await;
        client
            .write(format!("HEAD {target} HTTP/1.1\r\nhost: x\r\n\r\n"))
            .await;
        let reply = client.reply_to_head().await.unwrap();
        assert_eq!(reply.status, 405);
        client
            .write(format!("GET {SECOND} HTTP/1.1\r\nhost: x\r\n\r\n"))
            .await;
        assert_eq!(client.reply().await.unwrap().text(), SECOND);
        rows += 2;
    }
    for field in [
        "x-http-method-override: DELETE",
        "X-HTTP-Method: PUT",
        "x-method-override: POST",
        "x-original-url: /v2/ep/run",
        "x-rewrite-url: /v2/ep/run",
    ] {
        let head = format!("GET /v2/ep/health HTTP/1.1\r\nhost: x\r\n{field}");
        let seen = stage.head(&head, "", Through).await.unwrap();
        assert_eq!(seen.line(), "GET /v2/ep/health HTTP/1.1");
        assert_eq!(seen.field(field.split(':').next().unwrap()), [""; 0]);
        rows += 2;
    }
    stage.clear(rows).await;
}

#[tokio::test]
async fn what_belongs_to_one_hop_and_what_is_only_claimed_ends_here() {
    let stage = Stage::set().await;
    let seen = stage
        .head(
            "POST /v2/ep/run HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\n\
             content-type: application/json\r\ncontent-length: 2\r\nvia: 1.0 fred\r\n\
             Connection: X-Foo, authorization, content-length, Content-Type\r\n\
             connection: host,via, x-bar ,transfer-encoding, bad name, close-not\r\n\
             x-foo: 1\r\nx-bar: 2\r\nx-keep: 3\r\nproxy-connection: keep-alive\r\n\
             keep-alive: timeout=5\r\nte: trailers\r\ntrailer: x-foo\r\n\
             proxy-authorization: Basic x\r\nx-forwarded-for: 1.2.3.4\r\nX-Forwarded-Host: evil\r\n\
             x-forwarded-proto: https\r\nx_forwarded_for: 1.2.3.4\r\nforwarded: for=1.2.3.4\r\n\
             x-real-ip: 1.2.3.4",
            "{}",
            Through,
        )
        .await
        .unwrap();
    framed(&seen, "{}");
    assert_eq!(
        seen.names(),
        [
            "authorization",
            "content-length",
            "content-type",
            "host",
            "traceparent",
            "via",
            "via",
            "x-keep",
            "x-request-id"
        ]
    );
    assert_eq!(seen.field("via")[0], "1.0 fred");

    // Nothing is switched to: what follows is a request.
    for fields in [
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA",
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\nsec-websocket-version: 13",
    ] {
        let head = format!("GET /v2/ep/health HTTP/1.1\r\nhost: x\r\n{fields}");
        let seen = stage.head(&head, "", Through).await.unwrap();
        for name in ["connection", "upgrade", "http2-settings"] {
            assert_eq!(seen.field(name), [""; 0], "{name}");
        }
    }
    let twice = "GET /v2/ep/health HTTP/1.1\r\nhost: x\r\nauthorization: a\r\nauthorization: b";
    stage.head(twice, "", Ends(400)).await;
    stage.clear(7).await;
}

/// And on the way back.
#[tokio::test]
async fn what_belongs_to_the_upstreams_hop_ends_here() {
    let upstream = Scripted::answering(
        b"HTTP/1.1 200 OK\r\nconnection: x-hop, content-length, content-type, retry-after, keep-alive\r\n\
          x-hop: 1\r\nkeep-alive: timeout=5\r\nproxy-authenticate: Basic\r\nupgrade: h2c\r\n\
          trailer: x\r\nte: trailers\r\nretry-after: 7\r\ncontent-type: text/plain\r\n\
          set-cookie: a=1; HttpOnly\r\nset-cookie: b=2\r\netag: W/\"x\"\r\nx-Runpod: 1\r\nvia: 1.1 edge\r\n\
          content-length: 2\r\n\r\nok",
    )
    .await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    let answer = gateway.get("/v2/ep/health").await;
    let mut names: Vec<_> = answer
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .filter(|field| {
            // Added here, on purpose.
            let ours = ["date", "proxy-status", "server-timing", "ratelimit"];
            !ours.iter().any(|name| field.starts_with(name))
        })
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "content-length: 2",
            "content-type: text/plain",
            "etag: W/\"x\"",
            "retry-after: 7",
            "set-cookie: a=1; HttpOnly",
            "set-cookie: b=2",
            "via: 1.1 edge",
            "via: 1.1 podgate",
            "x-runpod: 1",
        ]
    );
}

#[tokio::test]
async fn http_1_0_is_answered_as_it_is_asked() {
    let upstream = Scripted::answering(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    )
    .await;
    let (gateway, _machine) = Scene::default().before(upstream.address);
    // Without `Host`, and closed after the answer, whose end is the connection's.
    let mut client = Raw::connect(&gateway).await;
    client.write("GET /v2/ep/health HTTP/1.0\r\n\r\n").await;
    let reply = client.reply().await.unwrap();
    assert!(reply.head.starts_with("HTTP/1.0 200 "), "{}", reply.head);
    assert_eq!(reply.field("transfer-encoding"), None);
    assert_eq!(reply.text(), "abc");
    assert_eq!(client.reply().await, None);
    assert_eq!(
        upstream.received()[0].field("via")[0].split('-').next(),
        Some("1.0 podgate")
    );
    drop((gateway, _machine));

    let stage = Stage::set().await;
    let old = "POST /v2/ep/run HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 2";
    let (_, reply) = stage
        .row(format!("{old}\r\n\r\n{{}}").as_bytes(), Through)
        .await;
    assert_eq!(reply.field("connection"), Some("keep-alive"));
    let two = "POST /v2/ep/run HTTP/1.0\r\nhost: x\r\nhost: y\r\ncontent-length: 2";
    stage.head(two, "{}", Ends(400)).await;
    // It knows no expectations: there is no 100, and none is missed.
    let mut client = Raw::connect(&stage.gateway).await;
    client
        .write(format!("{old}\r\nexpect: 100-continue\r\n\r\n{{}}"))
        .await;
    assert_eq!(client.reply().await.unwrap().status, 200);
}

/// An upstream that is podgate itself.
#[tokio::test]
async fn a_request_that_comes_round_again_is_stopped() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (gateway, _machine) = Scene::default().before(address);
    let to = gateway.address();
    let relay = tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut to = tokio::net::TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    let answer = gateway.get("/v2/ep/health").await;
    assert_eq!(answer.status, 508, "{:?}", answer.body);
    assert_eq!(answer.json()["outcome"], "bad_request");
    assert!(
        answer.json()["detail"]
            .as_str()
            .unwrap()
            .contains("passed here before")
    );
    let counted = || (gateway.ended("forwarded"), gateway.ended("bad_request"));
    assert_eq!(counted(), (1, 1), "twice here, and not again");
    relay.abort();
}

#[tokio::test]
async fn one_podgate_behind_another_is_no_loop() {
    let upstream = echo().await;
    let machine = super::support::machine();
    let inner = Scene::default().before_beside(upstream.address, machine.clone());
    let outer = Scene::default().before_beside(inner.address(), machine);
    let answer = outer.get("/v2/ep/health").await;
    assert_eq!(
        (answer.status, answer.body.as_ref()),
        (200, &b"/v2/ep/health"[..])
    );
    assert_eq!(upstream.received()[0].field("via").len(), 2);
    let many: String = (0..9)
        .map(|n| format!("via: 1.1 podgate-{n:016x}\r\n"))
        .collect();
    let mut client = Raw::connect(&outer).await;
    client
        .write(format!(
            "GET /v2/ep/health HTTP/1.1\r\nhost: x\r\n{many}\r\n"
        ))
        .await;
    assert_eq!(client.reply().await.unwrap().status, 508);
}

#[tokio::test]
async fn nothing_is_expected_but_100_and_that_is_ours_to_say() {
    let stage = Stage::set().await;
    let post = "POST /v2/ep/run HTTP/1.1\r\nhost: x\r\ncontent-length: 5";
    let mut rows = 0;
    for expected in [
        "200-ok",
        "100-continue, x",
        "x",
        "",
        "100-continue;a",
        "100-continue\r\nexpect: x",
    ] {
        stage
            .head(&format!("{post}\r\nexpect: {expected}"), HIDDEN, Ends(417))
            .await;
        rows += 1;
    }
    // Nobody waits for what is not announced.
    let bare = "GET /v2/ep/health HTTP/1.1\r\nhost: x\r\nexpect: 100-continue";
    let seen = stage.head(bare, "", Through).await.unwrap();
    assert_eq!(seen.field("expect"), [""; 0]);
    rows += 2;

    for framing in ["content-length: 5", "transfer-encoding: chunked"] {
        let mut client = Raw::connect(&stage.gateway).await;
        client
            .write(format!(
                "POST /v2/ep/run HTTP/1.1\r\nhost: x\r\n{framing}\r\nExpect: 100-Continue\r\n\r\n"
            ))
            .await;
        let interim = client.reply().await.unwrap();
        assert_eq!(interim.head, "HTTP/1.1 100 Continue\r\n\r\n");
        client
            .write(if framing.contains("chunked") {
                "5\r\nabcde\r\n0\r\n\r\n"
            } else {
                "abcde"
            })
            .await;
        assert_eq!(client.reply().await.unwrap().text(), "/v2/ep/run");
        client
            .write(format!("GET {SECOND} HTTP/1.1\r\nhost: x\r\n\r\n"))
            .await;
        assert_eq!(client.reply().await.unwrap().text(), SECOND);
        let received = stage.upstream.received();
        let [.., seen, _] = received.as_slice() else {
            panic!()
        };
        framed(seen, "abcde");
        assert_eq!(seen.field("expect"), [""; 0]);
        rows += 2;
    }
    stage.clear(rows).await;
}

/// Straight, without the 100, and the next bytes are taken for nothing: its sender may mean them as
/// the body or as another request.
#[tokio::test]
async fn who_is_refused_is_not_asked_for_its_body() {
    let stage = Stage::set().await;
    let expect = "host: x\r\nexpect: 100-continue";
    let mut rows = 0;
    for (line, framing, status) in [
        ("POST /v2/ep/run", "content-length: 10485761", 413),
        ("POST /v2/ep/status/j", "content-length: 65537", 413),
        ("POST /v2/ep/nowhere/", "content-length: 5", 404),
        ("POST /v2/ep/nowhere/", "transfer-encoding: chunked", 404),
        ("GET /v2/ep/run", "content-length: 5", 405),
        ("POST /v2//ep/run", "content-length: 5", 400),
    ] {
        for next in [HIDDEN, "5\r\nabcde\r\n0\r\n\r\n"] {
            let head = format!("{line} HTTP/1.1\r\n{expect}\r\n{framing}");
            stage.head(&head, next, Ends(status)).await;
            rows += 1;
        }
    }
    stage.clear(rows).await;
    eventually("nobody listens any more", || {
        stage.gateway.connections() == 0
    })
    .await;
}

/// A lane that would shed says so before the body is sent, and takes it where it would not.
#[tokio::test]
async fn who_would_be_shed_is_not_asked_for_its_body() {
    let upstream = echo().await;
    let (gateway, _machine) = Scene::default()
        .set(
            podgate::emulator::limits::Group::Run,
            "rate: { requests: 1, per: 60s }, max_wait: 1s",
        )
        .before(upstream.address);
    assert_eq!(gateway.post("/v2/ep/run", "{}").await.status, 200);
    let mut client = Raw::connect(&gateway).await;
    client
        .write(format!(
            "POST /v2/ep/run HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5000\r\n\r\n{HIDDEN}"
        ))
        .await;
    let replies = client.replies().await;
    let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [429], "{replies:?}");
    assert!(replies[0].field("retry-after").is_some());
    let mut client = Raw::connect(&gateway).await;
    client
        .write("POST /v2/other/run HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        .await;
    assert_eq!(client.reply().await.unwrap().status, 100);
    client.write("abcde").await;
    assert_eq!(client.reply().await.unwrap().status, 200);
    assert_eq!(upstream.received().len(), 2);
    assert_eq!(gateway.ended("out_of_reach"), 1);
}
