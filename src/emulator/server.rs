//! The street side: connections in, and time passing for the jobs.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::exchange::exchange;
use super::shared::Shared;
use super::socket::Socket;

/// Open at once; more wait to be accepted.
const MOST_CONNECTIONS: usize = 20_000;

/// Serves until `shutdown`, then drops what is open.
pub(super) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = pin!(shutdown);
    let mut tasks = JoinSet::new();
    tasks.spawn(drive(Arc::clone(&shared)));
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => return,
            Some(_ended) = tasks.join_next() => {}
            accepted = listener.accept(), if tasks.len() <= MOST_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    tasks.spawn(connection(Arc::clone(&shared), stream));
                }
                Err(fault) => rest(&fault).await,
            },
        }
    }
}

/// Out of descriptors: some come back when connections end. Anything else was one client's.
async fn rest(fault: &io::Error) {
    if fault.kind() != io::ErrorKind::ConnectionAborted {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Lets time pass for the jobs. Every `serve` of an emulator has one of these, and one at a time is at
/// it: when its runtime ends, the next takes over.
async fn drive(shared: Arc<Shared>) {
    let _turn = shared.driver.lock().await;
    loop {
        let next = shared.drive();
        let earlier = shared.earlier.notified();
        match next {
            Some(next) => tokio::select! {
                () = earlier => {}
                () = tokio::time::sleep_until(shared.clock.instant(next)) => {}
            },
            None => earlier.await,
        }
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    // Only a matter of speed.
    let _ = stream.set_nodelay(true);
    let reset = Arc::new(AtomicBool::new(false));
    let socket = TokioIo::new(Socket::new(stream, Arc::clone(&reset)));
    let service = service_fn(|request| exchange(Arc::clone(&shared), Arc::clone(&reset), request));
    // A client's fault or a reset on request: nothing to tell anybody.
    let _ = http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(socket, service)
        .await;
}
