//! TLS towards the upstream: rustls with ring, Mozilla's roots built in, more from files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("`{host}` is no name a certificate can be for")]
    Name { host: String },
    #[error("the root certificates in `{}` cannot be used: {why}", path.display())]
    Roots { path: PathBuf, why: String },
    #[error(transparent)]
    Setup(#[from] rustls::Error),
}

/// What connects to `host`, which must prove its name by a root built in or in one of `extra`.
///
/// # Errors
/// [`TlsError`]: as it says.
pub fn connector(
    host: &str,
    extra: &[PathBuf],
) -> Result<(TlsConnector, ServerName<'static>), TlsError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name {
        host: host.to_owned(),
    })?;
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    for path in extra {
        add(&mut roots, path)?;
    }
    // Named, not taken from the process: two providers in one build would make that a panic.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsConnector::from(Arc::new(config)), name))
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    let fault = |why: String| TlsError::Roots {
        path: path.to_owned(),
        why,
    };
    let mut found = false;
    for certificate in CertificateDer::pem_file_iter(path).map_err(|why| fault(why.to_string()))? {
        let certificate = certificate.map_err(|why| fault(why.to_string()))?;
        roots
            .add(certificate)
            .map_err(|why| fault(why.to_string()))?;
        found = true;
    }
    if found {
        Ok(())
    } else {
        Err(fault("there is no certificate in it".into()))
    }
}
