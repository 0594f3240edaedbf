//! One reading of one file, from its bytes to the configuration and everything found on the way.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::across::check_across;
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
