//! The configuration read again while requests are under way: by hand, by signal and because its file
//! has changed. No request fails, the upstream never sees more than the larger limit, and what is
//! wrong with a new configuration changes nothing.

mod process;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use podgate::emulator::Emulator;
use podgate::emulator::limits::Group;
use process::{PATIENCE, Podgate, ask, body, eventually, folder, one_answer, status};

/// The larger of the limits that are switched between, a second: what the upstream takes.
const N: u32 = 30;

fn upstream(key: Option<&str>) -> (Emulator, SocketAddr) {
    process::upstream(Group::Health, N, key)
}

fn config(upstream: SocketAddr, requests: u32, more: &str) -> String {
    format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nworkers: 2\n\
         upstream: {{ url: 'http://{upstream}', margin: 100ms }}\n\
         groups: {{ health: {{ rate: {{ requests: {requests}, per: 1s }}, concurrency: none }} }}\n\
         endpoints: {{ ep: {{}} }}\n{more}"
    )
}

/// Callers that ask on, each on a connection it keeps; what was not answered 200 is told apart.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    callers: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr, callers: usize) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let caller = |_| {
            let (stop, served): (_, Arc<AtomicU64>) = (stop.clone(), Arc::clone(&served));
            thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let request = "GET /v2/ep/health HTTP/1.1\r\nhost: p\r\n\
                                   authorization: Bearer k\r\n\r\n";
                    stream.write_all(request.as_bytes()).unwrap();
                    let answer = one_answer(&mut stream).expect("it stays open");
                    assert_eq!(status(&answer), "200", "{answer}");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let callers = (0..callers).map(caller).collect();
        Self {
            stop,
            served,
            callers,
        }
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.join().expect("none of its requests failed");
        }
    }
}

#[test]
fn two_hundred_reloads_under_load_fail_no_request_and_overshoot_nothing() {
    const RELOADS: u32 = 200;
    /// In KiB: far less than as many configurations as come after the first half take.
    const GROWTH: u64 = 1_024;
    let (emulator, upstream) = upstream(None);
    let file = folder("reload-load").join("podgate.yaml");
    fs::write(&file, config(upstream, N, "")).unwrap();
    let podgate = Podgate::start(&file);
    let load = Load::start(podgate.address, 12);
    eventually("requests are served", || load.served() > 5);
    let mut halfway = 0;
    for reload in 0..RELOADS {
        // Each configuration is large enough that keeping it would show.
        let mut text = config(upstream, if reload % 2 == 0 { N / 2 } else { N }, "");
        for endpoint in 0..20 {
            text += &format!("# {endpoint:0500}\n");
        }
        fs::write(&file, text).unwrap();
        let answer = podgate.post("/reload", "");
        assert_eq!(status(&answer), "200", "{answer}");
        if reload == RELOADS / 2 {
            halfway = podgate.memory();
        }
    }
    let grown = podgate.memory().saturating_sub(halfway);
    assert!(grown < GROWTH, "{grown} KiB");
    assert_eq!(podgate.reloads("taken"), u64::from(RELOADS));
    assert_eq!(podgate.limit(), Some(u64::from(N)));
    let served = load.served();
    eventually("they go on being served", || {
        load.served() > served + 2 * u64::from(N)
    });
    load.end();
    let stats = emulator.stats_json()["endpoints"]["ep"]["health"].clone();
    assert_eq!(stats["refused"]["rate"], 0, "{stats}");
}

/// A podgate by this file with a limit of one `per` so long, which somebody has had and another waits
/// for.
fn with_one_who_waits(
    file: &Path,
    upstream: SocketAddr,
    per: &str,
) -> (Podgate, thread::JoinHandle<String>) {
    let slow = config(upstream, 1, "").replace("per: 1s", &format!("per: {per}, burst: 1"));
    let slow = slow.replace("concurrency: none", "concurrency: none, max_wait: 10m");
    fs::write(file, slow).unwrap();
    let podgate = Podgate::start(file);
    let address = podgate.address;
    let ask_health = move || ask(address, "GET", "/v2/ep/health", "", "");
    assert_eq!(status(&ask_health()), "200");
    let waits = thread::spawn(ask_health);
    eventually("it waits", || {
        podgate.get("/lanes").contains(r#""waiting":{"total":1"#)
    });
    (podgate, waits)
}

#[test]
fn who_waits_goes_by_the_new_limit() {
    let (_emulator, upstream) = upstream(None);
    let file = folder("reload-waits").join("podgate.yaml");
    let (podgate, waits) = with_one_who_waits(&file, upstream, "5m");
    fs::write(&file, config(upstream, N, "")).unwrap();
    assert_eq!(status(&podgate.post("/reload", "")), "200");
    assert_eq!(status(&waits.join().unwrap()), "200");
}

#[test]
fn nothing_is_taken_on_the_way_down_and_who_waits_goes_by_what_there_was() {
    let (_emulator, upstream) = upstream(None);
    let file = folder("reload-down").join("podgate.yaml");
    let (mut podgate, waits) = with_one_who_waits(&file, upstream, "4s");
    podgate.signal("-TERM");
    eventually("it is on its way down", || {
        let answer = podgate.post("/reload", "");
        answer.contains("podgate is being stopped")
    });
    fs::write(&file, config(upstream, N, "")).unwrap();
    let answer = podgate.post("/reload", "");
    assert_eq!(status(&answer), "409", "{answer}");
    assert_eq!(podgate.limit(), Some(1));
    assert_eq!(status(&waits.join().unwrap()), "200");
    assert!(podgate.child.wait().unwrap().success());
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let (_emulator, upstream) = upstream(None);
    let file = folder("reload-bad").join("podgate.yaml");
    fs::write(&file, config(upstream, 10, "")).unwrap();
    let podgate = Podgate::start(&file);
    let text = config(upstream, 20, "").replace("health:", "heelth:");
    fs::write(&file, text).unwrap();
    let answer = podgate.post("/reload", "");
    assert_eq!(status(&answer), "409");
    assert!(body(&answer).contains("`health`"), "{answer}");
    assert!(body(&answer).contains("podgate.yaml:"), "{answer}");
    eventually("it is said", || {
        podgate.said().contains("the old one stays")
    });
    assert_eq!((podgate.reloads("refused"), podgate.limit()), (1, Some(10)));
    assert_eq!(status(&podgate.get("/readyz")), "200");
    // Put right it is taken without anybody's asking.
    fs::write(&file, config(upstream, 20, "")).unwrap();
    eventually("it is taken", || podgate.limit() == Some(20));
    fs::remove_file(&file).unwrap();
    assert_eq!(status(&podgate.post("/reload", "")), "409");
    assert_eq!(podgate.limit(), Some(20));
}

#[test]
fn a_changed_file_is_seen_however_it_changes() {
    let (_emulator, upstream) = upstream(None);
    let folder = folder("reload-file");
    // As a ConfigMap is mounted: the name is a link into a folder that a link is turned to.
    for (version, requests) in [("v1", 10), ("v2", 11)] {
        fs::create_dir(folder.join(version)).unwrap();
        let file = folder.join(version).join("podgate.yaml");
        fs::write(file, config(upstream, requests, "")).unwrap();
    }
    symlink("v1", folder.join("data")).unwrap();
    symlink("data/podgate.yaml", folder.join("podgate.yaml")).unwrap();
    let podgate = Podgate::start(&folder.join("podgate.yaml"));
    assert_eq!(podgate.limit(), Some(10));
    symlink("v2", folder.join("next")).unwrap();
    fs::rename(folder.join("next"), folder.join("data")).unwrap();
    eventually("the turned link is seen", || podgate.limit() == Some(11));
    fs::write(folder.join("v2/new"), config(upstream, 12, "")).unwrap();
    fs::rename(folder.join("v2/new"), folder.join("v2/podgate.yaml")).unwrap();
    eventually("a file renamed over is seen", || {
        podgate.limit() == Some(12)
    });
    fs::write(folder.join("v2/podgate.yaml"), config(upstream, 13, "")).unwrap();
    eventually("a file written in place is seen", || {
        podgate.limit() == Some(13)
    });
    assert_eq!(podgate.reloads("taken"), 3);
}

#[test]
fn a_hangup_reads_it_again_and_ends_nothing() {
    let (_emulator, upstream) = upstream(None);
    let file = folder("reload-signal").join("podgate.yaml");
    fs::write(&file, config(upstream, 10, "")).unwrap();
    let podgate = Podgate::start(&file);
    for taken in 1..=3 {
        podgate.signal("-HUP");
        eventually("it is read again", || podgate.reloads("taken") == taken);
    }
}

#[test]
fn another_key_is_used_once_its_file_says_so() {
    let (emulator, upstream) = upstream(Some("second"));
    let folder = folder("reload-key");
    let (file, key) = (folder.join("podgate.yaml"), folder.join("key"));
    let text = config(upstream, 30, "").replace("margin:", "api_key: { file: key }, margin:");
    fs::write(&file, text).unwrap();
    fs::write(&key, "first").unwrap();
    let podgate = Podgate::start(&file);
    let ask_health = || ask(podgate.address, "GET", "/v2/ep/health", "", "");
    assert_eq!(status(&ask_health()), "401");
    fs::write(&key, "second").unwrap();
    eventually("the new key is used", || status(&ask_health()) == "200");
    // A key that no header can carry: the old one stays.
    fs::write(&key, "third one").unwrap();
    let answer = podgate.post("/reload", "");
    assert_eq!(status(&answer), "409");
    assert!(!answer.contains("third"), "{answer}");
    assert_eq!(status(&ask_health()), "200");
    drop(emulator);
}

#[test]
fn another_upstream_is_gone_to() {
    let (first, second) = (upstream(None), upstream(None));
    let file = folder("reload-upstream").join("podgate.yaml");
    fs::write(&file, config(first.1, 30, "")).unwrap();
    let podgate = Podgate::start(&file);
    let load = Load::start(podgate.address, 4);
    eventually("requests are served", || load.served() > 5);
    fs::write(&file, config(second.1, 30, "")).unwrap();
    assert_eq!(status(&podgate.post("/reload", "")), "200");
    let arrived = || second.0.stats_json()["endpoints"]["ep"]["health"]["arrived"].as_u64();
    eventually("they come to the other one", || arrived() > Some(5));
    load.end();
}

#[test]
fn what_needs_a_restart_is_named() {
    let (_emulator, upstream) = upstream(None);
    let file = folder("reload-restart").join("podgate.yaml");
    fs::write(&file, config(upstream, 10, "")).unwrap();
    let podgate = Podgate::start(&file);
    let text = config(upstream, 20, "log: { format: json }\n").replace("workers: 2", "workers: 3");
    fs::write(&file, text).unwrap();
    let answer = podgate.post("/reload", "");
    assert_eq!(
        body(&answer),
        r#"{"need_restart":["workers","log.format"]}"#
    );
    assert_eq!(podgate.limit(), Some(20), "the rest is taken");
    eventually("it is said", || {
        podgate
            .said()
            .contains("needs a restart: workers, log.format")
    });
    // It still waits for it, whatever was taken since.
    let needed = body(&podgate.post("/reload", "")).to_owned();
    assert_eq!(needed, r#"{"need_restart":["workers","log.format"]}"#);
    fs::write(&file, config(upstream, 20, "")).unwrap();
    assert_eq!(
        body(&podgate.post("/reload", "")),
        r#"{"need_restart":[]}"#,
        "what is wanted is what there is"
    );
}

#[test]
fn what_an_operator_may_do_no_other_web_page_may() {
    let (_emulator, upstream) = upstream(None);
    let file = folder("reload-page").join("podgate.yaml");
    fs::write(&file, config(upstream, 10, "")).unwrap();
    let podgate = Podgate::start(&file);
    for fields in [
        "origin: https://example.com\r\n",
        "origin: null\r\n",
        "sec-fetch-site: cross-site\r\n",
        "sec-fetch-site: same-site\r\n",
    ] {
        let answer = ask(podgate.admin, "POST", "/reload", fields, "");
        assert_eq!(status(&answer), "403", "{fields}");
    }
    let own = format!(
        "origin: http://{}\r\nsec-fetch-site: same-origin\r\n",
        podgate.admin
    );
    let answer = ask(podgate.admin, "POST", "/reload", &own, "");
    assert_eq!(status(&answer), "200");
    let answer = podgate.get("/reload");
    assert_eq!(status(&answer), "405");
    assert!(answer.contains("allow: POST\r\n"), "{answer}");
    assert_eq!(podgate.reloads("taken"), 1);
}

#[test]
fn how_much_is_logged_changes_while_it_runs() {
    let (_emulator, upstream) = upstream(None);
    let file = folder("reload-level").join("podgate.yaml");
    fs::write(&file, config(upstream, 10, "log: { level: error }\n")).unwrap();
    let podgate = Podgate::start(&file);
    assert_eq!(status(&podgate.post("/reload", "")), "200");
    assert_eq!(podgate.said(), "");
    assert_eq!(body(&podgate.post("/log-level", "info")), "info\n");
    assert_eq!(status(&podgate.post("/reload", "")), "200");
    eventually("it is said", || podgate.said().contains("read again"));
    let answer = podgate.post("/log-level", "loud");
    assert_eq!(status(&answer), "400");
    assert!(
        answer.contains("error, warn, info, debug, trace"),
        "{answer}"
    );
    fs::write(&file, config(upstream, 10, "log: { level: warn }\n")).unwrap();
    assert_eq!(status(&podgate.post("/reload", "")), "200");
    assert_eq!(status(&podgate.post("/reload", "")), "200");
    // What is said next tells that all before it was heard.
    assert_eq!(status(&podgate.post("/log-level", "error")), "200");
    eventually("it is said", || podgate.said().contains("set to error"));
    assert_eq!(podgate.said().matches("read again").count(), 1);
}

#[test]
fn with_a_token_nobody_gets_in_without_it() {
    let (_emulator, upstream) = upstream(None);
    let folder = folder("reload-token");
    let file = folder.join("podgate.yaml");
    fs::write(folder.join("token"), "k\n").unwrap();
    let text = config(upstream, 10, "admin_token: { file: token }\n");
    fs::write(&file, &text).unwrap();
    let podgate = Podgate::start(&file);
    // What is asked here shows `k`.
    assert_eq!(status(&podgate.get("/lanes")), "200");
    assert_eq!(status(&podgate.post("/reload", "")), "200");
    fs::write(folder.join("token"), "another\n").unwrap();
    for path in ["/lanes", "/metrics", "/config", "/nowhere"] {
        assert_eq!(status(&podgate.get(path)), "401", "{path}");
    }
    assert_eq!(status(&podgate.post("/reload", "")), "401");
    for probe in ["/livez", "/readyz"] {
        assert_eq!(status(&podgate.get(probe)), "200", "{probe}");
    }
    fs::remove_file(folder.join("token")).unwrap();
    assert_eq!(status(&podgate.get("/lanes")), "503");
    eventually("it is said", || podgate.said().contains("`admin_token`"));
}

#[test]
fn an_operator_pauses_a_lane_and_resumes_it() {
    let (emulator, upstream) = upstream(None);
    let file = folder("reload-pause").join("podgate.yaml");
    let patient = "concurrency: none, max_wait: 10m";
    let text = config(upstream, 10, "").replace("concurrency: none", patient);
    fs::write(&file, text).unwrap();
    let podgate = Podgate::start(&file);
    for (query, said) in [
        ("", "say which"),
        ("?group=nothing", "`group` is one of run, "),
        ("?endpoint=ep&for=2d", "of a day at most"),
    ] {
        let answer = podgate.post(&format!("/pause{query}"), "");
        assert_eq!(status(&answer), "400", "{query}");
        assert!(answer.contains(said), "{query}: {answer}");
    }
    assert_eq!(status(&podgate.post("/pause?endpoint=unheard", "")), "404");
    let answer = podgate.post("/pause?endpoint=ep&group=health&for=1h", "");
    assert_eq!(body(&answer), r#"{"paused":["ep health"],"for":"1h"}"#);
    eventually("it is said", || {
        podgate.said().contains("an operator has paused lanes")
    });
    let address = podgate.address;
    let ask_health = move |fields: &str| ask(address, "GET", "/v2/ep/health", fields, "");
    // An hour is more than it would wait.
    let answer = ask_health("");
    assert_eq!(status(&answer), "429");
    assert!(answer.contains(r#""outcome":"paused""#), "{answer}");
    let answer = podgate.post("/pause?endpoint=ep&group=health&for=5m", "");
    assert_eq!(status(&answer), "200");
    let waits = thread::spawn(move || ask_health(""));
    eventually("it waits", || {
        podgate.get("/lanes").contains(r#""waiting":{"total":1"#)
    });
    let answer = podgate.post("/resume?group=health", "");
    assert_eq!(body(&answer), r#"{"resumed":["ep health"],"for":null}"#);
    assert_eq!(status(&waits.join().unwrap()), "200");
    let answer = podgate.post("/resume?group=health", "");
    assert_eq!(body(&answer), r#"{"resumed":[],"for":null}"#);
    assert_eq!(
        emulator.stats_json()["endpoints"]["ep"]["health"]["arrived"],
        1
    );
}

/// An address that nobody listened on just now.
fn free() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

#[test]
fn places_to_come_in_are_added_and_taken_away() {
    let (_emulator, upstream) = upstream(None);
    let folder = folder("reload-listen");
    let (file, socket) = (folder.join("podgate.yaml"), folder.join("socket"));
    let (first, second, third) = (free(), free(), free());
    let at = |listen: &str| {
        let text = config(upstream, N, "");
        fs::write(
            &file,
            text.replace("listen: 127.0.0.1:0", &format!("listen: {listen}")),
        )
        .unwrap();
    };
    at(&format!("['{first}', '{second}']"));
    let podgate = Podgate::start(&file);
    let load = Load::start(first, 4);
    eventually("requests are served", || load.served() > 5);
    let mut kept = TcpStream::connect(second).unwrap();
    let request = "GET /v2/ep/health HTTP/1.1\r\nhost: p\r\nauthorization: Bearer k\r\n\r\n";
    kept.write_all(request.as_bytes()).unwrap();
    assert_eq!(status(&one_answer(&mut kept).unwrap()), "200");

    at(&format!(
        "['{third}', 'unix:{}', '{first}']",
        socket.display()
    ));
    let answer = podgate.post("/reload", "");
    assert_eq!(body(&answer), r#"{"need_restart":[]}"#);
    eventually("the new ones are open", || {
        TcpStream::connect(third).is_ok()
            && std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    eventually("the old one is closed", || {
        TcpStream::connect(second).is_err()
    });
    eventually("whoever came by it is told", || {
        // By the end of the connection, or by an answer that says so.
        let sent = kept.write_all(request.as_bytes());
        let answer = sent.ok().and_then(|()| one_answer(&mut kept));
        answer.is_none_or(|answer| answer.contains("connection: close"))
    });

    // One that cannot be had: nothing changes.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    at(&format!("['{first}', '{}']", taken.local_addr().unwrap()));
    let answer = podgate.post("/reload", "");
    assert_eq!(status(&answer), "409");
    assert!(answer.contains("cannot listen on"), "{answer}");
    assert!(TcpStream::connect(third).is_ok() && socket.exists());

    at(&format!("'{first}'"));
    assert_eq!(status(&podgate.post("/reload", "")), "200");
    eventually("its file is gone", || !socket.exists());
    let served = load.served();
    eventually("the first goes on", || load.served() > served + 5);
    load.end();
}
