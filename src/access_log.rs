//! The access log: a line a request, written in batches by a thread of its own.
//!
//! Nobody who serves waits for whoever reads it, nor for another who serves: each thread hands its
//! lines in at a shard, and the writer empties all shards at once and puts their lines in the order in
//! which requests ended. When what is not yet written passes a shard's [`CAPACITY`], lines are thrown
//! away and counted.

pub mod entry;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;
use tokio::time::Instant;

use crate::access_log::entry::Entry;
use crate::config::process::LogFormat;
use crate::metrics::spread::{self, Own};

/// Threads past it share a shard with an earlier one.
const SHARDS: usize = 4;
/// Bytes that may wait to be written in each shard: some batches of a thread that is never idle.
const CAPACITY: usize = 4 << 20;
/// Lines are gathered for this long before they are written together.
const BATCH: Duration = Duration::from_millis(50);
/// At the end of the process what is left gets this long.
const LAST: Duration = Duration::from_secs(1);
/// Where lines are handed in. Cheap to clone; the default keeps none.
#[derive(Clone, Default)]
pub struct AccessLog(Option<Arc<Queue>>);

struct Queue {
    format: LogFormat,
    dropped: IntCounter,
    shards: [Shard; SHARDS],
    state: Mutex<State>,
    /// Whether the writer will look at every shard again before it sleeps. Changed only while `state`
    /// is locked, so that nobody wakes it between its look and its sleep.
    awake: AtomicBool,
    filled: Condvar,
    written: Condvar,
}

/// Lines not yet written. `None`: nobody would write them any more. Locked after `state`, if both are.
type Shard = Own<Mutex<Option<Lines>>>;

/// Lines one after the other.
#[derive(Default)]
struct Lines {
    text: Vec<u8>,
    /// When each one's request ended, and where in the text its line does.
    ends: Vec<(Instant, usize)>,
}

impl Lines {
    fn push(&mut self, ended: Instant, line: &[u8]) {
        self.text.extend_from_slice(line);
        self.ends.push((ended, self.text.len()));
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }
}

/// All lines of all shards in the order of their ends; those of one shard stay in theirs.
fn merge(shards: &[Lines; SHARDS], to: &mut Vec<u8>) {
    let mut next = [0; SHARDS];
    let ended = |shard: usize, next: &[usize; SHARDS]| {
        let end = shards[shard].ends.get(next[shard]);
        end.map(|(ended, _)| (*ended, shard))
    };
    while let Some((_, shard)) = (0..SHARDS).filter_map(|shard| ended(shard, &next)).min() {
        let Lines { text, ends } = &shards[shard];
        let start = next[shard]
            .checked_sub(1)
            .map_or(0, |before| ends[before].1);
        to.extend_from_slice(&text[start..ends[next[shard]].1]);
        next[shard] += 1;
    }
}

#[derive(Default)]
struct State {
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
            shards: std::array::from_fn(|_| Own(Mutex::new(Some(Lines::default())))),
            state: Mutex::default(),
            awake: AtomicBool::new(false),
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
        let kept = entry.with_line(queue.format, |line| queue.keep(entry.ended, line));
        if !kept.unwrap_or(false) {
            queue.dropped.inc();
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
    /// `false`: there is no room, or nobody who would write it.
    fn keep(&self, ended: Instant, line: &[u8]) -> bool {
        let Own(shard) = &self.shards[spread::turn() % SHARDS];
        let mut shard = shard.lock();
        let lines = match &mut *shard {
            Some(lines) if lines.text.len() < CAPACITY => lines,
            _ => return false,
        };
        let first = lines.ends.is_empty();
        lines.push(ended, line);
        drop(shard);
        // Had the writer looked before this line came, it would be seen asleep here. Whoever adds to
        // what is there need not ask: the first line has.
        if first && !self.awake.load(Relaxed) {
            let _state = self.state.lock();
            self.awake.store(true, Relaxed);
            self.filled.notify_one();
        }
        true
    }

    fn run(&self, mut sink: impl Write) {
        let (mut taken, mut batch) = Default::default();
        loop {
            let closing = self.gather();
            self.take(&mut taken, closing);
            merge(&taken, &mut batch);
            taken.iter_mut().for_each(Lines::clear);
            let written = sink.write_all(&batch).and_then(|()| sink.flush());
            batch.clear();
            if let Err(error) = &written {
                tracing::warn!(%error, "the access log cannot be written any more");
            }
            if closing || written.is_err() {
                // Whatever comes from here on is refused.
                self.take(&mut taken, true);
                self.state.lock().over = true;
                self.written.notify_all();
                return;
            }
        }
    }

    /// Waits for a batch. `true`: it is the last one.
    fn gather(&self) -> bool {
        let mut state = self.state.lock();
        // First this, then a look: a line that comes after the look finds the writer asleep.
        self.awake.store(false, Relaxed);
        if self.is_empty() {
            let idle = |state: &mut State| !self.awake.load(Relaxed) && !state.closing;
            self.filled.wait_while(&mut state, idle);
        }
        self.awake.store(true, Relaxed);
        // The rest of the batch comes meanwhile.
        let open = |state: &mut State| !state.closing;
        self.filled.wait_while_for(&mut state, open, BATCH);
        state.closing
    }

    fn is_empty(&self) -> bool {
        let empty = |lines: &Lines| lines.ends.is_empty();
        let empty = |Own(shard): &Shard| shard.lock().as_ref().is_none_or(empty);
        self.shards.iter().all(empty)
    }

    /// Takes what all shards hold, in one moment: no line is taken before another whose request had
    /// ended before its own. The buffers go round: `taken` is empty before.
    fn take(&self, taken: &mut [Lines; SHARDS], last: bool) {
        let mut shards = self.shards.each_ref().map(|Own(shard)| shard.lock());
        for (shard, taken) in shards.iter_mut().zip(taken) {
            if let Some(held) = &mut **shard {
                std::mem::swap(held, taken);
            }
            if last {
                **shard = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::access_log::entry::tests::entry;

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
    fn every_line_of_every_thread_comes_out_once_and_whole_and_in_its_order() {
        const THREADS: usize = 2 * SHARDS;
        const EACH: usize = 500;
        let (access, dropped, lines) = log(LogFormat::Text);
        let reader = std::thread::spawn(move || lines.iter().flatten().collect());
        std::thread::scope(|threads| {
            for thread in 0..THREADS {
                let access = &access;
                threads.spawn(move || {
                    for nth in 0..EACH {
                        access.write(&entry(&format!("/{thread}/{nth}")));
                    }
                });
            }
        });
        access.close();
        access.write(&entry("/too/late"));
        assert_eq!(dropped.get(), 1);

        let text = String::from_utf8(reader.join().unwrap()).unwrap();
        let mut next = [0; THREADS];
        for line in text.lines() {
            let path = line.split(' ').nth(3).unwrap();
            let (thread, nth) = path[1..].split_once('/').unwrap();
            let next = &mut next[thread.parse::<usize>().unwrap()];
            assert_eq!(nth, next.to_string());
            *next += 1;
            assert!(
                line.starts_with("1970-") && line.ends_with(" trace=4bf9"),
                "{line}"
            );
        }
        assert_eq!(next, [EACH; THREADS]);
    }

    #[test]
    fn lines_stand_in_the_order_in_which_requests_ended() {
        const LINES: usize = 2_000;
        let (access, _, lines) = log(LogFormat::Text);
        let reader = std::thread::spawn(move || lines.iter().flatten().collect());
        // Each thread waits for the one before: what one has seen end ended before.
        let next = Mutex::new(0);
        std::thread::scope(|threads| {
            for _ in 0..2 * SHARDS {
                threads.spawn(|| {
                    loop {
                        let mut next = next.lock();
                        if *next == LINES {
                            return;
                        }
                        access.write(&entry(&format!("/{next}")));
                        *next += 1;
                        drop(next);
                        std::thread::yield_now();
                    }
                });
            }
        });
        access.close();
        let text = String::from_utf8(reader.join().unwrap()).unwrap();
        let paths = text.lines().map(|line| line.split(' ').nth(3).unwrap());
        assert!(paths.eq((0..LINES).map(|line| format!("/{line}"))));
    }

    #[test]
    fn a_line_into_an_empty_queue_wakes_the_writer_whichever_thread_it_comes_from() {
        let (access, _, lines) = log(LogFormat::Text);
        for _ in 0..SHARDS {
            let mut awaited = 0;
            std::thread::scope(|threads| {
                for _ in 0..2 {
                    threads.spawn(|| access.write(&entry("/v2/ep/run")));
                }
            });
            while awaited < 2 {
                let written = lines.recv_timeout(Duration::from_secs(10)).unwrap();
                awaited += written.iter().filter(|&&byte| byte == b'\n').count();
            }
        }
    }

    #[test]
    fn without_a_log_nothing_is_written() {
        let log = AccessLog::default();
        assert!(!log.is_on());
        log.write(&entry("/"));
        log.close();
    }
}
