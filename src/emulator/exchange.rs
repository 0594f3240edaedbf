//! A request's way: who asks, what strikes it, the door, the operation, the answer.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Request, StatusCode};
use hyper::body::{Body, Incoming};
use tokio::task::JoinHandle;

use super::answer::{Answer, Reply, Reset, Trouble};
use super::control;
use super::door::Counts;
use super::faults::{Faults, Plan, Stall};
use super::operations::{self, Begun};
use super::routes::{self, NoRoute, Operation};
use super::shared::{Endpoint, Permit, Shared};
use super::upload::{BodyFault, read};
use super::witness::Refusal;

type Response = http::Response<Reply<Option<Permit>>>;

/// Where a request goes, once its head is read.
enum Way {
    /// To the emulator's own routes.
    Control(Request<Incoming>),
    /// Nowhere: it is read to its end, so that its client can read the answer.
    Away(Answer, Incoming),
    /// Nowhere, and without an answer.
    Refused,
    /// Through the door.
    Door {
        endpoint: Arc<Endpoint>,
        strike: Option<Arc<Faults>>,
        arriving: Arriving,
    },
}

enum Arriving {
    Arrived(Arrival),
    OnItsWay(JoinHandle<Arrival>),
}

/// A request that has come through the door, or not.
struct Arrival {
    permit: Option<Permit>,
    begun: Begun,
}

/// What is on its way arrives, and what has arrived is done, whether or not its client is still there.
/// So the way is taken here and now, before there is a future that could be dropped unpolled, and what
/// cannot be done now is a task of its own.
pub(super) fn exchange(
    shared: Arc<Shared>,
    reset: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response, Reset>> {
    let way = way(&shared, request);
    async move {
        match way {
            Way::Control(request) => {
                let answer = control::answer(&shared, request).await;
                Ok(answer.response(None, None))
            }
            Way::Away(answer, body) => {
                // Whatever it was, it is not wanted.
                let _ = read(body, 0).await;
                Ok(answer.response(None, None))
            }
            Way::Refused => Err(hard(&reset)),
            Way::Door {
                endpoint,
                strike,
                arriving,
            } => {
                let arrival = arriving.arrived().await;
                let answer = operations::finish(&shared, &endpoint, arrival.begun).await;
                match strike {
                    None => Ok(answer.response(arrival.permit, None)),
                    Some(strike) => strike_answer(&strike, answer, arrival.permit, reset).await,
                }
            }
        }
    }
}

fn way(shared: &Arc<Shared>, request: Request<Incoming>) -> Way {
    if request.uri().path().starts_with(control::PREFIX) {
        return Way::Control(request);
    }
    let (parts, body) = request.into_parts();
    let (endpoint, operation) = match admit(shared, &parts) {
        Ok(admitted) => admitted,
        Err(answer) => return Way::Away(answer, body),
    };
    let plan = shared.faults.plan(&endpoint.name, operation.group());
    let strike = plan.strike.clone();
    if strike.as_ref().is_some_and(|strike| strike.refuse) {
        return Way::Refused;
    }
    let arriving = if strike.is_none() && body.is_end_stream() {
        let entered = shared.enter(&endpoint, operation.group(), &plan);
        Arriving::Arrived(act(
            shared,
            &endpoint,
            operation,
            entered,
            Ok(Bytes::new()),
            None,
        ))
    } else {
        let (shared, endpoint) = (Arc::clone(shared), Arc::clone(&endpoint));
        Arriving::OnItsWay(tokio::spawn(arrive(
            shared, endpoint, operation, plan, body,
        )))
    };
    Way::Door {
        endpoint,
        strike,
        arriving,
    }
}

/// Who may ask, and for what. Nothing is counted for anybody else.
fn admit(shared: &Shared, parts: &Parts) -> Result<(Arc<Endpoint>, Operation), Answer> {
    let not_found = |what| Answer::problem(StatusCode::NOT_FOUND, what);
    let (name, operation) = routes::route(&parts.method, parts.uri.path(), parts.uri.query())
        .map_err(|none| match none {
            NoRoute::Path => not_found("no such path"),
            NoRoute::Method(allowed) => {
                let status = StatusCode::METHOD_NOT_ALLOWED;
                Answer::problem(status, "no such method here").allow(allowed)
            }
        })?;
    if !authorized(shared, parts) {
        // Its body is unknown: of the same family as the others. 402 and 403 are reported of other hosts
        // and of the edge, not of this API: they come on request only.
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
    let (scheme, rest) = given.split_once(' ').unwrap_or((given, ""));
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    let key = if is_bearer { rest } else { given }.trim();
    let keys = &shared.config.keys;
    !key.is_empty() && (keys.is_empty() || keys.contains(key))
}

impl Arriving {
    async fn arrived(self) -> Arrival {
        match self {
            Arriving::Arrived(arrival) => arrival,
            Arriving::OnItsWay(task) => task.await.unwrap_or_else(|_panicked| Arrival {
                permit: None,
                begun: Begun::Done(internal()),
            }),
        }
    }
}

/// Transit, door and body, and then the operation.
async fn arrive(
    shared: Arc<Shared>,
    endpoint: Arc<Endpoint>,
    operation: Operation,
    plan: Plan,
    body: Incoming,
) -> Arrival {
    let enter = async {
        if !plan.latency.is_zero() {
            tokio::time::sleep(plan.latency).await;
        }
        shared.enter(&endpoint, operation.group(), &plan)
    };
    let read = read(body, operation.body_limit());
    let (entered, body) = if plan.counts == Counts::BodyEnd {
        let body = read.await;
        (enter.await, body)
    } else {
        tokio::join!(enter, read)
    };
    let strike = plan.strike.as_deref();
    act(&shared, &endpoint, operation, entered, body, strike)
}

/// Begins what was let in.
fn act(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    operation: Operation,
    entered: Result<Permit, Refusal>,
    body: Result<Bytes, BodyFault>,
    strike: Option<&Faults>,
) -> Arrival {
    let permit = match entered {
        Ok(permit) => permit,
        Err(why) => {
            let begun = Begun::Done(refusal(why, strike));
            return Arrival {
                permit: None,
                begun,
            };
        }
    };
    let begun = match (strike.and_then(injected), body) {
        (Some(answer), _) => Begun::Done(answer),
        (None, Err(fault)) => Begun::Done(fault.answer()),
        (None, Ok(body)) => operations::begin(shared, endpoint, operation, &body),
    };
    Arrival {
        permit: Some(permit),
        begun,
    }
}

fn hard(reset: &AtomicBool) -> Reset {
    reset.store(true, Ordering::Relaxed);
    Reset
}

/// What becomes of the answer.
async fn strike_answer(
    strike: &Faults,
    answer: Answer,
    permit: Option<Permit>,
    reset: Arc<AtomicBool>,
) -> Result<Response, Reset> {
    if strike.reset_before_head {
        return Err(hard(&reset));
    }
    if strike.stall == Stall::Head {
        std::future::pending::<()>().await;
    }
    Ok(answer.response(permit, trouble(strike, reset)))
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
