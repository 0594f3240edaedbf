//! The configuration read again while podgate serves: when its file changes, at SIGHUP, and when the
//! admin port is asked to. What is wrong with a new one is said, and the old one stays.
//!
//! Files are looked at, not watched: a look a second sees every way of changing one (written in
//! place, renamed over, a mounted volume's symlink turned) on every file system alike.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::overrides::Overrides;
use crate::config::{Config, LoadError};
use crate::metrics::Metrics;
use crate::notify::{self, State};

/// How often the files are looked at. A change counts once two looks have seen it alike: one that is
/// being written is no configuration yet.
const LOOK: Duration = Duration::from_secs(1);
/// Who may ask at once; more are a flood.
const ASKING: usize = 16;

/// Where the configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// `None`: the preset.
    pub file: Option<PathBuf>,
    /// What is over it.
    pub overrides: Overrides,
}

impl Source {
    /// Reads it.
    ///
    /// # Errors
    /// [`LoadError`]: it cannot be read, or has faults.
    pub fn load(&self) -> Result<Config, LoadError> {
        match &self.file {
            Some(file) => Config::load_with(file, &self.overrides),
            None => Config::preset()
                .with(&self.overrides)
                .map_err(LoadError::Faults),
        }
    }

    /// What the file says now and which files it names say, as a number that differs when they do.
    /// `None`: there is no file to look at.
    fn look(&self, config: &Config) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        let others = config.files();
        for file in [self.file.as_ref()?].into_iter().chain(others) {
            // What is gone is a change too.
            fs::read(file).ok().hash(&mut hasher);
        }
        Some(hasher.finish())
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Keys with another value than the running podgate can take: they wait for its restart.
    pub need_restart: Vec<&'static str>,
}

/// Why the old configuration stays: what is said to whoever asked.
pub type Refused = String;

type Reply = oneshot::Sender<Result<Taken, Refused>>;

/// Asks for the configuration to be read again. Cheap to clone.
#[derive(Clone)]
pub struct Reloads(mpsc::Sender<Reply>);

impl Reloads {
    /// Returns when it was taken or refused.
    ///
    /// # Errors
    /// Why it was refused.
    pub async fn ask(&self) -> Result<Taken, Refused> {
        let (reply, taken) = oneshot::channel();
        let ended = || "podgate is being stopped".to_owned();
        self.0.send(reply).await.map_err(|_| ended())?;
        taken.await.map_err(|_| ended())?
    }
}

/// Reads the configuration again whenever there is reason to.
pub struct Watch {
    source: Source,
    asked: mpsc::Receiver<Reply>,
    metrics: Metrics,
    /// The configuration that was read last.
    read: Config,
    /// The files when it was read.
    seen: Option<u64>,
}

impl Watch {
    /// `read`: what `source` said just now.
    pub fn new(source: Source, read: Config, metrics: Metrics) -> (Self, Reloads) {
        let (ask, asked) = mpsc::channel(ASKING);
        let seen = source.look(&read);
        let watch = Self {
            source,
            asked,
            metrics,
            read,
            seen,
        };
        (watch, Reloads(ask))
    }

    /// Hands each configuration to `take`, one at a time, until nobody is left who could ask.
    pub async fn run(mut self, mut take: impl FnMut(Config) -> Result<Taken, Refused>) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changed = None;
        loop {
            tokio::select! {
                asked = self.asked.recv() => {
                    let Some(reply) = asked else { return };
                    // Whoever asked may have left.
                    let _ = reply.send(self.reload(&mut take));
                    changed = None;
                }
                _ = looks.tick() => {
                    let seen = self.source.look(&self.read);
                    if seen == self.seen {
                        changed = None;
                    } else if changed == Some(seen) {
                        tracing::info!("the configuration's files have changed");
                        // Said in the log, to whoever reads it.
                        let _ = self.reload(&mut take);
                        changed = None;
                    } else {
                        changed = Some(seen);
                    }
                }
            }
        }
    }

    fn reload(
        &mut self,
        take: &mut impl FnMut(Config) -> Result<Taken, Refused>,
    ) -> Result<Taken, Refused> {
        notify::tell(State::Reloading);
        // Before it is read: what changes in between is seen at the next look.
        self.seen = self.source.look(&self.read);
        let read = match self.source.file {
            Some(_) => self.source.load().map_err(|error| error.to_string()),
            None => Err("podgate was started without a configuration file".into()),
        };
        let taken = read.and_then(|config| {
            let names_others = config.files() != self.read.files();
            self.read = config.clone();
            if names_others {
                self.seen = self.source.look(&self.read);
            }
            take(config)
        });
        match &taken {
            Ok(Taken { need_restart }) if need_restart.is_empty() => {
                tracing::info!("the configuration was read again and is in effect");
            }
            Ok(Taken { need_restart }) => {
                tracing::warn!(
                    "the configuration was read again and is in effect, but for what needs a \
                     restart: {}",
                    need_restart.join(", ")
                );
            }
            Err(why) => {
                tracing::error!("the configuration was not taken, the old one stays: {why}");
            }
        }
        self.metrics.reloaded(taken.is_ok());
        notify::tell(State::Ready);
        taken
    }
}
