//! A place where clients come in while podgate runs.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::listen::{Address, Listener};
use crate::listener::certificates::{Certificates, CertificatesError};
use crate::listener::sockets::{Acceptor, Passed, Socket};
use crate::metrics::Metrics;

/// Why clients cannot come in there.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {at} (`listen`): {why}")]
    Bind { at: Address, why: io::Error },
    #[error("`listen` ({at}): {why}")]
    Certificates { at: Address, why: CertificatesError },
    #[error(
        "a key would be injected into every request, and {at} can be reached from other hosts until \
         it is taken away: take it away first, or restart"
    )]
    StillOpen { at: Address },
    #[error(
        "a key is injected into every request, and the socket {at} that was passed can be reached \
         from other hosts: `upstream.allow_remote_injection` would say that this is meant"
    )]
    Open { at: Address },
}

/// Where clients come in. The set of those there are may change at any time: each has an identity,
/// and whoever accepts goes by that.
pub struct Listening {
    id: u64,
    /// Other hosts reach it, and are not asked who they are.
    open: bool,
    /// As configured, but for a port that the system picked.
    at: Address,
    /// Shared with whatever takes its place with other certificates.
    socket: Arc<Socket>,
    certificates: Option<Arc<Certificates>>,
}

impl Listening {
    /// Takes the socket that was passed for it, or binds one. `injects`: nobody may come from other
    /// hosts without a certificate.
    ///
    /// # Errors
    /// [`ListenError`]: as it says.
    pub fn open(
        listener: &Listener,
        socket: Option<Socket>,
        injects: bool,
        metrics: &Metrics,
    ) -> Result<Self, ListenError> {
        let bind = |why| ListenError::Bind {
            at: listener.at.clone(),
            why,
        };
        let socket = match socket {
            Some(socket) => socket,
            None => Socket::bind(&listener.at, listener.mode).map_err(bind)?,
        };
        Self::on(Arc::new(socket), listener, injects, metrics)
    }

    /// The same on a socket there is: what it is configured as may have changed.
    ///
    /// # Errors
    /// [`ListenError`]: as it says.
    pub fn on(
        socket: Arc<Socket>,
        listener: &Listener,
        injects: bool,
        metrics: &Metrics,
    ) -> Result<Self, ListenError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let at = socket.address().map_err(|why| ListenError::Bind {
            at: listener.at.clone(),
            why,
        })?;
        let actual = Listener {
            at: at.clone(),
            ..listener.clone()
        };
        let open = actual.is_open();
        if injects && open {
            return Err(ListenError::Open { at });
        }
        let keep = |files| Certificates::keep(at.to_string(), files, metrics.clone());
        let certificates = listener.tls.clone().map(keep).transpose();
        let certificates = certificates.map_err(|why| ListenError::Certificates {
            at: at.clone(),
            why,
        })?;
        Ok(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            open,
            at,
            socket,
            certificates,
        })
    }

    /// Whether other hosts reach it and are not asked who they are.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Another for each one that is opened.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn at(&self) -> &Address {
        &self.at
    }

    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    pub fn certificates(&self) -> Option<&Arc<Certificates>> {
        self.certificates.as_ref()
    }

    /// One worker's share of its socket.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn acceptor(&self) -> io::Result<Acceptor> {
        self.socket.acceptor()
    }
}

impl fmt::Display for Listening {
    /// As a client is told of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = &self.at;
        match (at, &self.certificates) {
            (Address::Unix(_), None) => at.fmt(f),
            (Address::Unix(_), Some(_)) => write!(f, "{at} (https)"),
            (Address::Tcp(_), None) => write!(f, "http://{at}"),
            (Address::Tcp(_), Some(_)) => write!(f, "https://{at}"),
        }
    }
}

/// Which of the sockets that were passed each listener gets: the one that listens where it is to,
/// else the next one of its kind.
pub fn passed_to(listeners: &[Listener], passed: &mut Passed) -> Vec<Option<Socket>> {
    let mut sockets: Vec<_> = listeners
        .iter()
        .map(|listener| passed.at(&listener.at))
        .collect();
    for (listener, socket) in listeners.iter().zip(&mut sockets) {
        if socket.is_none() {
            *socket = passed.like(&listener.at);
        }
    }
    sockets
}
