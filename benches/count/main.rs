//! What a request costs in things that can be counted: they repeat to a percent on a busy machine,
//! where seconds do not.
//!
//! `cargo bench --bench count` prints user instructions (by valgrind) and system calls (by strace) of
//! a small request, its allocations, and the memory of an idle connection. Instructions are of a status
//! poll as the official SDK sends it, unless named: `bare` is one with a host and a credential only;
//! `fields_off` one whose answer does not say what is left of its limit, `limiter_off` the same with the
//! limits not kept.
//! `-- --ratchet` compares the first two with `benches/count/kept.json` and fails where one is over 3% worse.
//! `-- --json` prints the figures as one JSON object. Where there is an nginx, its instructions for the
//! same request are counted too: log, limits and request ids on, nothing else.
//!
//! It needs Linux, valgrind and strace (Debian: `apt-get install valgrind strace`). All is counted of
//! the release binary, but for allocations: those are counted by an allocator that this program has,
//! and it serves as the gateway itself.

mod nginx;
#[path = "../peer/mod.rs"]
mod peer;

use std::alloc::System;
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use peer::{Callers, Kind, Process, config, folder, upstream};
use podgate::levels::Levels;
use podgate::reload::Source;
use podgate::serve::{self, Beside};
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Connections busy at once.
const CONNECTIONS: usize = 64;
/// Requests on each before anything is counted, and with what is counted.
const FEW: usize = 20;
const MANY: usize = 100;
/// Idle connections held open.
const IDLE: usize = 2_000;
/// What a figure may be worse than the ratchet, in percent.
const SLACK: f64 = 3.0;
/// The first argument of this program as a gateway.
const GATEWAY: &str = "gateway";
const RATCHET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/count/kept.json");

/// What is counted, and of what.
struct Bench {
    folder: PathBuf,
    /// A copy: what another build writes meanwhile is not counted with it.
    podgate: PathBuf,
}

/// Starts podgate, or what runs it.
fn start(words: &[&str], config: &Path) -> Process {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg("serve").arg("--config");
    Process::start(command.arg(config).stdout(Stdio::null()))
}

/// What a request adds: the difference of a long run and a short one. `count` is told how many
/// requests each connection carries.
fn difference<const N: usize>(count: impl Fn(usize) -> [f64; N]) -> [f64; N] {
    let (many, few) = (count(MANY), count(FEW));
    let requests = ((MANY - FEW) * CONNECTIONS) as f64;
    std::array::from_fn(|index| (many[index] - few[index]) / requests)
}

/// Has it carry so many requests on each connection, and ends it.
fn run(process: Process, kind: Kind, rounds: usize) {
    let mut callers = Callers::connect(process.address, CONNECTIONS, kind);
    callers.rounds(rounds);
    drop(callers);
    process.end();
}

impl Bench {
    fn podgate(&self) -> &str {
        self.podgate.to_str().expect("a path is text")
    }

    /// User instructions of a request, by valgrind.
    fn instructions(&self, config: &Path, kind: Kind) -> f64 {
        self.instructions_of(kind, |valgrind| {
            let words: Vec<_> = valgrind.iter().copied().chain([self.podgate()]).collect();
            start(&words, config)
        })
    }

    /// The same of whatever is started, with these words before its own.
    fn instructions_of(&self, kind: Kind, start: impl Fn(&[&str]) -> Process) -> f64 {
        let out = self.folder.join("callgrind.out");
        let to = format!("--callgrind-out-file={}", out.display());
        let [instructions] = difference(|rounds| {
            // What an earlier run has left would be read for this one's.
            let _ = std::fs::remove_file(&out);
            run(start(&["valgrind", "--tool=callgrind", &to]), kind, rounds);
            let text = std::fs::read_to_string(&out).unwrap();
            let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
            [totals.expect("callgrind sums up").trim().parse().unwrap()]
        });
        instructions
    }

    /// Allocations of a request, those that make larger included, and their bytes.
    fn allocations(&self, config: &Path, kind: Kind) -> [f64; 2] {
        let own = std::env::current_exe().unwrap();
        let out = self.folder.join("allocations.json");
        let words = [own.to_str().unwrap(), GATEWAY, out.to_str().unwrap()];
        difference(|rounds| {
            let _ = std::fs::remove_file(&out);
            run(start(&words, config), kind, rounds);
            serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap()
        })
    }

    /// System calls of a request, counted while nothing else happens.
    fn system_calls(&self, config: &Path, kind: Kind) -> f64 {
        // How many events come at once is chance: the least of some runs is what it takes.
        let runs = (0..3).map(|_| self.system_calls_once(config, kind));
        runs.fold(f64::MAX, f64::min)
    }

    fn system_calls_once(&self, config: &Path, kind: Kind) -> f64 {
        let out = self.folder.join("strace.out");
        let process = start(&[self.podgate()], config);
        let mut callers = Callers::connect(process.address, CONNECTIONS, kind);
        callers.rounds(FEW);
        let mut strace = Command::new("strace")
            .args(["-f", "-c", "-o"])
            .arg(&out)
            .arg("-p")
            .arg(process.child.id().to_string())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(strace.stderr.take().unwrap()).lines();
        let mut said = said.map(Result::unwrap);
        assert!(
            said.any(|line| line.contains("attached")),
            "strace attaches"
        );
        callers.rounds(MANY);
        let id = rustix::process::Pid::from_child(&strace);
        rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
        said.for_each(drop);
        strace.wait().unwrap();
        drop(callers);
        process.end();
        let text = std::fs::read_to_string(&out).unwrap();
        let total = text.lines().rev().find(|line| line.ends_with("total"));
        let words: Vec<_> = total.expect("strace sums up").split_whitespace().collect();
        let calls: f64 = words[3].parse().unwrap();
        calls / (MANY * CONNECTIONS) as f64
    }

    /// Kibibytes of a connection that has carried a request and is kept.
    fn idle_connection(&self, config: &Path) -> f64 {
        let process = start(&[self.podgate()], config);
        // What the process needs anyway is there before the first reading.
        let mut warm = Callers::connect(process.address, CONNECTIONS, Kind::Poll);
        warm.rounds(FEW);
        let before = resident(process.child.id());
        let idle: Vec<_> = (0..IDLE / CONNECTIONS)
            .map(|_| {
                let mut callers = Callers::connect(process.address, CONNECTIONS, Kind::Poll);
                callers.rounds(1);
                callers
            })
            .collect();
        let after = resident(process.child.id());
        let connections = idle.len() * CONNECTIONS;
        drop((warm, idle));
        process.end();
        (after - before) / connections as f64
    }
}

/// Serves as podgate does, and writes at the end how often it allocated, and how many bytes.
fn gateway(config: &str, out: &str) {
    let source = Source {
        file: Some(config.into()),
        ..Source::default()
    };
    let config = source.load().unwrap_or_else(|faults| panic!("{faults}"));
    let levels = Levels::start(&config.log);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut terminate = {
        let _inside = runtime.enter();
        signal(SignalKind::terminate()).unwrap()
    };
    let beside = Beside {
        access_log: Some(Box::new(std::io::stdout())),
        source,
        levels,
        ..Beside::default()
    };
    let running = serve::start_with(config, beside).unwrap();
    let (places, admin) = (running.places(), running.admin);
    eprintln!("ready on {places}, admin on http://{admin}, to count");
    runtime.block_on(terminate.recv());
    running.drain();
    let stats = ALLOCATOR.stats();
    let counts = [
        stats.allocations + stats.reallocations,
        stats.bytes_allocated,
    ];
    std::fs::write(out, json!(counts).to_string()).unwrap();
}

/// Resident kilobytes of a process.
fn resident(id: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.expect("Linux tells").split_whitespace().next();
    words.unwrap().parse().unwrap()
}

fn main() -> ExitCode {
    let flags: Vec<String> = std::env::args().skip(1).collect();
    if let [first, out, _serve, _flag, config] = &flags[..]
        && first == GATEWAY
    {
        gateway(config, out);
        return ExitCode::SUCCESS;
    }
    if cfg!(debug_assertions) {
        eprintln!("benches/count counts what a release build does");
        return ExitCode::FAILURE;
    }
    let has = |flag: &str| flags.iter().any(|given| given == flag);
    let missing = ["valgrind", "strace"].map(|tool| {
        let found = Command::new(tool)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        (tool, found.is_err())
    });
    for (tool, missing) in missing {
        if missing {
            eprintln!("benches/count needs {tool}: apt-get install {tool}");
            return ExitCode::FAILURE;
        }
    }
    let folder = folder("count");
    let podgate = folder.join("podgate");
    let _ = std::fs::remove_file(&podgate); // one that still runs cannot be written over
    std::fs::copy(env!("CARGO_BIN_EXE_podgate"), &podgate).unwrap();
    let upstream = upstream();
    let on = config(&folder, upstream, "enforce", true);
    let silent = config(&folder, upstream, "enforce", false);
    let off = config(&folder, upstream, "disabled", false);
    let bench = Bench { folder, podgate };

    let mut figures = json!({
        "instructions": bench.instructions(&on, Kind::Poll).round(),
        "system_calls": (bench.system_calls(&on, Kind::Poll) * 100.0).round() / 100.0,
    });
    if !has("--ratchet") {
        let [allocations, bytes] = bench.allocations(&on, Kind::Poll);
        figures["allocations"] = json!((allocations * 100.0).round() / 100.0);
        figures["allocated_bytes"] = json!(bytes.round());
        for (name, config, kind) in [
            ("fields_off", &silent, Kind::Poll),
            ("limiter_off", &off, Kind::Poll),
            ("bare", &on, Kind::Bare),
            ("submit_1k", &on, Kind::Submit(1_000)),
        ] {
            let instructions = bench.instructions(config, kind).round();
            figures[format!("instructions_{name}")] = json!(instructions);
        }
        if nginx::is_here() {
            for (name, kind) in [("nginx", Kind::Poll), ("nginx_bare", Kind::Bare)] {
                let start = |words: &[&str]| nginx::start(words, &bench.folder, upstream);
                let instructions = bench.instructions_of(kind, start).round();
                figures[format!("instructions_{name}")] = json!(instructions);
            }
        }
        figures["idle_connection_kib"] = json!((bench.idle_connection(&on) * 10.0).round() / 10.0);
    }
    if has("--json") {
        println!("{figures}");
    } else {
        print!("{}", table(&figures));
    }
    match has("--ratchet") {
        true => ratchet(&figures),
        false => ExitCode::SUCCESS,
    }
}

fn table(figures: &Value) -> String {
    let mut table = String::new();
    for (name, figure) in figures.as_object().into_iter().flatten() {
        let _ = writeln!(table, "{name:28} {figure:>10}");
    }
    table
}

fn ratchet(figures: &Value) -> ExitCode {
    let kept: Value = serde_json::from_slice(&std::fs::read(RATCHET).unwrap()).unwrap();
    let mut worse = false;
    for name in ["instructions", "system_calls"] {
        let (now, then) = (
            figures[name].as_f64().unwrap(),
            kept[name].as_f64().unwrap(),
        );
        let percent = (now / then - 1.0) * 100.0;
        println!("{name}: {now} against {then} kept ({percent:+.1}%)");
        worse |= percent > SLACK;
    }
    if worse {
        println!(
            "worse by over {SLACK}%: find out why, or say in benches/count/kept.json what it buys"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
