//! Rounds to a table: medians, and ratios of podgate to nginx round by round.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::workload::Workload;

/// What one round says of one proxy.
#[derive(Clone, Copy)]
pub struct Round {
    /// CPU seconds of 100,000 requests, all connections busy.
    pub cpu: f64,
    /// Requests a second, all connections busy.
    pub throughput: f64,
    /// At the workload's rate, in microseconds.
    pub p50: f64,
    pub p99: f64,
    /// The most memory it had, in MiB.
    pub memory: f64,
    /// Cores that processes with no part in this took meanwhile, and other machines on the hardware.
    pub others: f64,
    pub steal: f64,
}

/// The rounds of a workload.
pub struct Cell {
    pub workload: Workload,
    pub workers: usize,
    /// nginx's and podgate's, by round.
    pub rounds: Vec<[Round; 2]>,
}

/// A name for machines, what people read, digits behind the point, and which.
type Figure = (&'static str, &'static str, usize, fn(&Round) -> f64);

const FIGURES: [Figure; 5] = [
    ("cpu_seconds_per_100k", "CPU s per 100,000", 2, |round| {
        round.cpu
    }),
    ("requests_per_second", "requests/s", 0, |round| {
        round.throughput
    }),
    ("p50_us", "p50 us", 0, |round| round.p50),
    ("p99_us", "p99 us", 0, |round| round.p99),
    ("peak_memory_mib", "peak memory MiB", 1, |round| {
        round.memory
    }),
];

/// What the others are to be read with.
const BESIDE: [Figure; 3] = [
    ("proxy_cores", "proxy, cores", 2, |round| {
        round.cpu * round.throughput / 1e5
    }),
    ("others_cores", "others, cores", 2, |round| round.others),
    ("steal_cores", "steal, cores", 2, |round| round.steal),
];

/// The median, the least and the most.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    [(low + high) / 2.0, values[0], values[values.len() - 1]]
}

impl Cell {
    fn values(&self, proxy: usize, of: fn(&Round) -> f64) -> Vec<f64> {
        self.rounds.iter().map(|pair| of(&pair[proxy])).collect()
    }

    fn ratios(&self, of: fn(&Round) -> f64) -> Vec<f64> {
        let ratio = |[nginx, podgate]: &[Round; 2]| of(podgate) / of(nginx);
        self.rounds.iter().map(ratio).collect()
    }

    pub fn json(&self) -> Value {
        let mut figures = json!({});
        for (name, _, _, of) in FIGURES {
            let [median, least, most] = spread(self.ratios(of));
            figures[name] = json!({
                "nginx": self.values(0, of),
                "podgate": self.values(1, of),
                "ratio": { "median": median, "min": least, "max": most },
            });
        }
        for (name, _, _, of) in BESIDE {
            figures[name] = json!({ "nginx": self.values(0, of), "podgate": self.values(1, of) });
        }
        json!({
            "workload": self.workload.name(),
            "workers": self.workers,
            "rate": self.workload.rate(),
            "figures": figures,
        })
    }

    fn rows(&self) -> Vec<[String; 6]> {
        let rows = FIGURES.map(|(name, text, digits, of)| {
            let text = match name {
                "p50_us" | "p99_us" => format!("{text} at {}/s", self.workload.rate()),
                _ => text.to_owned(),
            };
            let [nginx, podgate] = [0, 1].map(|proxy| spread(self.values(proxy, of))[0]);
            let [median, least, most] = spread(self.ratios(of));
            [
                String::new(),
                String::new(),
                text,
                format!("{nginx:.digits$}"),
                format!("{podgate:.digits$}"),
                format!("{median:.2} ({least:.2}–{most:.2})"),
            ]
        });
        let beside = BESIDE.map(|(_, text, digits, of)| {
            let [nginx, podgate] = [0, 1].map(|proxy| {
                let [median, _, most] = spread(self.values(proxy, of));
                format!("{median:.digits$}, at most {most:.digits$}")
            });
            let text = text.to_owned();
            [
                String::new(),
                String::new(),
                text,
                nginx,
                podgate,
                String::new(),
            ]
        });
        let mut rows: Vec<_> = rows.into_iter().chain(beside).collect();
        rows[0][0] = self.workload.title().to_owned();
        rows[0][1] = self.workers.to_string();
        rows
    }
}

/// For people and for Markdown. A workload is named in its first row.
pub fn table(cells: &[Cell]) -> String {
    let head = [
        "workload",
        "workers",
        "figure",
        "nginx",
        "podgate",
        "podgate/nginx",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(cells.iter().flat_map(Cell::rows));
    let widths: [usize; 6] = std::array::from_fn(|column| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    });
    rows.insert(1, widths.map(|width| "-".repeat(width)));
    let mut table = String::new();
    for row in rows {
        for (text, width) in row.iter().zip(widths) {
            let _ = write!(table, "| {text:width$} ");
        }
        table.push_str("|\n");
    }
    table
}
