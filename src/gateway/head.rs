//! A request's head as a whole: refused where it could be read in two ways, and where it has been
//! here before. What it asks for is `classify`'s to say.

use http::header::{AUTHORIZATION, EXPECT, HOST};
use http::{StatusCode, Version, request};

use crate::gateway::fields::Hop;
use crate::gateway::target::is_authority;

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

/// Whether a head is sound. `hop`: us, as the request's way here would name us.
///
/// # Errors
/// [`BadHead`]: it is not.
pub fn check(head: &request::Parts, hop: &Hop) -> Result<(), BadHead> {
    if head.headers.len() > MOST_FIELDS {
        return Err(BadHead::TooManyFields);
    }
    let (mut count, mut named, mut credentials, mut expected) = (0, true, 0, true);
    // All at once: each look for a field by its name costs more than this.
    for (name, value) in &head.headers {
        if *name == HOST {
            count += 1;
            named &= value.to_str().is_ok_and(is_authority);
        } else if *name == AUTHORIZATION {
            credentials += 1;
        } else if *name == EXPECT {
            expected &= value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        }
    }
    // HTTP/1.0 knows no `Host`, HTTP/2 has another place for it.
    if count > 1 || count == 0 && head.version == Version::HTTP_11 {
        return Err(BadHead::HostCount);
    }
    if !named {
        return Err(BadHead::Host);
    }
    // Which of them the upstream would take for the caller's is not known.
    if credentials > 1 {
        return Err(BadHead::TwoCredentials);
    }
    if !expected {
        return Err(BadHead::Expectation);
    }
    if hop.came_round(&head.headers) {
        return Err(BadHead::Loop);
    }
    Ok(())
}

/// Whether the client waits to be asked for its body (RFC 9110, section 10.1.1).
pub fn waits_to_be_asked(head: &request::Parts) -> bool {
    head.version == Version::HTTP_11 && head.headers.contains_key(EXPECT)
}
