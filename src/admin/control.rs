//! What an operator may do: read the configuration again, say how much is logged, and hold lanes.

use std::time::Duration;

use http::{Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::json;

use crate::admin::page::Body;
use crate::admin::{Admin, json_page, text};
use crate::admission::Listed;
use crate::config::process::LogLevel;
use crate::config::units;
use crate::operation::Group;

/// The longest body a command comes with, in bytes.
const LONGEST: usize = 64;
/// How long a lane is held unless that is said.
const HOLD: Duration = Duration::from_secs(600);
/// The longest: whoever forgets it is not stopped for ever.
const LONGEST_HOLD: Duration = Duration::from_secs(86_400);

/// One thing that can be done, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Reload,
    LogLevel,
    Pause,
    Resume,
}

impl Command {
    /// What is done by posting to `path`.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/reload" => Some(Command::Reload),
            "/log-level" => Some(Command::LogLevel),
            "/pause" => Some(Command::Pause),
            "/resume" => Some(Command::Resume),
            _ => None,
        }
    }

    /// Does it, and says what came of it.
    pub async fn run(self, admin: &Admin, query: &str, body: Incoming) -> Response<Body> {
        match self {
            Command::Reload => reload(admin).await,
            Command::LogLevel => log_level(admin, body).await,
            Command::Pause => lanes(admin, query, true),
            Command::Resume => lanes(admin, query, false),
        }
    }
}

async fn reload(admin: &Admin) -> Response<Body> {
    match admin.reloads.ask().await {
        Ok(taken) => json_page(&json!({ "need_restart": taken.need_restart })),
        // What is in effect is in conflict with what was asked for.
        Err(why) => text(StatusCode::CONFLICT, format!("{why}\n")),
    }
}

async fn log_level(admin: &Admin, body: Incoming) -> Response<Body> {
    let read = Limited::new(body, LONGEST).collect().await;
    let word = read.map(|read| read.to_bytes()).unwrap_or_default();
    let word = String::from_utf8_lossy(&word).trim().to_ascii_lowercase();
    let level = LogLevel::WORDS.iter().find(|(known, _)| *known == word);
    let Some((word, level)) = level else {
        let words = LogLevel::WORDS.map(|(word, _)| word).join(", ");
        let why = format!("the body is to be one of {words}\n");
        return text(StatusCode::BAD_REQUEST, why);
    };
    // Before it is: it may silence itself.
    tracing::warn!("the log level is set to {word}");
    admin.levels.set(*level);
    text(StatusCode::OK, format!("{word}\n"))
}

/// Which lanes, and for how long.
#[derive(Debug, PartialEq, Eq)]
struct Which<'a> {
    endpoint: Option<&'a str>,
    group: Option<Group>,
    span: Duration,
}

impl<'a> Which<'a> {
    /// Of `endpoint=E&group=G&for=10m`.
    ///
    /// # Errors
    /// What is wrong with it.
    fn parse(query: &'a str) -> Result<Self, String> {
        let mut which = Which {
            endpoint: None,
            group: None,
            span: HOLD,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("endpoint", endpoint)) => which.endpoint = Some(endpoint),
                Some(("group", name)) => {
                    let known = Group::ALL.into_iter().find(|group| group.name() == name);
                    let names = || Group::ALL.map(Group::name).join(", ");
                    let group = known.ok_or_else(|| format!("`group` is one of {}", names()));
                    which.group = Some(group?);
                }
                Some(("for", span)) => {
                    let read = units::duration(span).ok();
                    let within = read.filter(|span| !span.is_zero() && *span <= LONGEST_HOLD);
                    which.span =
                        within.ok_or("`for` is a duration such as 10m, of a day at most")?;
                }
                _ => return Err(format!("`{pair}` is not understood")),
            }
        }
        match (which.endpoint, which.group) {
            (None, None) => Err("say which: `endpoint=ID`, `group=NAME` or both".into()),
            _ => Ok(which),
        }
    }

    fn is_meant(&self, lane: &Listed) -> bool {
        let endpoint = self
            .endpoint
            .is_none_or(|id| lane.endpoint.as_deref() == Some(id));
        endpoint && self.group.is_none_or(|group| lane.lane.group() == group)
    }
}

/// Holds lanes, or lets them go again.
fn lanes(admin: &Admin, query: &str, hold: bool) -> Response<Body> {
    let which = match Which::parse(query) {
        Ok(which) => which,
        Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    let mut lanes = admin.admission.list();
    lanes.retain(|lane| which.is_meant(lane));
    if lanes.is_empty() {
        let why = "there is no such lane: one begins with its first request\n";
        return text(StatusCode::NOT_FOUND, why);
    }
    lanes.retain(|listed| match hold {
        true => listed.lane.hold(which.span),
        false => listed.lane.release(),
    });
    let name = |listed: &Listed| {
        let endpoint = listed.endpoint.as_deref().unwrap_or("*");
        format!("{endpoint} {}", listed.lane.group().name())
    };
    let mut names: Vec<_> = lanes.iter().map(name).collect();
    names.sort_unstable();
    let (did, span) = match hold {
        true => ("paused", Some(units::show_duration(which.span))),
        false => ("resumed", None),
    };
    tracing::warn!(
        lanes = names.join(", "),
        span,
        "an operator has {did} lanes"
    );
    json_page(&json!({ did: names, "for": span }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_named_by_endpoint_or_group_or_both() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        for (query, endpoint, group, span) in [
            ("endpoint=ep", Some("ep"), None, minutes(10)),
            ("group=status&for=5m", None, Some(Group::Status), minutes(5)),
            (
                "for=1m&endpoint=a&group=run",
                Some("a"),
                Some(Group::Run),
                minutes(1),
            ),
        ] {
            let which = Which {
                endpoint,
                group,
                span,
            };
            assert_eq!(Which::parse(query), Ok(which), "{query}");
        }
        for query in [
            "",
            "for=5m",
            "group=nothing",
            "endpoint=ep&for=0s",
            "endpoint=ep&for=25h",
            "endpoint=ep&for=ever",
            "endpoint",
            "endpoint=ep&x=y",
        ] {
            assert!(Which::parse(query).is_err(), "{query}");
        }
    }
}
