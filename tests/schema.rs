//! The JSON Schema that `podgate schema` prints, against a validator that is not ours: it takes what
//! `check` takes, and refuses what one value alone shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use podgate::config::{Config, schema};
use serde_json::{Map, Value, json};
use serde_yaml::Value as Yaml;

/// Refused by `check` alone, for what no schema of one value says: `(case, why)`.
const CHECK_ALONE: [(&str, &str); 22] = [
    ("api-key-remote", "two settings"),
    ("api-key-remote-in-a-list", "two settings"),
    ("buffers-one-above-all", "two settings"),
    ("burst-above-a-rules-requests", "two settings"),
    ("burst-above-requests", "two settings"),
    ("duration-out-of-bounds", "a value with a unit"),
    ("listen-client-auth-without-ca", "two settings"),
    ("listen-client-ca-without-auth", "two settings"),
    ("listen-is-admin", "two settings"),
    ("listen-key-literal", "what a text is"),
    ("listen-mode-of-an-address", "two settings"),
    ("listen-port-too-large", "a number inside a text"),
    ("listen-same-twice", "two settings"),
    ("listen-second-is-admin", "two settings"),
    ("listen-takes-the-default-admin", "two settings"),
    ("listen-unix-path-too-long", "bytes of a path"),
    ("margin-too-large", "a value with a unit"),
    ("max-wait-too-long", "a value with a unit"),
    ("rate-incomplete", "what the preset has"),
    ("settle-too-long", "a value with a unit"),
    ("size-above-the-cap", "a value with a unit"),
    ("timeouts-pause-above-all", "two settings"),
];

/// The document as an editor hands it to a validator; `None`: it is not one document of plain YAML.
fn document(text: &str) -> Option<Value> {
    let yaml: Yaml = serde_yaml::from_str(text.trim_start_matches('\u{feff}')).ok()?;
    plain(yaml)
}

fn plain(yaml: Yaml) -> Option<Value> {
    Some(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(flag) => json!(flag),
        Yaml::Number(number) => serde_json::to_value(number).ok()?,
        Yaml::String(text) => json!(text),
        Yaml::Sequence(items) => items.into_iter().map(plain).collect::<Option<_>>()?,
        Yaml::Mapping(entries) => {
            let entry = |(key, value): (Yaml, Yaml)| {
                let key = match key {
                    Yaml::String(key) => key,
                    Yaml::Number(key) => key.to_string(),
                    Yaml::Bool(key) => key.to_string(),
                    _ => return None,
                };
                Some((key, plain(value)?))
            };
            Value::Object(entries.into_iter().map(entry).collect::<Option<_>>()?)
        }
        Yaml::Tagged(_) => return None,
    })
}

/// Why each document is refused.
fn refusals(documents: &Map<String, Value>) -> BTreeMap<String, Vec<String>> {
    let python = std::env::var_os("PODGATE_TEST_PYTHON")
        .expect("PODGATE_TEST_PYTHON names a Python that has tests/schema/requirements.txt");
    let mut validator = Command::new(python)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/schema/validate.py"
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the validator starts");
    let given = json!({ "schema": schema::json(), "documents": documents }).to_string();
    let mut stdin = validator.stdin.take().expect("its input is ours");
    let feeder = std::thread::spawn(move || stdin.write_all(given.as_bytes()));
    let output = validator.wait_with_output().expect("it ends");
    feeder.join().expect("fed").expect("it reads all");
    assert!(output.status.success(), "{}", output.status);
    serde_json::from_slice(&output.stdout).expect("its answer is JSON")
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a file of ours")
}

/// Every file of a folder with this ending, by its name without it.
fn texts(folder: &str, ending: &str) -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(path).expect("a folder of ours");
    entries
        .filter_map(|entry| {
            let name = entry.expect("an entry").file_name().into_string().ok()?;
            let stem = name.strip_suffix(ending)?;
            // Not all of them are text.
            let text = String::from_utf8(fs::read(format!("{folder}/{name}")).ok()?).ok()?;
            Some((stem.to_owned(), text))
        })
        .collect()
}

#[test]
#[ignore = "needs a JSON Schema validator: tests/run installs it"]
fn the_schema_takes_what_check_takes() {
    let mut documents = Map::new();
    let mut texts = texts("tests/config", ".yaml");
    texts.extend(self::texts("tests/fuzz/seeds/config", ""));
    texts.insert("example".into(), read("config/podgate.example.yaml"));
    for (name, text) in texts {
        if let Ok(config) = Config::parse(&name, &text) {
            documents.insert(format!("{name} as shown"), config.to_json());
            documents.insert(name, document(&text).expect("plain YAML"));
        }
    }
    // The preset alone says where its numbers are from.
    let mut preset = document(&read("config/runpod.yaml")).expect("plain YAML");
    let groups = preset["groups"].as_object_mut().expect("groups");
    for group in groups.values_mut() {
        group.as_object_mut().expect("a map").remove("sources");
    }
    documents.insert("preset".into(), preset);
    assert!(documents.len() > 15, "only {}", documents.len());
    let refused = refusals(&documents);
    assert_eq!(refused.len(), documents.len());
    for (name, why) in refused {
        assert_eq!(why, [""; 0], "{name}: {}", documents[&name]);
    }
}

#[test]
#[ignore = "needs a JSON Schema validator: tests/run installs it"]
fn the_schema_refuses_what_one_value_shows() {
    let mut documents = Map::new();
    for (name, text) in texts("tests/config", ".yaml") {
        if !name.starts_with("ok-")
            && let Some(document) = document(&text)
        {
            documents.insert(name, document);
        }
    }
    let refused = refusals(&documents);
    let taken: BTreeSet<&str> = refused
        .iter()
        .filter(|(_, why)| why.is_empty())
        .map(|(name, _)| name.as_str())
        .collect();
    let expected: BTreeSet<&str> = CHECK_ALONE.iter().map(|(name, _)| *name).collect();
    assert_eq!(taken, expected);
    assert!(refused.len() - taken.len() >= 50, "only {refused:?}");
}
