//! What the gateway takes of its host before a thread runs: sockets, the data directory, limits,
//! and the user that it becomes.
//!
//! In an order that `Gateway::start` keeps: what needs root comes before [`become_user`].

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::StartError;
use crate::config::{Config, Listener};
use crate::control::admin;
use crate::dns::ourselves::{Ourselves, interface_addresses};
use crate::limits;
use crate::runtime;
use crate::runtime::socket;

/// One worker's sockets.
pub(super) type Sockets = Vec<(Listener, TcpListener)>;

/// A listener with the port that it really has.
pub type Bound = (Listener, SocketAddr);

/// Binds every listener once for each worker.
pub(super) fn bind(config: &Config) -> Result<(Vec<Sockets>, Vec<Bound>), StartError> {
    let mut sockets: Vec<Sockets> = (0..config.workers).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for listener in &config.listeners {
        let mut address = listener.address;
        refuse_shared(address)?;
        for own in &mut sockets {
            let failed = |source| StartError::Bind { address, source };
            let socket = socket::bind(address).map_err(failed)?;
            // With port 0 the first one chooses and the others follow.
            address = socket.local_addr().map_err(failed)?;
            own.push((listener.clone(), socket));
        }
        addresses.push((listener.clone(), address));
    }
    Ok((sockets, addresses))
}

/// With SO_REUSEPORT a second gateway could bind the same address and take half the mail; a bind
/// without it finds out.
fn refuse_shared(address: SocketAddr) -> Result<(), StartError> {
    if address.port() == 0 {
        return Ok(());
    }
    let probe = || -> io::Result<()> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            None,
        )?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())
    };
    let deadline = Instant::now() + ADDRESS_PATIENCE;
    loop {
        match probe() {
            Ok(()) => return Ok(()),
            Err(error) if is_in_use(&error) && Instant::now() < deadline => {
                thread::sleep(ADDRESS_POLL);
            }
            Err(source) => return Err(StartError::Bind { address, source }),
        }
    }
}

fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

pub(super) fn prepare_data_dir(config: &Config) -> Result<(), StartError> {
    let path = &config.data_dir;
    let failed = |source| StartError::DataDirectory { path: path.display().to_string(), source };
    let is_new = !path.exists();
    let ancestors: Vec<&Path> =
        path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()).collect();
    let missing = ancestors.iter().take_while(|ancestor| !ancestor.exists()).count();
    for (place, directory) in ancestors.iter().enumerate().take(missing).rev() {
        let mode = if place == 0 { 0o700 } else { 0o777 };
        // A name lasts when the directory that it stands in was synced.  The lowest one that was
        // there may have been made by a run that died before it came to that.
        if let Some(above) = ancestors.get(place + 1) {
            sync_name(above).map_err(failed)?;
        }
        make_directory(directory, mode).map_err(failed)?;
    }
    make_directory(path, 0o700).and_then(|()| sync_name(path)).map_err(failed)?;
    if is_new && let Some(user) = &config.user {
        let (uid, gid) = user_ids(user)?;
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(failed)?;
    }
    Ok(())
}

/// Makes a directory, unless it is there.
fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Makes the name of a directory durable.  Where we may not look into the one above it, we did
/// not make it.
fn sync_name(directory: &Path) -> io::Result<()> {
    let above = match directory.parent() {
        None => return Ok(()),
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
    };
    match std::fs::File::open(above) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        opened => opened?.sync_all(),
    }
}

/// The admin socket is the user's, who alone may open it.
pub(super) fn give_admin_socket(config: &Config) -> Result<(), StartError> {
    let Some(user) = config.user.as_ref().filter(|_| nix::unistd::geteuid().is_root()) else {
        return Ok(());
    };
    let (uid, gid) = user_ids(user)?;
    let path = config.data_dir.join(admin::SOCKET_NAME);
    std::os::unix::fs::chown(&path, Some(uid), Some(gid))
        .map_err(|source| StartError::DataDirectory { path: path.display().to_string(), source })
}

/// What mail is not to be sent to, since it would come back.
pub(super) fn ourselves(config: &Config, listeners: &[Bound]) -> Ourselves {
    let addresses: Vec<SocketAddr> = listeners.iter().map(|(_, address)| *address).collect();
    let interfaces = interface_addresses().unwrap_or_else(|error| {
        tracing::warn!(%error, "the addresses of this host are not to be had: a loop is only found by its name");
        Vec::new()
    });
    Ourselves::new(&config.hostname, &addresses, &interfaces, config.delivery.port)
}

fn user_ids(user: &str) -> Result<(u32, u32), StartError> {
    let failed = |source| StartError::User { user: user.to_owned(), source };
    let known = nix::unistd::User::from_name(user).map_err(|errno| failed(errno.into()))?;
    let known = known.ok_or_else(|| failed(io::Error::other("there is no such user")))?;
    Ok((known.uid.as_raw(), known.gid.as_raw()))
}

/// Drops the privileges of root, before any thread is started.
pub(super) fn become_user(config: &Config) -> Result<(), StartError> {
    use nix::unistd::{Gid, Uid, geteuid, initgroups, setgid, setuid};
    let Some(user) = &config.user else { return Ok(()) };
    if !geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = user_ids(user)?;
    let failed =
        |errno: nix::Error| StartError::User { user: user.to_string(), source: errno.into() };
    let name = std::ffi::CString::new(user.as_bytes()).map_err(|_| failed(nix::Error::EINVAL))?;
    initgroups(&name, Gid::from_raw(gid)).map_err(failed)?;
    setgid(Gid::from_raw(gid)).map_err(failed)?;
    setuid(Uid::from_raw(uid)).map_err(failed)
}

/// As many descriptors as the system lets us have, but for those that the admin interface raises
/// the limit for; the default of sessions counts on them.  Gives how many there are.
pub(super) fn raise_descriptors() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard.saturating_sub(limits::ADMIN_DESCRIPTORS), hard)
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// Room for the workers' rings, and once more: those of a gateway that was here a moment ago are
/// not freed at once.  Root may go above the hard limit, before it becomes the user that is
/// counted against it; a worker that finds too little says so itself.
pub(super) fn raise_locked_memory(workers: usize) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let wanted = 2 * (workers as u64 + 1) * runtime::RING_OCTETS;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK) else { return };
    if soft < wanted {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, wanted, hard.max(wanted))
            .or_else(|_| setrlimit(Resource::RLIMIT_MEMLOCK, wanted.min(hard), hard));
    }
}

/// How long an address may still be in use at the start.  The kernel takes the rings of a process
/// down after it has ended, and what they held open with them; a restart comes that soon.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(2);
const ADDRESS_POLL: Duration = Duration::from_millis(20);
