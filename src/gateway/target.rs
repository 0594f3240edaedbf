//! What a request's target is, in each form it can have (RFC 9112, section 3.2).

use http::uri::PathAndQuery;
use http::{Method, Uri};

use crate::gateway::classify::{METHODS, Unclassified};
use crate::text::all;

/// The longest target, in bytes: what nginx takes.
pub const LONGEST: usize = 8 * 1024;

/// What of a target is classified and forwarded: its path and query. An absolute one (RFC 9112,
/// section 3.2.2) is reduced to them, as whom to ask is not the client's to choose.
///
/// # Errors
/// [`Unclassified`]: nobody is asked anything by it.
pub fn of<'a>(method: &Method, uri: &'a Uri) -> Result<&'a PathAndQuery, Unclassified> {
    if matches!(*method, Method::CONNECT | Method::TRACE) {
        return Err(Unclassified::Unserved);
    }
    match uri.scheme_str() {
        None | Some("http" | "https") => {}
        Some(_) => return Err(Unclassified::Target("its scheme is not http")),
    }
    if let Some(authority) = uri.authority()
        && !is_authority(authority.as_str().as_bytes())
    {
        return Err(Unclassified::Target("it names no host"));
    }
    let target = uri
        .path_and_query()
        .ok_or(Unclassified::Target("it has no path"))?;
    let text = target.as_str();
    if text == "*" {
        return Err(match *method {
            Method::OPTIONS => Unclassified::Method { allow: METHODS },
            _ => Unclassified::Target("only OPTIONS asks for `*`"),
        });
    }
    if text.len() > LONGEST {
        return Err(Unclassified::TooLong);
    }
    let visible = |byte: u8| byte.is_ascii_graphic();
    if !text.starts_with('/') || !all(text.as_bytes(), visible) {
        return Err(Unclassified::Target("it holds more than visible ASCII"));
    }
    Ok(target)
}

/// What is before the first `at`, which is ASCII, and what is behind it. Of texts this short each
/// byte is looked at in less time than a search takes to begin.
pub fn cut(text: &str, at: u8) -> Option<(&str, &str)> {
    let place = text.bytes().position(|byte| byte == at)?;
    text.get(..place).zip(text.get(place + 1..))
}

/// A host with or without a port, and nothing else (RFC 3986, section 3.2, without what no host is
/// called).
pub fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text {
        [b'[', rest @ ..] => {
            let Ok(rest) = std::str::from_utf8(rest) else {
                return false;
            };
            let Some((host, after)) = rest.split_once(']') else {
                return false;
            };
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match after.strip_prefix(':') {
                None if after.is_empty() => return true,
                None => return false,
                Some(port) => (&b"v6"[..], port.as_bytes()),
            }
        }
        // A port is short: looked for from the end.
        _ => match text.iter().rposition(|&byte| byte == b':') {
            Some(colon) => (&text[..colon], &text[colon + 1..]),
            None => (text, &b""[..]),
        },
    };
    let named =
        |byte: u8| byte.is_ascii_alphanumeric() | (byte == b'.') | (byte == b'-') | (byte == b'_');
    !host.is_empty() && all(host, named) && port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_path_and_a_query_or_reduced_to_them() {
        let reduced = |uri: &str| {
            let uri: Uri = uri.parse().unwrap();
            of(&Method::GET, &uri).map(|target| target.as_str().to_owned())
        };
        for uri in [
            "/v2/ep/health",
            "/v2/ep/health?",
            "/v2/ep/health?a=%zz&&b=c?d/../e",
        ] {
            assert_eq!(reduced(uri), Ok(uri.to_owned()));
            for before in ["http://x", "HTTPS://x.example:8080", "http://[::1]:80"] {
                assert_eq!(reduced(&format!("{before}{uri}")), Ok(uri.to_owned()));
            }
        }
        for uri in [
            "*",
            "x:80",
            "ftp://x/v2/ep/health",
            "http://me@x/v2/ep/health",
            "http://me:pw@x/v2/ep/health",
            "http://x,y/v2/ep/health",
            "/v2/ep/health?ä",
            "/v2/ep/stätus/j",
        ] {
            let refused = matches!(reduced(uri), Err(Unclassified::Target(_)));
            assert!(refused, "{uri}: {:?}", reduced(uri));
        }
        let long = format!("/{}", "x".repeat(LONGEST - 1));
        assert_eq!(reduced(&long), Ok(long.clone()));
        assert_eq!(reduced(&format!("{long}x")), Err(Unclassified::TooLong));
        for method in [Method::CONNECT, Method::TRACE] {
            let uri = Uri::from_static("/v2/ep/health");
            let refused = of(&method, &uri);
            assert_eq!(refused, Err(Unclassified::Unserved));
        }
    }

    #[test]
    fn an_authority_is_a_host_and_a_port() {
        for good in [
            "x",
            "api.runpod.ai",
            "my_host-1:8080",
            "1.2.3.4:80",
            "[::1]",
            "[::1]:80",
            "x:",
        ] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a b", "a,b", "me@x", "x/y", "x?y", "x#y", "x:y", "x:80:80", "x:123456",
            "[::1", "::1", "[x]", "[::1]x", "ä", "x\\y", "%41",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }
}
