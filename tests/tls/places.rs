//! Unix sockets, and sockets that were there before podgate.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use podgate::config::Config;
use podgate::emulator::limits::Group;
use podgate::listener::listening::Listening;
use podgate::serve;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::agreed::{listen, listener};
use super::authority::Folder;
use super::client::{Client, exchange};
use super::support::{Machine, Scene, eventually, job, long_job, post, request, unique, within};

#[tokio::test]
async fn clients_come_in_by_a_file() {
    let folder = Folder::new();
    let (_, root) = listener(&folder);
    let (plain, secret) = (folder.file("a.sock"), folder.file("b.sock"));
    let stand = Scene::default()
        .listen(format!(
            "[{{ at: 'unix:{}', mode: \"0600\" }}, {}]",
            plain.display(),
            listen(&folder, &format!("unix:{}", secret.display()), "")
        ))
        .logged()
        .start();
    let mode = std::fs::metadata(&plain).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let run = || request("POST", "/v2/ep/run", job(&unique()));
    for h2 in [false, true] {
        let stream = UnixStream::connect(&plain).await.unwrap();
        assert_eq!(exchange(stream, run(), h2).await.unwrap().status, 200);
    }
    let client = Client::new(&root, None, &["http/1.1"]);
    let stream = UnixStream::connect(&secret).await.unwrap();
    let stream = client.over(stream).await.unwrap();
    assert_eq!(exchange(stream, run(), false).await.unwrap().status, 200);
    for line in stand.gateway.log(3).await {
        assert!(line.contains(" unix POST /v2/ep/run 200 "), "{line}");
    }
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.upstream.submissions(), (3, 0));
    let running = stand.gateway.running;
    tokio::task::spawn_blocking(|| running.drain())
        .await
        .unwrap();
    assert!(!plain.exists() && !secret.exists(), "removed at the end");
}

#[tokio::test]
async fn who_leaves_by_a_unix_socket_takes_nothing_along() {
    let folder = Folder::new();
    let at = folder.file("a.sock");
    let stand = Scene::default()
        .listen(format!("unix:{}", at.display()))
        .set(Group::RunSync, "concurrency: 1, max_wait: 60s")
        .start();
    let runsync = || post("/v2/ep/runsync", &long_job(&unique(), 600.0));
    let mut holder = UnixStream::connect(&at).await.unwrap();
    holder.write_all(runsync().as_bytes()).await.unwrap();
    eventually("it is held", || stand.upstream.submissions().0 == 1).await;
    for another in ["".to_owned(), runsync()] {
        let mut waiter = UnixStream::connect(&at).await.unwrap();
        let sent = runsync() + &another;
        waiter.write_all(sent.as_bytes()).await.unwrap();
        eventually("it waits", || stand.gateway.waiting(Group::RunSync) == 1).await;
        drop(waiter);
        eventually("it is gone", || stand.gateway.waiting(Group::RunSync) == 0).await;
    }
    drop(holder);
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.upstream.submissions(), (1, 0));
}

#[tokio::test]
async fn places_come_and_go_while_clients_are_served() {
    let folder = Folder::new();
    let (_, root) = listener(&folder);
    let stand = Scene::default().start();
    let running = &stand.gateway.running;
    let metrics = &running.shared.metrics;
    let text = format!(
        "listen: [{}, 'unix:a.sock']",
        listen(&folder, "127.0.0.1:0", "")
    );
    let name = folder.file("podgate.yaml");
    let config = Config::parse(name.to_str().unwrap(), &text).unwrap();
    let opened = config.listen.iter().map(|listener| {
        let opened = Listening::open(listener, None, false, metrics);
        Arc::new(opened.unwrap())
    });
    let opened: Vec<_> = opened.collect();
    let address = opened[0].at().tcp().unwrap();
    running.listeners.send_modify(|all| all.extend(opened));
    stand.still_serves().await;

    let client = Client::new(&root, None, &["http/1.1"]);
    let mut under_way = client.connect(address).await.unwrap();
    let runsync = post("/v2/ep/runsync", &long_job(&unique(), 0.5));
    under_way.write_all(runsync.as_bytes()).await.unwrap();
    eventually("it is under way", || stand.upstream.submissions().0 == 2).await;
    let file = folder.file("a.sock");
    let stream = UnixStream::connect(&file).await.unwrap();
    let run = request("POST", "/v2/ep/run", job(&unique()));
    assert_eq!(exchange(stream, run, false).await.unwrap().status, 200);

    running.listeners.send_modify(|all| all.truncate(1));
    let mut said = String::new();
    let ended = within("it ends", under_way.read_to_string(&mut said)).await;
    ended.unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert!(said.contains("\r\nconnection: close\r\n"), "{said}");
    eventually("nobody listens", || !file.exists()).await;
    let gone = async { while TcpStream::connect(address).await.is_ok() {} };
    within("nobody listens", gone).await;
    eventually("its certificate is forgotten", || {
        let page = String::from_utf8(metrics.page().unwrap()).unwrap();
        !page.contains("podgate_certificate_expiry_timestamp_seconds{")
    })
    .await;
    stand.is_as_before().await;
}

#[test]
fn a_place_that_is_taken_is_not_taken_again() {
    let _machine = Machine::take();
    let folder = Folder::new();
    let at = folder.file("a.sock");
    let text = format!(
        "listen: unix:{}\nadmin: 127.0.0.1:0\nworkers: 1\n",
        at.display()
    );
    let config = || Config::parse("a.yaml", &text).unwrap();
    let running = serve::start(config()).unwrap();
    let refused = serve::start(config()).err().unwrap().to_string();
    assert!(refused.contains("somebody answers there"), "{refused}");
    running.drain();
    serve::start(config()).unwrap().drain();
}

#[test]
fn nobody_is_greeted_with_what_is_no_good() {
    let _machine = Machine::take();
    let folder = Folder::new();
    let text = format!(
        "listen: {}\nadmin: 127.0.0.1:0\nworkers: 1\n",
        listen(&folder, "127.0.0.1:0", "")
    );
    let start = || serve::start(Config::parse("a.yaml", &text).unwrap());
    let missing = start().err().unwrap().to_string();
    assert!(
        missing.contains("tls.crt` cannot be used: No such file"),
        "{missing}"
    );
    let (_, root) = listener(&folder);
    folder.put("tls.key", &root.signs("another.test", 2090).key_pem());
    let another = start().err().unwrap().to_string();
    assert!(
        another.contains("tls.key` cannot be used: it is not the key of"),
        "{another}"
    );
    listener(&folder);
    start().unwrap().drain();
}

/// A podgate that was given sockets as its descriptors 3 and 4. Ends with the test.
struct Given(Child);

impl Given {
    /// `config`: the text of its configuration, in `folder`. Returns its ready line too, or what it
    /// said in its place.
    fn start(
        folder: &Folder,
        config: &str,
        third: OwnedFd,
        fourth: OwnedFd,
    ) -> Result<(Self, String), String> {
        let file = folder.put("podgate.yaml", config);
        let shell = "exec 3<&0 4>&1 0</dev/null 1>/dev/null; \
                     LISTEN_PID=$$ LISTEN_FDS=2 exec \"$@\"";
        let child = Command::new("sh")
            .args(["-c", shell, "sh", env!("CARGO_BIN_EXE_podgate"), "serve"])
            .arg("--config")
            .arg(file)
            .stdin(third)
            .stdout(fourth)
            .stderr(Stdio::piped())
            .spawn();
        let mut given = Self(child.unwrap());
        let stderr = BufReader::new(given.0.stderr.take().unwrap());
        let mut lines = stderr.lines().map_while(Result::ok);
        let mut said = String::new();
        for line in lines.by_ref() {
            said += &line;
            if line.contains("podgate ready") {
                // It goes on saying things.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok((given, said));
            }
        }
        Err(said)
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn sockets_that_were_passed_are_used() {
    let machine = Machine::take();
    let upstream = Scene::default().upstream();
    let folder = Folder::new();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let file = folder.file("given.sock");
    let unix = UnixListener::bind(&file).unwrap();
    // In the other order: each finds its own. A third is bound.
    let config = format!(
        "listen: ['unix:{}', {address}, 127.0.0.1:0]\nadmin: 127.0.0.1:0\nworkers: 1\n\
         log: {{ access: false }}\nupstream: {{ url: 'http://{}' }}\n",
        file.display(),
        upstream.address
    );
    // Before anybody accepts: it waits in the backlog.
    let early = TcpStream::connect(address).await.unwrap();
    let (mut podgate, ready) = Given::start(&folder, &config, tcp.into(), unix.into()).unwrap();
    let run = || request("POST", "/v2/ep/run", job(&unique()));
    assert!(
        ready.contains(&format!(
            "unix:{}, http://{address}, http://",
            file.display()
        )),
        "{ready}"
    );
    assert_eq!(exchange(early, run(), false).await.unwrap().status, 200);
    let stream = UnixStream::connect(&file).await.unwrap();
    assert_eq!(exchange(stream, run(), false).await.unwrap().status, 200);
    kill_process(Pid::from_child(&podgate.0), Signal::TERM).unwrap();
    assert!(podgate.0.wait().unwrap().success());
    assert!(file.exists(), "it is whoever passed it who removes it");
    drop(machine);
}

#[tokio::test]
async fn sockets_at_other_places_are_used_in_order_and_guarded_alike() {
    let machine = Machine::take();
    let folder = Folder::new();
    let bind = |at| TcpListener::bind(at).unwrap();
    let (first, second) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let expected = format!(
        "http://{}, http://{}, admin",
        first.local_addr().unwrap(),
        second.local_addr().unwrap()
    );
    let config = "listen: [127.0.0.1:1, 127.0.0.1:2]\nadmin: 127.0.0.1:0\nworkers: 1\n";
    let (podgate, ready) = Given::start(&folder, config, first.into(), second.into()).unwrap();
    assert!(ready.contains(&expected), "{ready}");
    drop(podgate);

    let (open, other) = (bind("0.0.0.0:0"), bind("127.0.0.1:0"));
    let config = format!("{config}upstream: {{ api_key: {{ env: PATH_TO_NOTHING }} }}\n");
    let said = Given::start(&folder, &config, open.into(), other.into()).err();
    let said = said.unwrap();
    assert!(said.contains("can be reached from other hosts"), "{said}");
    drop(machine);
}
