//! The official SDKs, through a podgate started as a user starts it and at the emulated API itself, so
//! that a failure shows whose it is. They need what `tests/run` installs, so plain `cargo test` names
//! them as left out.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock};

/// A podgate process that ends with the test.
struct Podgate {
    child: Child,
    address: String,
}

impl Podgate {
    /// Starts it and waits for the ready line, whose first address is where it serves.
    fn start<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_podgate"))
            .args(arguments)
            .stdout(Stdio::null())
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

    fn emulate() -> Self {
        let workers = ENDPOINTS.iter().flat_map(|workers| ["--endpoint", workers]);
        let listen = ["emulate", "--listen", "127.0.0.1:0", "--key", KEY];
        Self::start(listen.into_iter().chain(workers))
    }

    fn serve(upstream: &str) -> Self {
        let config = scripts().join("podgate.yaml");
        let config = config.to_str().expect("a path of text");
        let listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let upstream = ["--config", config, "--upstream", upstream];
        Self::start(["serve"].into_iter().chain(listen).chain(upstream))
    }
}

impl Drop for Podgate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const KEY: &str = "sdk-test-key";

/// The endpoints of the scripts, with their simulated workers: one where jobs are to wait for it, and
/// more than there are callers where none is.
const ENDPOINTS: [&str; 9] = [
    "results=1",
    "holds=1",
    "streams=1",
    "queue=1",
    "crowd=1000",
    "tasks=1000",
    "few=1000",
    "slow=1000",
    "slow-and-patient=1000",
];

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk")
}

/// Where a suite's SDK is pointed at.
#[derive(Clone, Copy)]
enum Target {
    Podgate,
    Emulator,
}

/// Runs a script to its end: it exits 0 if all came out right, and says on its last line what did.
fn passes(script: &str, target: Target) {
    let emulator = Podgate::emulate();
    let gateway = match target {
        Target::Podgate => Some(Podgate::serve(&emulator.address)),
        Target::Emulator => None,
    };
    let base = gateway.as_ref().unwrap_or(&emulator);
    let mut command = if script.ends_with(".mjs") {
        std::env::var_os("PODGATE_TEST_NODE_MODULES").expect(
            "PODGATE_TEST_NODE_MODULES names a folder with tests/sdk/package.json installed",
        );
        Command::new("node")
    } else {
        let python = std::env::var_os("PODGATE_TEST_PYTHON")
            .expect("PODGATE_TEST_PYTHON names a Python that has tests/sdk/requirements.txt");
        Command::new(python)
    };
    let output = command
        .arg(scripts().join(script))
        .args([&base.address, &emulator.address])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("the script starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{script}: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{script}: {}", said.lines().last().unwrap_or_default());
}

/// The machine: for one script alone where podgate has to answer a crowd within the SDK's three
/// seconds, for some others together.
static MACHINE: RwLock<()> = RwLock::new(());

fn beside_others(script: &str, target: Target) {
    let _machine = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    passes(script, target);
}

fn alone(script: &str, target: Target) {
    let _machine = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    passes(script, target);
}

fn alone_through_podgate(script: &str, target: Target) {
    match target {
        Target::Podgate => alone(script, target),
        Target::Emulator => beside_others(script, target),
    }
}

/// A suite of `$script`, once for each target.
macro_rules! suites {
    ($($promise:ident: $run:ident($script:literal), $needs:literal;)*) => {$(
        mod $promise {
            use super::{Target, $run};

            #[test]
            #[ignore = $needs]
            fn through_podgate() {
                $run($script, Target::Podgate);
            }

            #[test]
            #[ignore = $needs]
            fn at_the_emulator_itself() {
                $run($script, Target::Emulator);
            }
        }
    )*};
}

suites! {
    the_python_sdk_does_every_operation:
        beside_others("python_sync.py"), "needs the official Python SDK: tests/run installs it";
    the_python_sdk_does_every_operation_in_asyncio:
        beside_others("python_asyncio.py"), "needs the official Python SDK: tests/run installs it";
    the_javascript_sdk_does_every_operation_and_is_held:
        beside_others("javascript.mjs"), "needs the official JavaScript SDK: tests/run installs it";
    the_openai_client_completes_and_streams:
        beside_others("python_openai.py"), "needs the OpenAI client: tests/run installs it";
    two_hundred_python_callers_finish:
        beside_others("python_crowd.py"), "needs the official Python SDK: tests/run installs it";
    two_hundred_javascript_callers_finish:
        alone_through_podgate("javascript_crowd.mjs"), "needs the official JavaScript SDK: tests/run installs it";
}

#[test]
#[ignore = "needs the official JavaScript SDK: tests/run installs it"]
fn no_timeout_of_the_javascript_sdk_leaves_a_job_nobody_knows_of() {
    alone("javascript_timeouts.mjs", Target::Podgate);
}

#[test]
#[ignore = "needs the official Python SDK: tests/run installs it"]
fn no_timeout_of_the_python_sdk_leaves_a_job_nobody_knows_of() {
    beside_others("python_timeouts.py", Target::Podgate);
}
