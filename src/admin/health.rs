//! The other end of `/readyz`: what a container's health check runs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For all of it: a check that hangs is worse than one that fails.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest reason that is read, in bytes.
const LONGEST_REASON: usize = 1024;

/// Why podgate is not ready, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("no answer from {0} within 2 s")]
    Silent(SocketAddr),
    #[error("{0} cannot be reached: {1}")]
    Unreachable(SocketAddr, io::Error),
    #[error("{0} answers, but not as podgate does: {1}")]
    Broken(SocketAddr, hyper::Error),
    #[error("not ready: {1}, {0}")]
    Refused(StatusCode, String),
    #[error("port 0 stands for any: say with --admin which one it is")]
    NoPort,
    #[error("the check could not start: {0}")]
    Runtime(io::Error),
}

/// Asks the podgate whose admin port is at `admin`. Takes two seconds at most; an address that
/// stands for all of the machine's is asked on loopback.
///
/// # Errors
/// [`NotReady`]: it is not ready, or did not say so.
pub fn ask(admin: SocketAddr) -> Result<(), NotReady> {
    if admin.port() == 0 {
        return Err(NotReady::NoPort);
    }
    let admin = reachable(admin);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().map_err(NotReady::Runtime)?;
    runtime
        .block_on(async { timeout(PATIENCE, exchange(admin)).await })
        .unwrap_or(Err(NotReady::Silent(admin)))
}

fn reachable(address: SocketAddr) -> SocketAddr {
    let loopback = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(loopback, address.port())
}

async fn exchange(admin: SocketAddr) -> Result<(), NotReady> {
    let broken = |error| NotReady::Broken(admin, error);
    let stream = TcpStream::connect(admin).await;
    let stream = stream.map_err(|error| NotReady::Unreachable(admin, error))?;
    let (mut client, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = http::Uri::from_static("/readyz");
    if let Ok(host) = admin.to_string().try_into() {
        request.headers_mut().insert(HOST, host);
    }
    // What it fails with, the answer fails with too.
    tokio::spawn(connection);
    let response = client.send_request(request).await.map_err(broken)?;
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(());
    }
    let body = Limited::new(response.into_body(), LONGEST_REASON).collect();
    let body = body.await.map_or(Bytes::new(), |body| body.to_bytes());
    let reason = String::from_utf8_lossy(&body);
    let line = reason.lines().next().unwrap_or_default();
    Err(NotReady::Refused(status, line.escape_debug().to_string()))
}
