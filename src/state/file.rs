//! What lies in the state directory: written whole or not at all, and read with suspicion.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::admission::{Account, Remembered};
use crate::limit::ledger::Call;
use crate::limit::memory::{Learnt, Memory, Out, Past};
use crate::operation::Group;

/// Another form would be another number: what this process cannot read it does not trust.
const VERSION: u32 = 1;

/// The lanes as they stood.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Written {
    version: u32,
    /// Milliseconds since 1970.
    pub at: u64,
    pub lanes: Vec<WrittenLane>,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct WrittenLane {
    #[serde(default)]
    account: u16,
    /// `None`: what endpoints past the cap share.
    endpoint: Option<String>,
    group: String,
    /// Nanoseconds; `None`: nothing was kept but what was learnt.
    past: Option<WrittenPast>,
    learnt: WrittenLearnt,
}

#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
struct WrittenPast {
    ahead: u64,
    /// `None`: unknown.
    arrivals: Option<Vec<u64>>,
    /// Spans until they are free, of short and of held calls.
    short: Vec<u64>,
    held: Vec<u64>,
    tokens: Option<u32>,
    paused: u64,
}

#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
struct WrittenLearnt {
    requests: Option<u32>,
    burst: Option<u32>,
    concurrency: Option<u32>,
    relearn_after: u32,
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl Written {
    pub fn new(at: u64, lanes: impl Iterator<Item = WrittenLane>) -> Self {
        Self {
            version: VERSION,
            at,
            lanes: lanes.collect(),
        }
    }

    /// # Errors
    /// There is none, or none that this process can trust.
    pub fn read(path: &Path) -> io::Result<Self> {
        let written: Self = serde_json::from_slice(&fs::read(path)?)?;
        match written.version {
            VERSION => Ok(written),
            other => Err(io::Error::other(format!(
                "its version is {other}, this podgate knows {VERSION}"
            ))),
        }
    }

    /// Replaces what was there. `durable`: it must survive the machine, not only the process.
    pub fn write(&self, path: &Path, durable: bool) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&new, path)?;
        if durable && let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

impl WrittenLane {
    /// All that is known of a lane.
    pub fn whole(remembered: &Remembered) -> Self {
        let memory = &remembered.memory;
        let free_in = |call: Call| {
            let permits = memory.permits.iter().filter(move |out| out.call == call);
            permits.map(|out| nanos(out.free_in)).collect()
        };
        let (ahead, arrivals) = match &memory.past {
            Past::Unknown { ahead } => (ahead, None),
            Past::Known { ahead, arrivals } => {
                let arrivals = arrivals.iter().copied().map(nanos).collect();
                (ahead, Some(arrivals))
            }
        };
        Self {
            past: Some(WrittenPast {
                ahead: nanos(*ahead),
                arrivals,
                short: free_in(Call::Short),
                held: free_in(Call::Held),
                tokens: memory.tokens,
                paused: nanos(memory.paused),
            }),
            ..Self::learnt(remembered)
        }
    }

    /// Only what it has learnt.
    pub fn learnt(remembered: &Remembered) -> Self {
        let learnt = &remembered.memory.learnt;
        Self {
            account: remembered.account.0,
            endpoint: remembered.endpoint.as_deref().map(str::to_owned),
            group: remembered.group.name().to_owned(),
            past: None,
            learnt: WrittenLearnt {
                requests: learnt.requests,
                burst: learnt.burst,
                concurrency: learnt.concurrency,
                relearn_after: learnt.relearn_after,
            },
        }
    }

    /// The lane again; where nothing of its past was kept, that is `otherwise`. `None`: this podgate
    /// has no such group.
    pub fn remembered(self, otherwise: &Past) -> Option<Remembered> {
        let group = Group::ALL.into_iter().find(|g| g.name() == self.group)?;
        let learnt = Learnt {
            requests: self.learnt.requests,
            burst: self.learnt.burst,
            concurrency: self.learnt.concurrency,
            relearn_after: self.learnt.relearn_after,
        };
        let memory = match self.past {
            None => Memory {
                past: otherwise.clone(),
                learnt,
                ..Memory::default()
            },
            Some(past) => past.memory(learnt),
        };
        Some(Remembered {
            account: Account(self.account),
            endpoint: self.endpoint.map(Box::from),
            group,
            memory,
        })
    }
}

impl WrittenPast {
    fn memory(self, learnt: Learnt) -> Memory {
        let span = Duration::from_nanos;
        let ahead = span(self.ahead);
        let out = |call: Call| {
            move |free_in| Out {
                free_in: span(free_in),
                call,
            }
        };
        let short = self.short.into_iter().map(out(Call::Short));
        let held = self.held.into_iter().map(out(Call::Held));
        Memory {
            past: match self.arrivals {
                None => Past::Unknown { ahead },
                Some(arrivals) => Past::Known {
                    ahead,
                    arrivals: arrivals.into_iter().map(span).collect(),
                },
            },
            permits: short.chain(held).collect(),
            tokens: self.tokens,
            learnt,
            paused: span(self.paused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered() -> Remembered {
        let span = Duration::from_nanos;
        Remembered {
            account: Account::default(),
            endpoint: Some("ep".into()),
            group: Group::RunSync,
            memory: Memory {
                past: Past::Known {
                    ahead: span(250),
                    arrivals: vec![span(900), span(3), span(0)],
                },
                permits: vec![
                    Out {
                        free_in: span(5),
                        call: Call::Short,
                    },
                    Out {
                        free_in: span(7),
                        call: Call::Held,
                    },
                ],
                tokens: Some(12),
                learnt: Learnt {
                    burst: Some(62),
                    relearn_after: 60,
                    ..Learnt::default()
                },
                paused: span(77),
            },
        }
    }

    fn again(lane: WrittenLane, otherwise: &Past) -> Remembered {
        let text = serde_json::to_string(&Written::new(1, [lane].into_iter())).unwrap();
        let mut written: Written = serde_json::from_str(&text).unwrap();
        written.lanes.remove(0).remembered(otherwise).unwrap()
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let before = remembered();
        let after = again(WrittenLane::whole(&before), &Past::default());
        assert_eq!(after.memory, before.memory);
        assert_eq!(
            (after.endpoint, after.group),
            (before.endpoint, before.group)
        );
    }

    #[test]
    fn of_a_beat_only_what_was_learnt_is_known() {
        let before = remembered();
        let unknown = Past::Unknown {
            ahead: Duration::from_secs(2),
        };
        let after = again(WrittenLane::learnt(&before), &unknown);
        assert_eq!(after.memory.learnt, before.memory.learnt);
        assert_eq!(after.memory.past, unknown);
    }

    #[test]
    fn a_group_that_is_no_more_is_left_out() {
        let mut lane = WrittenLane::whole(&remembered());
        lane.group = "gone".to_owned();
        assert!(lane.remembered(&Past::default()).is_none());
    }
}
