//! The house rules: who may import whom (ARCHITECTURE.md, "Floors"). Every `crate::` path in `src/` is
//! read, also inside groups and outside `use`; so are the outside crates that the core may not know.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The floors, lowest first: a module may import those below its own, and itself.
const FLOORS: [&[&str]; 10] = [
    &["operation", "outcome"],
    &["limit"],
    &["metrics"],
    &["config"],
    &["admission"],
    &["gateway", "admin"],
    &["listener"],
    &["serve"],
    &["demo"],
    &["main"],
];
/// Stands apart: imports nothing of ours; only what shows it may import it.
const APART: &str = "emulator";
/// Stricter than the floors: all that these may import.
const ONLY: [(&str, &[&str]); 4] = [
    ("limit", &[]),
    ("metrics", &["limit", "operation", "outcome"]),
    ("config", &["limit", "operation"]),
    ("listener", &["gateway", "config", "metrics"]),
];
/// Outside crates that a module may not name.
const UNKNOWN_TO: [(&str, &[&str]); 2] = [
    (
        "limit",
        &[
            "tokio",
            "http",
            "hyper",
            "tracing",
            "prometheus",
            "serde",
            "parking_lot",
            "tower",
            "bytes",
        ],
    ),
    (
        "admission",
        &["http", "hyper", "hyper_util", "http_body", "tower", "bytes"],
    ),
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// Code without comments, texts and characters; what is left keeps its order.
fn code(source: &str) -> String {
    let mut code = String::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            3 + raw.find("\"#").map_or(raw.len(), |end| end + 2)
        } else if first == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|letter| {
                let ends = letter == '"' && !escaped;
                escaped = letter == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\''") {
            if rest.starts_with("'\\''") { 4 } else { 3 }
        } else {
            code.push(first);
            first.len_utf8()
        };
        rest = &rest[skip..];
    }
    code
}

/// The modules named by paths that begin with `root::`.
fn named_after(root: &str, code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (at, _) in code.match_indices(root) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_' || letter == '$') {
            continue;
        }
        let tail = &code[at + root.len()..];
        match tail.strip_prefix('{') {
            None => named.extend(first_word(tail)),
            Some(group) => named.extend(group_heads(group)),
        }
    }
    named
}

/// The first word of each member of a `{…}` group, whose `{` is already gone.
fn group_heads(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut heads: Vec<_> = first_word(group).into_iter().collect();
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.extend(first_word(&group[at + 1..])),
            _ => {}
        }
    }
    heads
}

fn first_word(text: &str) -> Option<String> {
    let word = |letter: &char| letter.is_alphanumeric() || *letter == '_';
    let first: String = text.trim_start().chars().take_while(word).collect();
    (!first.is_empty()).then_some(first)
}

/// The module of `src/` that a file belongs to.
fn module(file: &Path) -> String {
    let inside = file.strip_prefix(src()).expect("it is in src/");
    let first = inside.components().next().expect("it has a name");
    let name = first.as_os_str().to_string_lossy();
    name.strip_suffix(".rs").unwrap_or(&name).to_owned()
}

/// What is wrong with one file's code, in words.
fn faults(module: &str, file_name: &str, source: &str) -> Vec<String> {
    let code = code(source);
    let mut faults = Vec::new();
    for root in ["crate::", "podgate::"] {
        for imported in named_after(root, &code) {
            if imported != module && !may_import(module, &imported) {
                faults.push(format!("{module} may not import {imported}"));
            }
        }
    }
    let (own, _tests) = code.split_once("#[cfg(test)]").unwrap_or((&code, ""));
    for (who, unknown) in UNKNOWN_TO {
        for name in unknown.iter().filter(|_| who == module) {
            if !named_after(&format!("{name}::"), own).is_empty() {
                faults.push(format!("{module} may not know {name}"));
            }
        }
    }
    if module == "limit" {
        if file_name != "token_bucket.rs" && !named_after("governor::", &code).is_empty() {
            faults.push("governor is named in token_bucket.rs alone".into());
        }
        let named = named_after("time::", &code);
        let clocks = ["Instant", "SystemTime"]
            .into_iter()
            .filter(|clock| named.contains(*clock));
        faults.extend(clocks.map(|clock| format!("the core knows no clock, and names {clock}")));
    }
    // Out of the module by another name: only a file at its root can do that.
    let at_root = file_name == "mod.rs" || file_name == format!("{module}.rs");
    let leaving = named_after("super::", own);
    if at_root && !leaving.is_empty() {
        faults.push(format!("{module} leaves by super::{leaving:?}"));
    }
    faults
}

fn may_import(module: &str, imported: &str) -> bool {
    if module == "lib" {
        return false;
    }
    if let Some((_, allowed)) = ONLY.iter().find(|(who, _)| *who == module) {
        return allowed.contains(&imported);
    }
    if imported == APART {
        return matches!(module, "demo" | "main");
    }
    match (floor(module), floor(imported)) {
        (Some(own), Some(below)) => below < own,
        _ => false,
    }
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of src/") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_module_imports_one_of_a_floor_above_its_own() {
    let mut found = Vec::new();
    files(&src(), &mut found);
    assert!(found.len() > 50, "only {} files", found.len());
    let mut all = Vec::new();
    for file in found {
        let source = fs::read_to_string(&file).expect("a source file");
        let name = file
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let faults = faults(&module(&file), &name, &source).into_iter();
        all.extend(faults.map(|fault| format!("{}: {fault}", file.display())));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn every_module_has_its_floor() {
    for entry in fs::read_dir(src()).expect("src/") {
        let module = module(&entry.expect("an entry").path());
        let known = module == "lib" || module == APART || floor(&module).is_some();
        assert!(known, "{module} stands on no floor");
    }
}

#[test]
fn a_planted_import_is_found_wherever_it_hides() {
    let found = |module, source| !faults(module, "x.rs", source).is_empty();
    assert!(found("limit", "use crate::config::Config;"));
    assert!(found(
        "limit",
        "use crate::{\n    limit::quota, admission::{Admission, lane},\n};"
    ));
    assert!(found("limit", "fn f() { crate::gateway::x(); }"));
    assert!(found("limit", "let now = std::time::Instant::now();"));
    assert!(found("limit", "use governor::Quota;"));
    assert!(found("config", "use crate::metrics::Metrics;"));
    assert!(found("admission", "use http::HeaderMap;"));
    assert!(found("emulator", "use crate::operation::Group;"));
    assert!(found("gateway", "use crate::listener::bind;"));
    assert!(found("admin", "use crate::gateway::Gateway;"));
    assert!(!faults("limit", "mod.rs", "use super::config;").is_empty());

    assert!(!found(
        "limit",
        "use crate::limit::quota::Quota; // crate::config\nlet x = \"crate::config\";"
    ));
    assert!(!found(
        "gateway",
        "use crate::{admission, limit::ledger::Call};"
    ));
    assert!(!found("demo", "use crate::emulator::Emulator;"));
}
