//! podgate's own log, on stderr, and how much it says: set by the configuration, changed while it
//! runs.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, registry, reload};

use crate::config::process::{Log, LogFormat, LogLevel};

/// Changes how much is said. Cheap to clone; without a log (as in a test) it changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Levels(Option<reload::Handle<LevelFilter, Registry>>);

impl Levels {
    /// Begins to log. Once in a process.
    pub fn start(log: &Log) -> Self {
        let (filter, handle) = reload::Layer::new(filter(log.level));
        let to_stderr = fmt::layer()
            .with_writer(stderr)
            .with_ansi(stderr().is_terminal())
            .with_target(false);
        let all = registry().with(filter);
        match log.format {
            LogFormat::Text => all.with(to_stderr).init(),
            LogFormat::Json => all.with(to_stderr.json()).init(),
        }
        Self(Some(handle))
    }

    /// From here on it says what is of this level, or graver.
    pub fn set(&self, level: LogLevel) {
        // It fails only where there is no log any more.
        let _ = self.0.as_ref().map(|handle| handle.reload(filter(level)));
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
