//! The documented limits (contract, section 1.1), and the queue-full rule.

use std::ops::{Index, IndexMut};
use std::time::Duration;

use super::policer::Policer;

/// Operations that share one limit (contract, section 1.1): `status`, `status-sync` and `stream` are
/// the group [`Group::Status`], every other operation is a group of its own. Newer documentation gives
/// `status` and `stream` a row each, with the same numbers; the seed wins, and it is the stricter reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    Run,
    RunSync,
    Status,
    Cancel,
    Retry,
    PurgeQueue,
    Health,
    Requests,
    OpenAi,
}

impl Group {
    pub const ALL: [Group; 9] = [
        Group::Run,
        Group::RunSync,
        Group::Status,
        Group::Cancel,
        Group::Retry,
        Group::PurgeQueue,
        Group::Health,
        Group::Requests,
        Group::OpenAi,
    ];

    /// The name in `/__emulator/stats`.
    pub const fn name(self) -> &'static str {
        match self {
            Group::Run => "run",
            Group::RunSync => "runsync",
            Group::Status => "status",
            Group::Cancel => "cancel",
            Group::Retry => "retry",
            Group::PurgeQueue => "purge-queue",
            Group::Health => "health",
            Group::Requests => "requests",
            Group::OpenAi => "openai",
        }
    }

    pub fn named(name: &str) -> Option<Group> {
        Group::ALL.into_iter().find(|group| group.name() == name)
    }
}

/// What one group may do at one endpoint. Newer documentation lets the limit grow with the workers that
/// run, by numbers it does not give: here it stays at its base, which is never above that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// N; `None`: any number.
    pub requests: Option<u32>,
    /// W. Also the window of the witness where `requests` is `None`.
    pub window: Duration,
    /// C, in flight at once; `None`: any number. What the documentation means by "concurrent" is
    /// contradictory (contract, section 3): here it is a cap on what is inside.
    pub concurrency: Option<u32>,
    /// `None`: the emulator's own policer.
    pub policer: Option<Policer>,
}

impl Limit {
    /// N per ten seconds, the window of every documented limit (seed).
    const fn per_ten_seconds(requests: Option<u32>, concurrency: Option<u32>) -> Self {
        Self {
            requests,
            window: Duration::from_secs(10),
            concurrency,
            policer: None,
        }
    }

    /// The documented limit (contract, section 1.1). What no source gives a number for is not limited:
    /// `health` and `retry`, and how many purges there are at once.
    pub const fn documented(group: Group) -> Self {
        let (requests, concurrency) = match group {
            Group::Run => (Some(1000), Some(200)),
            Group::RunSync | Group::Status | Group::OpenAi => (Some(2000), Some(400)),
            Group::Cancel => (Some(100), Some(20)),
            Group::PurgeQueue => (Some(2), None),
            Group::Requests => (Some(10), Some(2)),
            Group::Health | Group::Retry => (None, None),
        };
        Self::per_ten_seconds(requests, concurrency)
    }
}

/// The limits of every group; the documented ones unless changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits([Limit; Group::ALL.len()]);

impl Default for Limits {
    fn default() -> Self {
        Self(Group::ALL.map(Limit::documented))
    }
}

impl Index<Group> for Limits {
    type Output = Limit;

    fn index(&self, group: Group) -> &Limit {
        &self.0[group as usize]
    }
}

impl IndexMut<Group> for Limits {
    fn index_mut(&mut self, group: Group) -> &mut Limit {
        &mut self.0[group as usize]
    }
}

/// The queue a submission would join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Jobs waiting, as `/health` says in `jobs.inQueue`; running ones are not counted (the contract
    /// says unknown).
    pub queued: u64,
    pub workers_max: u32,
}

impl Backlog {
    /// More than 50 AND more than `workersMax` x 500 (seed), asked before the newcomer is added.
    pub fn is_full(self) -> bool {
        self.queued > 50 && self.queued > u64::from(self.workers_max) * 500
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_table() {
        let table = [
            (Group::Run, Some(1000), Some(200)),
            (Group::RunSync, Some(2000), Some(400)),
            (Group::Status, Some(2000), Some(400)),
            (Group::Cancel, Some(100), Some(20)),
            (Group::Retry, None, None),
            (Group::PurgeQueue, Some(2), None),
            (Group::Health, None, None),
            (Group::Requests, Some(10), Some(2)),
            (Group::OpenAi, Some(2000), Some(400)),
        ];
        let limits = Limits::default();
        assert_eq!(table.map(|row| row.0), Group::ALL);
        for (group, requests, concurrency) in table {
            assert_eq!(limits[group].requests, requests, "{}", group.name());
            assert_eq!(limits[group].concurrency, concurrency, "{}", group.name());
            assert_eq!(limits[group].window, Duration::from_secs(10));
            assert_eq!(Group::named(group.name()), Some(group));
        }
    }

    #[test]
    fn the_queue_is_full_above_both_lines() {
        let full = |queued, workers_max| {
            Backlog {
                queued,
                workers_max,
            }
            .is_full()
        };
        assert!(!full(50, 0));
        assert!(full(51, 0));
        assert!(!full(500, 1));
        assert!(full(501, 1));
        assert!(!full(1500, 3));
        assert!(full(1501, 3));
    }
}
