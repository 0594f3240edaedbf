//! A client that speaks TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::authority::{Authority, Identity};
use super::support::{Answer, within};

pub const NAME: &str = "podgate.test";

/// Whom it believes, who it is, and what it speaks.
pub struct Client {
    connector: TlsConnector,
}

impl Client {
    pub fn new(root: &Authority, identity: Option<&Identity>, protocols: &[&str]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(root.der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder
                .with_client_auth_cert(vec![identity.der()], identity.key())
                .unwrap(),
        };
        // Each connection shows what the listener has now.
        config.resumption = rustls::client::Resumption::disabled();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        let connector = TlsConnector::from(Arc::new(config));
        Self { connector }
    }

    pub async fn connect(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        self.over(TcpStream::connect(address).await?).await
    }

    pub async fn over<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        let name = ServerName::try_from(NAME).unwrap();
        within("a handshake", self.connector.connect(name, stream)).await
    }

    /// One exchange on a connection of its own.
    pub async fn call(
        &self,
        address: SocketAddr,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, Box<dyn std::error::Error>> {
        let stream = self.connect(address).await?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        exchange(stream, request, h2).await
    }
}

/// The certificate that was shown.
pub fn shown<S>(stream: &TlsStream<S>) -> CertificateDer<'static> {
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    chain[0].clone().into_owned()
}

/// One exchange on a connection.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut request: Request<Full<Bytes>>,
    h2: bool,
) -> Result<Answer, Box<dyn std::error::Error>> {
    let io = TokioIo::new(stream);
    let exchange = async {
        let response = if h2 {
            *request.uri_mut() = format!("https://{NAME}{}", request.uri()).parse()?;
            request.headers_mut().remove("host");
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            let (mut sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        let (parts, body) = response.into_parts();
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        })
    };
    within("an answer", exchange).await
}
