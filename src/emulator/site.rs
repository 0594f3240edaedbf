//! One endpoint's queue and simulated workers. Every worker runs one job at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::id::JobId;

/// The workers of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// workersMax, and how many there are. None: jobs wait for ever, and the queue is full above 50.
    pub workers: u32,
    /// From the first job that needs a worker to its being ready, once per worker; they stay warm.
    pub cold_start: Duration,
}

impl Default for Fleet {
    /// Ten workers, so that a hundred jobs a second of a tenth of a second each are kept up with.
    fn default() -> Self {
        Self {
            workers: 10,
            cold_start: Duration::ZERO,
        }
    }
}

#[derive(Debug)]
pub(super) struct Site {
    pub fleet: Fleet,
    /// By ticket: first come, first served.
    pub queue: BTreeMap<u64, JobId>,
    pub running: BTreeSet<JobId>,
    idle: Vec<u32>,
    booting: u32,
    booted: u32,
    pub completed: u64,
    pub failed: u64,
    pub retried: u64,
}

impl Site {
    pub fn new(fleet: Fleet) -> Self {
        let warm = if fleet.cold_start.is_zero() {
            fleet.workers
        } else {
            0
        };
        Self {
            fleet,
            queue: BTreeMap::new(),
            running: BTreeSet::new(),
            idle: (0..warm).rev().collect(),
            booting: 0,
            booted: warm,
            completed: 0,
            failed: 0,
            retried: 0,
        }
    }

    /// A worker and the job it takes, if there are both.
    pub fn take(&mut self) -> Option<(u32, JobId)> {
        let worker = *self.idle.last()?;
        let (_, id) = self.queue.pop_first()?;
        self.idle.pop();
        self.running.insert(id);
        Some((worker, id))
    }

    /// Workers to boot now, because jobs wait for them.
    pub fn boot(&mut self) -> u32 {
        let cold = self.fleet.workers - self.booted - self.booting;
        let waiting = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        let wanted = waiting.saturating_sub(self.booting).min(cold);
        self.booting += wanted;
        wanted
    }

    pub fn ready(&mut self) {
        self.idle.push(self.booted);
        self.booted += 1;
        self.booting -= 1;
    }

    /// The job has left its worker.
    pub fn release(&mut self, id: JobId, worker: Option<u32>) {
        if self.running.remove(&id)
            && let Some(worker) = worker
        {
            self.idle.push(worker);
        }
    }

    pub fn health(&self) -> Health {
        // Equal in every real snapshot seen.
        let idle = self.idle.len() as u64;
        Health {
            jobs: JobCounts {
                completed: self.completed,
                failed: self.failed,
                in_progress: self.running.len() as u64,
                in_queue: self.queue.len() as u64,
                retried: self.retried,
            },
            workers: WorkerCounts {
                idle,
                initializing: u64::from(self.booting),
                ready: idle,
                running: self.running.len() as u64,
                throttled: 0,
                unhealthy: 0,
            },
        }
    }
}

/// The answer of `/health` (contract, section 1.10). Ended jobs are counted from the beginning; over
/// which span the service counts them is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    pub jobs: JobCounts,
    pub workers: WorkerCounts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobCounts {
    pub completed: u64,
    pub failed: u64,
    pub in_progress: u64,
    pub in_queue: u64,
    pub retried: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerCounts {
    pub idle: u64,
    pub initializing: u64,
    pub ready: u64,
    pub running: u64,
    pub throttled: u64,
    pub unhealthy: u64,
}
