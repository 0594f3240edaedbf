//! What all connections share: doors, jobs, faults, and the figures kept of them.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde_json::{Map, Value, json};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, Semaphore};

use super::Config;
use super::clock::Clock;
use super::door::{Counts, Door};
use super::faults::{FaultBox, Faults, Plan};
use super::id::JobId;
use super::jobs::{EndpointId, Happened, Jobs};
use super::limits::{Backlog, Group};
use super::webhook;
use super::witness::{Refusal, Seen};

pub(super) struct Shared {
    pub config: Config,
    pub clock: Clock,
    pub faults: FaultBox,
    endpoints: RwLock<HashMap<Box<str>, Arc<Endpoint>>>,
    world: Mutex<World>,
    submissions: Mutex<Submissions>,
    pub webhooks: Webhooks,
    /// Rings when something is due earlier than the driver thinks.
    pub earlier: Notify,
    /// Held by the one `serve` that lets time pass for all.
    pub driver: tokio::sync::Mutex<()>,
}

/// One endpoint's doors.
pub(super) struct Endpoint {
    pub name: Box<str>,
    pub id: EndpointId,
    doors: [Mutex<Door>; Group::ALL.len()],
}

struct World {
    jobs: Jobs,
    /// Calls that wait for a job.
    held: HashMap<JobId, Arc<Notify>>,
    /// What the driver sleeps until.
    planned: Option<Duration>,
}

/// How many posts to webhooks went well, and how many were given up.
pub(super) struct Webhooks {
    pub delivered: AtomicU64,
    pub failed: AtomicU64,
    /// So many at once; the others wait for a place.
    pub places: Arc<Semaphore>,
}

/// Submissions that became jobs. Two are the same if their endpoints and bodies are, to the byte: who
/// wants to know whether a job was submitted twice gives every submission an id of its own.
#[derive(Default)]
struct Submissions {
    seen: HashSet<u64>,
    distinct: u64,
    repeated: u64,
}

impl Submissions {
    /// 8 MiB of fingerprints and the table's own; beyond them a repeat may count as distinct.
    const MOST: usize = 1 << 20;

    fn record(&mut self, endpoint: &str, body: &[u8]) {
        let mut hasher = DefaultHasher::new();
        (endpoint, body).hash(&mut hasher);
        let fingerprint = hasher.finish();
        if self.seen.contains(&fingerprint) {
            self.repeated += 1;
            return;
        }
        self.distinct += 1;
        if self.seen.len() < Self::MOST {
            self.seen.insert(fingerprint);
        }
    }
}

impl Shared {
    pub fn new(config: Config) -> Arc<Self> {
        let shared = Self {
            clock: Clock::start(),
            faults: FaultBox::new(config.seed),
            endpoints: RwLock::default(),
            world: Mutex::new(World {
                jobs: Jobs::new(config.keeping, config.seed),
                held: HashMap::new(),
                planned: None,
            }),
            submissions: Mutex::default(),
            webhooks: Webhooks {
                delivered: AtomicU64::new(0),
                failed: AtomicU64::new(0),
                places: Arc::new(Semaphore::new(webhook::MOST_AT_ONCE)),
            },
            earlier: Notify::new(),
            driver: tokio::sync::Mutex::new(()),
            config,
        };
        for name in shared.config.endpoints.keys() {
            shared.endpoint(name);
        }
        Arc::new(shared)
    }

    /// The endpoint of that name: one of those configured, or any, up to a bound, if none are.
    pub fn endpoint(&self, name: &str) -> Option<Arc<Endpoint>> {
        if let Some(endpoint) = self.endpoints.read().get(name) {
            return Some(Arc::clone(endpoint));
        }
        let fleet = match self.config.endpoints.get(name) {
            Some(fleet) => *fleet,
            None if self.config.endpoints.is_empty() => self.config.fleet,
            None => return None,
        };
        let mut endpoints = self.endpoints.write();
        if let Some(endpoint) = endpoints.get(name) {
            return Some(Arc::clone(endpoint));
        }
        let bounded = self.config.endpoints.is_empty();
        if bounded && endpoints.len() >= self.config.most_endpoints {
            return None;
        }
        let now = self.clock.now();
        let ppm = self.faults.clock_ppm();
        let door = |group| {
            let mut door = Door::new(self.config.limits[group], self.config.policer);
            door.skew(now, ppm);
            Mutex::new(door)
        };
        let endpoint = Arc::new(Endpoint {
            name: name.into(),
            id: self.world.lock().jobs.add_endpoint(fleet),
            doors: Group::ALL.map(door),
        });
        endpoints.insert(name.into(), Arc::clone(&endpoint));
        Some(endpoint)
    }

    /// Does something with the jobs, now, everything due before having happened.
    pub fn jobs<T>(self: &Arc<Self>, act: impl FnOnce(&mut Jobs, Duration) -> T) -> T {
        let mut world = self.world.lock();
        let now = self.clock.now();
        world.jobs.advance(now);
        let outcome = act(&mut world.jobs, now);
        self.tell(&mut world);
        outcome
    }

    /// `Ok`: what `look` found. `Err`: nothing yet, and what to wait for before looking again.
    pub fn look<T>(
        self: &Arc<Self>,
        job: JobId,
        look: impl FnOnce(&mut Jobs, Duration) -> Option<T>,
    ) -> Result<T, OwnedNotified> {
        let mut world = self.world.lock();
        let now = self.clock.now();
        world.jobs.advance(now);
        let found = look(&mut world.jobs, now);
        self.tell(&mut world);
        found.ok_or_else(|| {
            let bell = world.held.entry(job).or_default();
            Arc::clone(bell).notified_owned()
        })
    }

    /// Tells those who wait what has happened.
    fn tell(self: &Arc<Self>, world: &mut World) {
        for happened in world.jobs.take_happened() {
            match happened {
                Happened::Changed(id) => {
                    // Whoever still waits looks again, and asks for a new bell.
                    if let Some(bell) = world.held.remove(&id) {
                        bell.notify_waiters();
                    }
                }
                Happened::Notify(notice) => {
                    tokio::spawn(webhook::deliver(Arc::clone(self), notice));
                }
            }
        }
        let next = world.jobs.next_event();
        if next.is_some_and(|next| world.planned.is_none_or(|planned| next < planned)) {
            world.planned = next;
            self.earlier.notify_one();
        }
    }

    /// For the driver: lets everything due happen, and says when to come back.
    pub fn drive(self: &Arc<Self>) -> Option<Duration> {
        let mut world = self.world.lock();
        world.jobs.advance(self.clock.now());
        self.tell(&mut world);
        world.planned = world.jobs.next_event();
        world.planned
    }

    pub fn record_submission(&self, endpoint: &Endpoint, body: &[u8]) {
        self.submissions.lock().record(&endpoint.name, body);
    }

    pub fn set_faults(&self, faults: Faults) {
        let ppm = faults.clock_ppm;
        self.faults.set(faults);
        self.each_door(|door, now| door.skew(now, ppm));
    }

    pub fn reset(&self) {
        self.each_door(Door::reset);
        *self.submissions.lock() = Submissions::default();
        self.webhooks.delivered.store(0, Ordering::Relaxed);
        self.webhooks.failed.store(0, Ordering::Relaxed);
    }

    fn each_door(&self, act: impl Fn(&mut Door, Duration)) {
        for endpoint in self.endpoints.read().values() {
            for door in &endpoint.doors {
                let mut door = door.lock();
                act(&mut door, self.clock.now());
            }
        }
    }

    pub fn stats(&self) -> Value {
        let endpoints: Map<String, Value> = self
            .endpoints
            .read()
            .values()
            .map(|endpoint| (endpoint.name.to_string(), endpoint.stats()))
            .collect();
        let submissions = self.submissions.lock();
        json!({
            "endpoints": endpoints,
            "submissions": {
                "distinct": submissions.distinct,
                "repeated": submissions.repeated,
            },
            "webhooks": {
                "delivered": self.webhooks.delivered.load(Ordering::Relaxed),
                "failed": self.webhooks.failed.load(Ordering::Relaxed),
            },
        })
    }

    /// One arrival at a door. `Ok`: inside until the permit is dropped.
    pub fn enter(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        group: Group,
        plan: &Plan,
    ) -> Result<Permit, Refusal> {
        // Which operations mind a full queue is not said (contract, section 4): here those the sentence
        // stood below once, whatever else may bring a job.
        let backlog = matches!(group, Group::Run | Group::RunSync).then(|| {
            self.jobs(|jobs, _| Backlog {
                queued: jobs.queued(endpoint.id),
                workers_max: jobs.fleet(endpoint.id).workers,
            })
        });
        let mut door = endpoint.door(group);
        // Read under the lock, so that time does not run backwards at the door.
        door.arrive(self.clock.now(), backlog, plan.counts)?;
        Ok(Permit {
            shared: Arc::clone(self),
            endpoint: Arc::clone(endpoint),
            group,
            counts: plan.counts,
            late: plan.late_decrement,
        })
    }
}

impl Endpoint {
    fn door(&self, group: Group) -> parking_lot::MutexGuard<'_, Door> {
        self.doors[group as usize].lock()
    }

    fn stats(&self) -> Value {
        let seen = |group| (group, self.door(group).seen());
        let stats: Map<String, Value> = Group::ALL
            .into_iter()
            .map(seen)
            .map(|(group, seen)| (group.name().to_owned(), figures(&seen)))
            .collect();
        stats.into()
    }
}

fn figures(seen: &Seen) -> Value {
    json!({
        "arrived": seen.arrived,
        "accepted": seen.accepted,
        "refused": {
            "rate": seen.refused_rate,
            "concurrency": seen.refused_concurrency,
            "backlog": seen.refused_backlog,
        },
        "max_in_window": seen.max_in_window,
        "max_in_flight": seen.max_in_flight,
        "min_d_over_w": seen.min_d_over_w,
        "promise2": {
            "intervals": seen.intervals,
            "w_over_mean_d": seen.w_over_mean_d,
        },
    })
}

/// A place in flight, given back when it is dropped: response sent, client gone, reset alike.
pub(super) struct Permit {
    shared: Arc<Shared>,
    endpoint: Arc<Endpoint>,
    group: Group,
    counts: Counts,
    late: Duration,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut door = self.endpoint.door(self.group);
        door.leave(self.shared.clock.now(), self.late, self.counts);
    }
}
