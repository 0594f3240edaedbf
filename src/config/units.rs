//! Durations and sizes as people write them.
//!
//! One whole number and one unit, nothing between: `250ms`, `10s`, `64KiB`. What is refused is
//! understood as far as possible, so that the message can say what to write instead.

use std::time::Duration;

/// Why a text is no duration or size, and what was probably meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAUnit {
    pub why: String,
    /// A text that would be taken.
    pub meant: Option<String>,
}

pub(super) const DURATION_UNITS: [(&str, u64); 4] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
pub(super) const SIZE_UNITS: [(&str, u64); 8] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];
/// Spellings that are refused and understood.
const DURATION_ALIASES: [(&str, &str); 16] = [
    ("msec", "ms"),
    ("millis", "ms"),
    ("milliseconds", "ms"),
    ("sec", "s"),
    ("secs", "s"),
    ("second", "s"),
    ("seconds", "s"),
    ("min", "m"),
    ("mins", "m"),
    ("minute", "m"),
    ("minutes", "m"),
    ("hr", "h"),
    ("hour", "h"),
    ("hours", "h"),
    ("S", "s"),
    ("H", "h"),
];

/// `250ms`, `10s`, `5m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, NotAUnit> {
    match exact(text, &DURATION_UNITS) {
        Ok(Some(millis)) => Ok(Duration::from_millis(millis)),
        Ok(None) => Err(NotAUnit {
            why: "too long".into(),
            meant: None,
        }),
        Err(why) => Err(NotAUnit {
            why,
            meant: meant_duration(text).map(show_duration),
        }),
    }
}

/// `64KiB` (2^10), `10MiB` (2^20), `1GiB`, and with powers of ten `kB`, `MB`, `GB`; `512B`.
pub fn size(text: &str) -> Result<u64, NotAUnit> {
    match exact(text, &SIZE_UNITS) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(NotAUnit {
            why: "too large".into(),
            meant: None,
        }),
        Err(why) => Err(NotAUnit {
            why,
            meant: meant_size(text),
        }),
    }
}

/// In the largest unit that leaves no fraction.
pub fn show_duration(span: Duration) -> String {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    if span.is_zero() {
        return "0s".into();
    }
    if Duration::from_millis(millis) != span {
        // Nothing finer than a millisecond can be written, so nothing we read comes here.
        return format!("{span:?}");
    }
    let whole = |(unit, length): &(&str, u64)| {
        let count = millis.is_multiple_of(*length).then(|| millis / length)?;
        Some(format!("{count}{unit}"))
    };
    DURATION_UNITS
        .iter()
        .rev()
        .find_map(whole)
        .unwrap_or_default()
}

/// In the largest unit that leaves no fraction.
pub fn show_size(bytes: u64) -> String {
    const SHOWN: [&str; 6] = ["GiB", "MiB", "KiB", "GB", "MB", "kB"];
    let whole = |unit: &&str| {
        let length = length_of(unit, &SIZE_UNITS)?;
        (bytes != 0 && bytes.is_multiple_of(length)).then(|| format!("{}{unit}", bytes / length))
    };
    SHOWN
        .iter()
        .find_map(whole)
        .unwrap_or_else(|| format!("{bytes}B"))
}

/// `Ok(None)`: it does not fit. `Err`: it is not of the form.
fn exact(text: &str, units: &[(&str, u64)]) -> Result<Option<u64>, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("it does not begin with a number".into());
    }
    let Some(length) = length_of(unit, units) else {
        return Err(match unit {
            "" => "its unit is missing".into(),
            _ => "no such unit".into(),
        });
    };
    let number: Option<u64> = number.parse().ok();
    Ok(number.and_then(|number| number.checked_mul(length)))
}

fn length_of(unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (_, length) = units.iter().find(|(name, _)| *name == unit)?;
    Some(*length)
}

/// Reads what we refuse: `5`, `1.5s`, `1m 30s`, `10 sec`. Nothing if any part stays unclear.
fn meant_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut millis: u64 = 0;
    while !rest.is_empty() {
        let digits = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.');
        let (number, after) = rest.split_at(digits.count());
        let letters = after
            .trim_start()
            .bytes()
            .take_while(u8::is_ascii_alphabetic);
        let (unit, after) = after.trim_start().split_at(letters.count());
        let unit = match unit {
            "" => "s",
            _ => DURATION_ALIASES
                .iter()
                .find(|(alias, _)| *alias == unit)
                .map_or(unit, |(_, name)| name),
        };
        let length = length_of(unit, &DURATION_UNITS)?;
        millis = millis.checked_add(scaled(number, length)?)?;
        rest = after.trim_start();
    }
    (!text.trim().is_empty()).then(|| Duration::from_millis(millis))
}

/// Reads what we refuse: `5`, `1.5MiB`, `10 mb`, `10M`.
fn meant_size(text: &str) -> Option<String> {
    let text = text.trim();
    let digits = text
        .bytes()
        .take_while(|b| b.is_ascii_digit() || *b == b'.');
    let (number, unit) = text.split_at(digits.count());
    let unit = match unit.trim() {
        "" | "b" => "B",
        "k" | "K" | "ki" | "Ki" => "KiB",
        "m" | "M" | "mi" | "Mi" => "MiB",
        "g" | "G" | "gi" | "Gi" => "GiB",
        unit => SIZE_UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .map(|(name, _)| *name)?,
    };
    scaled(number, length_of(unit, &SIZE_UNITS)?).map(|bytes| match number.contains('.') {
        true => show_size(bytes),
        false => format!("{number}{unit}"),
    })
}

/// `number` (digits with at most one point) times `length`, if that is whole and fits.
fn scaled(number: &str, length: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let parts = u32::try_from(fraction.len()).ok()?;
    let scale = 10_u64.checked_pow(parts)?;
    let digits: u64 = format!("{whole}{fraction}").parse().ok()?;
    let product = digits.checked_mul(length)?;
    product.is_multiple_of(scale).then(|| product / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn documented_forms_are_read() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("10MiB"), Ok(10_485_760));
        assert_eq!(size("10MB"), Ok(10_000_000));
        assert_eq!(size("0B"), Ok(0));
    }

    #[test]
    fn what_is_refused_is_understood() {
        let meant = |text| duration(text).expect_err("refused").meant;
        assert_eq!(meant("5").as_deref(), Some("5s"));
        assert_eq!(meant("1.5s").as_deref(), Some("1500ms"));
        assert_eq!(meant("1m 30s").as_deref(), Some("90s"));
        assert_eq!(meant("10 seconds").as_deref(), Some("10s"));
        assert_eq!(meant("soon"), None);
        assert_eq!(meant(""), None);
        let meant = |text| size(text).expect_err("refused").meant;
        assert_eq!(meant("10M").as_deref(), Some("10MiB"));
        assert_eq!(meant("10mb").as_deref(), Some("10MB"));
        assert_eq!(meant("1.5 GiB").as_deref(), Some("1536MiB"));
        assert_eq!(meant("1024").as_deref(), Some("1024B"));
        assert_eq!(meant("-1MiB"), None);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let why = duration("99999999999999999999h").expect_err("refused").why;
        assert_eq!(why, "too long");
        assert_eq!(
            size("18446744073709551616B").expect_err("refused").why,
            "too large"
        );
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read(millis in 0..10_000_000_u64, bytes in 0..u64::MAX) {
            let span = Duration::from_millis(millis);
            prop_assert_eq!(duration(&show_duration(span)), Ok(span));
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn what_was_meant_can_be_read(text in "[0-9. ]{0,6}[a-zA-Z]{0,3}[0-9 ]{0,3}[a-z]{0,2}") {
            if let Some(meant) = duration(&text).err().and_then(|e| e.meant) {
                prop_assert!(duration(&meant).is_ok());
            }
            if let Some(meant) = size(&text).err().and_then(|e| e.meant) {
                prop_assert!(size(&meant).is_ok());
            }
        }
    }
}
