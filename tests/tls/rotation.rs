//! Certificates that change while they are in use.

use std::cell::Cell;

use super::agreed::listen;
use super::authority::{Authority, Folder, Identity};
use super::client::{Client, NAME, exchange, shown};
use super::support::{Gateway, Scene, eventually, job, request, unique, within};

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
    let (first, second) = (root.signs(NAME, 2090), root.signs(NAME, 2091));
    first.put(&folder);
    let listen = format!("[127.0.0.1:0, {}]", listen(&folder, "127.0.0.1:0", ""));
    let process = Scene::default().listen(listen).process();
    let said = process.said();
    let ready = said.iter().find_map(|line| line.split_once("https://"));
    let address = ready.unwrap().1.split([',', ' ']).next().unwrap();
    let address = address.parse().unwrap();
    let client = Client::new(&root, None, &[]);
    let shows = async || shown(&client.connect(address).await.unwrap());
    let secret = second.key_pem().lines().nth(1).unwrap().to_owned();
    for (what, name, bad, why) in [
        (
            "garbled",
            "tls.crt",
            "what?",
            "tls.crt` cannot be used: there is no certificate",
        ),
        (
            "half a pair",
            "tls.crt",
            &second.pem(),
            "tls.key` cannot be used: it is not the key of",
        ),
        (
            "half a key",
            "tls.key",
            &second.key_pem()[..60],
            "tls.key` cannot be used: it ends before",
        ),
        (
            "gone",
            "tls.key",
            "",
            "tls.key` cannot be used: No such file",
        ),
    ] {
        match bad {
            "" => std::fs::remove_file(folder.file(name)).unwrap(),
            bad => drop(folder.put(name, bad)),
        }
        eventually(what, || process.has_said(why) == 1).await;
        assert!(shows().await == first.der(), "{what}");
    }
    assert_eq!(process.has_said("stay in use"), 4, "{:?}", process.said());
    second.put(&folder);
    let comes = async {
        while shows().await != second.der() {
            tokio::task::yield_now().await;
        }
    };
    within("it is mended", comes).await;
    let until = "good until 2091-12-31";
    eventually("it is said", || process.has_said(until) == 1).await;
    assert_eq!(process.has_said(&secret), 0);
}
