//! An emulator of the Runpod Serverless job API: every gateway's witness, and a first upstream.
//!
//! It does what the service does, as far as that is known: the operations under
//! `/v2/{endpoint}/...`, jobs with their states and retention, simulated workers, and the documented
//! limits, enforced to the letter at its own door. Where the service's ways are unknown it takes the
//! plainest reading, and the code says so. It remembers what it saw (`GET /__emulator/stats`), forgets
//! it on request (`POST /__emulator/reset`), and misbehaves on request (`POST /__emulator/faults`).
//!
//! The memory: `{"endpoints": {ENDPOINT: {GROUP: {arrived, accepted, refused: {rate, concurrency,
//! backlog}, max_in_window, max_in_flight, min_d_over_w, promise2: {intervals, w_over_mean_d}}}},
//! "submissions": {distinct, repeated}, "webhooks": {delivered, failed}}`; what the figures mean is
//! said in [`witness`]. `min_d_over_w` and `w_over_mean_d` are null as long as there are none.
//!
//! What a simulated handler does is said by the job's own `input`: see [`script`].
//!
//! It imports nothing of the limiter it is a witness for. What has no I/O ([`policer`], [`witness`],
//! [`door`], [`jobs`]) takes the time as an argument and serves simulated time as well as real time.
//!
//! Not here, and 404: `/metrics`, which no documentation names, batches, and the routes workers use. Not
//! here either: TLS, HTTP/2, an edge with timeouts of its own, load-balancing endpoints.

pub mod policer;
mod policer_name;
pub mod limits;
pub mod witness;
pub mod door;
pub mod id;
pub mod script;
pub mod job;
pub mod site;
pub mod jobs;
pub mod faults;
mod clock;
mod shared;
mod routes;
mod answer;
mod operations;
mod openai;
mod webhook;
mod upload;
mod exchange;
mod control;
mod socket;
mod server;
pub mod cli;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use faults::Faults;
use jobs::Keeping;
use limits::Limits;
use policer::Policer;
use shared::Shared;
use site::Fleet;

/// What is emulated.
#[derive(Clone, Debug)]
pub struct Config {
    /// How rates are counted, where a limit names no policer of its own.
    pub policer: Policer,
    /// The documented limits, unless changed.
    pub limits: Limits,
    /// The endpoints there are; none: any name, with `fleet`.
    pub endpoints: BTreeMap<String, Fleet>,
    /// The workers of an endpoint that is not named.
    pub fleet: Fleet,
    /// Endpoints made on demand; past it an unknown one is 404.
    pub most_endpoints: usize,
    /// The keys there are; none: any non-empty key.
    pub keys: BTreeSet<String>,
    /// How long jobs are kept, and how many.
    pub keeping: Keeping,
    /// Between two tries of a webhook: 10 s (contract, section 1.12).
    pub webhook_gap: Duration,
    /// Job ids and chance follow from it.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policer: Policer::SlidingLog,
            limits: Limits::default(),
            endpoints: BTreeMap::new(),
            fleet: Fleet::default(),
            most_endpoints: 1000,
            keys: BTreeSet::new(),
            keeping: Keeping::default(),
            webhook_gap: Duration::from_secs(10),
            // Another one every time, so that an id of yesterday names no job of today.
            seed: RandomState::new().hash_one(0),
        }
    }
}

/// A handle to one emulator; its clones are the same one.
#[derive(Clone)]
pub struct Emulator {
    shared: Arc<Shared>,
}

impl Emulator {
    pub fn new(config: Config) -> Self {
        Self {
            shared: Shared::new(config),
        }
    }

    /// Serves `listener` on the runtime it is called on, until `shutdown` is ready or the future is
    /// dropped; open connections are dropped with it. May be called several times, on several
    /// runtimes: all serve the same jobs and limits.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        server::serve(self.shared, listener, shutdown).await;
    }

    /// What `GET /__emulator/stats` answers.
    pub fn stats_json(&self) -> serde_json::Value {
        self.shared.stats()
    }

    /// Forgets what was seen; limits, jobs and faults stay.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Replaces the faults in force.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.set_faults(faults);
    }
}
