//! TLS towards clients: from files to what a handshake needs, and to what is said when they are no
//! good. No socket here, and nothing that watches the files.
//!
//! What an error says names a file and a reason, never what is in it: one of the files is a key.

pub mod der;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};

/// The largest file that is read, in bytes: a chain is a few kilobytes, a store of roots some hundred.
const LARGEST: u64 = 1 << 20;

/// How a client is asked who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// It is not.
    #[default]
    None,
    /// Whoever shows a certificate must prove it.
    Optional,
    /// Nobody gets in without one.
    Required,
}

impl ClientAuth {
    pub const WORDS: [(&'static str, ClientAuth); 3] = [
        ("none", ClientAuth::None),
        ("optional", ClientAuth::Optional),
        ("required", ClientAuth::Required),
    ];
}

/// What a listener proves itself with, and whom it believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// PEM: its own certificate first, then those that lead to a root.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// PEM: whoever signs clients' certificates.
    pub client_ca: Vec<PathBuf>,
    pub client_auth: ClientAuth,
}

impl Files {
    pub fn all(&self) -> impl Iterator<Item = &Path> {
        let roots = self.client_ca.iter().map(PathBuf::as_path);
        [self.cert.as_path(), &self.key].into_iter().chain(roots)
    }
}

/// Which of the files is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Cert,
    Key,
    /// The nth of `client_ca`, from 0.
    ClientCa(usize),
}

/// Why the files are no good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {} `{}` cannot be used: {why}", self.what(), path.display())]
pub struct Unusable {
    pub which: Which,
    pub path: PathBuf,
    pub why: String,
}

impl Unusable {
    fn what(&self) -> &'static str {
        match self.which {
            Which::Cert => "certificate",
            Which::Key => "key",
            Which::ClientCa(_) => "clients' root",
        }
    }
}

/// What new connections are greeted with.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Arc<ServerConfig>,
    /// When the first of the chain's certificates is over, in seconds since 1970.
    pub expires: i64,
}

/// Reads them all.
///
/// # Errors
/// [`Unusable`]: the first that is no good.
pub fn load(files: &Files) -> Result<Loaded, Unusable> {
    let blame = |which, path: &Path| {
        let path = path.to_owned();
        move |why: String| Unusable { which, path, why }
    };
    let cert = blame(Which::Cert, &files.cert);
    let key = blame(Which::Key, &files.key);
    // Named, not taken from the process: two providers in one build would make that a panic.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = match certificates(&files.cert) {
        Ok(chain) => chain,
        Err(why) => return Err(cert(why)),
    };
    let expires = chain.iter().map(|one| der::read(one).map(|f| f.expires));
    let Some(Some(expires)) = expires.min() else {
        return Err(cert(
            "there is something else than a certificate in it".into(),
        ));
    };
    let signing = match private_key(&files.key, &provider) {
        Ok(signing) => signing,
        Err(why) => return Err(key(why)),
    };
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        // A key that cannot say what it belongs to is believed, as rustls does.
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(Error::InconsistentKeys(_)) => {
            let cert = files.cert.display();
            return Err(key(format!(
                "it is not the key of the certificate `{cert}`"
            )));
        }
        Err(other) => return Err(cert(other.to_string())),
    }
    let verifier = verifier(files, &provider)?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| cert(error.to_string()))?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Loaded {
        config: Arc::new(config),
        expires,
    })
}

fn verifier(
    files: &Files,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, Unusable> {
    if files.client_auth == ClientAuth::None {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    for (nth, path) in files.client_ca.iter().enumerate() {
        let fault = |why| Unusable {
            which: Which::ClientCa(nth),
            path: path.clone(),
            why,
        };
        for root in certificates(path).map_err(fault)? {
            roots.add(root).map_err(|error| fault(error.to_string()))?;
        }
    }
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let builder = match files.client_auth {
        ClientAuth::Optional => builder.allow_unauthenticated(),
        ClientAuth::None | ClientAuth::Required => builder,
    };
    let verifier = builder.build().map_err(|error| Unusable {
        which: Which::ClientCa(0),
        path: files.client_ca.first().cloned().unwrap_or_default(),
        why: error.to_string(),
    })?;
    Ok(Some(verifier))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|error| not_pem(&error, "certificate"))?;
    match all.is_empty() {
        true => Err("there is no certificate in it".into()),
        false => Ok(all),
    }
}

fn private_key(
    path: &Path,
    provider: &CryptoProvider,
) -> Result<Arc<dyn rustls::sign::SigningKey>, String> {
    let key = PrivateKeyDer::from_pem_slice(&read(path)?);
    let key = key.map_err(|error| not_pem(&error, "private key without a passphrase"))?;
    let loaded = provider.key_provider.load_private_key(key);
    // Its own words could only be about what is in the key.
    loaded.map_err(|_| "it is no key of a kind that is known".into())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut file = file.take(LARGEST + 1);
    file.read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    match bytes.len() as u64 > LARGEST {
        true => Err(format!("it is larger than {LARGEST} bytes")),
        false => Ok(bytes),
    }
}

/// The error itself quotes the file.
fn not_pem(error: &pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("there is no {wanted} in it"),
        pem::Error::MissingSectionEnd { .. } => "it ends before its END line".into(),
        pem::Error::Base64Decode(_) => "what stands between its lines is not base64".into(),
        _ => "it is not PEM".into(),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("podgate-tls-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn put(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn pair() -> (String, String) {
        let mut params = CertificateParams::new(vec!["podgate.test".to_owned()]).unwrap();
        params.not_after = date_time_ymd(2090, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_pair_is_taken_and_whatever_is_wrong_is_said_without_what_is_in_the_key() {
        let folder = Folder::new("pair");
        let (cert, key) = pair();
        let files = Files {
            cert: folder.put("tls.crt", &cert),
            key: folder.put("tls.key", &key),
            client_ca: Vec::new(),
            client_auth: ClientAuth::None,
        };
        assert_eq!(load(&files).unwrap().expires, 3_786_912_000);

        let middle = key.lines().nth(1).unwrap().to_owned();
        let (_, another) = pair();
        let half = &key[..key.len() / 2];
        for (what, cert, key, which, said) in [
            (
                "another's",
                &*cert,
                &*another,
                Which::Key,
                "it is not the key of",
            ),
            (
                "no key",
                &cert,
                &cert,
                Which::Key,
                "there is no private key",
            ),
            ("half a key", &cert, half, Which::Key, "ends before its END"),
            (
                "no certificate",
                &key,
                &key,
                Which::Cert,
                "there is no certificate",
            ),
            ("nothing", "", &key, Which::Cert, "there is no certificate"),
        ] {
            folder.put("tls.crt", cert);
            folder.put("tls.key", key);
            let fault = load(&files).expect_err(what);
            assert_eq!(fault.which, which, "{what}: {fault}");
            let text = format!("{fault} {fault:?}");
            assert!(text.contains(said), "{what}: {text}");
            assert!(!text.contains(&middle), "{what}: {text}");
        }
        std::fs::remove_file(&files.key).unwrap();
        folder.put("tls.crt", &cert);
        let text = load(&files).unwrap_err().to_string();
        assert!(
            text.contains("tls.key` cannot be used: No such file"),
            "{text}"
        );
    }

    #[test]
    fn roots_of_clients_are_read_where_clients_are_asked() {
        let folder = Folder::new("roots");
        let (cert, key) = pair();
        let files = |client_auth| Files {
            cert: folder.put("tls.crt", &cert),
            key: folder.put("tls.key", &key),
            client_ca: vec![folder.put("ca.pem", "# nothing")],
            client_auth,
        };
        assert!(load(&files(ClientAuth::None)).is_ok());
        let fault = load(&files(ClientAuth::Optional)).unwrap_err();
        assert_eq!(fault.which, Which::ClientCa(0));
        assert!(
            fault.to_string().contains("no certificate in it"),
            "{fault}"
        );
    }
}
