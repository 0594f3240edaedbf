//! podgate, set up as nginx is.

use std::fs::File;
use std::path::PathBuf;

use crate::certificate;
use crate::peer::Process;
use crate::proxy::{Ends, Running, Setup, command};

/// Starts it, and returns once it is ready.
pub fn start(setup: &Setup<'_>, access_log: PathBuf) -> Running {
    let file = setup.folder.join("podgate.yaml");
    std::fs::write(&file, config(setup)).unwrap();
    let log = File::create(&access_log).unwrap();
    let mut command = command(setup.core, setup.podgate);
    let process = Process::start(command.arg("serve").arg("--config").arg(file).stdout(log));
    Running {
        id: process.child.id(),
        address: process.address,
        statistics: process.admin,
        access_log,
        process: Ends::Podgate(process),
    }
}

fn config(setup: &Setup<'_>) -> String {
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

/// Those that were forwarded, if there are no others.
pub fn requests(page: &str) -> u64 {
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
