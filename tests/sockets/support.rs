//! An emulated upstream, podgate before it, and callers, all on loopback.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, MutexGuard};
use podgate::config::Config;
use podgate::emulator::faults::Faults;
use podgate::emulator::limits::{Group, Limit, Limits};
use podgate::emulator::policer::Policer;
use podgate::emulator::site::Fleet;
use podgate::emulator::{self, Emulator};
use podgate::limit::local::Snapshot;
use podgate::serve::{self, Running};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

#[expect(
    clippy::disallowed_methods,
    reason = "real sockets are tested in real time"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// The machine, for one test at a time: what one measures, another would disturb.
pub struct Machine(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Machine {
    pub fn take() -> Self {
        static MACHINE: Mutex<()> = Mutex::new(());
        podgate::listener::raise_open_files();
        Self(MACHINE.lock())
    }
}

/// What stands, before it does.
pub struct Scene {
    limits: Limits,
    policer: Policer,
    margin: &'static str,
    idle_timeout: &'static str,
    /// Further keys of the gateway's upstream, and another URL than the address given.
    keys: String,
    url: Option<String>,
    workers: usize,
    listen: String,
    /// Of the gateway's configuration, beside the groups.
    settings: &'static str,
    /// Limits that are not the documented ones.
    told: BTreeMap<&'static str, Tight>,
    groups: BTreeMap<&'static str, Vec<String>>,
    logged: bool,
}

/// N per W and C of one group, told to both sides alike.
#[derive(Clone, Copy)]
pub struct Tight {
    pub requests: Option<u32>,
    pub window: Duration,
    pub concurrency: Option<u32>,
}

impl Tight {
    fn settings(&self) -> String {
        let window = self.window.as_millis();
        let rate = self.requests.map_or("none".to_owned(), |requests| {
            format!("{{ requests: {requests}, per: {window}ms }}")
        });
        let concurrency = self
            .concurrency
            .map_or("none".to_owned(), |c| c.to_string());
        format!("rate: {rate}, concurrency: {concurrency}")
    }
}

impl Default for Scene {
    /// The documented limits, two worker threads, and a margin that a test on a busy machine can keep:
    /// an emulator whose thread is not run for longer is a transit above it, and not covered.
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            policer: Policer::SlidingLog,
            margin: "1s",
            idle_timeout: "60s",
            keys: String::new(),
            url: None,
            workers: 2,
            listen: "127.0.0.1:0".to_owned(),
            settings: "",
            told: BTreeMap::new(),
            groups: BTreeMap::new(),
            logged: false,
        }
    }
}

impl Scene {
    pub fn policer(mut self, policer: Policer) -> Self {
        self.policer = policer;
        self
    }

    pub fn margin(mut self, margin: &'static str) -> Self {
        self.margin = margin;
        self
    }

    /// How long the upstream may be silent in the middle of an answer.
    pub fn idle_timeout(mut self, idle_timeout: &'static str) -> Self {
        self.idle_timeout = idle_timeout;
        self
    }

    /// Keys of `upstream` in the gateway's configuration.
    pub fn upstream_keys(mut self, keys: &str) -> Self {
        self.keys = format!(", {keys}");
        self
    }

    /// How the gateway names its upstream.
    pub fn url(mut self, url: String) -> Self {
        self.url = Some(url);
        self
    }

    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Where the gateway's clients come in.
    #[allow(dead_code, reason = "for the tests of listeners")]
    pub fn listen(mut self, listen: String) -> Self {
        self.listen = listen;
        self
    }

    /// Lines of the gateway's configuration.
    pub fn settings(mut self, settings: &'static str) -> Self {
        self.settings = settings;
        self
    }

    /// A key of a group in the gateway's configuration.
    pub fn set(mut self, group: Group, setting: &str) -> Self {
        let settings = self.groups.entry(group.name()).or_default();
        settings.push(setting.to_owned());
        self
    }

    /// Another limit than the documented one, on both sides.
    pub fn limit(mut self, group: Group, tight: Tight) -> Self {
        self.limits[group] = Limit {
            requests: tight.requests,
            window: tight.window,
            concurrency: tight.concurrency,
            policer: None,
        };
        self.groups.entry(group.name()).or_default();
        self.told.insert(group.name(), tight);
        self
    }

    fn emulator(&self) -> emulator::Config {
        emulator::Config {
            limits: self.limits.clone(),
            policer: self.policer,
            // Its queue is never what limits it.
            fleet: Fleet {
                workers: 10_000,
                ..Fleet::default()
            },
            ..emulator::Config::default()
        }
    }

    /// podgate's configuration before `upstream`.
    pub fn text(&self, upstream: SocketAddr) -> String {
        let groups: String = self
            .groups
            .iter()
            .map(|(name, settings)| {
                let told = self.told.get(name).map(Tight::settings);
                let all: Vec<_> = settings.iter().cloned().chain(told).collect();
                format!("  {name}: {{ {} }}\n", all.join(", "))
            })
            .collect();
        let url = match &self.url {
            Some(url) => url.clone(),
            None => format!("http://{upstream}"),
        };
        format!(
            "listen: {}\nadmin: 127.0.0.1:0\nworkers: {}\n\
             upstream: {{ url: '{url}', margin: {}, idle_timeout: {}{} }}\n{}\ngroups:\n{groups}",
            self.listen, self.workers, self.margin, self.idle_timeout, self.keys, self.settings
        )
    }

    fn config(&self, upstream: SocketAddr) -> Config {
        let text = self.text(upstream);
        Config::parse("scene.yaml", &text).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
    }

    /// Its access log is kept, for [`Gateway::log`].
    pub fn logged(mut self) -> Self {
        self.logged = true;
        self
    }

    /// An emulator alone.
    pub fn upstream(&self) -> Upstream {
        Upstream::start(self.emulator())
    }

    /// podgate before an emulator.
    pub fn start(self) -> Stand {
        let machine = Machine::take();
        self.beside(Rc::new(machine))
    }

    /// The same beside others of one test.
    pub fn beside(self, machine: Rc<Machine>) -> Stand {
        let upstream = self.upstream();
        let gateway = Gateway::start(self.config(upstream.address), self.logged);
        Stand {
            gateway,
            upstream,
            _machine: machine,
        }
    }

    /// podgate alone, for who has the machine already.
    pub fn gateway(self, upstream: SocketAddr) -> Gateway {
        Gateway::start(self.config(upstream), self.logged)
    }

    /// podgate before whatever listens at `upstream`, or nothing.
    pub fn before(self, upstream: SocketAddr) -> (Gateway, Machine) {
        let machine = Machine::take();
        (Gateway::start(self.config(upstream), self.logged), machine)
    }

    /// The same beside others of one test.
    pub fn before_beside(self, upstream: SocketAddr, _machine: Rc<Machine>) -> Gateway {
        Gateway::start(self.config(upstream), self.logged)
    }
}

pub fn machine() -> Rc<Machine> {
    Rc::new(Machine::take())
}

/// An emulator on a thread of its own, so that its answers do not wait for ours.
pub struct Upstream {
    pub address: SocketAddr,
    pub emulator: Emulator,
    /// The longest time its thread was not run, in microseconds.
    stalled: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Upstream {
    fn start(config: emulator::Config) -> Self {
        let emulator = Emulator::new(config);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let stalled = Arc::new(AtomicU64::new(0));
        let (serving, stalls) = (emulator.clone(), stalled.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                tokio::spawn(watch_stalls(stalls));
                let listener = TcpListener::from_std(listener).unwrap();
                serving.serve(listener, async { drop(stopped.await) }).await;
            });
        });
        Self {
            address,
            emulator,
            stalled,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The figures of one group of one endpoint.
    pub fn seen(&self, endpoint: &str, group: Group) -> Value {
        self.emulator.stats_json()["endpoints"][endpoint][group.name()].clone()
    }

    /// Jobs submitted, and how many of them more than once.
    pub fn submissions(&self) -> (u64, u64) {
        let stats = self.emulator.stats_json();
        let number = |name: &str| stats["submissions"][name].as_u64().unwrap();
        (number("distinct"), number("repeated"))
    }

    pub fn faults(&self, faults: Value) {
        let faults = Faults::parse(faults.to_string().as_bytes());
        self.emulator.set_faults(faults.unwrap());
    }

    pub fn longest_stall(&self) -> Duration {
        Duration::from_micros(self.stalled.load(Ordering::Relaxed))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked it has said so.
            let _ = thread.join();
        }
    }
}

async fn watch_stalls(longest: Arc<AtomicU64>) {
    const TICK: Duration = Duration::from_millis(10);
    loop {
        let began = now();
        tokio::time::sleep(TICK).await;
        let late = began.elapsed().saturating_sub(TICK).as_micros();
        longest.fetch_max(late as u64, Ordering::Relaxed);
    }
}

/// A running podgate.
pub struct Gateway {
    pub running: Running,
    log: Kept,
}

/// Keeps what is written to it.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Gateway {
    fn start(config: Config, logged: bool) -> Self {
        let log = Kept::default();
        let sink = || Box::new(log.clone()) as Box<dyn std::io::Write + Send>;
        let beside = serve::Beside {
            access_log: logged.then(sink),
            ..serve::Beside::default()
        };
        let running = serve::start_with(config, beside).unwrap();
        Self { running, log }
    }

    /// The lines of its access log, once there are so many.
    pub async fn log(&self, lines: usize) -> Vec<String> {
        let read = || String::from_utf8(self.log.0.lock().clone()).unwrap();
        eventually("its lines are written", || read().lines().count() >= lines).await;
        read().lines().map(str::to_owned).collect()
    }

    pub fn address(&self) -> SocketAddr {
        self.running.address().unwrap()
    }

    /// The lane of a group, as it stands; `None` while there is none.
    pub fn lane(&self, group: Group) -> Option<Snapshot> {
        let lanes = self.running.shared.admission.list();
        let lane = lanes
            .iter()
            .find(|listed| listed.lane.group().name() == group.name())?;
        Some(lane.lane.view().snapshot)
    }

    pub fn waiting(&self, group: Group) -> usize {
        self.lane(group).map_or(0, |lane| lane.waiting)
    }

    pub fn permits(&self, group: Group) -> u32 {
        self.lane(group).map_or(0, |lane| lane.permits_in_use)
    }

    pub fn window_used(&self, group: Group) -> u32 {
        self.lane(group).map_or(0, |lane| lane.window_used)
    }

    /// Connections from clients.
    pub fn connections(&self) -> i64 {
        self.running.shared.metrics.connections().get()
    }

    /// Nobody waits, nothing is out, and no client is connected.
    pub async fn comes_to_rest(&self) {
        let lanes = || self.running.shared.admission.list();
        eventually("nobody waits and every permit is back", || {
            lanes().iter().all(|listed| {
                let lane = listed.lane.view().snapshot;
                (lane.waiting, lane.permits_in_use) == (0, 0)
            })
        })
        .await;
        eventually("every connection is gone", || self.connections() == 0).await;
    }

    /// How often requests have ended so, of any operation and endpoint.
    pub fn ended(&self, outcome: &str) -> u64 {
        let page = self.running.shared.metrics.page().unwrap();
        let label = format!("outcome=\"{outcome}\"");
        String::from_utf8(page)
            .unwrap()
            .lines()
            .filter(|line| line.starts_with("podgate_requests_total{") && line.contains(&label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    /// One call on a connection of its own.
    pub async fn call(&self, request: Request<Full<Bytes>>) -> Answer {
        call(self.address(), request).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(request("GET", path, "")).await
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.call(request("POST", path, body)).await
    }

    pub async fn admin(&self, path: &str) -> Answer {
        call(self.running.admin, request("GET", path, ""))
            .await
            .unwrap()
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.unwrap()
    }

    /// A connection that takes no more than a few kilobytes that nobody reads.
    pub async fn connect_slowly(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket.connect(self.address()).await.unwrap()
    }

    /// A connection with so much written to it.
    pub async fn send(&self, bytes: impl AsRef<[u8]>) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_ref()).await.unwrap();
        stream
    }
}

/// podgate before an emulator. The gateway is dropped first.
pub struct Stand {
    pub gateway: Gateway,
    pub upstream: Upstream,
    _machine: Rc<Machine>,
}

impl Stand {
    /// No door of the emulator has refused anything, and no job came twice.
    pub fn was_never_over(&self) {
        let stats = self.upstream.emulator.stats_json();
        let stall = self.upstream.longest_stall();
        for (endpoint, groups) in stats["endpoints"].as_object().unwrap() {
            for (group, seen) in groups.as_object().unwrap() {
                for (why, refused) in seen["refused"].as_object().unwrap() {
                    assert_eq!(
                        refused, 0,
                        "{endpoint} {group}: refused for its {why}; the longest stall {stall:?}"
                    );
                }
            }
        }
        assert_eq!(stats["submissions"]["repeated"], 0);
    }

    /// The next request is served as if nothing had been.
    pub async fn still_serves(&self) {
        self.serves("ep").await;
    }

    pub async fn serves(&self, endpoint: &str) {
        let path = format!("/v2/{endpoint}/run");
        let answer = self.gateway.post(&path, job(&unique())).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
    }

    /// What has to hold once everybody has left, by whatever way.
    pub async fn is_as_before(&self) {
        self.gateway.comes_to_rest().await;
        self.still_serves().await;
        self.gateway.comes_to_rest().await;
        self.was_never_over();
    }
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("JSON: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

pub fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "podgate.test")
        .header("authorization", "Bearer key")
        .body(Full::new(body.into()))
        .unwrap()
}

/// One exchange on a connection of its own; an error if it broke.
pub async fn call(address: SocketAddr, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
    let exchange = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let (parts, body) = response.into_parts();
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        })
    };
    within("an answer", exchange).await
}

/// Reads one whole answer, which says how long it is; returns its head.
pub async fn head_of_answer(client: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("an answer", client.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    client.read_exact(&mut body).await.unwrap();
    head
}

/// Another text each time.
pub fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("job-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A submission of nearly no work.
pub fn job(id: &str) -> String {
    format!(r#"{{"input":{{"id":"{id}"}}}}"#)
}

/// A submission that works for so long.
pub fn long_job(id: &str, seconds: f64) -> String {
    format!(r#"{{"input":{{"id":"{id}","sleep":{seconds}}}}}"#)
}

/// The bytes of a POST.
pub fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: podgate.test\r\nauthorization: Bearer key\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Runs them all at once.
pub async fn together<F: Future<Output = ()>>(all: impl IntoIterator<Item = F>) {
    let mut all: Vec<_> = all.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        all.retain_mut(|one| one.as_mut().poll(cx).is_pending());
        match all.is_empty() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

/// Chance that is the same in every run.
pub struct Random(Cell<u64>);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// SplitMix64.
    pub fn below(&self, bound: usize) -> usize {
        let state = self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.0.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) as usize % bound.max(1)
    }
}

/// Bounds what a test waits for.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let bounded = tokio::time::timeout(PATIENCE, future).await;
    bounded.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Waits for `holds` to become true.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let polls = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    within(what, polls).await;
}
