//! Lanes that one worker found lately: most requests want the lane of one before them, and need not
//! look for it where all workers look.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::admission::Account;
use crate::admission::lane::LaneCell;
use crate::operation::Group;

/// Lanes of one worker.
const KEPT: usize = 16;

/// One worker's. What it holds keeps no lane from being forgotten.
#[derive(Default)]
pub struct Resolved(Mutex<Found>);

#[derive(Default)]
struct Found {
    /// Sweeps before they were found: one since may have forgotten any of them.
    sweeps: u64,
    lanes: Vec<(Account, Box<str>, Group, Weak<LaneCell>)>,
    /// The next to make room.
    next: usize,
}

impl Resolved {
    /// The lane that was found before the last of so many sweeps began, if it was found at all. Whether
    /// another sweep has begun is to be asked once it is held.
    pub(super) fn find(
        &self,
        account: Account,
        endpoint: &str,
        group: Group,
        sweeps: u64,
    ) -> Option<Arc<LaneCell>> {
        let found = self.0.lock();
        if found.sweeps != sweeps {
            return None;
        }
        let is = |(a, e, g, _): &&(Account, Box<str>, Group, _)| {
            *a == account && **e == *endpoint && *g == group
        };
        found.lanes.iter().find(is)?.3.upgrade()
    }

    /// This lane was found, after so many sweeps.
    pub(super) fn keep(&self, account: Account, endpoint: &str, lane: &Arc<LaneCell>, sweeps: u64) {
        let mut found = self.0.lock();
        if found.sweeps != sweeps {
            found.lanes.clear();
            found.sweeps = sweeps;
        }
        let entry = (account, endpoint.into(), lane.group(), Arc::downgrade(lane));
        match found.lanes.len() < KEPT {
            true => found.lanes.push(entry),
            false => {
                let at = found.next % KEPT;
                found.lanes[at] = entry;
                found.next = at + 1;
            }
        }
    }
}
