//! A connection to the upstream, ready for bytes: dialled, or tunnelled through a proxy, and TLS on
//! top where the URL says so.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::process::{Scheme, Target, Upstream as Settings};
use crate::gateway::dial::Host;
use crate::gateway::proxy::{Proxy, ProxyError};
use crate::gateway::sending::Peer;
use crate::gateway::tls::{self, Complaints, TlsError};

/// Why no connection could ever be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

pub struct Connector {
    target: Target,
    host: Host,
    proxy: Option<Proxy>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    complaints: Complaints,
    /// For all of it.
    timeout: Duration,
}

impl Connector {
    /// # Errors
    /// [`SetupError`]: as it says.
    pub fn new(settings: &Settings, complaints: Complaints) -> Result<Self, SetupError> {
        let target = settings.target.clone();
        let tls = match target.scheme {
            Scheme::Http => None,
            Scheme::Https => {
                let name = settings.sni.as_deref().unwrap_or(&target.host);
                Some(tls::connector(name, settings.roots, &settings.trust_ca)?)
            }
        };
        Ok(Self {
            host: Host::new(&target.host, target.port),
            proxy: Proxy::from_environment(&target)?,
            tls,
            complaints,
            timeout: settings.connect_timeout,
            target,
        })
    }

    /// # Errors
    /// There is no connection; the error says what stands in the way.
    pub async fn connect(&self) -> io::Result<Stream> {
        let connected = timeout(self.timeout, async {
            match self.stream().await {
                Err(error) if is_passing(&error) => self.stream().await,
                connected => connected,
            }
        });
        connected.await.unwrap_or_else(|_| {
            let what = format!("no connection within {:?}", self.timeout);
            Err(io::Error::new(io::ErrorKind::TimedOut, what))
        })
    }

    async fn stream(&self) -> io::Result<Stream> {
        let tcp = match &self.proxy {
            None => self.host.dial().await?,
            Some(proxy) => proxy.dial(&self.target).await?,
        };
        tcp.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Stream::Plain(tcp)),
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), tcp).await;
                let stream = stream.inspect_err(|error| self.complaints.about(error, name))?;
                Ok(Stream::Tls(Box::new(stream)))
            }
        }
    }
}

/// Whether the same may go well at once. Not what a certificate or a name is refused for.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::UnexpectedEof
    )
}

pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Peer for Stream {
    /// Asks the kernel: the runtime hears of an end only when it next looks for events.
    fn is_open(&self) -> bool {
        let tcp = match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref().0,
        };
        let nothing = recv(tcp, &mut [0u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        // Nothing to read, and no end: whatever else there is, nobody has asked for it.
        matches!(nothing, Err(rustix::io::Errno::AGAIN))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// No event is waited for: the runtime knows of none of this.
    #[tokio::test]
    async fn an_end_and_an_unasked_byte_are_seen_before_the_runtime_hears_of_them() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pair = async || {
            let connected = TcpStream::connect(address);
            let (here, there) = tokio::join!(connected, listener.accept());
            (Stream::Plain(here.unwrap()), there.unwrap().0)
        };
        let (here, there) = pair().await;
        assert!(here.is_open());
        drop(there);
        assert!(!here.is_open(), "closed");
        let (here, there) = pair().await;
        there.set_zero_linger().unwrap();
        drop(there);
        assert!(!here.is_open(), "reset");
        let (here, mut there) = pair().await;
        there.write_all(b"x").await.unwrap();
        assert!(!here.is_open(), "said something");
    }
}
