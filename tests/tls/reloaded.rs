//! Listeners that come and go because the configuration says something else.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use podgate::config::Config;
use podgate::reload::{Source, Taken};
use podgate::serve::{self, Beside, Running};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::agreed::listen;
use super::authority::{Authority, Folder};
use super::client::{Client, NAME, exchange, shown};
use super::support::{Machine, Scene, Upstream, eventually, job, post, request, unique, within};

/// podgate with a file that can be written anew.
struct Stand {
    folder: Folder,
    running: Running,
    upstream: Upstream,
    _machine: Machine,
}

fn text(listen: &str, keys: &str, upstream: SocketAddr) -> String {
    format!(
        "listen: {listen}\nadmin: 127.0.0.1:0\nworkers: 2\n\
         upstream: {{ url: 'http://{upstream}'{keys} }}\n"
    )
}

impl Stand {
    fn start(folder: Folder, listen: &str) -> Self {
        let machine = Machine::take();
        let upstream = Scene::default().upstream();
        let file = folder.put("podgate.yaml", &text(listen, "", upstream.address));
        let config = Config::load(&file).unwrap();
        let beside = Beside {
            source: Source {
                file: Some(file),
                ..Source::default()
            },
            ..Beside::default()
        };
        Self {
            running: serve::start_with(config, beside).unwrap(),
            folder,
            upstream,
            _machine: machine,
        }
    }

    async fn reload(&self, listen: &str, keys: &str) -> Result<Taken, String> {
        let text = text(listen, keys, self.upstream.address);
        self.folder.put("podgate.yaml", &text);
        within("a reload", self.running.reloads().ask()).await
    }

    async fn takes(&self, listen: &str) {
        let taken = self.reload(listen, "").await.unwrap();
        assert_eq!(taken.need_restart, [""; 0]);
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let listeners = self.running.listeners.borrow();
        listeners.iter().filter_map(|one| one.at().tcp()).collect()
    }
}

async fn is_served(address: SocketAddr) {
    let stream = TcpStream::connect(address).await.unwrap();
    let run = request("POST", "/v2/ep/run", job(&unique()));
    assert_eq!(exchange(stream, run, false).await.unwrap().status, 200);
}

#[tokio::test]
async fn places_come_and_go_and_who_stays_notices_nothing() {
    let stand = Stand::start(Folder::new(), "127.0.0.1:0");
    let [first] = stand.addresses()[..] else {
        panic!("one")
    };
    let mut kept = TcpStream::connect(first).await.unwrap();
    let mut ask = async || {
        let run = post("/v2/ep/run", &job(&unique()));
        kept.write_all(run.as_bytes()).await.unwrap();
        super::support::head_of_answer(&mut kept).await
    };
    assert!(ask().await.starts_with("HTTP/1.1 200"));
    let file = stand.folder.file("a.sock");
    stand.takes("[127.0.0.1:0, unix:a.sock]").await;
    assert_eq!(stand.addresses(), [first], "its socket is the same");
    let stream = UnixStream::connect(&file).await.unwrap();
    let run = request("POST", "/v2/ep/run", job(&unique()));
    assert_eq!(exchange(stream, run, false).await.unwrap().status, 200);
    let head = ask().await;
    assert!(!head.contains("connection: close"), "{head}");

    stand.takes("{ at: 'unix:a.sock', mode: \"0600\" }").await;
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut rest = Vec::new();
    within("it is seen out", kept.read_to_end(&mut rest))
        .await
        .unwrap();
    let gone = async { while TcpStream::connect(first).await.is_ok() {} };
    within("nobody listens", gone).await;
    UnixStream::connect(&file).await.unwrap();
    stand.takes("127.0.0.1:0").await;
    eventually("its file is gone", || !file.exists()).await;
    is_served(stand.addresses()[0]).await;
}

#[tokio::test]
async fn a_place_may_become_another_kind_and_keeps_its_socket() {
    let (folder, root) = (Folder::new(), Authority::new("root"));
    let (first, second) = (root.signs(NAME, 2090), root.signs(NAME, 2091));
    first.put(&folder);
    let stand = Stand::start(folder, "127.0.0.1:0");
    let address = stand.addresses()[0];
    let client = Client::new(&root, None, &["http/1.1"]);
    stand.takes(&listen(&stand.folder, "127.0.0.1:0", "")).await;
    assert_eq!(stand.addresses(), [address]);
    // Those who were let in before it changed are still greeted in the clear.
    let shows = async || {
        loop {
            match client.connect(address).await {
                Ok(stream) => return shown(&stream),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    assert!(within("TLS", shows()).await == first.der());
    let others = Folder::new();
    second.put(&others);
    stand.takes(&listen(&others, "127.0.0.1:0", "")).await;
    let comes = async { while shows().await != second.der() {} };
    within("the other one", comes).await;
    stand.takes("127.0.0.1:0").await;
    let plain = async {
        let run = || request("POST", "/v2/ep/run", job(&unique()));
        loop {
            let stream = TcpStream::connect(address).await.unwrap();
            if exchange(stream, run(), false).await.is_ok() {
                return;
            }
        }
    };
    within("in the clear", plain).await;
}

#[tokio::test]
async fn what_cannot_be_taken_changes_nothing() {
    let stand = Stand::start(Folder::new(), "0.0.0.0:0");
    let admin = stand.running.admin;
    let key = stand.folder.put("key", "rpa_KEY");
    let inject = format!(", api_key: {{ file: '{}' }}", key.display());
    let missing = listen(&stand.folder, "127.0.0.1:0", "");
    for (listen, keys, said) in [
        (&*format!("[0.0.0.0:0, '{admin}']"), "", "cannot listen on"),
        (&*missing, "", "tls.crt` cannot be used"),
        ("unix:no/such/a.sock", "", "cannot listen on unix:"),
        // Who came in from elsewhere would spend it.
        ("127.0.0.1:0", &*inject, "take it away first"),
    ] {
        let refused = stand.reload(listen, keys).await.unwrap_err();
        assert!(refused.contains(said), "{refused}");
        is_served(stand.addresses()[0]).await;
    }
    // Once it has been taken away it is no danger.
    stand.takes("127.0.0.1:0").await;
    stand.reload("127.0.0.1:0", &inject).await.unwrap();
    is_served(stand.addresses()[0]).await;
}
