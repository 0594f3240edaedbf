//! What outlives the process: the lanes as they stood at its end, and a heartbeat that tells the
//! next one when it died without saying so.
//!
//! One process at a time: the directory is locked, and a second one waits. What cannot be read
//! counts as a death just now: a window too few is cheaper than a window too many.

mod file;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::admission::{Admission, Before, Remembered};
use crate::limit::memory::Past;
use crate::state::file::{Written, WrittenLane};

/// How often a process says that it lives (semantics, section 3).
const BEAT: Duration = Duration::from_secs(1);
/// How often whoever waits for the lock tries again.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Why the state cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("`state_dir` {}: {why}", path.display())]
pub struct StateError {
    path: PathBuf,
    why: io::Error,
}

/// A state directory that is ours.
pub struct State {
    folder: PathBuf,
    /// Held for as long as this lives.
    _lock: File,
}

impl State {
    /// Takes the directory, made if it is not there. Waits for as long as another process has it.
    ///
    /// # Errors
    /// It cannot be made, or its lock cannot be had.
    pub fn take(folder: &Path) -> Result<Self, StateError> {
        let fail = |why| StateError {
            path: folder.to_owned(),
            why,
        };
        fs::create_dir_all(folder).map_err(fail)?;
        let lock = folder.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock)
            .map_err(fail)?;
        let mut said = false;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    if !said {
                        tracing::warn!(
                            state_dir = %folder.display(),
                            "another podgate has the state directory; waiting for it to end"
                        );
                        said = true;
                    }
                    std::thread::sleep(TRY_AGAIN);
                }
                Err(TryLockError::Error(why)) => return Err(fail(why)),
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            _lock: lock,
        })
    }

    fn lanes(&self) -> PathBuf {
        self.folder.join("lanes.json")
    }

    fn beat(&self) -> PathBuf {
        self.folder.join("beat.json")
    }

    /// What the last process left. `margin`: as long as its last requests can have been under way.
    pub fn recall(&self, margin: Duration) -> Before {
        let now = millis_now();
        let lanes = found(&self.lanes());
        let beat = found(&self.beat());
        let died = |at: u64, learnt: Vec<WrittenLane>| {
            let past = Past::Unknown {
                ahead: margin + BEAT * 2,
            };
            Before {
                elapsed: since(at, now),
                lanes: recalled(learnt, &past),
                unseen: past,
            }
        };
        match (lanes, beat) {
            (Found::Nothing, Found::Nothing) => Before::default(),
            // It beat after it wrote: that was the start of a process that never ended.
            (Found::Good(lanes), Found::Good(beat)) if beat.at > lanes.at => {
                died(beat.at, beat.lanes)
            }
            (Found::Good(lanes), Found::Good(_) | Found::Nothing) => Before {
                elapsed: since(lanes.at, now),
                lanes: recalled(lanes.lanes, &Past::default()),
                unseen: Past::default(),
            },
            (Found::Nothing, Found::Good(beat)) => died(beat.at, beat.lanes),
            (Found::Bad, _) | (_, Found::Bad) => died(now, Vec::new()),
        }
    }

    /// Beats from here on, and keeps what `admission` knows at the end.
    ///
    /// # Errors
    /// The directory cannot be written, or the thread cannot be started.
    pub fn keep(self, admission: Admission) -> Result<Keeper, StateError> {
        let fail = |why| StateError {
            path: self.folder.clone(),
            why,
        };
        self.write_beat(&admission).map_err(fail)?;
        // From here on the beat says how things stand.
        remove(&self.lanes()).map_err(fail)?;
        let (end, ended) = channel();
        let folder = self.folder.clone();
        let thread = std::thread::Builder::new().name("state".into());
        let thread = thread.spawn(move || self.run(&admission, &ended));
        let thread = thread.map_err(|why| StateError { path: folder, why })?;
        Ok(Keeper { end, thread })
    }

    fn write_beat(&self, admission: &Admission) -> io::Result<()> {
        let lanes = admission.remember();
        let learnt = lanes
            .iter()
            .filter(|lane| !lane.memory.learnt.is_nothing())
            .map(WrittenLane::learnt);
        Written::new(millis_now(), learnt).write(&self.beat(), false)
    }

    fn run(&self, admission: &Admission, ended: &Receiver<()>) {
        let mut failing = false;
        loop {
            match ended.recv_timeout(BEAT) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) => break,
                // Dropped without a word: as good as dead.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            match self.write_beat(admission) {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    tracing::error!(%error, "the heartbeat in `state_dir` cannot be written");
                    failing = true;
                }
                Err(_) => {}
            }
        }
        let lanes = admission.remember();
        let written = Written::new(millis_now(), lanes.iter().map(WrittenLane::whole))
            .write(&self.lanes(), true)
            .and_then(|()| remove(&self.beat()));
        if let Err(error) = written {
            tracing::error!(%error, "the lanes cannot be kept: the next podgate starts with spent windows");
        }
    }
}

/// Keeps the state of a running process.
pub struct Keeper {
    end: Sender<()>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Nothing is sent any more: writes down how the lanes stand, and lets the directory go.
    pub fn finish(self) {
        // A thread that is gone has said why.
        let _ = self.end.send(());
        let _ = self.thread.join();
    }
}

enum Found {
    Nothing,
    Good(Written),
    Bad,
}

fn found(path: &Path) -> Found {
    match Written::read(path) {
        Ok(written) => Found::Good(written),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Nothing,
        Err(error) => {
            tracing::warn!(
                file = %path.display(), %error,
                "what the last podgate left cannot be read; every window starts as spent"
            );
            Found::Bad
        }
    }
}

fn recalled(lanes: Vec<WrittenLane>, otherwise: &Past) -> Vec<Remembered> {
    let lanes = lanes.into_iter();
    lanes
        .filter_map(|lane| lane.remembered(otherwise))
        .collect()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Milliseconds between two readings of the wall clock; none if it was set back.
fn since(at: u64, now: u64) -> Duration {
    Duration::from_millis(now.saturating_sub(at))
}

#[expect(
    clippy::disallowed_methods,
    reason = "two processes share no other clock; one that was set back only waits longer"
)]
fn millis_now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
