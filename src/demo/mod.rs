//! `podgate demo`: an emulated API, the gateway before it, and callers of different appetites, all
//! on loopback. What is shown is what the emulator saw.

pub mod client;
mod callers;
mod report;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::config::Config;
use crate::config::overrides::{Given, Overrides};
use crate::demo::callers::Tally;
use crate::demo::report::{Figures, Upstream};
use crate::emulator::site::Fleet;
use crate::emulator::{self, Emulator};
use crate::serve::{self, StartError};

/// Job slots of the emulated endpoint: its queue never fills, so that what is refused was refused
/// for its number.
const FLEET: u32 = 100;
/// How long each half of a comparison runs unless said otherwise.
const COMPARED_FOR: u64 = 30;

/// Show the gateway at work before an emulated API: no account, no configuration.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// End after this many seconds; until ctrl-C unless given.
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: Option<u64>,
    /// First let the same callers loose on the same limits without podgate, 30 s each unless `--for`
    /// says otherwise.
    #[arg(long)]
    pub compare: bool,
}

#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{0}")]
    Config(String),
}

/// Runs until it is told to end: 0; 1 if it cannot run, or if the upstream answered 429 through
/// podgate: then it has not shown what it claims.
pub fn main(args: &DemoArgs) -> ExitCode {
    match run(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("podgate demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &DemoArgs) -> Result<bool, DemoError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if !args.compare {
        let length = args.seconds.map(Duration::from_secs);
        let with = through_podgate(&runtime, length)?;
        println!("\n{}", report::summary(&with));
        return Ok(with.upstream.refused() == 0);
    }
    let length = Some(Duration::from_secs(args.seconds.unwrap_or(COMPARED_FOR)));
    println!("Without podgate: every caller talks to the API itself.\n");
    let emulated = Emulated::start(&runtime)?;
    let without = watch(&runtime, &emulated, emulated.address, None, length)?;
    drop(emulated);
    println!("\nWith podgate: the same callers, the same limits.\n");
    let with = through_podgate(&runtime, length)?;
    println!("\n{}", report::comparison(&without, &with));
    Ok(with.upstream.refused() == 0)
}

fn through_podgate(runtime: &Runtime, length: Option<Duration>) -> Result<Figures, DemoError> {
    let emulated = Emulated::start(runtime)?;
    let given = |name: &str, text: String| Some(Given::new(name, text));
    let overrides = Overrides {
        listen: given("listen", "127.0.0.1:0".into()),
        admin: given("admin", "127.0.0.1:0".into()),
        upstream: given("upstream", format!("http://{}", emulated.address)),
        workers: given("workers", "1".into()),
    };
    let config = Config::preset()
        .with(&overrides)
        .map_err(|faults| DemoError::Config(faults.to_string()))?;
    let running = serve::start(config)?;
    let nowhere = || io::Error::other("podgate listens nowhere");
    let address = running.address().ok_or_else(nowhere)?;
    println!(
        "  page       http://{admin}/\n  gateway    http://{address}\n  lanes      http://{admin}/lanes\n  \
         metrics    http://{admin}/metrics\n  emulator   http://{}/__emulator/stats\n",
        emulated.address,
        admin = running.admin
    );
    let shared = running.shared.clone();
    let waiting = move || {
        let lanes = shared.admission.list();
        lanes
            .iter()
            .map(|listed| listed.lane.view().snapshot.waiting)
            .sum()
    };
    let figures = watch(runtime, &emulated, address, Some(&waiting), length)?;
    running.drain();
    Ok(figures)
}

/// An emulator on a thread of its own, so that its answers do not wait for ours.
struct Emulated {
    emulator: Emulator,
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Emulated {
    fn start(runtime: &Runtime) -> io::Result<Self> {
        let fleet = Fleet {
            workers: FLEET,
            ..Fleet::default()
        };
        let emulator = Emulator::new(emulator::Config {
            fleet,
            ..emulator::Config::default()
        });
        let listener = {
            let _inside = runtime.enter();
            crate::listener::sockets::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?
        };
        let address = listener.local_addr()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let serving = emulator.clone();
        let own = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("emulator".into())
            .spawn(move || {
                own.block_on(async move {
                    if let Ok(listener) = TcpListener::from_std(listener) {
                        serving.serve(listener, async { drop(stopped.await) }).await;
                    }
                });
            })?;
        Ok(Self {
            emulator,
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked it has said so.
            let _ = thread.join();
        }
    }
}

/// Lets the callers loose on `target` and prints a line each second.
fn watch(
    runtime: &Runtime,
    emulated: &Emulated,
    target: SocketAddr,
    waiting: Option<&dyn Fn() -> usize>,
    length: Option<Duration>,
) -> Result<Figures, DemoError> {
    runtime.block_on(async {
        let tallies = callers::start(target).await;
        let started = now();
        let end = length.map(|length| started + length);
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks.tick().await;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut lines = report::Lines::default();
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let seen = Upstream::read(&emulated.emulator);
                    let waiting = waiting.map(|waiting| waiting());
                    println!("{}", lines.next(&seen, waiting, shed(&tallies.each)));
                }
                () = sleep_until(end.unwrap_or(started)), if end.is_some() => break,
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
            }
        }
        // Read before the callers go: what they tear down is no fault of anybody's.
        let upstream = Upstream::read(&emulated.emulator);
        let ran = now().saturating_duration_since(started);
        let callers = tallies.each.iter().map(|tally| tally.read()).collect();
        tallies.stop().await;
        Ok(Figures {
            ran,
            upstream,
            callers,
        })
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long the demo ran is for people to read"
)]
fn now() -> Instant {
    Instant::now()
}

fn shed(tallies: &[Arc<Tally>]) -> u64 {
    tallies.iter().map(|tally| tally.read().refused).sum()
}
