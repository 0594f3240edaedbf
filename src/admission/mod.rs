//! May it go now? The async shell round the pure core: lanes by (account, endpoint, group), made
//! on demand, capped, and forgotten only when nobody could notice. No HTTP here.

pub mod clock;
pub mod lane;
pub mod resolved;
pub mod permit;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use parking_lot::RwLock;

use crate::admission::clock::Clock;
use crate::admission::lane::LaneCell;
use crate::admission::resolved::Resolved;
use crate::config::Config;
use crate::config::policy::{GroupPolicy, GroupVerdict};
use crate::limit::flow::FlowId;
use crate::limit::lane::Shed;
use crate::limit::local::{LocalLane, Recalled};
use crate::limit::memory::{Memory, Past};
use crate::limit::quota::Timestamp;
use crate::metrics::Metrics;
use crate::metrics::endpoint::EndpointMetrics;
use crate::metrics::lanes::LaneTotals;
use crate::operation::Group;
use crate::outcome::Outcome;

/// Whose budget a lane spends. One upstream account a gateway unless configured otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account(pub u16);

/// At the cap, idle lanes are looked for this often at most: it means looking at every lane.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl From<Shed> for Outcome {
    fn from(shed: Shed) -> Self {
        match shed {
            Shed::QueueFull { .. } => Outcome::QueueFull,
            Shed::OutOfReach { .. } => Outcome::OutOfReach,
            Shed::Paused { .. } => Outcome::Paused,
            Shed::WaitExpired { .. } => Outcome::WaitExpired,
        }
    }
}

/// All lanes of a process. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    metrics: Metrics,
    hasher: RandomState,
    /// The past of lanes that are new here, as of `ended`.
    unseen: Past,
    /// When an earlier process ended.
    ended: Timestamp,
    /// Sweeps that have begun.
    sweeps: AtomicU64,
    lanes: RwLock<Lanes>,
}

type ByGroup = [Option<Arc<LaneCell>>; Group::ALL.len()];

struct Lanes {
    /// The most of them with a life of their own.
    capacity: usize,
    /// What new lanes are made by, since there was a reload: who asks may have begun before it.
    config: Option<Arc<Config>>,
    /// Accounts are few, and nobody chooses their numbers: found without a hash.
    by_account: BTreeMap<Account, HashMap<Box<str>, ByGroup>>,
    count: usize,
    /// What endpoints past the cap share.
    overflow: HashMap<(Account, Group), Arc<LaneCell>>,
    made: u64,
    swept: Option<Timestamp>,
}

impl Lanes {
    fn find(&self, account: Account, endpoint: &str, group: Group) -> Option<Arc<LaneCell>> {
        self.by_account.get(&account)?.get(endpoint)?[group.index()].clone()
    }

    fn is_full(&self) -> bool {
        self.count >= self.capacity
    }

    /// Every lane, with the endpoint of those that belong to one.
    fn all(&self) -> impl Iterator<Item = (Account, Option<&str>, &Arc<LaneCell>)> {
        let endpoints = self.by_account.iter().flat_map(|(account, endpoints)| {
            endpoints
                .iter()
                .map(move |(endpoint, groups)| (*account, endpoint, groups))
        });
        let own = endpoints.flat_map(|(account, endpoint, groups)| {
            let lanes = groups.iter().flatten();
            lanes.map(move |lane| (account, Some(&**endpoint), lane))
        });
        let shared = self.overflow.iter();
        own.chain(shared.map(|((account, _), lane)| (*account, None, lane)))
    }
}

/// One lane and whose it is; `endpoint` is `None` for the one that those past the cap share.
#[derive(Clone)]
pub struct Listed {
    pub account: Account,
    pub endpoint: Option<Box<str>>,
    pub lane: Arc<LaneCell>,
}

/// One lane as the next process has to know it; `endpoint` as in [`Listed`].
#[derive(Clone, Debug)]
pub struct Remembered {
    pub account: Account,
    pub endpoint: Option<Box<str>>,
    pub group: Group,
    pub memory: Memory,
}

/// What an earlier process has left.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// How long ago that was.
    pub elapsed: Duration,
    pub lanes: Vec<Remembered>,
    /// The past of lanes of which it says nothing.
    pub unseen: Past,
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    Address(IpAddr),
    /// Whom its client has proved to be.
    Certificate(&'a [u8]),
    /// This host, by a Unix socket.
    Unix,
}

impl From<IpAddr> for Origin<'_> {
    fn from(address: IpAddr) -> Self {
        Origin::Address(address)
    }
}

impl Admission {
    /// `capacity`: the most lanes; endpoints past it share one lane a group.
    pub fn new(capacity: usize, metrics: Metrics) -> Self {
        Self::after(&Before::default(), capacity, metrics)
    }

    /// The same after an earlier process. The lanes it names are made by [`Admission::recall`].
    pub fn after(before: &Before, capacity: usize, metrics: Metrics) -> Self {
        let clock = Clock::start();
        Self {
            shared: Arc::new(Shared {
                clock,
                metrics,
                hasher: RandomState::new(),
                unseen: before.unseen.clone(),
                ended: clock.now().before(before.elapsed),
                sweeps: AtomicU64::new(0),
                lanes: RwLock::new(Lanes {
                    capacity,
                    config: None,
                    by_account: BTreeMap::new(),
                    count: 0,
                    overflow: HashMap::new(),
                    made: 0,
                    swept: None,
                }),
            }),
        }
    }

    /// Another configuration: every lane goes on by its limits, with the past and the waiters it has,
    /// and endpoints that it names have lanes from the start.
    pub fn retune(&self, config: Arc<Config>) {
        let mut lanes = self.shared.lanes.write();
        lanes.capacity = config.limits.lanes as usize;
        for (_, endpoint, lane) in lanes.all() {
            // A group that is rejected from here on keeps its limits for who is still in it.
            if let GroupVerdict::Policy(policy) = limits(&config, endpoint, lane.group()) {
                lane.retune(policy);
            }
        }
        lanes.config = Some(config.clone());
        drop(lanes);
        self.expect(&config);
    }

    /// Makes the lanes and the series of the endpoints that `config` names.
    pub fn expect(&self, config: &Config) {
        let metrics = &self.shared.metrics;
        for endpoint in config.named_endpoints() {
            metrics.expect(&metrics.endpoint(endpoint));
            for group in Group::ALL {
                if let GroupVerdict::Policy(policy) = config.group(endpoint, group) {
                    self.lane(Account::default(), endpoint, group, policy);
                }
            }
        }
    }

    /// Makes a lane that goes on from where it was left. Only before it is asked for.
    pub fn recall(&self, remembered: &Remembered, config: &Config) {
        let shared = &self.shared;
        let mut lanes = shared.lanes.write();
        let Remembered { account, group, .. } = *remembered;
        let memory = &remembered.memory;
        let endpoint = remembered.endpoint.as_deref();
        let GroupVerdict::Policy(policy) = limits(config, endpoint, group) else {
            return;
        };
        match endpoint {
            Some(endpoint) if !lanes.is_full() => {
                shared.own(&mut lanes, account, endpoint, group, policy, memory);
            }
            _ => {
                let cell = shared.cell(&mut lanes, None, group, policy, memory);
                lanes.overflow.entry((account, group)).or_insert(cell);
            }
        }
    }

    /// What the next process has to know.
    pub fn remember(&self) -> Vec<Remembered> {
        let remember = |listed: Listed| Remembered {
            account: listed.account,
            endpoint: listed.endpoint,
            group: listed.lane.group(),
            memory: listed.lane.remember(),
        };
        self.list().into_iter().map(remember).collect()
    }

    /// The lane of one group of one endpoint, made with `policy` if it is new.
    pub fn lane(
        &self,
        account: Account,
        endpoint: &str,
        group: Group,
        policy: &GroupPolicy,
    ) -> Arc<LaneCell> {
        if let Some(lane) = self.shared.lanes.read().find(account, endpoint, group) {
            return lane;
        }
        let mut lanes = self.shared.lanes.write();
        if let Some(lane) = lanes.find(account, endpoint, group) {
            return lane;
        }
        self.shared
            .make(&mut lanes, account, endpoint, group, policy)
    }

    /// The same for a worker that remembers what it has found.
    pub fn resolve(
        &self,
        resolved: &Resolved,
        account: Account,
        endpoint: &str,
        group: Group,
        policy: &GroupPolicy,
    ) -> Arc<LaneCell> {
        let sweeps = self.shared.sweeps.load(Ordering::SeqCst);
        if let Some(lane) = resolved.find(account, endpoint, group, sweeps) {
            // A sweep first says that it has begun and then counts who holds a lane; here it is held
            // first. So either the sweep counts this, or this sees the sweep: never neither.
            fence(Ordering::SeqCst);
            if self.shared.sweeps.load(Ordering::SeqCst) == sweeps {
                return lane;
            }
        }
        let found = self.shared.lanes.read().find(account, endpoint, group);
        match found {
            Some(lane) => {
                resolved.keep(account, endpoint, &lane, sweeps);
                lane
            }
            // Made or shared: whether it is this endpoint's own shows when it is found.
            None => self.lane(account, endpoint, group, policy),
        }
    }

    /// Every lane, in no order.
    pub fn list(&self) -> Vec<Listed> {
        let lanes = self.shared.lanes.read();
        let listed = |(account, endpoint, lane): (_, Option<&str>, &Arc<LaneCell>)| Listed {
            account,
            endpoint: endpoint.map(Box::from),
            lane: lane.clone(),
        };
        lanes.all().map(listed).collect()
    }

    /// Brings what the metrics say of lanes up to now: called before a page is written.
    pub fn show(&self) {
        let mut totals: HashMap<
            (Group, *const EndpointMetrics),
            (Arc<EndpointMetrics>, LaneTotals),
        > = HashMap::new();
        for Listed { lane, .. } in self.list() {
            let key = (lane.group(), Arc::as_ptr(lane.metrics()));
            let (_, sum) = totals
                .entry(key)
                .or_insert_with(|| (lane.metrics().clone(), LaneTotals::default()));
            let view = lane.view();
            sum.add(&view.snapshot, view.queued);
        }
        for ((group, _), (endpoint, sum)) in totals {
            self.shared.metrics.show(group, &endpoint, &sum);
        }
    }

    /// The flow of a request: by a credential the upstream has accepted together with where it
    /// comes from; without one, all of an address (of an IPv6 /64) are one flow, all who prove
    /// themselves as the same, and all who come by a Unix socket. Keyed anew in each process, so
    /// that nobody can choose whose flow to share.
    pub fn flow<'a>(&self, origin: impl Into<Origin<'a>>, credential: Option<u64>) -> FlowId {
        let mut hasher = self.shared.hasher.build_hasher();
        match origin.into() {
            Origin::Address(address) => match address.to_canonical() {
                IpAddr::V4(address) => address.hash(&mut hasher),
                IpAddr::V6(address) => address.octets()[..8].hash(&mut hasher),
            },
            Origin::Certificate(name) => name.hash(&mut hasher),
            Origin::Unix => {}
        }
        credential.hash(&mut hasher);
        FlowId(hasher.finish())
    }
}

/// What a lane is allowed. Endpoints past the cap have the limits of one that has no name.
fn limits<'a>(config: &'a Config, endpoint: Option<&str>, group: Group) -> GroupVerdict<'a> {
    config.group(endpoint.unwrap_or_default(), group)
}

impl Shared {
    fn make(
        &self,
        lanes: &mut Lanes,
        account: Account,
        endpoint: &str,
        group: Group,
        policy: &GroupPolicy,
    ) -> Arc<LaneCell> {
        let config = lanes.config.clone();
        let policy = match config.as_ref().map(|config| config.group(endpoint, group)) {
            Some(GroupVerdict::Policy(policy)) => policy,
            _ => policy,
        };
        let now = self.clock.now();
        if lanes.is_full() {
            self.sweep(lanes, now);
        }
        // What this endpoint did through the lane it shared is not known apart: while anybody waits
        // there, is out from there, or has found it and will ask it, it goes on sharing; while that
        // lane's window is not empty a lane of its own starts as spent.
        let busy = lanes.overflow.get(&(account, group)).is_some_and(|lane| {
            Arc::strong_count(lane) > 1 || lane.view().snapshot.permits_in_use > 0
        });
        let shared = lanes.overflow.get(&(account, group)).cloned();
        if lanes.is_full() || busy {
            return shared.unwrap_or_else(|| {
                let lane = self.cell(lanes, None, group, policy, &self.new_here());
                lanes.overflow.insert((account, group), lane.clone());
                lane
            });
        }
        let memory = match shared {
            Some(lane) if !lane.is_spent_free() => Memory {
                past: Past::Unknown {
                    ahead: now.since(self.ended) + policy.quota.margin,
                },
                ..Memory::default()
            },
            _ => self.new_here(),
        };
        self.own(lanes, account, endpoint, group, policy, &memory)
    }

    /// What is known of a lane that is new here.
    fn new_here(&self) -> Memory {
        Memory {
            past: self.unseen.clone(),
            ..Memory::default()
        }
    }

    /// An endpoint's own lane.
    fn own(
        &self,
        lanes: &mut Lanes,
        account: Account,
        endpoint: &str,
        group: Group,
        policy: &GroupPolicy,
        memory: &Memory,
    ) -> Arc<LaneCell> {
        let lane = self.cell(lanes, Some(endpoint), group, policy, memory);
        let endpoints = lanes.by_account.entry(account).or_default();
        endpoints.entry(endpoint.into()).or_default()[group.index()] = Some(lane.clone());
        lanes.count += 1;
        lane
    }

    /// A lane with `memory` as of `ended`.
    fn cell(
        &self,
        lanes: &mut Lanes,
        endpoint: Option<&str>,
        group: Group,
        policy: &GroupPolicy,
        memory: &Memory,
    ) -> Arc<LaneCell> {
        let now = self.clock.now();
        lanes.made += 1;
        let seed = self.hasher.hash_one(lanes.made);
        let recalled = Recalled {
            memory,
            elapsed: now.since(self.ended),
        };
        let core = LocalLane::recall(policy.quota, policy.queue, policy.mode, seed, recalled, now);
        let metrics = match endpoint {
            Some(endpoint) => self.metrics.endpoint(endpoint),
            None => self.metrics.other(),
        };
        metrics.expect_lane(group);
        Arc::new(LaneCell::new(core, group, metrics, self.clock))
    }

    /// Forgets lanes that nobody holds and that have nothing to remember. Whoever holds one got it
    /// under the lock taken here, or looks after it had it whether this has begun, so that none is
    /// forgotten between being found and being asked.
    fn sweep(&self, lanes: &mut Lanes, now: Timestamp) {
        if lanes
            .swept
            .is_some_and(|swept| now.since(swept) < SWEEP_EVERY)
        {
            return;
        }
        lanes.swept = Some(now);
        self.sweeps.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let idle = |lane: &Arc<LaneCell>| Arc::strong_count(lane) == 1 && lane.is_idle();
        let mut gone = 0;
        for endpoints in lanes.by_account.values_mut() {
            endpoints.retain(|_, groups| {
                for lane in groups
                    .iter_mut()
                    .filter(|lane| lane.as_ref().is_some_and(idle))
                {
                    *lane = None;
                    gone += 1;
                }
                groups.iter().any(Option::is_some)
            });
        }
        lanes.count -= gone;
    }
}
