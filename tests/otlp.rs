//! Traces as a collector gets them: podgate between a client, an upstream and a collector, all of them
//! real sockets. What is sent is read here by hand, field by field of the protocol.

#![cfg(feature = "otlp")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use podgate::config::Config;
use podgate::config::process::Target;
use podgate::metrics::Metrics;
use podgate::operation::Operation;
use podgate::otlp::{Ended, Spans};
use podgate::outcome::Outcome;
use podgate::serve::{self, Running};

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(30);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
/// As OTLP numbers them.
const INTERNAL: u64 = 1;
const SERVER: u64 = 2;
const CLIENT: u64 = 3;

type Asked = Request<Bytes>;

/// A server that answers by `answer`; `None`: never.
fn server(
    answer: impl Fn(Asked) -> Option<Response<Full<Bytes>>> + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("it is taken over");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    thread::spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("taken over");
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let answer = answer.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.map_or(Bytes::new(), |b| b.to_bytes());
                        match answer(Request::from_parts(head, body)) {
                            Some(answer) => Ok::<_, Infallible>(answer),
                            None => std::future::pending().await,
                        }
                    }
                });
                let io = TokioIo::new(stream);
                tokio::spawn(http1::Builder::new().serve_connection(io, service));
            }
        });
    });
    address
}

fn empty(status: u16) -> Option<Response<Full<Bytes>>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    Some(response)
}

/// A collector, and what it is told.
fn collector() -> (SocketAddr, Receiver<Vec<Span>>) {
    let (told, spans) = mpsc::channel();
    let address = server(move |request| {
        assert_eq!(request.uri().path(), "/v1/traces");
        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
        told.send(spans_of(request.body())).ok()?;
        empty(200)
    });
    (address, spans)
}

/// An upstream that answers with these statuses in turn and then with 200, and what it is asked.
fn upstream(statuses: &'static [u16]) -> (SocketAddr, Receiver<Asked>) {
    let (tell, asked) = mpsc::channel();
    let at = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let address = server(move |request| {
        tell.send(request).ok()?;
        let at = at.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        empty(statuses.get(at).copied().unwrap_or(200))
    });
    (address, asked)
}

/// Where nobody listens.
fn nobody() -> SocketAddr {
    let bound = TcpListener::bind("127.0.0.1:0").expect("a port");
    bound.local_addr().expect("an address")
}

fn podgate(upstream: SocketAddr, collector: SocketAddr, sample: u64) -> Running {
    let text = format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nworkers: 1\n\
         upstream: {{ url: 'http://{upstream}' }}\nlog: {{ access: false }}\n\
         tracing: {{ otlp: 'http://{collector}', sample: {sample} }}\n"
    );
    let config = Config::parse("otlp.yaml", &text).unwrap_or_else(|faults| panic!("{faults}"));
    serve::start(config).expect("it starts")
}

/// Asks, and returns the answer.
fn ask(at: SocketAddr, method: &str, path: &str, fields: &str) -> String {
    let mut stream = TcpStream::connect(at).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer hunter2\r\n{fields}\
         content-length: 0\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn call(podgate: &Running, method: &str, path: &str, fields: &str) -> u16 {
    let at = podgate.address().expect("an address");
    let answer = ask(at, method, path, fields);
    answer[9..12].parse().expect("a status")
}

fn traceparent(flags: &str) -> String {
    format!("traceparent: 00-{TRACE}-{CALLER}-{flags}\r\ntracestate: a=b\r\n")
}

/// Lets podgate end, after which everything has been told.
fn told(podgate: Running, spans: &Receiver<Vec<Span>>) -> Vec<Span> {
    podgate.drain();
    spans.try_iter().flatten().collect()
}

/// The one of this name.
fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name} in {spans:#?}");
    found[0]
}

#[test]
fn a_request_is_a_span_below_its_clients_and_the_upstream_is_below_ours() {
    let (upstream, asked) = upstream(&[]);
    let (collector, spans) = collector();
    let podgate = podgate(upstream, collector, 0);
    let fields = traceparent("01");
    assert_eq!(
        call(&podgate, "POST", "/v2/ep/run?secret=hunter2", &fields),
        200
    );
    let asked = asked.try_recv().expect("it was asked");
    // Nobody has to end for it.
    let spans = spans.recv_timeout(PATIENCE).expect("told");
    podgate.drain();

    assert_eq!(spans.len(), 3, "{spans:#?}");
    let (run, queue) = (one(&spans, "run"), one(&spans, "queue"));
    let tried = one(&spans, "upstream");
    assert!(spans.iter().all(|span| span.trace == TRACE));
    assert_eq!((run.parent.as_str(), run.kind), (CALLER, SERVER));
    assert_eq!((&queue.parent, queue.kind), (&run.id, INTERNAL));
    assert_eq!((&tried.parent, tried.kind), (&run.id, CLIENT));
    let ours = format!("00-{TRACE}-{}-01", tried.id);
    assert_eq!(asked.headers()["traceparent"], ours.as_str());
    assert_eq!(asked.headers()["tracestate"], "a=b");

    for span in &spans {
        assert!(run.start <= span.start && span.end <= run.end, "{spans:#?}");
        assert_eq!(span.status, 0);
        let said = format!("{span:?}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    assert!(queue.end <= tried.start);
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("url.path", "/v2/ep/run"),
        ("client.address", "127.0.0.1"),
        ("podgate.endpoint", "ep"),
        ("podgate.group", "run"),
        ("podgate.outcome", "forwarded"),
        ("podgate.tries", "1"),
        ("podgate.complete", "true"),
        ("resource service.name", "podgate"),
    ] {
        assert_eq!(run.attributes[key], value, "{key}");
    }
    let port = upstream.port().to_string();
    assert_eq!(tried.attributes["server.address"], "127.0.0.1");
    assert_eq!(tried.attributes["server.port"], port);
    assert_eq!(tried.attributes["http.response.status_code"], "200");
}

#[test]
fn each_try_has_a_span_and_tells_the_upstream_so() {
    let (upstream, asked) = upstream(&[429]);
    let (collector, spans) = collector();
    let podgate = podgate(upstream, collector, 0);
    let fields = traceparent("01");
    assert_eq!(call(&podgate, "GET", "/v2/ep/status/j", &fields), 200);
    let spans = told(podgate, &spans);
    let tries: Vec<_> = spans
        .iter()
        .filter(|span| span.name == "upstream")
        .collect();
    let said: Vec<_> = tries
        .iter()
        .map(|span| format!("00-{TRACE}-{}-01", span.id))
        .collect();
    let heard: Vec<_> = asked
        .try_iter()
        .map(|asked| asked.headers()["traceparent"].to_str().unwrap().to_owned())
        .collect();
    assert_eq!(heard.len(), 2);
    assert_eq!(said, heard);
    let status = |nth: usize| tries[nth].attributes["http.response.status_code"].as_str();
    assert_eq!((status(0), tries[0].status), ("429", 2));
    assert_eq!((status(1), tries[1].status), ("200", 0));
    assert_eq!(tries[1].attributes["http.request.resend_count"], "1");
    let whole = one(&spans, "status");
    assert_eq!(whole.attributes["podgate.tries"], "2");
    assert_eq!(whole.status, 0);
}

#[test]
fn what_is_not_sampled_is_not_told_and_stays_as_it_is() {
    let (upstream, asked) = upstream(&[]);
    let (collector, spans) = collector();
    let podgate = podgate(upstream, collector, 0);
    for fields in [String::new(), traceparent("00"), traceparent("02")] {
        assert_eq!(call(&podgate, "POST", "/v2/ep/run", &fields), 200);
    }
    let heard: Vec<_> = asked.try_iter().collect();
    let heard = |nth: usize| heard[nth].headers()["traceparent"].to_str().unwrap();
    assert!(heard(0).ends_with("-00"), "{}", heard(0));
    assert_eq!(heard(1), format!("00-{TRACE}-{CALLER}-00"));
    assert_eq!(heard(2), format!("00-{TRACE}-{CALLER}-02"));
    assert!(told(podgate, &spans).is_empty());
}

#[test]
fn one_in_so_many_of_the_others_is_told_without_a_parent() {
    let (upstream, asked) = upstream(&[]);
    let (collector, spans) = collector();
    let podgate = podgate(upstream, collector, 1);
    assert_eq!(call(&podgate, "POST", "/v2/ep/run", ""), 200);
    assert_eq!(
        call(&podgate, "POST", "/v2/ep/runsync", &traceparent("02")),
        200
    );
    let spans = told(podgate, &spans);
    let (made, given) = (one(&spans, "run"), one(&spans, "runsync"));
    assert_eq!((made.parent.as_str(), given.parent.as_str()), ("", ""));
    assert_eq!(given.trace, TRACE);
    assert_ne!(made.trace, given.trace);
    let heard: Vec<_> = asked.try_iter().collect();
    for (whole, asked, flags) in [(made, &heard[0], "01"), (given, &heard[1], "03")] {
        let tried = spans
            .iter()
            .find(|span| span.name == "upstream" && span.parent == whole.id)
            .expect("it was tried");
        let ours = format!("00-{}-{}-{flags}", whole.trace, tried.id);
        assert_eq!(asked.headers()["traceparent"], ours.as_str());
    }
}

#[test]
fn failures_of_servers_are_errors_and_those_of_clients_are_not() {
    let (upstream, _asked) = upstream(&[503]);
    let (collector, spans) = collector();
    let broken = podgate(upstream, collector, 1);
    assert_eq!(call(&broken, "POST", "/v2/ep/run", ""), 503);
    assert_eq!(call(&broken, "GET", "/nothing/here", ""), 404);
    let all = told(broken, &spans);
    let run = one(&all, "run");
    assert_eq!(
        (run.status, run.attributes["error.type"].as_str()),
        (2, "503")
    );
    let tried = one(&all, "upstream");
    let kind = tried.attributes["error.type"].as_str();
    assert_eq!((tried.status, kind), (2, "503"));
    let lost = one(&all, "other");
    assert_eq!(
        (lost.status, lost.attributes["podgate.outcome"].as_str()),
        (0, "no_route")
    );
    assert!(!lost.attributes.contains_key("podgate.endpoint"));

    let alone = podgate(nobody(), collector, 1);
    assert_eq!(call(&alone, "POST", "/v2/ep/run", ""), 502);
    let all = told(alone, &spans);
    let run = one(&all, "run");
    let kind = run.attributes["error.type"].as_str();
    assert_eq!((run.status, kind), (2, "upstream_unreachable"));
    assert_eq!(one(&all, "upstream").status, 2);
}

#[test]
fn a_collector_that_is_away_or_refuses_holds_nobody_up_and_what_is_lost_is_counted() {
    for collector in [nobody(), server(|_| empty(400))] {
        let (upstream, _asked) = upstream(&[]);
        let podgate = podgate(upstream, collector, 1);
        for _ in 0..20 {
            assert_eq!(call(&podgate, "POST", "/v2/ep/run", ""), 200);
        }
        // A second later they have been tried in vain.
        until(|| {
            let page = ask(podgate.admin, "GET", "/metrics", "");
            let mut lines = page.lines();
            lines.any(|line| line == "podgate_spans_dropped_total 60")
        });
        podgate.drain();
    }
}

#[test]
fn a_collector_that_never_answers_holds_nobody_up_nor_the_end() {
    let (asked, waits) = mpsc::channel();
    let collector = server(move |_| {
        let _ = asked.send(());
        None
    });
    let (upstream, _asked) = upstream(&[]);
    let podgate = podgate(upstream, collector, 1);
    assert_eq!(call(&podgate, "POST", "/v2/ep/run", ""), 200);
    waits
        .recv_timeout(PATIENCE)
        .expect("the collector is asked");
    assert_eq!(call(&podgate, "POST", "/v2/ep/run", ""), 200);
    let (over, ended) = mpsc::channel();
    thread::spawn(move || {
        podgate.drain();
        let _ = over.send(());
    });
    ended.recv_timeout(PATIENCE).expect("it ends");
    // The first batch is still with the collector: the end did not wait until it was given up.
    assert!(waits.try_recv().is_err());
}

#[test]
fn what_waits_for_a_stuck_collector_is_bounded_and_the_rest_is_counted() {
    let collector = Target::parse(&format!("http://{}", server(|_| None))).expect("a URL");
    let metrics = Metrics::new().expect("declared once");
    let spans = Spans::start(Some(&collector), &metrics).expect("it starts");
    let trace = HeaderValue::try_from(format!("00-{TRACE}-{CALLER}-01")).expect("a field");
    let mut handed = 0;
    while metrics.spans_dropped().get() == 0 {
        let span = spans.begin(trace.as_bytes(), 0, now(), || SystemTime::UNIX_EPOCH);
        span.expect("it is sampled").end(&Ended {
            operation: Operation::Run,
            endpoint: Some("ep"),
            request_id: "r",
            method: "POST",
            path: "/v2/ep/run",
            client: None,
            upstream: ("api", 443),
            outcome: Outcome::Forwarded,
            status: Some(200),
            complete: true,
            tries: 1,
            took: Duration::from_millis(1),
        });
        handed += 1;
        assert!(handed < 100_000, "nothing is ever dropped");
    }
    assert!(handed > 8_000, "{handed}");
    spans.close();
}

#[expect(clippy::disallowed_methods, reason = "a span begins at some time")]
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// Returns once it holds.
fn until(holds: impl Fn() -> bool) {
    let begun = now();
    while !holds() {
        assert!(now() - begun < PATIENCE, "it never holds");
    }
}

/// A span as the collector was told it.
#[derive(Debug, Default)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: u64,
    start: u64,
    end: u64,
    status: u64,
    /// Those of whom it is about too, behind the word `resource`.
    attributes: BTreeMap<String, String>,
}

/// What a field of a message holds.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn number(&self) -> u64 {
        match self {
            Field::Number(number) => *number,
            Field::Bytes(_) => panic!("no number"),
        }
    }

    fn bytes(&self) -> &'a [u8] {
        match self {
            Field::Bytes(bytes) => bytes,
            Field::Number(_) => panic!("no bytes"),
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).expect("text")
    }

    fn hex(&self) -> String {
        self.bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for nth in 0.. {
        let (byte, rest) = bytes.split_first().expect("a whole number");
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << (7 * nth);
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

/// A message's fields, by their numbers.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let mut take = |many: usize| {
            let (taken, rest) = bytes.split_at(many);
            bytes = rest;
            taken
        };
        let field = match tag & 7 {
            1 => Field::Number(u64::from_le_bytes(take(8).try_into().expect("eight"))),
            5 => Field::Number(u64::from(u32::from_le_bytes(
                take(4).try_into().expect("four"),
            ))),
            0 => Field::Number(varint(&mut bytes)),
            2 => {
                let many = usize::try_from(varint(&mut bytes)).expect("a length");
                let (taken, rest) = bytes.split_at(many);
                bytes = rest;
                Field::Bytes(taken)
            }
            other => panic!("the wire type {other}"),
        };
        found.push((tag >> 3, field));
    }
    found
}

/// Those of the fields with this number.
fn all<'a>(message: &'a [u8], number: u64) -> impl Iterator<Item = Field<'a>> {
    let fields = fields(message).into_iter();
    fields.filter_map(move |(own, field)| (own == number).then_some(field))
}

fn attribute(message: &[u8]) -> (String, String) {
    let key = all(message, 1).next().expect("a key").text();
    let value = all(message, 2).next().expect("a value");
    let (kind, value) = fields(value.bytes()).pop().expect("one of its kinds");
    let value = match kind {
        1 => value.text(),
        2 => (value.number() == 1).to_string(),
        3 => value.number().to_string(),
        other => panic!("an attribute of the kind {other}"),
    };
    (key, value)
}

/// The spans of an `ExportTraceServiceRequest`.
fn spans_of(request: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_resource in all(request, 1) {
        let mut shared = BTreeMap::new();
        for resource in all(of_resource.bytes(), 1) {
            for (key, value) in all(resource.bytes(), 1).map(|field| attribute(field.bytes())) {
                shared.insert(format!("resource {key}"), value);
            }
        }
        for of_scope in all(of_resource.bytes(), 2) {
            for span in all(of_scope.bytes(), 2) {
                spans.push(span_of(span.bytes(), shared.clone()));
            }
        }
    }
    spans
}

fn span_of(message: &[u8], attributes: BTreeMap<String, String>) -> Span {
    let mut span = Span {
        attributes,
        ..Span::default()
    };
    for (number, field) in fields(message) {
        match number {
            1 => span.trace = field.hex(),
            2 => span.id = field.hex(),
            4 => span.parent = field.hex(),
            5 => span.name = field.text(),
            6 => span.kind = field.number(),
            7 => span.start = field.number(),
            8 => span.end = field.number(),
            9 => span.attributes.extend([attribute(field.bytes())]),
            15 => span.status = all(field.bytes(), 3).next().map_or(0, |code| code.number()),
            _ => {}
        }
    }
    span
}
