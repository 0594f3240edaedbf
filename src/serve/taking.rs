//! Another configuration, put in effect while clients are served.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::Config;
use crate::config::listen::Listener;
use crate::config::secret::SecretSource;
use crate::gateway::Shared;
use crate::levels::Levels;
use crate::listener::listening::{ListenError, Listening};
use crate::metrics::Metrics;
use crate::reload::{Refused, Taken};

/// What of a running podgate changes with its configuration.
pub(super) struct Taking {
    pub shared: Arc<Shared>,
    /// What podgate was started with: of some keys it keeps the value until its end.
    pub started: Arc<Config>,
    pub listeners: watch::Sender<Vec<Arc<Listening>>>,
    pub levels: Levels,
    /// `true` once nothing new is taken.
    pub closing: watch::Receiver<bool>,
    pub metrics: Metrics,
}

impl Taking {
    /// Everything that can fail comes first: it is taken as a whole or not at all. Called inside a
    /// runtime, as sockets are made.
    pub fn take(&self, config: Config) -> Result<Taken, Refused> {
        if *self.closing.borrow() {
            return Err("podgate is being stopped".into());
        }
        let before = self.shared.live().config.clone();
        let (level, need_restart) = (config.log.level, need_restart(&self.started, &config));
        if let Some(Err(error)) = config.admin_token.as_ref().map(SecretSource::resolve) {
            return Err(format!("`admin_token`: {error}"));
        }
        let listeners = self.listeners(&before, &config);
        let listeners = listeners.map_err(|error| error.to_string())?;
        self.shared
            .reload(config)
            .map_err(|error| error.to_string())?;
        // With nobody in between: at the end there are none any more.
        self.listeners.send_if_modified(|all| {
            let goes_on = !all.is_empty();
            if goes_on {
                *all = listeners;
            }
            goes_on
        });
        // What was set by hand stays, unless this says something else.
        if level != before.log.level {
            self.levels.set(level);
        }
        Ok(Taken { need_restart })
    }

    /// Where clients come in by `config`: those places that stay as they are go on, those that are to
    /// be otherwise keep their sockets, and new ones are bound.
    fn listeners(
        &self,
        before: &Config,
        config: &Config,
    ) -> Result<Vec<Arc<Listening>>, ListenError> {
        // In the order of `listen`, as they were made of it.
        let now = self.listeners.borrow().clone();
        let mut known: Vec<(&Listener, Arc<Listening>)> = before.listen.iter().zip(now).collect();
        let guards = config.guards_a_key();
        // Who came in there, and comes until it is gone, would spend the key.
        if guards && let Some((_, open)) = known.iter().find(|(_, known)| known.is_open()) {
            let at = open.at().clone();
            return Err(ListenError::StillOpen { at });
        }
        let place = |wanted: &Listener| {
            let nth = known.iter().position(|(known, _)| known.at == wanted.at);
            let listening = match nth.map(|nth| known.swap_remove(nth)) {
                Some((known, open)) if known == wanted && guards == before.guards_a_key() => {
                    return Ok(open);
                }
                Some((_, open)) => {
                    let socket = open.socket().clone();
                    let at = wanted.at.clone();
                    let allowed = socket.allow(wanted.mode);
                    allowed.map_err(|why| ListenError::Bind { at, why })?;
                    Listening::on(socket, wanted, guards, &self.metrics)
                }
                None => Listening::open(wanted, None, guards, &self.metrics),
            };
            listening.map(Arc::new)
        };
        config.listen.iter().map(place).collect()
    }
}

/// Keys of which a running podgate keeps the value it was started with, where another is wanted now.
fn need_restart(started: &Config, config: &Config) -> Vec<&'static str> {
    let connections = |config: &Config| config.limits.connections;
    let keys = [
        ("admin", started.admin != config.admin),
        ("workers", started.workers != config.workers),
        ("state_dir", started.state_dir != config.state_dir),
        (
            "limits.connections",
            connections(started) != connections(config),
        ),
        ("log.format", started.log.format != config.log.format),
        ("log.access", started.log.access != config.log.access),
        ("tracing.otlp", started.tracing.otlp != config.tracing.otlp),
    ];
    let differ = keys.into_iter().filter(|(_, differs)| *differs);
    differ.map(|(key, _)| key).collect()
}
