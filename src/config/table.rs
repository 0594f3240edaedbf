//! What a configuration amounts to, as an aligned table: each number with who says so.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Config;
use super::groups::MODES;
use super::policy::{GroupPolicy, GroupTable, GroupVerdict, Knob};
use super::show::word;
use super::units::{show_duration, show_size};
use crate::limit::quota::{Burst, Rate};
use crate::operation::Group;

const COLUMNS: [&str; 9] = [
    "group",
    "rate",
    "burst",
    "concurrency",
    "max_body",
    "max_wait",
    "queue",
    "response_timeout",
    "mode",
];
const LEGEND: &str = "\
seed: the documented limits podgate was built from; docs: Runpod's newer documentation;
podgate: nothing is documented, podgate's own; file: this file
";

type Row = [String; COLUMNS.len()];

/// The groups, and below them what each endpoint rule changes.
pub(super) fn effective(config: &Config) -> String {
    let mut page = aligned(&rows(&config.groups, |_| true));
    for rule in &config.endpoints {
        let pattern = rule.pattern.as_str();
        let changed = rows(&rule.groups, |group| {
            rule.groups.get(group) != config.groups.get(group)
        });
        match changed.is_empty() {
            true => page += &format!("\nendpoint {pattern}: as above\n"),
            false => page += &format!("\nendpoint {pattern}:\n{}", aligned(&changed)),
        }
    }
    if config.replicas > NonZeroU32::MIN {
        page += &format!(
            "\nreplicas: {} podgates share the account; `of` stands between one's share and the whole\n",
            config.replicas
        );
    }
    page + "\n" + LEGEND
}

fn rows(table: &GroupTable, shown: impl Fn(Group) -> bool) -> Vec<Row> {
    let groups = Group::ALL.into_iter().filter(|group| shown(*group));
    groups.map(|group| row(group, table.get(group))).collect()
}

fn row(group: Group, verdict: GroupVerdict<'_>) -> Row {
    let mut row = Row::default();
    row[0] = group.name().into();
    let policy = match verdict {
        GroupVerdict::Policy(policy) => policy,
        GroupVerdict::Reject => {
            row[1] = "reject file".into();
            return row;
        }
    };
    let quota = &policy.quota;
    let rate = quota.rate.map(|rate| {
        let period = show_duration(rate.period());
        let whole = policy.whole.rate.map(Rate::requests);
        format!("{}/{period}", share(rate.requests(), whole))
    });
    let burst = match (quota.rate, quota.burst) {
        (None, _) => "-".into(),
        (Some(_), Burst::Auto) => "auto".into(),
        (Some(_), Burst::Fixed(burst)) => burst.to_string(),
    };
    let permits = quota.concurrency.map(|permits| {
        let whole = policy.whole.concurrency.map(NonZeroU32::get);
        share(permits.get(), whole)
    });
    let cell = |value: String, knob| match value.as_str() {
        "-" => value,
        _ => format!("{value} {}", policy.sources.of(knob).name()),
    };
    row[1] = cell(rate.unwrap_or("none".into()), Knob::Rate);
    row[2] = cell(burst, Knob::Burst);
    row[3] = cell(permits.unwrap_or("none".into()), Knob::Concurrency);
    row[4] = cell(show_size(policy.max_body), Knob::MaxBody);
    row[5] = cell(show_duration(policy.max_wait), Knob::MaxWait);
    row[6] = cell(policy.queue.to_string(), Knob::Queue);
    row[7] = cell(seconds(policy.response_timeout), Knob::ResponseTimeout) + &held(policy);
    row[8] = cell(word(&MODES, policy.mode).into(), Knob::Mode);
    row
}

/// `333 of 1000`, or `1000` where it is the whole.
fn share(part: u32, whole: Option<u32>) -> String {
    match whole.filter(|whole| *whole != part) {
        Some(whole) => format!("{part} of {whole}"),
        None => part.to_string(),
    }
}

/// `330s` is easier to compare with `30s` than `5m30s` would be.
fn seconds(span: Duration) -> String {
    match span.subsec_nanos() {
        0 => format!("{}s", span.as_secs()),
        _ => show_duration(span),
    }
}

fn held(policy: &GroupPolicy) -> String {
    let timeout = policy.held_response_timeout;
    match timeout == policy.response_timeout {
        true => String::new(),
        false => {
            let source = policy.sources.of(Knob::HeldResponseTimeout).name();
            format!(", held {} {source}", seconds(timeout))
        }
    }
}

fn aligned(rows: &[Row]) -> String {
    let head = COLUMNS.map(String::from);
    let all = || std::iter::once(&head).chain(rows);
    let width = |column: usize| {
        all()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut page = String::new();
    for row in all() {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        page += cells.collect::<Vec<_>>().join("   ").trim_end();
        page.push('\n');
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_sources_shown() {
        let page = effective(&Config::preset());
        let lines: Vec<&str> = page.lines().collect();
        let starts = |line: &str| line.find("max_body").or_else(|| line.find("10MiB"));
        assert_eq!(starts(lines[0]), starts(lines[1]));
        assert!(lines[1].starts_with("run "), "{page}");
        assert!(lines[1].contains("1000/10s seed"), "{page}");
        assert!(lines[9].contains("2000/10s docs"), "{page}");
        assert!(lines[7].contains("none podgate"), "{page}");
    }
}
