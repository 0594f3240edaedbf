//! podgate as a process of its own: for signals, its memory, its open files and its threads.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

use super::support::{Answer, Machine, Scene, Upstream, call, eventually, request, within};

/// Ends with the test.
pub struct Process {
    child: Child,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    config: PathBuf,
    said: Arc<Mutex<Vec<String>>>,
    pub upstream: Upstream,
    _machine: Machine,
}

impl Scene {
    /// podgate as a process before an emulator.
    pub fn process(self) -> Process {
        self.process_by("exec \"$@\"")
    }

    /// The same, started by a line of shell, whose arguments are the command.
    pub fn process_by(self, shell: &str) -> Process {
        let machine = Machine::take();
        let upstream = self.upstream();
        let config = config(&self.text(upstream.address));
        let mut child = Command::new("sh")
            .args(["-c", shell, "sh", env!("CARGO_BIN_EXE_podgate")])
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut lines = stderr.lines().map_while(Result::ok);
        let said = Arc::<Mutex<Vec<String>>>::default();
        let ready = lines.find_map(|line| {
            let addresses = line.contains(" ready on http://").then(|| addresses(&line));
            said.lock().push(line);
            addresses
        });
        let (listen, admin) = ready.unwrap_or_else(|| panic!("not ready: {:?}", said.lock()));
        let kept = said.clone();
        std::thread::spawn(move || lines.for_each(|line| kept.lock().push(line)));
        Process {
            child,
            listen,
            admin,
            config,
            said,
            upstream,
            _machine: machine,
        }
    }
}

fn config(text: &str) -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("process-{number}.yaml"));
    std::fs::write(&file, text).unwrap();
    file
}

/// The first two addresses of the ready line: where it serves, and the admin door.
fn addresses(line: &str) -> (SocketAddr, SocketAddr) {
    let mut found = line
        .split("http://")
        .skip(1)
        .map(|rest| rest.split([',', ' ']).next().unwrap().parse().unwrap());
    (found.next().unwrap(), found.next().unwrap())
}

impl Process {
    pub async fn post(&self, path: &str, body: String) -> Answer {
        call(self.listen, request("POST", path, body))
            .await
            .unwrap()
    }

    pub async fn admin(&self, path: &str) -> Answer {
        call(self.admin, request("GET", path, "")).await.unwrap()
    }

    /// The value of a series without labels.
    pub async fn metric(&self, name: &str) -> i64 {
        let page = self.admin("/metrics").await.body;
        let page = String::from_utf8(page.to_vec()).unwrap();
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    }

    /// Waits until so many clients are connected.
    pub async fn has_connections(&self, many: i64) {
        let comes = async {
            while self.metric("podgate_connections").await != many {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within(&format!("{many} connections"), comes).await;
    }

    /// Permits out and waiters of all lanes.
    pub async fn under_way(&self) -> u64 {
        let lanes = self.admin("/lanes").await.json();
        let number = |value: &Value| value.as_u64().unwrap();
        let lanes = lanes.as_array().unwrap().iter();
        lanes
            .map(|lane| number(&lane["permits"]["in_use"]) + number(&lane["waiting"]["total"]))
            .sum()
    }

    /// What it has said to stderr so far.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().clone()
    }

    /// How many lines of that hold `what`.
    pub fn has_said(&self, what: &str) -> usize {
        self.said()
            .iter()
            .filter(|line| line.contains(what))
            .count()
    }

    /// From here on it may have so many files open.
    pub fn limit_files(&self, many: u64) {
        let limit = Rlimit {
            current: Some(many),
            maximum: Some(many),
        };
        prlimit(Some(self.pid()), Resource::Nofile, limit).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Whether and how it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub async fn ends(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// A line of `/proc/PID/status`, in bytes.
    fn memory(&self, name: &str) -> u64 {
        let file = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(file).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.unwrap().trim_start_matches(':').trim();
        kilobytes.trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Bytes of memory it has now.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS")
    }

    /// The most it ever had.
    pub fn peak(&self) -> u64 {
        self.memory("VmHWM")
    }

    /// Time each of its threads of this name has run, in ticks of the kernel's clock.
    pub fn ticks(&self, thread: &str) -> Vec<u64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let stats = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")));
        stats
            .map(Result::unwrap)
            .filter_map(|stat| {
                let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
                let mut fields = rest.split_whitespace().skip(11);
                let mut ticks = || fields.next()?.parse::<u64>().ok();
                name.starts_with(thread).then(|| ticks().zip(ticks()))?
            })
            .map(|(user, system)| user + system)
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.config);
    }
}
