//! Reading the tree: each value against what it must be, each key against those there are.
//!
//! What it must be is in `keys`; a reader that asks for another kind than stands there is a mistake
//! of ours, and refuses.
//!
//! A reader that finds something wrong writes a fault and leaves the setting as it was, so that
//! the rest is read all the same.

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::faults::{Fault, Place};
use super::hint;
use super::key::Kind;
use super::keys;
use super::raw::{Step, Value};
use super::span::quote;
use super::units;

/// A value, and the way to it.
#[derive(Clone, Debug)]
pub(super) struct At<'a> {
    pub value: &'a Value,
    pub path: String,
    steps: Vec<Step>,
    kind: &'static Kind,
}

/// The entries of a map, each with a key that is known and stands once.
pub(super) struct Entries<'a> {
    at: At<'a>,
    known: Vec<(&'a str, At<'a>)>,
}

impl<'a> At<'a> {
    pub fn root(value: &'a Value) -> Self {
        Self {
            value,
            path: String::new(),
            steps: Vec::new(),
            kind: &keys::WHOLE_FILE,
        }
    }

    /// Where the value stands.
    pub fn place(&self) -> Place {
        Place::Part(self.steps.clone())
    }

    /// Where its key stands; for a list's item and the root, the value.
    pub fn key_place(&self) -> Place {
        let mut steps = self.steps.clone();
        if let Some(last @ Step::Value(_)) = steps.last_mut() {
            let (Step::Value(nth) | Step::Key(nth)) = *last;
            *last = Step::Key(nth);
        }
        Place::Part(steps)
    }

    /// A fault drawn at the value.
    pub fn fault(&self, what: impl Into<String>) -> Fault {
        Fault::new(self.place(), &self.path, what)
    }

    /// A fault drawn at the key.
    pub fn key_fault(&self, what: impl Into<String>) -> Fault {
        Fault::new(self.key_place(), &self.path, what)
    }

    /// The kind is not known yet: until it is, nothing can be read of it.
    fn child(&self, nth: usize, name: &str, value: &'a Value) -> Self {
        let mut steps = self.steps.clone();
        steps.push(Step::Value(nth));
        let path = match self.path.as_str() {
            "" => hint::shown(name),
            path => format!("{path}.{}", hint::shown(name)),
        };
        let kind = self.kind;
        Self {
            value,
            path,
            steps,
            kind,
        }
    }

    /// What `keys` has for the kind that a reader asks for.
    fn asked<K: ?Sized>(
        &self,
        of: impl FnOnce(&'static Kind) -> Option<&'static K>,
        faults: &mut Vec<Fault>,
    ) -> Option<&'static K> {
        let asked = of(self.kind);
        if asked.is_none() {
            let what = "podgate does not read this key as it should: please report it";
            faults.push(self.fault(what));
        }
        asked
    }

    /// The entries of a map whose keys are ids or shapes of ids.
    pub fn ids(&self, faults: &mut Vec<Fault>) -> Vec<(&'a str, At<'a>)> {
        let Some(kind) = self.asked(Kind::of_ids, faults) else {
            return Vec::new();
        };
        let mut named = self.named(faults);
        named.iter_mut().for_each(|(_, at)| at.kind = kind);
        named
    }

    /// All entries of a map; a name given twice is a fault. Nothing behind the colon is an empty
    /// map.
    pub fn named(&self, faults: &mut Vec<Fault>) -> Vec<(&'a str, At<'a>)> {
        let entries = match self.value {
            Value::Map(entries) => entries,
            Value::Nothing => return Vec::new(),
            other => {
                let fault = self.fault("expected a map of keys and values");
                let fault = fault.label(format!("this is {}", other.kind()));
                let key = matches!(other, Value::Text(text) if text.contains([':', '=']));
                let help = "a setting is written `key: value`, with a space behind the colon";
                faults.push(fault.maybe_help(key.then(|| help.to_owned())));
                return Vec::new();
            }
        };
        let mut seen: Vec<(&'a str, At<'a>)> = Vec::with_capacity(entries.len());
        let mut first: HashMap<&str, usize> = HashMap::with_capacity(entries.len());
        for (nth, (key, value)) in entries.iter().enumerate() {
            let at = self.child(nth, key, value);
            if let Some(before) = first.get(key.as_str()).and_then(|before| seen.get(*before)) {
                let fault = at.key_fault("this key stands twice").label("again here");
                faults.push(fault.also(before.1.key_place(), "first here"));
                continue;
            }
            first.insert(key, seen.len());
            seen.push((key, at));
        }
        seen
    }

    /// The entries of a map whose keys are known; any other is a fault.
    pub fn entries(&self, faults: &mut Vec<Fault>) -> Entries<'a> {
        let mut known = Vec::new();
        if let Some(level) = self.asked(Kind::level, faults) {
            known = self.named(faults);
            known.retain_mut(|(name, at)| {
                let key = level.key(name);
                match key {
                    Some(key) => at.kind = &key.kind,
                    None => faults.push(at.no_such_key().maybe_help(hint::hint(level, name))),
                }
                key.is_some()
            });
        }
        Entries {
            at: self.clone(),
            known,
        }
    }

    pub fn no_such_key(&self) -> Fault {
        let fault = self.key_fault("there is no such key");
        fault.label("not known here")
    }

    /// The items of a list.
    pub fn items(&self, faults: &mut Vec<Fault>) -> Vec<At<'a>> {
        let Some(kind) = self.asked(Kind::of_items, faults) else {
            return Vec::new();
        };
        let Value::List(items) = self.value else {
            let fault = self.fault("expected a list, such as `[a, b]`");
            faults.push(fault.label(format!("this is {}", self.value.kind())));
            return Vec::new();
        };
        let item = |(nth, value)| {
            let mut at = self.child(nth, "", value);
            at.path = format!("{}[{nth}]", self.path);
            at.kind = kind;
            at
        };
        items.iter().enumerate().map(item).collect()
    }

    /// The items of a list, or what stands in the place of a list of one.
    pub fn one_or_many(&self, faults: &mut Vec<Fault>) -> Vec<At<'a>> {
        if matches!(self.value, Value::List(_)) {
            return self.items(faults);
        }
        let kind = self.asked(Kind::of_items, faults);
        let one = kind.map(|kind| Self {
            kind,
            ..self.clone()
        });
        one.into_iter().collect()
    }

    pub fn text(&self, expected: &str, faults: &mut Vec<Fault>) -> Option<&'a str> {
        let Value::Text(text) = self.value else {
            faults.push(self.expected(expected));
            return None;
        };
        Some(text)
    }

    fn expected(&self, expected: &str) -> Fault {
        let label = match self.value {
            Value::Nothing => "nothing stands here".to_owned(),
            other => format!("this is {}", other.kind()),
        };
        self.fault(format!("expected {expected}")).label(label)
    }

    /// For the kinds that say all with their name.
    pub fn is(&self, kind: &Kind, faults: &mut Vec<Fault>) -> Option<()> {
        let same = |own: &Kind| std::mem::discriminant(own) == std::mem::discriminant(kind);
        self.asked(|own| same(own).then_some(&()), faults).copied()
    }

    pub fn flag(&self, faults: &mut Vec<Fault>) -> Option<bool> {
        self.is(&Kind::Flag, faults)?;
        let Value::Flag(flag) = self.value else {
            let meant = match self.value {
                Value::Text(text) if ["yes", "on"].contains(&&*text.to_lowercase()) => Some("true"),
                Value::Text(text) if ["no", "off"].contains(&&*text.to_lowercase()) => {
                    Some("false")
                }
                _ => None,
            };
            let help = meant.map(|word| format!("write `{word}`"));
            faults.push(self.expected("`true` or `false`").maybe_help(help));
            return None;
        };
        Some(*flag)
    }

    /// A whole number that fits what it is read into.
    pub fn whole<T: TryFrom<u64>>(&self, faults: &mut Vec<Fault>) -> Option<T> {
        let bounds = self.asked(Kind::whole, faults)?;
        T::try_from(self.number(bounds, faults)?).ok()
    }

    fn number(&self, bounds: &RangeInclusive<u64>, faults: &mut Vec<Fault>) -> Option<u64> {
        let Value::Whole(number) = *self.value else {
            let help = match self.value {
                Value::Text(text) => {
                    let digits: String = text.chars().filter(|c| !"_,. ".contains(*c)).collect();
                    let number: Option<u64> = digits.parse().ok();
                    number.map(|number| format!("write `{number}`"))
                }
                _ => None,
            };
            faults.push(self.expected("a whole number").maybe_help(help));
            return None;
        };
        self.within(number, bounds, ToString::to_string, faults)
    }

    /// A whole number, or a word that stands for none (`Some(None)`).
    pub fn whole_or<T: TryFrom<u64>>(&self, faults: &mut Vec<Fault>) -> Option<Option<T>> {
        let (bounds, word) = (self.asked(Kind::whole, faults)?, self.kind.word());
        match self.value {
            Value::Text(text) if text == word => Some(None),
            Value::Whole(_) => T::try_from(self.number(bounds, faults)?).ok().map(Some),
            _ => {
                faults.push(self.expected(&format!("a whole number or `{word}`")));
                None
            }
        }
    }

    pub fn duration(&self, faults: &mut Vec<Fault>) -> Option<Duration> {
        const EXPECTED: &str = "a duration such as `250ms`, `10s`, `5m` or `1h`";
        let bounds = self.asked(Kind::duration, faults)?;
        let span = self.unit(EXPECTED, units::duration, faults)?;
        self.within(span, bounds, |span| units::show_duration(*span), faults)
    }

    pub fn size(&self, faults: &mut Vec<Fault>) -> Option<u64> {
        const EXPECTED: &str = "a size such as `64KiB`, `10MiB` (2^20) or `10MB` (10^6)";
        let bounds = self.asked(Kind::size, faults)?;
        let bytes = self.unit(EXPECTED, units::size, faults)?;
        self.within(bytes, bounds, |bytes| units::show_size(*bytes), faults)
    }

    fn unit<T>(
        &self,
        expected: &str,
        read: fn(&str) -> Result<T, units::NotAUnit>,
        faults: &mut Vec<Fault>,
    ) -> Option<T> {
        let refused = match self.value {
            Value::Text(text) => match read(text) {
                Ok(value) => return Some(value),
                Err(refused) => refused,
            },
            Value::Whole(number) => match read(&number.to_string()) {
                Ok(value) => return Some(value),
                Err(refused) => refused,
            },
            _ => {
                faults.push(self.expected(expected));
                return None;
            }
        };
        let help = refused.meant.map(|meant| format!("write `{meant}`"));
        let fault = self.fault(format!("expected {expected}"));
        faults.push(fault.label(refused.why).maybe_help(help));
        None
    }

    fn within<T: PartialOrd>(
        &self,
        value: T,
        bounds: &RangeInclusive<T>,
        show: impl Fn(&T) -> String,
        faults: &mut Vec<Fault>,
    ) -> Option<T> {
        if bounds.contains(&value) {
            return Some(value);
        }
        let (least, most) = (show(bounds.start()), show(bounds.end()));
        let label = match value < *bounds.start() {
            true => format!("the least is {least}"),
            false => format!("the most is {most}"),
        };
        let what = format!("must be between {least} and {most}");
        faults.push(self.fault(what).label(label));
        None
    }

    /// One of a closed set of words.
    pub fn word<T: Copy>(&self, words: &[(&str, T)], faults: &mut Vec<Fault>) -> Option<T> {
        let named: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.asked(|kind| kind.words().filter(|known| *known == named), faults)?;
        let expected = hint::one_of(&named);
        let text = self.text(&expected, faults)?;
        if let Some((_, meant)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*meant);
        }
        let help = hint::nearest(text, &named).map(|word| format!("did you mean `{word}`?"));
        let fault = self.fault(format!("expected {expected}"));
        let label = format!("{} is none of them", quote(text));
        faults.push(fault.label(label).maybe_help(help));
        None
    }

    /// Whether it is the word that stands in the place of a map.
    pub fn is_the_word(&self) -> bool {
        matches!(self.value, Value::Text(text) if text == self.kind.word())
    }

    /// A file's or folder's path; a relative one counts from `folder`.
    pub fn path(&self, folder: &Path, faults: &mut Vec<Fault>) -> Option<PathBuf> {
        self.is(&Kind::Path, faults)?;
        let text = self.text("a file's path", faults)?;
        match text {
            "" => {
                faults.push(self.fault("expected a file's path").label("this is empty"));
                None
            }
            _ => Some(folder.join(text)),
        }
    }

    /// Text that another parser reads; `what` it must be stands in front of the parser's reason.
    pub fn parsed<T, E: Display>(
        &self,
        kind: &Kind,
        expected: &str,
        parse: impl FnOnce(&'a str) -> Result<T, E>,
        faults: &mut Vec<Fault>,
    ) -> Option<T> {
        self.is(kind, faults)?;
        match parse(self.text(expected, faults)?) {
            Ok(value) => Some(value),
            Err(why) => {
                let fault = self.fault(format!("expected {expected}"));
                faults.push(fault.label(why.to_string()));
                None
            }
        }
    }
}

impl<'a> Entries<'a> {
    /// The map itself.
    pub fn at(&self) -> &At<'a> {
        &self.at
    }

    #[cfg(test)]
    pub fn named(&self) -> impl Iterator<Item = &'a str> {
        self.known.iter().map(|(name, _)| *name)
    }

    pub fn get(&self, key: &str) -> Option<&At<'a>> {
        let (_, at) = self.known.iter().find(|(known, _)| *known == key)?;
        Some(at)
    }

    /// Reads `key` into `target` if it is given and right. Whether it was.
    pub fn set<T>(
        &self,
        key: &str,
        target: &mut T,
        read: impl FnOnce(&At<'a>) -> Option<T>,
    ) -> bool {
        match self.get(key).and_then(read) {
            Some(value) => {
                *target = value;
                true
            }
            None => false,
        }
    }
}
