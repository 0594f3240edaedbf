//! Path and method to operation: a closed grammar on the raw target. Nothing is decoded, folded or
//! normalised, and what was classified is forwarded byte for byte, so that no spelling of a request
//! is counted as one thing and taken upstream for another.

use http::Method;

use crate::gateway::target::cut;
use crate::operation::Operation;
use crate::text::all;

/// A request as it was classified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classified<'a> {
    pub operation: Operation,
    pub endpoint: &'a str,
}

/// Why a request is no operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclassified {
    #[error("no operation of the job API has this path: {0}")]
    NoRoute(&'static str),
    #[error("the path holds an empty segment (`//`): the caller's base URL ends in a slash")]
    EmptySegment,
    #[error("this is no target: {0}")]
    Target(&'static str),
    #[error("the target is longer than {} bytes", crate::gateway::target::LONGEST)]
    TooLong,
    #[error("this operation takes {allow} only")]
    Method { allow: &'static str },
    #[error("no request of this method is served here")]
    Unserved,
}

/// What stands before an endpoint's id.
pub const PREFIX: &str = "/v2/";

/// The methods that any operation takes.
pub const METHODS: &str = "GET, POST, PUT, PATCH, DELETE";

/// What an operation's path looks like after its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    Nothing,
    Job,
    Worker,
    WorkerAndJob,
    Anything,
}

/// Every name there is, with the methods it takes (contract, sections 1.1 and 6).
const TABLE: [(&str, Operation, Tail, &str); 17] = [
    ("run", Operation::Run, Tail::Nothing, "POST"),
    ("runsync", Operation::RunSync, Tail::Nothing, "POST"),
    ("status", Operation::Status, Tail::Job, "GET, POST"),
    ("status-sync", Operation::StatusSync, Tail::Job, "GET, POST"),
    ("stream", Operation::Stream, Tail::Job, "GET, POST"),
    ("cancel", Operation::Cancel, Tail::Job, "POST"),
    ("retry", Operation::Retry, Tail::Job, "POST"),
    ("purge-queue", Operation::PurgeQueue, Tail::Nothing, "POST"),
    ("health", Operation::Health, Tail::Nothing, "GET"),
    ("requests", Operation::Requests, Tail::Nothing, "GET"),
    ("openai", Operation::OpenAi, Tail::Anything, "GET, POST"),
    ("job-take", Operation::Worker, Tail::Worker, "GET, POST"),
    (
        "job-take-batch",
        Operation::Worker,
        Tail::Worker,
        "GET, POST",
    ),
    ("job-stop", Operation::Worker, Tail::Worker, "GET, POST"),
    (
        "job-done",
        Operation::Worker,
        Tail::WorkerAndJob,
        "GET, POST",
    ),
    (
        "job-stream",
        Operation::Worker,
        Tail::WorkerAndJob,
        "GET, POST",
    ),
    ("ping", Operation::Worker, Tail::Worker, "GET, POST"),
];

/// The operation that `path`, without its query, asks for.
///
/// # Errors
/// [`Unclassified`]: it is none.
pub fn operation<'a>(method: &Method, path: &'a str) -> Result<Classified<'a>, Unclassified> {
    // No route has an empty segment: where there is one, that is what to say.
    route(method, path).map_err(|wrong| match path.contains("//") {
        true => Unclassified::EmptySegment,
        false => wrong,
    })
}

fn route<'a>(method: &Method, path: &'a str) -> Result<Classified<'a>, Unclassified> {
    let rest = path.strip_prefix(PREFIX).ok_or(Unclassified::NoRoute(
        "it does not begin with /v2/{endpoint}/",
    ))?;
    let (endpoint, rest) = cut(rest, b'/').ok_or(Unclassified::NoRoute("it names no operation"))?;
    if !is_id(endpoint) {
        return Err(Unclassified::NoRoute(
            "an endpoint id holds only A-Z a-z 0-9 _ -",
        ));
    }
    let (name, tail) = match cut(rest, b'/') {
        Some((name, tail)) => (name, Some(tail)),
        None => (rest, None),
    };
    let Some((_, operation, shape, allow)) = TABLE.iter().find(|(known, ..)| *known == name) else {
        return other(method, endpoint, name, tail);
    };
    let fits = match (shape, tail) {
        (Tail::Nothing, None) => true,
        (Tail::Job, Some(job)) => is_id(job),
        (Tail::Worker, Some(worker)) => is_id_and_more(worker),
        (Tail::WorkerAndJob, Some(tail)) => tail
            .split_once('/')
            .is_some_and(|(worker, job)| is_id(worker) && is_id_and_more(job)),
        (Tail::Anything, Some(tail)) => tail.split('/').all(is_segment),
        _ => false,
    };
    if !fits {
        return Err(Unclassified::NoRoute(match shape {
            Tail::Nothing => "nothing follows this operation's name",
            Tail::Job => "this operation's name is followed by one job id of A-Z a-z 0-9 _ -",
            Tail::Worker => "this operation's name is followed by one worker id of A-Z a-z 0-9 _ -",
            Tail::WorkerAndJob => "this operation's name is followed by a worker id and a job id",
            Tail::Anything => "this operation's name is followed by the model API's path",
        }));
    }
    if !takes(allow, method) {
        return Err(Unclassified::Method { allow });
    }
    Ok(Classified {
        operation: *operation,
        endpoint,
    })
}

fn takes(allow: &str, method: &Method) -> bool {
    // Most often it is the first of them.
    let behind = allow.strip_prefix(method.as_str());
    if behind.is_some_and(|behind| behind.is_empty() || behind.starts_with(',')) {
        return true;
    }
    let mut allowed = allow.split(',').map(str::trim_start);
    allowed.any(|allowed| allowed == method.as_str())
}

/// A name Runpod may have added. Never one that an upstream might take for a known operation: an
/// alias would be another budget.
fn other<'a>(
    method: &Method,
    endpoint: &'a str,
    name: &str,
    tail: Option<&str>,
) -> Result<Classified<'a>, Unclassified> {
    let segments = tail.into_iter().flat_map(|tail| tail.split('/'));
    if !is_segment(name) || !segments.into_iter().all(is_segment) {
        return Err(Unclassified::NoRoute(
            "a segment holds only A-Z a-z 0-9 _ - .",
        ));
    }
    if TABLE
        .iter()
        .any(|(known, ..)| known.eq_ignore_ascii_case(name))
    {
        return Err(Unclassified::NoRoute(
            "operations are written in lower case",
        ));
    }
    if !takes(METHODS, method) {
        return Err(Unclassified::Method { allow: METHODS });
    }
    Ok(Classified {
        operation: Operation::Other,
        endpoint,
    })
}

fn is_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() | (byte == b'_') | (byte == b'-');
    !text.is_empty() && all(text.as_bytes(), plain)
}

/// An id, and what the worker's SDK puts behind a URL that was given to it without a `?`: its
/// query, from the first `&`. None of it can be read as another segment.
fn is_id_and_more(text: &str) -> bool {
    let (id, more) = text.split_at(text.find('&').unwrap_or(text.len()));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.~=&,+".contains(&byte);
    let mut pieces = more.split('%');
    let plainly = pieces.next().is_some_and(|piece| piece.bytes().all(plain));
    let comma = |piece: &str| {
        let rest = piece
            .strip_prefix("2C")
            .or_else(|| piece.strip_prefix("2c"));
        rest.is_some_and(|rest| rest.bytes().all(plain))
    };
    is_id(id) && plainly && pieces.all(comma)
}

/// A path segment that no server reads as anything but itself.
fn is_segment(text: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() | (byte == b'_') | (byte == b'-') | (byte == b'.');
    !text.is_empty() && text != "." && text != ".." && all(text.as_bytes(), plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn get(path: &str) -> Result<Operation, Unclassified> {
        operation(&Method::GET, path).map(|classified| classified.operation)
    }

    fn post(path: &str) -> Result<Operation, Unclassified> {
        operation(&Method::POST, path).map(|classified| classified.operation)
    }

    #[test]
    fn each_operation_has_one_spelling() {
        assert_eq!(post("/v2/ep-1_A/run"), Ok(Operation::Run));
        assert_eq!(post("/v2/ep/runsync"), Ok(Operation::RunSync));
        assert_eq!(get("/v2/ep/status/sync-0c1-u1"), Ok(Operation::Status));
        assert_eq!(post("/v2/ep/status/j"), Ok(Operation::Status));
        assert_eq!(get("/v2/ep/status-sync/j"), Ok(Operation::StatusSync));
        assert_eq!(get("/v2/ep/stream/j"), Ok(Operation::Stream));
        assert_eq!(post("/v2/ep/cancel/j"), Ok(Operation::Cancel));
        assert_eq!(post("/v2/ep/retry/j"), Ok(Operation::Retry));
        assert_eq!(post("/v2/ep/purge-queue"), Ok(Operation::PurgeQueue));
        assert_eq!(get("/v2/ep/health"), Ok(Operation::Health));
        assert_eq!(get("/v2/ep/requests"), Ok(Operation::Requests));
        assert_eq!(
            post("/v2/ep/openai/v1/chat/completions"),
            Ok(Operation::OpenAi)
        );
        assert_eq!(get("/v2/ep/metrics"), Ok(Operation::Other));
        assert_eq!(get("/v2/ep/batch/b1/requests"), Ok(Operation::Other));
    }

    #[test]
    fn a_worker_is_known_with_and_without_a_question_mark() {
        for path in [
            "/v2/ep/job-take/w1",
            "/v2/ep/job-take/w1&job_in_progress=0",
            "/v2/ep/job-take-batch/moi9fq5smrmwvl&batch_size=2&job_in_progress=1",
            "/v2/ep/job-stop/w1",
            "/v2/ep/job-done/w1/8f3c-u1",
            "/v2/ep/job-done/w1/8f3c-u1&isStream=false",
            "/v2/ep/job-stream/w1/sync-1&isStream=false",
            "/v2/ep/ping/w1&job_id=a-u1%2Cb-u2&runpod_version=1.12.0",
        ] {
            assert_eq!(get(path), Ok(Operation::Worker), "{path}");
            assert_eq!(post(path), Ok(Operation::Worker), "{path}");
        }
        for path in [
            "/v2/ep/job-take",
            "/v2/ep/job-take/",
            "/v2/ep/job-take/..",
            "/v2/ep/job-take/..&a=b",
            "/v2/ep/job-take/&a=b",
            "/v2/ep/job-take/w1/j1",
            "/v2/ep/job-take/w1&a=b/../../run",
            "/v2/ep/job-take/w1&a=%2F..%2F..%2Frun",
            "/v2/ep/job-take/w1&a=%2C%2F",
            "/v2/ep/job-take/w1&a=%",
            "/v2/ep/job-take/..%2Frun",
            "/v2/ep/job-take/w1;x",
            "/v2/ep/job-done/w1",
            "/v2/ep/job-done/w1&a=b/j1",
            "/v2/ep/job-done/../run",
            "/v2/ep/job-done/w1/j1/x",
            "/v2/ep/JOB-TAKE/w1",
            "/v2/ep/Ping/w1",
        ] {
            let refused = matches!(get(path), Err(Unclassified::NoRoute(_)));
            assert!(refused, "{path}: {:?}", get(path));
        }
    }

    #[test]
    fn an_alias_is_no_route() {
        for path in [
            "/v2/ep/RUN",
            "/v2/ep/Run",
            "/v2/ep/run/",
            "/v2/ep/r%75n",
            "/v2/ep/run;x",
            "/v2/ep/status/j/",
            "/v2/ep/status/j%2Fx",
            "/v2/ep/x/../run",
            "/v2/ep/./run",
            "/v2/e%70/run",
            "/V2/ep/run",
            "/v2/ep",
            "/v2/ep/",
            "/v2/ep/status",
            "/v2/ep/openai",
            "/",
            "",
        ] {
            assert!(
                matches!(post(path), Err(Unclassified::NoRoute(_))),
                "{path}: {:?}",
                post(path)
            );
        }
    }

    #[test]
    fn a_double_slash_is_told_where_it_comes_from() {
        assert_eq!(post("/v2//ep/run"), Err(Unclassified::EmptySegment));
    }

    #[test]
    fn the_wrong_method_names_the_right_ones() {
        assert_eq!(
            get("/v2/ep/run"),
            Err(Unclassified::Method { allow: "POST" })
        );
        assert_eq!(
            post("/v2/ep/health"),
            Err(Unclassified::Method { allow: "GET" })
        );
        let put = operation(&Method::PUT, "/v2/ep/status/j");
        assert_eq!(put, Err(Unclassified::Method { allow: "GET, POST" }));
        for method in ["HEAD", "OPTIONS", "TRACE", "get", "Get", "G#T", "PATCHY"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            for path in ["/v2/ep/status/j", "/v2/ep/metrics"] {
                let refused = operation(&method, path);
                assert!(
                    matches!(refused, Err(Unclassified::Method { .. })),
                    "{method}"
                );
            }
        }
    }

    proptest! {
        /// Whatever spelling gets through is, for any reader that folds or decodes, what it was
        /// classified as.
        #[test]
        fn no_spelling_hides_an_operation(
            path in "/v2/(e/(job-take|ping|run|x)/)?[a-z%/.A-Z0-9;?#&=2C\\\\ _-]{0,30}",
        ) {
            if let Ok(classified) = operation(&Method::POST, &path) {
                let worker = classified.operation == Operation::Worker;
                let also: &[u8] = if worker { b"&=%,+~" } else { b"" };
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_-.".contains(&byte);
                prop_assert!(path.bytes().all(|byte| plain(byte) || also.contains(&byte)));
                // Whoever decodes and normalises it is left with the path that was classified.
                let decoded = path.replace("%2C", ",").replace("%2c", ",");
                prop_assert!(!decoded.contains('%'));
                prop_assert!(!decoded.split('/').any(|segment| [".", ".."].contains(&segment)));
                let name = path.split('/').nth(3).unwrap();
                let known = TABLE.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name));
                match known {
                    Some((known, operation, ..)) => {
                        prop_assert_eq!(*known, name);
                        prop_assert_eq!(*operation, classified.operation);
                    }
                    None => prop_assert_eq!(classified.operation, Operation::Other),
                }
            }
        }
    }
}
