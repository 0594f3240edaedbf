//! What a simulated handler does with a job: read from the job's own input.
//!
//! | key | meaning |
//! | --- | --- |
//! | `sleep` | seconds of work before anything else |
//! | `n`, `gap` | then n chunks, `gap` seconds apart; chunk k is the number k, from 0 |
//! | `fail` | text: FAILED with it at the end |
//! | `bytes` | the output is a string of so many bytes, instead of the input |
//! | `progress` | any JSON: the `output` that is shown while the job runs |
//! | `lost` | the worker is lost this many times, each time after `sleep` seconds |
//!
//! Anything else, and a key of another type, is ignored: it is the caller's data.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// JSON as it was written.
pub type Json = Arc<RawValue>;

/// One job's work.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub sleep: Duration,
    pub chunks: u32,
    pub gap: Duration,
    pub fail: Option<Arc<str>>,
    /// The length of a made-up output.
    pub bytes: Option<usize>,
    pub progress: Option<Json>,
    pub lost: u32,
}

impl Script {
    /// The most chunks of one job: a stream's reply names them all at once.
    pub const MOST_CHUNKS: u32 = 100_000;

    /// What `input` asks for; nothing, if it is no object.
    pub fn read(input: &RawValue) -> Self {
        // A struct can be read from an array too, by position: that is not meant.
        let is_object = input.get().starts_with('{');
        let wish = is_object.then(|| serde_json::from_str(input.get()));
        let wish: Wish = wish.and_then(Result::ok).unwrap_or_default();
        Self {
            sleep: span(wish.sleep),
            chunks: wish.n.unwrap_or(0).min(Self::MOST_CHUNKS),
            gap: span(wish.gap),
            fail: wish.fail.map(Arc::from),
            bytes: wish.bytes,
            progress: wish.progress.map(Arc::from),
            lost: wish.lost.unwrap_or(0),
        }
    }

    /// How long the whole of it takes.
    pub fn duration(&self) -> Duration {
        self.sleep + self.gap * self.chunks.saturating_sub(1)
    }

    /// Chunks yielded when it has run for `elapsed`.
    pub fn yielded(&self, elapsed: Duration) -> u32 {
        match elapsed.checked_sub(self.sleep) {
            None => 0,
            Some(_) if self.gap.is_zero() => self.chunks,
            Some(since) => {
                let gaps = since.as_nanos() / self.gap.as_nanos();
                let yielded = u32::try_from(gaps + 1).unwrap_or(u32::MAX);
                yielded.min(self.chunks)
            }
        }
    }

    /// When, after its start, the next thing happens, `yielded` chunks being out.
    pub fn next_step(&self, yielded: u32) -> Duration {
        if yielded < self.chunks {
            self.sleep + self.gap * yielded
        } else {
            self.duration()
        }
    }
}

#[derive(Default, Deserialize)]
struct Wish {
    #[serde(default, deserialize_with = "lenient")]
    sleep: Option<f64>,
    #[serde(default, deserialize_with = "lenient")]
    fail: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    n: Option<u32>,
    #[serde(default, deserialize_with = "lenient")]
    gap: Option<f64>,
    #[serde(default, deserialize_with = "lenient")]
    bytes: Option<usize>,
    #[serde(default)]
    progress: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "lenient")]
    lost: Option<u32>,
}

/// `None` where the value is of another type.
fn lenient<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    let raw = <Box<RawValue>>::deserialize(deserializer)?;
    Ok(serde_json::from_str(raw.get()).ok())
}

/// Seconds as a span of at most a week, the longest a job can live (contract, section 1.2).
fn span(seconds: Option<f64>) -> Duration {
    const WEEK: f64 = 7.0 * 86_400.0;
    let seconds = seconds.filter(|s| s.is_finite()).unwrap_or(0.0);
    Duration::from_secs_f64(seconds.clamp(0.0, WEEK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(input: &str) -> Script {
        Script::read(&RawValue::from_string(input.to_owned()).unwrap())
    }

    #[test]
    fn chunks_come_a_gap_apart_after_the_sleep() {
        let script = script(r#"{"sleep": 1, "n": 3, "gap": 0.5}"#);
        let ms = Duration::from_millis;
        assert_eq!(script.duration(), ms(2_000));
        let yielded = [999, 1_000, 1_499, 1_500, 1_999, 2_000, 9_000];
        assert_eq!(
            yielded.map(|at| script.yielded(ms(at))),
            [0, 1, 1, 2, 2, 3, 3]
        );
        assert_eq!(
            [0, 1, 2, 3].map(|n| script.next_step(n)),
            [1_000, 1_500, 2_000, 2_000].map(ms)
        );
    }

    #[test]
    fn without_a_gap_all_chunks_come_at_once() {
        let script = script(r#"{"n": 4}"#);
        assert_eq!(script.yielded(Duration::ZERO), 4);
        assert_eq!(script.duration(), Duration::ZERO);
    }

    #[test]
    fn foreign_data_asks_for_nothing() {
        for input in [
            "null",
            "[1]",
            r#""text""#,
            r#"{"sleep": "long", "n": -1, "gap": {}, "fail": 3}"#,
            r#"{"sleep": -5}"#,
        ] {
            let script = script(input);
            assert_eq!(script.duration(), Duration::ZERO, "{input}");
            assert!(script.fail.is_none());
            assert_eq!(script.chunks, 0);
        }
        assert_eq!(
            script(r#"{"n": "x", "fail": "boom"}"#).fail.as_deref(),
            Some("boom")
        );
    }
}
