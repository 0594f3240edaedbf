//! The job store and its simulated workers: submissions in, states out, at given times.
//!
//! Pure: whoever calls passes `now`, which must not run backwards, and calls again at
//! [`Jobs::next_event`]. Everything happens at its exact time, however late the call is. Every job has
//! one timer; no request walks over other jobs. Bounded in jobs and bytes: the oldest ended job goes
//! first.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::id::{JobId, Random};
use super::job::{Job, Notice, Order, State, Step, View};
use super::site::{Fleet, Health, Site};

/// What the store keeps, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// After a `/run` job ended: 30 min (seed).
    pub run: Duration,
    /// After a `/runsync` job ended: 60 s (seed); "up to 5 min" elsewhere.
    pub runsync: Duration,
    pub most_jobs: usize,
    /// Of inputs and outputs.
    pub most_bytes: usize,
}

impl Default for Keeping {
    /// As documented, up to 500,000 jobs (100 a second for 30 minutes is 180,000) and 512 MiB.
    fn default() -> Self {
        Self {
            run: Duration::from_secs(30 * 60),
            runsync: Duration::from_secs(60),
            most_jobs: 500_000,
            most_bytes: 512 << 20,
        }
    }
}

/// The number of an endpoint in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(usize);

/// The store is full, and no job in it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Something others may wait for.
#[derive(Debug)]
pub enum Happened {
    /// The job yielded a chunk, ended, or is gone.
    Changed(JobId),
    /// A webhook is to be told.
    Notify(Box<Notice>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Boot(EndpointId, u64),
    Job(JobId),
}

/// All jobs of all endpoints.
#[derive(Debug)]
pub struct Jobs {
    keeping: Keeping,
    random: Random,
    sites: Vec<Site>,
    /// Boxed: a table has room to spare, and a job is some 400 bytes.
    jobs: HashMap<JobId, Box<Job>>,
    bytes: usize,
    timers: BTreeSet<(Duration, Timer)>,
    ended: BTreeSet<(Duration, JobId)>,
    tickets: u64,
    happened: Vec<Happened>,
}

impl Jobs {
    /// Ids follow from `seed`.
    pub fn new(keeping: Keeping, seed: u64) -> Self {
        Self {
            keeping,
            random: Random::new(seed),
            sites: Vec::new(),
            jobs: HashMap::new(),
            bytes: 0,
            timers: BTreeSet::new(),
            ended: BTreeSet::new(),
            tickets: 0,
            happened: Vec::new(),
        }
    }

    pub fn add_endpoint(&mut self, fleet: Fleet) -> EndpointId {
        self.sites.push(Site::new(fleet));
        EndpointId(self.sites.len() - 1)
    }

    /// Lets everything happen that is due.
    pub fn advance(&mut self, now: Duration) {
        while let Some(&(at, timer)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            match timer {
                Timer::Boot(endpoint, _) => {
                    self.sites[endpoint.0].ready();
                    self.dispatch(endpoint, at);
                }
                Timer::Job(id) => self.due(id, at),
            }
        }
    }

    /// When [`Jobs::advance`] has something to do.
    pub fn next_event(&self) -> Option<Duration> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// What happened since it was last asked.
    pub fn take_happened(&mut self) -> Vec<Happened> {
        std::mem::take(&mut self.happened)
    }

    pub fn submit(
        &mut self,
        endpoint: EndpointId,
        order: Order,
        now: Duration,
    ) -> Result<JobId, Full> {
        self.advance(now);
        self.make_room(order.input.get().len())?;
        let id = self.random.job_id(order.sync);
        let ticket = self.ticket();
        let job = Job::new(endpoint.0, order, ticket, now);
        self.bytes += job.bytes();
        self.jobs.insert(id, Box::new(job));
        self.sites[endpoint.0].queue.insert(ticket, id);
        self.arm(id);
        self.dispatch(endpoint, now);
        self.advance(now);
        Ok(id)
    }

    /// `None`: no such job at this endpoint, or no more.
    pub fn status(&self, endpoint: EndpointId, id: JobId) -> Option<View> {
        self.find(endpoint, id).map(|job| job.view(id))
    }

    /// Leaves the job at most `ttl` to live from now on (`/status?ttl=`).
    pub fn shorten(&mut self, endpoint: EndpointId, id: JobId, ttl: Duration, now: Duration) {
        if self.find(endpoint, id).is_some()
            && let Some(job) = self.jobs.get_mut(&id)
        {
            job.expires = job.expires.min(now + ttl);
            self.arm(id);
            self.advance(now);
        }
    }

    /// The state and the chunks yielded and not yet handed over, which are handed over hereby.
    pub fn drain(&mut self, endpoint: EndpointId, id: JobId) -> Option<(State, Range<u32>)> {
        self.find(endpoint, id)?;
        let job = self.jobs.get_mut(&id)?;
        let chunks = job.drained..job.yielded;
        job.drained = job.yielded;
        Some((job.state, chunks))
    }

    /// Ends a job that has not ended. What the service answers for one that has is unknown: here it
    /// stays as it is, and its view says so.
    pub fn cancel(&mut self, endpoint: EndpointId, id: JobId, now: Duration) -> Option<View> {
        let job = self.find(endpoint, id)?;
        if !job.state.is_final() {
            self.end(id, State::Cancelled, now);
            self.advance(now);
        }
        self.status(endpoint, id)
    }

    /// FAILED and TIMED_OUT jobs go back to the queue; `Some(false)`: the job is in another state.
    pub fn retry(&mut self, endpoint: EndpointId, id: JobId, now: Duration) -> Option<bool> {
        let job = self.find(endpoint, id)?;
        if !matches!(job.state, State::Failed | State::TimedOut) {
            return Some(false);
        }
        if let Some(ended) = job.ended {
            self.ended.remove(&(ended, id));
        }
        self.requeue(id);
        self.arm(id);
        self.dispatch(endpoint, now);
        self.advance(now);
        Some(true)
    }

    /// Removes what waits; what `/status` then says is unknown, here the job is gone. How many.
    pub fn purge(&mut self, endpoint: EndpointId) -> u64 {
        let waiting: Vec<JobId> = self.sites[endpoint.0].queue.values().copied().collect();
        waiting.iter().for_each(|&id| self.delete(id));
        waiting.len() as u64
    }

    pub fn queued(&self, endpoint: EndpointId) -> u64 {
        self.sites[endpoint.0].queue.len() as u64
    }

    pub fn fleet(&self, endpoint: EndpointId) -> Fleet {
        self.sites[endpoint.0].fleet
    }

    pub fn health(&self, endpoint: EndpointId) -> Health {
        self.sites[endpoint.0].health()
    }

    /// The jobs that run, then those that wait, `most` of them.
    pub fn open(&self, endpoint: EndpointId, most: usize) -> Vec<View> {
        let site = &self.sites[endpoint.0];
        let ids = site.running.iter().chain(site.queue.values());
        ids.take(most)
            .filter_map(|&id| self.status(endpoint, id))
            .collect()
    }

    fn find(&self, endpoint: EndpointId, id: JobId) -> Option<&Job> {
        let job = self.jobs.get(&id)?;
        (job.endpoint == endpoint.0).then_some(job)
    }

    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// Gives waiting jobs to idle workers, and boots workers for the rest.
    fn dispatch(&mut self, endpoint: EndpointId, now: Duration) {
        while let Some((worker, id)) = self.sites[endpoint.0].take() {
            if let Some(job) = self.jobs.get_mut(&id) {
                job.start(worker, now);
                self.arm(id);
            }
        }
        let site = &mut self.sites[endpoint.0];
        let ready_at = now + site.fleet.cold_start;
        for _ in 0..site.boot() {
            let boot = Timer::Boot(endpoint, self.ticket());
            self.timers.insert((ready_at, boot));
        }
    }

    /// The job's timer has rung.
    fn due(&mut self, id: JobId, now: Duration) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.due = None;
        let endpoint = EndpointId(job.endpoint);
        if now >= job.expires || job.state.is_final() {
            self.delete(id);
            return self.dispatch(endpoint, now);
        }
        match job.step(now) {
            Step::Nothing => self.arm(id),
            Step::Yielded => {
                self.happened.push(Happened::Changed(id));
                self.arm(id);
            }
            Step::End(state) => self.end(id, state, now),
            Step::Lost => {
                job.retries += 1;
                let worker = job.worker;
                self.sites[endpoint.0].release(id, worker);
                self.requeue(id);
                self.arm(id);
                self.dispatch(endpoint, now);
            }
        }
    }

    fn requeue(&mut self, id: JobId) {
        let ticket = self.ticket();
        if let Some(job) = self.jobs.get_mut(&id) {
            self.bytes -= job.bytes();
            job.requeue(ticket);
            self.bytes += job.bytes();
            let site = &mut self.sites[job.endpoint];
            site.queue.insert(ticket, id);
            site.retried += 1;
        }
    }

    fn end(&mut self, id: JobId, state: State, now: Duration) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let site = &mut self.sites[job.endpoint];
        site.queue.remove(&job.ticket);
        site.release(id, job.worker);
        self.bytes -= job.bytes();
        job.end(state, now);
        self.bytes += job.bytes();
        match state {
            State::Completed => site.completed += 1,
            State::Failed | State::TimedOut => site.failed += 1,
            _ => {}
        }
        self.happened.push(Happened::Changed(id));
        // "Completion, failure or timeout": not when cancelled.
        if let Some(webhook) = job.order.webhook.clone()
            && state != State::Cancelled
        {
            self.happened.push(Happened::Notify(Box::new(Notice {
                view: job.view(id),
                input: Arc::clone(&job.order.input),
                webhook,
            })));
        }
        let endpoint = EndpointId(job.endpoint);
        self.ended.insert((now, id));
        self.arm(id);
        self.dispatch(endpoint, now);
    }

    fn delete(&mut self, id: JobId) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        self.bytes -= job.bytes();
        let site = &mut self.sites[job.endpoint];
        site.queue.remove(&job.ticket);
        site.release(id, job.worker);
        if let Some(due) = job.due {
            self.timers.remove(&(due, Timer::Job(id)));
        }
        if let Some(ended) = job.ended {
            self.ended.remove(&(ended, id));
        }
        self.happened.push(Happened::Changed(id));
    }

    /// Sets the job's timer to what comes next.
    fn arm(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if let Some(due) = job.due.take() {
            self.timers.remove(&(due, Timer::Job(id)));
        }
        let retention = if id.sync {
            self.keeping.runsync
        } else {
            self.keeping.run
        };
        let due = job.next_due(retention);
        job.due = Some(due);
        self.timers.insert((due, Timer::Job(id)));
    }

    fn make_room(&mut self, bytes: usize) -> Result<(), Full> {
        let Keeping {
            most_jobs,
            most_bytes,
            ..
        } = self.keeping;
        while self.jobs.len() >= most_jobs || self.bytes.saturating_add(bytes) > most_bytes {
            let (_, oldest) = self.ended.first().copied().ok_or(Full)?;
            self.delete(oldest);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
