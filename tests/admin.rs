//! The operator's door over real sockets, and `podgate health` as a container runs it.

mod process;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::thread;

use podgate::config::Config;
use podgate::serve::{self, Running};
use process::{PATIENCE, body, eventually, status};

fn start(settings: &str) -> Running {
    let text = format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nworkers: 1\n{settings}");
    let config = Config::parse("admin.yaml", &text).unwrap_or_else(|faults| panic!("{faults}"));
    serve::start(config).expect("it starts")
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Everything that comes back until the other side closes.
fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn get(address: SocketAddr, path: &str) -> String {
    exchange(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n"),
    )
}

fn health(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podgate"));
    command.arg("health").args(arguments);
    for variable in ["PODGATE_ADMIN", "PODGATE_CONFIG"] {
        command.env_remove(variable);
    }
    command.output().expect("podgate starts")
}

fn said(output: &Output) -> String {
    assert!(output.stdout.is_empty(), "nothing belongs on stdout");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn head_is_get_without_the_page_and_nothing_else_is_taken() {
    let podgate = start("");
    for path in ["/metrics", "/lanes", "/config", "/livez", "/readyz", "/no"] {
        let (full, head) = (
            get(podgate.admin, path),
            exchange(
                podgate.admin,
                &format!("HEAD {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
            ),
        );
        assert_eq!(status(&full), status(&head), "{path}");
        assert_eq!(body(&head), "", "{path}");
        let length = |answer: &str| {
            let mut fields = answer.lines().filter_map(|line| line.split_once(": "));
            let (_, length) = fields.find(|(name, _)| *name == "content-length")?;
            length.parse::<usize>().ok()
        };
        assert_eq!(length(&full), Some(body(&full).len()), "{path}");
        // The metrics count the process's own time, so two pages differ.
        if path != "/metrics" {
            assert_eq!(length(&head), length(&full), "{path}");
        }
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get"] {
        let request = format!(
            "{method} /lanes HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\n\r\n",
            podgate.admin
        );
        let answer = exchange(podgate.admin, &request);
        assert_eq!(status(&answer), "405", "{method}");
        assert!(answer.contains("\r\nallow: GET, HEAD\r\n"), "{answer}");
    }
}

#[test]
fn a_web_page_under_a_name_of_its_own_reads_nothing() {
    let podgate = start("admin_hosts: [Ops.Example.com]");
    let under = |host: &str, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        status(&exchange(podgate.admin, &request)).to_owned()
    };
    for path in ["/metrics", "/lanes", "/config", "/no"] {
        assert_eq!(under("rebound.example:9090", path), "421", "{path}");
    }
    // Kubernetes can be told to probe under any name.
    for path in ["/livez", "/healthz", "/readyz"] {
        assert_eq!(under("rebound.example:9090", path), "200", "{path}");
    }
    for host in [
        "127.0.0.1",
        "[::1]:9",
        "localhost",
        "podgate:9090",
        "podgate.inference.svc.cluster.local",
        "ops.example.com:9090",
    ] {
        assert_eq!(under(host, "/lanes"), "200", "{host}");
    }
    let old = exchange(podgate.admin, "GET /lanes HTTP/1.0\r\n\r\n");
    assert_eq!(status(&old), "200");
}

#[test]
fn no_page_shows_a_secret() {
    let path = std::env::temp_dir().join(format!("podgate-admin-{}", std::process::id()));
    std::fs::write(&path, "rpa_HUNTER2\n").expect("written");
    let podgate = start(&format!(
        "upstream: {{ url: 'http://127.0.0.1:9', api_key: {{ file: '{}' }} }}",
        path.display()
    ));
    let request = "GET /v2/ep/health HTTP/1.1\r\nhost: podgate\r\nauthorization: Bearer rpa_CALLER3\r\n\
                   cookie: c=CALLER3\r\nconnection: close\r\n\r\n";
    assert_eq!(
        status(&exchange(podgate.address().unwrap(), request)),
        "502"
    );
    let config = get(podgate.admin, "/config");
    std::fs::remove_file(&path).expect("removed");
    for page in [
        &config,
        &get(podgate.admin, "/lanes"),
        &get(podgate.admin, "/metrics"),
    ] {
        assert_eq!(status(page), "200");
        assert!(
            page.contains("ep") || page == &config,
            "the lane is shown: {page}"
        );
        for secret in ["HUNTER2", "CALLER3"] {
            assert!(!page.contains(secret), "{page}");
        }
    }
    let shown: serde_json::Value = serde_json::from_str(body(&config)).expect("JSON");
    assert_eq!(
        shown["upstream"]["api_key"]["file"],
        *path.to_string_lossy()
    );
    assert_eq!(shown, podgate.shared.live().config.to_json());
}

#[test]
fn whoever_holds_all_connections_keeps_no_probe_out() {
    let podgate = start("");
    let held: Vec<TcpStream> = (0..300).map(|_| connect(podgate.admin)).collect();
    for mut stream in &held {
        // Nobody has to take it: podgate may have hung up.
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\n");
    }
    assert_eq!(status(&get(podgate.admin, "/livez")), "200");
    // What is cut is the oldest, not the newest.
    let mut oldest = &held[0];
    let mut answer = Vec::new();
    // Reset or closed.
    let _ = oldest.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    let mut newest = held.last().expect("one of them");
    newest.write_all(b"host: x\r\n\r\n").expect("open still");
    let mut answer = String::new();
    newest.read_to_string(&mut answer).expect("an answer");
    assert_eq!(status(&answer), "200");
}

#[test]
fn it_is_live_and_not_ready_until_the_last_client_is_seen_out() {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("an upstream");
    let address = upstream.local_addr().expect("its address");
    let podgate = start(&format!("upstream: {{ url: 'http://{address}' }}"));
    let admin = podgate.admin;
    assert_eq!(body(&get(admin, "/readyz")), "ready\n");
    let mut client = connect(podgate.address().unwrap());
    client
        .write_all(b"GET /v2/ep/health HTTP/1.1\r\nhost: x\r\n\r\n")
        .expect("written");
    let (mut held, _) = upstream.accept().expect("podgate calls");
    let down = thread::spawn(move || podgate.drain());

    eventually("it drains", || body(&get(admin, "/readyz")) == "draining\n");
    assert_eq!(status(&get(admin, "/readyz")), "503");
    assert_eq!(status(&get(admin, "/livez")), "200");
    let asked = health(&["--admin", &admin.to_string()]);
    assert_eq!(asked.status.code(), Some(1));
    assert_eq!(
        said(&asked),
        "podgate: not ready: draining, 503 Service Unavailable\n"
    );

    held.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .expect("answered");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert_eq!(status(&answer), "200");
    down.join().expect("it ends");
    assert!(TcpStream::connect(admin).is_err(), "nobody listens");
}

#[test]
fn health_asks_where_it_is_told_to() {
    let podgate = start("");
    let here = podgate.admin.to_string();
    let port = podgate.admin.port();
    let file = std::env::temp_dir().join(format!("podgate-health-{}.yaml", std::process::id()));
    // A file with another fault tells the address all the same.
    std::fs::write(&file, format!("admin: {here}\nbanana: 1\n")).expect("written");
    let path = file.to_string_lossy().into_owned();
    for arguments in [
        &["--admin", &here][..],
        &["--admin", &format!("0.0.0.0:{port}")],
        &["--config", &path],
        &["--config", "no/such/file", "--admin", &here],
    ] {
        let asked = health(arguments);
        assert_eq!(
            asked.status.code(),
            Some(0),
            "{arguments:?}: {}",
            said(&asked)
        );
        assert_eq!(said(&asked), "");
    }
    std::fs::remove_file(&file).expect("removed");
    let mut by_variable = Command::new(env!("CARGO_BIN_EXE_podgate"));
    by_variable.arg("health").env("PODGATE_ADMIN", &here);
    let asked = by_variable.output().expect("podgate starts");
    assert_eq!(asked.status.code(), Some(0), "{}", said(&asked));
}

#[test]
fn health_says_in_one_line_why_not() {
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody = closed.local_addr().expect("its address").to_string();
    drop(closed);
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silence = silent.local_addr().expect("its address").to_string();
    let babbler = TcpListener::bind("127.0.0.1:0").expect("a port");
    let noise = babbler.local_addr().expect("its address").to_string();
    thread::spawn(move || {
        let (mut stream, _) = babbler.accept().expect("a call");
        stream.write_all(b"SSH-2.0-none\r\n").expect("written");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    for (address, code, reason) in [
        (&*nobody, 1, "cannot be reached"),
        (&*silence, 1, "no answer from"),
        (&*noise, 1, "not as podgate does"),
        ("127.0.0.1:0", 1, "port 0 stands for any"),
    ] {
        let asked = health(&["--admin", address]);
        let why = said(&asked);
        assert_eq!(asked.status.code(), Some(code), "{why}");
        assert!(why.contains(reason) && why.lines().count() == 1, "{why}");
    }
    let misused = health(&["--admin", "localhost"]);
    assert_eq!(misused.status.code(), Some(2));
    assert!(
        said(&misused).contains("write `127.0.0.1:9090`"),
        "{}",
        said(&misused)
    );
    let missing = health(&["--config", "no/such/file"]);
    assert_eq!(missing.status.code(), Some(2), "{}", said(&missing));
}

#[test]
fn callers_are_sent_elsewhere_before_they_are_turned_away() {
    let podgate = start("timeouts: { shutdown_delay: 1h }\n");
    let (listen, admin) = (podgate.address().unwrap(), podgate.admin);
    assert_eq!(status(&get(admin, "/readyz")), "200");
    podgate.leave();
    assert_eq!(status(&get(admin, "/readyz")), "503");
    assert_eq!(status(&get(admin, "/livez")), "200");
    // Somebody is there, and says that there is no such path.
    let answer = exchange(
        listen,
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    );
    assert_eq!(status(&answer), "404");
    podgate.drain();
    assert!(TcpStream::connect(listen).is_err());
}
