//! Listening sockets: bound here, or passed by whoever started podgate.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::io::Errno;
use socket2::{Domain, SockAddr, SockRef, TcpKeepalive, Type};
use tokio::net::TcpSocket;

use crate::config::listen::Address;
use crate::gateway::stream::Plain;

/// Connections the kernel keeps for us: with the usual 128 a burst of callers waits for SYNs to be
/// sent again.
const BACKLOG: u32 = 4096;
/// A client that says nothing for so long is asked whether it is there, by its kernel: one whose
/// machine is gone says nothing for ever, and its request would still be sent when its turn comes.
const ALIVE: std::time::Duration = std::time::Duration::from_secs(20);
/// Bytes the kernel keeps that a client's window has no room for. It would keep megabytes, be full
/// again only once a third of them was taken, and a slow reader would seem to have stopped.
const UNSENT: u32 = 128 * 1024;

/// A socket that listens, not yet one of a runtime.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpListener),
    /// And its file, if that is ours to remove.
    Unix(UnixListener, Option<SocketFile>),
}

/// The file of a Unix socket that was bound here; removed with this, if it is still the same.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// One worker's share of a socket.
pub enum Acceptor {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

/// Sockets that were listening before podgate was started (`LISTEN_FDS`).
#[derive(Debug, Default)]
pub struct Passed(Vec<Socket>);

/// A listening TCP socket. Not shared by `SO_REUSEPORT`: a second podgate would bind it silently
/// and spend the budget again.
///
/// # Errors
/// The address is taken, or not ours.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for old connections to be forgotten.
    socket.set_reuseaddr(true)?;
    set_options(&SockRef::from(&socket))?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// What is set here every accepted socket begins with.
fn set_options(options: &SockRef<'_>) -> io::Result<()> {
    let alive = TcpKeepalive::new()
        .with_time(ALIVE)
        .with_interval(ALIVE / 4);
    options.set_tcp_keepalive(&alive.with_retries(4))?;
    // Without it each small answer waits for the acknowledgement of the one before.
    options.set_tcp_nodelay(true)?;
    options.set_tcp_notsent_lowat(UNSENT)
}

fn bind_unix(path: &Path, mode: Option<u32>) -> io::Result<Socket> {
    clear(path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::at(path)?;
    if let Some(mode) = mode {
        // Nobody gets in before: it does not listen yet.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    socket.listen(i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
    Ok(Socket::Unix(socket.into(), Some(file)))
}

/// Removes a socket's file that nobody listens behind any more: it outlives who was killed.
fn clear(path: &Path) -> io::Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let is = |kind, what| Err(io::Error::new(kind, what));
    if !found.file_type().is_socket() {
        let what = "there is a file of this name that is no socket";
        return is(io::ErrorKind::AlreadyExists, what);
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        // A backlog that is full is somebody's too.
        Ok(()) => is(io::ErrorKind::AddrInUse, "somebody answers there"),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            is(io::ErrorKind::AddrInUse, "somebody listens there")
        }
        Err(error) => Err(error),
    }
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        let found = std::fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = std::fs::symlink_metadata(&self.path);
        let same =
            |found: &std::fs::Metadata| (found.dev(), found.ino()) == (self.device, self.inode);
        if found.as_ref().is_ok_and(same) {
            // Left behind it is replaced by whoever listens there next.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Socket {
    /// Listens at `address`.
    ///
    /// # Errors
    /// It is taken, or not ours.
    pub fn bind(address: &Address, mode: Option<u32>) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => bind(*address).map(Socket::Tcp),
            Address::Unix(path) => bind_unix(path, mode),
        }
    }

    /// Lets a file that was bound here be opened by others than before.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn allow(&self, mode: Option<u32>) -> io::Result<()> {
        match (self, mode) {
            (Socket::Unix(_, Some(file)), Some(mode)) => {
                std::fs::set_permissions(&file.path, std::fs::Permissions::from_mode(mode))
            }
            _ => Ok(()),
        }
    }

    /// Where it listens, with the port that was bound.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Socket::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Socket::Unix(listener, _) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().unwrap_or(Path::new("")).to_owned();
                Ok(Address::Unix(path))
            }
        }
    }

    /// A share of it for one runtime, inside of which this is called.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn acceptor(&self) -> io::Result<Acceptor> {
        Ok(match self {
            Socket::Tcp(listener) => {
                let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
                Acceptor::Tcp(listener)
            }
            Socket::Unix(listener, _) => {
                let listener = tokio::net::UnixListener::from_std(listener.try_clone()?)?;
                Acceptor::Unix(listener)
            }
        })
    }
}

impl Acceptor {
    /// The next client, and its address if it has one.
    ///
    /// # Errors
    /// It has left already, or no file descriptor is free.
    pub async fn accept(&self) -> io::Result<(Plain, Option<IpAddr>)> {
        match self {
            Acceptor::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Plain::Tcp(stream), Some(peer.ip())))
            }
            Acceptor::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Plain::Unix(stream), None))
            }
        }
    }

    /// The socket again, to see whom the kernel has let in already.
    ///
    /// # Errors
    /// The runtime is ending.
    pub fn into_socket(self) -> io::Result<Socket> {
        match self {
            Acceptor::Tcp(listener) => listener.into_std().map(Socket::Tcp),
            Acceptor::Unix(listener) => Ok(Socket::Unix(listener.into_std()?, None)),
        }
    }
}

impl Socket {
    /// A client the kernel has let in already.
    ///
    /// # Errors
    /// There is none.
    pub fn accept_now(&self) -> io::Result<(Plain, Option<IpAddr>)> {
        match self {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nonblocking(true)?;
                let stream = tokio::net::TcpStream::from_std(stream)?;
                Ok((Plain::Tcp(stream), Some(peer.ip())))
            }
            Socket::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((Plain::Unix(tokio::net::UnixStream::from_std(stream)?), None))
            }
        }
    }
}

impl Passed {
    /// Those that are for this process, and forgets the variables: whoever it starts is not meant.
    /// To be called before there are threads.
    ///
    /// # Errors
    /// One of them cannot be listened at.
    pub fn from_environment() -> io::Result<Self> {
        let mut given = ListenFd::from_env();
        let mut sockets = Vec::new();
        for nth in 0..given.len() {
            let socket = match given.take_tcp_listener(nth) {
                Ok(Some(listener)) => {
                    set_options(&SockRef::from(&listener))?;
                    listener.set_nonblocking(true)?;
                    Socket::Tcp(listener)
                }
                _ => match given.take_unix_listener(nth)? {
                    Some(listener) => {
                        listener.set_nonblocking(true)?;
                        Socket::Unix(listener, None)
                    }
                    None => return Err(Errno::NOTSOCK.into()),
                },
            };
            if !is_listening(&socket)? {
                let what = format!("the socket {nth} of LISTEN_FDS does not listen");
                return Err(io::Error::other(what));
            }
            sockets.push(socket);
        }
        Ok(Self(sockets))
    }

    /// The one that listens at `address`.
    pub fn at(&mut self, address: &Address) -> Option<Socket> {
        let same = |socket: &Socket| socket.address().is_ok_and(|own| own == *address);
        let nth = self.0.iter().position(same)?;
        Some(self.0.remove(nth))
    }

    /// The first of the same kind as `address`.
    pub fn like(&mut self, address: &Address) -> Option<Socket> {
        let alike = |socket: &Socket| {
            matches!(
                (socket, address),
                (Socket::Tcp(_), Address::Tcp(_)) | (Socket::Unix(..), Address::Unix(_))
            )
        };
        let nth = self.0.iter().position(alike)?;
        Some(self.0.remove(nth))
    }

    /// How many nobody has asked for.
    pub fn left(&self) -> usize {
        self.0.len()
    }
}

fn is_listening(socket: &Socket) -> io::Result<bool> {
    match socket {
        Socket::Tcp(listener) => SockRef::from(listener).is_listener(),
        Socket::Unix(listener, _) => SockRef::from(listener).is_listener(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn path(name: &str) -> PathBuf {
        let name = format!("podgate-{name}-{}.sock", std::process::id());
        std::env::temp_dir().join(name)
    }

    #[test]
    fn a_file_nobody_listens_behind_is_replaced_and_ours_goes_with_us() {
        let path = path("stale");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind");
        let address = Address::Unix(path.clone());
        let socket = Socket::bind(&address, Some(0o600)).unwrap();
        assert_eq!(socket.address().unwrap(), address);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();

        let taken = Socket::bind(&address, None).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        assert!(!path.exists(), "removed");
    }

    #[test]
    fn what_is_no_socket_or_another_s_is_left_alone() {
        let path = path("other");
        std::fs::write(&path, "mine").unwrap();
        let address = Address::Unix(path.clone());
        let refused = Socket::bind(&address, None).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        std::fs::remove_file(&path).unwrap();

        let ours = Socket::bind(&address, None).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists(), "theirs");
        std::fs::remove_file(&path).unwrap();
    }
}
