//! Certificates that change while they are in use.

use std::cell::Cell;

use super::agreed::listen;
use super::authority::{Authority, Folder, Identity};
use super::client::{Client, NAME, exchange, shown};
use super::support::{Gateway, Scene, job, request, unique, within};

/// Waits until a new connection is shown this certificate.
async fn is_shown(identity: &Identity, client: &Client, gateway: &Gateway) {
    let comes = async {
        while shown(&client.connect(gateway.address()).await.unwrap()) != identity.der() {
            tokio::task::yield_now().await;
        }
    };
    within("the new certificate is shown", comes).await;
}

fn expires(gateway: &Gateway) -> Option<i64> {
    let page = gateway.running.shared.metrics.page().unwrap();
    let page = String::from_utf8(page).unwrap();
    let address = gateway.address();
    let name = format!("podgate_certificate_expiry_timestamp_seconds{{listener=\"{address}\"}} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&name))?;
    value.parse::<f64>().ok().map(|value| value as i64)
}

/// A mounted secret: files behind two links, of which the first is replaced.
fn mount(folder: &Folder, identity: &Identity, number: usize) {
    let version = Folder::at(folder.file(&format!("..{number}")));
    identity.put(&version);
    std::mem::forget(version);
    let link = folder.file("..new");
    std::os::unix::fs::symlink(format!("..{number}"), &link).unwrap();
    std::fs::rename(&link, folder.file("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        // There already after the first time.
        let _ = std::os::unix::fs::symlink(format!("..data/{name}"), folder.file(name));
    }
}

#[tokio::test]
async fn under_load_no_request_notices() {
    let (folder, root) = (Folder::new(), Authority::new("root"));
    mount(&folder, &root.signs(NAME, 2090), 0);
    let stand = Scene::default()
        .listen(listen(&folder, "127.0.0.1:0", ""))
        .start();
    let address = stand.gateway.address();
    let (h1, h2) = (
        Client::new(&root, None, &["http/1.1"]),
        Client::new(&root, None, &["h2"]),
    );
    let (done, asked) = (Cell::new(false), Cell::new(0_u64));
    let ask = async |client: &Client| {
        while !done.get() {
            let status = request("GET", "/v2/ep/status/none", "");
            let answer = client.call(address, status).await.unwrap();
            assert!(answer.header("proxy-status").is_some());
            assert!(answer.status < 500, "{}", answer.status);
            asked.set(asked.get() + 1);
        }
    };
    let changes = async {
        // One connection lives through it all.
        let old = h1.connect(address).await.unwrap();
        for number in 1..=5 {
            let (before, identity) = (asked.get(), root.signs(NAME, 2090 + number));
            mount(&folder, &identity, number as usize);
            is_shown(&identity, &h1, &stand.gateway).await;
            assert!(asked.get() > before, "nothing was asked meanwhile");
        }
        let run = request("POST", "/v2/ep/run", job(&unique()));
        assert_eq!(exchange(old, run, false).await.unwrap().status, 200);
        done.set(true);
    };
    tokio::join!(changes, ask(&h1), ask(&h1), ask(&h2));
    assert_eq!(stand.gateway.ended("client_gone"), 0);
    // The last of 2095.
    assert_eq!(expires(&stand.gateway), Some(3_976_128_000));
}

#[tokio::test]
async fn what_is_no_good_is_left_alone_until_it_is_mended() {
    let (folder, root) = (Folder::new(), Authority::new("root"));
    let first = root.signs(NAME, 2090);
    first.put(&folder);
    let stand = Scene::default()
        .listen(listen(&folder, "127.0.0.1:0", ""))
        .start();
    let client = Client::new(&root, None, &[]);
    let other = root.signs(NAME, 2091);
    folder.put("tls.crt", "no certificate");
    folder.put("tls.key", &other.key_pem());
    // It is looked at in order: this one is in use once what came before was seen.
    let second = root.signs(NAME, 2092);
    let (looks, mends) = (Cell::new(0), Cell::new(false));
    let watches = async {
        while !mends.get() || looks.get() < 50 {
            let stream = client.connect(stand.gateway.address()).await.unwrap();
            let now = shown(&stream);
            assert!(now == first.der() || mends.get(), "after {}", looks.get());
            looks.set(looks.get() + 1);
            if looks.get() == 200 {
                second.put(&folder);
                mends.set(true);
            }
        }
    };
    within("looked at", watches).await;
    is_shown(&second, &client, &stand.gateway).await;
    drop(stand);
}
