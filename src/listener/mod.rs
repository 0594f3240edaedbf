//! The street door: one listening socket, accepted from by every worker; connections served until
//! they end or the drain's bound is over.

pub mod room;
pub mod version;
pub mod heads;
pub mod guarded;
pub mod streams;
pub mod connection;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::gateway::Gateway;
use crate::listener::connection::{Connection, closed};
use crate::listener::room::{Place, Room};
use crate::metrics::Metrics;

/// Connections the kernel keeps for us: with the usual 128 a burst of callers waits for SYNs to be
/// sent again.
const BACKLOG: u32 = 4096;
/// A client that says nothing for so long is asked whether it is there, by its kernel: one whose
/// machine is gone says nothing for ever, and its request would still be sent when its turn comes.
const ALIVE: Duration = Duration::from_secs(20);
/// Bytes the kernel keeps that a client's window has no room for. It would keep megabytes, be full
/// again only once a third of them was taken, and a slow reader would seem to have stopped.
const UNSENT: u32 = 128 * 1024;
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

/// The one listening socket. Not shared by `SO_REUSEPORT`: a second podgate would bind it silently
/// and spend the budget again.
///
/// # Errors
/// The address is taken, or not ours.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for old connections to be forgotten.
    socket.set_reuseaddr(true)?;
    // What is set here every accepted socket begins with.
    let options = SockRef::from(&socket);
    let alive = TcpKeepalive::new()
        .with_time(ALIVE)
        .with_interval(ALIVE / 4);
    options.set_tcp_keepalive(&alive.with_retries(4))?;
    // Without it each small answer waits for the acknowledgement of the one before.
    options.set_tcp_nodelay(true)?;
    options.set_tcp_notsent_lowat(UNSENT)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// What one worker needs to serve.
pub struct Door {
    pub gateway: Gateway,
    pub metrics: Metrics,
    /// Shared with the other workers.
    pub room: Arc<Room>,
}

impl Door {
    /// Accepts and serves until `closing` says so, then sees the open connections out.
    ///
    /// # Errors
    /// The socket cannot be used by this runtime.
    pub async fn serve(
        self,
        listener: std::net::TcpListener,
        mut closing: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let mut connections = JoinSet::new();
        let mut failing = false;
        loop {
            let accepted = async {
                let place = self.room.place().await;
                listener.accept().await.map(|accepted| (accepted, place))
            };
            tokio::select! {
                accepted = accepted => match accepted {
                    Ok(((stream, peer), place)) => {
                        failing = false;
                        let serve = self.connection(stream, peer, place, closing.clone());
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
            let backlog = listener.into_std()?;
            loop {
                let place = tokio::select! {
                    place = self.room.place() => place,
                    Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                };
                let Ok((stream, peer)) = backlog.accept() else {
                    break;
                };
                stream.set_nonblocking(true)?;
                let stream = TcpStream::from_std(stream)?;
                let serve = self.connection(stream, peer, place, closing.clone());
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
        stream: TcpStream,
        peer: SocketAddr,
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
            connection.serve(stream, peer).await;
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
