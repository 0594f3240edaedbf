//! podgate as a process, before an emulated API: what the tests that start, signal and kill it share.
#![allow(dead_code, reason = "each test uses its part")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use podgate::emulator::limits::{Group, Limit, Limits};
use podgate::emulator::{self, Emulator};

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A folder of this test's own, empty.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
        _ => fs::create_dir_all(&folder).unwrap(),
    }
    folder
}

/// The API with `requests` of `group` a second, on a runtime of its own. `key`: the only one it takes.
pub fn upstream(group: Group, requests: u32, key: Option<&str>) -> (Emulator, SocketAddr) {
    let mut limits = Limits::default();
    limits[group] = Limit {
        requests: Some(requests),
        window: Duration::from_secs(1),
        concurrency: None,
        ..Limit::documented(group)
    };
    let emulator = Emulator::new(emulator::Config {
        limits,
        keys: key.into_iter().map(str::to_owned).collect(),
        ..emulator::Config::default()
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let serving = emulator.clone();
    thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            serving.serve(listener, std::future::pending()).await;
        });
    });
    (emulator, address)
}

pub struct Podgate {
    pub child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    said: Arc<Mutex<String>>,
}

impl Podgate {
    pub fn start(config: &Path) -> Self {
        Self::start_seeing(config, |_| {})
    }

    /// Starts it; `seen` gets each line it says before it is ready.
    pub fn start_seeing(config: &Path, mut seen: impl FnMut(&str)) -> Self {
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
        let ready = lines.find(|line| {
            seen(line);
            line.contains("ready on")
        });
        let ready = ready.expect("it gets ready");
        let address = |after: &str| {
            let rest = ready.split_once(after).unwrap().1;
            rest.split(',').next().unwrap().parse().unwrap()
        };
        let said = Arc::new(Mutex::new(String::new()));
        let keeps = said.clone();
        thread::spawn(move || lines.for_each(|line| *keeps.lock().unwrap() += &(line + "\n")));
        Self {
            address: address("ready on http://"),
            admin: address("admin on http://"),
            said,
            child,
        }
    }

    /// Sends it a signal, by its name with a dash.
    pub fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// Sends it a signal that ends it, and sees it out.
    pub fn end(mut self, signal: &str) {
        self.signal(signal);
        self.child.wait().unwrap();
    }

    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// What the admin port says.
    pub fn get(&self, path: &str) -> String {
        ask(self.admin, "GET", path, "", "")
    }

    pub fn post(&self, path: &str, body: &str) -> String {
        ask(self.admin, "POST", path, "", body)
    }

    /// The limit of the window of health at `ep`, as the lane has it.
    pub fn limit(&self) -> Option<u64> {
        let lanes = self.get("/lanes");
        let lanes: serde_json::Value = serde_json::from_str(body(&lanes)).unwrap();
        let mut lanes = lanes.as_array().unwrap().iter();
        let lane = lanes.find(|lane| lane["group"] == "health")?;
        lane["window"]["limit"].as_u64()
    }

    /// Configurations that were taken, or refused.
    pub fn reloads(&self, result: &str) -> u64 {
        self.metric(&format!(
            "podgate_config_reload_total{{result=\"{result}\"}}"
        ))
    }

    /// One series.
    pub fn metric(&self, series: &str) -> u64 {
        let page = self.get("/metrics");
        let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok();
        page.lines().find_map(value).unwrap()
    }

    /// Kibibytes in memory.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }
}

impl Drop for Podgate {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One exchange on a connection of its own.
pub fn ask(address: SocketAddr, method: &str, path: &str, fields: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         authorization: Bearer k\r\ncontent-length: {length}\r\n{fields}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

pub fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let (tries, pause) = (3_000, PATIENCE / 3_000);
    let held = (0..tries).any(|_| {
        let held = holds();
        if !held {
            thread::sleep(pause);
        }
        held
    });
    assert!(held, "never: {what}");
}

/// An answer with a declared length; `None`: the connection was closed instead.
pub fn one_answer(stream: &mut TcpStream) -> Option<String> {
    let mut reader = BufReader::with_capacity(1, stream);
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n") {
        if reader.read_line(&mut answer).unwrap() == 0 {
            assert_eq!(answer, "", "its head broke off");
            return None;
        }
    }
    let length = answer.to_ascii_lowercase();
    let length = length.split_once("content-length: ").unwrap().1;
    let length = length.lines().next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    Some(answer + &String::from_utf8(body).unwrap())
}
