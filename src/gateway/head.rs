//! A request's head as a whole: refused where it could be read in two ways, and where it has been
//! here before. What it asks for is `classify`'s to say.

use http::header::{AUTHORIZATION, CONNECTION, EXPECT, HOST, USER_AGENT, VIA};
use http::{HeaderMap, HeaderValue, StatusCode, Version};

use crate::gateway::fields::Hop;
use crate::gateway::patience::PREFER;
use crate::gateway::request_id::X_REQUEST_ID;
use crate::gateway::target::is_authority;
use crate::gateway::trace::TRACEPARENT;

/// What hyper takes of HTTP/1, and would take any number of HTTP/2.
const MOST_FIELDS: usize = 100;

/// Why a head is refused whatever it asks for. The connection ends with the answer: what follows
/// may not be what its sender takes it for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    #[error("a line of the head does not end in CR LF")]
    LineEnd,
    #[error("the target holds a `#`")]
    Fragment,
    #[error("`Content-Length` is no number")]
    Length,
    #[error("`Content-Length` is given twice")]
    TwoLengths,
    #[error("both `Content-Length` and `Transfer-Encoding` are given")]
    TwoFramings,
    #[error("`Transfer-Encoding` may only be `chunked`")]
    TransferCoding,
    #[error("what came before this request broke its framing")]
    Unframed,
    #[error("there are more than {MOST_FIELDS} fields")]
    TooManyFields,
    #[error("`Host` must be given once")]
    HostCount,
    #[error("`Host` names no host")]
    Host,
    #[error("`Authorization` is given twice")]
    TwoCredentials,
    #[error("nothing but `100-continue` can be expected here")]
    Expectation,
    #[error("this request has passed here before: the upstream leads back to podgate")]
    Loop,
}

impl BadHead {
    pub fn status(self) -> StatusCode {
        match self {
            BadHead::Expectation => StatusCode::EXPECTATION_FAILED,
            BadHead::Loop => StatusCode::LOOP_DETECTED,
            BadHead::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// What of a head's fields there is to look at, found in one go: each look for a field by its name costs
/// more than this. Of a field that is there several times, the first.
#[derive(Clone, Copy, Debug)]
pub struct Noted<'a> {
    /// All of them.
    pub headers: &'a HeaderMap,
    pub authorization: Option<&'a HeaderValue>,
    pub user_agent: Option<&'a HeaderValue>,
    pub request_id: Option<&'a HeaderValue>,
    /// The first of so many.
    pub connection: Option<&'a HeaderValue>,
    pub connections: usize,
    /// Whether there is any such field.
    pub prefer: bool,
    pub trace: bool,
    expect: bool,
    via: bool,
    hosts: usize,
    credentials: usize,
    unnamed: bool,
    unexpected: bool,
}

impl<'a> Noted<'a> {
    pub fn of(headers: &'a HeaderMap) -> Self {
        let mut noted = Self {
            headers,
            authorization: None,
            user_agent: None,
            request_id: None,
            connection: None,
            connections: 0,
            prefer: false,
            trace: false,
            expect: false,
            via: false,
            hosts: 0,
            credentials: 0,
            unnamed: false,
            unexpected: false,
        };
        for (name, value) in headers {
            if *name == HOST {
                noted.hosts += 1;
                noted.unnamed |= !is_authority(value.as_bytes());
            } else if *name == AUTHORIZATION {
                noted.credentials += 1;
                noted.authorization.get_or_insert(value);
            } else if *name == USER_AGENT {
                noted.user_agent.get_or_insert(value);
            } else if *name == CONNECTION {
                noted.connections += 1;
                noted.connection.get_or_insert(value);
            } else if *name == EXPECT {
                noted.expect = true;
                noted.unexpected |= !value.as_bytes().eq_ignore_ascii_case(b"100-continue");
            } else if *name == VIA {
                noted.via = true;
            } else if *name == PREFER {
                noted.prefer = true;
            } else if *name == TRACEPARENT {
                noted.trace = true;
            } else if *name == X_REQUEST_ID {
                noted.request_id.get_or_insert(value);
            }
        }
        noted
    }
}

/// Whether a head is sound. `hop`: us, as the request's way here would name us.
///
/// # Errors
/// [`BadHead`]: it is not.
pub fn check(version: Version, noted: &Noted<'_>, hop: &Hop) -> Result<(), BadHead> {
    if noted.headers.len() > MOST_FIELDS {
        return Err(BadHead::TooManyFields);
    }
    // HTTP/1.0 knows no `Host`, HTTP/2 has another place for it.
    if noted.hosts > 1 || noted.hosts == 0 && version == Version::HTTP_11 {
        return Err(BadHead::HostCount);
    }
    if noted.unnamed {
        return Err(BadHead::Host);
    }
    // Which of them the upstream would take for the caller's is not known.
    if noted.credentials > 1 {
        return Err(BadHead::TwoCredentials);
    }
    if noted.unexpected {
        return Err(BadHead::Expectation);
    }
    if noted.via && hop.came_round(noted.headers) {
        return Err(BadHead::Loop);
    }
    Ok(())
}

/// Whether the client waits to be asked for its body (RFC 9110, section 10.1.1).
pub fn waits_to_be_asked(version: Version, noted: &Noted<'_>) -> bool {
    version == Version::HTTP_11 && noted.expect
}
