//! What every request writes, into the log and into fields, in a way that costs little: digits and
//! times without `core::fmt` or floating point, and names without a look at each of their characters.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::Write;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

/// Where text is put: a line that grows, or a [`Short`] one.
pub trait Sink {
    fn put(&mut self, text: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, text: &[u8]) {
        self.extend_from_slice(text);
    }
}

/// Up to `N` bytes without a heap. What would be past them is left out, so `N` has to be enough for
/// the longest that can be put.
#[derive(Clone, Copy, Debug)]
pub struct Short<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Short<N> {
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            length: 0,
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl<const N: usize> AsRef<[u8]> for Short<N> {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl<const N: usize> Default for Short<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Sink for Short<N> {
    fn put(&mut self, text: &[u8]) {
        let end = self.length + text.len();
        debug_assert!(end <= N, "{N} bytes are not enough");
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(text);
            self.length = end;
        }
    }
}

/// Memory for texts of a few answers: asked for at once, and theirs until the last of them has gone out.
const SHARED: usize = 4 * 1024;

thread_local! {
    static SPARE: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// A copy in memory that this thread's next texts share: to ask for memory costs more than to write to
/// it.
pub fn shared(text: &[u8]) -> Bytes {
    let copy = |spare: &RefCell<BytesMut>| {
        let mut spare = spare.borrow_mut();
        if spare.capacity() < text.len() {
            spare.reserve(SHARED.max(text.len()));
        }
        spare.extend_from_slice(text);
        spare.split().freeze()
    };
    let copied = SPARE.try_with(copy);
    copied.unwrap_or_else(|_| Bytes::copy_from_slice(text))
}

/// Decimal digits and nothing else, as a number.
pub fn whole(text: &[u8]) -> Option<u64> {
    let digit = |number: Option<u64>, byte: &u8| {
        let digit = byte.wrapping_sub(b'0');
        let number = number?.checked_mul(10)?.checked_add(digit.into())?;
        (digit < 10).then_some(number)
    };
    text.first()?;
    text.iter().fold(Some(0), digit)
}

/// A number in decimal digits.
pub fn number(number: impl Into<u64>, to: &mut impl Sink) {
    to.put(itoa::Buffer::new().format(number.into()).as_bytes());
}

/// The last `N` decimal digits, up to nine, with leading zeros.
pub fn digits<const N: usize>(number: u32) -> [u8; N] {
    let above = const { 10u32.pow(N as u32) };
    // One digit more, so that there are `N` whatever they are.
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(above + number % above).as_bytes();
    *text.last_chunk().unwrap_or(&[b'0'; N])
}

/// Sixteen hexadecimal digits.
pub fn hex(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    digits[..8].copy_from_slice(&eight(number >> 32));
    digits[8..].copy_from_slice(&eight(number & 0xFFFF_FFFF));
    digits
}

/// Those of 32 bits, all at once: half a byte in each byte, and what makes a digit of it.
fn eight(number: u64) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut spread = (number | number << 16) & 0x0000_FFFF_0000_FFFF;
    spread = (spread | spread << 8) & 0x00FF_00FF_00FF_00FF;
    spread = (spread | spread << 4) & 0x0F0F_0F0F_0F0F_0F0F;
    let letters = (spread + 6 * ONES) >> 4 & ONES;
    let past_digits = u64::from(b'a' - 10 - b'0');
    (spread + u64::from(b'0') * ONES + letters * past_digits).to_be_bytes()
}

/// Seconds, to the microsecond: `1.000250`.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub Duration);

impl Seconds {
    pub fn put(self, to: &mut impl Sink) {
        let Self(span) = self;
        // Most wait for nothing.
        if span.is_zero() {
            return to.put(b"0.000000");
        }
        if let Ok(seconds @ 0..10) = u32::try_from(span.as_secs()) {
            // All in one number, whose first digit is a ten that is not said.
            let micros = seconds * 1_000_000 + span.subsec_micros();
            let [whole, rest @ ..] = digits::<7>(micros);
            to.put(&[whole, b'.']);
            to.put(&rest);
            return;
        }
        number(span.as_secs(), to);
        to.put(b".");
        to.put(&digits::<6>(span.subsec_micros()));
    }

    /// The same to the nearest microsecond as the shortest number of JSON: `1.00025`, `0.0`.
    pub fn put_json(self, to: &mut impl Sink) {
        let Self(span) = self;
        let (mut whole, mut micros) = (span.as_secs(), (span.subsec_nanos() + 500) / 1_000);
        if micros == 1_000_000 {
            (whole, micros) = (whole.saturating_add(1), 0);
        }
        if whole == 0 && (1..10).contains(&micros) {
            // As floats of that size are written.
            to.put(&digits::<1>(micros));
            to.put(b"e-6");
            return;
        }
        number(whole, to);
        to.put(b".");
        let digits = digits::<6>(micros);
        let zeros = digits[1..].iter().rev().take_while(|digit| **digit == b'0');
        to.put(&digits[..digits.len() - zeros.count()]);
    }
}

/// Milliseconds, to the microsecond: `1000.250`.
#[derive(Clone, Copy, Debug)]
pub struct Millis(pub Duration);

impl Millis {
    pub fn put(self, to: &mut impl Sink) {
        let Self(span) = self;
        if span.is_zero() {
            return to.put(b"0.000");
        }
        let millis = span.as_secs().saturating_mul(1_000);
        number(millis.saturating_add(span.subsec_millis().into()), to);
        to.put(b".");
        to.put(&digits::<3>(span.subsec_micros()));
    }
}

/// Text that a terminal obeys nothing in. Most needs no look at its single characters.
#[derive(Clone, Copy, Debug)]
pub struct Harmless<'a>(pub &'a [u8]);

impl Harmless<'_> {
    pub fn put(self, to: &mut Vec<u8>) {
        let plain =
            |byte: u8| byte.is_ascii_graphic() & (byte != b'"') & (byte != b'\'') & (byte != b'\\');
        match all(self.0, plain) {
            true => to.put(self.0),
            // Nothing can fail that only takes memory.
            false => drop(write!(to, "{}", text(self.0).escape_debug())),
        }
    }
}

/// A JSON string with its quotes. Most has nothing in it to be escaped.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a [u8]);

impl Quoted<'_> {
    pub fn put(self, to: &mut Vec<u8>) {
        let plain = |byte: u8| (byte >= b' ') & byte.is_ascii() & (byte != b'"') & (byte != b'\\');
        match all(self.0, plain) {
            true => {
                to.put(b"\"");
                to.put(self.0);
                to.put(b"\"");
            }
            // Nothing can fail that only takes memory.
            false => drop(serde_json::to_writer(to, &*text(self.0))),
        }
    }
}

/// What is no text is marked as that.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Whether `is` holds for every byte; to be fast it must not branch (`|`, not `||`). Sixteen are looked at
/// in one step, or eight, the last ones a second time: of texts this short most would be looked at one by
/// one otherwise.
#[inline(always)]
pub fn all(text: &[u8], is: impl Fn(u8) -> bool) -> bool {
    let is_not = |byte: u8| u8::from(!is(byte));
    let others = |chunk: &[u8; 16]| chunk.map(is_not);
    if let Some(last) = text.last_chunk::<16>() {
        let (chunks, _) = text.as_chunks::<16>();
        // Gathered byte by byte, and asked once at the end.
        let mut any = others(last);
        for chunk in chunks {
            for (any, other) in any.iter_mut().zip(others(chunk)) {
                *any |= other;
            }
        }
        u128::from_ne_bytes(any) == 0
    } else if let (Some(first), Some(last)) = (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        let mut both = [0; 16];
        both[..8].copy_from_slice(first);
        both[8..].copy_from_slice(last);
        u128::from_ne_bytes(others(&both)) == 0
    } else {
        text.iter().fold(0, |any, &byte| any | is_not(byte)) == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(put: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut text = Vec::new();
        put(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn every_digit_stands_where_it_should() {
        for (nanos, seconds, millis) in [
            (0, "0.000000", "0.000"),
            (999, "0.000000", "0.000"),
            (1_500_000, "0.001500", "1.500"),
            (61_000_020_999, "61.000020", "61000.020"),
        ] {
            let span = Duration::from_nanos(nanos);
            assert_eq!(written(|to| Seconds(span).put(to)), seconds);
            assert_eq!(written(|to| Millis(span).put(to)), millis);
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
            assert_eq!(
                written(|to| Harmless(text.as_bytes()).put(to)),
                text.escape_debug().to_string()
            );
        }
    }

    #[test]
    fn a_short_text_is_what_was_put() {
        let mut short = Short::<8>::new();
        short.put(b"of ");
        number(12_345u32, &mut short);
        assert_eq!(short.as_bytes(), b"of 12345");
    }

    #[test]
    fn texts_that_share_their_memory_stay_as_they_were() {
        let text = |number: usize| number.to_string().repeat(1 + number % 50);
        let kept: Vec<_> = (0..500).map(|at| shared(text(at).as_bytes())).collect();
        for (at, kept) in kept.iter().enumerate() {
            assert_eq!(kept, text(at).as_bytes());
        }
        let long = text(9).repeat(2 * SHARED);
        assert_eq!(shared(long.as_bytes()), long.as_bytes());
    }

    proptest! {
        #[test]
        fn every_byte_is_looked_at(text in proptest::collection::vec(b'a'..b'c', 0..50)) {
            let is = |byte| byte == b'a';
            prop_assert_eq!(all(&text, is), text.iter().all(|byte| is(*byte)));
            let one = vec![b'a'; text.len()];
            prop_assert!(all(&one, is));
            for at in 0..one.len() {
                let mut other = one.clone();
                other[at] = b'b';
                prop_assert!(!all(&other, is), "{}", at);
            }
        }

        #[test]
        fn a_whole_number_is_what_core_reads_without_a_sign(text in "[0-9]{0,21}|.{0,3}") {
            let core = text.parse().ok().filter(|_| !text.starts_with('+'));
            prop_assert_eq!(whole(text.as_bytes()), core);
        }

        #[test]
        fn digits_are_those_of_core(number: u64) {
            prop_assert_eq!(written(|to| to.put(&hex(number))), format!("{number:016x}"));
            let three = u32::try_from(number % 1_000).unwrap();
            prop_assert_eq!(written(|to| to.put(&digits::<3>(three))), format!("{three:03}"));
        }

        /// But about a half, where the float decides, and past months, where it is no longer so exact.
        #[test]
        fn seconds_are_those_of_serde(secs in 0..10_000_000u64, micros in 0..1_000_000u64, off in 0..490u64) {
            for secs in [0, secs % 100, secs] {
                for micros in [micros, micros % 100, micros / 1_000 * 1_000] {
                    let nanos = secs * 1_000_000_000 + micros * 1_000;
                    for nanos in [nanos, nanos + off, (nanos).saturating_sub(off)] {
                        let span = Duration::from_nanos(nanos);
                        let float = (span.as_secs_f64() * 1e6).round() / 1e6;
                        let json = serde_json::to_string(&float).unwrap();
                        prop_assert_eq!(written(|to| Seconds(span).put_json(to)), json);
                    }
                }
            }
        }

        #[test]
        fn strings_are_those_of_serde(text: String, plain in "[ -~]{0,40}") {
            for text in [text, plain] {
                let json = serde_json::to_string(&text).unwrap();
                prop_assert_eq!(written(|to| Quoted(text.as_bytes()).put(to)), json);
            }
        }
    }
}
