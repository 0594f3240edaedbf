//! The street door: listening sockets, each accepted from by every worker; connections served until
//! they end or the drain's bound is over.

pub mod sockets;
pub mod certificates;
pub mod listening;
pub mod room;
pub mod version;
pub mod heads;
pub mod guarded;
pub mod streams;
pub mod connection;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::gateway::Gateway;
use crate::gateway::stream::Plain;
use crate::listener::certificates::Certificates;
use crate::listener::connection::{Connection, closed};
use crate::listener::listening::Listening;
use crate::listener::room::{Place, Room};
use crate::listener::sockets::Acceptor;
use crate::metrics::Metrics;

/// After a failed accept (no file descriptor is left, mostly) the next try waits this long.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Lets this process open as many files as it may at most: each client and each exchange is one, and
/// many systems start processes with room for 1024. Returns how many that is; `None`: no bound.
pub fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        // What there is has to do; accepting backs off when it runs out.
        Err(_) => limit.current,
    }
}

/// What one worker needs to serve.
pub struct Door {
    pub gateway: Gateway,
    pub metrics: Metrics,
    /// Shared with the other workers.
    pub room: Arc<Room>,
}

impl Door {
    /// Accepts and serves wherever `listeners` says at the time, until `closing` says so, then sees
    /// the open connections out. Those of a listener that is taken away are seen out likewise.
    pub async fn serve(
        self,
        mut listeners: watch::Receiver<Vec<Arc<Listening>>>,
        mut closing: watch::Receiver<bool>,
    ) {
        let door = Arc::new(self);
        let mut attended: HashMap<u64, watch::Sender<bool>> = HashMap::new();
        let mut attending = JoinSet::new();
        loop {
            // No listener is held here: its socket is closed when it is taken away.
            let now = listeners.borrow_and_update().clone();
            attended.retain(|id, leaves| {
                let stays = now.iter().any(|listening| listening.id() == *id);
                if !stays {
                    leaves.send_replace(true);
                }
                stays
            });
            for listening in now {
                attended.entry(listening.id()).or_insert_with(|| {
                    let (leaves, left) = watch::channel(false);
                    attending.spawn(door.clone().attend(listening, left));
                    leaves
                });
            }
            tokio::select! {
                changed = listeners.changed() => if changed.is_err() { break },
                Some(_) = attending.join_next(), if !attending.is_empty() => {}
                () = closed(&mut closing) => break,
            }
        }
        drop(listeners);
        for leaves in attended.values() {
            leaves.send_replace(true);
        }
        while attending.join_next().await.is_some() {}
    }

    async fn attend(self: Arc<Self>, listening: Arc<Listening>, closing: watch::Receiver<bool>) {
        let (at, certificates) = (listening.at().clone(), listening.certificates().cloned());
        let acceptor = listening.acceptor();
        drop(listening);
        let attended = match acceptor {
            Ok(acceptor) => self.accept(acceptor, certificates, closing).await,
            Err(error) => Err(error),
        };
        if let Err(error) = attended {
            tracing::error!(%error, "a worker cannot use the socket that listens on {at}");
        }
    }

    async fn accept(
        &self,
        acceptor: Acceptor,
        certificates: Option<Arc<Certificates>>,
        mut closing: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let mut connections = JoinSet::new();
        let mut failing = false;
        loop {
            let accepted = async {
                let place = self.room.place().await;
                acceptor.accept().await.map(|accepted| (accepted, place))
            };
            tokio::select! {
                accepted = accepted => match accepted {
                    Ok((accepted, place)) => {
                        failing = false;
                        let tls = certificates.as_ref().map(|own| own.current());
                        let serve = self.connection(accepted, tls, place, closing.clone());
                        connections.spawn(serve);
                    }
                    // It left before we came to it.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        if !failing {
                            tracing::warn!(%error, "connections cannot be accepted");
                        }
                        failing = true;
                        sleep(BACK_OFF).await;
                    }
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                () = closed(&mut closing) => break,
            }
        }
        let drained = async {
            // Whoever the kernel has let in already would be reset.
            let backlog = acceptor.into_socket()?;
            loop {
                let place = tokio::select! {
                    place = self.room.place() => place,
                    Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                };
                let Ok(accepted) = backlog.accept_now() else {
                    break;
                };
                let tls = certificates.as_ref().map(|own| own.current());
                let serve = self.connection(accepted, tls, place, closing.clone());
                connections.spawn(serve);
            }
            drop(backlog);
            while connections.join_next().await.is_some() {}
            Ok::<_, io::Error>(())
        };
        let bound = self.gateway.config().timeouts.drain;
        match timeout(bound, drained).await {
            Ok(drained) => drained,
            Err(_) => {
                tracing::warn!("connections still open after {bound:?} were cut");
                Ok(())
            }
        }
    }

    fn connection(
        &self,
        (stream, peer): (Plain, Option<IpAddr>),
        tls: Option<Arc<ServerConfig>>,
        place: Place,
        closing: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + use<> {
        let open = Open::count(&self.metrics, place);
        let connection = Connection {
            gateway: self.gateway.clone(),
            metrics: self.metrics.clone(),
            timeouts: self.gateway.config().timeouts,
            closing,
        };
        async move {
            let _open = open;
            connection.serve(stream, peer, tls).await;
        }
    }
}

/// Counts one connection for as long as it lives.
struct Open {
    metrics: Metrics,
    _place: Place,
}

impl Open {
    fn count(metrics: &Metrics, place: Place) -> Self {
        metrics.connections().inc();
        metrics.connections_total().inc();
        Self {
            metrics: metrics.clone(),
            _place: place,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connections().dec();
    }
}
