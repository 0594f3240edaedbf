//! The street side: connections in, requests through the door, answers out.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::answer::{Answer, Reply, Reset, Trouble};
use super::door::Counts;
use super::faults::{Faults, Plan, Stall};
use super::operations::{self, Begun};
use super::routes::{self, NoRoute, Operation};
use super::shared::{Endpoint, Permit, Shared};
use super::socket::Socket;
use super::witness::Refusal;

type Exchange = Result<Response<Reply<Option<Permit>>>, Reset>;

/// Serves until `shutdown`, then drops what is open.
pub(super) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = pin!(shutdown);
    let mut tasks = JoinSet::new();
    tasks.spawn(drive(Arc::clone(&shared)));
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => return,
            Some(_ended) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tasks.spawn(connection(Arc::clone(&shared), stream));
                }
                Err(fault) => rest(&fault).await,
            },
        }
    }
}

/// Out of descriptors: some come back when connections end. Anything else was one client's.
async fn rest(fault: &io::Error) {
    if fault.kind() != io::ErrorKind::ConnectionAborted {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Lets time pass for the jobs. Every `serve` of an emulator has one of these, and one at a time is at
/// it: when its runtime ends, the next takes over.
async fn drive(shared: Arc<Shared>) {
    let _turn = shared.driver.lock().await;
    loop {
        let next = shared.drive();
        let earlier = shared.earlier.notified();
        match next {
            Some(next) => tokio::select! {
                () = earlier => {}
                () = tokio::time::sleep_until(shared.clock.instant(next)) => {}
            },
            None => earlier.await,
        }
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    // Only a matter of speed.
    let _ = stream.set_nodelay(true);
    let reset = Arc::new(AtomicBool::new(false));
    let socket = TokioIo::new(Socket::new(stream, Arc::clone(&reset)));
    let service = service_fn(|request| exchange(Arc::clone(&shared), Arc::clone(&reset), request));
    // A client's fault or a reset on request: nothing to tell anybody.
    let _ = http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(socket, service)
        .await;
}

async fn exchange(
    shared: Arc<Shared>,
    reset: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> Exchange {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if let Some(name) = path.strip_prefix("/__emulator/") {
        let answer = control(&shared, &parts.method, name, body).await;
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

enum BodyFault {
    /// Above so many bytes.
    TooLarge(usize),
    /// Its framing was broken, or its sender went away.
    Broken,
}

impl BodyFault {
    /// The service's own words, 400 and not 413 (contract, section 1.2).
    fn answer(self) -> Answer {
        match self {
            BodyFault::TooLarge(limit) => operations::bad_request(&format!(
                "body: exceeded max body size of {}MiB",
                limit >> 20
            )),
            BodyFault::Broken => operations::bad_request("body: incomplete"),
        }
    }
}

/// Reads a body of at most `limit` bytes. A larger one is read on and thrown away, within bounds,
/// because a client that is cut off may not read its answer (contract, section 5.5).
async fn read(mut body: Incoming, limit: usize) -> Result<Bytes, BodyFault> {
    const MOST_DRAINED: usize = 64 << 20;
    const LONGEST_DRAIN: Duration = Duration::from_secs(20);
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    if body.size_hint().lower() <= most {
        match gather(&mut body, limit).await {
            Err(BodyFault::TooLarge(_)) => {}
            read_or_broken => return read_or_broken,
        }
    }
    let drain = async {
        let mut drained = 0_usize;
        while let Some(Ok(frame)) = body.frame().await
            && drained <= MOST_DRAINED
        {
            drained += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    let _ = tokio::time::timeout(LONGEST_DRAIN, drain).await;
    Err(BodyFault::TooLarge(limit))
}

async fn gather(body: &mut Incoming, limit: usize) -> Result<Bytes, BodyFault> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyFault::Broken)?.into_data() else {
            continue;
        };
        if first.len() + rest.len() + data.len() > limit {
            return Err(BodyFault::TooLarge(limit));
        }
        if first.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}

/// The emulator's own routes: no key, no limit, no faults.
async fn control(shared: &Arc<Shared>, method: &Method, name: &str, body: Incoming) -> Answer {
    const MOST: usize = 64 << 10;
    let Ok(body) = read(body, MOST).await else {
        return operations::bad_request("body: too large or incomplete");
    };
    match (name, method) {
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
