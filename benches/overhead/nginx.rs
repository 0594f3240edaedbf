//! nginx, tuned: bodies are not collected, connections are kept, and the log is written in batches as
//! podgate's is.

#[path = "../peer/nginx.rs"]
mod settings;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::certificate;
use crate::proxy::{Ends, Running, Setup, command};

/// Until it listens.
const START: Duration = Duration::from_secs(5);

/// Its first process, ended with this.
pub struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        // One that has ended and was waited for has no id any more; another process may have it.
        if let Ok(None) = self.0.try_wait() {
            let id = rustix::process::Pid::from_child(&self.0);
            let _ = rustix::process::kill_process(id, rustix::process::Signal::QUIT);
            let _ = self.0.wait();
        }
    }
}

/// Starts it, and returns once it listens.
pub fn start(setup: &Setup<'_>, access_log: PathBuf) -> Running {
    // nginx cannot listen where the system likes; meanwhile another may have taken what was free.
    for _ in 0..5 {
        let [address, statistics] = free_addresses();
        let file = setup.folder.join("nginx.conf");
        let text = config(setup, address, statistics, &access_log);
        std::fs::write(&file, text).unwrap();
        let _ = std::fs::remove_file(&access_log);
        let errors = setup.folder.join("nginx-error.log");
        let mut command = command(setup.core, Path::new("nginx"));
        command.arg("-p").arg(setup.folder).arg("-c").arg(&file);
        command.arg("-e").arg(errors);
        let child = command.stdin(Stdio::null()).spawn();
        let mut nginx = Nginx(child.expect("it was asked for its version"));
        if listens(&mut nginx.0, statistics) && listens(&mut nginx.0, address) {
            return Running {
                id: nginx.0.id(),
                address,
                statistics,
                access_log,
                process: Ends::Nginx(nginx),
            };
        }
    }
    panic!(
        "nginx does not start: see nginx-error.log in {}",
        setup.folder.display()
    );
}

fn free_addresses() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

#[expect(clippy::disallowed_methods, reason = "a process outside is waited for")]
fn listens(child: &mut Child, address: SocketAddr) -> bool {
    let started = Instant::now();
    while started.elapsed() < START && child.try_wait().unwrap().is_none() {
        if TcpStream::connect(address).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

fn config(
    setup: &Setup<'_>,
    address: SocketAddr,
    statistics: SocketAddr,
    access_log: &Path,
) -> String {
    let Setup {
        folder,
        workers,
        upstream,
        workload,
        ..
    } = setup;
    let (certificate, key) = (certificate::certificate(folder), certificate::key(folder));
    let (certificate, key) = (certificate.display(), key.display());
    let name = certificate::NAME;
    let (listen_tls, tls_in) = match workload.tls_in() {
        true => (
            " ssl",
            format!(
                r#"ssl_certificate "{certificate}"; ssl_certificate_key "{key}"; ssl_protocols TLSv1.3;"#
            ),
        ),
        false => ("", String::new()),
    };
    let (scheme, tls_out) = match workload.tls_out() {
        true => (
            "https",
            format!(
                r#"proxy_ssl_protocols TLSv1.3; proxy_ssl_server_name on; proxy_ssl_name {name};
            proxy_ssl_verify on; proxy_ssl_trusted_certificate "{certificate}";"#
            ),
        ),
        false => ("http", String::new()),
    };
    let (http, location) = (settings::HTTP, settings::LOCATION);
    format!(
        r#"daemon off;
worker_processes {workers};
pid nginx.pid;
error_log nginx-error.log warn;
events {{ worker_connections 4096; }}
http {{
    {http}
    upstream api {{
        server {upstream};
        keepalive 512;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {address}{listen_tls} backlog=4096;
        {tls_in}
        access_log "{access_log}" requests buffer=64k flush=1s;
        location / {{
            {location}
            proxy_pass {scheme}://api;
            {tls_out}
        }}
    }}
    server {{
        listen {statistics};
        access_log off;
        location = /metrics {{ stub_status; }}
    }}
}}
"#,
        access_log = access_log.display()
    )
}

/// What its page has counted: all but the one for the page itself.
pub fn requests(page: &str) -> u64 {
    let mut numbers = page
        .lines()
        .skip_while(|line| !line.starts_with("server accepts"));
    let line = numbers.nth(1);
    let requests = line.and_then(|line| line.split_whitespace().nth(2));
    let requests: u64 = requests.expect("nginx counts").parse().expect("a number");
    requests - 1
}
