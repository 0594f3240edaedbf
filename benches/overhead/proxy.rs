//! The two proxies, set up alike: limits that never bite, metrics, and an access log with the same
//! fields in a file. Both name requests to both sides, and reuse connections without end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use memchr::memmem;

use crate::nginx::{self, Nginx};
use crate::peer::Process;
use crate::podgate;
use crate::workload::Workload;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    Nginx,
    Podgate,
}

/// What a proxy is to do.
pub struct Setup<'a> {
    /// Where its files are put.
    pub folder: &'a Path,
    pub podgate: &'a Path,
    pub workload: Workload,
    pub workers: usize,
    pub upstream: SocketAddr,
    /// The core it is held to.
    pub core: Option<usize>,
}

/// A proxy at work, ended with this.
pub struct Running {
    pub id: u32,
    pub address: SocketAddr,
    /// Where its metrics are.
    pub statistics: SocketAddr,
    pub access_log: PathBuf,
    pub process: Ends,
}

/// Ends with it.
pub enum Ends {
    Nginx(Nginx),
    Podgate(Process),
}

/// A command, held to a core where one is given.
pub fn command(core: Option<usize>, program: &Path) -> Command {
    let Some(core) = core else {
        return Command::new(program);
    };
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

impl Proxy {
    pub const BOTH: [Proxy; 2] = [Proxy::Nginx, Proxy::Podgate];

    pub fn name(self) -> &'static str {
        match self {
            Proxy::Nginx => "nginx",
            Proxy::Podgate => "podgate",
        }
    }

    pub fn start(self, setup: &Setup<'_>) -> Running {
        let access_log = setup.folder.join(format!("{}-access.log", self.name()));
        match self {
            Proxy::Nginx => nginx::start(setup, access_log),
            Proxy::Podgate => podgate::start(setup, access_log),
        }
    }
}

impl Running {
    /// Ends it, and sees to it that it has done its whole work for each of so many requests.
    pub fn end(self, requests: u64) {
        let page = get(self.statistics, "/metrics");
        let counted = match self.process {
            Ends::Nginx(nginx) => {
                drop(nginx);
                nginx::requests(&page)
            }
            Ends::Podgate(process) => {
                process.end();
                podgate::requests(&page)
            }
        };
        assert_eq!(counted, requests, "requests in the metrics: {page}");
        let log = std::fs::read(&self.access_log).unwrap();
        let lines = memchr::memchr_iter(b'\n', &log).count() as u64;
        let good = memmem::find_iter(&log, r#""status":200,"#).count() as u64;
        assert_eq!(
            (lines, good),
            (requests, requests),
            "lines in the access log"
        );
        std::fs::remove_file(&self.access_log).unwrap();
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer
}
