//! A request's way: who asks, what strikes it, the door, the operation, the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::answer::{Answer, Reply, Reset, Trouble};
use super::control;
use super::door::Counts;
use super::faults::{Faults, Plan, Stall};
use super::operations::{self, Begun};
use super::routes::{self, NoRoute, Operation};
use super::shared::{Endpoint, Permit, Shared};
use super::upload::read;
use super::witness::Refusal;

type Exchange = Result<Response<Reply<Option<Permit>>>, Reset>;

pub(super) async fn exchange(
    shared: Arc<Shared>,
    reset: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> Exchange {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if let Some(name) = path.strip_prefix("/__emulator/") {
        let answer = control::answer(&shared, &parts.method, name, body).await;
        return Ok(answer.response(None, None));
    }
    let (endpoint, operation) = match admit(&shared, &parts) {
        Ok(admitted) => admitted,
        Err(answer) => {
            // Read to its end, so that the client can read the answer.
            let _ = read(body, 0).await;
            return Ok(answer.response(None, None));
        }
    };
    let plan = shared.faults.plan(&endpoint.name, operation.group());
    if plan.strike.is_none() {
        return Ok(plain(&shared, &endpoint, operation, &parts, body, &plan).await);
    }
    stricken(&shared, endpoint, &parts, body, plan, reset).await
}

/// Who may ask, and for what. Nothing is counted for anybody else.
fn admit<'a>(shared: &Shared, parts: &'a Parts) -> Result<(Arc<Endpoint>, Operation<'a>), Answer> {
    let not_found = |what| Answer::problem(StatusCode::NOT_FOUND, what);
    let (name, operation) =
        routes::route(&parts.method, parts.uri.path()).map_err(|none| match none {
            NoRoute::Path => not_found("no such path"),
            NoRoute::Method(allowed) => {
                let status = StatusCode::METHOD_NOT_ALLOWED;
                Answer::problem(status, "no such method here").allow(allowed)
            }
        })?;
    if !authorized(shared, parts) {
        let detail = "a valid API key is required";
        return Err(Answer::problem(StatusCode::UNAUTHORIZED, detail));
    }
    let endpoint = shared.endpoint(name);
    let endpoint = endpoint.ok_or_else(|| not_found("endpoint not found"))?;
    Ok((endpoint, operation))
}

/// `Bearer KEY`, or the bare key (contract, section 1.1). All keys are one account's: two keys of one
/// share its limits, and nobody else's are emulated.
fn authorized(shared: &Shared, parts: &Parts) -> bool {
    let Some(given) = parts
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let key = match given.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key,
        _ => given,
    }
    .trim();
    let keys = &shared.config.keys;
    !key.is_empty() && (keys.is_empty() || keys.contains(key))
}

/// The way of a request that nothing strikes.
async fn plain(
    shared: &Arc<Shared>,
    endpoint: &Arc<Endpoint>,
    operation: Operation<'_>,
    parts: &Parts,
    body: Incoming,
    plan: &Plan,
) -> Response<Reply<Option<Permit>>> {
    let enter = || shared.enter(endpoint, operation.group(), plan);
    let (entered, body) = if plan.counts == Counts::BodyEnd {
        let body = read(body, operation.body_limit()).await;
        (enter(), body)
    } else {
        let entered = enter();
        (entered, read(body, operation.body_limit()).await)
    };
    let permit = match entered {
        Ok(permit) => permit,
        Err(why) => return refusal(why, None).response(None, None),
    };
    let answer = match body {
        Ok(body) => {
            let query = parts.uri.query();
            let begun = operations::begin(shared, endpoint, operation, query, &body);
            operations::finish(shared, endpoint, begun).await
        }
        Err(fault) => fault.answer(),
    };
    answer.response(Some(permit), None)
}

/// The way of a request that something strikes.
///
/// A request on its way arrives whether or not its client is still there: the transit, the arrival and
/// the operation's beginning are a task of their own.
async fn stricken(
    shared: &Arc<Shared>,
    endpoint: Arc<Endpoint>,
    parts: &Parts,
    body: Incoming,
    plan: Plan,
    reset: Arc<AtomicBool>,
) -> Exchange {
    let strike = plan.strike.clone().unwrap_or_default();
    if strike.refuse {
        return Err(hard(&reset));
    }
    let Ok((_, operation)) = routes::route(&parts.method, parts.uri.path()) else {
        return Err(hard(&reset));
    };
    let limit = operation.body_limit();
    let counts = plan.counts;
    let uri = parts.uri.clone();
    let method = parts.method.clone();
    let enter = {
        let (shared, endpoint) = (Arc::clone(shared), Arc::clone(&endpoint));
        let group = operation.group();
        async move {
            tokio::time::sleep(plan.latency).await;
            shared.enter(&endpoint, group, &plan)
        }
    };
    let (entering, body) = if counts == Counts::BodyEnd {
        let body = read(body, limit).await;
        (tokio::spawn(enter), body)
    } else {
        let entering = tokio::spawn(enter);
        (entering, read(body, limit).await)
    };
    let beginning = {
        let (shared, endpoint) = (Arc::clone(shared), Arc::clone(&endpoint));
        let strike = Arc::clone(&strike);
        tokio::spawn(async move {
            let permit = match entering.await {
                Ok(Ok(permit)) => permit,
                Ok(Err(why)) => return (None, Begun::Done(refusal(why, Some(&strike)))),
                Err(_panicked) => return (None, Begun::Done(internal())),
            };
            let begun = match (injected(&strike), body) {
                (Some(answer), _) => Begun::Done(answer),
                (None, Err(fault)) => Begun::Done(fault.answer()),
                (None, Ok(body)) => match routes::route(&method, uri.path()) {
                    Ok((_, op)) => operations::begin(&shared, &endpoint, op, uri.query(), &body),
                    Err(_) => Begun::Done(internal()),
                },
            };
            (Some(permit), begun)
        })
    };
    let (permit, begun) = beginning
        .await
        .unwrap_or_else(|_panicked| (None, Begun::Done(internal())));
    let answer = operations::finish(shared, &endpoint, begun).await;
    if strike.reset_before_head {
        return Err(hard(&reset));
    }
    if strike.stall == Stall::Head {
        std::future::pending::<()>().await;
    }
    Ok(answer.response(permit, trouble(&strike, reset)))
}

fn hard(reset: &AtomicBool) -> Reset {
    reset.store(true, Ordering::Relaxed);
    Reset
}

fn trouble(strike: &Faults, reset: Arc<AtomicBool>) -> Option<Trouble> {
    if strike.reset_mid_body {
        Some(Trouble::reset(reset))
    } else if strike.stall == Stall::Body {
        Some(Trouble::stall())
    } else {
        (strike.wrong_length > 0).then_some(Trouble::short(strike.wrong_length))
    }
}

fn injected(strike: &Faults) -> Option<Answer> {
    let status = StatusCode::from_u16(strike.status?).ok()?;
    let answer = Answer::problem(status, "on request");
    Some(answer.retry_after(strike.retry_after_value()))
}

/// The body of a 429 and whether it differs by cause are unknown: here it is of the same family as the
/// other problems and does not; no `Retry-After` (contract, section 1.13).
fn refusal(_why: Refusal, strike: Option<&Faults>) -> Answer {
    let answer = Answer::problem(StatusCode::TOO_MANY_REQUESTS, "rate limit exceeded");
    answer.retry_after(strike.and_then(Faults::retry_after_value))
}

fn internal() -> Answer {
    Answer::problem(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
}
