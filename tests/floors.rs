//! The house's floors: no module imports one of a floor above its own. Every path in `src/` is read:
//! `use` groups however nested, `super::` that leaves its folder, and paths in the middle of code.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Lowest first, in tenths: what stands on one of them sees those below it, and itself.
const FLOORS: [(&str, u32); 20] = [
    ("operation", 0),
    ("outcome", 0),
    ("notify", 0),
    ("text", 0),
    ("limit", 10),
    ("metrics", 20),
    ("tls", 25),
    ("config", 30),
    ("levels", 35),
    ("access_log", 35),
    ("otlp", 35),
    ("admission", 40),
    ("state", 45),
    ("reload", 45),
    ("gateway", 50),
    ("admin", 50),
    ("listener", 60),
    ("serve", 65),
    ("demo", 70),
    ("main", 80),
];

fn floor(module: &str) -> Option<u32> {
    let known = FLOORS.iter().find(|(name, _)| *name == module);
    known.map(|(_, floor)| *floor)
}

/// Why `from`, a file's module, may not use `to`, a path of ours. Both begin below the crate's root.
fn misuse(from: &[String], to: &[String]) -> Option<String> {
    let (own, used) = (from.first()?.as_str(), to.first()?.as_str());
    if own == used {
        return None;
    }
    let part = to.get(1).map_or("", String::as_str);
    let allowed = match (own, used) {
        // The witness knows nothing of whom it is a witness against.
        ("emulator", _) => false,
        (_, "emulator") => matches!(own, "demo" | "main"),
        // Whoever opens it needs to know nothing else.
        ("limit", _) => false,
        ("metrics", "limit") => ["quota", "ladder", "local"].contains(&part),
        ("config", "limit") => part == "quota",
        ("listener", "limit" | "admission") => false,
        _ => floor(used)? < floor(own)?,
    };
    (!allowed).then(|| format!("{} uses {}", from.join("::"), to.join("::")))
}

/// Whether outside of its tests `file` may use the crate `name`.
fn may_use_crate(file: &str, name: &str) -> bool {
    let http = [
        "h2",
        "http",
        "http_body",
        "http_body_util",
        "hyper",
        "hyper_util",
        "tower",
    ];
    match file.split('/').next() {
        Some("limit") => {
            name == "thiserror" || (name == "governor" && file == "limit/token_bucket.rs")
        }
        Some("admission") => !http.contains(&name),
        _ => true,
    }
}

/// The module a file of `src/` is.
fn module(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').map(str::to_owned).collect()
}

/// Words and signs of a file, without comments and without what is in quotes.
fn tokens(text: &str) -> Vec<String> {
    let mut rest: &[char] = &text.chars().collect::<Vec<_>>();
    let mut tokens = Vec::new();
    let starts = |rest: &[char], with: &str| {
        let mut with = with.chars();
        rest.iter().zip(&mut with).all(|(a, b)| *a == b) && with.next().is_none()
    };
    while let Some(&next) = rest.first() {
        let raw = rest.iter().skip(1).take_while(|c| **c == '#').count();
        let skipped = if starts(rest, "//") {
            rest.iter().take_while(|c| **c != '\n').count()
        } else if starts(rest, "/*") {
            2 + end_of_comment(&rest[2..])
        } else if next == '"' {
            1 + end_of_text(&rest[1..])
        } else if next == 'r' && rest.get(1 + raw) == Some(&'"') {
            let end = format!("\"{}", "#".repeat(raw));
            let body = &rest[2 + raw..];
            let length = (0..body.len()).find(|&at| starts(&body[at..], &end));
            2 + raw + length.unwrap_or(body.len()) + end.len()
        } else if next == '\'' && rest.get(1) == Some(&'\\') {
            3 + rest.iter().skip(3).take_while(|c| **c != '\'').count() + 1
        } else if next == '\'' && rest.get(2) == Some(&'\'') {
            3
        } else if next.is_alphanumeric() || next == '_' {
            let word = |c: &&char| c.is_alphanumeric() || **c == '_';
            let length = rest.iter().take_while(word).count();
            tokens.push(rest[..length].iter().collect());
            length
        } else if starts(rest, "::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !next.is_whitespace() {
                tokens.push(next.to_string());
            }
            1
        };
        rest = &rest[skipped.min(rest.len())..];
    }
    tokens
}

fn end_of_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (1, 0);
    while depth > 0 && at < rest.len() {
        match (rest[at], rest.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

fn end_of_text(rest: &[char]) -> usize {
    let mut at = 0;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// A path as it is written, and where.
#[derive(Debug)]
struct Written {
    path: Vec<String>,
    /// The inline modules it stands in.
    inside: Vec<String>,
    /// In a module under `#[cfg(test)]`.
    tested: bool,
}

/// Every path with a `::` in it, groups taken apart.
fn paths(tokens: &[String]) -> Vec<Written> {
    let mut found = Vec::new();
    // Inline modules open here: name, depth, whether for tests.
    let mut modules: Vec<(String, usize, bool)> = Vec::new();
    let (mut depth, mut for_tests, mut at) = (0, false, 0);
    let is = |at: usize, token: &str| tokens.get(at).is_some_and(|t| t == token);
    while at < tokens.len() {
        let cfg_test = ["#", "[", "cfg", "(", "test", ")", "]"];
        if cfg_test.iter().enumerate().all(|(n, t)| is(at + n, t)) {
            for_tests = true;
            at += cfg_test.len();
            continue;
        }
        match tokens[at].as_str() {
            "mod" if is(at + 2, "{") => {
                let tested = for_tests || modules.last().is_some_and(|(.., tested)| *tested);
                modules.push((tokens[at + 1].clone(), depth, tested));
            }
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if modules.last().is_some_and(|(_, at, _)| *at == depth) {
                    modules.pop();
                }
            }
            // The attribute was of something else.
            ";" => for_tests = false,
            token if is_word(token) && is(at + 1, "::") => {
                let mut whole = Vec::new();
                at = read(tokens, at, &[], &mut whole);
                for path in whole {
                    found.push(Written {
                        path,
                        inside: modules.iter().map(|(name, ..)| name.clone()).collect(),
                        tested: modules.last().is_some_and(|(.., tested)| *tested),
                    });
                }
                continue;
            }
            _ => {}
        }
        if tokens[at] == "{" {
            for_tests = false;
        }
        at += 1;
    }
    found
}

/// Reads the path at `at`, behind `before`; returns where it ends.
fn read(
    tokens: &[String],
    mut at: usize,
    before: &[String],
    found: &mut Vec<Vec<String>>,
) -> usize {
    let mut path = before.to_vec();
    while let Some(token) = tokens.get(at) {
        if token == "{" {
            at += 1;
            while let Some(token) = tokens.get(at) {
                match token.as_str() {
                    "}" => return at + 1,
                    "," => at += 1,
                    _ => at = read(tokens, at, &path, found),
                }
            }
            return at;
        }
        if !is_word(token) && token != "*" {
            // A generic argument, or nothing a path can go on with.
            break;
        }
        path.push(token.clone());
        at += 1;
        if tokens.get(at).is_some_and(|token| token == "::") {
            at += 1;
        } else {
            break;
        }
    }
    found.push(path);
    // `as` gives a name and imports nothing.
    while !before.is_empty()
        && tokens
            .get(at)
            .is_some_and(|token| ![",", "}"].contains(&token.as_str()))
    {
        at += 1;
    }
    at
}

/// A type of that name that is no clock can be declared: governor's trait asks for one.
fn names_a_clock(path: &[String]) -> bool {
    let all_of_time = path.ends_with(&["time".to_owned(), "*".to_owned()]);
    all_of_time
        || path
            .iter()
            .any(|name| ["Instant", "SystemTime"].contains(&name.as_str()))
}

/// What a file does that its place does not allow.
fn faults(file: &str, text: &str, crates: &BTreeSet<String>) -> Vec<String> {
    let own = module(file);
    let tokens = tokens(text);
    let mut faults = Vec::new();
    for written in paths(&tokens) {
        let mut here = own.clone();
        if file == "lib.rs" || file == "main.rs" {
            here.truncate(usize::from(file == "main.rs"));
        }
        here.extend(written.inside.iter().cloned());
        if own[0] == "limit" && names_a_clock(&written.path) {
            faults.push(format!("{file} names a clock"));
        }
        let mut rest = written.path.as_slice();
        let ours = match rest[0].as_str() {
            "crate" | "podgate" => Some(Vec::new()),
            "self" | "super" => Some(here),
            name => {
                if crates.contains(name) && !written.tested && !may_use_crate(file, name) {
                    faults.push(format!("{file} uses the crate {name}"));
                }
                None
            }
        };
        let Some(mut path) = ours else { continue };
        while let Some((first, more)) = rest.split_first()
            && ["crate", "podgate", "self", "super"].contains(&first.as_str())
        {
            if first == "super" {
                path.pop();
            }
            rest = more;
        }
        path.extend(rest.iter().cloned());
        faults.extend(misuse(&own, &path));
    }
    faults
}

/// Names of the crates we depend on, as paths spell them.
fn crates(manifest: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut dependencies = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            dependencies = line.ends_with("dependencies]");
        } else if let Some((name, _)) = line.split_once('=')
            && dependencies
        {
            found.insert(name.trim().replace('-', "_"));
        }
    }
    found
}

fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn our_crates() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    crates(&fs::read_to_string(root.join("Cargo.toml")).unwrap())
}

#[test]
fn nothing_is_imported_from_a_floor_above() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&sources, &mut found);
    let (crates, mut all) = (our_crates(), Vec::new());
    let mut modules = BTreeSet::new();
    for path in &found {
        let file = path.strip_prefix(&sources).unwrap().to_str().unwrap();
        modules.insert(module(file)[0].clone());
        all.extend(faults(file, &fs::read_to_string(path).unwrap(), &crates));
    }
    assert_eq!(all, [""; 0]);
    let known: BTreeSet<_> = FLOORS.iter().map(|(name, _)| (*name).to_owned()).collect();
    modules.retain(|module| !["lib", "emulator"].contains(&module.as_str()));
    assert_eq!(modules, known, "every module has its floor");
}

#[test]
fn every_way_to_name_a_module_is_read() {
    let crates = our_crates();
    let limit = "limit/ledger.rs";
    for (file, planted) in [
        (limit, "use crate::metrics::Metrics;"),
        (limit, "use crate::{limit::quota::Quota, operation::Group};"),
        (
            limit,
            "use crate::{limit::{quota::{Quota, Rate}, self}, config::{self, policy as p}};",
        ),
        (limit, "fn f() { let x = crate::outcome::Outcome::ALL; }"),
        (limit, "use super::super::config::Config;"),
        (
            limit,
            "mod inner { use super::super::super::config::Config; }",
        ),
        (limit, "macro_rules! m { () => { $crate::serve::start } }"),
        (limit, "fn f<T: Into<crate::gateway::Gateway>>() {}"),
        (limit, "use tokio::time::sleep;"),
        (limit, "use parking_lot::Mutex;"),
        (limit, "use governor::Quota;"),
        (limit, "use std::{time::Duration, time::Instant};"),
        (limit, "use std::time::*;"),
        (limit, "use std::time; fn f() { time::Instant::now(); }"),
        (limit, "fn f() { std::time::SystemTime::now(); }"),
        (
            limit,
            "#[cfg(test)] mod tests { use crate::metrics::Metrics; }",
        ),
        (
            limit,
            "#[cfg(test)] use x::Y; mod m { use proptest::prelude::*; }",
        ),
        ("limit/mod.rs", "use super::config::Config;"),
        ("metrics/mod.rs", "use crate::limit::ledger::Slot;"),
        ("metrics/mod.rs", "use super::config::Config;"),
        ("config/read.rs", "use crate::admission::Admission;"),
        ("config/read.rs", "use crate::limit::ledger::Slot;"),
        ("admission/lane.rs", "use http::Request;"),
        ("admission/lane.rs", "fn f(x: hyper::body::Incoming) {}"),
        ("admission/lane.rs", "use super::super::gateway::Gateway;"),
        ("gateway/mod.rs", "use crate::admin::Admin;"),
        ("admin/mod.rs", "use crate::gateway::Gateway;"),
        ("gateway/mod.rs", "use crate::listener;"),
        ("listener/mod.rs", "use crate::admission::Admission;"),
        ("serve.rs", "use crate::demo::client::Client;"),
        ("serve.rs", "use crate::emulator::Emulator;"),
        ("emulator/door.rs", "use crate::limit::quota::Quota;"),
        ("emulator/door.rs", "use super::super::operation::Group;"),
        ("operation.rs", "use crate::outcome::Outcome;"),
    ] {
        assert_ne!(faults(file, planted, &crates), [""; 0], "{file}: {planted}");
    }
}

#[test]
fn what_is_allowed_is_no_fault() {
    let crates = our_crates();
    for (file, planted) in [
        (
            "limit/ledger.rs",
            "use crate::limit::{quota::Quota, lane::{self, Lane}};",
        ),
        (
            "limit/ledger.rs",
            "use super::quota::Quota; #[error(\"x\")] struct E; use thiserror::Error;",
        ),
        ("limit/token_bucket.rs", "use governor::Quota;"),
        (
            "limit/ledger.rs",
            "// use crate::metrics::M;\n/* use crate::a; /* */ Instant */",
        ),
        (
            "limit/ledger.rs",
            r##"const X: &str = "crate::metrics::M"; const Y: &str = r#"crate::config"#;"##,
        ),
        (
            "limit/ledger.rs",
            "fn f<'a>(x: &'a str, c: char) { c == '\"' || c == '\\''; } // crate::metrics::M",
        ),
        (
            "limit/ledger.rs",
            "#[cfg(test)]\nmod tests { use super::*; use proptest::prelude::*; mod m { use proptest::x::y; } }",
        ),
        (
            "metrics/mod.rs",
            "use crate::limit::local::Snapshot; use crate::operation::{Group, Operation};",
        ),
        (
            "admission/mod.rs",
            "use crate::config::policy::GroupPolicy; use tokio::sync::Notify;",
        ),
        ("gateway/mod.rs", "use super::admission::Admission;"),
        (
            "emulator/door.rs",
            "use super::limits::Limit; use self::x::Y;",
        ),
        (
            "demo/mod.rs",
            "use crate::{emulator::{self, Emulator}, serve, listener::bind};",
        ),
        (
            "main.rs",
            "use podgate::demo::DemoArgs; fn f() { podgate::serve::start(x) }",
        ),
    ] {
        assert_eq!(faults(file, planted, &crates), [""; 0], "{file}: {planted}");
    }
}
