//! What concerns the process as a whole: whom it calls, how long it waits, how much it holds.
//!
//! The defaults are podgate's own and stand here; the upstream's numbers are in the preset.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::secret::SecretSource;
use crate::limit::quota::Quota;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    pub const fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// The address of the API, taken apart once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub scheme: Scheme,
    /// A name or an IP address; an IPv6 address without its brackets.
    pub host: String,
    pub port: u16,
    /// What every path is put behind: empty, or `/` and something that does not end in `/`.
    pub prefix: String,
}

impl Target {
    /// Reads an `http` or `https` URL without credentials, query and fragment. The error says what
    /// is wrong with it.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = match url.split_once("://") {
            Some((s, rest)) if s.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
            Some((s, rest)) if s.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
            Some(_) => return Err("the scheme must be `http` or `https`"),
            None => return Err("it must begin with `http://` or `https://`"),
        };
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(end) => rest.split_at(end),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err("no credentials belong in it: use `api_key`");
        }
        if path.contains(['?', '#']) {
            return Err("it cannot have a query or a fragment");
        }
        let (host, port) = host_and_port(authority, scheme)?;
        Ok(Self {
            scheme,
            host: host.to_ascii_lowercase(),
            port,
            prefix: prefix(path)?.to_owned(),
        })
    }

    /// What the `Host` field says: the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match self.port == self.scheme.default_port() {
            true => host,
            false => format!("{host}:{}", self.port),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}{}",
            self.scheme.name(),
            self.authority(),
            self.prefix
        )
    }
}

fn host_and_port(authority: &str, scheme: Scheme) -> Result<(&str, u16), &'static str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("`[` is never closed")?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("what stands in `[ ]` is no IPv6 address");
            }
            (
                host,
                after
                    .strip_prefix(':')
                    .or_else(|| after.is_empty().then_some("")),
            )
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, Some("")),
        },
    };
    let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    if host.is_empty() {
        return Err("the host is missing");
    }
    if host.len() > 253 || !host.bytes().all(named) {
        return Err("that is no host name");
    }
    let port = match port {
        Some("") => scheme.default_port(),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().map_err(|_| "the port must be 1 to 65535")?
        }
        _ => return Err("the port must be a number"),
    };
    if port == 0 {
        return Err("the port must be 1 to 65535");
    }
    Ok((host, port))
}

/// A path as it will stand in front of every other path: nothing a server could read in two ways.
fn prefix(path: &str) -> Result<&str, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_' | b'~');
    if !path.bytes().all(plain) {
        return Err("the path may hold only letters, digits and `/ . - _ ~`");
    }
    let path = path.strip_suffix('/').unwrap_or(path);
    let odd = |part: &str| matches!(part, "" | "." | "..");
    match path.split('/').skip(1).any(odd) {
        true => Err("the path cannot have empty parts, `.` or `..`"),
        false => Ok(path),
    }
}

/// Whose signature on a certificate counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Roots {
    /// Mozilla's, as they were when podgate was built.
    #[default]
    Bundled,
    /// The machine's own.
    System,
}

impl Roots {
    pub const WORDS: [(&'static str, Roots); 2] =
        [("bundled", Roots::Bundled), ("system", Roots::System)];
}

/// The API behind podgate, and how it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub target: Target,
    /// Put into every request in the place of what the client sent; `None`: clients send their own.
    pub api_key: Option<SecretSource>,
    /// Without it an injected key is refused on an address others can reach: whoever reaches it
    /// could spend the account.
    pub allow_remote_injection: bool,
    /// For one attempt, TLS included.
    pub connect_timeout: Duration,
    /// The longest silence between two bytes of a response.
    pub idle_timeout: Duration,
    /// The longest time from a request's last byte to its arrival there. Also in every group's
    /// [`Quota`].
    pub margin: Duration,
    /// The oldest a connection may be and still get another request: past it a new one is made, so
    /// that what the name now resolves to is noticed.
    pub max_connection_age: Duration,
    /// The name to ask for and to be proved, where it is not the URL's host.
    pub sni: Option<String>,
    pub roots: Roots,
    /// PEM files with further roots; relative ones count from the configuration file's folder.
    pub trust_ca: Vec<PathBuf>,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            target: Target {
                scheme: Scheme::Https,
                host: "api.runpod.ai".into(),
                port: Scheme::Https.default_port(),
                prefix: String::new(),
            },
            api_key: None,
            allow_remote_injection: false,
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            margin: Quota::MARGIN,
            max_connection_age: Duration::from_secs(300),
            sni: None,
            roots: Roots::default(),
            trust_ca: Vec::new(),
        }
    }
}

/// Patience with clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first byte of a request's head to its last.
    pub header: Duration,
    /// The longest silence between two bytes of a body.
    pub body_idle: Duration,
    /// A whole body.
    pub body_total: Duration,
    /// The longest time a client may take nothing of what is written to it.
    pub write: Duration,
    /// Between two requests on one connection.
    pub keep_alive: Duration,
    /// How long requests are still taken once the end was asked for.
    pub shutdown_delay: Duration,
    /// How long what is under way may take to end once nothing new is accepted.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            body_idle: Duration::from_secs(10),
            body_total: Duration::from_secs(300),
            write: Duration::from_secs(30),
            keep_alive: Duration::from_secs(75),
            shutdown_delay: Duration::ZERO,
            drain: Duration::from_secs(30),
        }
    }
}

/// Request and response bytes held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// Bytes of one request's body read before it asks for a permit.
    pub per_request: u64,
    /// Bytes of all buffers together.
    pub total: u64,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            per_request: 1 << 20,
            total: 256 << 20,
        }
    }
}

/// What strangers can make grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of clients at once.
    pub connections: u32,
    /// Lanes kept; further endpoints share an overflow lane.
    pub lanes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            lanes: 10_000,
        }
    }
}

/// What podgate adds to what clients are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Whether answers say what is left of the caller's limit (`RateLimit`, `RateLimit-Policy`).
    pub rate_limit_headers: bool,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            rate_limit_headers: true,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

impl LogFormat {
    pub const WORDS: [(&'static str, LogFormat); 2] =
        [("text", LogFormat::Text), ("json", LogFormat::Json)];
}

/// The least severe events that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    pub const WORDS: [(&'static str, LogLevel); 5] = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    pub level: LogLevel,
    /// One line for each request.
    pub access: bool,
    /// Of requests that went well, one in so many has its line.
    pub sample: u64,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            level: LogLevel::default(),
            access: true,
            sample: 1,
        }
    }
}

/// What is told to an OpenTelemetry collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// Where it takes traces; `None`: nothing is told. Always `None` without the feature `otlp`.
    pub otlp: Option<Target>,
    /// Of requests whose client does not record them, one in so many is told; 0: none.
    pub sample: u64,
}

impl Tracing {
    /// Whether this podgate can tell anybody.
    pub const BUILT: bool = cfg!(feature = "otlp");
    /// Where collectors take traces, by the protocol.
    const PATH: &str = "/v1/traces";

    /// Reads a collector's URL, with the path for traces or with what stands before it.
    pub(super) fn collector(url: &str) -> Result<Target, &'static str> {
        if url.contains('@') {
            return Err("no credentials belong in it: `OTEL_EXPORTER_OTLP_HEADERS` takes them");
        }
        let mut target = Target::parse(url)?;
        if target.scheme != Scheme::Http {
            return Err("a collector is called in the clear: the scheme must be `http`");
        }
        if !target.prefix.ends_with(Self::PATH) {
            target.prefix += Self::PATH;
        }
        Ok(target)
    }
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            otlp: None,
            sample: 100,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_once() {
        let target = Target::parse("HTTP://Example.org:8081/api/").expect("valid");
        assert_eq!(target.scheme, Scheme::Http);
        assert_eq!((target.host.as_str(), target.port), ("example.org", 8081));
        assert_eq!(target.prefix, "/api");
        assert_eq!(target.to_string(), "http://example.org:8081/api");

        let target = Target::parse("https://[::1]").expect("valid");
        assert_eq!((target.host.as_str(), target.port), ("::1", 443));
        assert_eq!(
            (target.authority().as_str(), target.prefix.as_str()),
            ("[::1]", "")
        );
        assert_eq!(
            Target::parse("https://api.runpod.ai/"),
            Ok(Upstream::default().target)
        );
    }

    #[test]
    fn a_collector_takes_traces_at_one_path() {
        for (url, meant) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://otel/", "http://otel/v1/traces"),
            ("http://otel/in/v1/traces", "http://otel/in/v1/traces"),
        ] {
            let read = Tracing::collector(url).expect("valid").to_string();
            assert_eq!(read, meant);
            assert_eq!(Tracing::collector(&read), Tracing::collector(url));
        }
        assert!(Tracing::collector("https://otel").is_err());
        assert!(Tracing::collector("http://key@otel").is_err());
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for url in [
            "api.runpod.ai",
            "ftp://a",
            "http://",
            "http://:80",
            "http://key@a",
            "http://a?b",
            "http://a/#b",
            "http://a:0",
            "http://a:65536",
            "http://a:x",
            "http://a:1:2",
            "http://[::1",
            "http://[a]",
            "http://[::1]x",
            "http://a b",
            "http://a//b",
            "http://a/b//",
            "http://a/../b",
            "http://a/%2e",
            "http://ä",
        ] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }
}
