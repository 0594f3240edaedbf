//! What has to hold for any bytes. Each function panics if it does not; written from the contract,
//! not from the code it judges.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, VIA};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use podgate::config::Config;
use podgate::config::check::{Verdict, check_text};
use podgate::config::faults::Severity;
use podgate::gateway::classify::{self, Unclassified};
use podgate::gateway::fields::{self, Hop, Says, TowardsClient};
use podgate::gateway::framing::Framing;
use podgate::gateway::h1::chunks::{Chunks, Piece};
use podgate::gateway::h1::head::{self, Length, Read};
use podgate::gateway::head::Noted;
use podgate::gateway::target;
use podgate::operation::Operation;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Every operation by its name: methods, and what may follow (0: nothing, 1: an id, 2: two ids, 9:
/// the rest of a path).
const CONTRACT: [(&str, Operation, &[&str], u8); 17] = [
    ("run", Operation::Run, &["POST"], 0),
    ("runsync", Operation::RunSync, &["POST"], 0),
    ("status", Operation::Status, &["GET", "POST"], 1),
    ("status-sync", Operation::StatusSync, &["GET", "POST"], 1),
    ("stream", Operation::Stream, &["GET", "POST"], 1),
    ("cancel", Operation::Cancel, &["POST"], 1),
    ("retry", Operation::Retry, &["POST"], 1),
    ("purge-queue", Operation::PurgeQueue, &["POST"], 0),
    ("health", Operation::Health, &["GET"], 0),
    ("requests", Operation::Requests, &["GET"], 0),
    ("openai", Operation::OpenAi, &["GET", "POST"], 9),
    ("job-take", Operation::Worker, &["GET", "POST"], 1),
    ("job-take-batch", Operation::Worker, &["GET", "POST"], 1),
    ("job-stop", Operation::Worker, &["GET", "POST"], 1),
    ("ping", Operation::Worker, &["GET", "POST"], 1),
    ("job-done", Operation::Worker, &["GET", "POST"], 2),
    ("job-stream", Operation::Worker, &["GET", "POST"], 2),
];

const METHODS: [&str; 12] = [
    "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "Post",
    "PURGE",
];

/// The first byte picks the method, the rest is the target.
pub fn classifier(data: &[u8]) {
    let Some((&first, asked)) = data.split_first() else {
        return;
    };
    let name = METHODS[usize::from(first) % METHODS.len()];
    let (Ok(method), Ok(uri)) = (Method::from_bytes(name.as_bytes()), Uri::try_from(asked)) else {
        return;
    };
    let Ok(target) = target::of(&method, &uri) else {
        return;
    };
    assert!(target.as_str().len() <= 8 * 1024);
    let path = target.path();
    let segments: Vec<&str> = path.split('/').collect();
    match classify::operation(&method, path) {
        Ok(found) => {
            assert_eq!(&segments[..3], ["", "v2", found.endpoint], "{path}");
            assert!(is_id(found.endpoint), "{path}");
            let known = CONTRACT.iter().find(|(known, ..)| *known == segments[3]);
            match known {
                Some((_, operation, methods, _)) => {
                    assert_eq!(found.operation, *operation, "{path}");
                    assert!(methods.contains(&name), "{name} {path}");
                }
                None => assert_eq!(found.operation, Operation::Other, "{path}"),
            }
            assert!(!["HEAD", "OPTIONS", "TRACE", "CONNECT"].contains(&name));
            for read in readings(path) {
                let again = naive(&read);
                let expected = (found.endpoint.to_ascii_lowercase(), found.operation);
                assert_eq!(again, Some(expected), "{path} can be read as {read}");
            }
        }
        Err(Unclassified::Method { allow }) => {
            assert!(!allow.split(", ").any(|allowed| allowed == name), "{path}");
        }
        Err(_) => {
            assert!(!is_plain(name, &segments), "{name} {path} is refused");
        }
    }
}

fn is_id(text: &str) -> bool {
    let part = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
    !text.is_empty() && text.bytes().all(part)
}

/// Exactly what a well-behaved client writes: this must never be refused.
fn is_plain(method: &str, segments: &[&str]) -> bool {
    let ["", "v2", endpoint, name, rest @ ..] = segments else {
        return false;
    };
    let known = CONTRACT.iter().find(|(known, ..)| known == name);
    let Some((_, _, methods, follows)) = known else {
        return false;
    };
    let rest_fits = match follows {
        9 => !rest.is_empty() && rest.iter().all(|segment| is_id(segment)),
        ids => rest.len() == usize::from(*ids) && rest.iter().all(|segment| is_id(segment)),
    };
    is_id(endpoint) && methods.contains(&method) && rest_fits
}

/// What servers that are kinder than ours could make of a path.
fn readings(path: &str) -> Vec<String> {
    let mut all = vec![path.to_owned()];
    let mut decoded = path.to_owned();
    for _ in 0..3 {
        decoded = percent_decoded(&decoded);
        all.push(decoded.clone());
    }
    let more: Vec<String> = all.iter().map(|path| folded(path)).collect();
    all.extend(more);
    all
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Backslashes as slashes, no parameters, no empty or dot segments, no slash at the end.
fn folded(path: &str) -> String {
    let path = path.replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        let segment = segment
            .split([';', '?', '#', '\0'])
            .next()
            .unwrap_or_default();
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment.trim()),
        }
    }
    format!("/{}", segments.join("/"))
}

/// Endpoint and operation as a server finds them that folds case and looks no closer.
fn naive(path: &str) -> Option<(String, Operation)> {
    let path = path.to_lowercase();
    let mut segments = path.split('/').skip(1);
    let (Some("v2"), Some(endpoint), Some(name)) =
        (segments.next(), segments.next(), segments.next())
    else {
        return None;
    };
    let known = CONTRACT.iter().find(|(known, ..)| *known == name);
    let operation = known.map_or(Operation::Other, |(_, operation, ..)| *operation);
    Some((endpoint.to_owned(), operation))
}

/// Names that belong to one hop, or that a client has no say in.
const OF_THE_HOP: [&str; 11] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
    "http2-settings",
];
const CLAIMS: [&str; 11] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-real-ip",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
];
/// What `Connection` cannot take away.
const END_TO_END: [&str; 6] = [
    "host",
    "authorization",
    "content-length",
    "content-type",
    "via",
    "retry-after",
];

/// The first byte picks the version, each further line is a field.
pub fn fields(data: &[u8]) {
    let Some((&first, lines)) = data.split_first() else {
        return;
    };
    let version = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2][usize::from(first) % 3];
    let mut given = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(parts.next().unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            given.append(name, value);
        }
    }
    let (host, hop) = (HeaderValue::from_static("up.example"), Hop::fresh());
    let towards_upstream = |given: &HeaderMap| {
        let own = [
            (&HOST, Says::Us(host.as_bytes())),
            (&AUTHORIZATION, Says::Client),
        ];
        let mut up = HeaderMap::new();
        fields::towards_upstream(&Noted::of(given), version, &hop, &own, |name, value| {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            up.append(name, HeaderValue::from_bytes(value).expect("a value"));
        });
        up
    };
    let towards_client = |given: &HeaderMap| {
        let mut down = TowardsClient::new(given.len());
        let connection = given.get_all("connection").iter();
        connection.for_each(|value| down.connection(value.as_bytes()));
        for (name, value) in given {
            down.add(name.clone(), value.clone());
        }
        down.finish()
    };

    let up = towards_upstream(&given);
    assert_eq!(up.get_all(HOST).iter().collect::<Vec<_>>(), [&host]);
    assert!(!up.contains_key("content-length"));
    assert!(hop.came_round(&up), "it would not be known again");
    let claims = |name: &str| CLAIMS.contains(&name) || name.starts_with("x-forwarded-");
    let whole = match version {
        Version::HTTP_2 => with_one_cookie(&given),
        _ => given.clone(),
    };
    passes_what_it_may(&whole, &up, claims, &["host", "content-length"]);
    same_but_for_via(&up, &towards_upstream(&up));

    let down = towards_client(&given);
    let framed = given.contains_key("transfer-encoding");
    let length = given.contains_key("content-length");
    assert_eq!(down.contains_key("content-length"), length && !framed);
    passes_what_it_may(&given, &down, |_| false, &["content-length"]);
    same_but_for_via(&down, &towards_client(&down));
}

/// HTTP/2 may carry a cookie in pieces; HTTP/1 may not.
fn with_one_cookie(given: &HeaderMap) -> HeaderMap {
    let mut whole = given.clone();
    let mut pieces = given.get_all("cookie").iter();
    if let Some(first) = pieces.next() {
        let mut cookie = first.as_bytes().to_vec();
        for piece in pieces {
            cookie.extend_from_slice(b"; ");
            cookie.extend_from_slice(piece.as_bytes());
        }
        let cookie = HeaderValue::from_bytes(&cookie).expect("pieces that can stand in one");
        whole.insert("cookie", cookie);
    }
    whole
}

/// `passed` is `given` without what stays, and with us in `Via`. `own`: set or removed by podgate.
fn passes_what_it_may(
    given: &HeaderMap,
    passed: &HeaderMap,
    claims: impl Fn(&str) -> bool,
    own: &[&str],
) {
    let named: Vec<String> = given
        .get_all("connection")
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .filter(|name| !END_TO_END.contains(&name.as_str()))
        .collect();
    // Many servers read `_` as `-`.
    let stays = |name: &str| {
        let read = name.replace('_', "-");
        OF_THE_HOP.contains(&read.as_str())
            || claims(&read)
            || named.iter().any(|known| known == name)
            || (read != name && END_TO_END.contains(&read.as_str()))
    };
    for (name, value) in passed {
        assert!(!stays(name.as_str()), "{name} passes");
        let bytes = value.as_bytes();
        assert!(!bytes.iter().any(|byte| b"\r\n\0".contains(byte)), "{name}");
    }
    let mut counted = 0;
    for name in given.keys() {
        let (before, after) = (given.get_all(name), passed.get_all(name));
        if name == VIA {
            let (before, after) = (before.iter().count(), after.iter().count());
            assert_eq!(before + 1, after, "Via is added to");
        } else if !stays(name.as_str()) && !own.contains(&name.as_str()) {
            assert!(
                before.iter().eq(after.iter()),
                "{name} does not pass as it was"
            );
        }
        counted += usize::from(passed.contains_key(name));
    }
    let added = [VIA, HOST].iter().filter(|name| !given.contains_key(*name));
    let added = added.filter(|name| passed.contains_key(*name)).count();
    assert_eq!(
        passed.keys_len(),
        counted + added,
        "something came from nowhere"
    );
}

fn same_but_for_via(once: &HeaderMap, twice: &HeaderMap) {
    let (mut once, mut twice) = (once.clone(), twice.clone());
    once.remove(VIA);
    twice.remove(VIA);
    assert_eq!(once, twice, "a second pass changes something");
}

/// The whole is a file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut report = Vec::new();
    let verdict = check_text("any.yaml", text, false, &mut report).expect("a vector takes all");
    let report = String::from_utf8(report).expect("reports are text");
    let odd = |c: char| c.is_control() && c != '\n';
    assert!(!report.contains(odd), "a terminal would obey: {report:?}");
    shows_no_key(&report);
    match Config::parse("any.yaml", text) {
        Ok(config) => {
            assert_eq!(verdict, Verdict::Good, "{report}");
            let shown = config.to_json();
            let again = Config::parse("again.yaml", &shown.to_string());
            let again = again.unwrap_or_else(|faults| panic!("{shown}\n{faults}"));
            assert_eq!(again.to_json(), shown);
        }
        Err(faults) => {
            assert_eq!(verdict, Verdict::Refused, "{report}");
            assert!(faults.errors() > 0);
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            let lines: Vec<&str> = text.split('\n').collect();
            for fault in faults.iter() {
                assert_eq!(fault.severity, Severity::Error);
                let (line, column) = fault
                    .position
                    .unwrap_or_else(|| panic!("nowhere: {}: {}", fault.path, fault.what));
                let there = lines.get(line - 1).expect("a line of the text");
                let most = there.chars().count() + 1;
                assert!((1..=most).contains(&column), "{line}:{column} in {text:?}");
            }
        }
    }
}

/// Nothing follows the prefix that all keys of Runpod have.
fn shows_no_key(report: &str) {
    for (at, prefix) in report.match_indices("rpa_") {
        let next = report[at + prefix.len()..].bytes().next();
        let hidden = next.is_none_or(|byte| !byte.is_ascii_alphanumeric());
        assert!(hidden, "a key is shown: {report}");
    }
}

/// The first byte says in what pieces the rest comes: that makes no difference.
pub fn framing(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else {
        return;
    };
    let verdicts = |piece: usize| {
        let framing = Framing::default();
        bytes.chunks(piece).for_each(|piece| framing.saw(piece));
        (0..4).map(|_| framing.next()).collect::<Vec<_>>()
    };
    let whole = verdicts(bytes.len().max(1));
    assert_eq!(whole, verdicts(1));
    assert_eq!(whole, verdicts(usize::from(first).max(1)));
}

/// An answer as somebody understood it.
#[derive(Debug, PartialEq)]
struct Understood {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// The first byte says in what pieces the rest comes from an upstream. What we take hyper's client
/// takes too, and for the same; and the pieces make no difference.
pub fn answers(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else {
        return;
    };
    let ours = understood(bytes, bytes.len().max(1));
    assert_eq!(ours, understood(bytes, usize::from(first).max(1)));
    let Some(ours) = ours else { return };
    // hyper reads trailers, only to throw them away with us; what they say is nobody's concern.
    if String::from_utf8_lossy(bytes).contains("\r\n0") {
        return;
    }
    let theirs = by_hyper(bytes, usize::from(first).max(1));
    let mut theirs = theirs.unwrap_or_else(|| panic!("hyper refuses {ours:?}"));
    theirs.headers = {
        let mut passed = TowardsClient::new(0);
        let connection = theirs.headers.get_all("connection").iter();
        connection.for_each(|value| passed.connection(value.as_bytes()));
        for (name, value) in &theirs.headers {
            passed.add(name.clone(), value.clone());
        }
        passed.finish()
    };
    assert_eq!(ours, theirs);
}

/// What we make of it; `None`: it is refused, or not all there.
fn understood(bytes: &[u8], piece: usize) -> Option<Understood> {
    let (mut came, mut pieces) = (Vec::new(), bytes.chunks(piece));
    let head = loop {
        match head::read(&Bytes::copy_from_slice(&came), false).ok()? {
            Read::Final(head) => break head,
            Read::Interim(length) => drop(came.drain(..length)),
            Read::Partly => came.extend_from_slice(pieces.next()?),
        }
    };
    came.drain(..head.bytes);
    let (parts, ()) = head.response.into_parts();
    let mut rest = std::iter::once(&came[..]).chain(pieces);
    let body = match head.length {
        Length::UntilClose => rest.flatten().copied().collect(),
        Length::Exact(length) => {
            let length = usize::try_from(length).ok()?;
            let body: Vec<u8> = rest.flatten().copied().take(length).collect();
            (body.len() == length).then_some(body)?
        }
        Length::Chunked => {
            let (mut chunks, mut body) = (Chunks::default(), Vec::new());
            let mut part = rest.next()?;
            loop {
                match chunks.next(part).ok()? {
                    Piece::Data { skip, length } => {
                        body.extend_from_slice(&part[skip..skip + length]);
                        part = &part[skip + length..];
                    }
                    Piece::Framing => part = rest.next()?,
                    Piece::End { .. } => break body,
                }
            }
        }
    };
    Some(Understood {
        status: parts.status,
        headers: parts.headers,
        body,
    })
}

/// What hyper's client makes of it.
fn by_hyper(bytes: &[u8], piece: usize) -> Option<Understood> {
    let io = Said {
        bytes: Bytes::copy_from_slice(bytes),
        piece,
        asked: false,
        reader: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async move {
        let shaken = http1::handshake(TokioIo::new(io)).await;
        let (mut sender, connection) = shaken.expect("nothing is said yet");
        let asking = async {
            let request = Request::new(Empty::<Bytes>::new());
            let (head, body) = sender.send_request(request).await.ok()?.into_parts();
            Some(Understood {
                status: head.status,
                headers: head.headers,
                body: body.collect().await.ok()?.to_bytes().to_vec(),
            })
        };
        tokio::join!(asking, connection).0
    })
}

/// An upstream that says this once it is asked, and closes.
struct Said {
    bytes: Bytes,
    piece: usize,
    asked: bool,
    reader: Option<Waker>,
}

impl AsyncRead for Said {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.asked {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = self.bytes.len().min(self.piece).min(buffer.remaining());
        buffer.put_slice(&self.bytes[..length]);
        self.bytes.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.asked = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
