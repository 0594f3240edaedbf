//! Which keys there are and where; and what somebody meant who wrote another.

use super::span::quote;
use crate::operation::{Group, Operation};

/// The keys of one kind of map.
pub(super) struct Level {
    /// How its place is named in a hint; empty for the root.
    pub name: &'static str,
    pub keys: &'static [&'static str],
}

pub(super) static ROOT: Level = Level {
    name: "",
    keys: &[
        "listen",
        "admin",
        "workers",
        "state_dir",
        "upstream",
        "timeouts",
        "buffers",
        "limits",
        "log",
        "groups",
        "endpoints",
    ],
};
pub(super) static UPSTREAM: Level = Level {
    name: "upstream",
    keys: &[
        "url",
        "api_key",
        "allow_remote_injection",
        "connect_timeout",
        "idle_timeout",
        "margin",
        "trust_ca",
    ],
};
pub(super) static API_KEY: Level = Level {
    name: "upstream.api_key",
    keys: &["file", "env"],
};
pub(super) static TIMEOUTS: Level = Level {
    name: "timeouts",
    keys: &["header", "body_idle", "body_total", "write", "keep_alive"],
};
pub(super) static BUFFERS: Level = Level {
    name: "buffers",
    keys: &["per_request", "total"],
};
pub(super) static LIMITS: Level = Level {
    name: "limits",
    keys: &["connections", "lanes"],
};
pub(super) static LOG: Level = Level {
    name: "log",
    keys: &["format", "level", "access"],
};
pub(super) static GROUPS: Level = Level {
    name: "groups",
    keys: &[
        "run",
        "runsync",
        "status",
        "cancel",
        "retry",
        "purge-queue",
        "health",
        "requests",
        "openai",
        "other",
    ],
};
pub(super) static GROUP: Level = Level {
    name: "groups.<group>",
    keys: &[
        "rate",
        "concurrency",
        "max_body",
        "max_wait",
        "queue",
        "response_timeout",
        "held_response_timeout",
        "mode",
        "hold_share",
        "settle",
        "counts",
    ],
};
/// A group in the preset, which also says where its numbers are from.
pub(super) static PRESET_GROUP: Level = Level {
    name: "groups.<group>",
    keys: &[
        "rate",
        "concurrency",
        "max_body",
        "max_wait",
        "queue",
        "response_timeout",
        "held_response_timeout",
        "mode",
        "hold_share",
        "settle",
        "counts",
        "sources",
    ],
};
pub(super) static RATE: Level = Level {
    name: "groups.<group>.rate",
    keys: &["requests", "per", "burst"],
};
pub(super) static ENDPOINT: Level = Level {
    name: "endpoints.<id>",
    keys: &["groups"],
};

/// All levels a user's file has, for keys that stand at the wrong one.
static LEVELS: [&Level; 11] = [
    &ROOT, &UPSTREAM, &API_KEY, &TIMEOUTS, &BUFFERS, &LIMITS, &LOG, &GROUPS, &GROUP, &RATE,
    &ENDPOINT,
];

/// What somebody probably meant by `key`, which `level` does not have.
pub(super) fn hint(level: &Level, key: &str) -> Option<String> {
    if key == "<<" {
        return Some("merge keys are not read: write the settings out, or use an alias".into());
    }
    if key == "sources" {
        return Some("only the preset has sources: what a file sets has the source `file`".into());
    }
    if std::ptr::eq(level, &GROUPS)
        && let Some(operation) = Operation::ALL.into_iter().find(|o| o.name() == key)
    {
        let group: Group = operation.group();
        return Some(format!(
            "`{key}` shares the limit of the group `{}`",
            group.name()
        ));
    }
    let homes = || LEVELS.into_iter().filter(|home| home.keys.contains(&key));
    // `requests` is a group and a part of a rate: who stands above one of them means that one.
    let below = |home: &&Level| home.name.starts_with(level.name);
    if let Some(home) = homes().find(below).or_else(|| homes().next()) {
        return Some(match home.name {
            "" => format!("`{key}` belongs at the top of the file"),
            name => format!("`{key}` belongs in `{name}`"),
        });
    }
    if let Some(near) = nearest(key, level.keys) {
        return Some(format!("did you mean `{near}`?"));
    }
    match level.keys.len() {
        0..=6 => Some(format!("the keys here are {}", listed(level.keys, "and"))),
        _ => None,
    }
}

/// The word of `known` that `text` is a slip of: case, `-` for `_`, a letter or two.
pub(super) fn nearest<'k>(text: &str, known: &[&'k str]) -> Option<&'k str> {
    let plain = |word: &str| word.to_lowercase().replace(['-', ' '], "_");
    if text.len() > 64 {
        return None;
    }
    let text = plain(text);
    let far = |word: &&&str| strsim::damerau_levenshtein(&text, &plain(word));
    // `warning` for `warn`, `auto` for `automatic`.
    let begins = |word: &&&str| word.len() > 3 && text.starts_with(&plain(word));
    let near = known
        .iter()
        .find(begins)
        .or_else(|| known.iter().min_by_key(far))?;
    if begins(&near) {
        return Some(*near);
    }
    let most = (near.len().min(text.len()) / 3).max(1);
    (far(&near) <= most).then_some(*near)
}

/// A key in a path: bare where that reads well.
pub(super) fn shown(key: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    match !key.is_empty() && key.len() <= 60 && key.bytes().all(bare) && !key.contains("rpa_") {
        true => key.to_owned(),
        false => quote(key).replace('`', "\""),
    }
}

/// "`a`, `b` or `c`"
pub(super) fn one_of(words: &[&str]) -> String {
    listed(words, "or")
}

fn listed(words: &[&str], last: &str) -> String {
    let ticked: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match ticked.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_are_those_there_are() {
        let names = Group::ALL.map(Group::name);
        assert_eq!(GROUPS.keys, names);
        assert_eq!(&PRESET_GROUP.keys[..GROUP.keys.len()], GROUP.keys);
    }

    #[test]
    fn the_example_shows_every_key() {
        let example = include_str!("../../config/podgate.example.yaml");
        for level in LEVELS {
            let missing = |key: &&&str| match level.name {
                "groups" => !example.contains(**key),
                _ => !example.contains(&format!("{key}:")),
            };
            assert_eq!(level.keys.iter().find(missing), None, "{}", level.name);
        }
    }

    #[test]
    fn slips_are_understood_and_other_words_are_not() {
        assert_eq!(nearest("Purge_Queue", GROUPS.keys), Some("purge-queue"));
        assert_eq!(nearest("conection", LIMITS.keys), Some("connections"));
        assert_eq!(nearest("enfroce", &["enforce", "shadow"]), Some("enforce"));
        assert_eq!(nearest("banana", GROUPS.keys), None);
    }

    #[test]
    fn a_key_at_the_wrong_level_is_sent_home() {
        let said = |level, key| hint(level, key).expect("a hint");
        assert_eq!(
            said(&GROUP, "requests"),
            "`requests` belongs in `groups.<group>.rate`"
        );
        assert_eq!(said(&ROOT, "requests"), "`requests` belongs in `groups`");
        assert_eq!(
            said(&RATE, "listen"),
            "`listen` belongs at the top of the file"
        );
    }
}
