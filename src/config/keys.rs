//! Which keys there are: each with what its value must be and what it is for.
//!
//! The one place. The readers take their bounds and words from here, `schema` makes the JSON
//! Schema of it, and a test the README's table: a key that is not here cannot be read, and one that
//! is here and is not read fails a test.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::groups::{COUNTS, MODES, SOURCES};
use super::key::{Key, Kind, Level, Scope};
use super::process::{LogFormat, LogLevel, Roots};
use crate::limit::quota::Rate;
use crate::operation::Group;
use crate::tls::ClientAuth;

/// The words of a closed set, without what they mean.
const fn words<T, const N: usize>(set: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut words = [""; N];
    let mut at = 0;
    while at < N {
        words[at] = set[at].0;
        at += 1;
    }
    words
}

static FORMAT_WORDS: [&str; 2] = words(&LogFormat::WORDS);
static LEVEL_WORDS: [&str; 5] = words(&LogLevel::WORDS);
static ROOTS_WORDS: [&str; 2] = words(&Roots::WORDS);
static CLIENT_AUTH_WORDS: [&str; 3] = words(&ClientAuth::WORDS);
static MODE_WORDS: [&str; 3] = words(&MODES);
static COUNTS_WORDS: [&str; 2] = words(&COUNTS);
static SOURCES_WORDS: [&str; 3] = words(&SOURCES);

pub(super) const WORKERS: RangeInclusive<u64> = 1..=1024;
const REPLICAS: RangeInclusive<u64> = 1..=1000;
const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

const fn up_to(most: Duration) -> Kind {
    Kind::Duration(RangeInclusive::new(Duration::ZERO, most))
}

/// A wait that is a millisecond at least and an hour at most.
const fn patience() -> Kind {
    Kind::Duration(RangeInclusive::new(MILLISECOND, HOUR))
}

pub(super) static WHOLE_FILE: Kind = Kind::Map(&ROOT);

pub(super) static ROOT: Level = Level {
    name: "",
    keys: &[
        Key::new(
            "listen",
            Kind::OneOrMany(&Kind::Listener(&LISTENER)),
            "Where clients call: an address (port 0: the system picks one), `unix:` and a path, or a list of these and of maps",
        ),
        Key::new(
            "admin",
            Kind::Address,
            "Where operators call: metrics, health, lanes, this configuration",
        ),
        Key::new(
            "admin_hosts",
            Kind::List(&Kind::Host),
            "Further names by which operators call it, `*` for any; see Security",
        ),
        Key::new(
            "admin_token",
            Kind::OneOf(&ADMIN_TOKEN),
            "What operators show as `Authorization: Bearer`; without it anybody reads who reaches it, and changes come from this host only",
        ),
        Key::new(
            "workers",
            Kind::Whole(WORKERS),
            "Worker threads; without it as many as there are cores",
        ),
        Key::new(
            "replicas",
            Kind::Whole(REPLICAS),
            "How many podgates spend the account's budget; each keeps to its share of it",
        ),
        Key::new(
            "state_dir",
            Kind::Path,
            "Where what outlives the process is kept; without it a restart forgets its last window",
        ),
        Key::new(
            "upstream",
            Kind::Map(&UPSTREAM),
            "The API behind podgate, and how it is called",
        ),
        Key::new("timeouts", Kind::Map(&TIMEOUTS), "Patience with clients"),
        Key::new("buffers", Kind::Map(&BUFFERS), "Bodies held in memory"),
        Key::new("limits", Kind::Map(&LIMITS), "What strangers can make grow"),
        Key::new(
            "answers",
            Kind::Map(&ANSWERS),
            "What podgate adds to what clients are answered",
        ),
        Key::new("log", Kind::Map(&LOG), "What podgate writes"),
        Key::new(
            "tracing",
            Kind::Map(&TRACING),
            "What an OpenTelemetry collector is told; needs a podgate built with the feature `otlp`",
        ),
        Key::new(
            "groups",
            Kind::Map(&GROUPS),
            "What each group of operations is allowed, over the preset",
        ),
        Key::new(
            "endpoints",
            Kind::Ids(&Kind::Map(&ENDPOINT)),
            "Exceptions, by endpoint id or by a shape of ids with `*`; the first match wins",
        ),
    ],
};

pub(super) static LISTENER: Level = Level {
    name: "listen",
    keys: &[
        Key::new(
            "at",
            Kind::ListenAddress,
            "Its address, or `unix:` and a path",
        ),
        Key::new(
            "mode",
            Kind::Mode,
            "Of a Unix socket: who may open it, as a file's permissions, in quotes",
        ),
        Key::new(
            "tls",
            Kind::Map(&LISTENER_TLS),
            "HTTPS; without it everything is in the clear",
        ),
    ],
};

pub(super) static LISTENER_TLS: Level = Level {
    name: "listen.tls",
    keys: &[
        Key::new(
            "cert",
            Kind::Path,
            "PEM file with the certificate, and behind it those that lead to a root; read again when it changes",
        ),
        Key::new("key", Kind::Path, "PEM file with its key"),
        Key::new(
            "client_ca",
            Kind::List(&Kind::Path),
            "PEM files with the roots that sign clients' certificates",
        ),
        Key::new(
            "client_auth",
            Kind::Word(&CLIENT_AUTH_WORDS),
            "Whether clients have to show a certificate; without `client_ca` it may be left away, and is `none`",
        ),
    ],
};

pub(super) static UPSTREAM: Level = Level {
    name: "upstream",
    keys: &[
        Key::new(
            "url",
            Kind::Url,
            "`http` or `https`; a path in it is put before every path",
        ),
        Key::new(
            "api_key",
            Kind::OneOf(&API_KEY),
            "Put into every request in the place of what the client sent; without it clients send their own",
        ),
        Key::new(
            "allow_remote_injection",
            Kind::Flag,
            "Takes a `listen` that other hosts can reach together with `api_key`: whoever reaches it spends the account",
        ),
        Key::new(
            "connect_timeout",
            patience(),
            "For one attempt to connect, TLS included",
        ),
        Key::new(
            "idle_timeout",
            patience(),
            "The longest silence between two bytes of a response",
        ),
        // More than ten seconds would cost more of the window than they protect.
        Key::new(
            "margin",
            up_to(Duration::from_secs(10)),
            "The longest time from a request's last byte to its arrival",
        ),
        // No name is kept for longer than a day.
        Key::new(
            "max_connection_age",
            Kind::Duration(RangeInclusive::new(
                MILLISECOND,
                Duration::from_secs(86_400),
            )),
            "Older connections get no further request, so that DNS changes are noticed",
        ),
        Key::new(
            "sni",
            Kind::ServerName,
            "The name to ask for and to be proved by its certificate; without it the host of `url`",
        ),
        Key::new(
            "roots",
            Kind::Word(&ROOTS_WORDS),
            "Whose certificates are trusted: Mozilla's, built in, or the machine's own (`SSL_CERT_FILE`, or where its distribution keeps them)",
        ),
        Key::new(
            "trust_ca",
            Kind::List(&Kind::Path),
            "PEM files with roots trusted besides these",
        ),
    ],
};

pub(super) static API_KEY: Level = Level {
    name: "upstream.api_key",
    keys: &[
        Key::new("file", Kind::Path, "The file that holds the key"),
        Key::new(
            "env",
            Kind::Variable,
            "The environment variable that holds the key",
        ),
    ],
};

pub(super) static ADMIN_TOKEN: Level = Level {
    name: "admin_token",
    keys: &[
        Key::new("file", Kind::Path, "The file that holds the token"),
        Key::new(
            "env",
            Kind::Variable,
            "The environment variable that holds the token",
        ),
    ],
};

pub(super) static TIMEOUTS: Level = Level {
    name: "timeouts",
    keys: &[
        Key::new(
            "header",
            patience(),
            "A request's head, from its first byte to its last",
        ),
        Key::new(
            "body_idle",
            patience(),
            "The longest silence between two bytes of a body",
        ),
        Key::new("body_total", patience(), "A whole body"),
        Key::new(
            "write",
            patience(),
            "The longest time a client may take nothing of what is written to it",
        ),
        Key::new(
            "keep_alive",
            patience(),
            "Between two requests on one connection",
        ),
        Key::new(
            "shutdown_delay",
            up_to(HOUR),
            "How long requests are still taken after SIGTERM, while `/readyz` sends callers elsewhere",
        ),
        Key::new(
            "drain",
            up_to(HOUR),
            "How long what is under way may take to end once nothing new is accepted",
        ),
    ],
};

pub(super) static BUFFERS: Level = Level {
    name: "buffers",
    keys: &[
        Key::new(
            "per_request",
            Kind::Size(0..=1 << 30),
            "Of one request's body, read before a permit is asked for",
        ),
        Key::new(
            "total",
            Kind::Size(0..=1 << 40),
            "All buffers together; past it bodies are streamed",
        ),
    ],
};

pub(super) static LIMITS: Level = Level {
    name: "limits",
    keys: &[
        Key::new(
            "connections",
            Kind::Whole(1..=1_000_000),
            "Connections of clients at once",
        ),
        Key::new(
            "lanes",
            Kind::Whole(1..=1_000_000),
            "Lanes (account, endpoint, group) kept; endpoints past it share one",
        ),
    ],
};

pub(super) static ANSWERS: Level = Level {
    name: "answers",
    keys: &[Key::new(
        "rate_limit_headers",
        Kind::Flag,
        "Say in every answer what is left of the lane's rate (`RateLimit-Policy`, `RateLimit`)",
    )],
};

pub(super) static LOG: Level = Level {
    name: "log",
    keys: &[
        Key::new("format", Kind::Word(&FORMAT_WORDS), "How lines are written"),
        Key::new(
            "level",
            Kind::Word(&LEVEL_WORDS),
            "The least severe of podgate's own messages",
        ),
        Key::new("access", Kind::Flag, "One line for each request, on stdout"),
        Key::new(
            "sample",
            Kind::Whole(1..=1_000_000),
            "Of requests that the upstream answered with a status below 400, one in so many has its line; others always",
        ),
    ],
};

pub(super) static TRACING: Level = Level {
    name: "tracing",
    keys: &[
        Key::new(
            "otlp",
            Kind::Url,
            "An OTLP/HTTP collector, such as `http://127.0.0.1:4318`; `/v1/traces` is put behind it. Without it nothing is told",
        ),
        Key::new(
            "sample",
            Kind::Whole(0..=1_000_000),
            "Of requests whose `traceparent` is not sampled, one in so many is told (0: none); others always",
        ),
    ],
};

pub(super) static GROUPS: Level = Level {
    name: "groups",
    keys: &[
        group(Group::Run),
        group(Group::RunSync),
        group(Group::Status),
        group(Group::Cancel),
        group(Group::Retry),
        group(Group::PurgeQueue),
        group(Group::Health),
        group(Group::Requests),
        group(Group::OpenAi),
        group(Group::Worker),
        group(Group::Other),
    ],
};

const fn group(group: Group) -> Key {
    let (kind, about) = match group {
        Group::Status => (
            Kind::Map(&GROUP),
            "The pool that `status`, `status-sync` and `stream` share",
        ),
        Group::Other => (
            Kind::MapOr("reject", &GROUP),
            "Names Runpod may add; `reject`: nothing of them is forwarded",
        ),
        Group::Worker => (
            Kind::Map(&GROUP),
            "What the endpoint's own workers ask: never in their way",
        ),
        _ => (Kind::Map(&GROUP), "The operation of this name"),
    };
    Key::new(group.name(), kind, about)
}

pub(super) static GROUP: Level = Level {
    name: "groups.<group>",
    keys: &[
        Key::new("rate", Kind::MapOr("none", &RATE), "How many in which time"),
        Key::new(
            "concurrency",
            Kind::WholeOr("none", 1..=1_000_000),
            "The most at the API at once",
        ),
        // The API's own limits are 10 and 20 MiB: a limit nobody can reach is a typing error.
        Key::new(
            "max_body",
            Kind::Size(0..=1 << 30),
            "Larger requests are answered 413 before they are read",
        ),
        // A client that waits longer has left.
        Key::new(
            "max_wait",
            up_to(Duration::from_secs(600)),
            "The longest time in the queue",
        ),
        // Each waiter costs memory while it waits.
        Key::new(
            "queue",
            Kind::Whole(0..=100_000),
            "The most that wait; 0: nobody waits",
        ),
        Key::new(
            "response_timeout",
            patience(),
            "From a request's last byte to the head of its response",
        ),
        Key::new(
            "held_response_timeout",
            patience(),
            "The same for `status-sync` and `stream`, which the API holds on purpose",
        )
        .only(Scope::Status),
        Key::new(
            "mode",
            Kind::Word(&MODE_WORDS),
            "`shadow`: everything passes, what would have been refused is counted; `disabled`: everything passes",
        ),
        Key::new(
            "hold_share",
            Kind::Whole(1..=100),
            "Percent of `concurrency` that `status-sync` and `stream` may use together",
        )
        .only(Scope::Status),
        // A permit that outlives its exchange longer would be a limit of its own.
        Key::new(
            "settle",
            up_to(Duration::from_secs(1)),
            "How long a permit outlives its exchange: the upstream has to count down too",
        ),
        Key::new(
            "counts",
            Kind::Word(&COUNTS_WORDS),
            "Whether the API counts a request when it arrives or when it completes",
        ),
        Key::new(
            "sources",
            Kind::Sources(&SOURCES_WORDS),
            "Where the numbers are from",
        )
        .only(Scope::Preset),
    ],
};

pub(super) static RATE: Level = Level {
    name: "groups.<group>.rate",
    keys: &[
        Key::new(
            "requests",
            Kind::Whole(1..=Rate::MOST_REQUESTS as u64),
            "At most so many requests in any span of `per`",
        ),
        Key::new(
            "per",
            Kind::Duration(RangeInclusive::new(MILLISECOND, Rate::LONGEST_PERIOD)),
            "The window",
        ),
        Key::new(
            "burst",
            Kind::WholeOr("auto", 1..=Rate::MOST_REQUESTS as u64),
            "How many may go at once after a pause; `auto`: a quarter of `requests` at first, then as learnt",
        ),
    ],
};

pub(super) static ENDPOINT: Level = Level {
    name: "endpoints.<id>",
    keys: &[Key::new(
        "groups",
        Kind::Map(&GROUPS),
        "What differs from the `groups` above",
    )],
};

/// All levels a user's file has, for keys that stand at the wrong one.
pub(super) static LEVELS: [&Level; 16] = [
    &ROOT,
    &ADMIN_TOKEN,
    &UPSTREAM,
    &API_KEY,
    &TIMEOUTS,
    &BUFFERS,
    &LIMITS,
    &ANSWERS,
    &LOG,
    &TRACING,
    &GROUPS,
    &GROUP,
    &RATE,
    &ENDPOINT,
    &LISTENER,
    &LISTENER_TLS,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_are_those_there_are() {
        assert_eq!(GROUPS.names(), Group::ALL.map(Group::name));
    }
}
