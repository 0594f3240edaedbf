//! The way to the upstream: certificates, proxies, and what stands in it. Whoever cannot be reached
//! costs nothing, and the answer says what is wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use podgate::emulator::limits::Group;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::scripted::Scripted;
use super::support::{Scene, call, eventually, now, request, within};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A root of our own, in a file that goes with it.
struct Root {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl Root {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let name = format!("root {number}");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let name = format!("podgate-test-root-{}-{number}.pem", std::process::id());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, certificate.pem()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            file,
        }
    }

    /// What proves that a server is `name`, in the years given.
    fn server(&self, name: &str, years: std::ops::Range<i32>) -> TlsAcceptor {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(years.start, 1, 1);
        params.not_after = date_time_ymd(years.end, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate: Certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self::acceptor(&certificate, &key)
    }

    fn acceptor(certificate: &Certificate, key: &KeyPair) -> TlsAcceptor {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    /// What a server proves by nobody's word but its own.
    fn signs_itself(name: &str) -> TlsAcceptor {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self::acceptor(&certificate, &key)
    }

    /// The configuration's `trust_ca`.
    fn trusted(&self) -> String {
        format!("trust_ca: ['{}']", self.file.display())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// An upstream behind TLS.
struct Behind {
    address: SocketAddr,
    handshakes: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

/// How it says that an answer is over.
#[derive(Clone, Copy)]
enum End {
    Length,
    /// By closing, as TLS wants it.
    Closed,
    /// By closing what is underneath: so would somebody in between.
    Cut,
}

impl Behind {
    async fn start(tls: TlsAcceptor, end: End) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handshakes = Arc::<AtomicUsize>::default();
        let count = handshakes.clone();
        let serving = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, count) = (tls.clone(), count.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = tls.accept(tcp).await else {
                        return;
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                    let mut read = Vec::new();
                    loop {
                        while !read.ends_with(b"\r\n\r\n") {
                            match stream.read_u8().await {
                                Ok(byte) => read.push(byte),
                                Err(_) => return,
                            }
                        }
                        read.clear();
                        let said = match end {
                            End::Length => OK,
                            End::Closed | End::Cut => b"HTTP/1.1 200 OK\r\n\r\nok",
                        };
                        stream.write_all(said).await.unwrap();
                        stream.flush().await.unwrap();
                        match end {
                            End::Length => {}
                            End::Closed => return stream.shutdown().await.unwrap_or_default(),
                            End::Cut => return,
                        }
                    }
                });
            }
        });
        Self {
            address,
            handshakes,
            serving,
        }
    }

    fn url(&self, name: &str) -> String {
        format!("https://{name}:{}", self.address.port())
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[tokio::test]
async fn who_proves_its_name_by_a_trusted_root_is_asked() {
    let root = Root::new();
    for name in ["localhost", "127.0.0.1"] {
        let upstream = Behind::start(root.server(name, 2020..2090), End::Length).await;
        let scene = Scene::default().workers(1);
        let scene = scene.upstream_keys(&root.trusted()).url(upstream.url(name));
        let (gateway, _machine) = scene.before(upstream.address);
        for _ in 0..5 {
            let answer = gateway.get("/v2/ep/health").await;
            assert_eq!((answer.status, answer.body.as_ref()), (200, &b"ok"[..]));
        }
        assert_eq!(upstream.handshakes.load(Ordering::Relaxed), 1, "{name}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_and_costs_nothing() {
    let (root, other) = (Root::new(), Root::new());
    for (what, tls, trusted, said) in [
        (
            "expired",
            root.server("localhost", 2020..2021),
            &root,
            "expired",
        ),
        (
            "not yet valid",
            root.server("localhost", 2080..2090),
            &root,
            "not valid yet",
        ),
        (
            "of another name",
            root.server("other.example", 2020..2090),
            &root,
            "not valid for name",
        ),
        (
            "signed by itself",
            Root::signs_itself("localhost"),
            &root,
            "UnknownIssuer",
        ),
        (
            "of an unknown root",
            root.server("localhost", 2020..2090),
            &other,
            "UnknownIssuer",
        ),
    ] {
        let upstream = Behind::start(tls, End::Length).await;
        let scene = Scene::default().upstream_keys(&trusted.trusted());
        let scene = scene.url(upstream.url("localhost"));
        let (gateway, _machine) = scene.before(upstream.address);
        let answer = gateway.post("/v2/ep/run", "{}").await;
        assert_eq!(answer.status, 502, "{what}");
        let problem = answer.json();
        assert_eq!(problem["outcome"], "upstream_unreachable", "{what}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(said), "{what}: {detail}");
        assert_eq!(gateway.window_used(Group::Run), 0, "{what}");
        gateway.comes_to_rest().await;
    }
}

#[tokio::test]
async fn an_upstream_by_another_name_is_asked_for_that() {
    let root = Root::new();
    let tls = root.server("api.example", 2020..2090);
    let upstream = Behind::start(tls, End::Length).await;
    for (sni, status) in [("api.example", 200), ("other.example", 502)] {
        let keys = format!("sni: {sni}, {}", root.trusted());
        let scene = Scene::default().upstream_keys(&keys);
        let (gateway, _machine) = scene
            .url(upstream.url("localhost"))
            .before(upstream.address);
        let answer = gateway.get("/v2/ep/health").await;
        assert_eq!(answer.status, status, "{sni}");
    }
}

#[tokio::test]
async fn the_machine_s_own_roots_are_trusted_where_they_are_asked_for() {
    let root = Root::new();
    let upstream = Behind::start(root.server("localhost", 2020..2090), End::Length).await;
    let shell = format!("SSL_CERT_FILE='{}' exec \"$@\"", root.file.display());
    for (roots, status) in [("system", 200), ("bundled", 502)] {
        let scene = Scene::default().upstream_keys(&format!("roots: {roots}"));
        let process = scene.url(upstream.url("localhost")).process_by(&shell);
        let answer = process.post("/v2/ep/run", "{}".to_owned()).await;
        assert_eq!(answer.status, status, "{roots}");
    }
}

/// However many ask, and whichever of its workers they come to.
#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_once() {
    let root = Root::new();
    for (tls, said) in [
        (
            root.server("other.example", 2020..2090),
            "is only valid for DnsName(\"other.example\") (`upstream.sni` is for",
        ),
        (
            root.server("localhost", 2020..2021),
            "is refused: certificate expired",
        ),
        (
            Root::signs_itself("localhost"),
            "UnknownIssuer (nobody who is trusted has signed it: `upstream.trust_ca`",
        ),
    ] {
        let upstream = Behind::start(tls, End::Length).await;
        let scene = Scene::default().upstream_keys(&root.trusted());
        let process = scene.url(upstream.url("localhost")).process();
        for _ in 0..5 {
            let answer = process.post("/v2/ep/run", "{}".to_owned()).await;
            assert_eq!(answer.status, 502);
        }
        eventually("it is said", || process.has_said(said) == 1).await;
        let all = process.has_said("the certificate that the upstream shows for localhost");
        assert_eq!(all, 1, "{:?}", process.said());
    }
}

/// What closes in time, or not at all.
#[tokio::test]
async fn who_does_not_shake_hands_is_unreachable_in_time() {
    let silent = Scripted::start(|connection| async move {
        std::future::pending::<()>().await;
        drop(connection);
    })
    .await;
    let closing = Scripted::start(|mut connection| async move {
        // With bytes unread, closing would be a reset.
        let _ = connection.stream.read(&mut [0; 4_096]).await;
    })
    .await;
    let plain = Scripted::start(|mut connection| async move {
        connection.write("HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = connection.stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    for (what, upstream, said) in [
        ("silent", &silent, "no connection within 300ms"),
        ("closing", &closing, "eof"),
        ("plain", &plain, "InvalidContentType"),
    ] {
        let url = format!("https://localhost:{}", upstream.address.port());
        let scene = Scene::default()
            .upstream_keys("connect_timeout: 300ms")
            .url(url);
        let (gateway, _machine) = scene.before(upstream.address);
        let asked = now();
        let answer = gateway.post("/v2/ep/run", "{}").await;
        assert!(asked.elapsed() < Duration::from_secs(10), "{what}");
        let problem = answer.json();
        assert_eq!(
            (answer.status, &problem["outcome"]),
            (502, &"upstream_unreachable".into())
        );
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(said), "{what}: {detail}");
        gateway.comes_to_rest().await;
        assert_eq!(gateway.window_used(Group::Run), 0, "{what}");
    }
}

/// Without a length only TLS can tell the end from a cut.
#[tokio::test]
async fn an_end_that_tls_does_not_vouch_for_is_a_cut() {
    let root = Root::new();
    for (end, whole) in [(End::Closed, true), (End::Cut, false)] {
        let upstream = Behind::start(root.server("localhost", 2020..2090), end).await;
        let scene = Scene::default().upstream_keys(&root.trusted());
        let scene = scene.url(upstream.url("localhost"));
        let (gateway, _machine) = scene.before(upstream.address);
        let answer = call(gateway.address(), request("GET", "/v2/ep/health", "")).await;
        let passed = answer.is_ok_and(|answer| answer.status == 200);
        assert_eq!(passed, whole);
        gateway.comes_to_rest().await;
    }
}

/// Its first connection is reset in the middle of the handshake: nothing was written, so it is made
/// once more.
#[tokio::test]
async fn a_connection_that_breaks_before_it_is_one_is_made_again() {
    let root = Root::new();
    let upstream = Behind::start(root.server("localhost", 2020..2090), End::Length).await;
    let target = upstream.address;
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = door.local_addr().unwrap();
    let relaying = tokio::spawn(async move {
        let (first, _) = door.accept().await.unwrap();
        first.readable().await.unwrap();
        first.set_zero_linger().unwrap();
        drop(first);
        let (mut second, _) = door.accept().await.unwrap();
        let mut server = TcpStream::connect(target).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut second, &mut server).await;
    });
    let scene = Scene::default().upstream_keys(&root.trusted());
    let scene = scene.url(format!("https://localhost:{}", address.port()));
    let (gateway, _machine) = scene.before(address);
    let answer = gateway.post("/v2/ep/run", "").await;
    assert_eq!((answer.status, answer.body.as_ref()), (200, &b"ok"[..]));
    relaying.abort();
}

/// podgate as a process, with an environment of its own.
struct Podgate {
    child: Child,
    address: Option<SocketAddr>,
    said: Arc<Mutex<String>>,
}

impl Podgate {
    fn start(environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podgate"));
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        let mut child = command
            .envs(environment.iter().copied())
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let said = Arc::<Mutex<String>>::default();
        let mut address = None;
        let mut lines = stderr.lines().map_while(Result::ok);
        for line in lines.by_ref() {
            said.lock().push_str(&line);
            if let Some((_, rest)) = line.split_once(" ready on http://") {
                let end = rest.find(|c: char| c == ',' || c.is_whitespace());
                address = rest[..end.unwrap_or(rest.len())].parse().ok();
                break;
            }
        }
        // A full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            address,
            said,
        }
    }

    async fn get(&self, path: &str) -> super::support::Answer {
        let address = self.address.expect("it is ready");
        call(address, request("GET", path, "")).await.unwrap()
    }
}

impl Drop for Podgate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A proxy that tunnels to one place whatever it is asked for, or refuses; it keeps what it was
/// asked.
fn proxy(target: Option<SocketAddr>, says: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let heads = asked.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let heads = heads.clone();
            std::thread::spawn(move || tunnel(client, target, says, &heads));
        }
    });
    (address, asked)
}

fn tunnel(
    mut client: StdStream,
    target: Option<SocketAddr>,
    says: &str,
    heads: &Mutex<Vec<String>>,
) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match client.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    heads.lock().push(String::from_utf8(head).unwrap());
    client.write_all(says.as_bytes()).unwrap();
    let Some(target) = target else { return };
    let server = StdStream::connect(target).unwrap();
    let (mut up_from, mut up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut up_from, &mut up_to);
    });
    let _ = std::io::copy(&mut &server, &mut client);
}

const TUNNEL: &str = "HTTP/1.1 200 Connection established\r\nvia: a proxy\r\n\r\n";

#[tokio::test]
async fn the_environments_proxy_is_the_way_to_a_plain_upstream() {
    let upstream = Scripted::answering(OK).await;
    let (proxy, asked) = proxy(Some(upstream.address), TUNNEL);
    let url = format!("http://Aladdin:open%20sesame@{proxy}");
    let podgate = Podgate::start(
        &[("HTTP_PROXY", &url), ("HTTPS_PROXY", "http://127.0.0.1:1")],
        &["--upstream", "http://api.example:8500"],
    );
    for _ in 0..3 {
        assert_eq!(podgate.get("/v2/ep/health").await.body, "ok");
    }
    for head in asked.lock().iter() {
        assert!(
            head.starts_with("CONNECT api.example:8500 HTTP/1.1\r\n"),
            "{head}"
        );
        assert!(head.contains("\r\nHost: api.example:8500\r\n"), "{head}");
        let credentials = "\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n";
        assert!(head.contains(credentials), "{head}");
    }
    let received = upstream.received();
    assert_eq!(received.len(), 3);
    assert_eq!(received[0].line(), "GET /v2/ep/health HTTP/1.1");
    assert_eq!(received[0].field("host"), ["api.example:8500"]);
    assert_eq!(received[0].field("proxy-authorization"), [""; 0]);
}

#[tokio::test]
async fn the_environments_proxy_carries_tls_from_end_to_end() {
    let root = Root::new();
    let upstream = Behind::start(root.server("api.example", 2020..2090), End::Length).await;
    let (proxy, asked) = proxy(Some(upstream.address), TUNNEL);
    let file = root.file.with_extension("yaml");
    let keys = format!(
        "upstream: {{ url: 'https://api.example', {} }}\n",
        root.trusted()
    );
    std::fs::write(&file, keys).unwrap();
    let podgate = Podgate::start(
        &[("https_proxy", &proxy.to_string())],
        &["--config", file.to_str().unwrap()],
    );
    assert_eq!(podgate.get("/v2/ep/health").await.body, "ok");
    assert!(asked.lock()[0].starts_with("CONNECT api.example:443 HTTP/1.1\r\n"));
    remove(&file);
}

fn remove(file: &Path) {
    let _ = std::fs::remove_file(file);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    for (says, said) in [
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "it answers 403"),
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
            "it wants other credentials",
        ),
        ("SSH-2.0-x\r\n\r\n", "its answer is not HTTP/1"),
        ("", "end of file"),
    ] {
        let (proxy, _asked) = proxy(None, says);
        let podgate = Podgate::start(
            &[("ALL_PROXY", &format!("http://me:secret@{proxy}"))],
            &["--upstream", "http://api.example"],
        );
        let answer = podgate.get("/v2/ep/health").await;
        let problem = answer.json();
        assert_eq!(answer.status, 502, "{said}");
        assert_eq!(problem["outcome"], "upstream_unreachable", "{said}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("the proxy {proxy}: ")), "{detail}");
        assert!(detail.contains(said), "{detail}");
        assert!(!detail.contains("secret"), "{detail}");
    }
}

#[tokio::test]
async fn who_needs_no_proxy_is_asked_straight() {
    let upstream = Scripted::answering(OK).await;
    let (proxy, asked) = proxy(None, "");
    // This machine itself never does.
    let podgate = Podgate::start(
        &[("ALL_PROXY", &format!("http://{proxy}"))],
        &["--upstream", &format!("http://{}", upstream.address)],
    );
    assert_eq!(podgate.get("/v2/ep/health").await.body, "ok");
    assert!(asked.lock().is_empty());
}

#[tokio::test]
async fn a_proxy_that_cannot_be_used_stops_podgate_from_starting() {
    for (variable, value) in [
        ("HTTP_PROXY", "socks5://127.0.0.1:1080"),
        ("ALL_PROXY", "https://127.0.0.1:1080"),
        ("http_proxy", "://"),
    ] {
        let environment = [(variable, value)];
        let mut podgate = Podgate::start(&environment, &["--upstream", "http://api.example"]);
        assert_eq!(podgate.address, None, "{value}");
        let mut status = None;
        eventually("it has ended", || {
            status = podgate.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        assert_eq!(status.unwrap().code(), Some(2), "{value}");
        let said = podgate.said.lock();
        assert!(said.contains(&format!("`{variable}`")), "{said}");
    }
    // What is not for this upstream is nobody's fault.
    let podgate = Podgate::start(
        &[("HTTPS_PROXY", "socks5://x"), ("HTTP_PROXY", " ")],
        &["--upstream", "http://127.0.0.1:1"],
    );
    let answered = within("an answer", podgate.get("/v2/ep/health")).await;
    assert_eq!(answered.status, 502);
}
