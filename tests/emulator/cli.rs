//! `podgate emulate` as a process.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};

use serde_json::json;

use super::support::{call, request};

struct Process {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn emulate(arguments: &[&str]) -> Process {
    let mut child = Command::new(env!("CARGO_BIN_EXE_podgate"))
        .arg("emulate")
        .args(arguments)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    Process { child, stderr }
}

/// The address in the ready line.
fn ready(process: &mut Process) -> std::net::SocketAddr {
    let mut line = String::new();
    process.stderr.read_line(&mut line).unwrap();
    let address = line
        .trim()
        .strip_prefix("podgate emulator ready on http://");
    address.unwrap_or_else(|| panic!("{line}")).parse().unwrap()
}

#[tokio::test]
async fn it_says_where_it_is_serves_on_every_thread_and_ends_well() {
    for (signal, threads) in [("-TERM", "1"), ("-INT", "3")] {
        let mut process = emulate(&[
            "--listen",
            "127.0.0.1:0",
            "--workers",
            threads,
            "--endpoint",
            "demo=2",
            "--key",
            "secret",
            "--policer",
            "fixed-window",
            "--limit",
            "health=40/60s/9",
        ]);
        let address = ready(&mut process);
        let mut statuses = Vec::new();
        for _ in 0..41 {
            let health = request("GET", "/v2/demo/health", Some("secret"), "".into());
            statuses.push(call(address, health).await.unwrap().status);
        }
        assert_eq!(statuses[..40], [200; 40]);
        assert_eq!(statuses[40], 429, "one limit for all threads");
        let body = json!({"input": {"sleep": 0.05}}).to_string().into();
        let runsync = request("POST", "/v2/demo/runsync", Some("secret"), body);
        assert_eq!(
            call(address, runsync).await.unwrap().json()["status"],
            "COMPLETED"
        );
        let kill = Command::new("kill")
            .args([signal, &process.child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        assert_eq!(process.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn bad_usage_is_2_and_a_taken_port_is_1() {
    for wrong in [
        ["--policer", "leaky"],
        ["--endpoint", "demo"],
        ["--endpoint", "d/e=1"],
        ["--listen", "here"],
        ["--limit", "walk=1/1s"],
        ["--limit", "run=1"],
        ["--workers", "0"],
    ] {
        let mut process = emulate(&wrong);
        assert_eq!(process.child.wait().unwrap().code(), Some(2), "{wrong:?}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut process = emulate(&["--listen", &taken.local_addr().unwrap().to_string()]);
    assert_eq!(process.child.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    process.stderr.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("podgate emulate: "), "{said}");
}
