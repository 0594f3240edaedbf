//! One request as its line tells it, written by hand: this is done for every request there is.

use std::cell::RefCell;
use std::io::{self, Write};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::config::process::LogFormat;
use crate::text::{Harmless, Quoted, Seconds, Short, Sink, digits, number};

/// Whoever comes by a Unix socket has no address.
const UNIX: &str = "unix";
/// Of a path no more is shown: strangers choose it.
const PATH: usize = 256;
const SECOND: Duration = Duration::from_secs(1);
/// Since 1970.
const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

/// The name of a request.
#[derive(Clone, Copy, Debug)]
pub enum Id<'a> {
    /// Made here: nothing in it is obeyed by anybody.
    Made(&'a [u8]),
    /// Its client's choice.
    Given(&'a [u8]),
}

/// One request, as its line tells it. Never a query, a body or a credential: they may be secret.
pub struct Entry<'a> {
    /// Lines stand in the order of these.
    pub ended: Instant,
    /// Read once for all lines of a second.
    pub wall_clock: &'a dyn Fn() -> SystemTime,
    pub request_id: Id<'a>,
    pub trace_id: &'a [u8],
    /// `None`: it came by a Unix socket.
    pub client: Option<IpAddr>,
    pub method: &'a str,
    pub path: &'a str,
    pub operation: &'static str,
    pub endpoint: Option<&'a str>,
    /// `None`: the client left before there was an answer.
    pub status: Option<u16>,
    pub outcome: &'static str,
    /// Whether the answer went out whole.
    pub complete: bool,
    /// Times it was sent upstream.
    pub tries: u32,
    /// Bytes of its body that were read before it was sent; those of the answer that went out.
    pub received: u64,
    pub sent: u64,
    pub queued: Duration,
    pub upstream: Duration,
    pub total: Duration,
}

/// The line that is written now, and the second of the last one: both are used again.
pub(super) struct Scratch {
    line: Vec<u8>,
    /// A moment in it, how far into it that was, and how it is written up to its fraction. A wall clock
    /// that is set shows with the next.
    second: Option<(Instant, Duration, Short<32>)>,
    /// The last client, and how it is written: few have many requests.
    client: Option<(IpAddr, Short<46>)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { line: Vec::new(), second: None, client: None }) };
}

impl Entry<'_> {
    /// Gives the line to `take`, with its end. Written outside of any lock: others wait for none of it.
    ///
    /// # Errors
    /// It cannot be written: its time is past the year 9999, or this thread is ending.
    pub(super) fn with_line<R>(
        &self,
        format: LogFormat,
        take: impl FnOnce(&[u8]) -> R,
    ) -> io::Result<R> {
        let write = |scratch: &RefCell<Scratch>| {
            let mut scratch = scratch.try_borrow_mut().map_err(io::Error::other)?;
            scratch.line.clear();
            match format {
                LogFormat::Json => self.write_json(&mut scratch)?,
                LogFormat::Text => self.write_text(&mut scratch)?,
            }
            scratch.line.push(b'\n');
            Ok(take(&scratch.line))
        };
        SCRATCH.try_with(write).map_err(io::Error::other)?
    }

    fn write_json(&self, scratch: &mut Scratch) -> io::Result<()> {
        scratch.line.put(b"{\"time\":\"");
        scratch.date(self.ended, self.wall_clock)?;
        let to = &mut scratch.line;
        to.put(b"\",\"request_id\":");
        match self.request_id {
            Id::Made(id) => {
                to.put(b"\"");
                to.put(id);
                to.put(b"\"");
            }
            Id::Given(id) => Quoted(id).put(to),
        }
        to.put(b",\"trace_id\":");
        Quoted(self.trace_id).put(to);
        to.put(b",\"client\":\"");
        scratch.address(self.client)?;
        let to = &mut scratch.line;
        to.put(b"\",\"method\":");
        Quoted(self.method.as_bytes()).put(to);
        to.put(b",\"path\":");
        Quoted(short(self.path).as_bytes()).put(to);
        to.put(b",\"operation\":");
        Quoted(self.operation.as_bytes()).put(to);
        to.put(b",\"endpoint\":");
        match self.endpoint {
            Some(endpoint) => Quoted(endpoint.as_bytes()).put(to),
            None => to.put(b"null"),
        }
        to.put(b",\"status\":");
        match self.status {
            Some(status) => number(status, to),
            None => to.put(b"null"),
        }
        to.put(b",\"outcome\":");
        Quoted(self.outcome.as_bytes()).put(to);
        to.put(match self.complete {
            true => b",\"complete\":true,\"tries\":",
            false => b",\"complete\":false,\"tries\":",
        });
        number(self.tries, to);
        to.put(b",\"received\":");
        number(self.received, to);
        to.put(b",\"sent\":");
        number(self.sent, to);
        // Microseconds are enough, and six digits read better than seventeen.
        to.put(b",\"queue_seconds\":");
        Seconds(self.queued).put_json(to);
        to.put(b",\"upstream_seconds\":");
        Seconds(self.upstream).put_json(to);
        to.put(b",\"seconds\":");
        Seconds(self.total).put_json(to);
        to.put(b"}");
        Ok(())
    }

    fn write_text(&self, scratch: &mut Scratch) -> io::Result<()> {
        scratch.date(self.ended, self.wall_clock)?;
        scratch.line.put(b" ");
        scratch.address(self.client)?;
        let to = &mut scratch.line;
        to.put(b" ");
        to.put(self.method.as_bytes());
        to.put(b" ");
        // What can be in a request target holds no space and no control character; what is not
        // printable ASCII is escaped, as a terminal would obey it.
        Harmless(short(self.path).as_bytes()).put(to);
        to.put(b" ");
        match self.status {
            Some(status) => number(status, to),
            None => to.put(b"-"),
        }
        to.put(b" ");
        to.put(self.outcome.as_bytes());
        to.put(if self.complete { b"" } else { b" cut" });
        to.put(b" tries=");
        number(self.tries, to);
        to.put(b" in=");
        number(self.received, to);
        to.put(b" out=");
        number(self.sent, to);
        to.put(b" queue=");
        Seconds(self.queued).put(to);
        to.put(b" upstream=");
        Seconds(self.upstream).put(to);
        to.put(b" total=");
        Seconds(self.total).put(to);
        to.put(b" id=");
        match self.request_id {
            Id::Made(id) => to.put(id),
            Id::Given(id) => Harmless(id).put(to),
        }
        to.put(b" trace=");
        to.put(self.trace_id);
        Ok(())
    }
}

impl Scratch {
    fn date(&mut self, ended: Instant, wall_clock: &dyn Fn() -> SystemTime) -> io::Result<()> {
        let known = self.second.as_ref().and_then(|(then, into, text)| {
            let into = *into + ended.checked_duration_since(*then)?;
            (into < SECOND).then_some((into, text))
        });
        let (into, text) = match known {
            Some(known) => known,
            None => {
                let since = wall_clock()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default();
                if since >= YEAR_10000 {
                    return Err(io::Error::other("a year has four digits"));
                }
                let into = Duration::from_nanos(since.subsec_nanos().into());
                let start = SystemTime::UNIX_EPOCH + (since - into);
                let mut text = Short::new();
                let mut written = [0; 20];
                write!(
                    &mut written[..],
                    "{}",
                    humantime::format_rfc3339_seconds(start)
                )?;
                text.put(&written[..19]);
                (into, &self.second.insert((ended, into, text)).2)
            }
        };
        self.line.put(text.as_bytes());
        let [a, b, c] = digits::<3>(into.subsec_millis());
        self.line.put(&[b'.', a, b, c, b'Z']);
        Ok(())
    }

    fn address(&mut self, client: Option<IpAddr>) -> io::Result<()> {
        let Some(client) = client else {
            self.line.put(UNIX.as_bytes());
            return Ok(());
        };
        let known = self.client.filter(|(known, _)| *known == client);
        let (_, text) = match known {
            Some(known) => known,
            None => {
                let mut written = [0; 46];
                let mut rest = &mut written[..];
                write!(rest, "{client}")?;
                let left = rest.len();
                let mut text = Short::new();
                text.put(&written[..written.len() - left]);
                *self.client.insert((client, text))
            }
        };
        self.line.put(text.as_bytes());
        Ok(())
    }
}

fn short(path: &str) -> &str {
    let mut end = path.len().min(PATH);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    &path[..end]
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;
    use std::sync::OnceLock;

    use proptest::option;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn line(entry: &Entry<'_>, format: LogFormat) -> String {
        let line = entry.with_line(format, <[u8]>::to_vec).unwrap();
        String::from_utf8(line).unwrap()
    }

    fn seconds(span: Duration) -> f64 {
        (span.as_secs_f64() * 1e6).round() / 1e6
    }

    /// When the wall clock shows so many milliseconds.
    fn at(millis: u64) -> (Instant, SystemTime) {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        let since = Duration::from_millis(millis);
        (
            *EPOCH.get_or_init(now) + since,
            SystemTime::UNIX_EPOCH + since,
        )
    }

    fn by_serde(entry: &Entry<'_>, time: SystemTime) -> Value {
        let (Id::Made(request_id) | Id::Given(request_id)) = entry.request_id;
        json!({
            "time": humantime::format_rfc3339_millis(time).to_string(),
            "request_id": String::from_utf8_lossy(request_id),
            "trace_id": String::from_utf8_lossy(entry.trace_id),
            "client": entry.client.map_or(UNIX.into(), |client| client.to_string()),
            "method": entry.method,
            "path": short(entry.path),
            "operation": entry.operation,
            "endpoint": entry.endpoint,
            "status": entry.status,
            "outcome": entry.outcome,
            "complete": entry.complete,
            "tries": entry.tries,
            "received": entry.received,
            "sent": entry.sent,
            "queue_seconds": seconds(entry.queued),
            "upstream_seconds": seconds(entry.upstream),
            "seconds": seconds(entry.total),
        })
    }

    proptest! {
        /// Byte for byte, the order of its fields included.
        #[test]
        fn a_json_line_is_what_serde_would_write(
            millis in 0..4_000_000_000_000u64,
            texts in any::<[String; 3]>(),
            path in "(/[ -~é\"\\\\]{0,300}|\\PC*)",
            client in option::of(any::<IpAddr>()),
            endpoint in option::of("[a-z0-9-]*"),
            status in option::of(100..600u16),
            complete: bool,
            tries: u32,
            counts: (u64, u64),
            micros in any::<[u32; 3]>(),
        ) {
            let [request_id, trace_id, method] = &texts;
            let [queued, upstream, total] = micros.map(|micros| Duration::from_micros(micros.into()));
            let (ended, time) = at(millis);
            let entry = Entry {
                ended,
                wall_clock: &|| time,
                request_id: Id::Given(request_id.as_bytes()),
                trace_id: trace_id.as_bytes(),
                client,
                method,
                path: &path,
                operation: "run",
                endpoint: endpoint.as_deref(),
                status,
                outcome: "forwarded",
                complete,
                tries,
                received: counts.0,
                sent: counts.1,
                queued,
                upstream,
                total,
            };
            prop_assert_eq!(line(&entry, LogFormat::Json), format!("{}\n", by_serde(&entry, time)));
        }
    }

    #[test]
    fn each_second_has_its_own_date() {
        for (millis, date) in [
            (0, "1970-01-01T00:00:00.000Z "),
            (999, "1970-01-01T00:00:00.999Z "),
            (1_000, "1970-01-01T00:00:01.000Z "),
            (999, "1970-01-01T00:00:00.999Z "),
        ] {
            let (ended, time) = at(millis);
            let written = line(
                &Entry {
                    ended,
                    wall_clock: &|| time,
                    ..entry("/v2/ep/run")
                },
                LogFormat::Text,
            );
            assert!(written.starts_with(date), "{written}");
        }
        let (ended, time) = at(253_402_300_800_000);
        let late = Entry {
            ended,
            wall_clock: &|| time,
            ..entry("/v2/ep/run")
        };
        assert!(late.with_line(LogFormat::Json, <[u8]>::len).is_err());
    }

    #[expect(clippy::disallowed_methods, reason = "lines are handed in as they end")]
    fn now() -> Instant {
        Instant::now()
    }

    pub fn entry(path: &str) -> Entry<'_> {
        Entry {
            ended: now(),
            wall_clock: &|| SystemTime::UNIX_EPOCH,
            request_id: Id::Made(b"r-1"),
            trace_id: b"4bf9",
            client: Some(Ipv4Addr::LOCALHOST.into()),
            method: "POST",
            path,
            operation: "run",
            endpoint: Some("ep"),
            status: Some(200),
            outcome: "forwarded",
            complete: true,
            tries: 1,
            received: 12,
            sent: 34,
            queued: Duration::from_micros(1_500),
            upstream: Duration::from_millis(20),
            total: Duration::from_millis(22),
        }
    }
}
