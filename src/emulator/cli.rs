//! `podgate emulate`.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::limits::{Group, Limit, Limits};
use super::policer::Policer;
use super::policer_name::parse_span;
use super::site::Fleet;
use super::{Config, Emulator};

/// Emulate the Runpod Serverless job API, limits included.
#[derive(Args, Clone, Debug)]
pub struct EmulateArgs {
    /// Where to listen; port 0 picks one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8500")]
    pub listen: SocketAddr,
    /// Threads.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// An endpoint and its simulated workers; repeatable. Any endpoint id unless given.
    #[arg(long = "endpoint", value_name = "NAME=WORKERS", value_parser = parse_endpoint)]
    pub endpoints: Vec<(String, u32)>,
    /// How the limits count: sliding-log, closed-window, fixed-window[:phase=3s],
    /// token-bucket[:depth=250,refill=1000], weighted-counter[:phase=3s] or none.
    #[arg(long, value_name = "NAME", default_value = "sliding-log")]
    pub policer: Policer,
    /// Another limit than the documented one, for example run=100/1s or run=100/1s/20 (at most 20 in
    /// flight); repeatable.
    #[arg(long = "limit", value_name = "GROUP=REQUESTS/WINDOW[/CONCURRENCY]", value_parser = parse_limit)]
    pub limits: Vec<(Group, Limit)>,
    /// An API key; repeatable. Any non-empty key unless given.
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
}

fn parse_endpoint(text: &str) -> Result<(String, u32), String> {
    let (name, workers) = text
        .split_once('=')
        .ok_or("write NAME=WORKERS, for example demo=10")?;
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || !name.bytes().all(letter) {
        return Err("a name is made of letters, digits, `-` and `_`".to_owned());
    }
    match workers.parse() {
        Ok(workers) if workers <= 100_000 => Ok((name.to_owned(), workers)),
        _ => Err("WORKERS is a whole number up to 100000".to_owned()),
    }
}

fn parse_limit(text: &str) -> Result<(Group, Limit), String> {
    let form = || "write GROUP=REQUESTS/WINDOW or GROUP=REQUESTS/WINDOW/CONCURRENCY".to_owned();
    let (group, limit) = text.split_once('=').ok_or_else(form)?;
    let group = Group::named(group).ok_or_else(|| {
        let known = Group::ALL.map(Group::name).join(", ");
        format!("no group `{group}`; known are {known}")
    })?;
    let mut parts = limit.split('/');
    let requests = parts.next().and_then(|part| part.parse().ok());
    let window = parts.next().and_then(parse_span);
    let concurrency = parts.next().map(|part| part.parse().map_err(|_| form()));
    match (requests, window, parts.next()) {
        (Some(requests), Some(window), None) if !window.is_zero() => {
            let limit = Limit {
                requests: Some(requests),
                window,
                concurrency: concurrency.transpose()?,
                policer: None,
            };
            Ok((group, limit))
        }
        _ => Err(form()),
    }
}

impl EmulateArgs {
    fn config(&self) -> Config {
        let fleet = |workers| Fleet {
            workers,
            ..Fleet::default()
        };
        let mut limits = Limits::default();
        for (group, limit) in &self.limits {
            limits[*group] = *limit;
        }
        Config {
            policer: self.policer,
            limits,
            endpoints: self
                .endpoints
                .iter()
                .map(|(name, workers)| (name.clone(), fleet(*workers)))
                .collect(),
            keys: self.keys.iter().cloned().collect(),
            ..Config::default()
        }
    }
}

/// Runs until SIGINT or SIGTERM: 0; 1 if it cannot run.
pub fn main(args: &EmulateArgs) -> ExitCode {
    match run(args.listen, args.workers, args.config()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("podgate emulate: {fault}");
            ExitCode::FAILURE
        }
    }
}

/// Serves `config` on `listen` with so many threads, until SIGINT or SIGTERM.
pub fn run(listen: SocketAddr, threads: u16, config: Config) -> io::Result<()> {
    let runtime = runtime()?;
    let listener = {
        let _inside = runtime.enter();
        bind(listen)?
    };
    let address = listener.local_addr()?;
    let emulator = Emulator::new(config);
    let (stop, stopped) = watch::channel(());
    let mut helpers = Vec::new();
    for _ in 1..threads {
        let listener = listener.try_clone()?;
        let (emulator, stopped) = (emulator.clone(), stopped.clone());
        helpers.push(std::thread::spawn(move || {
            serve_here(emulator, listener, stopped)
        }));
    }
    let outcome = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let listener = TcpListener::from_std(listener)?;
        eprintln!("podgate emulator ready on http://{address}");
        let ended = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        emulator.serve(listener, ended).await;
        Ok(())
    });
    drop(stop);
    for helper in helpers {
        // A helper that panicked has said so.
        let _ = helper.join();
    }
    outcome
}

fn serve_here(
    emulator: Emulator,
    listener: std::net::TcpListener,
    mut stopped: watch::Receiver<()>,
) -> io::Result<()> {
    runtime()?.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        // An error means the sender is gone, which is the signal.
        let ended = async { while stopped.changed().await.is_ok() {} };
        emulator.serve(listener, ended).await;
        Ok(())
    })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// With room for 4096 connections that are not accepted yet: the default of 128 makes a burst of
/// connects wait a second.
fn bind(listen: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = if listen.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    socket.listen(4096)?.into_std()
}
