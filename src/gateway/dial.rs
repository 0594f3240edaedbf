//! From a host's name to a TCP connection: all of its addresses, both families in turn, the next one
//! begun before the last has failed (RFC 8305).
//!
//! Addresses are kept no longer than a moment: who connects later looks them up again.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How long one address has before the next is tried beside it (RFC 8305, section 8).
const STAGGER: Duration = Duration::from_millis(250);
/// Hundreds that connect at once look the name up once.
const FRESH: Duration = Duration::from_secs(1);

/// A host, and where it was when it was last looked up.
pub struct Host {
    name: String,
    port: u16,
    found: Mutex<Option<Found>>,
}

struct Found {
    addresses: Arc<[SocketAddr]>,
    at: Instant,
}

impl Host {
    /// `name`: a DNS name or an IP address, an IPv6 one without brackets.
    pub fn new(name: &str, port: u16) -> Self {
        Self {
            name: name.to_owned(),
            port,
            found: Mutex::default(),
        }
    }

    /// A connection to the first of its addresses that answers. Bounded by the caller.
    ///
    /// # Errors
    /// The name is not known, or the last address to fail has failed so.
    pub async fn dial(&self) -> io::Result<TcpStream> {
        dial(&self.addresses().await?).await
    }

    /// One lookup at a time, and what it finds is everybody's who waited for it.
    async fn addresses(&self) -> io::Result<Arc<[SocketAddr]>> {
        let mut found = self.found.lock().await;
        if let Some(found) = &*found
            && now().saturating_duration_since(found.at) < FRESH
        {
            return Ok(found.addresses.clone());
        }
        match lookup_host((self.name.as_str(), self.port)).await {
            Ok(addresses) => {
                let addresses: Arc<[_]> = in_turn(addresses).into();
                *found = Some(Found {
                    addresses: addresses.clone(),
                    at: now(),
                });
                Ok(addresses)
            }
            // A resolver that fails is no reason to stop where the host was is still known.
            Err(error) => match &*found {
                Some(found) => {
                    tracing::warn!(%error, host = self.name, "looked up in vain: its last addresses are used");
                    Ok(found.addresses.clone())
                }
                None => Err(io::Error::new(
                    error.kind(),
                    format!("the name {} cannot be looked up: {error}", self.name),
                )),
            },
        }
    }
}

/// The two families in turn, each in the order given, beginning with the family of the first.
fn in_turn(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let all: Vec<_> = addresses.collect();
    let first_is_v6 = all.first().is_some_and(SocketAddr::is_ipv6);
    let of = |same: bool| {
        let family = move |address: &&SocketAddr| (address.is_ipv6() == first_is_v6) == same;
        all.iter().copied().filter(move |address| family(&address))
    };
    let (mut first, mut second) = (of(true), of(false));
    let mut turns = Vec::with_capacity(all.len());
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return turns;
        }
        turns.extend(pair.into_iter().flatten());
    }
}

/// Every address in its turn: once the one before has failed, or has had its time.
async fn dial(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut rest = addresses.iter().copied();
    // Dropped with this future; the connections that come too late are closed.
    let mut attempts = JoinSet::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    loop {
        let next = rest.next();
        if let Some(address) = next {
            attempts.spawn(async move {
                let connected = TcpStream::connect(address).await;
                connected
                    .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
            });
        }
        if attempts.is_empty() {
            return Err(last);
        }
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(error) => last = io::Error::other(error),
            },
            () = sleep(STAGGER), if next.is_some() => {}
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how old a lookup is, is counted here"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use tokio::net::TcpListener;

    use super::*;

    fn v4(last: u8) -> SocketAddr {
        (IpAddr::from(Ipv4Addr::new(192, 0, 2, last)), 443).into()
    }

    fn v6(last: u16) -> SocketAddr {
        let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
        (IpAddr::from(address), 443).into()
    }

    #[test]
    fn families_take_turns_and_keep_their_order() {
        let given = [v6(1), v6(2), v6(3), v4(1)];
        assert_eq!(in_turn(given.into_iter()), [v6(1), v4(1), v6(2), v6(3)]);
        let given = [v4(1), v4(2), v6(1)];
        assert_eq!(in_turn(given.into_iter()), [v4(1), v6(1), v4(2)]);
        assert_eq!(in_turn([].into_iter()), []);
    }

    /// A listener, and an address of this machine where nobody listens.
    async fn somebody_and_nobody() -> (TcpListener, SocketAddr, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let somebody = listener.local_addr().unwrap();
        let nobody = (Ipv4Addr::new(127, 0, 0, 2), somebody.port()).into();
        (listener, somebody, nobody)
    }

    /// A label longer than any may be: no resolver has to be asked.
    fn unknown() -> String {
        format!("{}.invalid", "x".repeat(64))
    }

    #[tokio::test]
    async fn an_address_that_refuses_makes_room_for_the_next() {
        let (_listener, somebody, nobody) = somebody_and_nobody().await;
        let stream = dial(&[nobody, nobody, somebody]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), somebody);
        let error = dial(&[nobody]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains("127.0.0.2"), "{error}");
        assert_eq!(dial(&[]).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// A listener whose backlog is full leaves a SYN without an answer, as an address that leads
    /// nowhere does.
    #[tokio::test]
    async fn an_address_that_is_silent_does_not_hold_up_the_next() {
        let (_listener, somebody, silent) = somebody_and_nobody().await;
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(silent).unwrap();
        let full = socket.listen(0).unwrap();
        let _backlog = TcpStream::connect(silent).await.unwrap();
        let both = [silent, somebody];
        let stream = tokio::time::timeout(Duration::from_secs(10), dial(&both));
        let stream = stream.await.unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), somebody);
        drop(full);
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_for_all_who_connect_at_once() {
        let (_listener, somebody, _) = somebody_and_nobody().await;
        let host = Host::new("127.0.0.1", somebody.port());
        let first = host.addresses().await.unwrap();
        assert_eq!(&*first, [somebody]);
        let second = host.addresses().await.unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        let error = Host::new(&unknown(), 1).dial().await.unwrap_err();
        assert!(error.to_string().contains(&unknown()), "{error}");
    }

    #[tokio::test]
    async fn where_it_was_is_tried_while_it_cannot_be_looked_up() {
        let (_listener, somebody, _) = somebody_and_nobody().await;
        let host = Host::new(&unknown(), 1);
        *host.found.lock().await = Some(Found {
            addresses: [somebody].into(),
            at: now() - FRESH,
        });
        let stream = host.dial().await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), somebody);
    }
}
