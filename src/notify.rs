//! Tells a service manager how things stand, in systemd's notify protocol: a datagram to the socket
//! named by `NOTIFY_SOCKET`. Without that variable nobody asked, and nothing is done.
//!
//! No crate for two datagrams in a process's life.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A manager that reads nothing for so long is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a manager wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Requests are taken, or taken by the new configuration.
    Ready,
    /// A new configuration is being read; [`State::Ready`] follows, whether it was taken or not.
    Reloading,
    /// What is under way is seen out.
    Stopping,
}

/// Tells the manager, if there is one. That it cannot be told is no reason to stop serving.
pub fn tell(state: State) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, &message(state)) {
        tracing::warn!(%error, ?state, "the service manager could not be told");
    }
}

fn message(state: State) -> String {
    match state {
        State::Ready => "READY=1".into(),
        State::Stopping => "STOPPING=1".into(),
        State::Reloading => {
            // `Type=notify-reload` counts only what was said after it asked.
            let now = clock_gettime(ClockId::Monotonic);
            let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
            format!("RELOADING=1\nMONOTONIC_USEC={micros}")
        }
    }
}

fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = address(socket)?;
    let datagram = UnixDatagram::unbound()?;
    datagram.set_write_timeout(Some(PATIENCE))?;
    datagram.connect_addr(&address)?;
    datagram.send(message.as_bytes()).map(drop)
}

/// An absolute path, or `@` and a name in Linux's abstract namespace.
fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(socket),
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)
        }
        _ => Err(io::Error::other(
            "NOTIFY_SOCKET names no socket of this kind",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_a_path_or_an_abstract_name() {
        let address = |name: &str| address(OsStr::new(name));
        assert!(
            address("/run/systemd/notify")
                .unwrap()
                .as_pathname()
                .is_some()
        );
        assert!(address("vsock:2:1").is_err());
        assert!(address("").is_err());
        assert!(address(&format!("/{}", "x".repeat(200))).is_err());
        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt;
            let name = address("@a/b").unwrap();
            assert_eq!(name.as_abstract_name(), Some(&b"a/b"[..]));
        }
    }

    #[test]
    fn a_reload_is_told_with_its_time() {
        let said = message(State::Reloading);
        let micros = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0);
    }
}
