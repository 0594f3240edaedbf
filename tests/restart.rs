//! A podgate that ends, by signal or by being killed, and the next one that takes its place: the
//! upstream never sees more than its limit, however often that happens.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use podgate::emulator::limits::{Group, Limit, Limits};
use podgate::emulator::{self, Emulator};
use tokio::net::{TcpListener, TcpStream};

const N: u32 = 20;
const W: Duration = Duration::from_secs(1);

/// A folder of this test's own, empty.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
        _ => std::fs::create_dir_all(&folder).unwrap(),
    }
    folder
}

/// The API with N calls a W, on a runtime of its own.
fn upstream() -> (Emulator, SocketAddr) {
    let mut limits = Limits::default();
    limits[Group::Health] = Limit {
        requests: Some(N),
        window: W,
        concurrency: None,
        ..Limit::documented(Group::Health)
    };
    let emulator = Emulator::new(emulator::Config {
        limits,
        ..emulator::Config::default()
    });
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let serving = emulator.clone();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            serving.serve(listener, std::future::pending()).await;
        });
    });
    (emulator, address)
}

struct Podgate {
    child: Child,
    address: SocketAddr,
}

impl Podgate {
    fn start(config: &Path) -> Self {
        Self::start_seeing(config, |_| {})
    }

    /// Starts it; `seen` gets each line it says before it is ready.
    fn start_seeing(config: &Path, mut seen: impl FnMut(&str)) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_podgate"))
            .arg("serve")
            .arg("--config")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut lines = lines.map(Result::unwrap);
        let ready = lines.find_map(|line| {
            seen(&line);
            let rest = line.split_once("ready on http://")?.1;
            Some(rest.split(',').next()?.parse().unwrap())
        });
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            address: ready.expect("it gets ready"),
        }
    }

    fn end(mut self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
        self.child.wait().unwrap();
    }
}

/// Calls `address` for as long as it answers and nobody says to stop; counts what was forwarded.
async fn call_on(address: SocketAddr, stop: Arc<AtomicBool>, forwarded: Arc<AtomicUsize>) {
    let Ok(stream) = TcpStream::connect(address).await else {
        return;
    };
    let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(stream)).await else {
        return;
    };
    tokio::spawn(connection);
    while !stop.load(Ordering::Relaxed) {
        let request = Request::get("/v2/ep/health").header("host", "podgate");
        let request = request.header("authorization", "Bearer k");
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let Ok(answer) = sender.send_request(request).await else {
            return;
        };
        if answer.status() == 200 {
            forwarded.fetch_add(1, Ordering::Relaxed);
        }
        if answer.into_body().collect().await.is_err() {
            return;
        }
    }
}

/// Six lives under full load, each ended by `signal`; what the upstream saw of it.
async fn lives(name: &str, signal: &str, remembers: bool) -> (u64, u64, usize) {
    let (emulator, upstream) = upstream();
    let folder = folder(name);
    let config = folder.join("podgate.yaml");
    let state = if remembers { "state_dir: state\n" } else { "" };
    let text = format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nworkers: 1\n{state}\
         upstream: {{ url: 'http://{upstream}' }}\n\
         groups: {{ health: {{ rate: {{ requests: {N}, per: 1s }}, concurrency: none }} }}\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut forwarded = 0;
    for _ in 0..6 {
        let podgate = Podgate::start(&config);
        let (stop, count) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let callers: Vec<_> = (0..8)
            .map(|_| tokio::spawn(call_on(podgate.address, stop.clone(), count.clone())))
            .collect();
        // It ends in the middle of its work, with a window spent and callers waiting.
        tokio::time::timeout(Duration::from_secs(30), async {
            while count.load(Ordering::Relaxed) < N as usize {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("a window is forwarded");
        stop.store(true, Ordering::Relaxed);
        let signal = signal.to_owned();
        let ended = tokio::task::spawn_blocking(move || podgate.end(&signal));
        ended.await.unwrap();
        for caller in callers {
            caller.await.unwrap();
        }
        forwarded += count.load(Ordering::Relaxed);
    }
    let seen = &emulator.stats_json()["endpoints"]["ep"]["health"];
    let most = seen["max_in_window"].as_u64().unwrap();
    let refused = seen["refused"]["rate"].as_u64().unwrap();
    (most, refused, forwarded)
}

#[tokio::test]
async fn a_podgate_that_ends_well_tells_the_next_one_what_was_spent() {
    let (most, refused, forwarded) = lives("restart-term", "-TERM", true).await;
    assert_eq!((most, refused), (u64::from(N), 0));
    assert!(forwarded >= 6 * N as usize);
}

#[tokio::test]
async fn one_that_is_killed_leaves_a_window_in_which_nothing_goes() {
    let (most, refused, _) = lives("restart-kill", "-KILL", true).await;
    assert_eq!((most, refused), (u64::from(N), 0));
}

/// What the README says of it, and the proof that the two above could fail.
#[tokio::test]
async fn one_that_keeps_no_state_may_spend_a_window_twice() {
    let (_, refused, _) = lives("restart-forgets", "-KILL", false).await;
    assert!(refused > 0);
}

#[test]
fn a_second_podgate_waits_for_the_state_of_the_first() {
    let folder = folder("restart-lock");
    let config = folder.join("podgate.yaml");
    let text = "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nworkers: 1\nstate_dir: state\n\
                upstream: { url: 'http://127.0.0.1:9' }\n";
    std::fs::write(&config, text).unwrap();
    let mut first = Some(Podgate::start(&config));
    let second = Podgate::start_seeing(&config, |line| {
        if line.contains("waiting for it to end") {
            first.take().expect("it says so once").end("-TERM");
        }
    });
    assert!(first.is_none(), "two at once");
    second.end("-TERM");
    assert!(folder.join("state/lanes.json").exists());
    assert!(!folder.join("state/beat.json").exists());
}
