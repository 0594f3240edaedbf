//! From the written form to the meant one: the process as a whole. `groups.rs` does the rest.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Config;
use super::faults::{Fault, Place};
use super::groups;
use super::process::{Buffers, Limits, Log, LogFormat, LogLevel, Target, Timeouts, Upstream};
use super::raw::Value;
use super::read::At;
use super::schema;
use super::secret::SecretSource;

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
/// A wait that is a millisecond at least and an hour at most.
pub(super) const PATIENCE: RangeInclusive<Duration> = MILLISECOND..=HOUR;
/// More than ten seconds of margin would cost more of the window than it protects.
const MARGIN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(10);
pub(super) const WORKERS: RangeInclusive<u64> = 1..=1024;
const PER_REQUEST: RangeInclusive<u64> = 0..=1 << 30;
const TOTAL: RangeInclusive<u64> = 0..=1 << 40;
const CONNECTIONS: RangeInclusive<u64> = 1..=1_000_000;
const LANES: RangeInclusive<u64> = 1..=1_000_000;

/// What a listening address looks like.
pub(super) const ADDRESS: &str = "an address and a port, such as `127.0.0.1:8080`";
/// What the upstream's address looks like.
pub(super) const URL: &str = "a URL such as `https://api.runpod.ai`";

/// Where the settings stand that are checked against each other.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub listen: Place,
    pub admin: Place,
    pub url: Place,
    pub api_key: Place,
    pub per_request: Place,
    pub body_idle: Place,
    pub trust_ca: Vec<Place>,
}

impl Places {
    /// None of them is in a file.
    pub fn nowhere() -> Self {
        Self {
            listen: Place::Nowhere,
            admin: Place::Nowhere,
            url: Place::Nowhere,
            api_key: Place::Nowhere,
            per_request: Place::Nowhere,
            body_idle: Place::Nowhere,
            trust_ca: Vec::new(),
        }
    }
}

/// Writes the file's settings over those of `config`; what is wrong is left as it was.
pub(super) fn write_over(
    config: &mut Config,
    root: &At<'_>,
    folder: &Path,
    faults: &mut Vec<Fault>,
) -> Places {
    let mut places = Places::nowhere();
    let entries = root.entries(&schema::ROOT, faults);
    let place = |key: &str| entries.get(key).map_or(Place::Nowhere, At::place);

    if entries.set("listen", &mut config.listen, |at| address(at, faults)) {
        places.listen = place("listen");
    }
    if entries.set("admin", &mut config.admin, |at| address(at, faults)) {
        places.admin = place("admin");
    }
    entries.set("workers", &mut config.workers, |at| {
        let threads = usize::try_from(at.whole(WORKERS, faults)?).ok()?;
        NonZeroUsize::new(threads).map(Some)
    });
    entries.set("state_dir", &mut config.state_dir, |at| {
        path(at, folder, faults).map(Some)
    });
    if let Some(at) = entries.get("upstream") {
        upstream(&mut config.upstream, at, folder, &mut places, faults);
    }
    if let Some(at) = entries.get("timeouts") {
        timeouts(&mut config.timeouts, at, &mut places, faults);
    }
    if let Some(at) = entries.get("buffers") {
        buffers(&mut config.buffers, at, &mut places, faults);
    }
    if let Some(at) = entries.get("limits") {
        limits(&mut config.limits, at, faults);
    }
    if let Some(at) = entries.get("log") {
        log(&mut config.log, at, faults);
    }
    if let Some(at) = entries.get("groups") {
        groups::table(&mut config.groups, at, groups::Layer::File, faults);
    }
    if let Some(at) = entries.get("endpoints") {
        config.endpoints = groups::endpoints(&config.groups, at, faults);
    }
    config.spread_margin();
    places
}

fn address(at: &At<'_>, faults: &mut Vec<Fault>) -> Option<SocketAddr> {
    if let Value::Whole(port) = at.value {
        let help = meant_address(&format!(":{port}")).map(|meant| format!("write `{meant}`"));
        let fault = at
            .fault(format!("expected {ADDRESS}"))
            .label("this is a number");
        faults.push(fault.maybe_help(help));
        return None;
    }
    let text = at.text(ADDRESS, faults)?;
    let read = text.parse();
    if read.is_err() {
        let help = meant_address(text).map(|meant| format!("write `{meant}`"));
        let fault = at
            .fault(format!("expected {ADDRESS}"))
            .label("this is none");
        faults.push(fault.maybe_help(help));
    }
    read.ok()
}

/// The address somebody meant who wrote `localhost:8080`, `:8080` or `127.0.0.1`.
pub(super) fn meant_address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':').unwrap_or((text, "8080"));
    let host = match host {
        "localhost" | "" => "127.0.0.1",
        "*" => "0.0.0.0",
        host => host,
    };
    format!("{host}:{port}").parse().ok()
}

fn upstream(
    upstream: &mut Upstream,
    at: &At<'_>,
    folder: &Path,
    places: &mut Places,
    faults: &mut Vec<Fault>,
) {
    let entries = at.entries(&schema::UPSTREAM, faults);
    if let Some(at) = entries.get("url") {
        places.url = at.place();
    }
    entries.set("url", &mut upstream.target, |at| {
        at.parsed(URL, Target::parse, faults)
    });
    if let Some(at) = entries.get("api_key") {
        places.api_key = at.key_place();
        if let Some(source) = api_key(at, folder, faults) {
            upstream.api_key = Some(source);
        }
    }
    let remote = &mut upstream.allow_remote_injection;
    entries.set("allow_remote_injection", remote, |at| at.flag(faults));
    entries.set("connect_timeout", &mut upstream.connect_timeout, |at| {
        at.duration(PATIENCE, faults)
    });
    entries.set("idle_timeout", &mut upstream.idle_timeout, |at| {
        at.duration(PATIENCE, faults)
    });
    entries.set("margin", &mut upstream.margin, |at| {
        at.duration(MARGIN, faults)
    });
    if let Some(at) = entries.get("trust_ca") {
        for item in at.items(faults) {
            if let Some(path) = path(&item, folder, faults) {
                upstream.trust_ca.push(path);
                places.trust_ca.push(item.place());
            }
        }
    }
}

/// `{ file: … }` or `{ env: … }`. The key itself is never taken, and never repeated.
fn api_key(at: &At<'_>, folder: &Path, faults: &mut Vec<Fault>) -> Option<SecretSource> {
    const FORMS: &str = "`{ file: PATH }` or `{ env: NAME }`";
    if !matches!(at.value, Value::Map(_)) {
        let fault = at.key_fault(format!("expected {FORMS}"));
        let fault = fault.label("a key itself does not belong in this file");
        faults.push(fault.help("put the key into a file of its own that only podgate may read"));
        return None;
    }
    let before = faults.len();
    let entries = at.entries(&schema::API_KEY, faults);
    match (entries.get("file"), entries.get("env")) {
        (Some(file), None) => path(file, folder, faults).map(SecretSource::File),
        (None, Some(env)) => variable(env, faults).map(SecretSource::Env),
        (Some(file), Some(env)) => {
            let fault = env.key_fault("`file` and `env` exclude each other");
            faults.push(
                fault
                    .label("the second")
                    .also(file.key_place(), "the first"),
            );
            None
        }
        (None, None) => {
            if faults.len() == before {
                faults.push(
                    at.key_fault(format!("expected {FORMS}"))
                        .label("neither is here"),
                );
            }
            None
        }
    }
}

fn path(at: &At<'_>, folder: &Path, faults: &mut Vec<Fault>) -> Option<PathBuf> {
    let text = at.text("a file's path", faults)?;
    match text {
        "" => {
            faults.push(at.fault("expected a file's path").label("this is empty"));
            None
        }
        _ => Some(folder.join(text)),
    }
}

fn variable(at: &At<'_>, faults: &mut Vec<Fault>) -> Option<String> {
    const EXPECTED: &str = "the name of an environment variable, such as `RUNPOD_API_KEY`";
    let name = at.text(EXPECTED, faults)?;
    let part = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    match begins && name.bytes().all(part) && !name.starts_with("rpa_") {
        true => Some(name.to_owned()),
        false => {
            let fault = at.fault(format!("expected {EXPECTED}"));
            faults.push(fault.label("no name: is this the key itself?"));
            None
        }
    }
}

fn timeouts(timeouts: &mut Timeouts, at: &At<'_>, places: &mut Places, faults: &mut Vec<Fault>) {
    let entries = at.entries(&schema::TIMEOUTS, faults);
    if let Some(at) = entries
        .get("body_idle")
        .or_else(|| entries.get("body_total"))
    {
        places.body_idle = at.place();
    }
    for (key, target) in [
        ("header", &mut timeouts.header),
        ("body_idle", &mut timeouts.body_idle),
        ("body_total", &mut timeouts.body_total),
        ("write", &mut timeouts.write),
        ("keep_alive", &mut timeouts.keep_alive),
    ] {
        entries.set(key, target, |at| at.duration(PATIENCE, faults));
    }
}

fn buffers(buffers: &mut Buffers, at: &At<'_>, places: &mut Places, faults: &mut Vec<Fault>) {
    let entries = at.entries(&schema::BUFFERS, faults);
    if let Some(at) = entries.get("per_request").or_else(|| entries.get("total")) {
        places.per_request = at.place();
    }
    entries.set("per_request", &mut buffers.per_request, |at| {
        at.size(PER_REQUEST, faults)
    });
    entries.set("total", &mut buffers.total, |at| at.size(TOTAL, faults));
}

fn limits(limits: &mut Limits, at: &At<'_>, faults: &mut Vec<Fault>) {
    let entries = at.entries(&schema::LIMITS, faults);
    entries.set("connections", &mut limits.connections, |at| {
        u32::try_from(at.whole(CONNECTIONS, faults)?).ok()
    });
    entries.set("lanes", &mut limits.lanes, |at| {
        u32::try_from(at.whole(LANES, faults)?).ok()
    });
}

fn log(log: &mut Log, at: &At<'_>, faults: &mut Vec<Fault>) {
    let entries = at.entries(&schema::LOG, faults);
    entries.set("format", &mut log.format, |at| {
        at.word(&LogFormat::WORDS, faults)
    });
    entries.set("level", &mut log.level, |at| {
        at.word(&LogLevel::WORDS, faults)
    });
    entries.set("access", &mut log.access, |at| at.flag(faults));
}
