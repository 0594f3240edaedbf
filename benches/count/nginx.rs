//! nginx before the same upstream, as one process.

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
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|of| format!("{of}_temp_path nginx-{of};\n    "))
        .concat();
    format!(
        r#"daemon off;
master_process off;
pid nginx.pid;
error_log nginx-error.log warn;
events {{ worker_connections 4096; }}
http {{
    {temporary}
    log_format requests escape=json '{{"time":"$time_iso8601","request_id":"$request_id","client":"$remote_addr","method":"$request_method","path":"$uri","status":$status,"bytes":$bytes_sent,"request_time":$request_time,"upstream_response_time":"$upstream_response_time"}}';
    limit_req_zone $http_authorization zone=rate:10m rate=1000000r/s;
    limit_conn_zone $http_authorization zone=connections:10m;
    keepalive_requests 1000000000;
    upstream api {{ server {upstream}; keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen {address} backlog=4096;
        access_log /dev/null requests buffer=64k flush=1s;
        location / {{
            limit_req zone=rate burst=1000000 nodelay;
            limit_conn connections 10000;
            add_header X-Request-Id $request_id;
            proxy_pass http://api;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Request-Id $request_id;
            proxy_request_buffering off;
        }}
    }}
}}
"#
    )
}
