//! A request's way, one file a stage. [`Gateway::forward`] is the page.

pub mod presence;
pub mod request_id;
pub mod classify;
pub mod authorize;
pub mod patience;
pub mod pace;
pub mod payload;
pub mod fields;
pub mod tls;
pub mod wire;
pub mod body;
pub mod upstream;
pub mod feedback;
pub mod limit_fields;
pub mod answer;
pub mod record;
pub mod stack;

use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, HeaderValue};
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
use crate::gateway::answer::Rejection;
use crate::gateway::authorize::Accepted;
use crate::gateway::body::{Answer, Outgoing};
use crate::gateway::classify::Classified;
use crate::gateway::payload::{Budget, Payload, Terms};
use crate::gateway::presence::Caller;
use crate::gateway::record::{Record, Recorded};
use crate::gateway::request_id::{RequestIds, X_REQUEST_ID};
use crate::gateway::tls::TlsError;
use crate::gateway::upstream::Upstream;
use crate::limit::ledger::Call;
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
    host: HeaderValue,
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
            host,
            authorization: key.map(field).transpose()?,
            metrics,
            config,
            ending: watch::Sender::new(false),
        })
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
    /// [`TlsError`]: the upstream's certificates could not be checked.
    pub fn new(shared: Arc<Shared>) -> Result<Self, TlsError> {
        let upstream = Upstream::new(&shared.config.upstream)?;
        Ok(Self { shared, upstream })
    }

    /// Answers one request, whatever happens.
    pub async fn forward(&self, request: Request<Incoming>, caller: &Caller) -> Response<Recorded> {
        let (head, body) = request.into_parts();
        let mut record = Record::begin(&self.shared, &head, caller.address);
        let answered = tokio::select! {
            biased;
            answered = self.answer(head, body, caller, &mut record) => answered,
            () = caller.gone() => Err(Rejection::ClientGone),
        };
        record.finish(answered)
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
        record.classified(operation);
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
        let held = payload.as_ref().map_or(0, Payload::held);
        record.received(&lane, held);
        let mut payload = payload?;

        let ask = Ask {
            flow,
            call: call(operation),
            patience: patience::of(&head.headers, operation, policy.max_wait),
            held,
        };
        let waits = record.waits();
        if *shared.ending.borrow() {
            return Err(Rejection::Draining);
        }
        let permit = tokio::select! {
            biased;
            permit = lane.admit(ask) => permit?,
            () = shared.ending() => return Err(Rejection::Draining),
        };
        drop(waits);
        if caller.is_gone() {
            return Err(Rejection::ClientGone);
        }
        let patience = policy.response_timeout(operation);
        let request_id = record.request_id().clone();
        let request = || self.request(&head, &request_id, payload.outgoing()?);
        let goes = record.goes();
        let sent = self.upstream.send(permit, request, patience).await;
        drop(goes);
        let (response, exchange) = match sent {
            Ok(answered) => answered,
            Err(error) => return Err(blame(&payload, error)),
        };
        let status = response.status().as_u16();
        record.upstream_answered(status);
        shared.accepted.answered(credential, status);
        let idle = shared.config.upstream.idle_timeout;
        let held = shared.config.buffers.per_request;
        Ok(feedback::pass(response, exchange, held, idle).await?)
    }

    /// The request as the upstream gets it: the target byte for byte as it was classified.
    fn request(
        &self,
        head: &request::Parts,
        request_id: &HeaderValue,
        body: Outgoing,
    ) -> Option<Request<Outgoing>> {
        let shared = &*self.shared;
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = self.target(&head.uri)?;
        *request.headers_mut() = head.headers.clone();
        fields::towards_upstream(request.headers_mut(), &shared.host);
        let headers = request.headers_mut();
        headers.insert(X_REQUEST_ID, request_id.clone());
        if let Some(authorization) = &shared.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        debug_assert!(headers.contains_key(HOST));
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
