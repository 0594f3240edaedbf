//! The access log: a line a request, written in batches by a thread of its own.
//!
//! Nobody who serves waits for whoever reads it. When what is not yet written passes [`CAPACITY`],
//! lines are thrown away and counted.

use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;
use serde::{Serialize, Serializer};

use crate::config::process::LogFormat;
use crate::text::{Harmless, Seconds};

/// Bytes that may wait to be written: a second of a busy gateway.
const CAPACITY: usize = 4 << 20;
/// Lines are gathered for this long before they are written together.
const BATCH: Duration = Duration::from_millis(50);
/// At the end of the process what is left gets this long.
const LAST: Duration = Duration::from_secs(1);
/// Whoever comes by a Unix socket has no address.
const UNIX: &str = "unix";
/// Of a path no more is shown: strangers choose it.
const PATH: usize = 256;

/// One request, as its line tells it. Never a query, a body or a credential: they may be secret.
#[derive(Serialize)]
pub struct Entry<'a> {
    #[serde(serialize_with = "date")]
    pub time: SystemTime,
    pub request_id: &'a str,
    pub trace_id: &'a str,
    /// `None`: it came by a Unix socket.
    #[serde(serialize_with = "address")]
    pub client: Option<IpAddr>,
    pub method: &'a str,
    #[serde(serialize_with = "shortened")]
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
    #[serde(rename = "queue_seconds", serialize_with = "seconds")]
    pub queued: Duration,
    #[serde(rename = "upstream_seconds", serialize_with = "seconds")]
    pub upstream: Duration,
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub total: Duration,
}

fn date<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_rfc3339_millis(*time))
}

fn address<S: Serializer>(client: &Option<IpAddr>, to: S) -> Result<S::Ok, S::Error> {
    match client {
        Some(address) => to.collect_str(address),
        None => to.serialize_str(UNIX),
    }
}

fn shortened<S: Serializer>(path: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(short(path))
}

/// Microseconds are enough, and six digits read better than seventeen.
fn seconds<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64((span.as_secs_f64() * 1e6).round() / 1e6)
}

fn short(path: &str) -> &str {
    let mut end = path.len().min(PATH);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    &path[..end]
}

impl Entry<'_> {
    fn write(&self, format: LogFormat, to: &mut Vec<u8>) -> io::Result<()> {
        match format {
            LogFormat::Json => serde_json::to_writer(&mut *to, self)?,
            LogFormat::Text => self.write_text(to)?,
        }
        to.push(b'\n');
        Ok(())
    }

    fn write_text(&self, to: &mut Vec<u8>) -> io::Result<()> {
        let time = humantime::format_rfc3339_millis(self.time);
        let method = self.method;
        // What can be in a request target holds no space and no control character; what is not
        // printable ASCII is escaped, as a terminal would obey it.
        let path = Harmless(short(self.path));
        match self.client {
            Some(client) => write!(to, "{time} {client} {method} {path} ")?,
            None => write!(to, "{time} {UNIX} {method} {path} ")?,
        }
        match self.status {
            Some(status) => write!(to, "{status}")?,
            None => write!(to, "-")?,
        }
        let cut = if self.complete { "" } else { " cut" };
        write!(
            to,
            " {}{cut} tries={} in={} out={} queue={} upstream={} total={} id={} trace={}",
            self.outcome,
            self.tries,
            self.received,
            self.sent,
            Seconds(self.queued),
            Seconds(self.upstream),
            Seconds(self.total),
            Harmless(self.request_id),
            self.trace_id,
        )
    }
}

/// Where lines are handed in. Cheap to clone; the default keeps none.
#[derive(Clone, Default)]
pub struct AccessLog(Option<Arc<Queue>>);

struct Queue {
    format: LogFormat,
    dropped: IntCounter,
    state: Mutex<State>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    closing: bool,
    over: bool,
}

impl AccessLog {
    /// Starts the thread that writes to `sink`. `dropped` counts the lines thrown away.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        format: LogFormat,
        dropped: IntCounter,
        sink: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Arc::new(Queue {
            format,
            dropped,
            state: Mutex::default(),
            filled: Condvar::new(),
            written: Condvar::new(),
        });
        let writer = queue.clone();
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || writer.run(sink))?;
        Ok(Self(Some(queue)))
    }

    /// Whether anybody wants lines.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Hands a line in.
    pub fn write(&self, entry: &Entry<'_>) {
        let Some(queue) = &self.0 else { return };
        let mut state = queue.state.lock();
        let before = state.lines.len();
        let whole =
            before < CAPACITY && !state.over && entry.write(queue.format, &mut state.lines).is_ok();
        if !whole {
            state.lines.truncate(before);
            queue.dropped.inc();
        } else if before == 0 {
            queue.filled.notify_one();
        }
    }

    /// Sees what was handed in out, for as long as [`LAST`]. Lines that come later are lost.
    pub fn close(&self) {
        let Some(queue) = &self.0 else { return };
        let mut state = queue.state.lock();
        state.closing = true;
        queue.filled.notify_one();
        let open = |state: &mut State| !state.over;
        queue.written.wait_while_for(&mut state, open, LAST);
    }
}

impl Queue {
    fn run(&self, mut sink: impl Write) {
        let mut batch = Vec::new();
        loop {
            let closing = {
                let mut state = self.state.lock();
                let idle = |state: &mut State| state.lines.is_empty() && !state.closing;
                self.filled.wait_while(&mut state, idle);
                // The rest of the batch comes meanwhile.
                let open = |state: &mut State| !state.closing;
                self.filled.wait_while_for(&mut state, open, BATCH);
                std::mem::swap(&mut batch, &mut state.lines);
                state.closing
            };
            let written = sink.write_all(&batch).and_then(|()| sink.flush());
            batch.clear();
            if let Err(error) = &written {
                tracing::warn!(%error, "the access log cannot be written any more");
            }
            let mut state = self.state.lock();
            if written.is_err() || (closing && state.lines.is_empty()) {
                state.over = true;
                state.lines = Vec::new();
                self.written.notify_all();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::mpsc;

    use super::*;

    fn entry(path: &str) -> Entry<'_> {
        Entry {
            time: SystemTime::UNIX_EPOCH,
            request_id: "r-1",
            trace_id: "4bf9",
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

    /// A sink that gives what it gets to a channel, and stops at each write until that is read.
    struct Slow(mpsc::SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            self.0.send(bytes.to_vec()).map_err(gone)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(format: LogFormat) -> (AccessLog, IntCounter, mpsc::Receiver<Vec<u8>>) {
        let (to, from) = mpsc::sync_channel(0);
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        let log = AccessLog::start(format, dropped.clone(), Slow(to)).unwrap();
        (log, dropped, from)
    }

    #[test]
    fn a_line_says_all_of_a_request_and_none_of_its_secrets() {
        let (log, _, lines) = log(LogFormat::Text);
        log.write(&entry("/v2/ep/run"));
        assert_eq!(
            String::from_utf8(lines.recv().unwrap()).unwrap(),
            "1970-01-01T00:00:00.000Z 127.0.0.1 POST /v2/ep/run 200 forwarded tries=1 in=12 out=34 \
             queue=0.001500 upstream=0.020000 total=0.022000 id=r-1 trace=4bf9\n"
        );
    }

    #[test]
    fn a_json_line_is_one_object_on_one_line() {
        let (log, _, lines) = log(LogFormat::Json);
        log.write(&Entry {
            status: None,
            complete: false,
            ..entry("/\n\"\u{1b}[2J")
        });
        let line = String::from_utf8(lines.recv().unwrap()).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["time"], "1970-01-01T00:00:00.000Z");
        assert_eq!(line["status"], serde_json::Value::Null);
        assert_eq!(line["queue_seconds"], 0.0015);
        assert_eq!(line["path"], "/\n\"\u{1b}[2J");
    }

    #[test]
    fn a_text_line_holds_nothing_that_a_terminal_obeys_and_no_long_path() {
        let (log, _, lines) = log(LogFormat::Text);
        let path = format!("/\u{1b}[2J\n{}", "é".repeat(1_000));
        log.write(&entry(&path));
        let line = lines.recv().unwrap();
        let text = String::from_utf8(line).unwrap();
        assert!(text.contains("/\\u{1b}[2J\\n"), "{text}");
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.len() < 512, "{}", text.len());
    }

    #[test]
    fn whoever_serves_never_waits_for_a_reader_and_lost_lines_are_counted() {
        let (log, dropped, lines) = log(LogFormat::Json);
        // Nobody reads: the writer is stuck, and what waits is bounded.
        let path = "/x".repeat(100);
        let mut handed = 0u64;
        while dropped.get() == 0 {
            log.write(&entry(&path));
            handed += 1;
            assert!(handed < 1_000_000, "nothing is ever dropped");
        }
        let reader = std::thread::spawn(move || {
            let all = lines.iter().flatten();
            all.filter(|&byte| byte == b'\n').count() as u64
        });
        log.close();
        assert_eq!(reader.join().unwrap() + dropped.get(), handed);
    }

    #[test]
    fn what_was_handed_in_is_written_before_the_end_and_a_stuck_reader_does_not_stop_it() {
        let (access, _, lines) = log(LogFormat::Text);
        for _ in 0..100 {
            access.write(&entry("/v2/ep/run"));
        }
        let reader = std::thread::spawn(move || {
            let all = lines.iter().flatten();
            all.filter(|&byte| byte == b'\n').count()
        });
        access.close();
        assert_eq!(reader.join().unwrap(), 100);

        let (stuck, _, _never_read) = log(LogFormat::Text);
        stuck.write(&entry("/v2/ep/run"));
        stuck.close();
    }

    #[test]
    fn without_a_log_nothing_is_written() {
        let log = AccessLog::default();
        assert!(!log.is_on());
        log.write(&entry("/"));
        log.close();
    }
}
