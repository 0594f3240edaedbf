//! The emulator's own routes, under `/__emulator/`: no key, no limit, no faults.

use std::sync::Arc;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;

use super::answer::Answer;
use super::faults::Faults;
use super::operations;
use super::shared::Shared;
use super::upload::read;

pub(super) const PREFIX: &str = "/__emulator/";

pub(super) async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Answer {
    const MOST: usize = 64 << 10;
    let (parts, body) = request.into_parts();
    let name = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let Ok(body) = read(body, MOST).await else {
        return operations::bad_request("body: too large or incomplete");
    };
    match (name, &parts.method) {
        ("stats", &Method::GET) => Answer::json(&shared.stats()),
        ("reset", &Method::POST) => {
            shared.reset();
            Answer::json(&shared.stats())
        }
        ("faults", &Method::POST) => match Faults::parse(&body) {
            Ok(faults) => {
                shared.set_faults(faults);
                Answer::json(&serde_json::json!({ "status": "set" }))
            }
            Err(fault) => operations::bad_request(&fault),
        },
        ("stats", _) => wrong_method("GET"),
        ("reset" | "faults", _) => wrong_method("POST"),
        _ => Answer::problem(StatusCode::NOT_FOUND, "no such path"),
    }
}

fn wrong_method(allowed: &'static str) -> Answer {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Answer::problem(status, "no such method here").allow(allowed)
}
