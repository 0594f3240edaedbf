//! A listener's certificates, read again when their files change: new connections are greeted with
//! the new ones, those there are go on as they began.
//!
//! Files are looked at, not watched: a mounted secret changes by a symbolic link two folders above
//! them, and a look each second costs nothing anybody could measure.

use std::fmt::Display;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use rustls::ServerConfig;

use crate::metrics::Metrics;
use crate::tls::{self, Files, Loaded, Unusable};

const LOOK: Duration = Duration::from_secs(1);

/// Dropped, they are not looked at any more.
pub struct Certificates {
    /// The listener's name, as the metrics and the log have it.
    at: String,
    files: Files,
    current: RwLock<Loaded>,
    metrics: Metrics,
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error("a thread cannot be made: {0}")]
    Thread(#[from] io::Error),
}

/// What of a file changes when it does: its device, inode, length, and time of writing.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

impl Certificates {
    /// Reads them, and looks at their files from here on.
    ///
    /// # Errors
    /// [`CertificatesError`]: they are no good.
    pub fn keep(
        at: String,
        files: Files,
        metrics: Metrics,
    ) -> Result<Arc<Self>, CertificatesError> {
        // Before they are read: what changes meanwhile is read again.
        let stamps = stamps(&files);
        let loaded = tls::load(&files)?;
        let kept = Arc::new(Self {
            at,
            files,
            current: RwLock::new(loaded),
            metrics,
        });
        kept.warn_if_over();
        kept.show();
        let weak = Arc::downgrade(&kept);
        std::thread::Builder::new()
            .name("certificates".into())
            .spawn(move || look(&weak, stamps))?;
        Ok(kept)
    }

    /// What the next connection is greeted with.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.read().config.clone()
    }

    fn show(&self) {
        let expires = self.current.read().expires;
        self.metrics.certificate_expires(&self.at, Some(expires));
    }

    /// Clients refuse it, and whoever operates podgate hears of that last.
    fn warn_if_over(&self) {
        let (at, expires) = (&self.at, self.current.read().expires);
        if expires < now() {
            let since = date(expires);
            tracing::warn!("the certificates for {at} are over since {since}");
        }
    }

    fn read_again(&self) {
        let at = &self.at;
        match tls::load(&self.files) {
            Ok(loaded) => {
                let until = date(loaded.expires);
                *self.current.write() = loaded;
                tracing::info!("new certificates for {at} were read, good until {until}");
                self.warn_if_over();
            }
            // Half of a pair, maybe: the other half changes a file too.
            Err(why) => tracing::warn!("the last certificates for {at} stay in use: {why}"),
        }
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        self.metrics.certificate_expires(&self.at, None);
    }
}

fn date(seconds: i64) -> impl Display {
    let since = Duration::from_secs(seconds.try_into().unwrap_or_default());
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since)
}

/// Seconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "certificates are over by the wall clock; people are told"
)]
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs().try_into().unwrap_or(i64::MAX))
}

fn look(kept: &Weak<Certificates>, mut last: Vec<Stamp>) {
    loop {
        std::thread::sleep(LOOK);
        let Some(kept) = kept.upgrade() else { return };
        let now = stamps(&kept.files);
        if now != last {
            last = now;
            kept.read_again();
        }
        // Another listener of this name may have been dropped since.
        kept.show();
    }
}

fn stamps(files: &Files) -> Vec<Stamp> {
    let stamp = |path: &Path| {
        let file = std::fs::metadata(path).ok()?;
        let written = (file.mtime(), file.mtime_nsec());
        Some((file.dev(), file.ino(), file.len(), written.0, written.1))
    };
    files.all().map(stamp).collect()
}
