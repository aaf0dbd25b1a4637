//! The admin server: its two sockets, and the thread that serves them.
//!
//! The TCP socket is read-only: metrics, health and the state of the queue.  What changes things
//! goes over the Unix socket, which only the gateway's own user can open.  One request a
//! connection, with a deadline for its head and for the whole of it, and a bounded number of
//! connections; what they ask is answered in `admin/api.rs`.
//!
//! All of it runs on one thread of its own, which touches no message.  If that thread hangs, mail
//! goes on.

mod api;
mod host;

use std::fs;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, oneshot};

use super::metrics::Metrics;
use super::status::Status;
use super::workers::Workers;
use crate::limits;

/// The Unix socket's name in the data directory.
pub const SOCKET_NAME: &str = "admin.sock";
/// The wait after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted on the Unix socket.
const SOCKET_BACKLOG: i32 = 64;

/// What the admin server serves.
pub struct Gateway {
    /// The workers, who know the queue.
    pub workers: Workers,
    /// All metrics.
    pub metrics: Metrics,
    /// Where the process stands.
    pub status: Arc<Status>,
}

/// The sockets of an admin server that does not run yet.
#[derive(Debug)]
pub struct AdminSockets {
    tcp: TcpListener,
    unix: UnixListener,
    file: SocketFile,
}

/// Why there is no admin server.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The TCP address cannot be used.
    #[error("cannot listen on the admin address {address}")]
    Tcp {
        /// As configured.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The Unix socket cannot be made.
    #[error("cannot make the admin socket {}", path.display())]
    Unix {
        /// Where.
        path: PathBuf,
        /// What the system says, or what is in the way.
        #[source]
        source: io::Error,
    },
    /// There is no thread, or no event loop for it.
    #[error("cannot start the control thread")]
    Thread(#[source] io::Error),
}

/// The running server.  Dropping it lets it run on; [`AdminServer::stop`] ends it.
#[derive(Debug)]
pub struct AdminServer {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl AdminSockets {
    /// Binds both; after privileges are dropped, so that the Unix socket belongs to the right
    /// user.  A Unix socket that a dead process left behind is replaced.
    ///
    /// # Errors
    /// An address is in use, `data_dir` is not there, or its path is too long for a socket.
    pub fn bind(address: SocketAddr, data_dir: &Path) -> Result<AdminSockets, AdminError> {
        let tcp = bind_tcp(address).map_err(|source| AdminError::Tcp { address, source })?;
        let path = data_dir.join(SOCKET_NAME);
        let (unix, file) = bind_unix(&path).map_err(|source| AdminError::Unix { path, source })?;
        Ok(AdminSockets { tcp, unix, file })
    }

    /// Starts the thread.  `hostname` is the name that clients may use for this host besides its
    /// addresses.
    ///
    /// # Errors
    /// The system refuses a thread or an event loop.
    pub fn serve(self, hostname: &str, gateway: Gateway) -> Result<AdminServer, AdminError> {
        let address = self.tcp.local_addr().map_err(AdminError::Thread)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(AdminError::Thread)?;
        let gateway = Arc::new(gateway);
        let (open, own) = (api::read_only(gateway.clone(), hostname), api::full(gateway));
        let (stop, stopped) = oneshot::channel();
        let serving = async move {
            let AdminSockets { tcp, unix, file } = self;
            let tcp = tokio::net::TcpListener::from_std(tcp)?;
            let unix = tokio::net::UnixListener::from_std(unix)?;
            tokio::spawn(accept(tcp, open));
            tokio::spawn(accept(unix, own));
            // An error means that the owner let go of the server: it runs on until the process
            // ends.
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
            drop(file);
            io::Result::Ok(())
        };
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                if let Err(error) = runtime.block_on(serving) {
                    tracing::error!(%error, "the admin server cannot run");
                }
                // Requests under way end here; a worker keeps what it has done for them.
                runtime.shutdown_background();
            })
            .map_err(AdminError::Thread)?;
        Ok(AdminServer { address, stop, thread })
    }
}

impl AdminServer {
    /// Its TCP address, with the port that the system chose if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it and removes the Unix socket.
    pub fn stop(self) {
        // If the thread has ended by itself there is nothing to stop.
        let _ = self.stop.send(());
        // A panic in it has been told by the hook.
        let _ = self.thread.join();
    }
}

/// Where admin clients come in.
trait Door {
    /// What is accepted.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next client.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Door for tokio::net::TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        Ok(tokio::net::TcpListener::accept(self).await?.0)
    }
}

impl Door for tokio::net::UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        Ok(tokio::net::UnixListener::accept(self).await?.0)
    }
}

/// Accepts connections for ever, and serves one request on each.
async fn accept(door: impl Door, router: Router) {
    let places = Arc::new(Semaphore::new(limits::ADMIN_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = loop {
            match door.accept().await {
                Ok(stream) => break stream,
                Err(error) if is_short_of_descriptors(&error) => {
                    if let Some(stream) = accept_above_limit(&door).await {
                        break stream;
                    }
                }
                // The client has gone again.
                Err(_) => {}
            }
            tokio::time::sleep(ACCEPT_PAUSE).await;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits::ADMIN_HEAD_TIME)
                .max_buf_size(limits::ADMIN_HEAD)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // What goes wrong on a connection is its client's to see.
            let _ = tokio::time::timeout(limits::ADMIN_CONNECTION_TIME, connection).await;
            drop(place);
        });
    }
}

fn is_short_of_descriptors(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error())
}

/// Accepts with a limit of open files that is raised for this one: the process keeps a few below
/// the hard limit, and above all when no other is left it must be possible to ask what is going
/// on.  A descriptor kept open for that would be anybody's in the moment in which it is given up.
///
/// `None` if nobody waits: the kernel looks for a descriptor first.  The limit is not raised for
/// longer than one look takes, or others would use what is kept.
async fn accept_above_limit<D: Door>(door: &D) -> Option<D::Stream> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = current?.saturating_add(limits::ADMIN_DESCRIPTORS);
    let raised = maximum.map_or(raised, |maximum| raised.min(maximum));
    let mut accepting = pin!(door.accept());
    poll_fn(|context| {
        if setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }).is_err() {
            return Poll::Ready(None);
        }
        let accepted = match accepting.as_mut().poll(context) {
            Poll::Ready(accepted) => accepted.ok(),
            Poll::Pending => None,
        };
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current, maximum }) {
            tracing::warn!(%error, "the limit of open files stays raised");
        }
        Poll::Ready(accepted)
    })
    .await
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    // The standard library sets SO_REUSEADDR, so a restart finds the address free.
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The Unix socket in the file system, which goes when this is dropped, unless another process
/// has replaced it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path).map(|file| (file.dev(), file.ino()));
        if now.is_ok_and(|now| now == self.device_and_inode) {
            // If it cannot be removed, the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Before it is bound: Linux takes the file's mode from the socket, so that at no moment
    // anybody else can connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), device_and_inode: (file.dev(), file.ino()) };
    socket.listen(SOCKET_BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok((socket.into(), file))
}

/// Removes the socket of a process that is no more; one that answers stays, and is an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !file.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is another file"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another gateway answers there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_socket_is_for_its_owner_and_goes_with_the_server() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET_NAME);
        let (_listener, file) = bind_unix(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET_NAME);
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "as after kill -9");
        let (_listener, first) = bind_unix(&path).unwrap();
        let error = bind_unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        // Somebody replaced it: then it is not ours to remove.
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn another_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET_NAME);
        fs::write(&path, "mine").unwrap();
        assert_eq!(bind_unix(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_an_error() {
        let path = Path::new("/tmp").join("x".repeat(200));
        assert!(bind_unix(&path).is_err());
    }
}
