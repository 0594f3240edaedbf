//! A request's way, one file a stage. [`Gateway::forward`] is the page.

pub mod presence;
pub mod classify;
pub mod authorize;
pub mod patience;
pub mod payload;
pub mod fields;
pub mod tls;
pub mod dial;
pub mod proxy;
pub mod wire;
pub mod connect;
pub mod ahead;
pub mod body;
pub mod pool;
pub mod upstream;
pub mod feedback;
pub mod answer;
pub mod stack;

use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, Uri, request};
use hyper::body::Incoming;

use crate::admission::lane::Ask;
use crate::admission::{Account, Admission};
use crate::config::Config;
use crate::config::policy::GroupVerdict;
use crate::config::secret::Secret;
use crate::gateway::ahead::Ahead;
use crate::gateway::answer::Rejection;
use crate::gateway::authorize::Accepted;
use crate::gateway::body::{Answer, Outgoing};
use crate::gateway::classify::Classified;
use crate::gateway::connect::SetupError;
use crate::gateway::feedback::Judged;
use crate::gateway::payload::{Budget, Payload, Terms};
use crate::gateway::presence::Caller;
use crate::gateway::upstream::Upstream;
use crate::limit::ledger::Call;
use crate::limit::quota::Mode;
use crate::metrics::{EndpointMetrics, Metrics};
use crate::operation::{Group, Operation};
use crate::outcome::Outcome;

/// What all workers share.
pub struct Shared {
    pub config: Config,
    pub admission: Admission,
    pub metrics: Metrics,
    accepted: Accepted,
    budget: Budget,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
}

/// A secret or a host that no header field can carry.
#[derive(Debug, thiserror::Error)]
#[error("{0} cannot stand in a header field")]
pub struct NoField(&'static str);

impl Shared {
    /// `key`: put into every request in the place of what the client sent.
    ///
    /// # Errors
    /// [`NoField`]: as it says.
    pub fn new(config: Config, key: Option<&Secret>, metrics: Metrics) -> Result<Self, NoField> {
        let host = HeaderValue::try_from(config.upstream.target.authority())
            .map_err(|_| NoField("the upstream's host"))?;
        let field = |key: &Secret| {
            let mut field = HeaderValue::try_from(format!("Bearer {}", key.expose()))
                .map_err(|_| NoField("the API key"))?;
            field.set_sensitive(true);
            Ok(field)
        };
        Ok(Self {
            admission: Admission::new(config.limits.lanes as usize, metrics.clone()),
            accepted: Accepted::default(),
            budget: Budget::default(),
            host,
            authorization: key.map(field).transpose()?,
            metrics,
            config,
        })
    }

    /// How far answers are read ahead.
    fn ahead(&self) -> Ahead {
        let Config {
            buffers, timeouts, ..
        } = &self.config;
        Ahead {
            buffer: buffers.per_request,
            total: buffers.total,
            budget: self.budget.clone(),
            idle: self.config.upstream.idle_timeout,
            least_in: timeouts.write,
        }
    }
}

/// One worker's gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
    upstream: Upstream,
}

/// What is known of a request for the record of how it ended.
struct Record {
    operation: Operation,
    endpoint: Arc<EndpointMetrics>,
    ended: bool,
}

impl Record {
    fn end(mut self, outcome: Outcome) {
        self.endpoint.ended(self.operation, outcome);
        self.ended = true;
    }
}

impl Drop for Record {
    /// Dropped on the way: the client is gone.
    fn drop(&mut self) {
        if !self.ended {
            self.endpoint.ended(self.operation, Outcome::ClientGone);
        }
    }
}

impl Gateway {
    /// # Errors
    /// [`SetupError`]: the upstream could never be reached as configured.
    pub fn new(shared: Arc<Shared>) -> Result<Self, SetupError> {
        let upstream = Upstream::new(&shared.config.upstream)?;
        Ok(Self { shared, upstream })
    }

    /// Answers one request, whatever happens.
    pub async fn forward(&self, request: Request<Incoming>, caller: &Caller) -> Response<Answer> {
        let (head, body) = request.into_parts();
        let mut record = Record {
            operation: Operation::Other,
            endpoint: self.shared.metrics.other(),
            ended: false,
        };
        let answered = tokio::select! {
            biased;
            answered = self.answer(head, body, caller, &mut record) => answered,
            () = caller.gone() => Err(Rejection::ClientGone),
        };
        match answered {
            Ok(response) => {
                record.end(Outcome::Forwarded);
                response
            }
            Err(rejection) => {
                record.end(rejection.outcome());
                rejection.answer()
            }
        }
    }

    /// The page: a request's way, top to bottom.
    async fn answer(
        &self,
        head: request::Parts,
        body: Incoming,
        caller: &Caller,
        record: &mut Record,
    ) -> Result<Response<Answer>, Rejection> {
        let shared = &*self.shared;
        let Classified {
            operation,
            endpoint,
        } = classify::operation(&head.method, head.uri.path())?;
        let group = operation.group();
        let GroupVerdict::Policy(policy) = shared.config.group(endpoint, group) else {
            return Err(Rejection::OtherRejected);
        };
        record.operation = operation;
        let credential = shared.accepted.credential(&head.headers);
        let flow = shared
            .admission
            .flow(caller.address, shared.accepted.known(credential));

        let terms = Terms {
            max_body: policy.max_body,
            buffers: shared.config.buffers,
            timeouts: shared.config.timeouts,
        };
        let payload = payload::receive(body, &terms, &shared.budget).await;
        let lane = shared
            .admission
            .lane(Account::default(), endpoint, group, policy);
        record.endpoint = lane.metrics().clone();
        let mut payload = payload?;

        let ask = Ask {
            flow,
            call: call(operation),
            patience: patience::of(&head.headers, operation, policy.max_wait),
        };
        let mut turn = lane.turn(ask);
        let patience = policy.response_timeout(operation);
        let once = payload.is_streamed();
        // Where nothing is enforced, nothing is held up: not even for its own good.
        let repeats = operation.repeats() && !once && policy.mode == Mode::Enforce;
        let mut refused = None;
        loop {
            let permit = match (turn.admit().await, refused) {
                (Ok(permit), _) => permit,
                (Err(shed), None) => return Err(shed.into()),
                // It cannot make it: what the upstream said is what there is to say.
                (Err(_), Some(answer)) => return Ok(answer),
            };
            if caller.is_gone() {
                return Err(Rejection::ClientGone);
            }
            let request = || self.request(&head, payload.outgoing()?);
            let sent = self.upstream.send(permit, request, once, patience).await;
            let answered = sent.map_err(|error| blame(&payload, error))?;
            let status = answered.0.status().as_u16();
            record.endpoint.answered(operation, status);
            shared.accepted.answered(credential, status);
            match feedback::judge(answered, &shared.ahead(), repeats).await? {
                Judged::Answer(answer) => return Ok(answer),
                Judged::Again(answer) => refused = Some(answer),
            }
        }
    }

    /// The request as the upstream gets it: the target byte for byte as it was classified.
    fn request(&self, head: &request::Parts, body: Outgoing) -> Option<Request<Outgoing>> {
        let shared = &*self.shared;
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = self.target(&head.uri)?;
        *request.headers_mut() = head.headers.clone();
        fields::towards_upstream(request.headers_mut(), &shared.host);
        if let Some(authorization) = &shared.authorization {
            request
                .headers_mut()
                .insert(AUTHORIZATION, authorization.clone());
        }
        debug_assert!(request.headers().contains_key(HOST));
        Some(request)
    }

    fn target(&self, uri: &Uri) -> Option<Uri> {
        let asked = uri.path_and_query()?;
        let prefix = &self.shared.config.upstream.target.prefix;
        let target = match prefix.is_empty() {
            true => asked.clone(),
            false => PathAndQuery::try_from(format!("{prefix}{asked}")).ok()?,
        };
        Some(Uri::from(target))
    }
}

/// Only the status group mixes held and short calls: elsewhere there is nobody to keep permits for.
fn call(operation: Operation) -> Call {
    match operation.held() && operation.group() == Group::Status {
        true => Call::Held,
        false => Call::Short,
    }
}

/// A body that broke off while it was sent on is the client's doing.
fn blame(payload: &Payload, error: upstream::UpstreamError) -> Rejection {
    match payload.fault() {
        Some(fault) => fault.into(),
        None => error.into(),
    }
}
