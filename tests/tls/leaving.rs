//! Clients behind TLS that leave: as plain ones, they take nothing with them.

use std::time::Duration;

use podgate::emulator::limits::Group;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::agreed::listener;
use super::authority::Folder;
use super::client::{Client, exchange};
use super::support::{Scene, Tight, eventually, long_job, post, request, unique, within};

/// How a client goes.
#[derive(Clone, Copy, Debug)]
enum Goes {
    /// It says so, and closes.
    Well,
    /// It closes what is underneath.
    Short,
    Reset,
    /// It closes behind another request that nobody has read.
    BehindAnother,
    /// The same, and says nothing more.
    BehindAnotherShort,
}

const ALL: [Goes; 5] = [
    Goes::Well,
    Goes::Short,
    Goes::Reset,
    Goes::BehindAnother,
    Goes::BehindAnotherShort,
];

async fn leave(mut client: TlsStream<TcpStream>, goes: Goes) {
    match goes {
        Goes::Well => client.shutdown().await.unwrap(),
        Goes::Short => {}
        Goes::Reset => client.get_ref().0.set_zero_linger().unwrap(),
        Goes::BehindAnother | Goes::BehindAnotherShort => {
            let another = post("/v2/ep/run", &long_job(&unique(), 0.0));
            client.write_all(another.as_bytes()).await.unwrap();
            if matches!(goes, Goes::BehindAnother) {
                client.shutdown().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn who_leaves_while_waiting_is_not_submitted() {
    let folder = Folder::new();
    let (listen, root) = listener(&folder);
    let one = Tight {
        requests: None,
        window: Duration::from_secs(10),
        concurrency: Some(1),
    };
    let stand = Scene::default()
        .listen(listen)
        .limit(Group::RunSync, one)
        .set(Group::RunSync, "max_wait: 60s")
        .start();
    let client = Client::new(&root, None, &["http/1.1"]);
    let connect = async || client.connect(stand.gateway.address()).await.unwrap();
    let runsync = |seconds| post("/v2/ep/runsync", &long_job(&unique(), seconds));

    let mut holder = connect().await;
    holder.write_all(runsync(600.0).as_bytes()).await.unwrap();
    eventually("it is held", || stand.upstream.submissions().0 == 1).await;
    for goes in ALL {
        let mut waiter = connect().await;
        waiter.write_all(runsync(0.0).as_bytes()).await.unwrap();
        eventually("it waits", || stand.gateway.waiting(Group::RunSync) == 1).await;
        leave(waiter, goes).await;
        eventually(&format!("gone {goes:?}"), || {
            stand.gateway.waiting(Group::RunSync) == 0
        })
        .await;
    }
    // The permit of who is served comes back too.
    leave(holder, Goes::Well).await;
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.upstream.submissions(), (1, 0));
}

#[tokio::test]
async fn who_leaves_over_http2_takes_its_streams_along() {
    let folder = Folder::new();
    let (listen, root) = listener(&folder);
    let stand = Scene::default()
        .listen(listen)
        .set(Group::RunSync, "concurrency: 1, max_wait: 60s")
        .start();
    let client = Client::new(&root, None, &["h2"]);
    let connect = async || client.connect(stand.gateway.address()).await.unwrap();
    let runsync = |stream| {
        let body = long_job(&unique(), 600.0);
        let ask = request("POST", "/v2/ep/runsync", body);
        tokio::spawn(async move { drop(exchange(stream, ask, true).await) })
    };
    let holder = runsync(connect().await);
    eventually("it is held", || stand.upstream.submissions().0 == 1).await;
    let waiter = runsync(connect().await);
    eventually("it waits", || stand.gateway.waiting(Group::RunSync) == 1).await;
    waiter.abort();
    eventually("it is gone", || stand.gateway.waiting(Group::RunSync) == 0).await;
    holder.abort();
    stand.gateway.comes_to_rest().await;
    assert_eq!(stand.upstream.submissions(), (1, 0));
}

#[tokio::test]
async fn who_leaves_while_it_is_served_gives_its_permit_back() {
    let folder = Folder::new();
    let (listen, root) = listener(&folder);
    let stand = Scene::default().listen(listen).start();
    let client = Client::new(&root, None, &["http/1.1"]);
    for (goes, submitted) in ALL.into_iter().zip(1..) {
        let mut stream = client.connect(stand.gateway.address()).await.unwrap();
        let run = post("/v2/ep/runsync", &long_job(&unique(), 600.0));
        stream.write_all(run.as_bytes()).await.unwrap();
        eventually("it is served", || {
            stand.upstream.submissions().0 == submitted
        })
        .await;
        assert_eq!(stand.gateway.permits(Group::RunSync), 1);
        leave(stream, goes).await;
        within(&format!("{goes:?}"), stand.gateway.comes_to_rest()).await;
    }
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_body_is_not_submitted() {
    let folder = Folder::new();
    let (listen, root) = listener(&folder);
    let stand = Scene::default().listen(listen).start();
    let client = Client::new(&root, None, &["http/1.1"]);
    for goes in [Goes::Well, Goes::Short, Goes::Reset] {
        let mut stream = client.connect(stand.gateway.address()).await.unwrap();
        let run = post("/v2/ep/run", &long_job(&unique(), 0.0));
        let half = &run.as_bytes()[..run.len() - 5];
        stream.write_all(half).await.unwrap();
        eventually("it is there", || stand.gateway.connections() == 1).await;
        leave(stream, goes).await;
        stand.gateway.comes_to_rest().await;
    }
    assert_eq!(stand.upstream.submissions(), (0, 0));
}
