//! The official SDKs through a podgate started as a user starts it. They need what `tests/run`
//! installs, so plain `cargo test` names them as left out.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A podgate process that ends with the test.
struct Podgate {
    child: Child,
    address: String,
}

impl Podgate {
    /// Starts it and waits for the ready line, whose first address is where it serves.
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_podgate"))
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .expect("podgate starts");
        let stderr = BufReader::new(child.stderr.take().expect("its stderr is ours"));
        let mut lines = stderr.lines().map(|line| line.expect("it writes text"));
        let ready = lines
            .find(|line| line.contains(" ready on http://"))
            .expect("it gets ready");
        let address = ready
            .split_whitespace()
            .find(|word| word.starts_with("http://"));
        let address = address
            .expect("an address")
            .trim_end_matches(',')
            .to_owned();
        // A full pipe would stop it.
        std::thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));
        Self { child, address }
    }
}

impl Drop for Podgate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs the official Python SDK: tests/run installs it"]
fn the_python_sdk_submits_and_polls_jobs() {
    let python = std::env::var_os("PODGATE_TEST_PYTHON")
        .expect("PODGATE_TEST_PYTHON names a Python that has tests/sdk/requirements.txt");
    let emulator = Podgate::start(&["emulate", "--listen", "127.0.0.1:0"]);
    let gateway = Podgate::start(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--upstream",
        &emulator.address,
    ]);
    let status = Command::new(python)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/sdk/python_sdk.py"
        ))
        .args([&gateway.address, &emulator.address])
        .status()
        .expect("the script starts");
    assert!(status.success(), "{status}");
}
