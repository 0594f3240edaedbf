//! One key and certificate (ECDSA, P-256) for whoever listens by TLS here. Whoever connects trusts
//! just that. One cipher only, so that no pair of sides agrees on a cheaper one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub const NAME: &str = "localhost";

pub fn name() -> ServerName<'static> {
    NAME.try_into().expect("it is a name")
}

pub fn certificate(folder: &Path) -> PathBuf {
    folder.join("certificate.pem")
}

pub fn key(folder: &Path) -> PathBuf {
    folder.join("key.pem")
}

/// Writes both into `folder`.
pub fn make(folder: &Path) {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a name is enough");
    std::fs::write(certificate(folder), made.cert.pem()).unwrap();
    std::fs::write(key(folder), made.signing_key.serialize_pem()).unwrap();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256],
        ..default_provider()
    })
}

/// For who listens.
pub fn server(folder: &Path) -> Arc<ServerConfig> {
    let chain = vec![CertificateDer::from_pem_file(certificate(folder)).unwrap()];
    let key = PrivateKeyDer::from_pem_file(key(folder)).unwrap();
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    Arc::new(config.unwrap())
}

/// For who connects.
pub fn client(folder: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(certificate(folder)).unwrap();
    roots.add(root).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}
