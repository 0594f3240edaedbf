//! A request's way, one file a stage. [`Gateway::forward`] is the page.

pub mod stream;
pub mod presence;
pub mod request_id;
pub mod framing;
pub mod head;
pub mod target;
pub mod classify;
pub mod authorize;
pub mod patience;
pub mod linger;
pub mod inbound;
pub mod pace;
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
pub mod limit_fields;
pub mod answer;
pub mod record;
pub mod stack;

use std::sync::Arc;

use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, Uri, request};
use hyper::body::Incoming;
use tokio::sync::watch;

use crate::access_log::AccessLog;
use crate::admission::lane::Ask;
use crate::admission::{Account, Admission, Before};
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
use crate::gateway::fields::Hop;
use crate::gateway::inbound::Inbound;
use crate::gateway::payload::{Budget, Payload, Terms};
use crate::gateway::presence::Caller;
use crate::gateway::record::{Record, Recorded};
use crate::gateway::request_id::{RequestIds, X_REQUEST_ID};
use crate::gateway::tls::Complaints;
use crate::gateway::upstream::Upstream;
use crate::limit::ledger::Call;
use crate::limit::quota::Mode;
use crate::metrics::Metrics;
use crate::operation::{Group, Operation};

/// What all workers share.
pub struct Shared {
    pub config: Config,
    pub admission: Admission,
    pub metrics: Metrics,
    access_log: AccessLog,
    request_ids: RequestIds,
    accepted: Accepted,
    budget: Budget,
    complaints: Complaints,
    host: HeaderValue,
    hop: Hop,
    authorization: Option<HeaderValue>,
    /// Turns true when nobody may wait any longer.
    ending: watch::Sender<bool>,
}

/// A secret or a host that no header field can carry.
#[derive(Debug, thiserror::Error)]
#[error("{0} cannot stand in a header field")]
pub struct NoField(&'static str);

impl Shared {
    /// `key`: put into every request in the place of what the client sent. `before`: what an earlier
    /// process has left. Endpoints that the
    /// configuration names have their lanes and series from the start.
    ///
    /// # Errors
    /// [`NoField`]: as it says.
    pub fn new(
        config: Config,
        key: Option<&Secret>,
        metrics: Metrics,
        access_log: AccessLog,
        before: &Before,
    ) -> Result<Self, NoField> {
        let host = HeaderValue::try_from(config.upstream.target.authority())
            .map_err(|_| NoField("the upstream's host"))?;
        let field = |key: &Secret| {
            let mut field = HeaderValue::try_from(format!("Bearer {}", key.expose()))
                .map_err(|_| NoField("the API key"))?;
            field.set_sensitive(true);
            Ok(field)
        };
        let admission = Admission::after(before, config.limits.lanes as usize, metrics.clone());
        for lane in &before.lanes {
            // Endpoints past the cap have the limits that no rule matches.
            let endpoint = lane.endpoint.as_deref().unwrap_or_default();
            if let GroupVerdict::Policy(policy) = config.group(endpoint, lane.group) {
                admission.recall(lane, policy);
            }
        }
        for endpoint in config.named_endpoints() {
            metrics.expect(&metrics.endpoint(endpoint));
            for group in Group::ALL {
                if let GroupVerdict::Policy(policy) = config.group(endpoint, group) {
                    admission.lane(Account::default(), endpoint, group, policy);
                }
            }
        }
        Ok(Self {
            admission,
            access_log,
            request_ids: RequestIds::default(),
            accepted: Accepted::default(),
            budget: Budget::new(metrics.buffered().clone()),
            complaints: Complaints::default(),
            host,
            hop: Hop::fresh(),
            authorization: key.map(field).transpose()?,
            metrics,
            config,
            ending: watch::Sender::new(false),
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

    /// Sends away whoever waits for its turn, and whoever would from now on.
    pub fn end_waiting(&self) {
        self.ending.send_replace(true);
    }

    /// Returns once [`Shared::end_waiting`] was called.
    async fn ending(&self) {
        // It can only fail if the sender is gone, and we hold it.
        drop(self.ending.subscribe().wait_for(|&ending| ending).await);
    }
}

/// One worker's gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
    upstream: Upstream,
}

impl Gateway {
    /// # Errors
    /// [`SetupError`]: the upstream could never be reached as configured.
    pub fn new(shared: Arc<Shared>) -> Result<Self, SetupError> {
        let upstream = Upstream::new(&shared.config.upstream, shared.complaints.clone())?;
        Ok(Self { shared, upstream })
    }

    /// Answers one request, whatever happens.
    pub async fn forward(&self, request: Request<Incoming>, caller: &Caller) -> Response<Recorded> {
        let (head, body) = request.into_parts();
        let mut record = Record::begin(&self.shared, &head, caller.address);
        let mut body = Inbound::new(body, head::waits_to_be_asked(&head));
        let asked = body.asked();
        let sound = caller.framing().next();
        let answered = match sound.and_then(|()| head::check(&head, &self.shared.hop)) {
            Err(bad) => {
                body.abandon();
                Err(bad.into())
            }
            Ok(()) => tokio::select! {
                biased;
                answered = self.answer(head, body, caller, &mut record) => answered,
                () = caller.gone() => Err(Rejection::ClientGone),
            },
        };
        let ends = answered.as_ref().is_err_and(Rejection::ends_the_connection);
        let mut response = record.finish(answered);
        if ends || asked.waits() {
            caller.leave_unread();
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        response
    }

    /// The page: a request's way, top to bottom.
    async fn answer(
        &self,
        head: request::Parts,
        body: Inbound,
        caller: &Caller,
        record: &mut Record,
    ) -> Result<Response<Answer>, Rejection> {
        let shared = &*self.shared;
        let target = target::of(&head.method, &head.uri)?;
        let Classified {
            operation,
            endpoint,
        } = classify::operation(&head.method, target.path())?;
        let group = operation.group();
        let GroupVerdict::Policy(policy) = shared.config.group(endpoint, group) else {
            return Err(Rejection::OtherRejected);
        };
        record.classified(operation);
        // With a key of our own in its place the upstream accepts whatever a client makes up.
        let credential = match shared.authorization {
            None => shared.accepted.credential(&head.headers),
            Some(_) => None,
        };
        let flow = shared
            .admission
            .flow(caller.origin(), shared.accepted.known(credential));

        let terms = Terms {
            max_body: policy.max_body,
            buffers: shared.config.buffers,
            timeouts: shared.config.timeouts,
        };
        let ask = Ask {
            flow,
            call: call(operation),
            patience: patience::of(&head.headers, operation, policy.max_wait),
            held: 0,
        };
        let lane = || {
            let account = Account::default();
            shared.admission.lane(account, endpoint, group, policy)
        };
        if body.asked().waits() {
            // Told before it sends: refused here, it need not.
            let lane = lane();
            record.decided_by(&lane);
            payload::fits(&body, &terms)?;
            lane.foresee(ask)?;
        }
        let payload = payload::receive(body, &terms, &shared.budget).await;
        // Not held meanwhile: a slow upload would keep it from being forgotten.
        let lane = lane();
        record.decided_by(&lane);
        let mut payload = payload?;
        let held = payload.held();
        record.received(held);

        let mut turn = lane.turn(Ask { held, ..ask });
        let patience = policy.response_timeout(operation);
        let once = payload.is_streamed();
        // Where nothing is enforced, nothing is held up: not even for its own good.
        let repeats = operation.repeats() && !once && policy.mode == Mode::Enforce;
        let request_id = record.request_id().clone();
        let mut refused = None;
        loop {
            let waits = record.waits();
            let admitted = tokio::select! {
                biased;
                admitted = turn.admit() => admitted.map_err(Rejection::from),
                () = shared.ending() => Err(Rejection::Draining),
            };
            drop(waits);
            let permit = match (admitted, refused) {
                (Ok(permit), _) => permit,
                (Err(rejection), None) => return Err(rejection),
                // It cannot make it: what the upstream said is what there is to say.
                (Err(_), Some(answer)) => return Ok(answer),
            };
            if caller.is_gone() {
                return Err(Rejection::ClientGone);
            }
            let request = || self.request(&head, target, &request_id, payload.outgoing()?);
            let goes = record.goes();
            let sent = self.upstream.send(permit, request, once, patience).await;
            drop(goes);
            let answered = sent.map_err(|error| blame(&payload, error))?;
            let status = answered.0.status().as_u16();
            record.upstream_answered(status);
            shared.accepted.answered(credential, status);
            match feedback::judge(answered, &shared.ahead(), repeats).await? {
                Judged::Answer(answer) => return Ok(answer),
                Judged::Again(answer) => refused = Some(answer),
            }
        }
    }

    /// The request as the upstream gets it: the target byte for byte as it was classified.
    fn request(
        &self,
        head: &request::Parts,
        target: &PathAndQuery,
        request_id: &HeaderValue,
        body: Outgoing,
    ) -> Option<Request<Outgoing>> {
        let shared = &*self.shared;
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = self.target(target)?;
        *request.headers_mut() = head.headers.clone();
        let headers = request.headers_mut();
        fields::towards_upstream(headers, head.version, &shared.host, &shared.hop);
        headers.insert(X_REQUEST_ID, request_id.clone());
        if let Some(authorization) = &shared.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        debug_assert!(headers.contains_key(HOST));
        Some(request)
    }

    fn target(&self, asked: &PathAndQuery) -> Option<Uri> {
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
