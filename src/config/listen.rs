//! Where clients come in: addresses and Unix sockets, each plain or with TLS.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::bridge::meant_address;
use super::faults::{Fault, Place};
use super::key::Kind;
use super::keys::LISTENER;
use super::raw::Value;
use super::read::At;
use crate::tls::{ClientAuth, Files};

/// What a place to listen at looks like.
pub(super) const LISTEN: &str =
    "an address and a port, such as `127.0.0.1:8080`, or `unix:` and a path";
/// A Unix socket's path is kept by the kernel in 108 bytes, with a zero behind it.
const LONGEST_PATH: usize = 107;
const UNIX: &str = "unix:";

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// Port 0: the system picks one.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }

    /// Reads `ADDR:PORT` or `unix:PATH`, a relative path from `folder` on. The error says what is
    /// wrong with it.
    pub(super) fn parse(text: &str, folder: &Path) -> Result<Self, &'static str> {
        let Some(path) = text.strip_prefix(UNIX) else {
            return text.parse().map(Address::Tcp).map_err(|_| "this is none");
        };
        let whole = folder.join(path);
        match whole.as_os_str().len() {
            _ if path.is_empty() => Err("the path is missing"),
            _ if path.contains('\0') => Err("no path has such a character"),
            length if length > LONGEST_PATH => Err("no socket's path may be longer than 107 bytes"),
            _ => Ok(Address::Unix(whole)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// One place where clients come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub at: Address,
    /// Who may open a Unix socket, as a file's permissions; `None`: as the process's mask has it.
    pub mode: Option<u32>,
    pub tls: Option<Files>,
}

impl Listener {
    pub fn plain(at: Address) -> Self {
        Self {
            at,
            mode: None,
            tls: None,
        }
    }

    pub(super) fn loopback(port: u16) -> Self {
        Self::plain(Address::Tcp((Ipv4Addr::LOCALHOST, port).into()))
    }

    /// Whether other hosts reach it and are not asked who they are.
    pub fn is_open(&self) -> bool {
        let remote = |address: SocketAddr| !address.ip().to_canonical().is_loopback();
        let asks = |tls: &Files| tls.client_auth == ClientAuth::Required;
        self.at.tcp().is_some_and(remote) && !self.tls.as_ref().is_some_and(asks)
    }
}

/// Where one of them stands.
#[derive(Clone, Debug)]
pub(super) struct ListenPlace {
    /// `listen`, or `listen[1].at`.
    pub path: String,
    pub at: Place,
    pub cert: Place,
    pub key: Place,
    pub client_ca: Vec<Place>,
}

impl ListenPlace {
    pub fn new(path: impl Into<String>, at: Place) -> Self {
        Self {
            path: path.into(),
            at,
            cert: Place::Nowhere,
            key: Place::Nowhere,
            client_ca: Vec::new(),
        }
    }
}

/// All of them that are right; `None` where none is, or none is given.
pub(super) fn listeners(
    at: &At<'_>,
    folder: &Path,
    faults: &mut Vec<Fault>,
) -> Option<(Vec<Listener>, Vec<ListenPlace>)> {
    let items = at.one_or_many(faults);
    if matches!(at.value, Value::List(items) if items.is_empty()) {
        let fault = at.fault("podgate has to listen somewhere");
        faults.push(fault.label("this list is empty"));
    }
    let read = items.iter().filter_map(|item| one(item, folder, faults));
    let (listeners, places): (Vec<_>, Vec<_>) = read.unzip();
    (!listeners.is_empty()).then_some((listeners, places))
}

fn one(at: &At<'_>, folder: &Path, faults: &mut Vec<Fault>) -> Option<(Listener, ListenPlace)> {
    at.is(&Kind::Listener(&LISTENER), faults)?;
    if !matches!(at.value, Value::Map(_)) {
        let address = address(at, folder, faults)?;
        let place = ListenPlace::new(at.path.clone(), at.place());
        return Some((Listener::plain(address), place));
    }
    let entries = at.entries(faults);
    let Some(address_at) = entries.get("at") else {
        let fault = at.fault("a listener needs to know where: `at`");
        faults.push(fault.label("`at` is missing"));
        return None;
    };
    let mut place = ListenPlace::new(address_at.path.clone(), address_at.place());
    let address = address(address_at, folder, faults);
    let mut mode = None;
    entries.set("mode", &mut mode, |at| self::mode(at, faults).map(Some));
    if let (Some(Address::Tcp(_)), Some(at)) = (&address, entries.get("mode")) {
        let fault = at.key_fault("only a Unix socket has a mode");
        faults.push(fault.label("this one has an address"));
    }
    let mut tls = None;
    if let Some(at) = entries.get("tls") {
        tls = Some(self::tls(at, folder, &mut place, faults)?);
    }
    let listener = Listener {
        at: address?,
        mode,
        tls,
    };
    Some((listener, place))
}

fn address(at: &At<'_>, folder: &Path, faults: &mut Vec<Fault>) -> Option<Address> {
    let fault = || at.fault(format!("expected {LISTEN}"));
    if let Value::Whole(port) = at.value {
        let meant = meant_address(&format!(":{port}"), 8080);
        let fault = fault().label("this is a number");
        faults.push(fault.maybe_help(meant.map(|meant| format!("write `{meant}`"))));
        return None;
    }
    let text = at.text(LISTEN, faults)?;
    match Address::parse(text, folder) {
        Ok(address) => Some(address),
        Err(why) => {
            let help = meant(text).map(|meant| format!("write `{meant}`"));
            faults.push(fault().label(why).maybe_help(help));
            None
        }
    }
}

/// What somebody meant who left something away.
pub(super) fn meant(text: &str) -> Option<String> {
    match text.starts_with('/') {
        true => Some(format!("{UNIX}{text}")),
        false => meant_address(text, 8080).map(|meant| meant.to_string()),
    }
}

/// Permissions in octal digits.
fn mode(at: &At<'_>, faults: &mut Vec<Fault>) -> Option<u32> {
    const EXPECTED: &str = "a file's permissions in quotes, such as `\"0660\"`";
    at.is(&Kind::Mode, faults)?;
    let text = at.text(EXPECTED, faults)?;
    let octal = u32::from_str_radix(text, 8).ok();
    let octal = octal.filter(|mode| *mode <= 0o777 && !text.starts_with('+'));
    if octal.is_none() {
        let fault = at.fault(format!("expected {EXPECTED}"));
        faults.push(fault.label("this is none"));
    }
    octal
}

fn tls(
    at: &At<'_>,
    folder: &Path,
    place: &mut ListenPlace,
    faults: &mut Vec<Fault>,
) -> Option<Files> {
    let before = faults.len();
    let entries = at.entries(faults);
    let (mut cert, mut key) = (None, None);
    for (name, path, place) in [
        ("cert", &mut cert, &mut place.cert),
        ("key", &mut key, &mut place.key),
    ] {
        if let Some(at) = entries.get(name) {
            *place = at.place();
            *path = file(at, folder, faults);
        } else if faults.len() == before {
            let fault = at.key_fault("TLS needs a certificate and its key: `cert` and `key`");
            faults.push(fault.label(format!("`{name}` is missing")));
        }
    }
    let mut client_ca = Vec::new();
    if let Some(at) = entries.get("client_ca") {
        for item in at.items(faults) {
            if let Some(path) = item.path(folder, faults) {
                client_ca.push(path);
                place.client_ca.push(item.place());
            }
        }
    }
    let mut client_auth = ClientAuth::None;
    entries.set("client_auth", &mut client_auth, |at| {
        at.word(&ClientAuth::WORDS, faults)
    });
    if client_auth != ClientAuth::None
        && client_ca.is_empty()
        && let Some(at) = entries.get("client_auth")
        && faults.len() == before
    {
        let fault =
            at.fault("clients' certificates are signed by somebody: `client_ca` says by whom");
        faults.push(fault.label("asked for here"));
    }
    // Whoever names them means clients to be asked, and would not notice that they are not.
    if let Some(at) = entries.get("client_ca")
        && entries.get("client_auth").is_none()
        && faults.len() == before
    {
        let fault = at.key_fault("`client_auth` says whether clients are asked for certificates");
        let fault = fault.label("nobody would be asked");
        faults.push(fault.help("say `client_auth: required`, or `optional`, or `none`"));
    }
    Some(Files {
        cert: cert?,
        key: key?,
        client_ca,
        client_auth,
    })
}

/// A path, and not what belongs into the file: that would be repeated with whatever is wrong.
fn file(at: &At<'_>, folder: &Path, faults: &mut Vec<Fault>) -> Option<PathBuf> {
    if matches!(at.value, Value::Text(text) if text.contains("-----BEGIN")) {
        let fault = at.key_fault("expected a file's path");
        faults.push(fault.label("this is what belongs into the file"));
        return None;
    }
    at.path(folder, faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address, &'static str> {
        Address::parse(text, Path::new("/etc/podgate"))
    }

    #[test]
    fn a_place_is_an_address_or_a_path() {
        let path = |text| Ok(Address::Unix(PathBuf::from(text)));
        assert_eq!(parse("unix:/run/a.sock"), path("/run/a.sock"));
        assert_eq!(parse("unix:a.sock"), path("/etc/podgate/a.sock"));
        assert_eq!(parse("[::1]:1").unwrap().to_string(), "[::1]:1");
        assert_eq!(parse("unix:/a").unwrap().to_string(), "unix:/a");
        for text in ["", "unix:", "unix:a\0b", "/run/a.sock", "localhost:1"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&format!("unix:/{}", "x".repeat(106))).is_ok());
        assert!(parse(&format!("unix:/{}", "x".repeat(107))).is_err());
    }

    #[test]
    fn who_must_show_a_certificate_is_not_let_in_from_everywhere() {
        let listener = |at: &str, client_auth| Listener {
            tls: Some(Files {
                cert: PathBuf::new(),
                key: PathBuf::new(),
                client_ca: Vec::new(),
                client_auth,
            }),
            ..Listener::plain(parse(at).unwrap())
        };
        assert!(listener("0.0.0.0:1", ClientAuth::Optional).is_open());
        assert!(!listener("0.0.0.0:1", ClientAuth::Required).is_open());
        assert!(!listener("127.0.0.1:1", ClientAuth::None).is_open());
        assert!(!listener("unix:/a", ClientAuth::None).is_open());
        assert!(Listener::plain(parse("[::]:1").unwrap()).is_open());
    }
}
