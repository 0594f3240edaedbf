//! Clients that are asked who they are.

use std::sync::Arc;

use parking_lot::Mutex;
use podgate::emulator::limits::Group;
use tokio::sync::Semaphore;

use super::agreed::listen;
use super::authority::{Authority, Folder};
use super::client::{Client, NAME};
use super::scripted::Scripted;
use super::support::{Scene, eventually, job, request, unique};

#[tokio::test]
async fn a_certificate_is_asked_for_as_configured() {
    let folder = Folder::new();
    let (root, clients) = (Authority::new("root"), Authority::new("clients"));
    root.signs(NAME, 2090).put(&folder);
    folder.put("ca.pem", &clients.pem());
    let known = clients.signs("batch.test", 2090);
    let expired = clients.signs("batch.test", 2021);
    let stranger = root.signs("batch.test", 2090);
    for (auth, none, bad) in [
        ("none", true, true),
        ("optional", true, false),
        ("required", false, false),
    ] {
        let roots = folder.file("ca.pem");
        let more = format!(", client_ca: [{}], client_auth: {auth}", roots.display());
        let stand = Scene::default()
            .listen(listen(&folder, "127.0.0.1:0", &more))
            .start();
        for (who, identity, is_taken) in [
            ("nobody", None, none),
            ("known", Some(&known), true),
            ("expired", Some(&expired), bad),
            ("stranger", Some(&stranger), bad),
        ] {
            for offers in [&["h2"][..], &["http/1.1"]] {
                let client = Client::new(&root, identity, offers);
                let run = request("POST", "/v2/ep/run", job(&unique()));
                let answer = client.call(stand.gateway.address(), run).await;
                let status = answer.ok().map(|answer| answer.status);
                assert_eq!(status, is_taken.then_some(200), "{auth}: {who}");
            }
        }
        stand.gateway.comes_to_rest().await;
        let taken = [none, true, bad, bad]
            .iter()
            .filter(|taken| **taken)
            .count();
        assert_eq!(
            stand.upstream.submissions(),
            (2 * taken as u64, 0),
            "{auth}"
        );
    }
}

/// From one address, with no credential: who shows another certificate does not wait behind all that
/// the first has sent.
#[tokio::test]
async fn who_proves_to_be_another_has_a_turn_of_its_own() {
    let folder = Folder::new();
    let root = Authority::new("root");
    root.signs(NAME, 2090).put(&folder);
    let roots = folder.put("ca.pem", &root.pem());
    let more = format!(", client_ca: [{}], client_auth: required", roots.display());
    let go = Arc::new(Semaphore::new(0));
    let came = Arc::<Mutex<Vec<String>>>::default();
    let (goes, comes) = (go.clone(), came.clone());
    let upstream = Scripted::start(move |mut connection| {
        let (go, came) = (goes.clone(), comes.clone());
        async move {
            while let Some(received) = connection.receive().await {
                came.lock()
                    .push(received.field("x-request-id")[0].to_owned());
                go.acquire().await.unwrap().forget();
                connection
                    .write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await;
            }
        }
    })
    .await;
    let scene = Scene::default()
        .listen(listen(&folder, "127.0.0.1:0", &more))
        .set(Group::Run, "concurrency: 1, max_wait: 60s");
    let (gateway, _machine) = scene.before(upstream.address);
    let (first, second) = (
        root.signs("first.test", 2090),
        root.signs("second.test", 2090),
    );
    let (first, second) = (
        Client::new(&root, Some(&first), &[]),
        Client::new(&root, Some(&second), &[]),
    );
    let call = async |client: &Client, id: &str, waiting: usize| {
        eventually("its turn to ask", || {
            came.lock().len() == 1 && gateway.waiting(Group::Run) == waiting || id == "a1"
        })
        .await;
        let mut run = request("POST", "/v2/ep/run", job(id));
        run.headers_mut().remove("authorization");
        run.headers_mut()
            .insert("x-request-id", id.parse().unwrap());
        let answer = client.call(gateway.address(), run).await.unwrap();
        assert_eq!(answer.status, 200, "{id}");
    };
    let opens = async {
        eventually("all have come", || gateway.waiting(Group::Run) == 4).await;
        go.add_permits(5);
    };
    tokio::join!(
        call(&first, "a1", 0),
        call(&first, "a2", 0),
        call(&first, "a3", 1),
        call(&first, "a4", 2),
        call(&second, "b1", 3),
        opens,
    );
    let order = came.lock().join(" ");
    assert!(order.find("b1") < order.find("a3"), "{order}");
}
