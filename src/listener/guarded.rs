//! A client's bytes, watched on their way: a client that takes nothing of what is written to it is
//! given up (hyper would wait for it for ever), and what comes in is told to whoever times heads.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gateway::pace::Pace;
use crate::listener::heads::Heads;

pub struct Guarded<T> {
    io: T,
    write: Duration,
    /// Of a client that is behind; most never are.
    behind: Option<Pace>,
    heads: Option<Heads>,
}

impl<T> Guarded<T> {
    /// `write`: the longest time in which a client may take nothing.
    pub fn new(io: T, write: Duration, heads: Option<Heads>) -> Self {
        Self {
            io,
            write,
            behind: None,
            heads,
        }
    }

    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match (&written, &mut self.behind) {
            (Poll::Ready(Ok(bytes)), Some(behind)) => behind.came(*bytes as u64),
            (Poll::Ready(_), _) => {}
            (Poll::Pending, _) => return self.waits(cx),
        }
        written
    }

    /// Its client takes nothing now; an error once that was so for too long.
    fn waits<R>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        if let Some(heads) = &self.heads {
            heads.set_behind(true);
        }
        let write = self.write;
        let behind = self.behind.get_or_insert_with(|| Pace::taking(write));
        ready!(behind.poll_late(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client does not take what is written to it",
        )))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if read.is_ready()
            && let Some(heads) = &self.heads
        {
            heads.bytes_came();
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper flushes once it has nothing more to write: once that is out, its client has caught up.
    /// TLS holds some of it.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        if flushed.is_pending() {
            return self.waits(cx);
        }
        if self.behind.take().is_some()
            && let Some(heads) = &self.heads
        {
            heads.set_behind(false);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.io).poll_shutdown(cx);
        match ended.is_pending() {
            true => self.waits(cx),
            false => ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{Instant, sleep};

    use super::*;

    const WRITE: Duration = Duration::from_secs(30);

    #[expect(clippy::disallowed_methods, reason = "paused time is read here")]
    fn now() -> Instant {
        Instant::now()
    }

    /// Writes without end to a reader that takes `bytes` every `gap`; returns after how long it was
    /// given up, if it was within an hour.
    async fn given_up(bytes: usize, gap: Duration) -> Option<Duration> {
        let (io, mut reader) = duplex(64 * 1024);
        let reads = async move {
            let mut taken = vec![0; bytes];
            while reader.read_exact(&mut taken).await.is_ok() {
                sleep(gap).await;
            }
        };
        let mut writer = Guarded::new(io, WRITE, None);
        let began = now();
        let writes = async {
            while let Ok(()) = writer.write_all(&[0; 4_096]).await {}
            began.elapsed()
        };
        tokio::select! {
            elapsed = writes => Some(elapsed),
            () = reads => unreachable!("it reads as long as there is something"),
            () = sleep(Duration::from_secs(3_600)) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_is_given_up_and_one_that_trickles_too() {
        let stops = given_up(1, Duration::from_secs(7_200)).await.unwrap();
        assert!(stops.abs_diff(WRITE) < Duration::from_secs(1), "{stops:?}");
        let trickles = given_up(1_000, Duration::from_secs(1)).await.unwrap();
        assert!(trickles > WRITE && trickles < 2 * WRITE, "{trickles:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_served() {
        assert_eq!(given_up(20_000, Duration::from_secs(1)).await, None);
    }

    /// TLS takes a write into its own memory.
    struct HeldBack;

    impl AsyncWrite for HeldBack {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_of_the_last_bytes_is_given_up() {
        let began = now();
        let mut writer = Guarded::new(HeldBack, WRITE, None);
        writer.write_all(b"the last").await.unwrap();
        assert_eq!(
            writer.flush().await.unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        assert_eq!(began.elapsed(), WRITE);
        let mut writer = Guarded::new(HeldBack, WRITE, None);
        assert_eq!(
            writer.shutdown().await.unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
    }

    /// The time it was not behind is not counted against it.
    #[tokio::test(start_paused = true)]
    async fn who_has_caught_up_has_all_the_time_again() {
        let (io, mut reader) = duplex(1_024);
        let mut writer = Guarded::new(io, WRITE, None);
        let reads = async move {
            let mut taken = [0; 2_048];
            loop {
                sleep(Duration::from_secs(29)).await;
                reader.read_exact(&mut taken).await.unwrap();
            }
        };
        let writes = async {
            for _ in 0..100 {
                writer.write_all(&[0; 2_048]).await.unwrap();
                writer.flush().await.unwrap();
            }
        };
        tokio::select! {
            () = writes => {}
            () = reads => unreachable!("it reads for ever"),
        }
    }
}
