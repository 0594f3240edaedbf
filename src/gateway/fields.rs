//! Header fields on their way through: what belongs to one hop stays on it.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HeaderName, HeaderValue, TRANSFER_ENCODING, VIA,
};
use http::{HeaderMap, Version};

use crate::gateway::head::Noted;
use crate::text::all;

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

    fn via(&self, version: Version) -> &HeaderValue {
        let [http10, http11, http2] = &self.via;
        match version {
            Version::HTTP_10 => http10,
            Version::HTTP_2 => http2,
            _ => http11,
        }
    }
}

/// Who says a field that podgate may have something to say of.
#[derive(Clone, Copy, Debug)]
pub enum Says<'a> {
    /// We do, whatever the client says.
    Us(&'a [u8]),
    /// The client, if it does.
    Client,
    Nobody,
}

/// The fields of a request that came by `version`, all that were `noted`, for the upstream, one after
/// the other. `own`: those that podgate has something to say of. `Content-Length` is left to whoever
/// frames the body.
pub fn towards_upstream(
    noted: &Noted<'_>,
    version: Version,
    hop: &Hop,
    own: &[(&HeaderName, Says<'_>)],
    mut each: impl FnMut(&str, &[u8]),
) {
    for (name, says) in own {
        if let Says::Us(value) = says {
            each(name.as_str(), value);
        }
    }
    let headers = noted.headers;
    let named = match (noted.connection, noted.connections) {
        (None, _) => Named::default(),
        (Some(only), 1) => Named::of(std::iter::once(only.as_bytes())),
        (Some(_), _) => Named::by(headers),
    };
    let one_cookie = version == Version::HTTP_2;
    for (name, value) in headers {
        let text = name.as_str();
        let ours = || {
            let own = own.iter().find(|(own, _)| *own == name);
            own.is_some_and(|(_, says)| !matches!(says, Says::Client))
        };
        let stays = || {
            is_of_the_hop(text)
                || is_a_claim(text)
                || name == CONTENT_LENGTH
                || ours()
                || is_read_as_another(text, is_a_claim)
        };
        if !is_usual(text) && stays() || named.contains(name) {
            continue;
        }
        if !(one_cookie && name == COOKIE) {
            each(text, value.as_bytes());
        }
    }
    if one_cookie && !named.contains(&COOKIE) {
        join_cookies(headers, &mut each);
    }
    each(VIA.as_str(), hop.via(version).as_bytes());
}

/// HTTP/2 may carry a cookie's crumbs apart, HTTP/1 must not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &HeaderMap, each: &mut impl FnMut(&str, &[u8])) {
    let crumbs = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    let crumbs: Vec<_> = crumbs.collect();
    if !crumbs.is_empty() {
        each(COOKIE.as_str(), &crumbs.join(&b"; "[..]));
    }
}

/// The fields of an answer for the client, gathered one by one.
pub struct TowardsClient {
    named: Named,
    headers: HeaderMap,
    chunked: bool,
}

impl TowardsClient {
    /// `room`: about how many there are.
    pub fn new(room: usize) -> Self {
        let mut headers = SPARE.take().unwrap_or_default();
        headers.reserve(room + OWN_FIELDS);
        Self {
            named: Named::default(),
            headers,
            chunked: false,
        }
    }

    /// What one of the answer's `Connection` fields says: all of them come before [`Self::add`].
    pub fn connection(&mut self, value: &[u8]) {
        self.named.add(value);
    }

    /// The next of the answer's fields.
    pub fn add(&mut self, name: HeaderName, value: HeaderValue) {
        let text = name.as_str();
        if is_of_the_hop(text) {
            self.chunked |= name == TRANSFER_ENCODING;
            return;
        }
        if self.named.contains(&name) || is_read_as_another(text, |_| false) {
            return;
        }
        // Said twice, it is passed on once.
        if name == CONTENT_LENGTH && self.headers.contains_key(CONTENT_LENGTH) {
            return;
        }
        self.headers.append(name, value);
    }

    /// All of them, and us.
    pub fn finish(self) -> HeaderMap {
        let mut headers = self.headers;
        // Both at once is how responses are split: the framing that won is the only one.
        if self.chunked {
            headers.remove(CONTENT_LENGTH);
        }
        headers.append(VIA, VIA_US);
        headers
    }
}

/// Room for what podgate adds to an answer's fields.
const OWN_FIELDS: usize = 8;
/// A larger map is not kept: it has room for so many fields.
const LARGEST_SPARE: usize = 128;

thread_local! {
    static SPARE: Cell<Option<HeaderMap>> = const { Cell::new(None) };
}

/// Keeps a map whose fields nobody needs any more for the next answer on this thread: making one is
/// the largest allocation of a small request.
pub fn spare(mut headers: HeaderMap) {
    if headers.capacity() <= LARGEST_SPARE {
        headers.clear();
        SPARE.set(Some(headers));
    }
}

/// What most requests have and nobody between their ends has anything to say of: nothing below holds for
/// these, and podgate says none of them. Found before anything else is looked for.
fn is_usual(name: &str) -> bool {
    matches!(
        name,
        "accept" | "accept-encoding" | "accept-language" | "content-type" | "user-agent"
    )
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

/// Many servers read `_` as `-`: whether they would take this for a field that is ours to say, or
/// that does not pass.
fn is_read_as_another(name: &str, claims: impl Fn(&str) -> bool) -> bool {
    if all(name.as_bytes(), |byte| byte != b'_') {
        return false;
    }
    let read = name.replace('_', "-");
    is_of_the_hop(&read) || claims(&read) || is_end_to_end(&read)
}

/// The names in `Connection` fields, but for those that never pass and those that always do.
#[derive(Default)]
struct Named(Option<Vec<HeaderName>>);

impl Named {
    fn by(headers: &HeaderMap) -> Self {
        let values = headers.get_all(CONNECTION).iter();
        Self::of(values.map(HeaderValue::as_bytes))
    }

    fn of<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut named = Self::default();
        values.for_each(|value| named.add(value));
        named
    }

    /// Those in one more field.
    fn add(&mut self, value: &[u8]) {
        // Bytes: one name that is no text takes the others with it otherwise.
        let usual = |name: &[u8]| {
            name.eq_ignore_ascii_case(b"keep-alive") || name.eq_ignore_ascii_case(b"close")
        };
        // Most say one of these and nothing else.
        if usual(value) {
            return;
        }
        let names = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let names = names.filter(|name| !usual(name));
        let names = names.filter_map(|name| HeaderName::from_bytes(name).ok());
        let names = names.filter(|name| !is_end_to_end(name.as_str()));
        self.0.get_or_insert_default().extend(names);
    }

    fn contains(&self, name: &HeaderName) -> bool {
        self.0.as_ref().is_some_and(|names| names.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use http::header::{AUTHORIZATION, HOST};

    use super::*;

    const X_NOBODY: HeaderName = HeaderName::from_static("x-nobody");

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

    /// What the upstream gets.
    fn upstream(headers: &HeaderMap, version: Version, hop: &Hop) -> HeaderMap {
        let host = HeaderValue::from_static("up");
        let own = [
            (&HOST, Says::Us(host.as_bytes())),
            (&AUTHORIZATION, Says::Client),
            (&X_NOBODY, Says::Nobody),
        ];
        let mut written = HeaderMap::new();
        towards_upstream(&Noted::of(headers), version, hop, &own, |name, value| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            written.append(name, HeaderValue::from_bytes(value).unwrap());
        });
        written
    }

    fn client(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut towards = TowardsClient::new(fields.len());
        let connection = fields.iter().filter(|(name, _)| *name == "connection");
        connection.for_each(|(_, value)| towards.connection(value.as_bytes()));
        for (name, value) in fields {
            let name = HeaderName::from_static(name);
            towards.add(name, HeaderValue::from_static(value));
        }
        towards.finish()
    }

    #[test]
    fn what_belongs_to_the_hop_stays_and_the_rest_goes_through() {
        let headers = map(&[
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
            ("x-nobody", "1"),
            ("x-request-id", "r"),
        ]);
        let headers = upstream(&headers, Version::HTTP_11, &Hop::fresh());
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
        let headers = map(&[
            ("connection", "authorization, host"),
            ("connection", "Content-Type,via"),
            ("authorization", "k"),
            ("content-type", "text/plain"),
            ("via", "1.1 before"),
        ]);
        let headers = upstream(&headers, Version::HTTP_11, &Hop::fresh());
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
        headers = upstream(&headers, Version::HTTP_2, &there);
        assert!(!here.came_round(&headers));
        assert!(there.came_round(&headers));
        headers = upstream(&headers, Version::HTTP_10, &here);
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
        let headers = client(&[("transfer-encoding", "chunked"), ("content-length", "5")]);
        assert!(!headers.contains_key("content-length"));
        let headers = client(&[("content-length", "5"), ("content-length", "5")]);
        assert_eq!(headers.get_all("content-length").iter().count(), 1);
    }

    #[test]
    fn what_belongs_to_the_upstream_s_hop_stays_there() {
        let headers = client(&[
            ("x-mine", "1"),
            ("connection", "x-mine, close, retry-after"),
            ("keep-alive", "timeout=5"),
            ("content_length", "7"),
            ("retry-after", "3"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("via", "1.1 cloud"),
        ]);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["retry-after", "set-cookie", "via"]);
        assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
        assert_eq!(headers.get_all("via").iter().count(), 2);
    }

    #[test]
    fn nothing_of_a_spare_map_is_seen_again() {
        spare(map(&[
            ("x-secret", "1"),
            ("via", "1.1 other"),
            ("x-secret", "2"),
        ]));
        let headers = client(&[("content-length", "5")]);
        let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["content-length", "via"]);
        assert_eq!(headers.get_all("via").iter().count(), 1);
        spare(HeaderMap::with_capacity(10 * LARGEST_SPARE));
        assert!(SPARE.take().is_none(), "too large to be kept");
    }

    #[test]
    fn a_cookie_in_crumbs_is_one_in_http_1() {
        let crumbs = map(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]);
        let one = upstream(&crumbs, Version::HTTP_2, &Hop::fresh());
        assert_eq!(
            one.get_all("cookie").iter().collect::<Vec<_>>(),
            ["a=1; b=2"]
        );
        let as_they_are = upstream(&crumbs, Version::HTTP_11, &Hop::fresh());
        assert_eq!(as_they_are.get_all("cookie").iter().count(), 2);
        let none = upstream(&map(&[("x", "y")]), Version::HTTP_2, &Hop::fresh());
        assert!(!none.contains_key("cookie"));
    }
}
