//! From a part's name to the bytes it takes in the text, and which bytes are never shown.

use std::ops::Range;

use super::faults::Place;
use super::raw::{self, Step, Value};

/// So many secrets are looked up one by one; with more, every value is covered.
const MOST_COVERED: usize = 100;

/// The bytes to underline. On character boundaries, on one line, never empty but at a line's end.
pub(super) fn of(text: &str, place: &Place) -> Option<Range<usize>> {
    let (start, steps) = match place {
        Place::Part(steps) => (raw::locate(text, steps)?, Some(steps)),
        Place::Offset(offset) => (*offset, None),
        Place::Given { .. } | Place::Nowhere => return None,
    };
    let start = (0..=start.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))?;
    let flow = || steps.is_some_and(|steps| in_flow(text, steps, start));
    Some(start..start + extent(&text[start..], flow))
}

/// Line and column of an offset, both from 1, the column in characters.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

/// The whole lines around one or two spans, and the number of the first.
pub(super) fn lines(
    text: &str,
    span: &Range<usize>,
    also: Option<&Range<usize>>,
) -> (Range<usize>, usize) {
    let start = span.start.min(also.map_or(usize::MAX, |s| s.start));
    let end = span.end.max(also.map_or(0, |s| s.end));
    let from = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let to = text[end..].find('\n').map_or(text.len(), |at| end + at);
    (from..to, position(text, start).0)
}

/// Whether the part that begins at `start` stands between the brackets of a `{ }` or `[ ]`, where
/// a comma ends it.
fn in_flow(text: &str, steps: &[Step], start: usize) -> bool {
    let line = lines(text, &(start..start), None).0;
    if text[line.start..start].contains(['{', '[']) {
        // Almost always so, and spares a parse. Wrong only for a bracket in a quoted key.
        return true;
    }
    let Some((_, parents)) = steps.split_last() else {
        return false;
    };
    let bracket = |at: usize| text[at..].starts_with(['{', '[']);
    raw::locate(text, parents).is_some_and(bracket)
}

/// How many bytes of `rest`'s first line belong to the part that begins there. `flow` is only
/// asked where it matters.
fn extent(rest: &str, flow: impl FnOnce() -> bool) -> usize {
    let line = rest.lines().next().unwrap_or_default();
    let length = match line.chars().next() {
        None => 0,
        Some('"') => quoted(line, '"'),
        Some('\'') => quoted(line, '\''),
        Some('{' | '[') => bracketed(line),
        Some(_) => {
            let flow = line.contains([',', ']', '}', '[', '{']) && flow();
            plain(line, flow)
        }
    };
    line[..length].trim_end().len()
}

/// To the closing quote. Within single quotes a quote is written twice, within double ones behind
/// a backslash.
fn quoted(line: &str, quote: char) -> usize {
    let mut characters = line.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        let escapes = match quote {
            '"' => c == '\\',
            _ => c == quote && characters.peek().is_some_and(|(_, next)| *next == quote),
        };
        if escapes {
            characters.next();
        } else if c == quote {
            return at + 1;
        }
    }
    line.len()
}

/// To the bracket that closes the first one; only the first one if that is on another line.
fn bracketed(line: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in line.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    1
}

fn plain(line: &str, flow: bool) -> usize {
    let mut last = ' ';
    for (at, c) in line.char_indices() {
        let next = line[at + c.len_utf8()..].chars().next();
        let ends = match c {
            '#' => last.is_whitespace() && at > 0,
            ':' => next.is_none_or(char::is_whitespace),
            ',' | ']' | '}' | '[' | '{' => flow,
            _ => false,
        };
        if ends {
            return at;
        }
        last = c;
    }
    line.len()
}

/// What is quoted from a file or a flag in a message: one short line, nothing a terminal would
/// obey, no key.
pub(super) fn quote(text: &str) -> String {
    const LONGEST: usize = 60;
    let shown = on_one_line(text);
    match shown.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("`{}...`", &shown[..end]),
        None => format!("`{shown}`"),
    }
}

/// `text` with control characters escaped and keys covered.
pub(super) fn on_one_line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    let mut bytes = line.into_bytes();
    cover_runpod_keys(&mut bytes);
    cover_credentials(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `text` with every secret overwritten by `*`, byte for byte, so that positions stay.
///
/// Covered are the values of keys that sound like a secret, whatever looks like a Runpod key, the
/// credentials in a URL, and, in text that is not YAML, the rest of a line behind such a key.
pub(super) fn covered(text: &str, tree: Option<&Value>) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let mut secrets = Vec::new();
    match tree {
        Some(tree) => find_secrets(tree, &mut Vec::new(), false, &mut secrets),
        None => cover_lines(text, &mut bytes, sounds_secret),
    }
    match secrets.len() > MOST_COVERED {
        true => cover_lines(text, &mut bytes, |_| true),
        false => secrets
            .iter()
            .for_each(|steps| cover_value(text, &mut bytes, steps)),
    }
    cover_runpod_keys(&mut bytes);
    cover_credentials(&mut bytes);
    for at in 1..bytes.len() {
        if bytes[at] == b'\n' && bytes[at - 1] == b'\r' {
            bytes[at - 1] = b' ';
        }
    }
    // Whole characters were overwritten with ASCII, so this is text still.
    String::from_utf8(bytes).unwrap_or_default()
}

fn sounds_secret(key: &str) -> bool {
    const NAMES: [&str; 5] = ["apikey", "token", "secret", "password", "authorization"];
    let letters = key.bytes().filter(u8::is_ascii_alphanumeric);
    let name: String = letters.map(|b| b.to_ascii_lowercase() as char).collect();
    let like = |known: &str| {
        name.contains(known) || strsim::damerau_levenshtein(&name, known) <= known.len() / 4
    };
    name == "key" || NAMES.into_iter().any(like)
}

/// `{ file: … }` and `{ env: … }` say where a secret is, and may be seen; an `env` that is no
/// variable's name may be the secret itself.
fn says_where(key: &str, value: &Value) -> bool {
    let named = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match (key, value) {
        ("file", _) => true,
        ("env", Value::Text(name)) => name.len() <= 64 && name.bytes().all(named),
        _ => false,
    }
}

/// The ways to all single values that may be secret.
fn find_secrets(value: &Value, steps: &mut Vec<Step>, secret: bool, found: &mut Vec<Vec<Step>>) {
    match value {
        Value::Map(entries) => {
            for (nth, (key, inside)) in entries.iter().enumerate() {
                steps.push(Step::Value(nth));
                let secret = (secret && !says_where(key, inside)) || sounds_secret(key);
                find_secrets(inside, steps, secret, found);
                steps.pop();
            }
        }
        Value::List(items) => {
            for (nth, inside) in items.iter().enumerate() {
                steps.push(Step::Value(nth));
                find_secrets(inside, steps, secret, found);
                steps.pop();
            }
        }
        Value::Nothing => {}
        _ if secret => found.push(steps.clone()),
        _ => {}
    }
}

/// Covers a value to its end on its line, and the lines below that are further in than its key:
/// block texts and quoted ones go on there.
fn cover_value(text: &str, bytes: &mut [u8], steps: &[Step]) {
    let Some(span) = of(text, &Place::Part(steps.to_vec())) else {
        return;
    };
    bytes[span.clone()].fill(b'*');
    if in_flow(text, steps, span.start) {
        return;
    }
    let key = match steps.split_last() {
        Some((Step::Value(nth), parents)) => {
            raw::locate(text, &[parents, &[Step::Key(*nth)]].concat())
        }
        _ => None,
    };
    let own = indent(&text[lines(text, &(key.unwrap_or(span.start)..span.end), None).0]);
    let mut start = lines(text, &span, None).0.end;
    for line in text[start..].split_inclusive('\n') {
        if !line.trim().is_empty() && indent(line) <= own {
            return;
        }
        let rest = &mut bytes[start..start + line.len()];
        rest.iter_mut()
            .filter(|b| **b != b'\n')
            .for_each(|b| *b = b'*');
        start += line.len();
    }
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Covers the rest of each line behind a key that `is_secret`.
fn cover_lines(text: &str, bytes: &mut [u8], is_secret: impl Fn(&str) -> bool) {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        if let Some(colon) = line.find(':') {
            let keys = line[..colon].split(['{', ',']);
            let places = ["file:", "env:"].iter().any(|place| line.contains(place));
            if !places && keys.map(str::trim).any(&is_secret) {
                let end = line.trim_end().len();
                bytes[start + colon + 1..start + end.max(colon + 1)].fill(b'*');
            }
        }
        start += line.len();
    }
}

/// Covers what stands between `://` and `@`.
fn cover_credentials(bytes: &mut [u8]) {
    const BEFORE: &[u8] = b"://";
    for start in 0..bytes.len() {
        if !bytes[start..].starts_with(BEFORE) {
            continue;
        }
        let from = start + BEFORE.len();
        let ends = |b: &u8| b.is_ascii_whitespace() || *b == b'/';
        let authority = bytes[from..].split(ends).next().unwrap_or_default();
        if let Some(at) = authority.iter().rposition(|b| *b == b'@') {
            bytes[from..from + at].fill(b'*');
        }
    }
}

/// Covers what follows the prefix all keys of Runpod have.
fn cover_runpod_keys(bytes: &mut [u8]) {
    const PREFIX: &[u8] = b"rpa_";
    let mut at = 0;
    while at + PREFIX.len() <= bytes.len() {
        if !bytes[at..].starts_with(PREFIX) {
            at += 1;
            continue;
        }
        at += PREFIX.len();
        while at < bytes.len() && bytes[at].is_ascii_alphanumeric() {
            bytes[at] = b'*';
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let tree = raw::parse(text).ok();
        let shown = covered(text, tree.as_ref());
        assert_eq!(shown.len(), text.len());
        shown
    }

    #[test]
    fn secrets_are_covered_wherever_they_stand() {
        for text in [
            "api_key: hunter2\n",
            "admin_token: hunter2\n",
            "a: [{ Api-Key: 'hunter2', b: c }]\n",
            "api_key:\n  hunter2\n  hunter2\nb: c\n",
            "api_key: >-\n  hunter2\n\n   hunter2\nb: c\n",
            "token: { a: [hunter2, { b: hunter2 }] }\n",
            "upstream: { api_key: { env: 'hunter2!' } }\n",
            "not: [yaml\npassword: hunter2\n",
            "url: http://a:hunter2@b/c\n",
            "apikye: hunter2\n",
            &"secret: hunter2\n".repeat(MOST_COVERED + 1),
        ] {
            assert!(!shown(text).contains("hunter2"), "{}", shown(text));
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "api_key: { file: /run/secrets/runpod }\nlisten: x\n",
            "api_key: { env: RUNPOD_API_KEY }\n",
            "keep_alive: 75s # a@b\n",
            "- not\n: yaml {\nlisten: 127.0.0.1:1\n",
        ] {
            assert_eq!(shown(text), text);
        }
    }

    #[test]
    fn a_part_ends_where_it_ends() {
        for (text, part) in [
            ("a: b c # d", "b c"),
            ("a: 'b # ''c''' # d", "'b # ''c'''"),
            ("a: \"b\\\"c\" # d", "\"b\\\"c\""),
            ("a: b, c", "b, c"),
            ("a: [b, c] # d", "[b, c]"),
            ("a: {\n  b: c, d: e }", "{"),
        ] {
            let span = of(text, &Place::Part(vec![Step::Value(0)]));
            assert_eq!(span.map(|span| &text[span]), Some(part));
        }
        let text = "a: {\n  b: c, d: e }";
        let steps = vec![Step::Value(0), Step::Value(0)];
        assert_eq!(
            of(text, &Place::Part(steps)).map(|span| &text[span]),
            Some("c")
        );
    }

    #[test]
    fn what_is_quoted_is_short_and_harmless() {
        assert_eq!(quote("a\u{1b}[1m\n"), "`a\\u{1b}[1m\\n`");
        assert_eq!(quote("rpa_ABC"), "`rpa_***`");
        assert_eq!(quote(&"ü".repeat(100)), format!("`{}...`", "ü".repeat(60)));
    }
}
