//! HTTP/2 used to make podgate work, or hold, out of proportion: the connection ends or what it
//! costs is bounded, other clients are served meanwhile, and nothing is left behind.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, Peer, field, fields,
    frame, request, reset, settings, window, window_update,
};
use super::process::Process;
use super::support::{PATIENCE, Scene, job, now, unique, within};

/// Bytes podgate may grow by under any of these.
const BOUND: u64 = 48 << 20;
/// Bytes of frames written at a time.
const BATCH: usize = 64 * 1024;

/// What is written, again and again.
struct Flood {
    what: &'static str,
    /// At first, behind the preface.
    first: Vec<u8>,
    /// The frames of the turn with this number.
    turn: Box<dyn FnMut(u32) -> Vec<u8>>,
    /// What is sent back is read.
    reads: bool,
}

/// How a flood ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It was taken for as long as it lasted.
    Taken,
    /// The connection was ended before.
    Cut,
    /// It was not read on: what there is to say to it is not taken.
    Stuck,
}

impl Flood {
    fn new(what: &'static str, first: Vec<u8>, turn: impl FnMut(u32) -> Vec<u8> + 'static) -> Self {
        Self {
            what,
            first,
            turn: Box::new(turn),
            reads: true,
        }
    }

    fn unread(mut self) -> Self {
        self.reads = false;
        self
    }

    /// Goes on for so long, if it is let; says after how many turns it ended.
    async fn run(&mut self, process: &Process, lasts: Duration) -> (End, u32) {
        let stream = TcpStream::connect(process.listen).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let ends = now() + lasts;
        let reads = self.reads;
        let reading = async move {
            let mut scrap = vec![0; 65_536];
            while reads && !matches!(reader.read(&mut scrap).await, Ok(0) | Err(_)) {}
            if !reads {
                std::future::pending::<()>().await;
            }
            drop(reader);
        };
        let mut batch = [PREFACE, &self.first].concat();
        let mut turns = 0;
        let writing = async {
            while now() < ends {
                while batch.len() < BATCH {
                    batch.extend((self.turn)(turns));
                    turns += 1;
                }
                match timeout(lasts, writer.write_all(&batch)).await {
                    Ok(Ok(())) => batch.clear(),
                    Ok(Err(_)) => return End::Cut,
                    Err(_) => return End::Stuck,
                }
                // Whoever is flooded gets to run as well.
                tokio::task::yield_now().await;
            }
            End::Taken
        };
        let end = tokio::select! {
            end = writing => end,
            () = reading => End::Cut,
        };
        (end, turns)
    }
}

/// Runs one, and looks at what it did.
async fn survives(process: &Process, mut flood: Flood, lasts: Duration) -> (End, u32) {
    let what = flood.what;
    let before = process.peak();
    let (mut served, mut slowest) = (0, Duration::ZERO);
    let others = async {
        loop {
            let asked = now();
            let answer = process.post("/v2/ep/run", job(&unique())).await;
            assert_eq!(answer.status, 200, "{what}: {:?}", answer.body);
            served += 1;
            slowest = slowest.max(asked.elapsed());
        }
    };
    let (end, turns) = tokio::select! {
        ended = within(what, flood.run(process, lasts)) => ended,
        () = others => unreachable!("they are served on"),
    };
    let answer = process.post("/v2/ep/run", job(&unique())).await;
    assert_eq!(answer.status, 200, "{what}: {:?}", answer.body);
    process.has_connections(0).await;
    let clears = async {
        while process.under_way().await > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    within("every permit is back and nobody waits", clears).await;
    let more = process.peak().saturating_sub(before);
    println!(
        "{what}: {end:?} after {turns} turns, {more} bytes more, {served} served, the slowest in {slowest:?}"
    );
    assert!(more < BOUND, "{what}: {more} bytes more");
    assert!(
        served > 0 || end == End::Cut,
        "{what}: nobody else was served"
    );
    (end, turns)
}

fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &fields("POST", "/v2/ep/run"))
}

/// `lasts`: each of those that are not cut.
pub async fn floods(lasts: Duration) {
    let process = Scene::default().process();
    let get = |stream| request(stream, "GET", "/v2/ep/health", "");
    let nothing = |turn| request(2 * turn + 1, "GET", "/nothing", "");
    let begun = || {
        [
            settings(&[]),
            frame(HEADERS, END_STREAM, 1, &fields("GET", "/nothing")),
        ]
        .concat()
    };
    let sending = || [settings(&[]), open(1)].concat();
    let cut = [
        Flood::new(
            "requests that are reset at once",
            settings(&[]),
            move |turn| [get(2 * turn + 1), reset(2 * turn + 1)].concat(),
        ),
        Flood::new(
            "requests that are reset when they have begun",
            settings(&[]),
            move |turn| {
                // A hundred are opened, and then reset.
                let (round, at) = (turn / 200, turn % 200);
                let stream = |at| 2 * (round * 100 + at) + 1;
                match at {
                    0..100 => get(stream(at)),
                    _ => reset(stream(at - 100)),
                }
            },
        ),
        Flood::new(
            "requests that we reset, as they break the rules",
            settings(&[]),
            |turn| [open(2 * turn + 1), window_update(2 * turn + 1, 0)].concat(),
        ),
        Flood::new("fields without end", begun(), |_| {
            frame(CONTINUATION, 0, 1, &field("x-more", &"x".repeat(1_000)))
        }),
        Flood::new("fields without end, and without a byte", begun(), |_| {
            frame(CONTINUATION, 0, 1, &[])
        }),
        Flood::new("DATA without a byte", sending(), |_| frame(DATA, 0, 1, &[])),
        Flood::new("DATA of padding", sending(), |_| frame(DATA, 8, 1, &[0])),
        Flood::new("bombs of fields", settings(&[]), |turn| {
            frame(HEADERS, END_HEADERS | END_STREAM, 2 * turn + 1, &bomb())
        }),
        Flood::new("answers nobody reads", settings(&[]), nothing).unread(),
        Flood::new("answers without a window", window(0), nothing),
    ];
    for flood in cut {
        let what = flood.what;
        let (end, turns) = survives(&process, flood, PATIENCE).await;
        assert_eq!(end, End::Cut, "{what}: after {turns} turns");
    }
    // Each of these costs about as much to send as to take.
    let hundred = (0..100).flat_map(|turn| open(2 * turn + 1)).collect();
    let taken = [
        Flood::new("settings", Vec::new(), |turn| settings(&[(4, turn)])),
        Flood::new(
            "settings, and nobody reads that they are known",
            Vec::new(),
            |turn| settings(&[(4, turn)]),
        )
        .unread(),
        Flood::new("windows of a hundred streams that change", hundred, |_| {
            settings(&[
                (4, 0),
                (4, 1),
                (4, 2),
                (4, 3),
                (4, 4),
                (4, 5),
                (4, 6),
                (4, 7),
            ])
        }),
        Flood::new("pings", settings(&[]), |_| frame(PING, 0, 0, &[0; 8])),
        Flood::new("pings, and nobody reads the answers", settings(&[]), |_| {
            frame(PING, 0, 0, &[0; 8])
        })
        .unread(),
        Flood::new("frames nobody knows", settings(&[]), |_| {
            frame(0x42, 0, 0, &[0; 100])
        }),
        Flood::new("priorities", settings(&[]), |turn| {
            frame(2, 0, 2 * turn + 1, &[0, 0, 0, 0, 1])
        }),
        Flood::new("a window by a byte", sending(), |_| window_update(1, 1)),
    ];
    for flood in taken {
        survives(&process, flood, lasts).await;
    }
}

/// One field of nearly 4 KB, and then again and again by one byte each (RFC 7541, section 6.1).
fn bomb() -> Vec<u8> {
    let mut block = fields("GET", "/nothing");
    block.push(0x40);
    block.extend(&field("x-bomb", &"x".repeat(3_900))[1..]);
    block.extend(std::iter::repeat_n(0x80 | 62, 12_000));
    block
}

#[tokio::test]
async fn floods_cost_nobody_but_their_own_connection() {
    floods(Duration::from_millis(250)).await;
}

/// `:status: 431` as a literal in the code of RFC 7541, Appendix B.
const STATUS_431: &[u8] = &[0x48, 0x83, 0x69, 0x90, 0xFF];

/// More than a head may be, but not by so much that it is an attack.
#[tokio::test]
async fn a_head_that_is_too_large_is_told_so() {
    let stand = Scene::default().start();
    let gateway = &stand.gateway;
    for bytes in [70_000, 300_000] {
        let head = format!(
            "GET /v2/ep/health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n",
            "x".repeat(bytes)
        );
        let mut told = Vec::new();
        let mut client = gateway.send(head).await;
        let _ = within("the end", client.read_to_end(&mut told)).await;
        let told = String::from_utf8(told).unwrap();
        assert!(told.starts_with("HTTP/1.1 431 "), "{told}");
    }
    let mut peer = Peer::connect(gateway.address(), &settings(&[])).await;
    let long = field("x-long", &"x".repeat(70_000));
    let block = [fields("GET", "/v2/ep/health"), long].concat();
    let mut parts = block.chunks(16_384).peekable();
    let mut kind = HEADERS;
    while let Some(part) = parts.next() {
        let last = if parts.peek().is_none() {
            END_HEADERS
        } else {
            0
        };
        let end = if kind == HEADERS { END_STREAM } else { 0 };
        peer.send(frame(kind, last | end, 1, part)).await;
        kind = CONTINUATION;
    }
    let head = peer.until("an answer", |frame| frame.kind == HEADERS).await;
    assert_eq!(&head.payload[..5], STATUS_431);
    // The next one is none the worse for it.
    peer.send(request(3, "POST", "/v2/ep/run", &job(&unique())))
        .await;
    assert!(peer.is_ok(3).await);
    drop(peer);
    stand.is_as_before().await;
}
