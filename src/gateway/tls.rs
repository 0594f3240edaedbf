//! TLS towards the upstream: rustls with ring, Mozilla's roots built in or the machine's, more from
//! files. What is wrong with its certificate is told to whoever operates podgate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::config::process::Roots;

/// Where Debian, Fedora, SUSE and Alpine keep them.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// A certificate that is refused is refused each time: it is said again after so long.
const SAY_AGAIN: Duration = Duration::from_secs(30);
/// A certificate may be for hundreds of names. In characters.
const LONGEST_COMPLAINT: usize = 300;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("`{host}` is no name a certificate can be for")]
    Name { host: String },
    #[error("the root certificates in `{}` cannot be used: {why}", path.display())]
    Roots { path: PathBuf, why: String },
    #[error(
        "there are no roots of the machine's own where they usually are: `SSL_CERT_FILE` names a file"
    )]
    NoSystemRoots,
    #[error(transparent)]
    Setup(#[from] rustls::Error),
}

/// What connects to `host`, which must prove its name by a root of those `trusted` or in one of
/// `extra`.
///
/// # Errors
/// [`TlsError`]: as it says.
pub fn connector(
    host: &str,
    trusted: Roots,
    extra: &[PathBuf],
) -> Result<(TlsConnector, ServerName<'static>), TlsError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name {
        host: host.to_owned(),
    })?;
    let mut roots = match trusted {
        Roots::Bundled => RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        },
        Roots::System => system()?,
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

/// The machine's own, as OpenSSL and the distributions have them.
fn system() -> Result<RootCertStore, TlsError> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = SYSTEM_ROOTS.iter().map(PathBuf::from);
    let mut files = named.map_or_else(|| usual.collect(), |named| vec![named]);
    files.retain(|file| file.exists());
    let Some(path) = files.first() else {
        return Err(TlsError::NoSystemRoots);
    };
    let fault = |why: String| TlsError::Roots {
        path: path.clone(),
        why,
    };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|why| fault(why.to_string()))?;
    let mut roots = RootCertStore::empty();
    // What one of so many cannot be used for is its distribution's business.
    let (taken, _) = roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    match taken {
        0 => Err(fault("there is no certificate in it".into())),
        _ => Ok(roots),
    }
}

/// Says what is wrong with the upstream's certificate, once in a while. Cheap to clone: whoever
/// shares it says it once together.
#[derive(Clone, Default)]
pub struct Complaints(Arc<Mutex<Option<Instant>>>);

impl Complaints {
    /// Nothing, if the error is of another kind.
    pub fn about(&self, error: &io::Error, name: &ServerName<'_>) {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        let Some(Error::InvalidCertificate(refused)) = inner else {
            return;
        };
        let now = now();
        let mut last = self.0.lock();
        let again = last.is_none_or(|last| now.saturating_duration_since(last) >= SAY_AGAIN);
        if !again {
            return;
        }
        *last = Some(now);
        drop(last);
        let mut why = refused.to_string();
        if why.chars().count() > LONGEST_COMPLAINT {
            why = why.chars().take(LONGEST_COMPLAINT).collect::<String>() + "...";
        }
        tracing::warn!(
            "the certificate that the upstream shows for {} is refused: {why}{}",
            name.to_str(),
            advice(refused)
        );
    }
}

/// What there is to do, where the error itself does not say it.
fn advice(refused: &CertificateError) -> &'static str {
    match refused {
        CertificateError::UnknownIssuer => {
            " (nobody who is trusted has signed it: `upstream.trust_ca` names further roots)"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            " (`upstream.sni` is for upstreams with another name)"
        }
        _ => "",
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long ago something was said is counted here"
)]
fn now() -> Instant {
    Instant::now()
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
