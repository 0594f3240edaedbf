//! What every request writes, into the log and into fields, in a way that costs little: times without
//! floating point, and names without a look at each of their characters.

use std::fmt;
use std::time::Duration;

/// Seconds, to the microsecond: `1.000250`.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(span) = self;
        write!(f, "{}.{:06}", span.as_secs(), span.subsec_micros())
    }
}

/// Milliseconds, to the microsecond: `1000.250`.
#[derive(Clone, Copy, Debug)]
pub struct Millis(pub Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}", micros / 1_000, micros % 1_000)
    }
}

/// Text that a terminal obeys nothing in. Most needs no look at its single characters.
#[derive(Clone, Copy, Debug)]
pub struct Harmless<'a>(pub &'a str);

impl fmt::Display for Harmless<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\');
        match self.0.bytes().all(plain) {
            true => f.write_str(self.0),
            false => self.0.escape_debug().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digit_stands_where_it_should() {
        for (nanos, seconds, millis) in [
            (0, "0.000000", "0.000"),
            (999, "0.000000", "0.000"),
            (1_500_000, "0.001500", "1.500"),
            (61_000_020_999, "61.000020", "61000.020"),
        ] {
            let span = Duration::from_nanos(nanos);
            assert_eq!(Seconds(span).to_string(), seconds);
            assert_eq!(Millis(span).to_string(), millis);
        }
    }

    #[test]
    fn what_is_harmless_is_as_it_was_and_the_rest_is_escaped() {
        for text in [
            "/v2/ep/run",
            "",
            "a b",
            "\"'\\",
            "\u{1b}[2J\n",
            "\u{e9}\u{202e}",
        ] {
            assert_eq!(Harmless(text).to_string(), text.escape_debug().to_string());
        }
    }
}
