//! Policers by name: `sliding-log`, `token-bucket:depth=250,refill=1000`, `fixed-window:phase=3s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::policer::Policer;

/// Why a policer's name was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPolicer {
    given: String,
    problem: &'static str,
}

impl fmt::Display for UnknownPolicer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "policer `{}`: {}; known are {}; fixed-window and weighted-counter take \
             `:phase=3s`, token-bucket takes `:depth=250,refill=1000`",
            self.given,
            self.problem,
            Policer::NAMES.join(", ")
        )
    }
}

impl std::error::Error for UnknownPolicer {}

impl FromStr for Policer {
    type Err = UnknownPolicer;

    /// A name, or a name with settings: `token-bucket:depth=250,refill=1000`, `fixed-window:phase=3s`.
    fn from_str(given: &str) -> Result<Self, UnknownPolicer> {
        let fault = |problem| UnknownPolicer {
            given: given.to_owned(),
            problem,
        };
        let (name, settings) = given.split_once(':').unwrap_or((given, ""));
        let mut phase = None;
        let mut depth = None;
        let mut refill = None;
        for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
            let (key, value) = setting
                .split_once('=')
                .ok_or_else(|| fault("a setting is written `key=value`"))?;
            match key {
                "phase" => {
                    let span = parse_span(value);
                    phase = Some(span.ok_or_else(|| fault("`phase` is like 3s or 250ms"))?);
                }
                "depth" => depth = Some(parse_tokens(value).ok_or_else(|| fault(TOKENS))?),
                "refill" => refill = Some(parse_tokens(value).ok_or_else(|| fault(TOKENS))?),
                _ => return Err(fault("an unknown setting")),
            }
        }
        let policer = match name {
            "sliding-log" => Policer::SlidingLog,
            "closed-window" => Policer::ClosedWindow,
            "fixed-window" => Policer::FixedWindow {
                phase: phase.take().unwrap_or_default(),
            },
            "token-bucket" => Policer::TokenBucket {
                depth: depth.take().unwrap_or_default(),
                refill: refill.take().unwrap_or_default(),
            },
            "weighted-counter" => Policer::WeightedCounter {
                phase: phase.take().unwrap_or_default(),
            },
            "none" => Policer::None,
            _ => return Err(fault("no such name")),
        };
        if phase.is_some() || depth.is_some() || refill.is_some() {
            return Err(fault("a setting of another policer"));
        }
        Ok(policer)
    }
}

const TOKENS: &str = "tokens are a whole number above zero";

fn parse_tokens(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&tokens| tokens > 0)
}

/// `3s`, `250ms`, `5m`; whole numbers.
pub(super) fn parse_span(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let amount: u64 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "ms" => Some(Duration::from_millis(amount)),
        "s" => Some(Duration::from_secs(amount)),
        "m" => amount.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_with_their_settings() {
        for name in Policer::NAMES {
            assert!(name.parse::<Policer>().is_ok(), "{name}");
        }
        assert_eq!(
            "token-bucket:depth=250,refill=1000".parse(),
            Ok(Policer::TokenBucket {
                depth: 250,
                refill: 1000
            })
        );
        assert_eq!(
            "fixed-window:phase=3s".parse(),
            Ok(Policer::FixedWindow {
                phase: Duration::from_secs(3)
            })
        );
        for wrong in [
            "",
            "leaky",
            "sliding-log:phase=3s",
            "fixed-window:phase=3",
            "token-bucket:depth=0",
            "token-bucket:depth",
            "none:depth=1",
        ] {
            let fault = wrong.parse::<Policer>().unwrap_err().to_string();
            assert!(fault.contains("weighted-counter"), "{fault}");
        }
    }
}
