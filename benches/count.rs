//! What a request costs in things that can be counted: they repeat to a percent on a busy machine,
//! where seconds do not.
//!
//! `cargo bench --bench count` prints user instructions (by valgrind) and system calls (by strace) of
//! a small request, with the limiter on and off, and the memory of an idle connection. `-- --ratchet`
//! compares the first two with `benches/count.json` and fails where one is over 3% worse.
//! `-- --json` prints the figures as one JSON object.

mod peer;

use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use peer::{Callers, Kind, Process, config, folder, upstream};
use serde_json::{Value, json};

/// Connections busy at once.
const CONNECTIONS: usize = 64;
/// Requests on each before anything is counted, and with what is counted.
const FEW: usize = 20;
const MANY: usize = 100;
/// Idle connections held open.
const IDLE: usize = 2_000;
/// What a figure may be worse than the ratchet, in percent.
const SLACK: f64 = 3.0;
const RATCHET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/count.json");

/// User instructions of a request: the difference of a long run and a short one under valgrind.
fn instructions(folder: &Path, config: &Path, kind: Kind) -> f64 {
    let out = folder.join("callgrind.out");
    let tool = [
        "valgrind".to_owned(),
        "--tool=callgrind".to_owned(),
        format!("--callgrind-out-file={}", out.display()),
    ];
    let run = |rounds| {
        let process = Process::podgate(&tool, config, Stdio::null());
        let mut callers = Callers::connect(process.address, CONNECTIONS, kind);
        callers.rounds(rounds);
        drop(callers);
        process.end();
        let text = std::fs::read_to_string(&out).unwrap();
        let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
        let totals: f64 = totals.expect("callgrind sums up").trim().parse().unwrap();
        totals
    };
    (run(MANY) - run(FEW)) / ((MANY - FEW) * CONNECTIONS) as f64
}

/// System calls of a request, counted while nothing else happens.
fn system_calls(folder: &Path, config: &Path, kind: Kind) -> f64 {
    let out = folder.join("strace.out");
    let process = Process::podgate(&[], config, Stdio::null());
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

/// Resident kilobytes of a process.
fn resident(id: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.expect("Linux tells").split_whitespace().next();
    words.unwrap().parse().unwrap()
}

/// Kibibytes of a connection that has carried a request and is kept.
fn idle_connection(config: &Path) -> f64 {
    let process = Process::podgate(&[], config, Stdio::null());
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

fn main() -> ExitCode {
    let flags: Vec<String> = std::env::args().skip(1).collect();
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
    let upstream = upstream();
    let on = config(&folder, upstream, "enforce", 1);
    let off = config(&folder, upstream, "disabled", 1);

    let mut figures = json!({
        "instructions": instructions(&folder, &on, Kind::Poll).round(),
        "system_calls": (system_calls(&folder, &on, Kind::Poll) * 100.0).round() / 100.0,
    });
    if !has("--ratchet") {
        figures["instructions_limiter_off"] =
            json!(instructions(&folder, &off, Kind::Poll).round());
        figures["instructions_submit_1k"] =
            json!(instructions(&folder, &on, Kind::Submit(1_000)).round());
        figures["idle_connection_kib"] = json!((idle_connection(&on) * 10.0).round() / 10.0);
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
        println!("worse by over {SLACK}%: find out why, or say in benches/count.json what it buys");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
