//! A place where clients come in while podgate runs.

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
        "a key would be injected into every request, and {at} could be reached from other hosts \
         until now: this takes a restart"
    )]
    WasOpen { at: Address },
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
    /// As it was configured.
    configured: Listener,
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
        let socket = match socket {
            Some(socket) => socket,
            None => Socket::bind(&listener.at, listener.mode).map_err(|why| bind(listener, why))?,
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
        let at = socket.address().map_err(|why| bind(listener, why))?;
        let actual = Listener {
            at: at.clone(),
            ..listener.clone()
        };
        if injects && actual.is_open() {
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
            configured: listener.clone(),
            at,
            socket,
            certificates,
        })
    }

    /// Whether other hosts reach it and are not asked who they are.
    pub fn is_open(&self) -> bool {
        let actual = Listener {
            at: self.at.clone(),
            ..self.configured.clone()
        };
        actual.is_open()
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

fn bind(listener: &Listener, why: io::Error) -> ListenError {
    let at = listener.at.clone();
    ListenError::Bind { at, why }
}

/// Where clients come in by another configuration: whoever is configured as before stays as it is,
/// whoever is so at the same place keeps its socket. Nothing changes by this alone.
///
/// # Errors
/// [`ListenError`]: as it says.
pub fn next(
    now: &[Arc<Listening>],
    listeners: &[Listener],
    injects: bool,
    metrics: &Metrics,
) -> Result<Vec<Arc<Listening>>, ListenError> {
    // Its connections, and who comes until it is gone, would spend the key.
    if injects && let Some(open) = now.iter().find(|own| own.is_open()) {
        let at = open.at.clone();
        return Err(ListenError::WasOpen { at });
    }
    let mut left = now.to_vec();
    let mut take = |same: &dyn Fn(&Listener) -> bool| {
        let nth = left.iter().position(|own| same(&own.configured))?;
        Some(left.remove(nth))
    };
    let mut kept: Vec<_> = listeners
        .iter()
        .map(|listener| take(&|own| own == listener))
        .collect();
    let mut next = Vec::with_capacity(listeners.len());
    for (listener, kept) in listeners.iter().zip(&mut kept) {
        let place = |own: &Listener| own.at == listener.at;
        if let Some(kept) = kept.take() {
            next.push(kept);
            continue;
        }
        let listening = match take(&place) {
            Some(there) => {
                there
                    .socket
                    .allow(listener.mode)
                    .map_err(|why| bind(listener, why))?;
                Listening::on(there.socket.clone(), listener, injects, metrics)?
            }
            None => Listening::open(listener, None, injects, metrics)?,
        };
        next.push(Arc::new(listening));
    }
    Ok(next)
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
