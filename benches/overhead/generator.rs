//! Whoever asks, a process of its own on one thread: all connections busy, or requests at a fixed
//! rate. What is not the upstream's answer with status 200 ends it.

use std::collections::VecDeque;
use std::io::{self, BufRead, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memchr::memmem;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use rustls::{ClientConfig, ClientConnection};
use serde::{Deserialize, Serialize};

use crate::certificate;
use crate::peer;
use crate::wire::{CHUNK, Wire};
use crate::workload::Workload;

const EVENTS: usize = 256;
/// What epoll calls the timer.
const TIMER: u64 = u64::MAX;
/// An answer takes so long at most.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// What is asked of it, a line each.
#[derive(Serialize, Deserialize)]
pub enum Order {
    /// All connections are kept busy for so long.
    Saturate(Duration),
    /// So many requests a second.
    Pace(u32, Duration),
}

/// What came of it.
#[derive(Serialize, Deserialize)]
pub struct Outcome {
    pub requests: u64,
    pub elapsed: Duration,
    /// From when requests were due to their answers' last bytes: half of them, and 99 in 100.
    pub p50: Duration,
    pub p99: Duration,
}

struct Caller {
    wire: Wire,
    /// Of an answer, what has come.
    answer: Vec<u8>,
    due: Instant,
}

struct Generator {
    epoll: OwnedFd,
    timer: OwnedFd,
    callers: Vec<Caller>,
    request: Rc<[u8]>,
    chunk: Box<[u8]>,
    events: Vec<Event>,
    /// Who has been answered, since it was last asked.
    answered: Vec<usize>,
}

#[expect(clippy::disallowed_methods, reason = "this measures")]
fn now() -> Instant {
    Instant::now()
}

/// Connects, says so, and then carries out what it reads, until there is no more.
pub fn main(
    address: SocketAddr,
    workload: Workload,
    tls: Option<Arc<ClientConfig>>,
) -> io::Result<()> {
    let mut generator = Generator::connect(address, workload, tls)?;
    println!("ready");
    for line in io::stdin().lock().lines() {
        let outcome = match serde_json::from_str(&line?)? {
            Order::Saturate(time) => generator.saturate(time)?,
            Order::Pace(rate, time) => generator.pace(rate, time)?,
        };
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(())
}

impl Generator {
    fn connect(
        address: SocketAddr,
        workload: Workload,
        tls: Option<Arc<ClientConfig>>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        let mut callers = Vec::new();
        for number in 0..workload.connections() {
            let mut socket = TcpStream::connect(address)?;
            let tls = tls.clone().map(|config| handshake(config, &mut socket));
            let wire = Wire::new(socket, tls.transpose()?.map(Into::into))?;
            wire.register(&epoll, number)?;
            callers.push(Caller {
                wire,
                answer: Vec::new(),
                due: now(),
            });
        }
        Ok(Self {
            epoll,
            timer,
            callers,
            request: workload.request().into(),
            chunk: vec![0; CHUNK].into(),
            events: Vec::with_capacity(EVENTS),
            answered: Vec::new(),
        })
    }

    /// Each connection carries one request after the other.
    fn saturate(&mut self, time: Duration) -> io::Result<Outcome> {
        let started = now();
        let mut latencies = Vec::new();
        let mut busy = self.callers.len();
        for number in 0..busy {
            self.send(number, started)?;
        }
        while busy > 0 {
            self.wait()?;
            let now = now();
            for number in std::mem::take(&mut self.answered) {
                latencies.push(now - self.callers[number].due);
                if now - started < time {
                    self.send(number, now)?;
                } else {
                    busy -= 1;
                }
            }
        }
        Ok(Outcome::of(latencies, now() - started))
    }

    /// Requests go out as due, whether or not earlier ones are answered. Where all connections are
    /// busy one waits for the next that is free, and its latency counts from when it was due: a proxy
    /// that stalls cannot hide it by holding the next requests up.
    fn pace(&mut self, rate: u32, time: Duration) -> io::Result<Outcome> {
        let interval = Duration::from_secs(1) / rate;
        let total = (time.as_secs_f64() * f64::from(rate)) as u32;
        let mut latencies = Vec::with_capacity(total as usize);
        let mut idle: VecDeque<_> = (0..self.callers.len()).collect();
        let mut sent = 0;
        let started = now();
        self.tick(interval)?;
        while latencies.len() < total as usize {
            self.wait()?;
            let now = now();
            for number in std::mem::take(&mut self.answered) {
                latencies.push(now - self.callers[number].due);
                idle.push_back(number);
            }
            while sent < total && started + interval * sent <= now {
                let Some(number) = idle.pop_front() else {
                    break;
                };
                self.send(number, started + interval * sent)?;
                sent += 1;
            }
        }
        self.tick(Duration::ZERO)?;
        Ok(Outcome::of(latencies, now() - started))
    }

    fn send(&mut self, number: usize, due: Instant) -> io::Result<()> {
        let caller = &mut self.callers[number];
        caller.due = due;
        caller.wire.send(&self.request)
    }

    /// Waits until something happens; who is answered with it stands in `answered`.
    fn wait(&mut self) -> io::Result<()> {
        epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            Some(&PATIENCE),
        )?;
        if self.events.is_empty() {
            return Err(io::Error::new(ErrorKind::TimedOut, "no answer comes"));
        }
        for event in self.events.drain(..) {
            let (data, flags) = (event.data.u64(), event.flags);
            if data == TIMER {
                // It is only to wake; the clock says what is due. Another reading may have been first.
                let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                continue;
            }
            let number = usize::try_from(data).expect("it was one");
            let Caller { wire, answer, .. } = &mut self.callers[number];
            if flags.contains(EventFlags::OUT) {
                wire.flush()?;
            }
            let open = wire.receive(&mut self.chunk, |bytes| answer.extend_from_slice(bytes))?;
            if whole(answer)? {
                answer.clear();
                self.answered.push(number);
            }
            if !open || flags.contains(EventFlags::RDHUP) {
                return Err(io::Error::other("the proxy closed a connection"));
            }
        }
        Ok(())
    }

    /// Wakes it so often from now on; zero: no more.
    fn tick(&self, interval: Duration) -> io::Result<()> {
        let interval = Timespec::try_from(interval).map_err(io::Error::other)?;
        let times = Itimerspec {
            it_interval: interval,
            it_value: interval,
        };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times)?;
        Ok(())
    }
}

fn handshake(config: Arc<ClientConfig>, socket: &mut TcpStream) -> io::Result<ClientConnection> {
    let mut tls = ClientConnection::new(config, certificate::name()).map_err(io::Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(socket)?;
    }
    Ok(tls)
}

/// Whether all of an answer is there.
///
/// # Errors
/// It is not the upstream's, or not with status 200.
fn whole(answer: &[u8]) -> io::Result<bool> {
    let Some(end) = memmem::find(answer, b"\r\n\r\n") else {
        return Ok(false);
    };
    let (head, body) = (&answer[..end], &answer[end + 4..]);
    let good = head.starts_with(b"HTTP/1.1 200 ");
    if good && body.len() < peer::BODY.len() {
        return Ok(false);
    }
    if good && body == peer::BODY.as_bytes() {
        return Ok(true);
    }
    let said = String::from_utf8_lossy(answer);
    Err(io::Error::other(format!(
        "not the upstream's answer: {said}"
    )))
}

impl Outcome {
    fn of(mut latencies: Vec<Duration>, elapsed: Duration) -> Self {
        latencies.sort_unstable();
        let at = |hundredth| latencies[(latencies.len() - 1) * hundredth / 100];
        Self {
            requests: latencies.len() as u64,
            elapsed,
            p50: at(50),
            p99: at(99),
        }
    }
}
