//! nginx before the same upstream, as one process.

#[path = "../peer/nginx.rs"]
mod settings;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::peer::Process;

/// Whether it can be started.
pub fn is_here() -> bool {
    let mut asked = Command::new("nginx");
    let asked = asked.arg("-v").stdout(Stdio::null()).stderr(Stdio::null());
    asked.status().is_ok()
}

/// Starts it, run by `words`, and returns once it listens.
pub fn start(words: &[&str], folder: &Path, upstream: SocketAddr) -> Process {
    // It cannot listen where the system likes; that nobody takes the port meanwhile is likely.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let file = folder.join("nginx.conf");
    std::fs::write(&file, config(address, upstream)).unwrap();
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .args(["nginx", "-e", "nginx-error.log", "-p"])
        .arg(folder)
        .arg("-c")
        .arg(&file)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while TcpStream::connect(address).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "nginx does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    Process {
        child,
        address,
        admin: address,
    }
}

fn config(address: SocketAddr, upstream: SocketAddr) -> String {
    let (http, location) = (settings::HTTP, settings::LOCATION);
    format!(
        r#"daemon off;
master_process off;
pid nginx.pid;
error_log nginx-error.log warn;
events {{ worker_connections 4096; }}
http {{
    {http}
    upstream api {{ server {upstream}; keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen {address} backlog=4096;
        access_log /dev/null requests buffer=64k flush=1s;
        location / {{
            {location}
            proxy_pass http://api;
        }}
    }}
}}
"#
    )
}
