//! The street door: one listening socket, accepted from by every worker; connections served until
//! they end or the drain's bound is over.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::ServiceBuilder;

use crate::config::process::Timeouts;
use crate::gateway::Gateway;
use crate::gateway::linger;
use crate::gateway::presence::Caller;
use crate::gateway::stack::CatchPanic;
use crate::metrics::Metrics;
use crate::operation::Operation;
use crate::outcome::Outcome;

/// Connections the kernel keeps for us: with the usual 128 a burst of callers waits for SYNs to be
/// sent again.
const BACKLOG: u32 = 4096;
/// How long connections may take to end once nothing new is accepted.
const DRAIN: Duration = Duration::from_secs(30);
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
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// What one worker needs to serve.
pub struct Door {
    pub gateway: Gateway,
    pub metrics: Metrics,
    pub timeouts: Timeouts,
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
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        connections.spawn(self.connection(stream, peer, closing.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(BACK_OFF).await;
                    }
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                () = closed(&mut closing) => break,
            }
        }
        drop(listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        if timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("connections still open after {DRAIN:?} were cut");
        }
        Ok(())
    }

    fn connection(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        mut closing: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + use<> {
        let gateway = self.gateway.clone();
        let open = Open::count(&self.metrics);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.timeouts.header);
        async move {
            let open = open;
            // Without it each small answer waits for the acknowledgement of the one before.
            let _ = stream.set_nodelay(true);
            let (caller, socket) = Caller::new(peer.ip(), stream);
            let calling = caller.clone();
            let forward = move |request: Request<Incoming>| {
                let (gateway, caller) = (gateway.clone(), calling.clone());
                async move { Ok::<_, std::convert::Infallible>(gateway.forward(request, &caller).await) }
            };
            let service = ServiceBuilder::new().layer(CatchPanic).service_fn(forward);
            let result = {
                let served =
                    http.serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
                let mut served = std::pin::pin!(served);
                let ended = tokio::select! {
                    result = served.as_mut() => Some(result),
                    () = closed(&mut closing) => None,
                };
                match ended {
                    Some(result) => result,
                    None => {
                        served.as_mut().graceful_shutdown();
                        served.await
                    }
                }
            };
            // hyper has answered what it could not read by itself.
            let unreadable = result.as_ref().is_err_and(hyper::Error::is_parse);
            if unreadable {
                let requests = open.0.other();
                requests.ended(Operation::Other, Outcome::BadRequest);
            }
            if let Err(error) = result {
                tracing::debug!(%error, "a client's connection ended badly");
            }
            if unreadable || caller.is_left_unread() {
                linger::connection(&caller).await;
            }
        }
    }
}

/// Returns once nothing new is to be taken.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error means that whoever could say so is gone, which says it as well.
    drop(closing.wait_for(|&closing| closing).await);
}

/// Counts one connection for as long as it lives.
struct Open(Metrics);

impl Open {
    fn count(metrics: &Metrics) -> Self {
        metrics.connections().inc();
        Self(metrics.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections().dec();
    }
}
