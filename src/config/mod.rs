//! What is allowed: the configuration, every value of it valid, every fault in it told at once.
//!
//! Read in this order: the file's text becomes a plain tree (`raw`), the tree is checked key by
//! key (`read`, `keys`) and written over the preset (`bridge`, `groups`), and what comes out is
//! a [`Config`]. What was wrong comes out as [`Faults`]. `reading` is that way in one place.
//!
//! No clock, no threads; the only I/O is reading the file ([`Config::load`]) and, later and
//! elsewhere, a secret ([`secret::SecretSource::resolve`]). A reload is another module's business.

pub mod process;
pub mod listen;
pub mod policy;
pub mod secret;
pub mod overrides;
pub mod faults;
pub mod check;
pub mod schema;
pub mod units;
mod key;
mod keys;
mod hint;
mod show;
mod bridge;
mod groups;
mod raw;
mod read;
mod across;
mod reading;
mod span;
mod table;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};

use faults::Faults;
use listen::Listener;
use overrides::Overrides;
use policy::{EndpointRule, GroupTable, GroupVerdict};
use process::{Answers, Buffers, Limits, Log, Timeouts, Tracing, Upstream};
use reading::{Reading, read_file};
use secret::SecretSource;

use crate::operation::Group;

/// The preset's text.
const PRESET: &str = include_str!("../../config/runpod.yaml");

/// The configuration as it is meant: complete, and only valid values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where clients call: somewhere at least.
    pub listen: Vec<Listener>,
    /// Where operators call.
    pub admin: SocketAddr,
    /// Further names by which operators call it, in lower case; `*`: any.
    pub admin_hosts: Vec<String>,
    /// What operators show; `None`: nothing, but changes are taken from this host only.
    pub admin_token: Option<SecretSource>,
    /// Threads; `None`: as many as there are cores.
    pub workers: Option<NonZeroUsize>,
    /// How many podgates spend the account's budget, each its share of it.
    pub replicas: NonZeroU32,
    /// Where what outlives the process is kept; `None`: a restart forgets.
    pub state_dir: Option<PathBuf>,
    pub upstream: Upstream,
    /// Towards clients.
    pub timeouts: Timeouts,
    pub buffers: Buffers,
    pub limits: Limits,
    pub answers: Answers,
    pub log: Log,
    pub tracing: Tracing,
    /// For endpoints no rule matches.
    pub groups: GroupTable,
    /// The first whose pattern matches is the one.
    pub endpoints: Vec<EndpointRule>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the configuration `{}` cannot be read: {why}", path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error("{0}")]
    Faults(Faults),
}

impl Config {
    /// What holds when nothing is configured: Runpod's limits and podgate's defaults.
    pub fn preset() -> Config {
        let mut config = Config {
            listen: vec![Listener::loopback(8080)],
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
            admin_hosts: Vec::new(),
            admin_token: None,
            workers: None,
            replicas: NonZeroU32::MIN,
            state_dir: None,
            upstream: Upstream::default(),
            timeouts: Timeouts::default(),
            buffers: Buffers::default(),
            limits: Limits::default(),
            answers: Answers::default(),
            log: Log::default(),
            tracing: Tracing::default(),
            groups: GroupTable::blank(),
            endpoints: Vec::new(),
        };
        // The preset is part of the program, no input reaches it, and tests prove that it is YAML,
        // has no fault and names every number. Going on without its limits would be worse.
        let tree = raw::parse(PRESET).expect("the preset is YAML");
        let mut faults = Vec::new();
        if let Some(at) = read::At::root(&tree).entries(&mut faults).get("groups") {
            groups::table(&mut config.groups, at, groups::Layer::Preset, &mut faults);
        }
        assert!(faults.is_empty(), "the preset has faults: {faults:?}");
        config.spread();
        config
    }

    /// Reads a file's `text` over the preset. `file_name` is what messages call it; relative
    /// paths in it count from its folder.
    pub fn parse(file_name: &str, text: &str) -> Result<Config, Faults> {
        Reading::new(file_name, text, &Overrides::default()).finish()
    }

    /// Reads a file.
    pub fn load(path: &Path) -> Result<Config, LoadError> {
        Config::load_with(path, &Overrides::default())
    }

    /// Reads a file, and flags and environment over it, as one: what a flag replaces in the file
    /// is not held against it.
    pub fn load_with(path: &Path, overrides: &Overrides) -> Result<Config, LoadError> {
        let text = read_file(path)?;
        let reading = Reading::new(&path.to_string_lossy(), &text, overrides).finish();
        reading.map_err(LoadError::Faults)
    }

    /// Where operators call a podgate that was started with this file, or without one. What else
    /// is wrong with the file does not matter here: it may have changed since.
    pub fn admin_address(
        file: Option<&Path>,
        overrides: &Overrides,
    ) -> Result<SocketAddr, LoadError> {
        let text = match (file, &overrides.admin) {
            (Some(file), None) => read_file(file)?,
            _ => String::new(),
        };
        let mut config = Reading::new("", &text, &Overrides::default()).config;
        // Whether it is free is not asked here.
        config.listen = vec![Listener::loopback(0)];
        let only = Overrides {
            admin: overrides.admin.clone(),
            ..Overrides::default()
        };
        let config = config.with(&only).map_err(LoadError::Faults)?;
        Ok(config.admin)
    }

    /// What `group` is allowed at `endpoint`. Allocates nothing; looks at each rule once.
    pub fn group(&self, endpoint: &str, group: Group) -> GroupVerdict<'_> {
        let rule = self
            .endpoints
            .iter()
            .find(|rule| rule.pattern.matches(endpoint));
        rule.map_or(&self.groups, |rule| &rule.groups).get(group)
    }

    /// Whether a key is put into every request, so that nobody from another host may come in unasked.
    pub fn guards_a_key(&self) -> bool {
        self.upstream.api_key.is_some() && !self.upstream.allow_remote_injection
    }

    /// Further files whose contents are part of what is configured.
    pub fn files(&self) -> Vec<&PathBuf> {
        let Upstream {
            api_key, trust_ca, ..
        } = &self.upstream;
        let key = match api_key {
            Some(SecretSource::File(file)) => Some(file),
            _ => None,
        };
        key.into_iter().chain(trust_ca).collect()
    }

    /// Endpoints that are named as such, not by a shape of names.
    pub fn named_endpoints(&self) -> impl Iterator<Item = &str> {
        let patterns = self.endpoints.iter().map(|rule| rule.pattern.as_str());
        patterns.filter(|pattern| !pattern.contains('*'))
    }

    /// What is set once and holds for every quota. Called when all of them have been read.
    fn spread(&mut self) {
        let (margin, replicas) = (self.upstream.margin, self.replicas);
        let tables = self.endpoints.iter_mut().map(|rule| &mut rule.groups);
        for table in tables.chain([&mut self.groups]) {
            for policy in &mut table.policies {
                policy.quota.margin = margin;
                policy.whole = policy.quota;
                policy.quota = policy.whole.share(replicas);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::policy::{GroupPolicy, Knob, Source};
    use super::*;
    use crate::limit::quota::{Burst, Mode, Quota, Rate};
    use crate::operation::Operation;

    fn policy<'a>(config: &'a Config, endpoint: &str, group: Group) -> &'a GroupPolicy {
        match config.group(endpoint, group) {
            GroupVerdict::Policy(policy) => policy,
            GroupVerdict::Reject => panic!("{} is rejected", group.name()),
        }
    }

    fn parse(text: &str) -> Config {
        Config::parse("test.yaml", text).unwrap_or_else(|faults| panic!("{faults}"))
    }

    fn per_10s(requests: u32) -> Option<Rate> {
        Rate::new(requests, Duration::from_secs(10))
    }

    #[test]
    fn the_preset_has_no_fault_and_names_every_number() {
        let tree = raw::parse(PRESET).expect("YAML");
        let mut faults = Vec::new();
        let mut table = GroupTable::blank();
        let root = read::At::root(&tree).entries(&mut faults);
        assert_eq!(root.named().collect::<Vec<_>>(), ["groups"]);
        let groups = root.get("groups").expect("the one key");
        groups::table(&mut table, groups, groups::Layer::Preset, &mut faults);
        assert_eq!(faults, []);

        for (name, group) in groups.named(&mut faults) {
            let mut given: Vec<_> = group.named(&mut faults).iter().map(|(k, _)| *k).collect();
            given.retain(|key| *key != "sources");
            let everywhere = |key: &&str| {
                let held = ["held_response_timeout", "hold_share"].contains(key);
                name == "status" || !held
            };
            let mut keys = keys::GROUP.names();
            keys.retain(everywhere);
            given.sort_unstable();
            keys.sort_unstable();
            assert_eq!(given, keys, "{name}");
        }
    }

    #[test]
    fn the_preset_is_the_documented_table() {
        use Source::{Docs, Podgate, Seed};
        let config = Config::preset();
        let (mib, kib) = (1 << 20, 1 << 10);
        for (group, rate, permits, body, wait, queue, sources) in [
            (Group::Run, 1000, 200, 10 * mib, 8, 2000, [Seed, Seed, Seed]),
            (
                Group::RunSync,
                2000,
                400,
                20 * mib,
                8,
                2000,
                [Seed, Seed, Seed],
            ),
            (
                Group::Status,
                2000,
                400,
                64 * kib,
                8,
                2000,
                [Seed, Seed, Podgate],
            ),
            (
                Group::Cancel,
                100,
                20,
                64 * kib,
                2,
                200,
                [Seed, Seed, Podgate],
            ),
            (Group::Retry, 100, 20, 64 * kib, 2, 200, [Podgate; 3]),
            (
                Group::PurgeQueue,
                2,
                0,
                64 * kib,
                2,
                200,
                [Seed, Podgate, Podgate],
            ),
            (Group::Health, 0, 20, 64 * kib, 2, 200, [Podgate; 3]),
            (
                Group::Requests,
                10,
                2,
                64 * kib,
                2,
                200,
                [Seed, Seed, Podgate],
            ),
            (
                Group::OpenAi,
                2000,
                400,
                20 * mib,
                8,
                2000,
                [Docs, Docs, Podgate],
            ),
            (Group::Worker, 0, 0, 24 * mib, 0, 0, [Podgate; 3]),
            (Group::Other, 100, 20, 20 * mib, 2, 200, [Podgate; 3]),
        ] {
            let policy = policy(&config, "any", group);
            let name = group.name();
            let quota = Quota {
                hold_share: if group == Group::Status { 90 } else { 100 },
                ..Quota::new(per_10s(rate), NonZeroU32::new(permits))
            };
            assert_eq!(policy.quota, quota, "{name}");
            assert_eq!(policy.max_body, body, "{name}");
            assert_eq!(policy.max_wait, Duration::from_secs(wait), "{name}");
            assert_eq!(policy.queue, queue, "{name}");
            let mode = match group {
                Group::Worker => Mode::Disabled,
                _ => Mode::Enforce,
            };
            assert_eq!(policy.mode, mode, "{name}");
            let said = [Knob::Rate, Knob::Concurrency, Knob::MaxBody].map(|k| policy.sources.of(k));
            assert_eq!(said, sources, "{name}");
        }
        for operation in Operation::ALL {
            let timeout = policy(&config, "any", operation.group()).response_timeout(operation);
            let expected = Duration::from_secs(match operation {
                Operation::Worker => 100,
                Operation::OpenAi => 330,
                held if held.held() => 330,
                _ => 30,
            });
            assert_eq!(timeout, expected, "{}", operation.name());
        }
    }

    #[test]
    fn an_empty_file_is_the_preset() {
        assert_eq!(parse(""), Config::preset());
        assert_eq!(
            parse("# nothing\ngroups:\nendpoints: {}\n"),
            Config::preset()
        );
    }

    #[test]
    fn a_layer_changes_only_the_keys_it_names() {
        let config = parse(
            "upstream: { margin: 100ms }\n\
             groups: { run: { rate: { requests: 500 }, max_wait: 3s } }\n\
             endpoints:\n  abc*: { groups: { run: { rate: { burst: 50 }, concurrency: none } } }\n",
        );
        let file = policy(&config, "other", Group::Run);
        assert_eq!(file.quota.rate, per_10s(500));
        assert_eq!(file.quota.burst, Burst::Auto);
        assert_eq!(file.quota.concurrency, NonZeroU32::new(200));
        assert_eq!(file.quota.margin, Duration::from_millis(100));
        assert_eq!(file.max_wait, Duration::from_secs(3));
        let of = |policy: &GroupPolicy, knob| policy.sources.of(knob);
        assert_eq!(of(file, Knob::Rate), Source::File);
        assert_eq!(of(file, Knob::Concurrency), Source::Seed);

        let rule = policy(&config, "abc-1", Group::Run);
        assert_eq!(rule.quota.rate, per_10s(500));
        assert_eq!(
            rule.quota.burst,
            NonZeroU32::new(50).map_or(Burst::Auto, Burst::Fixed)
        );
        assert_eq!(rule.quota.concurrency, None);
        assert_eq!(rule.quota.margin, Duration::from_millis(100));
        assert_eq!(rule.max_wait, Duration::from_secs(3));
        assert_eq!(of(rule, Knob::Burst), Source::File);

        let untouched = policy(&config, "abc-1", Group::Status);
        assert_eq!(of(untouched, Knob::Rate), Source::Seed);
    }

    #[test]
    fn replicas_divide_every_rate_and_concurrency_also_those_of_endpoints() {
        let config = parse(
            "replicas: 3\n\
             endpoints:\n  \
             a: { groups: { run: { rate: { requests: 500, burst: 100 }, concurrency: none } } }\n",
        );
        let numbers = |endpoint, group| {
            let quota = policy(&config, endpoint, group).quota;
            (quota.rate, quota.concurrency.map(NonZeroU32::get))
        };
        assert_eq!(numbers("b", Group::Run), (per_10s(333), Some(66)));
        assert_eq!(numbers("b", Group::PurgeQueue), (per_10s(1), None));
        assert_eq!(numbers("b", Group::Health), (None, Some(6)));
        assert_eq!(numbers("b", Group::Requests), (per_10s(3), Some(1)));
        assert_eq!(numbers("a", Group::Run), (per_10s(166), None));
        let burst = policy(&config, "a", Group::Run).quota.burst;
        assert_eq!(Some(burst), NonZeroU32::new(33).map(Burst::Fixed));

        let whole = policy(&config, "a", Group::Run).whole;
        assert_eq!(whole.rate, per_10s(500));
        assert_eq!(policy(&config, "b", Group::Run).max_body, 10 << 20);
        assert_eq!(policy(&config, "b", Group::Run).queue, 2000);
    }

    #[test]
    fn the_first_matching_rule_is_the_one() {
        let config = parse(
            "endpoints:\n  \
             abc: { groups: { run: { queue: 1 } } }\n  \
             ab*: { groups: { run: { queue: 2 } } }\n  \
             '*': { groups: { run: { queue: 3 } } }\n",
        );
        let queue = |endpoint| policy(&config, endpoint, Group::Run).queue;
        assert_eq!((queue("abc"), queue("abd"), queue("x")), (1, 2, 3));
    }

    #[test]
    fn a_rejected_group_can_be_allowed_again() {
        let config = parse(
            "groups: { other: reject }\nendpoints: { a: { groups: { other: { queue: 7 } } } }\n",
        );
        assert_eq!(config.group("b", Group::Other), GroupVerdict::Reject);
        let policy = policy(&config, "a", Group::Other);
        assert_eq!((policy.queue, policy.max_wait), (7, Duration::from_secs(2)));
    }

    #[test]
    fn held_calls_have_their_own_timeout_only_in_the_status_group() {
        let config = parse(
            "groups: { runsync: { response_timeout: 60s }, status: { response_timeout: 9s } }",
        );
        let timeout = |operation: Operation| {
            policy(&config, "a", operation.group()).response_timeout(operation)
        };
        assert_eq!(timeout(Operation::RunSync), Duration::from_secs(60));
        assert_eq!(timeout(Operation::Status), Duration::from_secs(9));
        assert_eq!(timeout(Operation::Stream), Duration::from_secs(330));
    }
}
