//! The effective configuration in the form it is written in: for `/config`, and for people.
//!
//! Secrets cannot be in it, because a [`Config`] holds only the places where they are kept. Read
//! back, it gives the same configuration, so it can be kept and started with.

use serde_json::{Map, Value, json};

use super::Config;
use super::groups::{COUNTS, MODES};
use super::listen::Listener;
use super::policy::{GroupPolicy, GroupTable, GroupVerdict};
use super::process::{LogFormat, LogLevel, Roots};
use super::secret::SecretSource;
use super::units::{show_duration, show_size};
use crate::limit::quota::Burst;
use crate::operation::Group;
use crate::tls::ClientAuth;

impl Config {
    /// All settings, defaults too, under the file's own keys.
    pub fn to_json(&self) -> Value {
        let upstream = &self.upstream;
        let mut shown = json!({
            "listen": listen(&self.listen),
            "admin": self.admin.to_string(),
            "replicas": self.replicas,
            "admin_hosts": self.admin_hosts,
            "upstream": {
                "url": upstream.target.to_string(),
                "allow_remote_injection": upstream.allow_remote_injection,
                "connect_timeout": show_duration(upstream.connect_timeout),
                "idle_timeout": show_duration(upstream.idle_timeout),
                "margin": show_duration(upstream.margin),
                "max_connection_age": show_duration(upstream.max_connection_age),
                "roots": word(&Roots::WORDS, upstream.roots),
                "trust_ca": upstream.trust_ca,
            },
            "timeouts": {
                "header": show_duration(self.timeouts.header),
                "body_idle": show_duration(self.timeouts.body_idle),
                "body_total": show_duration(self.timeouts.body_total),
                "write": show_duration(self.timeouts.write),
                "keep_alive": show_duration(self.timeouts.keep_alive),
                "shutdown_delay": show_duration(self.timeouts.shutdown_delay),
                "drain": show_duration(self.timeouts.drain),
            },
            "buffers": {
                "per_request": show_size(self.buffers.per_request),
                "total": show_size(self.buffers.total),
            },
            "limits": {
                "connections": self.limits.connections,
                "lanes": self.limits.lanes,
            },
            "answers": {
                "rate_limit_headers": self.answers.rate_limit_headers,
            },
            "log": {
                "format": word(&LogFormat::WORDS, self.log.format),
                "level": word(&LogLevel::WORDS, self.log.level),
                "access": self.log.access,
                "sample": self.log.sample,
            },
            "tracing": {
                "sample": self.tracing.sample,
            },
            "groups": groups(&self.groups, |_| true),
            "endpoints": self.endpoints.iter().map(|rule| {
                let changed = |group| rule.groups.get(group) != self.groups.get(group);
                let groups = json!({ "groups": groups(&rule.groups, changed) });
                (rule.pattern.as_str().to_owned(), groups)
            }).collect::<Map<_, _>>(),
        });
        if let Some(workers) = self.workers {
            shown["workers"] = json!(workers);
        }
        if let Some(folder) = &self.state_dir {
            shown["state_dir"] = json!(folder);
        }
        if let Some(name) = &upstream.sni {
            shown["upstream"]["sni"] = json!(name);
        }
        if let Some(collector) = &self.tracing.otlp {
            shown["tracing"]["otlp"] = json!(collector.to_string());
        }
        if let Some(source) = &upstream.api_key {
            shown["upstream"]["api_key"] = secret(source);
        }
        if let Some(source) = &self.admin_token {
            shown["admin_token"] = secret(source);
        }
        shown
    }
}

/// Where it is kept.
fn secret(source: &SecretSource) -> Value {
    match source {
        SecretSource::File(path) => json!({ "file": path.to_string_lossy() }),
        SecretSource::Env(name) => json!({ "env": name }),
    }
}

/// As short as it can be written.
fn listen(listeners: &[Listener]) -> Value {
    match listeners {
        [only] => listener(only),
        all => all.iter().map(listener).collect(),
    }
}

fn listener(listener: &Listener) -> Value {
    let at = json!(listener.at.to_string());
    if (listener.mode, &listener.tls) == (None, &None) {
        return at;
    }
    let mut shown = json!({ "at": at });
    if let Some(mode) = listener.mode {
        shown["mode"] = json!(format!("{mode:04o}"));
    }
    if let Some(tls) = &listener.tls {
        shown["tls"] = json!({
            "cert": tls.cert,
            "key": tls.key,
            "client_ca": tls.client_ca,
            "client_auth": word(&ClientAuth::WORDS, tls.client_auth),
        });
    }
    shown
}

/// The word of a closed set.
pub(super) fn word<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    let found = words.iter().find(|(_, meant)| *meant == value);
    found.map_or("", |(word, _)| word)
}

fn groups(table: &GroupTable, shown: impl Fn(Group) -> bool) -> Map<String, Value> {
    let groups = Group::ALL.into_iter().filter(|group| shown(*group));
    let pair = |group: Group| {
        let value = match table.get(group) {
            GroupVerdict::Policy(policy) => self::policy(policy, group),
            GroupVerdict::Reject => json!("reject"),
        };
        (group.name().to_owned(), value)
    };
    groups.map(pair).collect()
}

fn policy(policy: &GroupPolicy, group: Group) -> Value {
    // As written: read back, it is divided again.
    let quota = &policy.whole;
    let rate = quota.rate.map(|rate| {
        let burst = match quota.burst {
            Burst::Auto => json!("auto"),
            Burst::Fixed(burst) => json!(burst),
        };
        json!({ "requests": rate.requests(), "per": show_duration(rate.period()), "burst": burst })
    });
    let mut shown = json!({
        "rate": rate.unwrap_or(json!("none")),
        "concurrency": quota.concurrency.map_or(json!("none"), |permits| json!(permits)),
        "max_body": show_size(policy.max_body),
        "max_wait": show_duration(policy.max_wait),
        "queue": policy.queue,
        "response_timeout": show_duration(policy.response_timeout),
        "mode": word(&MODES, policy.mode),
        "settle": show_duration(quota.settle),
        "counts": word(&COUNTS, quota.counts),
    });
    if group == Group::Status {
        shown["held_response_timeout"] = json!(show_duration(policy.held_response_timeout));
        shown["hold_share"] = json!(quota.hold_share);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::policy::{Source, Sources};

    /// What is read back has other sources: everything is set by the file then.
    fn without_sources(mut config: Config) -> Config {
        let tables = config.endpoints.iter_mut().map(|rule| &mut rule.groups);
        for table in tables.chain([&mut config.groups]) {
            for policy in &mut table.policies {
                policy.sources = Sources::all(Source::File);
            }
        }
        config
    }

    #[test]
    fn what_is_shown_can_be_read_back() {
        let text = "\
            listen: '[::1]:7000'\n\
            workers: 3\nreplicas: 7\n\
            upstream: { url: 'http://[::1]:9/x', api_key: { env: K }, margin: 1ms, sni: a.b, roots: system }\n\
            log: { format: json, level: trace, access: false }\ntracing: { sample: 7 }\n\
            groups:\n  run: { rate: none, concurrency: none, mode: shadow, counts: completion }\n  \
                status: { hold_share: 7, held_response_timeout: 31s, max_body: 10MB }\n\
            endpoints:\n  z: { groups: { run: { rate: { requests: 9, per: 1s, burst: 3 } } } }\n  \
                a: { groups: { other: reject } }\n  'a*': {}\n";
        let listeners = "\
            listen:\n  - unix:/a.sock\n  - { at: 'unix:/b.sock', mode: \"0660\" }\n  \
                - { at: '0.0.0.0:1', tls: { cert: /c, key: /k } }\n  \
                - { at: '0.0.0.0:2', tls: { cert: /c, key: /k, client_ca: [/r], client_auth: required } }\n";
        for text in ["", text, listeners] {
            let config = Config::parse("first.yaml", text).expect("valid");
            let shown = config.to_json().to_string();
            let again = Config::parse("again.yaml", &shown).unwrap_or_else(|f| panic!("{f}"));
            assert_eq!(without_sources(again), without_sources(config));
        }
    }
}
