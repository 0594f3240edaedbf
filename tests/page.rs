//! The live page: what the admin port serves it with, and the page itself in a real browser.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use podgate::config::Config;
use podgate::serve::{self, Running};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pages that are served at once.
const LISTENERS: usize = 16;

/// podgate before an upstream that is not there: whatever is sent through it ends unreachable.
fn start() -> Running {
    let nobody = {
        let bound = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        bound.local_addr().expect("an address")
    };
    let text = format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nworkers: 1\nupstream: {{ url: 'http://{nobody}' }}\n"
    );
    let config = Config::parse("page.yaml", &text).unwrap_or_else(|faults| panic!("{faults}"));
    serve::start(config).expect("it starts")
}

fn send(address: SocketAddr, method: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer k\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("written");
    stream
}

/// Head and body of an answer that ends.
fn exchange(address: SocketAddr, method: &str, path: &str) -> (String, String) {
    let mut answer = String::new();
    let mut stream = send(address, method, path);
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
    (head.to_owned(), body.to_owned())
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.find_map(|(known, value)| known.eq_ignore_ascii_case(name).then_some(value))
}

/// A stream of events that is read as it comes.
struct Events(BufReader<TcpStream>);

impl Events {
    /// The head of the answer, and the stream if it is one.
    fn open(address: SocketAddr) -> (String, Option<Self>) {
        let mut stream = BufReader::new(send(address, "GET", "/events"));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(stream.read_line(&mut head).expect("a head"), 0, "{head}");
        }
        let streams = head.starts_with("HTTP/1.1 200");
        (head, streams.then_some(Self(stream)))
    }

    /// The next event, as it was written: chunks are taken apart, each of which carries one.
    fn next(&mut self) -> String {
        let mut size = String::new();
        self.0.read_line(&mut size).expect("a chunk");
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
        let mut chunk = vec![0; size + 2];
        self.0.read_exact(&mut chunk).expect("the chunk");
        chunk.truncate(size);
        String::from_utf8(chunk).expect("text")
    }

    fn snapshot(&mut self) -> Value {
        let event = self.next();
        let data = event.strip_prefix("data: ").expect("data and nothing else");
        let data = data.strip_suffix("\n\n").expect("an end");
        assert!(!data.contains('\n'), "{data}");
        serde_json::from_str(data).expect("JSON")
    }
}

fn lanes(podgate: &Running) -> Value {
    let (_, body) = exchange(podgate.admin, "GET", "/lanes");
    serde_json::from_str(&body).expect("JSON")
}

/// What stands in the one element of that name.
fn element<'a>(html: &'a str, open: &str, close: &str) -> &'a str {
    let (_, rest) = html.split_once(open).expect("it opens");
    let (inside, rest) = rest.split_once(close).expect("it closes");
    assert!(!rest.contains(open), "once");
    inside
}

#[test]
fn the_page_may_run_its_own_script_and_ask_its_own_port_and_nothing_else() {
    let podgate = start();
    let (head, html) = exchange(podgate.admin, "GET", "/");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(
        field(&head, "content-type"),
        Some("text/html; charset=utf-8")
    );
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(field(&head, name), Some(value), "{name}");
    }
    let hash = |text: &str| {
        let sum = digest(&SHA256, text.as_bytes());
        format!("'sha256-{}'", BASE64_STANDARD.encode(sum))
    };
    let style = hash(element(&html, "<style>", "</style>"));
    let script = hash(element(&html, "<script type=\"module\">", "</script>"));
    let policy = field(&head, "content-security-policy").expect("a policy");
    let policy: Vec<_> = policy.split("; ").collect();
    assert_eq!(
        policy,
        [
            "default-src 'none'",
            &format!("script-src {script}"),
            &format!("style-src {style}"),
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ]
    );
    // What the policy would refuse to run.
    for attribute in [" style=\"", " onclick", " onload", " onerror"] {
        assert!(!html.contains(attribute), "{attribute}");
    }
}

#[test]
fn head_tells_what_get_would_and_takes_no_place() {
    let podgate = start();
    for path in ["/", "/events"].repeat(2 * LISTENERS) {
        let (head, body) = exchange(podgate.admin, "HEAD", path);
        assert!(head.starts_with("HTTP/1.1 200"), "{path} {head}");
        assert_eq!(body, "", "{path}");
    }
    let (head, html) = exchange(podgate.admin, "GET", "/");
    let (only, _) = exchange(podgate.admin, "HEAD", "/");
    let length = html.len().to_string();
    assert_eq!(field(&head, "content-length"), Some(length.as_str()));
    assert_eq!(field(&only, "content-length"), Some(length.as_str()));
    let (head, _) = exchange(podgate.admin, "HEAD", "/events");
    assert_eq!(field(&head, "content-type"), Some("text/event-stream"));
}

#[test]
fn only_get_and_head_are_taken() {
    let podgate = start();
    for path in ["/", "/events"] {
        let (head, _) = exchange(podgate.admin, "POST", path);
        assert!(head.starts_with("HTTP/1.1 405"), "{path} {head}");
    }
}

#[test]
fn a_web_page_by_another_name_is_told_nothing() {
    let podgate = start();
    for path in ["/", "/events"] {
        let mut stream = TcpStream::connect(podgate.admin).expect("somebody listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: rebound.example.com\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
    }
}

#[test]
fn the_stream_tells_the_lanes_and_what_was_counted() {
    let podgate = start();
    let (head, stream) = Events::open(podgate.admin);
    assert_eq!(field(&head, "content-type"), Some("text/event-stream"));
    assert_eq!(field(&head, "cache-control"), Some("no-store"));
    assert_eq!(field(&head, "x-content-type-options"), Some("nosniff"));
    let mut stream = stream.expect("a stream");

    let empty = stream.snapshot();
    assert_eq!(empty["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(empty["listen"], podgate.places());
    assert_eq!(empty["draining"], false);
    assert_eq!(empty["lanes"], json!([]));
    assert_eq!(empty["counters"], json!([]));
    assert_eq!(
        (&empty["throttled"], &empty["idle_seconds"]),
        (&json!(0), &json!(0.0))
    );

    for (endpoint, times) in [("one", 1), ("two", 2)] {
        for _ in 0..times {
            let path = format!("/v2/{endpoint}/health");
            let (head, _) = exchange(podgate.address().expect("an address"), "GET", &path);
            assert!(head.starts_with("HTTP/1.1 502"), "{head}");
        }
    }
    // One that was taken in between tells of some of them.
    let all = |told: &Value| {
        let counters = told["counters"].as_array().into_iter().flatten();
        let ended = counters.filter_map(|c| c["outcomes"]["upstream_unreachable"].as_u64());
        let lanes = told["lanes"].as_array().into_iter().flatten();
        let out = lanes.filter_map(|lane| lane["permits"]["in_use"].as_u64());
        ended.sum::<u64>() == 3 && out.sum::<u64>() == 0
    };
    let mut snapshots = std::iter::repeat_with(|| stream.snapshot()).take(30);
    let told = snapshots.find(all).expect("it is told");
    assert!(told["uptime_ms"].as_u64() > empty["uptime_ms"].as_u64());
    let listed = lanes(&podgate);
    for (endpoint, times) in [("one", 1), ("two", 2)] {
        let counters = told["counters"].as_array().expect("a list");
        let of = |counter: &&Value| counter["endpoint"] == endpoint;
        let counter = counters.iter().find(of).expect("counted");
        assert_eq!(counter["group"], "health");
        assert_eq!(
            counter["outcomes"],
            json!({ "upstream_unreachable": times })
        );
        let lane = |lanes: &Value| {
            let lanes = lanes.as_array().expect("a list").clone();
            let lane = lanes.into_iter().find(|lane| lane["endpoint"] == endpoint);
            lane.expect("a lane")
        };
        let (streamed, listed) = (lane(&told["lanes"]), lane(&listed));
        for key in [
            "account", "endpoint", "group", "window", "permits", "waiting", "mode",
        ] {
            assert_eq!(streamed[key], listed[key], "{key}");
        }
    }
}

#[test]
fn so_many_pages_are_served_and_no_more() {
    let podgate = start();
    let open = || Events::open(podgate.admin);
    let mut streams: Vec<_> = (0..LISTENERS)
        .map(|_| open().1.expect("there is a place"))
        .collect();
    for stream in &mut streams {
        stream.snapshot();
    }
    let (head, none) = open();
    assert!(head.starts_with("HTTP/1.1 503") && none.is_none(), "{head}");
    // The page itself is served all the same.
    let (head, _) = exchange(podgate.admin, "GET", "/");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    streams.pop();
    let mut tries = std::iter::repeat_with(|| {
        thread::sleep(PATIENCE / 3_000);
        open().1
    });
    let mut late = tries.by_ref().take(3_000).flatten().next();
    late.as_mut().expect("the place is free again").snapshot();
    for stream in &mut streams {
        stream.snapshot();
    }
}

/// Whoever opens more connections than the port keeps makes the oldest give way: not these.
#[test]
fn a_stream_outlives_any_number_of_scrapes() {
    let podgate = start();
    let mut stream = Events::open(podgate.admin).1.expect("a stream");
    stream.snapshot();
    let held: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(podgate.admin).expect("somebody listens"))
        .collect();
    let (head, _) = exchange(podgate.admin, "GET", "/lanes");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    for _ in 0..3 {
        stream.snapshot();
    }
    drop(held);
}

#[test]
fn podgate_ends_though_somebody_listens() {
    let podgate = start();
    let mut stream = Events::open(podgate.admin).1.expect("a stream");
    stream.snapshot();
    podgate.drain();
    let mut rest = Vec::new();
    // Cut or ended, but over.
    let _ = stream.0.read_to_end(&mut rest);
    assert!(rest.len() < 1 << 20);
}

#[test]
#[ignore = "needs Chromium: tests/run installs it"]
fn the_page_works_in_a_browser() {
    let modules = std::env::var_os("PODGATE_TEST_PAGE_MODULES").expect(
        "PODGATE_TEST_PAGE_MODULES is a folder that has what tests/page/package.json names",
    );
    let chromium = std::env::var_os("PODGATE_TEST_CHROMIUM").unwrap_or("/usr/bin/chromium".into());
    let status = Command::new("node")
        .arg("--test")
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/page/page.test.mjs"
        ))
        .env("PODGATE", env!("CARGO_BIN_EXE_podgate"))
        .env("PODGATE_TEST_PAGE_MODULES", modules)
        .env("PODGATE_TEST_CHROMIUM", chromium)
        .status()
        .expect("node starts");
    assert!(status.success(), "{status}");
}
