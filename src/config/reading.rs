//! One reading of one file, from its bytes to the configuration and everything found on the way.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;

use super::bridge::{self, Places};
use super::faults::{Fault, Faults, Place};
use super::overrides::Overrides;
use super::{Config, LoadError, raw, read, units};

/// The largest configuration file, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// One reading of one file: what came of it, and what is wrong with it.
pub(super) struct Reading<'a> {
    file: &'a str,
    text: &'a str,
    tree: Option<raw::Value>,
    /// Valid whatever was read: what is wrong kept the preset's value.
    pub config: Config,
    pub places: Places,
    found: Vec<Fault>,
}

impl<'a> Reading<'a> {
    pub fn new(file: &'a str, text: &'a str, overrides: &Overrides) -> Self {
        // A mark some editors put in front of a text; it is no part of it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reading = Self {
            file,
            text,
            tree: None,
            config: Config::preset(),
            places: Places::nowhere(),
            found: Vec::new(),
        };
        match raw::parse(text) {
            Ok(tree) => {
                let folder = Path::new(file).parent().unwrap_or(Path::new(""));
                let root = read::At::root(&tree);
                let (config, found) = (&mut reading.config, &mut reading.found);
                let mut places = bridge::write_over(config, &root, folder, found);
                overrides.write_over(config, &mut places, found);
                check_across(config, &places, found);
                reading.places = places;
                reading.tree = Some(tree);
            }
            Err(malformed) => {
                reading.found.push(not_yaml(text, malformed));
            }
        }
        reading
    }

    /// The configuration, if nothing was found.
    pub fn finish(self) -> Result<Config, Faults> {
        match self.found.is_empty() {
            true => Ok(self.config),
            false => Err(self.faults(Vec::new())),
        }
    }

    /// All that was found, and `more`, with positions.
    pub fn faults(&self, more: Vec<Fault>) -> Faults {
        let all = self.found.iter().cloned().chain(more).collect();
        Faults::new(self.file, self.text, self.tree.as_ref(), all)
    }
}

fn not_yaml(text: &str, malformed: raw::Malformed) -> Fault {
    let place = malformed.at.map_or(Place::Nowhere, Place::Offset);
    let what = format!("this is not YAML: {}", malformed.why);
    let start = malformed.at.unwrap_or(0).min(text.len());
    let line = text.get(start..).and_then(|rest| rest.lines().next());
    let help = match line {
        Some(line) if line.starts_with('\t') => Some("lines are indented with spaces, not tabs"),
        Some(line) if line.contains("]:") => Some("an IPv6 address needs quotes: `\"[::1]:8080\"`"),
        _ => None,
    };
    let fault = Fault::new(place, "", what).maybe_help(help.map(str::to_owned));
    match malformed.begun {
        Some((what, offset)) => fault.label("here").also(Place::Offset(offset), what),
        None => fault.label("here"),
    }
}

/// The text of a file that is not too large and is text.
pub(super) fn read_file(path: &Path) -> Result<String, LoadError> {
    let error = |why: String| LoadError::Unreadable {
        path: path.to_owned(),
        why,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| error(e.to_string()))?;
    let mut file = file.take(LARGEST_FILE + 1);
    file.read_to_end(&mut bytes)
        .map_err(|e| error(e.to_string()))?;
    if bytes.len() as u64 > LARGEST_FILE {
        let most = units::show_size(LARGEST_FILE);
        return Err(error(format!("it is larger than {most}")));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        // Drawn it would be unreadable, and no secret in it would be known for one.
        return Err(error("it is UTF-16: save it as UTF-8".into()));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let byte = e.as_bytes().get(at).copied().unwrap_or_default();
        let fault = Fault::new(Place::Offset(at), "", "this is not UTF-8");
        let fault = fault.label(format!("the byte 0x{byte:02x}"));
        let text = String::from_utf8_lossy(e.as_bytes());
        let name = path.to_string_lossy();
        LoadError::Faults(Faults::new(&name, &text, None, vec![fault]))
    })
}

/// What no single setting shows.
pub(super) fn check_across(config: &Config, places: &Places, faults: &mut Vec<Fault>) {
    if collide(config.listen, config.admin) {
        faults.push(same_port(config, places));
    }
    let upstream = &config.upstream;
    let loopback = config.listen.ip().to_canonical().is_loopback();
    if upstream.api_key.is_some() && !loopback && !upstream.allow_remote_injection {
        faults.push(open_key(config, places));
    }
    if config.buffers.per_request > config.buffers.total {
        let (place, path) = (places.per_request.clone(), "buffers.per_request");
        let fault = Fault::new(
            place,
            path,
            "one request may not hold more than all together",
        );
        let total = units::show_size(config.buffers.total);
        faults.push(fault.label(format!("`total` is {total}")));
    }
    if config.timeouts.body_idle > config.timeouts.body_total {
        let (place, path) = (places.body_idle.clone(), "timeouts.body_idle");
        let what = "a pause in a body may not be longer than the whole body";
        let total = units::show_duration(config.timeouts.body_total);
        faults.push(Fault::new(place, path, what).label(format!("`body_total` is {total}")));
    }
}

/// Whether the second of two sockets could not be bound.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let all = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || all)
}

/// Told at the one of the two that somebody wrote.
fn same_port(config: &Config, places: &Places) -> Fault {
    let (place, path, taken, by) = match &places.admin {
        Place::Nowhere => (&places.listen, "listen", config.admin, "admin"),
        admin => (admin, "admin", config.listen, "listen"),
    };
    let fault = Fault::new(place.clone(), path, format!("`{by}` has this port already"));
    let fault = fault.label(format!("`{by}` is {taken}"));
    match (path, &places.listen) {
        ("admin", listen @ Place::Part(_)) => fault.also(listen.clone(), "here"),
        _ => fault,
    }
}

/// A key that everybody spends who reaches podgate.
fn open_key(config: &Config, places: &Places) -> Fault {
    let what = format!(
        "a key is injected into every request, and `{}` can be reached from other hosts",
        config.listen
    );
    let fault = match &places.listen {
        Place::Nowhere => Fault::new(places.api_key.clone(), "upstream.api_key", what),
        listen => {
            Fault::new(listen.clone(), "listen", what).also(places.api_key.clone(), "injected here")
        }
    };
    fault
        .label("whoever reaches it spends the account")
        .help("listen on `127.0.0.1`, or say `upstream.allow_remote_injection: true`")
}
