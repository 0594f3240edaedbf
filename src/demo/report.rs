//! What the demo says: a line each second, and a short report.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::Duration;

use serde_json::Value;

use crate::demo::callers::Record;
use crate::emulator::Emulator;

/// The groups the callers use, with N of each (the emulator's, and Runpod's documented, limits).
const GROUPS: [(&str, u64); 2] = [("run", 1000), ("status", 2000)];
/// W, in ticks of a second.
const WINDOW: usize = 10;

/// What the emulator saw of one group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub accepted: u64,
    pub refused: u64,
    pub most_in_window: u64,
    pub most_in_flight: u64,
}

/// What the emulator saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Upstream([Seen; GROUPS.len()]);

impl Upstream {
    pub fn read(emulator: &Emulator) -> Self {
        let stats = emulator.stats_json();
        let endpoint = &stats["endpoints"]["demo"];
        Self(GROUPS.map(|(group, _)| {
            let group = &endpoint[group];
            let number = |value: &Value| value.as_u64().unwrap_or(0);
            let refused = &group["refused"];
            Seen {
                accepted: number(&group["accepted"]),
                refused: number(&refused["rate"])
                    + number(&refused["concurrency"])
                    + number(&refused["backlog"]),
                most_in_window: number(&group["max_in_window"]),
                most_in_flight: number(&group["max_in_flight"]),
            }
        }))
    }

    fn accepted(&self) -> u64 {
        self.0.iter().map(|seen| seen.accepted).sum()
    }

    /// 429s of the upstream.
    pub fn refused(&self) -> u64 {
        self.0.iter().map(|seen| seen.refused).sum()
    }
}

/// Everything one run came to.
pub struct Figures {
    pub ran: Duration,
    pub upstream: Upstream,
    pub callers: Vec<Record>,
}

/// Makes the live lines; remembers the last W for the share of the budget that was used.
#[derive(Default)]
pub struct Lines {
    second: u64,
    past: VecDeque<Upstream>,
    refused_before: u64,
}

impl Lines {
    /// The next second's line. `refused`: 429s that callers got so far, from whomever.
    pub fn next(&mut self, seen: &Upstream, waiting: Option<usize>, refused: u64) -> String {
        self.second += 1;
        let last = self.past.back().copied().unwrap_or_default();
        let window_ago = match self.past.len() {
            ticks if ticks >= WINDOW => self.past[ticks - WINDOW],
            _ => Upstream::default(),
        };
        let mut line = format!(
            "{:>4} s  admitted {:>4}/s",
            self.second,
            seen.accepted() - last.accepted()
        );
        // Without a gateway nobody waits, and every refusal is the upstream's.
        if let Some(waiting) = waiting {
            let shed = refused - self.refused_before;
            let _ = write!(line, "  waiting {waiting:>4}  shed {shed:>3}/s");
        }
        let _ = write!(line, "  upstream 429: {:<5}  budget used", seen.refused());
        for (index, (group, n)) in GROUPS.into_iter().enumerate() {
            let used = seen.0[index].accepted - window_ago.0[index].accepted;
            let _ = write!(line, "  {group} {:>5.1}%", percent(used, n));
        }
        self.refused_before = refused;
        self.past.push_back(*seen);
        if self.past.len() > WINDOW {
            self.past.pop_front();
        }
        line
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}

/// The report of one run.
pub fn summary(figures: &Figures) -> String {
    let mut text = format!(
        "After {:.0} s, as the upstream saw it:\n",
        figures.ran.as_secs_f64()
    );
    for ((group, n), seen) in GROUPS.into_iter().zip(figures.upstream.0) {
        let windows = figures.ran.as_secs_f64() / WINDOW as f64;
        let _ = writeln!(
            text,
            "  {group:<7} {:>6} accepted, {:>5} refused; at most {:>4} of {n} in any 10 s, {:>3} at \
             once; {:.0} a window",
            seen.accepted,
            seen.refused,
            seen.most_in_window,
            seen.most_in_flight,
            seen.accepted as f64 / windows.max(1.0),
        );
    }
    text.push_str("As the callers felt it:\n");
    let _ = writeln!(
        text,
        "  {:<38} {:>8} {:>8} {:>7} {:>9} {:>9}",
        "", "answered", "refused", "failed", "p50", "p99"
    );
    for caller in &figures.callers {
        let _ = writeln!(
            text,
            "  {:<38} {:>8} {:>8} {:>7} {:>9} {:>9}",
            caller.name,
            caller.answered,
            caller.refused,
            caller.failed,
            time(&caller.times, 50),
            time(&caller.times, 99),
        );
    }
    text
}

/// Both runs, one below the other, and what it comes to.
pub fn comparison(without: &Figures, with: &Figures) -> String {
    let refused = |figures: &Figures| {
        figures
            .callers
            .iter()
            .map(|caller| caller.refused)
            .sum::<u64>()
    };
    format!(
        "WITHOUT podgate\n{}\nWITH podgate\n{}\nThe upstream answered 429 {} times without podgate, {} \
         times with it; callers were refused {} times without, {} times with.\n",
        summary(without),
        summary(with),
        without.upstream.refused(),
        with.upstream.refused(),
        refused(without),
        refused(with),
    )
}

fn time(times: &[Duration], percent: usize) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    match sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))) {
        None => "-".into(),
        Some(time) if time.as_secs() >= 1 => format!("{:.2} s", time.as_secs_f64()),
        Some(time) => format!("{:.1} ms", time.as_secs_f64() * 1000.0),
    }
}
