//! The configuration's JSON Schema (draft 2020-12), for editors and for whoever generates files.
//!
//! Made of the tables in `keys`, so it knows every key there is. It takes whatever `check` takes.
//! It refuses less: what one value alone does not show (keys given twice, a burst above its
//! window, two sockets on one port) and how long or large a value with a unit may be.

use serde_json::{Map, Value, json};

use super::Config;
use super::groups::MOST_RULES;
use super::key::{Key, Kind, Level, Scope};
use super::keys::{GROUP, LEVELS, LISTENER, LISTENER_TLS, ROOT};
use super::policy::Pattern;
use super::units::{DURATION_UNITS, SIZE_UNITS};
use crate::operation::Group;

/// The name under `$defs` of what a group is; `status` has two keys more.
const A_GROUP: &str = "group";
const STATUS_GROUP: &str = "status_group";

const ADDRESS: &str = r"([0-9]+(\.[0-9]+){3}|\[[0-9A-Fa-f:.%]+\]):[0-9]{1,5}";

/// The schema.
pub fn json() -> Value {
    let defaults = Config::preset().to_json();
    let mut defs = Map::new();
    for level in LEVELS {
        match level.name {
            "" => {}
            _ if std::ptr::eq(level, &GROUP) => {
                let everywhere = |key: &Key| key.scope == Scope::Everywhere;
                let in_status = |key: &Key| key.scope != Scope::Preset;
                defs.insert(A_GROUP.into(), map(level, everywhere, &Value::Null));
                defs.insert(STATUS_GROUP.into(), map(level, in_status, &Value::Null));
            }
            _ => {
                let own = &defaults[level.name];
                defs.insert(definition(level).into(), map(level, |_| true, own));
            }
        }
    }
    for level in [&super::keys::API_KEY, &super::keys::ADMIN_TOKEN] {
        if let Some(Value::Object(secret)) = defs.get_mut(definition(level)) {
            secret.insert("minProperties".into(), json!(1));
            secret.insert("maxProperties".into(), json!(1));
            secret.insert("type".into(), json!("object"));
        }
    }
    for (level, required) in [(&LISTENER, &["at"][..]), (&LISTENER_TLS, &["cert", "key"])] {
        if let Some(Value::Object(map)) = defs.get_mut(definition(level)) {
            map.insert("type".into(), json!("object"));
            map.insert("required".into(), json!(required));
        }
    }
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "podgate",
        "description": "The configuration of podgate; every key is optional.",
    });
    let root = map(&ROOT, |_| true, &defaults);
    if let (Value::Object(schema), Value::Object(root)) = (&mut schema, root) {
        schema.extend(root);
        schema.insert("$defs".into(), defs.into());
    }
    schema
}

/// How a level is called under `$defs`.
fn definition(level: &Level) -> &'static str {
    let last = level.name.rsplit('.').next().unwrap_or_default();
    match last {
        "<group>" => A_GROUP,
        "<id>" => "endpoint",
        name => name,
    }
}

/// A map of `level`'s keys. Nothing behind the colon is an empty map.
fn map(level: &Level, shown: impl Fn(&Key) -> bool, defaults: &Value) -> Value {
    let keys = level.keys.iter().filter(|key| shown(key));
    let properties: Map<String, Value> = keys
        .map(|key| (key.name.to_owned(), property(key, &defaults[key.name])))
        .collect();
    json!({
        "type": ["object", "null"],
        "properties": properties,
        "additionalProperties": false,
    })
}

fn property(key: &Key, default: &Value) -> Value {
    let mut shown = json!({ "description": format!("{}.", key.about) });
    let status = key.name == Group::Status.name();
    let kind = match &key.kind {
        Kind::Map(level) if std::ptr::eq(*level, &GROUP) && status => refer(STATUS_GROUP),
        kind => value(kind),
    };
    if let (Value::Object(shown), Value::Object(kind)) = (&mut shown, kind) {
        shown.extend(kind);
        if !matches!(default, Value::Null | Value::Object(_)) {
            shown.insert("default".into(), default.clone());
        }
    }
    shown
}

fn refer(definition: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{definition}") })
}

fn value(kind: &Kind) -> Value {
    match kind {
        Kind::Address => pattern(&format!("^{ADDRESS}$")),
        Kind::ListenAddress => pattern(&format!("^(unix:.+|{ADDRESS})$")),
        Kind::Listener(level) => {
            json!({ "anyOf": [value(&Kind::ListenAddress), refer(definition(level))] })
        }
        Kind::Mode => pattern("^[0-7]{1,4}$"),
        Kind::OneOrMany(items) => {
            let items = value(items);
            let list = json!({ "type": "array", "items": items, "minItems": 1 });
            let one = items["anyOf"].as_array().cloned();
            let mut any = one.unwrap_or_else(|| vec![items]);
            any.push(list);
            json!({ "anyOf": any })
        }
        Kind::Url => pattern(r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@\s]+(/[A-Za-z0-9/._~-]*)?$"),
        Kind::Path => json!({ "type": "string", "minLength": 1 }),
        Kind::Variable => pattern("^(?!rpa_)[A-Za-z_][A-Za-z0-9_]*$"),
        Kind::Host => pattern(r"^(\*|[A-Za-z0-9._-]{1,253})$"),
        Kind::ServerName => pattern(r"^[A-Za-z0-9._:-]{1,253}$"),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Whole(bounds) => {
            json!({ "type": "integer", "minimum": bounds.start(), "maximum": bounds.end() })
        }
        Kind::WholeOr(word, bounds) => {
            json!({ "anyOf": [{ "const": word }, value(&Kind::Whole(bounds.clone()))] })
        }
        Kind::Duration(_) => unit(&DURATION_UNITS),
        Kind::Size(_) => unit(&SIZE_UNITS),
        Kind::Word(words) | Kind::Sources(words) => json!({ "enum": words }),
        Kind::List(items) => json!({ "type": "array", "items": value(items) }),
        Kind::Map(level) | Kind::OneOf(level) => refer(definition(level)),
        Kind::MapOr(word, level) => {
            json!({ "anyOf": [{ "const": word }, refer(definition(level))] })
        }
        Kind::Ids(of) => json!({
            "type": ["object", "null"],
            "propertyNames": {
                "pattern": "^[A-Za-z0-9_*-]+$",
                "maxLength": Pattern::LONGEST,
            },
            "additionalProperties": value(of),
            "maxProperties": MOST_RULES,
        }),
    }
}

fn pattern(pattern: &str) -> Value {
    json!({ "type": "string", "pattern": pattern })
}

/// One whole number and one unit.
fn unit(units: &[(&str, u64)]) -> Value {
    let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
    pattern(&format!("^[0-9]+({})$", names.join("|")))
}
