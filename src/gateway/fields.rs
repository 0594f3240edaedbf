//! Header fields on their way through: what belongs to one hop stays on it.

use std::hash::{BuildHasher, RandomState};

use http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING, VIA};
use http::{HeaderMap, Version};

/// Us, as one hop of HTTP/1.1.
const VIA_US: HeaderValue = HeaderValue::from_static("1.1 podgate");
const NAME: &str = "podgate";
/// The most podgates a request may have come through. Nobody stacks so many on purpose.
const MOST_HOPS: usize = 8;

/// This process, as the upstream is told of it: by a name no other podgate has, so that a request
/// that has been here before is told from one that came through another.
#[derive(Clone, Debug)]
pub struct Hop {
    name: String,
    /// For requests of HTTP/1.0, 1.1 and 2.
    via: [HeaderValue; 3],
}

impl Hop {
    pub fn fresh() -> Self {
        // A key made anew is all the chance this needs.
        let name = format!("{NAME}-{:016x}", RandomState::new().hash_one(0u8));
        let via = ["1.0", "1.1", "2"]
            .map(|version| HeaderValue::try_from(format!("{version} {name}")).unwrap_or(VIA_US));
        Self { name, via }
    }

    /// Whether a request has passed here before, or through so many that it must be going round.
    pub fn came_round(&self, headers: &HeaderMap) -> bool {
        let values = headers.get_all(VIA).iter();
        let hops = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|hop| hop.split_ascii_whitespace().nth(1));
        let mut podgates = 0;
        for hop in hops {
            podgates += usize::from(hop.starts_with(NAME));
            if hop == self.name || podgates > MOST_HOPS {
                return true;
            }
        }
        false
    }

    fn via(&self, version: Version) -> HeaderValue {
        let [http10, http11, http2] = &self.via;
        match version {
            Version::HTTP_10 => http10,
            Version::HTTP_2 => http2,
            _ => http11,
        }
        .clone()
    }
}

/// The fields of a request that came by `version`, for the upstream. `Content-Length` is left to
/// whoever frames the body.
pub fn towards_upstream(headers: &mut HeaderMap, version: Version, host: &HeaderValue, hop: &Hop) {
    strip(headers, |name| is_of_the_hop(name) || is_a_claim(name));
    headers.remove(CONTENT_LENGTH);
    headers.insert(HOST, host.clone());
    if version == Version::HTTP_2 {
        join_cookies(headers);
    }
    headers.append(VIA, hop.via(version));
}

/// HTTP/2 may carry a cookie's crumbs apart, HTTP/1 must not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(COOKIE).iter().collect();
    if crumbs.len() > 1 {
        let crumbs: Vec<_> = crumbs.iter().map(|crumb| crumb.as_bytes()).collect();
        if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            headers.insert(COOKIE, cookie);
        }
    }
}

/// The fields of a response for the client.
pub fn towards_client(headers: &mut HeaderMap) {
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    strip(headers, is_of_the_hop);
    // Both at once is how responses are split: the framing that won is the only one.
    if chunked {
        headers.remove(CONTENT_LENGTH);
    }
    headers.append(VIA, VIA_US);
}

/// What belongs to one connection (RFC 9110, section 7.6.1) and what each side frames anew.
fn is_of_the_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "expect"
            | "http2-settings"
    )
}

/// What a client claims against what is known of its request: whom it speaks for (nobody configured
/// us to trust it, and Runpod is told nothing of who stands behind us), and that another method or
/// path is meant than the one that was counted.
fn is_a_claim(name: &str) -> bool {
    name.starts_with("x-forwarded-")
        || matches!(
            name,
            "forwarded"
                | "x-real-ip"
                | "x-http-method"
                | "x-http-method-override"
                | "x-method-override"
                | "x-original-url"
                | "x-rewrite-url"
        )
}

/// What no `Connection` field may take away: a client could strip its own credential, our framing
/// or the traces of a loop on the way.
fn is_end_to_end(name: &str) -> bool {
    matches!(
        name,
        "host" | "authorization" | "content-length" | "content-type" | "via" | "retry-after"
    )
}

/// Removes what `goes`, under that name or with `_` for `-`, as many servers read it; and what the
/// `Connection` fields name.
fn strip(headers: &mut HeaderMap, goes: impl Fn(&str) -> bool) {
    let named = headers
        .get_all(http::header::CONNECTION)
        .iter()
        // Bytes: one name that is no text takes the others with it otherwise.
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !is_end_to_end(name.as_str()));
    let known = headers
        .keys()
        .filter(|name| match name.as_str() {
            name if name.contains('_') => {
                let read = name.replace('_', "-");
                goes(&read) || is_end_to_end(&read)
            }
            name => goes(name),
        })
        .cloned();
    for name in named.chain(known).collect::<Vec<_>>() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        headers
    }

    fn upstream(headers: &mut HeaderMap) {
        let host = HeaderValue::from_static("up");
        towards_upstream(headers, Version::HTTP_11, &host, &Hop::fresh());
    }

    #[test]
    fn what_belongs_to_the_hop_stays_and_the_rest_goes_through() {
        let mut headers = map(&[
            ("connection", "keep-alive, x-mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("authorization", "Bearer k"),
            ("accept-encoding", "br, zstd"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-anything", "1"),
            ("forwarded", "for=1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("x-http-method-override", "DELETE"),
            ("x-original-url", "/v2/ep/run"),
            ("transfer_encoding", "chunked"),
            ("content_length", "7"),
            ("x_forwarded_for", "1.2.3.4"),
            ("my_own", "1"),
            ("x-request-id", "r"),
        ]);
        upstream(&mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept-encoding",
                "authorization",
                "host",
                "my_own",
                "via",
                "x-request-id"
            ]
        );
    }

    #[test]
    fn the_connection_field_cannot_take_the_credential_away() {
        let mut headers = map(&[
            ("connection", "authorization, host"),
            ("connection", "Content-Type,via"),
            ("authorization", "k"),
            ("content-type", "text/plain"),
            ("via", "1.1 before"),
        ]);
        upstream(&mut headers);
        assert!(headers.contains_key("authorization"));
        assert!(headers.contains_key("content-type"));
        assert_eq!(headers["host"], "up");
        assert_eq!(headers["via"], "1.1 before");
        assert_eq!(headers.get_all("via").iter().count(), 2);
    }

    #[test]
    fn who_has_been_here_is_known_and_who_was_at_another_is_let_through() {
        let (here, there) = (Hop::fresh(), Hop::fresh());
        let mut headers = map(&[("via", "1.0 fred, 1.1 podgate, HTTP/1.1 x.example (a, b)")]);
        assert!(!here.came_round(&headers));
        towards_upstream(&mut headers, Version::HTTP_2, &VIA_US, &there);
        assert!(!here.came_round(&headers));
        assert!(there.came_round(&headers));
        towards_upstream(&mut headers, Version::HTTP_10, &VIA_US, &here);
        assert!(here.came_round(&headers));
        let last = headers.get_all("via").iter().next_back().unwrap();
        assert_eq!(last, &format!("1.0 {}", here.name));
        for _ in 0..MOST_HOPS {
            assert!(!Hop::fresh().came_round(&map(&[("via", "1.1 podgate")])));
            headers.append(VIA, VIA_US);
        }
        assert!(Hop::fresh().came_round(&headers), "round and round");
    }

    #[test]
    fn a_response_has_one_framing() {
        let mut headers = map(&[("transfer-encoding", "chunked"), ("content-length", "5")]);
        towards_client(&mut headers);
        assert!(!headers.contains_key("content-length"));
        let mut headers = map(&[("content-length", "5")]);
        towards_client(&mut headers);
        assert!(headers.contains_key("content-length"));
    }
}
