//! Two podgates that share one budget, behind a real HAProxy that asks after their readiness: each is
//! replaced under load, and one is killed.

mod process;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use podgate::emulator::Emulator;
use podgate::emulator::limits::Group;
use process::{PATIENCE, Podgate, eventually, folder, one_answer, status, upstream};

/// What the account may submit, a second.
const N: u32 = 40;
const CALLERS: usize = 16;

/// An address that nobody listened on just now.
fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Where one of the two stands, however often it is started.
struct Place {
    config: PathBuf,
    listen: SocketAddr,
    admin: SocketAddr,
}

impl Place {
    fn new(folder: &Path, name: &str, upstream: SocketAddr) -> Self {
        let (listen, admin) = (free(), free());
        let config = folder.join(format!("{name}.yaml"));
        let text = format!(
            "listen: {listen}\nadmin: {admin}\nworkers: 1\nreplicas: 2\nstate_dir: {name}\n\
             upstream: {{ url: 'http://{upstream}' }}\n\
             timeouts: {{ shutdown_delay: 1s }}\n\
             groups: {{ run: {{ rate: {{ requests: {N}, per: 1s }}, max_wait: 20s }} }}\n"
        );
        fs::write(&config, text).unwrap();
        Self {
            config,
            listen,
            admin,
        }
    }

    /// Returns once the balancer sends it requests.
    fn start(&self) -> Podgate {
        let podgate = Podgate::start(&self.config);
        eventually("it is sent requests", || {
            podgate.metric("podgate_connections_total") > 0
        });
        podgate
    }
}

struct Balancer {
    child: Child,
    address: SocketAddr,
}

impl Balancer {
    fn start(folder: &Path, places: [&Place; 2]) -> Self {
        let address = free();
        let servers = places.iter().zip(["a", "b"]).map(|(place, name)| {
            let (listen, port) = (place.listen, place.admin.port());
            format!("  server {name} {listen} check port {port} inter 100ms fall 1 rise 1\n")
        });
        let servers: String = servers.collect();
        // With `retries` it connects again, and never sends a request twice.
        let text = format!(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  \
             retries 3\n  option redispatch 1\n\
             frontend callers\n  bind {address}\n  default_backend podgates\n\
             backend podgates\n  option httpchk GET /readyz\n{servers}"
        );
        let config = folder.join("haproxy.cfg");
        fs::write(&config, text).unwrap();
        let child = Command::new("haproxy")
            .args(["-q", "-db", "-f"])
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .expect("HAProxy is installed (tests/run does so)");
        Self { child, address }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came instead of a 200; `None`: the connection was closed.
type Failed = Option<String>;

/// Callers that submit one job after the other, each on a connection it keeps.
struct Load {
    stop: Arc<AtomicBool>,
    submitted: Arc<AtomicU64>,
    callers: Vec<thread::JoinHandle<Vec<Failed>>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (stop, submitted) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let caller = |number| {
            let (stop, submitted) = (stop.clone(), submitted.clone());
            thread::spawn(move || call_on(address, number, &stop, &submitted))
        };
        Self {
            callers: (0..CALLERS).map(caller).collect(),
            stop,
            submitted,
        }
    }

    /// Returns once so many more have been submitted.
    fn goes_on(&self, more: u32) {
        let before = self.submitted.load(Ordering::Relaxed);
        eventually("jobs are submitted", || {
            self.submitted.load(Ordering::Relaxed) >= before + u64::from(more)
        });
    }

    /// What was answered instead of 200.
    fn end(self) -> Vec<Failed> {
        self.stop.store(true, Ordering::Relaxed);
        let callers = self.callers.into_iter();
        callers.flat_map(|caller| caller.join().unwrap()).collect()
    }
}

fn call_on(address: SocketAddr, number: usize, stop: &AtomicBool, done: &AtomicU64) -> Vec<Failed> {
    let connect = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let (mut stream, mut failed) = (connect(), Vec::new());
    for job in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let body = format!("{{\"input\":{{\"caller\":{number},\"job\":{job}}}}}");
        let length = body.len();
        let request = format!(
            "POST /v2/ep/run HTTP/1.1\r\nhost: p\r\nauthorization: Bearer k\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        match one_answer(&mut stream) {
            Some(answer) if status(&answer) == "200" => {
                done.fetch_add(1, Ordering::Relaxed);
            }
            other => {
                failed.push(other);
                stream = connect();
            }
        }
    }
    failed
}

/// Two podgates at work behind their balancer.
struct Scene {
    emulator: Emulator,
    places: [Place; 2],
    podgates: [Option<Podgate>; 2],
    load: Load,
    _balancer: Balancer,
}

impl Scene {
    fn start(name: &str) -> Self {
        let folder = folder(name);
        let (emulator, upstream) = upstream(Group::Run, N, None);
        let places = ["a", "b"].map(|name| Place::new(&folder, name, upstream));
        let podgates = [0, 1].map(|place| Some(Podgate::start(&places[place].config)));
        let balancer = Balancer::start(&folder, [&places[0], &places[1]]);
        eventually("the balancer is there", || {
            TcpStream::connect(balancer.address).is_ok()
        });
        for podgate in podgates.iter().flatten() {
            // Asked for by the balancer: until then it answers 503 itself.
            eventually("a request comes through", || {
                let answer = process::ask(balancer.address, "GET", "/v2/ep/health", "", "");
                status(&answer) == "200" && podgate.metric("podgate_connections_total") > 0
            });
        }
        let load = Load::start(balancer.address);
        load.goes_on(N);
        Self {
            emulator,
            places,
            podgates,
            load,
            _balancer: balancer,
        }
    }

    fn replace(&mut self, place: usize, signal: &str) {
        let podgate = self.podgates[place].take().expect("it is there");
        podgate.end(signal);
        self.podgates[place] = Some(self.places[place].start());
        self.load.goes_on(N);
    }

    /// What failed; the upstream has refused nothing and seen nothing twice.
    fn end(self) -> Vec<Failed> {
        let failed = self.load.end();
        let stats = self.emulator.stats_json();
        let run = &stats["endpoints"]["ep"]["run"];
        assert_eq!(run["refused"]["rate"], 0, "{run}");
        assert_eq!(stats["submissions"]["repeated"], 0);
        failed
    }
}

#[test]
#[ignore = "needs HAProxy, which tests/run installs"]
fn replacing_both_one_after_the_other_fails_no_request() {
    let mut scene = Scene::start("rolling-replace");
    for _ in 0..2 {
        scene.replace(0, "-TERM");
        scene.replace(1, "-TERM");
    }
    assert_eq!(scene.end(), Vec::<Failed>::new());
}

#[test]
#[ignore = "needs HAProxy, which tests/run installs"]
fn of_one_that_is_killed_only_what_it_had_fails() {
    let mut scene = Scene::start("rolling-kill");
    scene.replace(0, "-KILL");
    let failed = scene.end();
    assert!(failed.len() <= CALLERS, "{failed:?}");
    for answer in failed.into_iter().flatten() {
        // HAProxy's word for a connection that broke; on one that was used before it just closes.
        assert_eq!(status(&answer), "502", "{answer}");
    }
}
