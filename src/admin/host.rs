//! Which names the operator's door answers to.
//!
//! A web page that an operator opens can have its own name point at this door (DNS rebinding) and
//! read what it says. Such a name is one that anybody can register. So a request is answered if it
//! names an IP address, a name without a dot (`localhost`, a container, a Kubernetes service), one
//! below a suffix that no registry sells, or one that the configuration names.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::{HOST, ORIGIN};
use http::request;

/// Below these nobody can register a name: RFC 6761, RFC 6762, ICANN's reserved `internal`, and the
/// services of a Kubernetes cluster.
const PRIVATE: [&str; 5] = [".localhost", ".test", ".local", ".internal", ".svc"];

const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// Whether every host that `request` names is one of ours. A request that names none is older than
/// browsers are.
pub(super) fn known(request: &request::Parts, configured: &[String]) -> bool {
    let fields = request.headers.get_all(HOST).iter();
    let fields = fields.map(|field| field.to_str().unwrap_or("?.?"));
    let target = request.uri.authority().map(|authority| authority.as_str());
    fields
        .chain(target)
        .all(|host| is_ours(&name(host), configured))
}

/// Whether a web page of another origin sent it: a browser lets any page post to a door it cannot
/// read from, and says so.
pub(super) fn of_another_page(request: &request::Parts) -> bool {
    let field = |name| {
        let value = request.headers.get(name);
        value.map(|value: &http::HeaderValue| value.to_str().unwrap_or("?"))
    };
    let foreign_site =
        field(SEC_FETCH_SITE).is_some_and(|site| !["same-origin", "none"].contains(&site));
    let own = field(HOST.as_str());
    let foreign_origin = field(ORIGIN.as_str())
        .is_some_and(|origin| origin.split_once("://").map(|(_, host)| host) != own);
    foreign_site || foreign_origin
}

/// Without its port, in lower case.
fn name(host: &str) -> String {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn is_ours(name: &str, configured: &[String]) -> bool {
    let is_address = name.parse::<Ipv4Addr>().is_ok() || name.parse::<Ipv6Addr>().is_ok();
    is_address
        || !name.contains('.')
        || PRIVATE.iter().any(|suffix| name.ends_with(suffix))
        || configured.iter().any(|own| own == "*" || own == name)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn answers(host: &str, configured: &[&str]) -> bool {
        let request = Request::builder().uri("/lanes").header(HOST, host);
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let configured: Vec<_> = configured.iter().map(|&name| name.to_owned()).collect();
        known(&head, &configured)
    }

    #[test]
    fn addresses_and_private_names_are_ours() {
        for host in [
            "127.0.0.1:9090",
            "10.1.2.3",
            "[::1]:9090",
            "[fd00::1]",
            "localhost:9090",
            "LOCALHOST.",
            "podgate:9090",
            "podgate.inference.svc:9090",
            "podgate.inference.svc.cluster.local.:9090",
            "gateway.internal",
            "podgate.test",
            "",
        ] {
            assert!(answers(host, &[]), "{host}");
        }
    }

    #[test]
    fn names_that_anybody_can_register_are_not() {
        for host in [
            "evil.example",
            "evil.example:9090",
            "127.0.0.1.evil.example",
            "localhost.evil.example.",
            "podgate.dev",
            "1.2.3",
            "\u{e9}.fr",
        ] {
            assert!(!answers(host, &[]), "{host}");
            assert!(answers(host, &["*"]), "{host}");
        }
        assert!(answers("Ops.Example.com:9090", &["ops.example.com"]));
        assert!(!answers(
            "ops.example.com.evil.example",
            &["ops.example.com"]
        ));
    }

    #[test]
    fn a_target_that_names_a_host_counts_too() {
        let request = Request::builder().uri("http://evil.example/lanes");
        let request = request.header(HOST, "127.0.0.1");
        let (head, ()) = request.body(()).expect("a request").into_parts();
        assert!(!known(&head, &[]));
    }
}
