//! A running podgate: worker threads with a runtime each, the admin door, and the way down.

mod taking;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::access_log::AccessLog;
use crate::admin::page::Page;
use crate::admin::{Admin, Current};
use crate::config::Config;
use crate::config::listen::Address;
use crate::config::secret::SecretError;
use crate::gateway::live::{Live, LiveError};
use crate::gateway::{Gateway, Shared};
use crate::levels::Levels;
use crate::listener::listening::{ListenError, Listening, passed_to};
use crate::listener::room::Room;
use crate::listener::sockets::{self, Passed, Socket};
use crate::listener::{self, Door};
use crate::metrics::Metrics;
use crate::otlp::Spans;
use crate::reload::{Reloads, Source, Watch};
use crate::serve::taking::Taking;
use crate::state::{Keeper, State, StateError};

/// What of the drain is left, at most, when those who still wait are sent away: for their answers.
const LAST_WORD: Duration = Duration::from_secs(1);
/// One in so many of the files that may be open is kept from clients, for what is asked upstream.
const FILES_KEPT: usize = 4;
/// And so many for podgate itself: sockets, runtimes, logs.
const OWN_FILES: usize = 32;

/// Why podgate did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot listen on {address} (`admin`): {why}")]
    Admin { address: SocketAddr, why: io::Error },
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error("`admin_token`: {0}")]
    Token(#[from] SecretError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the metrics cannot be declared: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("a thread or runtime cannot be made: {0}")]
    Thread(io::Error),
}

/// A podgate that serves. Dropped it stops at once; [`Running::drain`] sees its clients out first.
pub struct Running {
    pub shared: Arc<Shared>,
    /// Where clients come in. Who is put in here is served from then on, who is taken away is seen
    /// out as at the end.
    pub listeners: watch::Sender<Vec<Arc<Listening>>>,
    pub admin: SocketAddr,
    leaving: watch::Sender<bool>,
    closing: watch::Sender<bool>,
    workers: Vec<JoinHandle<()>>,
    /// Fails once none of them has a client left.
    drained: mpsc::Receiver<()>,
    access_log: AccessLog,
    spans: Spans,
    keeper: Option<Keeper>,
    reloads: Reloads,
}

/// What a podgate has beside its configuration. By default nothing: no access log, no file to read
/// again, and a log of its own that stays as it is.
#[derive(Default)]
pub struct Beside {
    pub access_log: Option<Box<dyn io::Write + Send>>,
    pub source: Source,
    pub levels: Levels,
    /// Sockets that were listening before; those that fit are taken.
    pub passed: Passed,
}

/// Binds, starts the workers, and returns once requests are taken.
///
/// # Errors
/// [`StartError`]: nothing was started.
pub fn start(config: Config) -> Result<Running, StartError> {
    start_with(config, Beside::default())
}

/// Like [`start`], with what there is beside.
///
/// # Errors
/// [`StartError`]: nothing was started.
pub fn start_with(config: Config, beside: Beside) -> Result<Running, StartError> {
    let mut passed = beside.passed;
    // Before anything is bound: whoever has the directory may serve on these addresses too.
    let state = config.state_dir.as_deref().map(State::take).transpose()?;
    let metrics = Metrics::new()?;
    let (listeners, admin) = sockets(&config, &mut passed, &metrics)?;
    let admin_at = admin.local_addr().map_err(StartError::Thread)?;
    let listeners = watch::Sender::new(listeners);
    let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let workers = config.workers.unwrap_or_else(cores).get();
    let room = Arc::new(Room::new(places(config.limits.connections)));
    let dropped = metrics.log_dropped().clone();
    let access_log = match beside.access_log {
        Some(sink) => AccessLog::start(config.log.format, dropped, sink),
        None => Ok(AccessLog::default()),
    };
    let access_log = access_log.map_err(StartError::Thread)?;
    let spans = Spans::start(config.tracing.otlp.as_ref(), &metrics);
    let spans = spans.map_err(StartError::Thread)?;
    let before = state
        .as_ref()
        .map(|state| state.recall(config.upstream.margin));
    let (watch, reloads) = Watch::new(beside.source, config.clone(), metrics.clone());
    if let Some(token) = &config.admin_token {
        token.resolve()?;
    }
    let live = Live::new(config, workers, None)?;
    let before = before.unwrap_or_default();
    let teller = (access_log.clone(), spans.clone());
    let shared = Shared::new(live, metrics.clone(), teller, &before);
    let shared = Arc::new(shared);
    let keeper = state.map(|state| state.keep(shared.admission.clone()));
    let keeper = keeper.transpose()?;
    let (leaving, left) = watch::channel(false);
    let (closing, closed) = watch::channel(false);
    // Closed once no worker serves any more.
    let (all, serving) = watch::channel(());
    let all = Arc::new(all);
    let (draining, drained) = mpsc::channel::<()>();

    let mut threads = Vec::new();
    for number in 0..workers {
        let door = Door {
            gateway: Gateway::new(shared.clone(), number),
            metrics: metrics.clone(),
            room: room.clone(),
        };
        let (listeners, closed) = (listeners.subscribe(), closed.clone());
        let (all, serving, draining) = (all.clone(), serving.clone(), draining.clone());
        threads.push(spawn(format!("worker-{number}"), async move {
            door.serve(listeners, closed).await;
            // What wakes a lane runs where somebody waited first: the others wait still.
            drop((serving, draining));
            all.closed().await;
        })?);
    }
    drop(serving);
    let of = shared.clone();
    let open = listeners.subscribe();
    let config: Current = Arc::new(move || of.live().config.clone());
    let page = Page::new(
        metrics.clone(),
        shared.admission.clone(),
        closed.clone(),
        Arc::new(move || {
            open.borrow()
                .first()
                .map_or_else(String::new, |first| first.to_string())
        }),
        config.clone(),
    );
    let door = Admin {
        metrics: metrics.clone(),
        admission: shared.admission.clone(),
        config,
        leaving: left,
        page,
        reloads: reloads.clone(),
        levels: beside.levels.clone(),
    };
    let taking = Taking {
        started: shared.live().config.clone(),
        shared: shared.clone(),
        listeners: listeners.clone(),
        levels: beside.levels,
        closing: closed,
        metrics,
    };
    threads.push(spawn("admin".into(), async move {
        tokio::select! {
            served = door.serve(admin) => {
                if let Err(error) = served {
                    tracing::error!(%error, "the admin door cannot use its socket");
                }
            }
            () = watch.run(|config| taking.take(config)) => {}
            // Until the last client is seen out there is something to see.
            () = all.closed() => {}
        }
    })?);
    Ok(Running {
        shared,
        listeners,
        admin: admin_at,
        leaving,
        closing,
        workers: threads,
        drained,
        access_log,
        spans,
        keeper,
        reloads,
    })
}

type Sockets = (Vec<Arc<Listening>>, TcpListener);

/// What podgate listens on: for clients and for operators.
fn sockets(config: &Config, passed: &mut Passed, metrics: &Metrics) -> Result<Sockets, StartError> {
    let runtime = runtime().map_err(StartError::Thread)?;
    let bound = {
        // Sockets are made inside a runtime, and handed to the ones that serve them.
        let _inside = runtime.enter();
        bind(config, passed, metrics)
    };
    // Whoever starts podgate from a runtime of its own may not wait for another one to end.
    runtime.shutdown_background();
    if passed.left() > 0 {
        let many = passed.left();
        tracing::warn!("{many} of the sockets that were passed belong to no listener: closed");
    }
    bound
}

fn bind(config: &Config, passed: &mut Passed, metrics: &Metrics) -> Result<Sockets, StartError> {
    let address = config.admin;
    let admin = match passed.at(&Address::Tcp(address)) {
        Some(Socket::Tcp(listener)) => Ok(listener),
        _ => sockets::bind(address),
    };
    let admin = admin.map_err(|why| StartError::Admin { address, why })?;
    let sockets = passed_to(&config.listen, passed);
    let listeners = config.listen.iter().zip(sockets);
    let listeners = listeners.map(|(listener, socket)| {
        Listening::open(listener, socket, config.guards_a_key(), metrics).map(Arc::new)
    });
    let listeners: Result<Vec<_>, _> = listeners.collect();
    Ok((listeners?, admin))
}

/// How many clients may be connected: as many as is wanted, if so many files can be open. A crowd
/// that takes them all would leave none for those who are served.
fn places(wanted: u32) -> usize {
    let wanted = wanted as usize;
    let files = listener::raise_open_files().and_then(|files| usize::try_from(files).ok());
    let Some(files) = files else { return wanted };
    let most = (files - files / FILES_KEPT)
        .saturating_sub(OWN_FILES)
        .max(1);
    if most < wanted {
        tracing::warn!(
            "only {files} files may be open: {most} clients at most, and not the {wanted} of \
             `limits.connections`"
        );
    }
    wanted.min(most)
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// A thread with a runtime of its own.
fn spawn(
    name: String,
    work: impl Future<Output = ()> + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let runtime = runtime().map_err(StartError::Thread)?;
    let thread = std::thread::Builder::new().name(name);
    thread
        .spawn(move || runtime.block_on(work))
        .map_err(StartError::Thread)
}

impl Running {
    /// Asks for the configuration to be read again.
    pub fn reloads(&self) -> Reloads {
        self.reloads.clone()
    }

    /// Where the first listener that has an address listens, with the port that was bound.
    pub fn address(&self) -> Option<SocketAddr> {
        let listeners = self.listeners.borrow();
        listeners.iter().find_map(|listening| listening.at().tcp())
    }

    /// Where clients come in, for people.
    pub fn places(&self) -> String {
        let listeners = self.listeners.borrow();
        let places: Vec<_> = listeners.iter().map(|place| place.to_string()).collect();
        places.join(", ")
    }

    /// Says on the admin port that callers are to go elsewhere, and takes their requests all the same:
    /// whoever sends them here learns of it late.
    pub fn leave(&self) {
        self.leaving.send_replace(true);
    }

    /// Takes nothing new, and returns once what was taken has ended or the drain's bound is over.
    /// Whoever still waits for its turn shortly before is told, not cut.
    pub fn drain(self) {
        self.leave();
        // Before the workers let go of theirs: whom the kernel lets in after that, nobody would see.
        self.listeners.send_replace(Vec::new());
        self.closing.send_replace(true);
        let drain = self.shared.live().config.timeouts.drain;
        let waits = drain - (drain / 10).min(LAST_WORD);
        if self.drained.recv_timeout(waits) == Err(RecvTimeoutError::Timeout) {
            self.shared.end_waiting();
        }
        for worker in self.workers {
            // A worker that panicked has said so itself.
            let _ = worker.join();
        }
        if let Some(keeper) = self.keeper {
            keeper.finish();
        }
        self.spans.close();
        self.access_log.close();
    }
}
