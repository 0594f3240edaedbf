//! The way through a forward proxy: the one that the environment names, as other clients of the
//! machine use it. A tunnel by CONNECT for `http` and `https` alike, so that what the proxy sees of
//! an exchange is bytes.

use std::fmt;
use std::io;
use std::net::IpAddr;

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::process::{Scheme, Target};
use crate::gateway::dial::Host;

/// The longest head of the proxy's answer, in bytes.
const LONGEST_HEAD: usize = 8 * 1024;

/// What the environment says of a proxy cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("`{variable}` in the environment is no proxy's URL")]
    Unreadable { variable: &'static str },
    #[error(
        "`{variable}` in the environment names a {scheme} proxy: only http proxies are supported"
    )]
    Scheme {
        variable: &'static str,
        scheme: String,
    },
}

pub struct Proxy {
    host: Host,
    /// Its host and port, for people.
    name: String,
    authorization: Option<HeaderValue>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Proxy").field(&self.name).finish()
    }
}

impl Proxy {
    /// The proxy for `target` by `HTTPS_PROXY` or `HTTP_PROXY`, else `ALL_PROXY`; none for what
    /// `NO_PROXY` names, nor for this machine itself.
    ///
    /// # Errors
    /// [`ProxyError`]: to go straight in silence could be what must not be.
    pub fn from_environment(target: &Target) -> Result<Option<Self>, ProxyError> {
        Self::by(target, |name| std::env::var(name).ok())
    }

    fn by(
        target: &Target,
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Option<Self>, ProxyError> {
        let names = match target.scheme {
            Scheme::Https => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
            Scheme::Http => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
        };
        let set = |name: &'static str| {
            let value = variable(name).filter(|value| !value.trim().is_empty())?;
            Some((name, value))
        };
        let Some((name, url)) = names.into_iter().find_map(set) else {
            return Ok(None);
        };
        let Ok(destination) = Uri::try_from(target.to_string()) else {
            return Ok(None);
        };
        let no = ["NO_PROXY", "no_proxy"].into_iter().find_map(set);
        let matcher = || Matcher::builder().all(url.trim().to_owned());
        let no = no.map_or(String::new(), |(_, no)| no);
        if is_here(&target.host) || matcher().no(no).build().intercept(&destination).is_none() {
            // Either it is not to be used, or it cannot be read.
            return match matcher().build().intercept(&destination) {
                Some(_) => Ok(None),
                None => Err(ProxyError::Unreadable { variable: name }),
            };
        }
        let proxy = matcher().build().intercept(&destination);
        let proxy = proxy.ok_or(ProxyError::Unreadable { variable: name })?;
        let scheme = proxy.uri().scheme_str().unwrap_or_default();
        if scheme != "http" {
            return Err(ProxyError::Scheme {
                variable: name,
                scheme: scheme.to_owned(),
            });
        }
        let host = proxy.uri().host().unwrap_or_default();
        let port = proxy.uri().port_u16().unwrap_or(80);
        let mut authorization = proxy.basic_auth().cloned();
        if let Some(authorization) = &mut authorization {
            authorization.set_sensitive(true);
        }
        Ok(Some(Self {
            host: Host::new(host.trim_matches(['[', ']']), port),
            name: format!("{host}:{port}"),
            authorization,
        }))
    }

    /// A connection to `target` through it, whose name it looks up. Bounded by the caller.
    ///
    /// # Errors
    /// It cannot be reached, or it refuses; either way it is named.
    pub async fn dial(&self, target: &Target) -> io::Result<TcpStream> {
        let of_proxy = |error: io::Error| {
            io::Error::new(error.kind(), format!("the proxy {}: {error}", self.name))
        };
        let mut stream = self.host.dial().await.map_err(of_proxy)?;
        let status = self.connect(&mut stream, target).await.map_err(of_proxy)?;
        match status {
            200..=299 => Ok(stream),
            407 => Err(of_proxy(io::Error::other("it wants other credentials"))),
            _ => Err(of_proxy(io::Error::other(format!("it answers {status}")))),
        }
    }

    /// Asks for the tunnel and reads the answer's head, not a byte more: what follows is the
    /// tunnel's.
    async fn connect(&self, stream: &mut TcpStream, target: &Target) -> io::Result<u16> {
        let host = match target.host.contains(':') {
            true => format!("[{}]", target.host),
            false => target.host.clone(),
        };
        let authority = format!("{host}:{}", target.port);
        let mut request =
            format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(authorization.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        stream.write_all(&request).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() == LONGEST_HEAD {
                return Err(io::Error::other("its answer has no end"));
            }
            head.push(stream.read_u8().await?);
        }
        status(&head).ok_or_else(|| io::Error::other("its answer is not HTTP/1"))
    }
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|&byte| byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words
        .next()
        .filter(|version| version.starts_with("HTTP/1."))?;
    let digits = words.next().filter(|word| word.len() == 3)?;
    digits.parse().ok()
}

/// This machine needs no way through another one.
fn is_here(host: &str) -> bool {
    let address: Result<IpAddr, _> = host.parse();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(url: &str, variables: &[(&'static str, &str)]) -> Result<Option<Proxy>, ProxyError> {
        let find = |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Proxy::by(&Target::parse(url).unwrap(), find)
    }

    fn name(url: &str, variables: &[(&'static str, &str)]) -> Option<String> {
        by(url, variables).unwrap().map(|proxy| proxy.name)
    }

    #[test]
    fn each_scheme_has_its_variable_and_one_is_for_all() {
        let one = "http://proxy.example:3128";
        let (https, http) = ("https://api.example", "http://api.example");
        let found = Some("proxy.example:3128".to_owned());
        assert_eq!(name(https, &[("HTTPS_PROXY", one)]), found);
        assert_eq!(name(https, &[("https_proxy", one)]), found);
        assert_eq!(name(https, &[("HTTP_PROXY", one)]), None);
        assert_eq!(name(http, &[("HTTP_PROXY", "proxy.example:3128")]), found);
        assert_eq!(
            name(http, &[("http_proxy", one), ("HTTP_PROXY", "")]),
            found
        );
        assert_eq!(name(http, &[("HTTPS_PROXY", one)]), None);
        assert_eq!(name(http, &[("ALL_PROXY", one)]), found);
        let first = [("all_proxy", "http://other.example"), ("https_proxy", one)];
        assert_eq!(name(https, &first), found);
        assert_eq!(name(https, &[]), None);
    }

    #[test]
    fn what_needs_no_proxy_has_none() {
        let proxied = |url: &str, no: &str| {
            name(
                url,
                &[("ALL_PROXY", "http://proxy.example"), ("NO_PROXY", no)],
            )
            .is_some()
        };
        assert!(proxied("https://api.example", ""));
        assert!(proxied("https://api.example", "other.example"));
        assert!(!proxied("https://api.example", "api.example"));
        assert!(!proxied("https://api.example", ".example"));
        assert!(!proxied("https://api.example", "*"));
        assert!(!proxied("https://192.0.2.7", "192.0.2.0/24"));
        for here in ["localhost:81", "127.0.0.1", "127.1.2.3:8500", "[::1]:80"] {
            assert!(!proxied(&format!("http://{here}"), ""), "{here}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_said_and_not_ignored() {
        for wrong in ["http://", "://x", "ftp://proxy.example", "a b"] {
            let refused = by("https://api.example", &[("HTTPS_PROXY", wrong)]);
            assert!(
                matches!(
                    refused,
                    Err(ProxyError::Unreadable {
                        variable: "HTTPS_PROXY"
                    })
                ),
                "{wrong}: {refused:?}"
            );
        }
        for wrong in ["socks5://proxy.example", "https://proxy.example"] {
            let refused = by("https://api.example", &[("ALL_PROXY", wrong)]);
            assert!(matches!(refused, Err(ProxyError::Scheme { .. })), "{wrong}");
        }
    }

    #[test]
    fn its_credentials_are_sent_and_not_shown() {
        let url = "http://Aladdin:open%20sesame@proxy.example:8888";
        let proxy = by("https://api.example", &[("ALL_PROXY", url)])
            .unwrap()
            .unwrap();
        assert_eq!(proxy.name, "proxy.example:8888");
        assert_eq!(
            proxy.authorization.as_ref().unwrap(),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
        assert_eq!(format!("{proxy:?}"), r#"Proxy("proxy.example:8888")"#);
    }

    #[test]
    fn a_status_is_three_digits_of_http_1() {
        assert_eq!(
            status(b"HTTP/1.1 200 Connection established\r\n\r\n"),
            Some(200)
        );
        assert_eq!(status(b"HTTP/1.0 407\r\n\r\n"), Some(407));
        for wrong in [
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 2000 x\r\n\r\n",
            "SSH-2.0\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert_eq!(status(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}
