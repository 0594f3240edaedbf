//! What does podgate cost beside nginx? CPU time, throughput, latency and memory of both before the
//! same upstream, in one run, with limits, metrics and access log on for both.
//!
//! `cargo bench --bench overhead` prints a table, `-- --json` one JSON object. `--rounds N` and
//! `--seconds N` say how long, `--only poll,tls-in` and `--workers 1` what of it, and `--podgate FILE`
//! measures another binary: `cargo bench` builds with what tests need, `cargo build --release` without.
//! `--wait N` has each measurement wait up to N seconds for a quiet machine. It needs Linux, two cores,
//! and nginx on the PATH (Debian: `apt-get install nginx`; `taskset` is in util-linux).
//!
//! In each round both proxies start anew and take turns to be first: a warm-up, all connections busy
//! for `--seconds`, then as long at a fixed rate. With one worker the proxy is held to core 1, and who
//! asks and who answers share core 0; with two nothing is held anywhere. CPU time is that of the proxy
//! and its children, the kernel's for them included. Latency is counted from when a request was due,
//! whether or not it could be sent then. Ratios are of figures of the same round; seconds differ from
//! machine to machine and from hour to hour, so quote no figure without its pair. A round that other
//! processes disturbed shows in `others` and `steal`; throughput that the proxy did not bound shows in
//! `proxy`, which is then below the cores it could have.
//!
//! An answer that is not the upstream's ends it all, as does a request that a proxy has not counted,
//! or not written to its access log.

mod certificate;
mod generator;
mod nginx;
#[path = "../peer/mod.rs"]
mod peer;
mod podgate;
mod proxy;
mod report;
mod role;
mod upstream;
mod usage;
mod wire;
mod workload;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde_json::json;

use generator::Order;
use proxy::{Proxy, Setup};
use report::{Cell, Round};
use role::Role;
use workload::Workload;

/// The core of who asks and who answers, and the proxy's.
const OTHERS_CORE: usize = 0;
const PROXY_CORE: usize = 1;
/// Before anything is measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// What podgate costs beside nginx.
#[derive(Parser)]
struct Cli {
    /// Pairs of measurements, each workload's.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Only these workloads.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Workload>,
    /// How many workers the proxies have.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    workers: Vec<usize>,
    /// Seconds that each measurement waits, at most, for others to leave the machine alone.
    #[arg(long, default_value_t = 0)]
    wait: u64,
    /// The podgate that is measured.
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_podgate"))]
    podgate: PathBuf,
    /// One JSON object in the place of the table.
    #[arg(long)]
    json: bool,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["upstream", folder, tls] => {
            let tls = (tls == "tls").then(|| certificate::server(Path::new(folder)));
            upstream::main(tls)
        }
        ["generator", folder, workload, address] => {
            let workload = Workload::from_str(workload, false).unwrap();
            let tls = workload
                .tls_in()
                .then(|| certificate::client(Path::new(folder)));
            generator::main(address.parse().unwrap(), workload, tls)
        }
        _ => return measure(&Cli::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", arguments[0]);
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> ExitCode {
    let version = |program: &Path, flag| {
        let output = Command::new(program).arg(flag).output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&said).trim().to_owned())
    };
    let Some(nginx) = version(Path::new("nginx"), "-v") else {
        eprintln!("benches/overhead needs nginx: apt-get install nginx");
        return ExitCode::FAILURE;
    };
    if version(Path::new("taskset"), "--version").is_none() {
        eprintln!("benches/overhead needs taskset: apt-get install util-linux");
        return ExitCode::FAILURE;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores <= PROXY_CORE {
        eprintln!("benches/overhead needs a core for the proxy and one for the others");
        return ExitCode::FAILURE;
    }
    let own = cli.podgate == Path::new(env!("CARGO_BIN_EXE_podgate"));
    if own && cfg!(debug_assertions) {
        eprintln!("benches/overhead measures a release build, or the one of --podgate FILE");
        return ExitCode::FAILURE;
    }
    let podgate = version(&cli.podgate, "--version").expect("podgate tells its version");
    let folder = peer::folder("overhead");
    certificate::make(&folder);

    let only: &[Workload] = match cli.only.is_empty() {
        true => Workload::value_variants(),
        false => &cli.only,
    };
    let cells: Vec<_> = only
        .iter()
        .flat_map(|workload| cli.workers.iter().map(|workers| (*workload, *workers)))
        .map(|(workload, workers)| cell(cli, &folder, workload, workers))
        .collect();
    let (rounds, seconds) = (cli.rounds, cli.seconds);
    if cli.json {
        let cells: Vec<_> = cells.iter().map(Cell::json).collect();
        let report = json!({
            "nginx": nginx, "podgate": podgate, "cores": cores,
            "rounds": rounds, "seconds": seconds, "cells": cells,
        });
        println!("{report}");
    } else {
        println!(
            "{podgate}, {nginx}, {cores} cores; medians of {rounds} rounds of {seconds} s, \
             ratios round by round (min–max)\n"
        );
        print!("{}", report::table(&cells));
    }
    ExitCode::SUCCESS
}

fn cell(cli: &Cli, folder: &Path, workload: Workload, workers: usize) -> Cell {
    // More workers than one leave no core to the others.
    let held = |core| (workers == 1).then_some(core);
    let tls = if workload.tls_out() { "tls" } else { "clear" };
    let mut upstream = Role::start(held(OTHERS_CORE), &["upstream", text(folder), tls]);
    let setup = Setup {
        folder,
        podgate: &cli.podgate,
        workload,
        workers,
        upstream: upstream.line().parse().unwrap(),
        core: held(PROXY_CORE),
    };
    let time = Duration::from_secs(cli.seconds);
    let mut rounds = Vec::new();
    for number in 0..cli.rounds {
        let (title, all) = (workload.title(), cli.rounds);
        let one = |proxy: Proxy| {
            let round = number + 1;
            eprint!(
                "{title}, workers: {workers}, round {round}/{all}, {}: ",
                proxy.name()
            );
            wait_for_quiet(cli.wait);
            let figures = round_of(proxy, &setup, &upstream, time);
            eprintln!(
                "{:.2} CPU s/100k, {:.0}/s, p99 {:.0} us, others {:.2} cores",
                figures.cpu, figures.throughput, figures.p99, figures.others
            );
            figures
        };
        // Neither is always the one that finds the machine as the other has left it.
        let pair = match number % 2 {
            0 => Proxy::BOTH.map(one),
            _ => {
                let podgate = one(Proxy::Podgate);
                [one(Proxy::Nginx), podgate]
            }
        };
        rounds.push(pair);
    }
    Cell {
        workload,
        workers,
        rounds,
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path is text")
}

/// Returns once others take less than a tenth of a core, after so many seconds at the latest.
fn wait_for_quiet(seconds: u64) {
    for _ in 0..seconds {
        let before = usage::machine();
        std::thread::sleep(Duration::from_secs(1));
        if (usage::machine() - before).busy < Duration::from_millis(100) {
            return;
        }
    }
}

fn round_of(proxy: Proxy, setup: &Setup<'_>, upstream: &Role, time: Duration) -> Round {
    let running = proxy.start(setup);
    let (workload, address) = (setup.workload.name(), running.address.to_string());
    let mut generator = Role::start(
        setup.core.map(|_| OTHERS_CORE),
        &["generator", text(setup.folder), &workload, &address],
    );
    assert_eq!(generator.line(), "ready");
    let warm = generator.order(&Order::Saturate(WARM_UP));

    let processes = usage::family(running.id);
    let mut part = vec![
        upstream.child.id(),
        generator.child.id(),
        std::process::id(),
    ];
    part.extend(&processes);
    let (machine, ours) = (usage::machine(), usage::cpu(&part));
    let before = usage::cpu(&processes);
    let busy = generator.order(&Order::Saturate(time));
    let cpu = usage::cpu(&processes) - before;
    let paced = generator.order(&Order::Pace(setup.workload.rate(), time));
    let ours = usage::cpu(&part) - ours;
    let machine = usage::machine() - machine;
    let memory = usage::peak_memory(&processes);
    drop(generator);
    running.end(warm.requests + busy.requests + paced.requests);

    let elapsed = (busy.elapsed + paced.elapsed).as_secs_f64();
    let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
    Round {
        cpu: cpu.as_secs_f64() / busy.requests as f64 * 1e5,
        throughput: busy.requests as f64 / busy.elapsed.as_secs_f64(),
        p50: microseconds(paced.p50),
        p99: microseconds(paced.p99),
        memory: memory as f64 / 1024.0,
        others: machine.busy.saturating_sub(ours).as_secs_f64() / elapsed,
        steal: machine.steal.as_secs_f64() / elapsed,
    }
}
