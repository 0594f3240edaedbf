//! Spans on their way to the collector: in batches, by a thread of its own, lossy and counted.
//!
//! Nobody who serves waits for a collector. What does not fit, what a collector does not take and
//! what is left when the end has waited for [`LAST`] is lost.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::SpanId;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, timeout};

use super::client::Client;
use super::span::{Given, Span};
use crate::config::process::Target;
use crate::metrics::Metrics;

/// Spans that may wait to be sent.
const CAPACITY: usize = 8_192;
/// Spans in one batch, for what they are written as to stay below what collectors take.
const BATCH: usize = 2_048;
/// Spans are gathered for so long before they are sent together.
const GATHER: Duration = Duration::from_secs(1);
/// What a collector gets for one batch, its wish to be asked again included.
const PATIENCE: Duration = Duration::from_secs(5);
/// At the end of the process what is left gets this long.
const LAST: Duration = Duration::from_secs(2);
/// A collector that is away is complained of once in so long.
const COMPLAINT: Duration = Duration::from_secs(60);

/// Where spans begin. Cheap to clone; the default makes none.
#[derive(Clone, Default)]
pub struct Spans(Option<Arc<Queue>>);

/// What spans are put into at their end.
pub(super) struct Queue {
    pub scope: InstrumentationScope,
    chance: RandomState,
    made: AtomicU64,
    dropped: IntCounter,
    state: Mutex<State>,
    filled: Condvar,
    sent: Condvar,
}

#[derive(Default)]
struct State {
    spans: Vec<SpanData>,
    closing: bool,
    over: bool,
}

impl Spans {
    /// Starts the thread that sends to `collector`, if there is one.
    ///
    /// # Errors
    /// The thread or what it needs cannot be made.
    pub fn start(collector: Option<&Target>, metrics: &Metrics) -> io::Result<Self> {
        let Some(collector) = collector else {
            return Ok(Self::default());
        };
        let version = env!("CARGO_PKG_VERSION");
        let client = Client::default();
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client.clone())
            .with_endpoint(collector.to_string())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(PATIENCE)
            .build()
            .map_err(io::Error::other)?;
        // What `OTEL_RESOURCE_ATTRIBUTES` says comes last, and counts.
        let resource = Resource::builder_empty()
            .with_service_name("podgate")
            .with_attribute(KeyValue::new("service.version", version))
            .with_detector(Box::new(EnvResourceDetector::new()));
        exporter.set_resource(&resource.build());
        let scope = InstrumentationScope::builder("podgate").with_version(version);
        let queue = Arc::new(Queue {
            scope: scope.build(),
            chance: RandomState::new(),
            made: AtomicU64::new(0),
            dropped: metrics.spans_dropped().clone(),
            state: Mutex::default(),
            filled: Condvar::new(),
            sent: Condvar::new(),
        });
        let sender = Sender {
            queue: queue.clone(),
            collector: collector.to_string(),
            exporter,
            client,
            complained: None,
        };
        let runtime = Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("otlp".into())
            .spawn(move || sender.run(runtime))?;
        Ok(Self(Some(queue)))
    }

    /// The span of a request that is part of `trace`, its `traceparent`: if the client records it too,
    /// and of the others for one in `sample`, for none if that is 0.
    pub fn begin(
        &self,
        trace: &[u8],
        sample: u64,
        started: Instant,
        wall_clock: fn() -> SystemTime,
    ) -> Option<Span> {
        let queue = self.0.as_ref()?;
        let given = Given::read(trace)?;
        // By chance: callers' turns may come round as regularly as counting would.
        let drawn = || sample > 0 && queue.draw().is_multiple_of(sample);
        (given.is_sampled() || drawn())
            .then(|| Span::new(queue.clone(), &given, started, wall_clock()))
    }

    /// Sees what has ended out, for as long as [`LAST`]. What ends later is lost.
    pub fn close(&self) {
        let Some(queue) = &self.0 else { return };
        let mut state = queue.state.lock();
        state.closing = true;
        queue.filled.notify_one();
        let open = |state: &mut State| !state.over;
        queue.sent.wait_while_for(&mut state, open, LAST);
    }
}

impl Queue {
    fn draw(&self) -> u64 {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        self.chance.hash_one(number)
    }

    pub fn id(&self) -> SpanId {
        SpanId::from(self.draw().max(1))
    }

    /// A request's spans, all of them or none.
    pub fn push(&self, spans: Vec<SpanData>) {
        let mut state = self.state.lock();
        let before = state.spans.len();
        if state.over || before + spans.len() > CAPACITY {
            self.dropped.inc_by(spans.len() as u64);
            return;
        }
        state.spans.extend(spans);
        let full = before < BATCH && state.spans.len() >= BATCH;
        if before == 0 || full {
            self.filled.notify_one();
        }
    }

    /// The next ones to send; `None` once there will be no more.
    fn next(&self) -> Option<Vec<SpanData>> {
        let mut state = self.state.lock();
        let idle = |state: &mut State| state.spans.is_empty() && !state.closing;
        self.filled.wait_while(&mut state, idle);
        // The rest of the batch comes meanwhile.
        let few = |state: &mut State| state.spans.len() < BATCH && !state.closing;
        self.filled.wait_while_for(&mut state, few, GATHER);
        if state.spans.is_empty() {
            state.over = true;
            self.sent.notify_all();
            return None;
        }
        let many = state.spans.len().min(BATCH);
        Some(state.spans.drain(..many).collect())
    }
}

/// What the thread has.
struct Sender {
    queue: Arc<Queue>,
    collector: String,
    exporter: SpanExporter,
    client: Client,
    complained: Option<Instant>,
}

impl Sender {
    fn run(mut self, runtime: Runtime) {
        while let Some(batch) = self.queue.next() {
            let many = batch.len() as u64;
            let sent =
                runtime.block_on(async { timeout(PATIENCE, self.exporter.export(batch)).await });
            let why = match sent {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => self.client.why().unwrap_or_else(|| error.to_string()),
                Err(_) => format!("no answer in {PATIENCE:?}"),
            };
            self.queue.dropped.inc_by(many);
            self.complain(&why);
        }
        // A name that is still looked up may take its time.
        runtime.shutdown_background();
    }

    fn complain(&mut self, why: &str) {
        let now = now();
        let lately = |at: Instant| now.saturating_duration_since(at) < COMPLAINT;
        if self.complained.is_some_and(lately) {
            return;
        }
        self.complained = Some(now);
        let (collector, dropped) = (&self.collector, self.queue.dropped.get());
        tracing::warn!("traces do not reach {collector}: {why}; {dropped} spans are lost so far");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how often something is said is for people"
)]
fn now() -> Instant {
    Instant::now()
}
