//! What processes and the machine have used so far, as Linux tells in `/proc`.

use std::ops::Sub;
use std::time::Duration;

fn ticks(count: u64) -> Duration {
    Duration::from_secs(1) * u32::try_from(count).expect("some weeks fit")
        / u32::try_from(rustix::param::clock_ticks_per_second()).expect("100, mostly")
}

/// The fields of `/proc/<id>/stat` behind the name, which may hold anything; `None`: it has ended.
fn stat(id: u32) -> Option<Vec<u64>> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    // The first is a letter.
    let fields = fields.split_whitespace().skip(1);
    Some(fields.map(|field| field.parse().unwrap_or(0)).collect())
}

/// A process, and those it has started.
pub fn family(id: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").expect("Linux has it");
    let all = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let children =
        all.filter(|other| stat(*other).is_some_and(|fields| fields[0] == u64::from(id)));
    [id].into_iter().chain(children).collect()
}

/// CPU time of processes, their own and the kernel's for them.
pub fn cpu(ids: &[u32]) -> Duration {
    let one = |id: &u32| {
        let fields = stat(*id).expect("it runs");
        ticks(fields[10] + fields[11])
    };
    ids.iter().map(one).sum()
}

/// The most memory that processes have had, in KiB. Pages they share count for each.
pub fn peak_memory(ids: &[u32]) -> u64 {
    let one = |id: &u32| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let words = line.expect("Linux tells").split_whitespace().next();
        words.expect("a number").parse().expect("a number")
    };
    ids.iter().map(one).sum()
}

/// CPU time of the whole machine, all cores together.
#[derive(Clone, Copy)]
pub struct Machine {
    /// Spent by anybody here.
    pub busy: Duration,
    /// Taken by other machines on the same hardware.
    pub steal: Duration,
}

impl Sub for Machine {
    type Output = Self;

    /// What was added since. Nothing, where Linux corrects itself downwards.
    fn sub(self, before: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(before.busy),
            steal: self.steal.saturating_sub(before.steal),
        }
    }
}

pub fn machine() -> Machine {
    let text = std::fs::read_to_string("/proc/stat").expect("Linux has it");
    let line = text.lines().next().expect("the sum of all cores");
    let fields = line.split_whitespace().skip(1);
    let fields: Vec<u64> = fields.map(|field| field.parse().unwrap_or(0)).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = fields[..] else {
        panic!("not what Linux says: {line}");
    };
    Machine {
        busy: ticks(user + nice + system + irq + softirq),
        steal: ticks(steal),
    }
}
