//! `podgate check FILE`: everything that is wrong with it, or what it amounts to.
//!
//! What depends on the machine and not on the file (is the key's file there?) is a warning: a
//! file is often checked where it will not run. Starting with it fails all the same.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::Path;

use super::faults::{Fault, Place};
use super::overrides::Overrides;
use super::policy::GroupVerdict;
use super::process::Scheme;
use super::reading::{Reading, read_file};
use super::secret::SecretSource;
use super::{Config, LoadError, table};
use crate::limit::quota::Rate;
use crate::operation::Group;
use crate::tls::{self, Which};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// podgate takes it.
    Good,
    /// It cannot be read, or has faults.
    Refused,
}

/// Checks the file at `path` and writes the report to `out`, with colours or without. Errors are
/// those of `out`.
pub fn check(path: &Path, colours: bool, out: &mut impl Write) -> io::Result<Verdict> {
    match read_file(path) {
        Ok(text) => check_text(&path.to_string_lossy(), &text, colours, out),
        Err(LoadError::Unreadable { path, why }) => {
            let name = path.display();
            writeln!(
                out,
                "error: the configuration `{name}` cannot be read: {why}"
            )?;
            Ok(Verdict::Refused)
        }
        Err(LoadError::Faults(faults)) => {
            write!(out, "{}", faults.render(colours))?;
            writeln!(out, "\n{}: 1 fault", path.display())?;
            Ok(Verdict::Refused)
        }
    }
}

/// Checks `text` as the content of a file that messages call `file_name`.
pub fn check_text(
    file_name: &str,
    text: &str,
    colours: bool,
    out: &mut impl Write,
) -> io::Result<Verdict> {
    let reading = Reading::new(file_name, text, &Overrides::default());
    let faults = reading.faults(warnings(&reading));
    if !faults.is_empty() {
        writeln!(out, "{}", faults.render(colours))?;
    }
    if faults.refuse() {
        let word = if faults.errors() == 1 {
            "fault"
        } else {
            "faults"
        };
        writeln!(out, "{file_name}: {} {word}", faults.errors())?;
        return Ok(Verdict::Refused);
    }
    writeln!(out, "{file_name}: ok")?;
    write!(out, "\n{}", table::effective(&reading.config))?;
    Ok(Verdict::Good)
}

/// What is allowed and probably not meant, or will not work on this machine.
fn warnings(reading: &Reading<'_>) -> Vec<Fault> {
    let (config, places) = (&reading.config, &reading.places);
    let mut found = Vec::new();
    let secrets = [
        (
            "upstream.api_key",
            &config.upstream.api_key,
            &places.api_key,
        ),
        ("admin_token", &config.admin_token, &places.admin_token),
    ];
    for (key, source, place) in secrets {
        if let Some(Err(error)) = source.as_ref().map(SecretSource::resolve) {
            let fault = Fault::new(place.clone(), key, error.to_string());
            found.push(fault.label("podgate would not start here").warning());
        }
    }
    for (nth, (path, place)) in config
        .upstream
        .trust_ca
        .iter()
        .zip(&places.trust_ca)
        .enumerate()
    {
        if let Err(error) = File::open(path) {
            let what = format!("the file `{}` cannot be read: {error}", path.display());
            let fault = Fault::new(place.clone(), format!("upstream.trust_ca[{nth}]"), what);
            found.push(fault.label("podgate would not start here").warning());
        }
    }
    let upstream = &config.upstream;
    if upstream.sni.is_some() && upstream.target.scheme == Scheme::Http {
        let what = "there is no certificate to prove a name: the upstream is not `https`";
        let fault = Fault::new(places.sni.clone(), "upstream.sni", what);
        found.push(fault.label("of no use").warning());
    }
    for (listener, place) in config.listen.iter().zip(&places.listen) {
        let Some(Err(unusable)) = listener.tls.as_ref().map(tls::load) else {
            continue;
        };
        let base = place.path.trim_end_matches(".at");
        let (at, path) = match unusable.which {
            Which::Cert => (Some(&place.cert), "cert".to_owned()),
            Which::Key => (Some(&place.key), "key".to_owned()),
            Which::ClientCa(nth) => (place.client_ca.get(nth), format!("client_ca[{nth}]")),
        };
        let at = at.cloned().unwrap_or(Place::Nowhere);
        let fault = Fault::new(at, format!("{base}.tls.{path}"), unusable.to_string());
        found.push(fault.label("podgate would not start here").warning());
    }
    let scarce = scarce(config);
    if !scarce.is_empty() {
        let what = format!(
            "some limit is below {} in {}: each podgate still keeps 1 of it",
            config.replicas,
            scarce.join(", ")
        );
        let fault = Fault::new(places.replicas.clone(), "replicas", what);
        let fault = fault.label("together they may exceed it");
        found.push(fault.warning());
    }
    let prefix = &config.upstream.target.prefix;
    if (prefix == "/v2" || prefix.ends_with("/v2")) && places.url != Place::Nowhere {
        let what = format!("paths begin with `/v2` already: calls would go to `{prefix}/v2/...`");
        let fault = Fault::new(places.url.clone(), "upstream.url", what);
        found.push(
            fault
                .label("a prefix for every path")
                .help("leave `/v2` away")
                .warning(),
        );
    }
    found
}

/// The groups that cannot be divided among the replicas.
fn scarce(config: &Config) -> Vec<String> {
    let replicas = config.replicas;
    let tables = config.endpoints.iter().map(|rule| &rule.groups);
    let tables: Vec<_> = tables.chain([&config.groups]).collect();
    let divisible = |group: Group| {
        tables.iter().all(|table| match table.get(group) {
            GroupVerdict::Policy(policy) => {
                let rate = policy.whole.rate.map(Rate::requests);
                let permits = policy.whole.concurrency.map(NonZeroU32::get);
                rate.into_iter().chain(permits).all(|n| n >= replicas.get())
            }
            GroupVerdict::Reject => true,
        })
    };
    let groups = Group::ALL.into_iter().filter(|group| !divisible(*group));
    groups.map(|group| format!("`{}`", group.name())).collect()
}
