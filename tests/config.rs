//! What `podgate check` says, byte for byte: one file with faults and one report for each case.
//!
//! `tests/config/NAME.yaml` is checked and the report compared with `tests/config/NAME.txt`.
//! `UPDATE=1 cargo test --test config` writes the reports anew; read the difference before it is
//! committed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use podgate::config::check::{Verdict, check, check_text};
use podgate::config::overrides::{Given, Overrides};
use podgate::config::{Config, schema};
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config")
}

/// The names of the files with this ending, without it.
fn names(ending: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder()).expect("the folder of cases");
    let files = entries.map(|entry| entry.expect("an entry").path());
    files
        .filter(|path| path.extension().is_some_and(|e| e == ending))
        .map(|path| {
            path.file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

fn report(file_name: &str, text: &str) -> (Verdict, String) {
    let mut out = Vec::new();
    let verdict = check_text(file_name, text, false, &mut out).expect("a vector takes all");
    (verdict, String::from_utf8(out).expect("reports are text"))
}

/// What `podgate check` says of a file.
fn checked(path: &str) -> (Verdict, String) {
    let mut out = Vec::new();
    let verdict = check(Path::new(path), false, &mut out).expect("a vector takes all");
    (verdict, String::from_utf8(out).expect("reports are text"))
}

fn repository_file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(path).expect("a file of ours")
}

#[test]
fn every_case_says_what_it_said() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for name in names("yaml") {
        let (verdict, said) = checked(&format!("tests/config/{name}.yaml"));
        let said = said.replace("tests/config/", "");
        assert!(!said.contains("hunter2"), "{name} shows a secret:\n{said}");
        assert_eq!(
            verdict == Verdict::Good,
            name.starts_with("ok-"),
            "{name}:\n{said}"
        );
        let path = folder().join(format!("{name}.txt"));
        if update {
            fs::write(&path, &said).expect("written");
        } else if fs::read_to_string(&path).ok().as_deref() != Some(said.as_str()) {
            wrong.push(format!("{name} now says:\n{said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_report_has_its_case_and_there_are_sixty_refusals() {
    if std::env::var_os("UPDATE").is_some() {
        return; // they are being written
    }
    let cases = names("yaml");
    assert_eq!(names("txt"), cases);
    let refused = cases.iter().filter(|name| !name.starts_with("ok-")).count();
    assert!(refused >= 60, "only {refused}");
}

#[test]
fn the_example_is_accepted() {
    let (verdict, said) = report(
        "config/podgate.example.yaml",
        &repository_file("config/podgate.example.yaml"),
    );
    assert_eq!(verdict, Verdict::Good, "{said}");
}

/// Taken in silence it would leave somebody waiting for traces.
#[test]
fn a_collector_is_refused_by_a_podgate_that_cannot_call_it() {
    let (verdict, said) = report("a.yaml", "tracing: { otlp: 'http://127.0.0.1:4318' }\n");
    if cfg!(feature = "otlp") {
        assert_eq!(verdict, Verdict::Good, "{said}");
    } else {
        assert_eq!(verdict, Verdict::Refused, "{said}");
        let way_out = "build it with `cargo install --path . --features otlp`";
        assert!(said.contains(way_out), "{said}");
    }
}

#[test]
fn a_file_that_is_missing_or_no_text_is_refused() {
    let said = |path: &Path| {
        let (verdict, said) = checked(&path.to_string_lossy());
        assert_eq!(verdict, Verdict::Refused);
        said
    };
    let missing = said(Path::new("no/such/file.yaml"));
    assert!(
        missing.contains("`no/such/file.yaml` cannot be read: No such file"),
        "{missing}"
    );

    let path = std::env::temp_dir().join(format!("podgate-config-{}.yaml", std::process::id()));
    for size in [(1 << 20) + 1, 10 << 20] {
        fs::write(&path, vec![b'#'; size]).expect("written");
        let large = said(&path);
        assert!(large.contains("larger than 1MiB"), "{large}");
    }
    fs::remove_file(&path).expect("removed");
    let folder = said(&folder());
    assert!(
        folder.contains("cannot be read: Is a directory"),
        "{folder}"
    );
}

#[test]
fn flags_win_and_their_faults_name_them() {
    let given = |name: &str, text: &str| Some(Given::new(name, text));
    let good = Overrides {
        listen: given("--listen", "127.0.0.1:0"),
        admin: given("PODGATE_ADMIN", "127.0.0.1:0"),
        upstream: given("--upstream", "http://127.0.0.1:9/x"),
        workers: given("--workers", "3"),
    };
    let config = Config::preset().with(&good).expect("valid");
    assert_eq!(config.listen[0].at.to_string(), "127.0.0.1:0");
    assert_eq!(config.upstream.target.to_string(), "http://127.0.0.1:9/x");
    assert_eq!(config.workers.map(usize::from), Some(3));

    let bad = Overrides {
        listen: given("PODGATE_LISTEN", ":8080"),
        admin: given("--admin", "127.0.0.1:8080"),
        upstream: given("--upstream", "api.runpod.ai"),
        workers: given("--workers", "0"),
    };
    let said = Config::preset()
        .with(&bad)
        .expect_err("refused")
        .to_string();
    for line in [
        "error: PODGATE_LISTEN: expected an address and a port",
        "= help: write `127.0.0.1:8080`",
        "error: --admin: `listen` has this port already",
        "error: --upstream: expected a URL",
        "it must begin with `http://` or `https://`",
        "error: --workers: expected a number of threads from 1 to 1024",
    ] {
        assert!(said.contains(line), "{line} is missing in\n{said}");
    }
}

#[test]
fn what_a_flag_replaces_is_not_held_against_the_file() {
    let path = std::env::temp_dir().join(format!("podgate-flags-{}.yaml", std::process::id()));
    fs::write(
        &path,
        "listen: 0.0.0.0:8080\nupstream: { api_key: { env: SOME_KEY } }\n",
    )
    .expect("written");
    let local = Overrides {
        listen: Some(Given::new("--listen", "127.0.0.1:8080")),
        ..Overrides::default()
    };
    let (refused, taken) = (Config::load(&path), Config::load_with(&path, &local));
    fs::remove_file(&path).expect("removed");
    let said = refused.expect_err("refused").to_string();
    assert!(said.contains("can be reached from other hosts"), "{said}");
    assert!(taken.is_ok());
}

/// What is wrong with certificates is about this machine: told, and taken.
#[test]
fn a_key_of_another_certificate_is_told_at_its_place() {
    let folder = std::env::temp_dir().join(format!("podgate-config-tls-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for the test");
    let certificate = || {
        let params = CertificateParams::new(vec!["podgate.test".to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        (certificate.pem(), key.serialize_pem())
    };
    let ((cert, key), (_, another)) = (certificate(), certificate());
    let file = folder.join("podgate.yaml");
    let report = |key: &str, roots: &str| {
        let text = "listen:\n  at: 127.0.0.1:8443\n  tls:\n    cert: tls.crt\n    key: tls.key\n    \
                    client_ca: [ca.pem]\n    client_auth: optional\n";
        for (name, text) in [
            ("podgate.yaml", text),
            ("tls.crt", &cert),
            ("tls.key", key),
            ("ca.pem", roots),
        ] {
            fs::write(folder.join(name), text).expect("written");
        }
        let (verdict, said) = checked(&file.to_string_lossy());
        assert_eq!(verdict, Verdict::Good, "{said}");
        said
    };
    let (good, mismatched, rootless) = (
        report(&key, &cert),
        report(&another, &cert),
        report(&key, "nothing"),
    );
    fs::remove_dir_all(&folder).expect("removed");
    assert!(!good.contains("warning"), "{good}");
    assert!(
        mismatched.contains("warning: listen.tls.key: the key ")
            && mismatched.contains("it is not the key of the certificate"),
        "{mismatched}"
    );
    assert!(
        rootless.contains("warning: listen.tls.client_ca[0]: the clients' root ")
            && rootless.contains("there is no certificate in it"),
        "{rootless}"
    );
    let line = another.lines().nth(1).expect("base64");
    assert!(!mismatched.contains(line), "{mismatched}");
}

/// `file` is `expected`, or is made so.
fn is_current(file: &str, expected: &str) {
    if std::env::var_os("UPDATE").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        fs::write(path, expected).expect("written");
    } else if repository_file(file) != expected {
        panic!("{file} is not current: UPDATE=1 cargo test --test config writes it");
    }
}

#[test]
fn the_schema_beside_the_example_is_what_podgate_prints() {
    let schema = format!("{:#}\n", schema::json());
    is_current("config/podgate.schema.json", &schema);
}

/// A key as the schema has it, and the way to it.
struct Documented {
    path: String,
    shown: Value,
}

/// All keys of `map`, each before those below it.
fn keys(schema: &Value, map: &Value, path: &str, found: &mut Vec<Documented>) {
    for (name, key) in map["properties"].as_object().expect("a map's keys") {
        let path = match path {
            "" => name.clone(),
            path => format!("{path}.{name}"),
        };
        found.push(Documented {
            path: path.clone(),
            shown: key.clone(),
        });
        let below = |map: &Value| {
            let (_, name) = map["$ref"].as_str()?.rsplit_once('/')?;
            Some((name.to_owned(), schema["$defs"][name].clone()))
        };
        let choices = key["anyOf"].as_array().into_iter().flatten();
        let map = choices.chain([key]).find_map(below);
        match map {
            // All groups are alike, and shown once; `status` has all keys there are.
            Some((name, map)) if name == "groups" => {
                let status = &map["properties"]["status"];
                let (_, map) = below(status).expect("a group");
                keys(schema, &map, &format!("{path}.NAME"), found);
            }
            Some((_, map)) => keys(schema, &map, &path, found),
            None => {}
        }
    }
}

fn documented() -> Vec<Documented> {
    let schema = schema::json();
    let mut found = Vec::new();
    keys(&schema, &schema, "", &mut found);
    assert!(found.len() > 40, "only {}", found.len());
    found
}

#[test]
fn every_key_is_read() {
    for Documented { path, .. } in documented() {
        let mut text = String::new();
        for (depth, name) in path.split('.').enumerate() {
            let name = name.replace("NAME", "status");
            text += &format!("{}{name}:\n", "  ".repeat(depth));
        }
        text.truncate(text.trim_end().len());
        // Right for nothing.
        text += " [[]]\n";
        let (verdict, said) = report("key.yaml", &text);
        assert_eq!(verdict, Verdict::Refused, "{path} is not read");
        assert!(!said.contains("no such key"), "{said}");
        assert!(!said.contains("report it"), "{said}");
    }
}

#[test]
fn the_table_of_keys_is_current() {
    let (begin, end) = (
        "<!-- keys: UPDATE=1 cargo test --test config -->\n",
        "<!-- /keys -->\n",
    );
    let readme = repository_file("README.md");
    let (before, rest) = readme.split_once(begin).expect("where the table begins");
    let (_, after) = rest.split_once(end).expect("where the table ends");
    let mut table = "| key | default | meaning |\n| --- | --- | --- |\n".to_owned();
    for Documented { path, shown } in documented() {
        // What is a map says its meaning by its keys.
        if path != "endpoints" && shown["$ref"] != Value::Null && path != "upstream.api_key" {
            continue;
        }
        let default = match &shown["default"] {
            Value::Null if path.starts_with("groups.") => "by group".to_owned(),
            Value::Null => "–".to_owned(),
            Value::String(text) => format!("`{text}`"),
            Value::Array(items) if items.is_empty() => "none".to_owned(),
            other => format!("`{other}`"),
        };
        let mut meaning = shown["description"].as_str().expect("a meaning").to_owned();
        if let Some(words) = shown["enum"].as_array() {
            let words: Vec<_> = words.iter().filter_map(Value::as_str).collect();
            meaning = format!("`{}`. {meaning}", words.join("`, `"));
        }
        if let Some(word) = shown["anyOf"][0]["const"].as_str() {
            meaning = format!("Or `{word}`. {meaning}");
        }
        let meaning = meaning.trim_end_matches('.').replace('|', "\\|");
        table += &format!("| `{path}` | {default} | {meaning} |\n");
    }
    is_current("README.md", &format!("{before}{begin}{table}{end}{after}"));
}

/// Texts near enough to a configuration that they reach every reader.
fn nearly() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("groups"),
        Just("run"),
        Just("rate"),
        Just("requests"),
        Just("per"),
        Just("burst"),
        Just("upstream"),
        Just("api_key"),
        Just("file"),
        Just("endpoints"),
        Just("abc*"),
        Just("listen"),
        Just("127.0.0.1:8080"),
        Just("10s"),
        Just("5"),
        Just("-1"),
        Just("none"),
        Just("reject"),
        Just("other"),
        Just("rpa_ABC"),
        Just("ü\u{2028}"),
        Just("~"),
        Just("&a"),
        Just("*a"),
        Just("!t"),
        Just("'"),
        Just("\""),
        Just("|"),
        Just("\u{85}"),
        Just("\u{1b}[m"),
    ];
    let mark = prop_oneof![
        Just(": "),
        Just(":\n"),
        Just("\n"),
        Just("\n  "),
        Just("\n    "),
        Just("{ "),
        Just(" }"),
        Just("["),
        Just("]"),
        Just(", "),
        Just(" # "),
        Just("- "),
        Just("\r\n"),
        Just(" "),
    ];
    prop::collection::vec((word, mark), 0..24)
        .prop_map(|parts| parts.into_iter().map(|(w, m)| format!("{w}{m}")).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics_the_parser(text in any::<String>()) {
        report("any.yaml", &text);
    }

    #[test]
    fn no_near_configuration_panics_the_parser(text in nearly()) {
        let (_, said) = report("near.yaml", &text);
        prop_assert!(!said.contains("rpa_ABC"), "{said}");
        prop_assert!(!said.contains('\u{1b}'), "{said}");
    }

    #[test]
    fn no_damage_to_the_example_panics_the_parser(at in 0..6000_usize, cut in 0..40_usize, put in "[ -~\n]{0,6}") {
        let mut text = repository_file("config/podgate.example.yaml");
        let start = at.min(text.len());
        let end = (start + cut).min(text.len());
        text.replace_range(start..end, &put);
        report("damaged.yaml", &text);
    }
}
