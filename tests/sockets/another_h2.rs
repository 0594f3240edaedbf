//! HTTP/2 of another make than ours on the other side: `another_h2.py`.

use std::process::Command;

use super::support::Scene;

#[tokio::test]
#[ignore = "needs an HTTP/2 client in Python: tests/run installs it"]
async fn a_client_of_another_make_is_answered_right() {
    let stand = Scene::default().start();
    let python = std::env::var_os("PODGATE_TEST_PYTHON")
        .expect("PODGATE_TEST_PYTHON names a Python that has tests/sockets/requirements.txt");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sockets/another_h2.py");
    let address = stand.gateway.address().to_string();
    // What it talks to runs on threads of its own.
    let output = Command::new(python)
        .args([script, &address])
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
    assert_eq!(
        stand
            .gateway
            .running
            .shared
            .metrics
            .connections_total()
            .get(),
        1,
        "all of it on one connection"
    );
    assert_eq!(stand.upstream.submissions(), (103, 0));
    assert_eq!(stand.gateway.ended("payload_too_large"), 2);
    stand.is_as_before().await;
}
