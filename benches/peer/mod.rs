//! The other sides of a measurement: an upstream that costs next to nothing, callers that keep their
//! connections busy, and the podgate between them as a process of its own.

#![allow(dead_code, reason = "each benchmark uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What every request is answered with: the size of a status poll's answer.
pub const BODY: &str = r#"{"id":"0b1c-u1","status":"IN_PROGRESS","delayTime":12,"workerId":"w"}"#;

/// The end of a head in `bytes`, and the length of the body it announces.
fn head(bytes: &[u8]) -> Option<(usize, usize)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let length = name.eq_ignore_ascii_case("content-length");
        length.then(|| value.trim().parse().ok())?
    });
    Some((end, length.unwrap_or(0)))
}

/// One message, head and body; `false` once the other side has closed.
fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    loop {
        if let Some((end, length)) = head(buffer)
            && buffer.len() >= end + length
        {
            buffer.drain(..end + length);
            return true;
        }
        let mut chunk = [0; 64 << 10];
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return false,
            Ok(read) => buffer.extend_from_slice(&chunk[..read]),
        }
    }
}

/// What every request is answered with, the head too.
pub fn answer() -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    )
}

/// Answers whatever comes, one thread a connection.
pub fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = answer();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            stream.set_nodelay(true).unwrap();
            std::thread::spawn(move || {
                let mut buffer = Vec::new();
                while read_message(&mut stream, &mut buffer) {
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// What callers send.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A status poll.
    Poll,
    /// The same with the two fields that there have to be.
    Bare,
    /// A submission with so many bytes of text.
    Submit(usize),
    /// The same, and its answer is waited for.
    Runsync(usize),
}

impl Kind {
    pub fn request(self) -> Vec<u8> {
        // What the Python SDK sends, as the contract has it.
        let sdk = match self {
            Kind::Bare => "",
            _ => {
                "user-agent: python-requests/2.34.0\r\n\
                 accept-encoding: gzip, deflate, br, zstd\r\naccept: */*\r\nconnection: keep-alive\r\n\
                 content-type: application/json\r\n"
            }
        };
        let common =
            format!("host: 127.0.0.1:8080\r\n{sdk}authorization: Bearer rpa_0123456789ABCDEF\r\n");
        let (operation, bytes) = match self {
            Kind::Poll | Kind::Bare => {
                return format!("GET /v2/abcdef0123/status/0b1c2d3e-u1 HTTP/1.1\r\n{common}\r\n")
                    .into();
            }
            Kind::Submit(bytes) => ("run", bytes),
            Kind::Runsync(bytes) => ("runsync", bytes),
        };
        let body = format!(r#"{{"input":{{"text":"{}"}}}}"#, "x".repeat(bytes));
        let length = body.len();
        format!(
            "POST /v2/abcdef0123/{operation} HTTP/1.1\r\n{common}content-length: {length}\r\n\r\n{body}"
        )
        .into()
    }
}

/// Callers that keep so many connections busy from one thread.
pub struct Callers {
    streams: Vec<(TcpStream, Vec<u8>)>,
    request: Vec<u8>,
}

impl Callers {
    pub fn connect(address: SocketAddr, connections: usize, kind: Kind) -> Self {
        let connect = |_| {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            (stream, Vec::new())
        };
        Self {
            streams: (0..connections).map(connect).collect(),
            request: kind.request(),
        }
    }

    /// Each connection carries so many requests, all of them at once.
    pub fn rounds(&mut self, rounds: usize) {
        for _ in 0..rounds {
            for (stream, _) in &mut self.streams {
                stream.write_all(&self.request).unwrap();
            }
            for (stream, buffer) in &mut self.streams {
                assert!(read_message(stream, buffer), "the gateway closed");
            }
        }
    }
}

/// A gateway's process, ended with this.
pub struct Process {
    pub child: Child,
    /// Where clients come in, and where metrics are.
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

impl Process {
    /// `command`: podgate, or what runs it.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut lines = lines.map(Result::unwrap);
        let mut said = String::new();
        let ready = lines.find_map(|line| {
            let ready = addresses(&line);
            said += &format!("{line}\n");
            ready
        });
        let (address, admin) = ready.unwrap_or_else(|| panic!("podgate does not start:\n{said}"));
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            address,
            admin,
        }
    }

    /// Asks it to end, and waits.
    pub fn end(self) {
        drop(self);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        // It may have ended by itself.
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Those in the line that podgate says when it is ready.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let (_, places) = line.split_once("ready on ")?;
    let mut places = places.split(", ").map(|place| place.split_once("://"));
    let mut next = || places.next()??.1.parse().ok();
    Some((next()?, next()?))
}

/// A folder for this benchmark's files.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The configuration measured: everything on, one worker, and limits that never bind. `mode` as in the
/// configuration; `fields`: whether answers say what is left of their limits.
pub fn config(folder: &Path, upstream: SocketAddr, mode: &str, fields: bool) -> PathBuf {
    let path = folder.join(format!("{mode}-{fields}.yaml"));
    let limits =
        format!("{{ rate: {{ requests: 1000000, per: 10s }}, concurrency: 10000, mode: {mode} }}");
    let text = format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nworkers: 1\n\
         upstream: {{ url: 'http://{upstream}' }}\n\
         answers: {{ rate_limit_headers: {fields} }}\n\
         groups: {{ run: {limits}, status: {limits} }}\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}
