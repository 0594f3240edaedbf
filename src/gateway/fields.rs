//! Header fields on their way through: what belongs to one hop stays on it.

use http::HeaderMap;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};

/// What belongs to one connection (RFC 9110, section 7.6.1) and what each side frames anew.
const HOP_BY_HOP: [HeaderName; 11] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
    HeaderName::from_static("http2-settings"),
];

/// What a client says about whom it speaks for: nobody configured us to trust it, and Runpod is
/// told nothing about who stands behind us.
const PROVENANCE: [HeaderName; 6] = [
    FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-real-ip"),
];

/// Us, as one hop of HTTP/1.1.
const VIA_US: HeaderValue = HeaderValue::from_static("1.1 podgate");

/// The fields of a request for the upstream. `Content-Length` is left to whoever frames the body.
pub fn towards_upstream(headers: &mut HeaderMap, host: &HeaderValue) {
    strip_hop(headers);
    for name in &PROVENANCE {
        headers.remove(name);
    }
    headers.remove(CONTENT_LENGTH);
    headers.insert(HOST, host.clone());
    headers.append(VIA, VIA_US);
}

/// The fields of a response for the client.
pub fn towards_client(headers: &mut HeaderMap) {
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    strip_hop(headers);
    // Both at once is how responses are split: the framing that won is the only one.
    if chunked {
        headers.remove(CONTENT_LENGTH);
    }
    headers.append(VIA, VIA_US);
}

fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| !is_end_to_end(name))
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// What no `Connection` field may take away: a client could strip its own credential or our
/// framing on the way.
fn is_end_to_end(name: &HeaderName) -> bool {
    [
        HOST,
        http::header::AUTHORIZATION,
        CONTENT_LENGTH,
        http::header::CONTENT_TYPE,
    ]
    .contains(name)
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
            ("x-request-id", "r"),
        ]);
        towards_upstream(&mut headers, &HeaderValue::from_static("up"));
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept-encoding",
                "authorization",
                "host",
                "via",
                "x-request-id"
            ]
        );
    }

    #[test]
    fn the_connection_field_cannot_take_the_credential_away() {
        let mut headers = map(&[
            ("connection", "authorization, host"),
            ("authorization", "k"),
        ]);
        towards_upstream(&mut headers, &HeaderValue::from_static("up"));
        assert!(headers.contains_key("authorization"));
        assert_eq!(headers["host"], "up");
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
