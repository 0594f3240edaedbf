//! Which operation a request asks for: `/v2/{endpoint}/{operation}` (contract, section 1.1).
//!
//! Nothing is normalised: a slash too many is another path, and there is nothing there.

use std::time::Duration;

use http::Method;

use super::id::JobId;
use super::limits::Group;

/// An operation, and what its path and query say. No job: the text there names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Run,
    RunSync {
        wait: Duration,
    },
    Status {
        job: Job,
        ttl: Option<Duration>,
    },
    StatusSync {
        job: Job,
        wait: Duration,
    },
    Stream {
        job: Job,
        wait: Duration,
    },
    Cancel(Job),
    Retry(Job),
    PurgeQueue,
    Health,
    Requests,
    /// No route: the worker has none of that name.
    OpenAi(Option<OpenAiRoute>),
}

type Job = Option<JobId>;

/// What follows `openai/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenAiRoute {
    Chat,
    Completion,
    Models,
}

impl OpenAiRoute {
    const ALL: [OpenAiRoute; 3] = [
        OpenAiRoute::Chat,
        OpenAiRoute::Completion,
        OpenAiRoute::Models,
    ];

    pub const fn path(self) -> &'static str {
        match self {
            OpenAiRoute::Chat => "v1/chat/completions",
            OpenAiRoute::Completion => "v1/completions",
            OpenAiRoute::Models => "v1/models",
        }
    }
}

/// 90 s (contract, section 1.3); for `status-sync` no default is documented, and it is the same wait.
const HOLD: Duration = Duration::from_secs(90);
/// 10 s (contract, section 1.6).
const STREAM_HOLD: Duration = Duration::from_secs(10);

/// Why there is no operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoute {
    /// 404.
    Path,
    /// 405, with the methods there are, also for HEAD and OPTIONS. What the service answers is unknown.
    Method(&'static str),
}

/// The endpoint's name and the operation.
pub(super) fn route<'a>(
    method: &Method,
    path: &'a str,
    query: Option<&str>,
) -> Result<(&'a str, Operation), NoRoute> {
    let (endpoint, rest) = path
        .strip_prefix("/v2/")
        .and_then(|rest| rest.split_once('/'))
        .ok_or(NoRoute::Path)?;
    if !is_name(endpoint) {
        return Err(NoRoute::Path);
    }
    let operation = operation(rest, query).ok_or(NoRoute::Path)?;
    let allowed = operation.methods();
    if allowed.split(", ").any(|name| name == method.as_str()) {
        Ok((endpoint, operation))
    } else {
        Err(NoRoute::Method(allowed))
    }
}

fn operation(rest: &str, query: Option<&str>) -> Option<Operation> {
    match rest {
        "run" => return Some(Operation::Run),
        "runsync" => {
            let wait = wait(query, HOLD);
            return Some(Operation::RunSync { wait });
        }
        "purge-queue" => return Some(Operation::PurgeQueue),
        "health" => return Some(Operation::Health),
        "requests" => return Some(Operation::Requests),
        _ => {}
    }
    let (name, tail) = rest.split_once('/')?;
    if name == "openai" {
        let route = OpenAiRoute::ALL
            .into_iter()
            .find(|route| route.path() == tail);
        return (!tail.is_empty()).then_some(Operation::OpenAi(route));
    }
    if !is_name(tail) {
        return None;
    }
    let job = JobId::parse(tail);
    match name {
        "status" => {
            let ttl = millis(query, "ttl");
            Some(Operation::Status { job, ttl })
        }
        "status-sync" => {
            let wait = wait(query, HOLD);
            Some(Operation::StatusSync { job, wait })
        }
        "stream" => {
            let wait = wait(query, STREAM_HOLD);
            Some(Operation::Stream { job, wait })
        }
        "cancel" => Some(Operation::Cancel(job)),
        "retry" => Some(Operation::Retry(job)),
        _ => None,
    }
}

/// Endpoint and job ids (contract, sections 1.1 and 2).
fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    !text.is_empty() && text.len() <= 128 && text.bytes().all(letter)
}

impl Operation {
    /// As in the contract's table: the official SDKs use both for the status family.
    fn methods(self) -> &'static str {
        match self {
            Operation::Status { .. } | Operation::StatusSync { .. } | Operation::Stream { .. } => {
                "GET, POST"
            }
            Operation::Health
            | Operation::Requests
            | Operation::OpenAi(Some(OpenAiRoute::Models)) => "GET",
            _ => "POST",
        }
    }

    pub fn group(self) -> Group {
        match self {
            Operation::Run => Group::Run,
            Operation::RunSync { .. } => Group::RunSync,
            Operation::Status { .. } | Operation::StatusSync { .. } | Operation::Stream { .. } => {
                Group::Status
            }
            Operation::Cancel(_) => Group::Cancel,
            Operation::Retry(_) => Group::Retry,
            Operation::PurgeQueue => Group::PurgeQueue,
            Operation::Health => Group::Health,
            Operation::Requests => Group::Requests,
            Operation::OpenAi(_) => Group::OpenAi,
        }
    }

    /// The most bytes of a request's body: 10 MB and 20 MB, which the service counts in MiB (contract,
    /// section 1.2). For `openai` no number is given, and it is a job like `runsync`'s; the others
    /// carry nothing.
    pub fn body_limit(self) -> usize {
        match self {
            Operation::Run => 10 << 20,
            Operation::RunSync { .. } | Operation::OpenAi(_) => 20 << 20,
            _ => 1 << 20,
        }
    }
}

/// A whole number of milliseconds in the query; `None` if it is absent or no number.
fn millis(query: Option<&str>, key: &str) -> Option<Duration> {
    let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.into_iter().find(|(name, _)| *name == key)?.1;
    value.parse().ok().map(Duration::from_millis)
}

/// `wait`: how long a call may be held, from 1 s to 300 s (contract, sections 1.3 and 1.6). What the
/// service does outside of that is unknown; here it is the nearer end.
fn wait(query: Option<&str>, default: Duration) -> Duration {
    let wait = millis(query, "wait").unwrap_or(default);
    wait.clamp(Duration::from_secs(1), Duration::from_secs(300))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_has_its_methods_and_its_group() {
        let rows = [
            ("run", "POST", Group::Run),
            ("runsync", "POST", Group::RunSync),
            ("status/j-u1", "GET POST", Group::Status),
            ("status-sync/j-u1", "GET POST", Group::Status),
            ("stream/j-u1", "GET POST", Group::Status),
            ("cancel/j-u1", "POST", Group::Cancel),
            ("retry/j-u1", "POST", Group::Retry),
            ("purge-queue", "POST", Group::PurgeQueue),
            ("health", "GET", Group::Health),
            ("requests", "GET", Group::Requests),
            ("openai/v1/chat/completions", "POST", Group::OpenAi),
            ("openai/v1/models", "GET", Group::OpenAi),
        ];
        for (rest, methods, group) in rows {
            let path = format!("/v2/my_ep-1/{rest}");
            for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
                let routed = route(&method, &path, None);
                if methods.contains(method.as_str()) {
                    let (endpoint, operation) = routed.unwrap();
                    assert_eq!((endpoint, operation.group()), ("my_ep-1", group), "{path}");
                } else {
                    assert!(matches!(routed, Err(NoRoute::Method(_))), "{method} {path}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_normalised() {
        for path in [
            "/",
            "/v2/ep",
            "/v2/ep/",
            "/v2//ep/run",
            "/v2/ep/run/",
            "/v2/ep/Run",
            "/v2/ep/status",
            "/v2/ep/status/",
            "/v2/ep/status/a/b",
            "/v2/ep/status/a%2Fb",
            "/v2/e.p/run",
            "/v2/ep/openai/",
            "/v1/ep/run",
            "/v2/ep/walk",
        ] {
            assert_eq!(
                route(&Method::POST, path, None),
                Err(NoRoute::Path),
                "{path}"
            );
        }
    }

    #[test]
    fn every_held_operation_has_its_default_and_the_same_bounds() {
        let held = |path: &str, query| {
            let (_, operation) = route(&Method::POST, path, query).unwrap();
            match operation {
                Operation::RunSync { wait }
                | Operation::StatusSync { wait, .. }
                | Operation::Stream { wait, .. } => wait.as_millis(),
                other => panic!("not held: {other:?}"),
            }
        };
        for (path, default) in [
            ("/v2/ep/runsync", 90_000),
            ("/v2/ep/status-sync/j-u1", 90_000),
            ("/v2/ep/stream/j-u1", 10_000),
        ] {
            for (query, wait) in [
                (None, default),
                (Some("wait=45000"), 45_000),
                (Some("wait=999"), 1_000),
                (Some("wait=300001"), 300_000),
                (Some("ttl=5"), default),
            ] {
                assert_eq!(held(path, query), wait, "{path} {query:?}");
            }
        }
    }

    #[test]
    fn a_hold_is_within_its_bounds() {
        let default = Duration::from_secs(90);
        let ms = |query| wait(query, default).as_millis();
        assert_eq!(ms(None), 90_000);
        assert_eq!(ms(Some("wait=2500")), 2_500);
        assert_eq!(ms(Some("x=1&wait=1")), 1_000);
        assert_eq!(ms(Some("wait=900000")), 300_000);
        assert_eq!(ms(Some("wait=soon")), 90_000);
        assert_eq!(
            millis(Some("ttl=6000"), "ttl"),
            Some(Duration::from_secs(6))
        );
    }
}
