//! The callers: one that would take everything, one that comes in bursts, some that ask for little,
//! and some that only poll. Each has a key of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::demo::client::{Client, Reply};

const ENDPOINT: &str = "/v2/demo";
/// What a job does: nearly nothing, so that its queue is never what limits it.
const JOB: &str = r#"{"input":{"sleep":0.02}}"#;
/// A refused caller that was not told when to come back comes back after this.
const UNTOLD: Duration = Duration::from_secs(1);
/// Answers whose time is kept for each caller.
const TIMES: usize = 100_000;

/// What one caller has met with.
pub struct Tally {
    name: &'static str,
    inner: Mutex<Record>,
}

/// As a tally stands.
#[derive(Clone, Default)]
pub struct Record {
    pub name: &'static str,
    pub answered: u64,
    /// Answered 429, by whoever.
    pub refused: u64,
    /// No answer, or another one than hoped for.
    pub failed: u64,
    /// How long answers took, the latest ones.
    pub times: Vec<Duration>,
}

impl Tally {
    fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            name,
            inner: Mutex::default(),
        })
    }

    pub fn read(&self) -> Record {
        Record {
            name: self.name,
            ..self.inner.lock().clone()
        }
    }

    /// Notes one call and says how long to stay away, if it was refused.
    fn note(&self, reply: &std::io::Result<Reply>, took: Duration) -> Option<Duration> {
        let mut record = self.inner.lock();
        match reply {
            Ok(reply) if reply.status == StatusCode::TOO_MANY_REQUESTS => {
                record.refused += 1;
                return Some(reply.retry_after.unwrap_or(UNTOLD));
            }
            Ok(reply) if reply.status.is_success() => {
                let slot = (record.answered % TIMES as u64) as usize;
                record.answered += 1;
                match record.times.get_mut(slot) {
                    Some(time) => *time = took,
                    None => record.times.push(took),
                }
            }
            Ok(_) | Err(_) => {
                record.failed += 1;
                return Some(UNTOLD);
            }
        }
        None
    }
}

/// The callers at work, until they are stopped.
pub struct Tallies {
    pub each: Vec<Arc<Tally>>,
    tasks: JoinSet<()>,
}

impl Tallies {
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// The keys the callers use, one a caller.
const KEYS: [&str; 6] = [
    "key-hog",
    "key-batch",
    "key-small-1",
    "key-small-2",
    "key-small-3",
    "key-poller",
];

/// Lets them all loose on `target`.
///
/// Each key is used once before: a gateway cannot tell callers of one address apart by keys that
/// the upstream has never accepted.
pub async fn start(target: SocketAddr) -> Tallies {
    for key in KEYS {
        let health = format!("{ENDPOINT}/health");
        // If that fails the callers say so soon enough.
        drop(
            Client::new(target, key)
                .call(Method::GET, &health, "")
                .await,
        );
    }
    let [hog_key, batch_key, small_1, small_2, small_3, poller_key] = KEYS;
    let mut tasks = JoinSet::new();
    let mut each = Vec::new();
    let mut tally = |name| {
        let tally = Tally::new(name);
        each.push(tally.clone());
        tally
    };

    let hog = tally("hog: 300 submitters without a pause");
    for _ in 0..300 {
        tasks.spawn(submit_always(Client::new(target, hog_key), hog.clone()));
    }
    let batch = tally("batch: 150 submissions every 15 s");
    for _ in 0..150 {
        tasks.spawn(submit_in_bursts(
            Client::new(target, batch_key),
            batch.clone(),
        ));
    }
    for (name, key) in [
        ("small 1: a submission a second", small_1),
        ("small 2: a submission a second", small_2),
        ("small 3: a submission a second", small_3),
    ] {
        tasks.spawn(submit_steadily(Client::new(target, key), tally(name)));
    }
    let poller = tally("poller: 60 status polls at once");
    for _ in 0..60 {
        tasks.spawn(poll_always(Client::new(target, poller_key), poller.clone()));
    }
    Tallies { each, tasks }
}

async fn timed(
    client: &mut Client,
    tally: &Tally,
    method: Method,
    path: &str,
    body: &str,
) -> Option<Reply> {
    let asked = now();
    let reply = client.call(method, path, body).await;
    let away = tally.note(&reply, now().saturating_duration_since(asked));
    if let Some(away) = away {
        sleep(away).await;
        return None;
    }
    reply.ok()
}

async fn submit(client: &mut Client, tally: &Tally) -> Option<Reply> {
    timed(client, tally, Method::POST, &format!("{ENDPOINT}/run"), JOB).await
}

async fn submit_always(mut client: Client, tally: Arc<Tally>) {
    loop {
        submit(&mut client, &tally).await;
    }
}

async fn submit_in_bursts(mut client: Client, tally: Arc<Tally>) {
    let mut next = now();
    loop {
        submit(&mut client, &tally).await;
        next += Duration::from_secs(15);
        sleep_until(next).await;
    }
}

async fn submit_steadily(mut client: Client, tally: Arc<Tally>) {
    let mut next = now();
    loop {
        submit(&mut client, &tally).await;
        next += Duration::from_secs(1);
        sleep_until(next).await;
    }
}

async fn poll_always(mut client: Client, tally: Arc<Tally>) {
    let mut job: Option<String> = None;
    loop {
        let Some(id) = &job else {
            let reply = submit(&mut client, &tally).await;
            job = reply.and_then(|reply| id(&reply.body));
            continue;
        };
        let path = format!("{ENDPOINT}/status/{id}");
        timed(&mut client, &tally, Method::GET, &path, "").await;
    }
}

fn id(body: &[u8]) -> Option<String> {
    let view: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(view.get("id")?.as_str()?.to_owned())
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long an answer took is what a caller feels"
)]
fn now() -> Instant {
    Instant::now()
}
