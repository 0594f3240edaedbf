//! From the written form to the meant one: the process as a whole. `groups.rs` does the rest.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;

use rustls::pki_types::ServerName;

use super::Config;
use super::faults::{Fault, Place};
use super::groups;
use super::key::Kind;
use super::listen::{self, ListenPlace};
use super::process::{
    Answers, Buffers, Limits, Log, LogFormat, LogLevel, Roots, Target, Timeouts, Tracing, Upstream,
};
use super::raw::Value;
use super::read::At;
use super::secret::SecretSource;

/// What a listening address looks like.
pub(super) const ADDRESS: &str = "an address and a port, such as `127.0.0.1:8080`";
/// What the upstream's address looks like.
pub(super) const URL: &str = "a URL such as `https://api.runpod.ai`";

/// What a collector's address looks like.
const COLLECTOR: &str = "a URL such as `http://127.0.0.1:4318`";

/// What a server's name looks like.
const NAME: &str = "a server's name, such as `api.runpod.ai`";

/// Where the settings stand that are checked against each other.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// Of each listener, in the order of the configuration's.
    pub listen: Vec<ListenPlace>,
    pub admin: Place,
    pub replicas: Place,
    pub url: Place,
    pub api_key: Place,
    pub admin_token: Place,
    pub per_request: Place,
    pub body_idle: Place,
    pub sni: Place,
    pub trust_ca: Vec<Place>,
}

impl Places {
    /// None of them is in a file.
    pub fn nowhere() -> Self {
        Self {
            listen: vec![ListenPlace::new("listen", Place::Nowhere)],
            admin: Place::Nowhere,
            replicas: Place::Nowhere,
            url: Place::Nowhere,
            api_key: Place::Nowhere,
            admin_token: Place::Nowhere,
            per_request: Place::Nowhere,
            body_idle: Place::Nowhere,
            sni: Place::Nowhere,
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
    let entries = root.entries(faults);
    let place = |key: &str| entries.get(key).map_or(Place::Nowhere, At::place);

    if let Some(at) = entries.get("listen")
        && let Some(read) = listen::listeners(at, folder, faults)
    {
        (config.listen, places.listen) = read;
    }
    if entries.set("admin", &mut config.admin, |at| address(at, 9090, faults)) {
        places.admin = place("admin");
    }
    entries.set("workers", &mut config.workers, |at| {
        NonZeroUsize::new(at.whole(faults)?).map(Some)
    });
    if entries.set("replicas", &mut config.replicas, |at| {
        NonZeroU32::new(at.whole(faults)?)
    }) {
        places.replicas = place("replicas");
    }
    entries.set("state_dir", &mut config.state_dir, |at| {
        at.path(folder, faults).map(Some)
    });
    if let Some(at) = entries.get("admin_hosts") {
        let hosts = at.items(faults).into_iter();
        config.admin_hosts = hosts.filter_map(|item| host(&item, faults)).collect();
    }
    if let Some(at) = entries.get("admin_token") {
        places.admin_token = at.key_place();
        config.admin_token = secret(at, folder, faults);
    }
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
    if let Some(at) = entries.get("answers") {
        answers(&mut config.answers, at, faults);
    }
    if let Some(at) = entries.get("log") {
        log(&mut config.log, at, faults);
    }
    if let Some(at) = entries.get("tracing") {
        tracing(&mut config.tracing, at, faults);
    }
    if let Some(at) = entries.get("groups") {
        groups::table(&mut config.groups, at, groups::Layer::File, faults);
    }
    if let Some(at) = entries.get("endpoints") {
        config.endpoints = groups::endpoints(&config.groups, at, faults);
    }
    config.spread();
    places
}

fn address(at: &At<'_>, usual: u16, faults: &mut Vec<Fault>) -> Option<SocketAddr> {
    at.is(&Kind::Address, faults)?;
    if let Value::Whole(port) = at.value {
        let help =
            meant_address(&format!(":{port}"), usual).map(|meant| format!("write `{meant}`"));
        let fault = at
            .fault(format!("expected {ADDRESS}"))
            .label("this is a number");
        faults.push(fault.maybe_help(help));
        return None;
    }
    let text = at.text(ADDRESS, faults)?;
    let read = text.parse();
    if read.is_err() {
        let help = meant_address(text, usual).map(|meant| format!("write `{meant}`"));
        let fault = at
            .fault(format!("expected {ADDRESS}"))
            .label("this is none");
        faults.push(fault.maybe_help(help));
    }
    read.ok()
}

/// The address somebody meant who wrote `localhost:8080`, `:8080` or `127.0.0.1`, there with the
/// `usual` port.
pub(super) fn meant_address(text: &str, usual: u16) -> Option<SocketAddr> {
    let usual = usual.to_string();
    let (host, port) = text.rsplit_once(':').unwrap_or((text, &usual));
    let host = match host {
        "localhost" | "" => "127.0.0.1",
        "*" => "0.0.0.0",
        host => host,
    };
    format!("{host}:{port}").parse().ok()
}

/// A host's name in lower case, or `*`.
fn host(at: &At<'_>, faults: &mut Vec<Fault>) -> Option<String> {
    const EXPECTED: &str = "a host's name such as `podgate.example.com`, or `*`";
    at.parsed(&Kind::Host, EXPECTED, self::host_name, faults)
}

fn host_name(text: &str) -> Result<String, &'static str> {
    let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    match text {
        "*" => Ok(text.to_owned()),
        _ if text.contains(':') => Err("the port does not belong here"),
        _ if (1..=253).contains(&text.len()) && text.bytes().all(named) => {
            Ok(text.to_ascii_lowercase())
        }
        _ => Err("that is no host name"),
    }
}

fn server_name(text: &str) -> Result<String, &'static str> {
    let name = text.to_ascii_lowercase();
    match ServerName::try_from(name.as_str()) {
        Ok(_) => Ok(name),
        Err(_) => Err("no certificate can be for this"),
    }
}

fn upstream(
    upstream: &mut Upstream,
    at: &At<'_>,
    folder: &Path,
    places: &mut Places,
    faults: &mut Vec<Fault>,
) {
    let entries = at.entries(faults);
    if let Some(at) = entries.get("url") {
        places.url = at.place();
    }
    entries.set("url", &mut upstream.target, |at| {
        at.parsed(&Kind::Url, URL, Target::parse, faults)
    });
    if let Some(at) = entries.get("api_key") {
        places.api_key = at.key_place();
        if let Some(source) = secret(at, folder, faults) {
            upstream.api_key = Some(source);
        }
    }
    let remote = &mut upstream.allow_remote_injection;
    entries.set("allow_remote_injection", remote, |at| at.flag(faults));
    for (key, target) in [
        ("connect_timeout", &mut upstream.connect_timeout),
        ("idle_timeout", &mut upstream.idle_timeout),
        ("margin", &mut upstream.margin),
        ("max_connection_age", &mut upstream.max_connection_age),
    ] {
        entries.set(key, target, |at| at.duration(faults));
    }
    if let Some(at) = entries.get("sni") {
        places.sni = at.place();
    }
    entries.set("sni", &mut upstream.sni, |at| {
        at.parsed(&Kind::ServerName, NAME, server_name, faults)
            .map(Some)
    });
    entries.set("roots", &mut upstream.roots, |at| {
        at.word(&Roots::WORDS, faults)
    });
    if let Some(at) = entries.get("trust_ca") {
        for item in at.items(faults) {
            if let Some(path) = item.path(folder, faults) {
                upstream.trust_ca.push(path);
                places.trust_ca.push(item.place());
            }
        }
    }
}

/// `{ file: … }` or `{ env: … }`. The secret itself is never taken, and never repeated.
fn secret(at: &At<'_>, folder: &Path, faults: &mut Vec<Fault>) -> Option<SecretSource> {
    const FORMS: &str = "`{ file: PATH }` or `{ env: NAME }`";
    if !matches!(at.value, Value::Map(_)) {
        let fault = at.key_fault(format!("expected {FORMS}"));
        let fault = fault.label("a secret itself does not belong in this file");
        faults.push(fault.help("put it into a file of its own that only podgate may read"));
        return None;
    }
    let before = faults.len();
    let entries = at.entries(faults);
    match (entries.get("file"), entries.get("env")) {
        (Some(file), None) => file.path(folder, faults).map(SecretSource::File),
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

fn variable(at: &At<'_>, faults: &mut Vec<Fault>) -> Option<String> {
    at.is(&Kind::Variable, faults)?;
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
    let entries = at.entries(faults);
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
        ("shutdown_delay", &mut timeouts.shutdown_delay),
        ("drain", &mut timeouts.drain),
    ] {
        entries.set(key, target, |at| at.duration(faults));
    }
}

fn buffers(buffers: &mut Buffers, at: &At<'_>, places: &mut Places, faults: &mut Vec<Fault>) {
    let entries = at.entries(faults);
    if let Some(at) = entries.get("per_request").or_else(|| entries.get("total")) {
        places.per_request = at.place();
    }
    entries.set("per_request", &mut buffers.per_request, |at| {
        at.size(faults)
    });
    entries.set("total", &mut buffers.total, |at| at.size(faults));
}

fn limits(limits: &mut Limits, at: &At<'_>, faults: &mut Vec<Fault>) {
    let entries = at.entries(faults);
    entries.set("connections", &mut limits.connections, |at| {
        at.whole(faults)
    });
    entries.set("lanes", &mut limits.lanes, |at| at.whole(faults));
}

fn answers(answers: &mut Answers, at: &At<'_>, faults: &mut Vec<Fault>) {
    let entries = at.entries(faults);
    let headers = &mut answers.rate_limit_headers;
    entries.set("rate_limit_headers", headers, |at| at.flag(faults));
}

fn log(log: &mut Log, at: &At<'_>, faults: &mut Vec<Fault>) {
    let entries = at.entries(faults);
    entries.set("format", &mut log.format, |at| {
        at.word(&LogFormat::WORDS, faults)
    });
    entries.set("level", &mut log.level, |at| {
        at.word(&LogLevel::WORDS, faults)
    });
    entries.set("access", &mut log.access, |at| at.flag(faults));
    entries.set("sample", &mut log.sample, |at| at.whole(faults));
}

fn tracing(tracing: &mut Tracing, at: &At<'_>, faults: &mut Vec<Fault>) {
    let entries = at.entries(faults);
    entries.set("sample", &mut tracing.sample, |at| at.whole(faults));
    entries.set("otlp", &mut tracing.otlp, |at| {
        let collector = at.parsed(&Kind::Url, COLLECTOR, Tracing::collector, faults)?;
        if !Tracing::BUILT {
            // Taken in silence it would leave somebody waiting for traces.
            let fault = at.key_fault("this podgate was built without traces");
            let fault = fault.label("nobody would be told");
            faults.push(fault.help("build it with `cargo install --path . --features otlp`"));
            return None;
        }
        Some(Some(collector))
    });
}
