//! Reading ahead, under paused time: an upstream that sends as it is told, a client that takes as it
//! likes.

use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

/// What an upstream sends, as it sends it.
struct Source(mpsc::UnboundedReceiver<Result<Bytes, Cut>>);

impl Body for Source {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let next = self.0.poll_recv(cx);
        next.map(|next| next.map(|chunk| chunk.map(Frame::data)))
    }
}

struct Bench {
    sends: Option<mpsc::UnboundedSender<Result<Bytes, Cut>>>,
    passing: Option<Passing>,
    reading: JoinHandle<Option<String>>,
    budget: Budget,
}

const BUFFER: u64 = 64 * 1024;
const IDLE: Duration = Duration::from_secs(60);
const LEAST_IN: Duration = Duration::from_secs(30);

impl Bench {
    fn with(total: u64) -> Self {
        let (sends, receives) = mpsc::unbounded_channel();
        let budget = Budget::new(prometheus::IntGauge::new("held", "Bytes").unwrap());
        let ahead = Ahead {
            buffer: BUFFER,
            total,
            budget: budget.clone(),
            idle: IDLE,
            least_in: LEAST_IN,
        };
        let (passing, work, ending) = read(Source(receives), Bytes::new(), ahead);
        let reading = tokio::spawn(async move {
            let (_, ended) = work.await;
            let why = ended.as_ref().err().map(ToString::to_string);
            ending.with(ended);
            why
        });
        Self {
            sends: Some(sends),
            passing: Some(passing),
            reading,
            budget,
        }
    }

    fn new() -> Self {
        Self::with(1 << 30)
    }

    fn send(&self, bytes: usize) {
        let sends = self.sends.as_ref().unwrap();
        sends.send(Ok(vec![7; bytes].into())).unwrap();
    }

    fn end(&mut self) {
        self.sends = None;
    }

    async fn take(&mut self) -> Option<Result<usize, String>> {
        let frame = self.passing.as_mut().unwrap().frame().await?;
        let data = frame.map(|frame| frame.into_data().unwrap().len());
        Some(data.map_err(|cut| cut.to_string()))
    }

    /// Takes all there is until it ends; how much that was, and how it was cut.
    async fn take_all(&mut self) -> (usize, Option<String>) {
        let mut all = 0;
        loop {
            match self.take().await {
                None => return (all, None),
                Some(Ok(bytes)) => all += bytes,
                Some(Err(cut)) => return (all, Some(cut)),
            }
        }
    }

    /// How long the reading goes on, and why it ends.
    async fn ends(&mut self) -> (Duration, Option<String>) {
        let began = now();
        let why = (&mut self.reading).await.unwrap();
        (now() - began, why)
    }

    fn has_ended(&self) -> bool {
        self.reading.is_finished()
    }
}

/// Lets everybody do what can be done now.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn it_is_read_to_its_end_though_nobody_takes_it() {
    let mut bench = Bench::new();
    for _ in 0..60 {
        bench.send(1_024);
    }
    bench.end();
    let (after, why) = bench.ends().await;
    assert_eq!((after, why), (Duration::ZERO, None));
    tokio::time::sleep(IDLE * 10).await;
    assert_eq!(bench.take_all().await, (60 * 1_024, None));
}

#[tokio::test(start_paused = true)]
async fn the_first_byte_is_passed_on_before_there_is_another() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.send(1);
        let taken = timeout(Duration::from_millis(1), bench.take()).await;
        assert_eq!(taken.unwrap(), Some(Ok(1)));
    }
    assert_eq!(bench.budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_buffer_it_waits_for_the_client() {
    let mut bench = Bench::new();
    for _ in 0..100 {
        bench.send(4_096);
    }
    bench.end();
    settle().await;
    let most = BUFFER + 4_096;
    let waiting = |bench: &Bench| {
        bench
            .passing
            .as_ref()
            .unwrap()
            .shared
            .0
            .lock()
            .waiting
            .len()
    };
    assert!((BUFFER..=most).contains(&waiting(&bench)));
    assert!(!bench.has_ended());
    let mut taken = 0;
    while taken < 200_000 {
        taken += bench.take().await.unwrap().unwrap();
        settle().await;
        assert!(waiting(&bench) <= most);
    }
    let (rest, cut) = bench.take_all().await;
    assert_eq!((taken + rest, cut), (409_600, None));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_cut() {
    let mut bench = Bench::new();
    for _ in 0..100 {
        bench.send(4_096);
    }
    let (after, why) = bench.ends().await;
    assert!(after >= LEAST_IN && after < LEAST_IN * 2, "{after:?}");
    assert!(why.is_some_and(|why| why.contains("took less than")));
    // It gets what it was sent, and sees that this is not all.
    let (taken, cut) = bench.take_all().await;
    assert!(taken as u64 >= BUFFER && cut.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_too_little_is_cut_and_one_that_takes_enough_is_not() {
    for (per_second, enough) in [(BUFFER / 30 + 4_096, true), (BUFFER / 60, false)] {
        let mut bench = Bench::new();
        for _ in 0..200 {
            bench.send(4_096);
        }
        bench.end();
        let (mut second, mut taken) = (0, 0);
        while !bench.has_ended() && second < 3_600 {
            second += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
            while taken < second * per_second && !bench.has_ended() {
                taken += bench.take().await.unwrap().unwrap() as u64;
            }
        }
        let (_, why) = bench.ends().await;
        assert_eq!(why.is_none(), enough, "{per_second} a second: {why:?}");
    }
}

/// Slow now and then is not slow, however little may wait for it.
#[tokio::test(start_paused = true)]
async fn a_client_that_catches_up_begins_anew() {
    let mut bench = Bench::with(0);
    for _ in 0..10 {
        for _ in 0..8 {
            bench.send(4_096);
        }
        tokio::time::sleep(LEAST_IN - Duration::from_secs(5)).await;
        let mut taken = 0;
        while taken < 8 * 4_096 {
            taken += bench.take().await.unwrap().unwrap();
        }
        settle().await;
    }
    assert!(!bench.has_ended());
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_cut_and_not_for_the_silence_of_its_client() {
    let mut bench = Bench::new();
    bench.send(4_096);
    let (after, why) = bench.ends().await;
    assert_eq!(after, IDLE);
    assert!(why.is_some_and(|why| why.contains("sent nothing")));
    assert_eq!(bench.take().await, Some(Ok(4_096)));
    assert!(bench.take().await.unwrap().is_err());

    // For two minutes it is asked for something now and then only.
    let mut bench = Bench::new();
    for _ in 0..400 {
        bench.send(4_096);
    }
    let mut taken = 0;
    for turn in 1..=8 {
        tokio::time::sleep(LEAST_IN / 2).await;
        while taken < turn * 40_000 {
            taken += bench.take().await.unwrap().unwrap();
        }
    }
    assert!(!bench.has_ended());
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_within_the_budget_and_streams_where_that_is_spent() {
    let mut bench = Bench::with(FREE);
    for _ in 0..100 {
        bench.send(4_096);
    }
    bench.end();
    settle().await;
    let waiting = bench
        .passing
        .as_ref()
        .unwrap()
        .shared
        .0
        .lock()
        .waiting
        .len();
    assert!(waiting <= 2 * FREE + 4_096, "{waiting}");
    assert_eq!(bench.budget.held(), FREE);
    assert_eq!(bench.take_all().await, (409_600, None));
    assert_eq!(bench.budget.held(), 0);

    let mut bench = Bench::new();
    for _ in 0..100 {
        bench.send(4_096);
    }
    settle().await;
    assert!(bench.budget.held() >= BUFFER - FREE);
    bench.passing = None;
    let (_, why) = bench.ends().await;
    assert!(why.is_some_and(|why| why.contains("gone")));
    assert_eq!(bench.budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_came_before_a_break_is_passed_on_and_the_break_is_seen() {
    let mut bench = Bench::new();
    bench.send(10);
    bench.send(20);
    let broken = bench.sends.as_ref().unwrap().send(Err("reset".into()));
    broken.unwrap();
    settle().await;
    assert_eq!(bench.take_all().await, (30, Some("reset".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_lost_leaves_no_answer_that_looks_whole() {
    let mut bench = Bench::new();
    bench.send(10);
    settle().await;
    bench.reading.abort();
    settle().await;
    let (taken, cut) = bench.take_all().await;
    assert_eq!(taken, 10);
    assert!(cut.is_some());
}
