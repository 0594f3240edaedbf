//! An upstream across the internet that does everything wrong: each time one clear answer in time,
//! the permit back, and the next request served as if nothing had been.

use std::sync::Arc;
use std::time::Duration;

use podgate::emulator::limits::Group;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::scripted::{Connection, Scripted};
use super::support::{Answer, Gateway, Scene, eventually, now, post, within};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
/// What nobody is to hear.
const WRONG: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong";

/// What an upstream does after it has said something.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    Reset,
    /// Answers whatever else it is asked, wrongly.
    Stay,
    /// Answers it well.
    Serve,
}

/// Says `bytes` to the first request, and serves on every other connection.
async fn saying(bytes: impl Into<Vec<u8>>, then: Then) -> Scripted {
    let bytes: Arc<[u8]> = bytes.into().into();
    Scripted::start(move |mut connection| {
        let bytes = bytes.clone();
        async move {
            if connection.number > 0 {
                while connection.answer(OK).await {}
                return;
            }
            connection.answer(&bytes).await;
            match then {
                Then::Close => {}
                Then::Reset => connection.stream.set_zero_linger().unwrap(),
                Then::Stay => while connection.answer(WRONG).await {},
                Then::Serve => while connection.answer(OK).await {},
            }
        }
    })
    .await
}

/// One worker, and so one pool: what spoils a connection would spoil the next request.
fn scene() -> Scene {
    Scene::default().workers(1).margin("50ms")
}

/// The permit is back, and the next is served.
async fn goes_on(what: &str, gateway: &Gateway) {
    eventually("the permit is back", || gateway.permits(Group::Run) == 0).await;
    let next = gateway.post("/v2/ep/run", "{}").await;
    assert_eq!(
        (next.status, next.body.as_ref()),
        (200, &b"ok"[..]),
        "{what}"
    );
    gateway.comes_to_rest().await;
}

fn is_ours(what: &str, answer: &Answer, status: u16, outcome: &str) {
    assert_eq!(answer.status, status, "{what}: {:?}", answer.body);
    assert_eq!(answer.json()["outcome"], outcome, "{what}");
}

#[tokio::test]
async fn what_is_no_answer_is_a_502() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let with = |fields: &str| format!("{ok}{fields}\r\n\r\nhello");
    let long = with(&format!("x: {}", "x".repeat(70_000)));
    let many = with(&vec!["a: b"; 20_000].join("\r\n"));
    for (what, said, then) in [
        ("nothing", String::new(), Then::Close),
        ("nothing, with a reset", String::new(), Then::Reset),
        ("half a head", format!("{ok}content-le"), Then::Close),
        (
            "half a head, with a reset",
            format!("{ok}content-le"),
            Then::Reset,
        ),
        ("noise", "\0\u{1}\u{7f}noise\r\n\r\n".into(), Then::Stay),
        (
            "another protocol",
            "SSH-2.0-OpenSSH_9\r\n\r\n".into(),
            Then::Stay,
        ),
        (
            "a status of letters",
            "HTTP/1.1 abc OK\r\n\r\n".into(),
            Then::Stay,
        ),
        (
            "a status of no meaning",
            "HTTP/1.1 000 X\r\n\r\n".into(),
            Then::Stay,
        ),
        (
            "another version",
            "HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n".into(),
            Then::Stay,
        ),
        ("NUL in a field", with("x: a\0b"), Then::Stay),
        ("CR in a field", with("x: a\rb"), Then::Stay),
        ("a folded field", with("x: a\r\n b"), Then::Stay),
        ("a name with a space", with("x y: a"), Then::Stay),
        (
            "a space before the colon",
            with("content-length : 5"),
            Then::Stay,
        ),
        ("no name", with(": a"), Then::Stay),
        ("no colon", with("content-length 5"), Then::Stay),
        ("a field that is too long", long, Then::Stay),
        ("too many fields", many, Then::Stay),
        (
            "a length below zero",
            with("content-length: -5"),
            Then::Stay,
        ),
        (
            "a length with a sign",
            with("content-length: +5"),
            Then::Stay,
        ),
        (
            "a length of letters",
            with("content-length: five"),
            Then::Stay,
        ),
        (
            "a length past all",
            with("content-length: 99999999999999999999"),
            Then::Stay,
        ),
        (
            "two lengths",
            with("content-length: 5\r\ncontent-length: 4"),
            Then::Stay,
        ),
        (
            "two lengths in one",
            with("content-length: 5, 4"),
            Then::Stay,
        ),
        (
            "a coding that stays",
            with("transfer-encoding: gzip"),
            Then::Close,
        ),
        (
            "a coding under chunks",
            with("transfer-encoding: gzip, chunked"),
            Then::Stay,
        ),
        (
            "chunks twice",
            with("transfer-encoding: chunked, chunked"),
            Then::Stay,
        ),
        (
            "chunks of 1.0",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            Then::Stay,
        ),
        (
            "a size of letters",
            with("transfer-encoding: chunked").replace("hello", "zz\r\n"),
            Then::Stay,
        ),
        (
            "a size past all",
            with("transfer-encoding: chunked").replace("hello", "fffffffffffffffff\r\n"),
            Then::Stay,
        ),
        (
            "a chunk that is longer",
            with("transfer-encoding: chunked").replace("hello", "2\r\nhello\r\n0\r\n\r\n"),
            Then::Stay,
        ),
        (
            "a body that is short",
            with("content-length: 6"),
            Then::Close,
        ),
        (
            "a body that is short, with a reset",
            with("content-length: 6"),
            Then::Reset,
        ),
        (
            "another protocol, unasked",
            "HTTP/1.1 101 X\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n".into(),
            Then::Stay,
        ),
    ] {
        let upstream = saying(said, then).await;
        let (gateway, _machine) = scene().before(upstream.address);
        let answer = gateway.post("/v2/ep/run", "{}").await;
        is_ours(what, &answer, 502, "upstream_broke");
        assert_eq!(upstream.received().len(), 1, "{what}");
        goes_on(what, &gateway).await;
        assert_eq!(upstream.connections(), 2, "{what}");
    }
}

#[tokio::test]
async fn what_follows_an_answer_is_never_taken_for_the_next() {
    let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let both = chunks.replace("\r\n\r\n2", "\r\ncontent-length: 40\r\n\r\n2");
    for (what, said, then, connections) in [
        (
            "more bytes than were declared",
            format!("{OK}more"),
            Then::Stay,
            2,
        ),
        ("another answer", format!("{OK}{WRONG}"), Then::Stay, 2),
        (
            "another answer after chunks",
            format!("{chunks}{WRONG}"),
            Then::Stay,
            2,
        ),
        (
            "an interim answer",
            format!("{OK}HTTP/1.1 100 Continue\r\n\r\n"),
            Then::Stay,
            2,
        ),
        ("a length beside chunks", both, Then::Stay, 2),
        (
            "the end it announced",
            OK.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"),
            Then::Stay,
            2,
        ),
        ("an end it did not announce", OK.into(), Then::Close, 2),
        ("an answer of 1.0", OK.replace("1.1", "1.0"), Then::Stay, 2),
        ("the next answer", OK.into(), Then::Serve, 1),
        (
            "the next answer after chunks",
            chunks.into(),
            Then::Serve,
            1,
        ),
        (
            "the same length twice",
            OK.replace("\r\n\r\n", "\r\ncontent-length: 2\r\n\r\n"),
            Then::Serve,
            1,
        ),
        (
            "what is said before it",
            format!(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n{OK}"
            ),
            Then::Serve,
            1,
        ),
    ] {
        let upstream = saying(said, then).await;
        let (gateway, _machine) = scene().before(upstream.address);
        let answer = gateway.post("/v2/ep/run", "{}").await;
        assert_eq!(
            (answer.status, answer.body.as_ref()),
            (200, &b"ok"[..]),
            "{what}"
        );
        assert_eq!(
            answer.headers.get_all("content-length").iter().count(),
            1,
            "{what}"
        );
        assert_eq!(answer.header("link"), None, "{what}");
        goes_on(what, &gateway).await;
        assert_eq!(upstream.received().len(), 2, "{what}");
        assert_eq!(upstream.connections(), connections, "{what}");
    }
}

/// A 204 has no body, whatever comes; and what comes to an idle connection was never asked for.
#[tokio::test]
async fn what_nobody_asked_for_ends_the_connection_it_came_on() {
    let upstream = saying(
        format!("HTTP/1.1 204 No Content\r\n\r\n{WRONG}"),
        Then::Stay,
    )
    .await;
    let (gateway, machine) = scene().before(upstream.address);
    assert_eq!(gateway.post("/v2/ep/run", "{}").await.status, 204);
    goes_on("a body of a 204", &gateway).await;
    drop((gateway, machine));

    let say = Arc::<Notify>::default();
    let said = say.clone();
    let upstream = Scripted::start(move |mut connection| {
        let said = said.clone();
        async move {
            connection.answer(OK).await;
            if connection.number == 0 {
                said.notified().await;
                connection.write(WRONG).await;
                said.notify_one();
                while connection.answer(WRONG).await {}
            }
        }
    })
    .await;
    let (gateway, _machine) = scene().before(upstream.address);
    assert_eq!(gateway.post("/v2/ep/run", "{}").await.body, "ok");
    say.notify_one();
    tokio::task::yield_now().await;
    within("it is said", say.notified()).await;
    goes_on("an answer without a question", &gateway).await;
    assert_eq!(upstream.connections(), 2);
}

/// What was begun cannot be answered otherwise: it must look cut, and never whole.
#[tokio::test]
async fn an_answer_that_breaks_is_cut_where_it_breaks() {
    let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let length = "HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\nhello";
    for (what, begun, broken, then) in [
        ("a size of letters", chunks, "zz\r\n", Then::Stay),
        (
            "a chunk that is longer",
            chunks,
            "2\r\nworld\r\n0\r\n\r\n",
            Then::Stay,
        ),
        ("no last chunk", chunks, "", Then::Close),
        ("half a chunk", chunks, "5\r\nwo", Then::Close),
        ("half a chunk, with a reset", chunks, "5\r\nwo", Then::Reset),
        ("less than was declared", length, " world", Then::Close),
        (
            "less than was declared, with a reset",
            length,
            " world",
            Then::Reset,
        ),
        (
            "less than was declared, and silence",
            length,
            " world",
            Then::Stay,
        ),
        ("half a chunk, and silence", chunks, "5\r\nwo", Then::Stay),
    ] {
        let go = Arc::<Notify>::default();
        let told = go.clone();
        let upstream = Scripted::start(move |mut connection| {
            let told = told.clone();
            async move {
                if connection.number > 0 {
                    while connection.answer(OK).await {}
                    return;
                }
                connection.answer(begun).await;
                told.notified().await;
                connection.write(broken).await;
                match then {
                    Then::Reset => connection.stream.set_zero_linger().unwrap(),
                    Then::Stay => drop(connection.receive().await),
                    Then::Close | Then::Serve => {}
                }
            }
        })
        .await;
        let (gateway, _machine) = scene().idle_timeout("300ms").before(upstream.address);
        let mut client = gateway.send(post("/v2/ep/run", "{}")).await;
        let mut read = Vec::new();
        while !read.windows(5).any(|five| five == b"hello") {
            read.push(within("its beginning", client.read_u8()).await.unwrap());
        }
        go.notify_one();
        // An end or a reset: either is one.
        let _ = within("its end", client.read_to_end(&mut read)).await;
        let text = String::from_utf8_lossy(&read);
        assert!(text.starts_with("HTTP/1.1 200"), "{what}: {text}");
        assert!(
            !text.contains("\r\n0\r\n"),
            "taken for whole, {what}: {text}"
        );
        assert!(read.len() < 2_000, "{what}");
        goes_on(what, &gateway).await;
    }
}

/// Says its bytes one by one, for as long as anybody listens.
async fn drip(connection: &mut Connection, begun: &str, each: &str) {
    connection.answer(begun).await;
    while connection.stream.write_all(each.as_bytes()).await.is_ok() {
        sleep(Duration::from_millis(10)).await;
    }
}

/// However it goes about it.
#[tokio::test]
async fn who_takes_too_long_is_a_504_in_time() {
    let ok = "HTTP/1.1 200 OK\r\n";
    for (what, begun, each) in [
        ("never answers", "", ""),
        ("drips its head", ok, "x"),
        ("drips its fields", ok, "x: y\r\n"),
        ("only ever hints", "", "HTTP/1.1 103 Early Hints\r\n\r\n"),
        (
            "stops after its head",
            "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n",
            "",
        ),
        (
            "drips its body",
            "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n",
            "x",
        ),
    ] {
        let upstream = Scripted::start(move |mut connection| async move {
            match connection.number {
                0 => drip(&mut connection, begun, each).await,
                _ => while connection.answer(OK).await {},
            }
        })
        .await;
        let (gateway, _machine) = scene()
            .idle_timeout("300ms")
            .set(Group::Run, "response_timeout: 300ms")
            .before(upstream.address);
        let asked = now();
        let answer = gateway.post("/v2/ep/run", "{}").await;
        let took = asked.elapsed();
        is_ours(what, &answer, 504, "upstream_timeout");
        assert!(took < Duration::from_secs(10), "{what}: {took:?}");
        assert_eq!(upstream.received().len(), 1, "{what}");
        goes_on(what, &gateway).await;
    }
}

/// Patience with its answer begins when it has the whole request.
#[tokio::test]
async fn an_upload_that_takes_longer_than_an_answer_may_is_not_cut() {
    let upstream = Scripted::answering(OK.as_bytes()).await;
    let (gateway, _machine) = scene()
        .settings("buffers: { per_request: 16KiB }")
        .set(Group::Run, "response_timeout: 300ms")
        .before(upstream.address);
    let whole = post("/v2/ep/run", &"x".repeat(100_000));
    let (first, rest) = whole.split_at(30_000);
    let asked = now();
    let mut client = gateway.send(first).await;
    for part in rest.as_bytes().chunks(7_000) {
        sleep(Duration::from_millis(100)).await;
        client.write_all(part).await.unwrap();
    }
    assert!(
        asked.elapsed() > Duration::from_millis(900),
        "it shows nothing"
    );
    let mut head = [0; 15];
    within("an answer", client.read_exact(&mut head))
        .await
        .unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    assert_eq!(upstream.received()[0].body.len(), 100_000);
}

/// Nor is it waited for if it does not take the request.
#[tokio::test]
async fn an_upstream_that_stops_reading_is_a_504() {
    let upstream = Scripted::start(|mut connection| async move {
        match connection.number {
            0 => {
                let size =
                    rustix::net::sockopt::set_socket_recv_buffer_size(&connection.stream, 4_096);
                size.unwrap();
                std::future::pending().await
            }
            _ => while connection.answer(OK).await {},
        }
    })
    .await;
    let (gateway, _machine) = scene()
        .idle_timeout("300ms")
        .set(Group::Run, "response_timeout: 300ms")
        .before(upstream.address);
    let client = gateway.connect().await;
    let (mut reads, mut writes) = client.into_split();
    let whole = post("/v2/ep/run", &"x".repeat(10 << 20));
    let uploading = tokio::spawn(async move {
        // It ends when nobody takes it any more.
        let _ = writes.write_all(whole.as_bytes()).await;
    });
    let mut head = [0; 12];
    within("an answer", reads.read_exact(&mut head))
        .await
        .unwrap();
    assert_eq!(&head, b"HTTP/1.1 504");
    drop(reads);
    uploading.abort();
    goes_on("it stops reading", &gateway).await;
}

/// An upstream that refuses what it has not read, and closes: its answer counts, not that the rest
/// could not be written.
#[tokio::test]
async fn an_answer_before_the_request_was_read_is_passed_on() {
    const TIMES: usize = 30;
    let refusal = "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 3\r\n\r\nbig";
    for stays in [false, true] {
        let upstream = Scripted::start(move |mut connection| async move {
            if connection.number >= TIMES {
                while connection.answer(OK).await {}
                return;
            }
            let mut begun = vec![0; 20_000];
            connection.stream.read_exact(&mut begun).await.unwrap();
            connection.write(refusal).await;
            // With bytes unread, closing is a reset. If it stays, all of the request may lie unread
            // between us, and so would the next.
            if stays {
                std::future::pending().await
            }
        })
        .await;
        let (gateway, _machine) = scene()
            .settings("buffers: { per_request: 16KiB }")
            .before(upstream.address);
        let whole = post("/v2/ep/run", &"x".repeat(4 << 20));
        for time in 0..TIMES {
            let (mut reads, mut writes) = gateway.connect().await.into_split();
            let whole = whole.clone();
            let uploading = tokio::spawn(async move {
                // Until nobody takes it any more.
                let _ = writes.write_all(whole.as_bytes()).await;
                writes
            });
            let mut read = vec![0; 12];
            let answered = within("an answer", reads.read_exact(&mut read)).await;
            assert_eq!(answered.map(|_| read).unwrap(), b"HTTP/1.1 413", "{time}");
            uploading.abort();
        }
        goes_on("an early answer", &gateway).await;
    }
}

/// What is left of an upload is not the next request.
#[tokio::test]
async fn the_rest_of_an_upload_that_was_answered_early_is_no_request() {
    let upstream = Scripted::start(|mut connection| async move {
        if connection.number > 0 {
            while connection.answer(OK).await {}
            return;
        }
        let mut begun = vec![0; 20_000];
        connection.stream.read_exact(&mut begun).await.unwrap();
        let refusal = "HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\n\r\nbad";
        connection.write(refusal).await;
        drop(connection.receive().await);
    })
    .await;
    let (gateway, _machine) = scene()
        .settings("buffers: { per_request: 16KiB }")
        .before(upstream.address);
    // Whoever reads the rest as a request finds one there.
    let smuggled = post("/v2/ep/run", "smuggled");
    let body = format!("{}{smuggled}", "x".repeat(100_000));
    let whole = post("/v2/ep/run", &body);
    let mut client = gateway.send(&whole.as_bytes()[..40_000]).await;
    let mut read = vec![0; 12];
    within("an answer", client.read_exact(&mut read))
        .await
        .unwrap();
    assert_eq!(read, b"HTTP/1.1 400");
    // It may have been closed: then the rest goes nowhere.
    let _ = client.write_all(&whole.as_bytes()[40_000..]).await;
    drop(read_for_a_while(client).await);
    goes_on("the rest of an upload", &gateway).await;
    let bodies = upstream.received().into_iter().map(|one| one.body);
    assert_eq!(
        bodies.collect::<Vec<_>>(),
        [b"{}"],
        "only what was asked for"
    );
}

/// Whatever else comes, until nothing does.
async fn read_for_a_while(mut client: TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    let until_silent = client.read_to_end(&mut read);
    let _ = tokio::time::timeout(Duration::from_millis(300), until_silent).await;
    read
}

/// The upstream's own failures are its own words.
#[tokio::test]
async fn its_own_failures_pass_as_they_came() {
    for (status, retry_after) in [
        (503, "7"),
        (503, "Wed, 21 Oct 2099 07:28:00 GMT"),
        (500, "0.5"),
        (429, "120"),
    ] {
        let said = format!(
            "HTTP/1.1 {status} Its Own\r\nretry-after: {retry_after}\r\ncontent-length: 4\r\n\r\nmine"
        );
        let upstream = saying(said, Then::Serve).await;
        let (gateway, _machine) = scene().before(upstream.address);
        let answer = gateway.post("/v2/ep/run", "{}").await;
        assert_eq!(
            (answer.status, answer.body.as_ref()),
            (status, &b"mine"[..])
        );
        assert_eq!(answer.header("retry-after"), Some(retry_after));
        assert_eq!(upstream.received().len(), 1);
        gateway.comes_to_rest().await;
    }
}
