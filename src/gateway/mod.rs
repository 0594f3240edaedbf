//! A request's way, one file a stage. [`Gateway::forward`] is the page.

pub mod stream;
pub mod presence;
pub mod named;
pub mod request_id;
pub mod trace;
pub mod framing;
pub mod head;
pub mod target;
pub mod classify;
pub mod authorize;
pub mod patience;
pub mod linger;
pub mod inbound;
pub mod pace;
pub mod pieces;
pub mod payload;
pub mod fields;
pub mod tls;
pub mod dial;
pub mod proxy;
pub mod connect;
pub mod ahead;
pub mod body;
pub mod h1;
pub mod sending;
pub mod alarm;
pub mod pool;
pub mod exchange;
pub mod upstream;
pub mod live;
pub mod desk;
pub mod feedback;
pub mod limit_fields;
pub mod answer;
pub mod record;
pub mod recorded;
pub mod shelf;
pub mod stack;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, request};
use hyper::body::Incoming;
use tokio::sync::watch;

use crate::access_log::AccessLog;
use crate::admission::lane::{Ask, Asked};
use crate::admission::{Account, Admission, Before};
use crate::config::Config;
use crate::config::policy::GroupVerdict;
use crate::gateway::answer::Rejection;
use crate::gateway::authorize::Accepted;
use crate::gateway::body::{Answer, Outgoing};
use crate::gateway::classify::Classified;
use crate::gateway::desk::{Desk, View};
use crate::gateway::feedback::Judged;
use crate::gateway::fields::{Hop, Says};
use crate::gateway::h1::request::Head;
use crate::gateway::head::Noted;
use crate::gateway::inbound::Inbound;
use crate::gateway::live::{Live, LiveError};
use crate::gateway::payload::{Budget, Payload, Terms};
use crate::gateway::presence::Caller;
use crate::gateway::record::{Names, Record};
use crate::gateway::recorded::Recorded;
use crate::gateway::request_id::X_REQUEST_ID;
use crate::gateway::sending::Message;
use crate::gateway::trace::{TRACEPARENT, TRACESTATE};
use crate::gateway::upstream::How;
use crate::limit::ledger::Call;
use crate::limit::quota::Mode;
use crate::metrics::Metrics;
use crate::operation::{Group, Operation};
use crate::otlp::Spans;
use crate::outcome::Outcome;

/// What all workers share.
pub struct Shared {
    live: watch::Sender<Arc<Live>>,
    /// Reloads so far.
    reloads: AtomicU64,
    pub admission: Admission,
    pub metrics: Metrics,
    access_log: AccessLog,
    spans: Spans,
    accepted: Accepted,
    budget: Budget,
    hop: Hop,
    /// Requests that went well, for the log to take some of.
    went_well: AtomicU64,
    /// Turns true when nobody may wait any longer.
    ending: watch::Sender<bool>,
}

impl Shared {
    /// `before`: what an earlier process has left. Endpoints that the configuration names have their
    /// lanes and series from the start.
    pub fn new(
        live: Live,
        metrics: Metrics,
        (access_log, spans): (AccessLog, Spans),
        before: &Before,
    ) -> Self {
        let config = &live.config;
        let admission = Admission::after(before, config.limits.lanes as usize, metrics.clone());
        for lane in &before.lanes {
            admission.recall(lane, config);
        }
        admission.expect(config);
        Self {
            live: watch::Sender::new(Arc::new(live)),
            reloads: AtomicU64::new(0),
            admission,
            access_log,
            spans,
            accepted: Accepted::default(),
            budget: Budget::new(metrics.buffered().clone()),
            hop: Hop::fresh(),
            went_well: AtomicU64::new(0),
            metrics,
            ending: watch::Sender::new(false),
        }
    }

    /// What is in effect now.
    pub fn live(&self) -> Arc<Live> {
        self.live.borrow().clone()
    }

    /// Puts another configuration in effect, in one step for whoever asks from here on. Lanes keep
    /// their history and those who wait in them.
    ///
    /// # Errors
    /// [`LiveError`]: nothing has changed.
    pub fn reload(&self, config: Config) -> Result<(), LiveError> {
        let before = self.live();
        let live = Live::new(config, before.workers(), Some(&before))?;
        let config = live.config.clone();
        self.live.send_replace(Arc::new(live));
        self.reloads.fetch_add(1, Ordering::Release);
        // After it: whoever finds the new limits of a lane finds the rest of them too.
        self.admission.retune(config);
        Ok(())
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
pub struct Gateway(Arc<Desk>);

impl Gateway {
    /// The one of this worker, counted from 0.
    pub fn new(shared: Arc<Shared>, worker: usize) -> Self {
        Self(Arc::new(Desk::new(shared, worker)))
    }

    /// The configuration in effect now.
    pub fn config(&self) -> Arc<Config> {
        self.0.view().live.config.clone()
    }

    /// Answers one request, whatever happens.
    pub async fn forward(&self, request: Request<Incoming>, caller: &Caller) -> Response<Recorded> {
        let (head, body) = request.into_parts();
        let view = self.0.view();
        let noted = Noted::of(&head.headers);
        let mut kept = Record::begin(&self.0, &view, &head, &noted, caller.address);
        let Some(record) = kept.get_mut() else {
            return Rejection::Internal.answer(None, None).map(Recorded::from);
        };
        let mut body = Inbound::new(body, head::waits_to_be_asked(head.version, &noted));
        let asked = body.asked();
        let sound = caller.framing().next();
        let answered = match sound
            .and_then(|()| head::check(head.version, &noted, &view.shared.hop))
        {
            Err(bad) => {
                body.abandon();
                Err(bad.into())
            }
            Ok(()) => tokio::select! {
                biased;
                answered = self.answer(&view, (&head, &noted), body, caller, record) => answered,
                () = caller.gone() => Err(Rejection::ClientGone),
            },
        };
        fields::spare(head.headers);
        let (mut response, outcome, ends) = match answered {
            Ok(response) => (response, Outcome::Forwarded, false),
            Err(why) => (
                record.refusal(&why),
                why.outcome(),
                why.ends_the_connection(),
            ),
        };
        let mut response = match outcome {
            // The record closes here, and says that there was no answer.
            Outcome::ClientGone => response.map(Recorded::from),
            _ => {
                record.finish(&mut response, outcome, &view.live.config.answers);
                response.map(|answer| Recorded::new(answer, kept, caller))
            }
        };
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
        view: &View,
        (head, noted): (&request::Parts, &Noted<'_>),
        body: Inbound,
        caller: &Caller,
        record: &mut Record,
    ) -> Result<Response<Answer>, Rejection> {
        let (shared, live, desk) = (&*view.shared, &*view.live, &*self.0);
        let config = &*live.config;
        let target = target::of(&head.method, &head.uri)?;
        let Classified {
            operation,
            endpoint,
        } = classify::operation(&head.method, target.path())?;
        let group = operation.group();
        let GroupVerdict::Policy(policy) = config.group(endpoint, group) else {
            return Err(Rejection::OtherRejected);
        };
        record.classified(operation, endpoint);
        // With a key of our own in its place the upstream accepts whatever a client makes up.
        let credential = match live.authorization {
            None => shared.accepted.credential(noted.authorization),
            Some(_) => None,
        };
        let known = shared.accepted.known(credential, &desk.recent);
        let flow = caller.flow(known, |origin| shared.admission.flow(origin, known));

        let terms = || Terms {
            max_body: policy.max_body,
            buffers: config.buffers,
            timeouts: config.timeouts,
        };
        let ask = Ask {
            flow,
            call: call(operation),
            patience: patience::of(noted, operation, policy.max_wait),
            held: 0,
        };
        let lane = || {
            let account = Account::default();
            shared
                .admission
                .resolve(&desk.lanes, account, endpoint, group, policy)
        };
        if body.asked().waits() {
            // Told before it sends: refused here, it need not.
            let lane = lane();
            record.decided_by(&lane);
            payload::fits(&body, &terms())?;
            lane.foresee(ask)?;
        }
        let comes = !body.is_over();
        let payload = match comes {
            true => payload::receive(body, &terms(), &shared.budget).await,
            // Most requests have none.
            false => Ok(Payload::Nothing),
        };
        // Not held meanwhile: a slow upload would keep it from being forgotten.
        let lane = lane();
        record.decided_by(&lane);
        let mut payload = payload?;
        let held = payload.held();
        record.received(held, comes);

        let mut turn = lane.turn(Ask { held, ..ask });
        let how = How {
            once: payload.is_streamed(),
            to_head: head.method == Method::HEAD,
            patience: policy.response_timeout(operation),
            margin: policy.quota.margin,
        };
        // Where nothing is enforced, nothing is held up: not even for its own good.
        let repeats = operation.repeats() && !how.once && policy.mode == Mode::Enforce;
        let mut refused = None;
        let mut exchange = None;
        loop {
            let admitted = match turn.ask() {
                Asked::Answered(answer, at) => {
                    record.is_decided(at);
                    answer.map_err(Rejection::from)
                }
                Asked::Waits(wait) => {
                    let _waits = record.waits();
                    tokio::select! {
                        biased;
                        admitted = wait => admitted.map_err(Rejection::from),
                        () = shared.ending() => Err(Rejection::Draining),
                    }
                }
            };
            let permit = match admitted {
                Ok(permit) => permit,
                // It cannot make it: what the upstream said, if it was asked, is what there is to say.
                Err(rejection) => return refused.ok_or(rejection),
            };
            if caller.is_gone() {
                return Err(Rejection::ClientGone);
            }
            record.tries();
            let now = record.last();
            let (goes, names) = record.goes();
            let request = |spare| {
                let body = payload.outgoing()?;
                Some(request(view, (head, noted), target, names, body, spare))
            };
            let upstream = live.upstream(desk.worker);
            let sent = upstream
                .send(&mut exchange, permit, request, how, now)
                .await;
            drop(goes);
            let response = sent.map_err(|error| blame(&payload, error))?;
            let status = response.status().as_u16();
            record.upstream_answered(status);
            shared.accepted.answered(credential, status, &desk.recent);
            let at = record.last();
            let response = match feedback::with_its_head(response, &mut exchange, at, &view.ahead) {
                Ok((answer, left)) => {
                    record.leaves(left);
                    return Ok(answer);
                }
                Err(response) => response,
            };
            let Some(exchange) = exchange.take() else {
                return Err(Rejection::Internal);
            };
            match feedback::judge(response, Box::new(exchange), &view.ahead, repeats).await? {
                Judged::Answer(answer) => return Ok(answer),
                Judged::Again(answer) => refused = Some(answer),
            }
        }
    }
}

/// The request as the upstream gets it: the target byte for byte as it was classified.
fn request(
    view: &View,
    (head, noted): (&request::Parts, &Noted<'_>),
    target: &PathAndQuery,
    names: &Names,
    body: Outgoing,
    spare: Vec<u8>,
) -> Message {
    let live = &view.live;
    let prefix = &live.config.upstream.target.prefix;
    let mut written = Head::new(spare, &head.method, prefix, target.as_str());
    let own = [
        (&HOST, Says::Us(live.host.as_bytes())),
        (&X_REQUEST_ID, Says::Us(names.request_id.as_bytes())),
        (&TRACEPARENT, Says::Us(names.trace.as_bytes())),
        match trace::keeps_its_state(&head.headers, &names.trace) {
            true => (&TRACESTATE, Says::Client),
            false => (&TRACESTATE, Says::Nobody),
        },
        match &live.authorization {
            Some(authorization) => (&AUTHORIZATION, Says::Us(authorization.as_bytes())),
            None => (&AUTHORIZATION, Says::Client),
        },
    ];
    let hop = &view.shared.hop;
    let mut write = |name: &str, value: &[u8]| written.field(name, value);
    fields::towards_upstream(noted, head.version, hop, &own, &mut write);
    Message {
        head: written.before(body.length(), &head.method),
        body,
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
