//! What somebody meant who wrote a key or a word that there is not.

use super::key::Level;
use super::keys::{GROUPS, LEVELS};
use super::span::quote;
use crate::operation::{Group, Operation};

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
    let homes = || LEVELS.into_iter().filter(|home| home.key(key).is_some());
    // `requests` is a group and a part of a rate: who stands above one of them means that one.
    let below = |home: &&Level| home.name.starts_with(level.name);
    if let Some(home) = homes().find(below).or_else(|| homes().next()) {
        return Some(match home.name {
            "" => format!("`{key}` belongs at the top of the file"),
            name => format!("`{key}` belongs in `{name}`"),
        });
    }
    let names = level.names();
    if let Some(near) = nearest(key, &names) {
        return Some(format!("did you mean `{near}`?"));
    }
    match names.len() {
        0..=6 => Some(format!("the keys here are {}", listed(&names, "and"))),
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
    use crate::config::keys::{GROUP, LIMITS, RATE, ROOT};

    #[test]
    fn slips_are_understood_and_other_words_are_not() {
        assert_eq!(nearest("Purge_Queue", &GROUPS.names()), Some("purge-queue"));
        assert_eq!(nearest("conection", &LIMITS.names()), Some("connections"));
        assert_eq!(nearest("enfroce", &["enforce", "shadow"]), Some("enforce"));
        assert_eq!(nearest("banana", &GROUPS.names()), None);
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
