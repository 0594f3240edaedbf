//! Reading the tree: each value against what it must be, each key against those there are.
//!
//! A reader that finds something wrong writes a fault and leaves the setting as it was, so that
//! the rest is read all the same.

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::faults::{Fault, Place};
use super::raw::{Step, Value};
use super::schema::{self, Level};
use super::span::quote;
use super::units;

/// A value, and the way to it.
#[derive(Clone, Debug)]
pub(super) struct At<'a> {
    pub value: &'a Value,
    pub path: String,
    steps: Vec<Step>,
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

    fn child(&self, nth: usize, name: &str, value: &'a Value) -> Self {
        let mut steps = self.steps.clone();
        steps.push(Step::Value(nth));
        let path = match self.path.as_str() {
            "" => schema::shown(name),
            path => format!("{path}.{}", schema::shown(name)),
        };
        Self { value, path, steps }
    }

    /// All entries of a map whose keys are names somebody chose; a name given twice is a fault.
    /// Nothing behind the colon is an empty map.
    pub fn named(&self, faults: &mut Vec<Fault>) -> Vec<(&'a str, At<'a>)> {
        let entries = match self.value {
            Value::Map(entries) => entries,
            Value::Nothing => return Vec::new(),
            other => {
                let fault = self.fault("expected a map of keys and values");
                faults.push(fault.label(format!("this is {}", other.kind())));
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

    /// The entries of a map whose keys are those of `level`; any other is a fault.
    pub fn entries(&self, level: &Level, faults: &mut Vec<Fault>) -> Entries<'a> {
        let mut known = self.named(faults);
        known.retain(|(key, at)| {
            let known = level.keys.contains(key);
            if !known {
                let fault = at.key_fault("there is no such key").label("not known here");
                faults.push(fault.maybe_help(schema::hint(level, key)));
            }
            known
        });
        Entries {
            at: self.clone(),
            known,
        }
    }

    /// The items of a list.
    pub fn items(&self, faults: &mut Vec<Fault>) -> Vec<At<'a>> {
        let Value::List(items) = self.value else {
            let fault = self.fault("expected a list, such as `[a, b]`");
            faults.push(fault.label(format!("this is {}", self.value.kind())));
            return Vec::new();
        };
        let item = |(nth, value)| {
            let mut at = self.child(nth, "", value);
            at.path = format!("{}[{nth}]", self.path);
            at
        };
        items.iter().enumerate().map(item).collect()
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

    pub fn flag(&self, faults: &mut Vec<Fault>) -> Option<bool> {
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

    pub fn whole(&self, bounds: RangeInclusive<u64>, faults: &mut Vec<Fault>) -> Option<u64> {
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
    pub fn whole_or(
        &self,
        word: &str,
        bounds: RangeInclusive<u64>,
        faults: &mut Vec<Fault>,
    ) -> Option<Option<u64>> {
        match self.value {
            Value::Text(text) if text == word => Some(None),
            Value::Whole(_) => self.whole(bounds, faults).map(Some),
            _ => {
                faults.push(self.expected(&format!("a whole number or `{word}`")));
                None
            }
        }
    }

    pub fn duration(
        &self,
        bounds: RangeInclusive<Duration>,
        faults: &mut Vec<Fault>,
    ) -> Option<Duration> {
        const EXPECTED: &str = "a duration such as `250ms`, `10s`, `5m` or `1h`";
        let span = self.unit(EXPECTED, units::duration, faults)?;
        self.within(span, bounds, |span| units::show_duration(*span), faults)
    }

    pub fn size(&self, bounds: RangeInclusive<u64>, faults: &mut Vec<Fault>) -> Option<u64> {
        const EXPECTED: &str = "a size such as `64KiB`, `10MiB` (2^20) or `10MB` (10^6)";
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
        bounds: RangeInclusive<T>,
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
        let expected = schema::one_of(&named);
        let text = self.text(&expected, faults)?;
        if let Some((_, meant)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*meant);
        }
        let help = schema::nearest(text, &named).map(|word| format!("did you mean `{word}`?"));
        let fault = self.fault(format!("expected {expected}"));
        let label = format!("{} is none of them", quote(text));
        faults.push(fault.label(label).maybe_help(help));
        None
    }

    pub fn is_word(&self, word: &str) -> bool {
        matches!(self.value, Value::Text(text) if text == word)
    }

    /// Text that another parser reads; `what` it must be stands in front of the parser's reason.
    pub fn parsed<T, E: Display>(
        &self,
        expected: &str,
        parse: impl FnOnce(&'a str) -> Result<T, E>,
        faults: &mut Vec<Fault>,
    ) -> Option<T> {
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
