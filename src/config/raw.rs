//! The YAML as written: a plain tree, and where in the text each part of it stands.
//!
//! Not serde-derived structs: serde stops at the first thing it dislikes, and a person wants every
//! fault at once. A tree keeps what a struct loses: the order, keys nobody knows, keys given twice.
//! Positions are not in the tree, because the parser only tells them in errors. So a part is named
//! by its [`Step`]s from the root, and [`locate`] parses once more and fails on purpose exactly
//! there. That costs a parse per fault, and nothing when there is none.
//!
//! All use of the YAML crate is in this file.

use std::cell::Cell;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, EnumAccess, IgnoredAny, MapAccess};
use serde::de::{SeqAccess, VariantAccess, Visitor};

/// The most values a document may hold, aliases counted each time they are used: an alias bomb
/// ends here, a file of a thousand endpoints does not.
const MOST_VALUES: usize = 200_000;

/// So many brackets may be open at once. Those in comments and quotes are counted too, so this is
/// far above what the parser takes.
const DEEPEST: usize = 1_000;

/// One value of the document.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `~`, `null`, or nothing behind the colon.
    Nothing,
    Flag(bool),
    Whole(u64),
    /// A number that is negative, fractional, or above `u64`.
    OtherNumber,
    Text(String),
    List(Vec<Value>),
    /// In the order written; a key may stand twice.
    Map(Vec<(String, Value)>),
    /// Anything with a `!tag`. There are none in our files.
    Tagged,
}

impl Value {
    /// What it is, for a message; never its content.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Nothing => "nothing",
            Value::Flag(_) => "true or false",
            Value::Whole(_) => "a number",
            Value::OtherNumber => "negative, a fraction or too large",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
            Value::Tagged => "a tagged value",
        }
    }
}

/// One step down from a list or map: its nth entry, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The key of a map's entry. Always the last step.
    Key(usize),
    /// The value of a map's entry, or a list's item.
    Value(usize),
}

/// Text that is not YAML, or more of it than is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub why: String,
    /// Byte offset, where the parser knows it.
    pub at: Option<usize>,
    /// What was begun before and never ended well, and the byte offset of its beginning.
    pub begun: Option<(String, usize)>,
}

/// The tree of `text`. A text without content is [`Value::Nothing`].
pub fn parse(text: &str) -> Result<Value, Malformed> {
    if let Some(at) = too_deep(text) {
        return Err(Malformed {
            why: format!("more than {DEEPEST} brackets inside each other"),
            at: Some(at),
            begun: None,
        });
    }
    let left = Cell::new(MOST_VALUES);
    Grow { left: &left }
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .map_err(|error| malformed(text, &error))
}

/// The parser's time grows with the square of the depth: it takes minutes for a megabyte of
/// brackets. It stops at a depth of 128 itself, but only after that.
fn too_deep(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return Some(at);
        }
    }
    None
}

/// Byte offset at which the part named by `steps` begins, if there is such a part.
///
/// Exact for keys and single values; a block map or list begins at its first entry.
pub fn locate(text: &str, steps: &[Step]) -> Option<usize> {
    let error = Walk { steps }
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .err()?;
    Some(error.location()?.index())
}

/// The parser's message, taken apart: `WHY at line L column C, while CONTEXT at line L column C`.
/// The positions are drawn, so they need not be said.
fn malformed(text: &str, error: &serde_yaml::Error) -> Malformed {
    let said = error.to_string();
    if said.contains("more than one document") {
        return Malformed {
            why: "a second document begins".into(),
            at: second_document(text),
            begun: None,
        };
    }
    let (said, context) = said.split_once(", while ").unwrap_or((&said, ""));
    let begun = context
        .split_once(" at line ")
        .and_then(|(what, position)| {
            let (line, column) = position.split_once(" column ")?;
            let offset = offset_of(text, line.parse().ok()?, column.parse().ok()?);
            Some((format!("while {what}"), offset))
        });
    if said.contains("repetition limit exceeded") {
        return Malformed {
            why: "aliases repeat more than any configuration has use for".into(),
            at: first_alias(text).or(Some(0)),
            begun: None,
        };
    }
    let (why, _) = said.split_once(" at line ").unwrap_or((said, ""));
    // Characters that may not stand in a text have only an offset, and that only in words.
    let (why, at) = match why.split_once(" at position ") {
        Some((why, offset)) => (why, offset.parse().ok()),
        None => (why, error.location().map(|location| location.index())),
    };
    Malformed {
        why: why.to_owned(),
        at: at.or(Some(0)),
        begun,
    }
}

/// Byte offset of a line and column, both from 1.
fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let lines = text.split_inclusive('\n').take(line.saturating_sub(1));
    let start: usize = lines.map(str::len).sum();
    let before = text[start..].chars().take(column.saturating_sub(1));
    start + before.map(char::len_utf8).sum::<usize>()
}

/// Where the content of a text's second document begins.
fn second_document(text: &str) -> Option<usize> {
    let mut documents = serde_yaml::Deserializer::from_str(text);
    IgnoredAny::deserialize(documents.next()?).ok()?;
    let error = Walk { steps: &[] }.deserialize(documents.next()?).err()?;
    Some(error.location()?.index())
}

/// Where the first alias stands, or might.
fn first_alias(text: &str) -> Option<usize> {
    let mut before = ' ';
    let mut starts = text.char_indices().filter(move |(_, c)| {
        let first = *c == '*' && (before.is_whitespace() || matches!(before, '[' | '{' | ','));
        before = *c;
        first
    });
    starts.next().map(|(at, _)| at)
}

/// Builds the tree, and stops when it has grown too large.
struct Grow<'a> {
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Grow<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(serde::de::Error::custom(format_args!(
                "more than {MOST_VALUES} values"
            )));
        };
        self.left.set(left);
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Grow<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Whole(number))
    }

    fn visit_u128<E>(self, _: u128) -> Result<Value, E> {
        Ok(Value::OtherNumber)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(u64::try_from(number).map_or(Value::OtherNumber, Value::Whole))
    }

    fn visit_i128<E>(self, _: i128) -> Result<Value, E> {
        Ok(Value::OtherNumber)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::OtherNumber)
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(Grow { left: self.left })? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(KeyText)? {
            entries.push((key, map.next_value_seed(Grow { left: self.left })?));
        }
        Ok(Value::Map(entries))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Value, A::Error> {
        let (IgnoredAny, inside) = tagged.variant()?;
        inside.newtype_variant::<IgnoredAny>()?;
        Ok(Value::Tagged)
    }
}

/// A key as it is spelt: `123` and `true` are names here, not a number and a flag.
struct KeyText;

impl<'de> DeserializeSeed<'de> for KeyText {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain name as key")
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

/// Goes down `steps` and fails there, so that the parser stamps the error with the position.
struct Walk<'a> {
    steps: &'a [Step],
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        match self.steps.split_first() {
            None => from.deserialize_any(Refuse),
            Some((&step, rest)) => from.deserialize_any(Descend { step, rest }),
        }
    }
}

/// Likes nothing: every method keeps its default, which is an error.
struct Refuse;

impl Visitor<'_> for Refuse {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing at all")
    }
}

struct Descend<'a> {
    step: Step,
    rest: &'a [Step],
}

impl<'de> Visitor<'de> for Descend<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list or a map")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let (Step::Value(nth) | Step::Key(nth)) = self.step;
        for _ in 0..nth {
            list.next_element::<IgnoredAny>()?;
        }
        list.next_element_seed(Walk { steps: self.rest })?;
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (Step::Value(nth) | Step::Key(nth)) = self.step;
        for _ in 0..nth {
            map.next_entry::<IgnoredAny, IgnoredAny>()?;
        }
        match self.step {
            Step::Key(_) => {
                map.next_key_seed(Walk { steps: self.rest })?;
            }
            Step::Value(_) => {
                // The parser panics on a value without a key.
                if map.next_key::<IgnoredAny>()?.is_some() {
                    map.next_value_seed(Walk { steps: self.rest })?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<'t>(text: &'t str, steps: &[Step]) -> &'t str {
        &text[locate(text, steps).expect("the part exists")..]
    }

    #[test]
    fn parts_are_found_exactly() {
        use Step::{Key, Value};
        let text = "ä: {b: 1, 'c': [x, \"ÿ\", 7s]} # note\nsecond:\n  - a: null\n    a: 2\n";
        assert!(at(text, &[Key(0)]).starts_with("ä:"));
        assert!(at(text, &[Value(0)]).starts_with("{b"));
        assert!(at(text, &[Value(0), Key(1)]).starts_with("'c'"));
        assert!(at(text, &[Value(0), Value(1), Value(2)]).starts_with("7s]"));
        assert!(at(text, &[Value(1), Value(0), Key(1)]).starts_with("a: 2"));
        assert!(at(text, &[Value(1), Value(0), Value(1)]).starts_with("2\n"));
        assert_eq!(locate(text, &[Value(9)]), None);
    }

    #[test]
    fn order_repeats_and_spelling_are_kept() {
        let tree = parse("b: 1\na: -1\nb: yes\n0x10: 1.5\n").expect("valid");
        let Value::Map(entries) = tree else {
            panic!("a map")
        };
        let keys: Vec<_> = entries.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["b", "a", "b", "0x10"]);
        assert_eq!(entries[1].1, Value::OtherNumber);
        assert_eq!(entries[2].1, Value::Text("yes".into()));
    }

    #[test]
    fn a_second_document_is_found_where_it_begins() {
        for (text, second) in [
            ("a: 1\n---\nb: 2\n", "b: 2"),
            ("--- a\n--- b\n", "b\n"),
            ("# x\n---\na: 1\n--- # y\n[c]\n", "[c]"),
            ("a: 1\n...\n# x\nb: 2\n", "b: 2"),
            ("{ a: 1 } x\n", "x\n"),
            ("---\n---\n", ""),
        ] {
            let refused = parse(text).expect_err("two documents");
            let at = refused.at.expect("a place");
            assert!(at > 0 && text[at..].starts_with(second), "{text}: {at}");
        }
    }

    #[test]
    fn nothing_is_a_value_and_an_alias_bomb_is_not() {
        assert_eq!(parse(""), Ok(Value::Nothing));
        assert_eq!(parse("# only a note\n"), Ok(Value::Nothing));
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for n in 1..9 {
            let last = n - 1;
            let uses = vec![format!("*a{last}"); 10].join(",");
            bomb += &format!("a{n}: &a{n} [{uses}]\n");
        }
        assert!(parse(&bomb).is_err());
    }
}
