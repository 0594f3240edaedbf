//! What podgate tells a service manager, seen from the manager's socket.

#![cfg(target_os = "linux")]

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Longer than any start or drain of a podgate nobody calls takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn start(notify_socket: &str) -> Child {
    let mut podgate = Command::new(env!("CARGO_BIN_EXE_podgate"));
    podgate
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", notify_socket)
        .stderr(Stdio::null());
    podgate.spawn().expect("podgate starts")
}

fn heard(socket: &UnixDatagram) -> String {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut message = [0; 256];
    let length = socket.recv(&mut message).expect("podgate says something");
    String::from_utf8(message[..length].to_vec()).unwrap()
}

/// Asks it to end, hears that it does so, and sees that it ended well.
fn end(mut podgate: Child, socket: &UnixDatagram) {
    let pid = Pid::from_child(&podgate);
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(heard(socket), "STOPPING=1");
    assert!(podgate.wait().unwrap().success());
}

#[test]
fn a_manager_hears_when_podgate_is_ready_and_when_it_stops() {
    let path = std::env::temp_dir().join(format!("podgate-notify-{}", std::process::id()));
    let socket = UnixDatagram::bind(&path).unwrap();
    let podgate = start(path.to_str().unwrap());
    let ready = heard(&socket);
    end(podgate, &socket);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(ready, "READY=1");
}

#[test]
fn an_abstract_socket_is_a_managers_too() {
    let name = format!("podgate-notify-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    let podgate = start(&format!("@{name}"));
    assert_eq!(heard(&socket), "READY=1");
    end(podgate, &socket);
}

#[test]
fn a_manager_that_is_not_there_keeps_nobody_from_serving() {
    let mut podgate = Command::new(env!("CARGO_BIN_EXE_podgate"))
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", "/nobody/listens/here")
        .stderr(Stdio::piped())
        .spawn()
        .expect("podgate starts");
    let stderr = std::io::BufReader::new(podgate.stderr.take().unwrap());
    let mut lines = std::io::BufRead::lines(stderr).map(Result::unwrap);
    assert!(lines.any(|line| line.contains("could not be told")));
    kill_process(Pid::from_child(&podgate), Signal::TERM).unwrap();
    lines.for_each(drop);
    assert!(podgate.wait().unwrap().success());
}

#[test]
fn a_second_signal_does_not_wait_for_the_shutdown_delay() {
    let name = format!("podgate-{}", std::process::id());
    let (config, path) = (format!("{name}.yaml"), format!("{name}.notify"));
    let folder = std::env::temp_dir();
    std::fs::write(folder.join(&config), "timeouts: { shutdown_delay: 1h }\n").unwrap();
    let socket = UnixDatagram::bind(folder.join(&path)).unwrap();
    let mut podgate = Command::new(env!("CARGO_BIN_EXE_podgate"))
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(["--config".as_ref(), folder.join(&config).as_os_str()])
        .env("NOTIFY_SOCKET", folder.join(&path))
        .stderr(Stdio::null())
        .spawn()
        .expect("podgate starts");
    assert_eq!(heard(&socket), "READY=1");
    kill_process(Pid::from_child(&podgate), Signal::TERM).unwrap();
    assert_eq!(heard(&socket), "STOPPING=1");
    assert!(podgate.try_wait().unwrap().is_none());
    kill_process(Pid::from_child(&podgate), Signal::TERM).unwrap();
    assert_eq!(podgate.wait().unwrap().code(), Some(1));
    for file in [config, path] {
        std::fs::remove_file(folder.join(file)).unwrap();
    }
}
