//! Method and path to operation: a closed grammar on the raw target. Nothing is decoded, folded or
//! normalised, and what was classified is forwarded byte for byte, so that no spelling of a request
//! is counted as one thing and taken upstream for another.

use http::Method;

use crate::operation::Operation;

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
    #[error("this operation takes {allow} only")]
    Method { allow: &'static str },
}

/// What an operation's path looks like after its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    Nothing,
    Job,
    Anything,
}

/// Every name there is, with the methods it takes (contract, section 1.1).
const TABLE: [(&str, Operation, Tail, &str); 11] = [
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
];

/// The operation that `path`, without its query, asks for.
///
/// # Errors
/// [`Unclassified`]: it is none.
pub fn operation<'a>(method: &Method, path: &'a str) -> Result<Classified<'a>, Unclassified> {
    if path.contains("//") {
        return Err(Unclassified::EmptySegment);
    }
    let rest = path.strip_prefix("/v2/").ok_or(Unclassified::NoRoute(
        "it does not begin with /v2/{endpoint}/",
    ))?;
    let (endpoint, rest) = rest
        .split_once('/')
        .ok_or(Unclassified::NoRoute("it names no operation"))?;
    if !is_id(endpoint) {
        return Err(Unclassified::NoRoute(
            "an endpoint id holds only A-Z a-z 0-9 _ -",
        ));
    }
    let (name, tail) = match rest.split_once('/') {
        Some((name, tail)) => (name, Some(tail)),
        None => (rest, None),
    };
    let Some((_, operation, shape, allow)) = TABLE.iter().find(|(known, ..)| *known == name) else {
        return other(endpoint, name, tail);
    };
    let fits = match (shape, tail) {
        (Tail::Nothing, None) => true,
        (Tail::Job, Some(job)) => is_id(job),
        (Tail::Anything, Some(tail)) => tail.split('/').all(is_segment),
        _ => false,
    };
    if !fits {
        return Err(Unclassified::NoRoute(match shape {
            Tail::Nothing => "nothing follows this operation's name",
            Tail::Job => "this operation's name is followed by one job id of A-Z a-z 0-9 _ -",
            Tail::Anything => "this operation's name is followed by the model API's path",
        }));
    }
    if !allow.split(", ").any(|allowed| allowed == method.as_str()) {
        return Err(Unclassified::Method { allow });
    }
    Ok(Classified {
        operation: *operation,
        endpoint,
    })
}

/// A name Runpod may have added. Never one that an upstream might take for a known operation: an
/// alias would be another budget.
fn other<'a>(
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
    Ok(Classified {
        operation: Operation::Other,
        endpoint,
    })
}

fn is_id(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// A path segment that no server reads as anything but itself.
fn is_segment(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !text.is_empty() && text != "." && text != ".." && text.bytes().all(plain)
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
        let trace = operation(&Method::TRACE, "/v2/ep/status/j");
        assert!(matches!(trace, Err(Unclassified::Method { .. })));
    }

    proptest! {
        /// Whatever spelling gets through is, for any reader that folds or decodes, what it was
        /// classified as.
        #[test]
        fn no_spelling_hides_an_operation(path in "/v2/[a-z%/.A-Z0-9;?#\\\\ _-]{0,30}") {
            if let Ok(classified) = operation(&Method::POST, &path) {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_-.".contains(&byte);
                prop_assert!(path.bytes().all(plain));
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
