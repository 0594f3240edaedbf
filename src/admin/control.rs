//! What an operator may do: read the configuration again, and say how much is logged.

use http::{Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::json;

use crate::admin::page::Body;
use crate::admin::{Admin, json_page, text};
use crate::config::process::LogLevel;

/// The longest body a command comes with, in bytes.
const LONGEST: usize = 64;

/// One thing that can be done, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Reload,
    LogLevel,
}

impl Command {
    /// What is done by posting to `path`.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/reload" => Some(Command::Reload),
            "/log-level" => Some(Command::LogLevel),
            _ => None,
        }
    }

    /// Does it, and says what came of it.
    pub async fn run(self, admin: &Admin, body: Incoming) -> Response<Body> {
        match self {
            Command::Reload => reload(admin).await,
            Command::LogLevel => log_level(admin, body).await,
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
