//! The two proxies, set up alike: limits that never bite, metrics, and an access log with the same
//! fields in a file. Both name requests to both sides, and reuse connections without end.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use memchr::memmem;

use crate::certificate;
use crate::peer::Process;
use crate::workload::Workload;

/// Until nginx listens.
const START: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    Nginx,
    Podgate,
}

/// What a proxy is to do.
pub struct Setup<'a> {
    /// Where its files are put.
    pub folder: &'a Path,
    pub podgate: &'a Path,
    pub workload: Workload,
    pub workers: usize,
    pub upstream: SocketAddr,
    /// The core it is held to.
    pub core: Option<usize>,
}

/// A proxy at work, ended with this.
pub struct Running {
    pub id: u32,
    pub address: SocketAddr,
    statistics: SocketAddr,
    access_log: PathBuf,
    process: Ends,
}

/// How its process is ended.
enum Ends {
    Nginx(Nginx),
    Podgate(Process),
}

struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.0);
        // It may have ended by itself.
        let _ = rustix::process::kill_process(id, rustix::process::Signal::QUIT);
        let _ = self.0.wait();
    }
}

/// A command, held to a core where one is given.
pub fn command(core: Option<usize>, program: &Path) -> Command {
    let Some(core) = core else {
        return Command::new(program);
    };
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

impl Proxy {
    pub const BOTH: [Proxy; 2] = [Proxy::Nginx, Proxy::Podgate];

    pub fn name(self) -> &'static str {
        match self {
            Proxy::Nginx => "nginx",
            Proxy::Podgate => "podgate",
        }
    }

    pub fn start(self, setup: &Setup<'_>) -> Running {
        let access_log = setup.folder.join(format!("{}-access.log", self.name()));
        match self {
            Proxy::Nginx => start_nginx(setup, access_log),
            Proxy::Podgate => start_podgate(setup, access_log),
        }
    }
}

fn start_podgate(setup: &Setup<'_>, access_log: PathBuf) -> Running {
    let config = setup.folder.join("podgate.yaml");
    std::fs::write(&config, podgate_config(setup)).unwrap();
    let log = File::create(&access_log).unwrap();
    let mut command = command(setup.core, setup.podgate);
    let process = Process::start(command.arg("serve").arg("--config").arg(config).stdout(log));
    Running {
        id: process.child.id(),
        address: process.address,
        statistics: process.admin,
        access_log,
        process: Ends::Podgate(process),
    }
}

fn podgate_config(setup: &Setup<'_>) -> String {
    let Setup {
        folder,
        workers,
        upstream,
        workload,
        ..
    } = setup;
    let certificate = certificate::certificate(folder);
    let (certificate, key) = (certificate.display(), certificate::key(folder));
    let tls = format!("tls: {{ cert: '{certificate}', key: '{}' }}", key.display());
    let listen = match workload.tls_in() {
        true => format!("[{{ at: '127.0.0.1:0', {tls} }}]"),
        false => "127.0.0.1:0".to_owned(),
    };
    let upstream = match workload.tls_out() {
        true => format!(
            "{{ url: 'https://{upstream}', sni: {}, trust_ca: ['{certificate}'] }}",
            certificate::NAME
        ),
        false => format!("{{ url: 'http://{upstream}' }}"),
    };
    // Of a window's requests podgate keeps the times: one second's are some thousand, as those of
    // the API's own limits.
    let limits = "{ rate: { requests: 200000, per: 1s }, concurrency: 10000 }";
    format!(
        "listen: {listen}\nadmin: 127.0.0.1:0\nworkers: {workers}\nupstream: {upstream}\n\
         log: {{ format: json }}\n\
         groups: {{ run: {limits}, runsync: {limits}, status: {limits} }}\n"
    )
}

fn start_nginx(setup: &Setup<'_>, access_log: PathBuf) -> Running {
    // nginx cannot listen where the system likes; meanwhile another may have taken what was free.
    for _ in 0..5 {
        let [address, statistics] = free_addresses();
        let config = setup.folder.join("nginx.conf");
        let text = nginx_config(setup, address, statistics, &access_log);
        std::fs::write(&config, text).unwrap();
        let _ = std::fs::remove_file(&access_log);
        let errors = setup.folder.join("nginx-error.log");
        let mut command = command(setup.core, Path::new("nginx"));
        command.arg("-p").arg(setup.folder).arg("-c").arg(&config);
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

fn nginx_config(
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
    // Where nginx would put what it buffers on disk: nothing, here.
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|of| format!("{of}_temp_path nginx-{of};\n    "))
        .concat();
    format!(
        r#"daemon off;
worker_processes {workers};
pid nginx.pid;
error_log nginx-error.log warn;
events {{ worker_connections 4096; }}
http {{
    {temporary}
    log_format requests escape=json '{{"time":"$time_iso8601","request_id":"$request_id","client":"$remote_addr","method":"$request_method","path":"$uri","status":$status,"bytes":$bytes_sent,"request_time":$request_time,"upstream_response_time":"$upstream_response_time"}}';
    limit_req_zone $http_authorization zone=rate:10m rate=1000000r/s;
    limit_conn_zone $http_authorization zone=connections:10m;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_buffer_size 64k;
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
            limit_req zone=rate burst=1000000 nodelay;
            limit_conn connections 10000;
            add_header X-Request-Id $request_id;
            proxy_pass {scheme}://api;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Request-Id $request_id;
            proxy_request_buffering off;
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

impl Running {
    /// Ends it, and sees to it that it has done its whole work for each of so many requests.
    pub fn end(self, requests: u64) {
        let page = get(self.statistics, "/metrics");
        let counted = match self.process {
            Ends::Nginx(nginx) => {
                drop(nginx);
                nginx_requests(&page)
            }
            Ends::Podgate(process) => {
                process.end();
                podgate_requests(&page)
            }
        };
        assert_eq!(counted, requests, "requests in the metrics: {page}");
        let log = std::fs::read(&self.access_log).unwrap();
        let lines = memchr::memchr_iter(b'\n', &log).count() as u64;
        let good = memmem::find_iter(&log, r#""status":200,"#).count() as u64;
        assert_eq!(
            (lines, good),
            (requests, requests),
            "lines in the access log"
        );
        std::fs::remove_file(&self.access_log).unwrap();
    }
}

/// All but the one for the page itself.
fn nginx_requests(page: &str) -> u64 {
    let mut numbers = page
        .lines()
        .skip_while(|line| !line.starts_with("server accepts"));
    let line = numbers.nth(1);
    let requests = line.and_then(|line| line.split_whitespace().nth(2));
    let requests: u64 = requests.expect("nginx counts").parse().expect("a number");
    requests - 1
}

/// Those that were forwarded, if there are no others.
fn podgate_requests(page: &str) -> u64 {
    let series = page
        .lines()
        .filter(|line| line.starts_with("podgate_requests_total{"));
    let values = series.filter_map(|line| {
        let (labels, value) = line.rsplit_once(' ')?;
        Some((labels, value.parse::<u64>().ok()?))
    });
    let (mut all, mut forwarded) = (0, 0);
    for (labels, value) in values {
        all += value;
        if labels.contains(r#"outcome="forwarded""#) {
            forwarded += value;
        }
    }
    assert_eq!(forwarded, all, "all are forwarded: {page}");
    all
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer
}
