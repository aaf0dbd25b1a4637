//! Writes one message for one recipient into a Maildir, durably.
//!
//! It stands at the end of a message's way where the route is `maildir:`.  It blocks (two syncs),
//! so the driver runs it on the pool.
//!
//! Invariants: a file in `new` is whole and synced before it can be seen there; when
//! [`deliver`] returns `Ok`, the file, its entry and every directory above it that was missing
//! survive a power cut; one message reaches one recipient's Maildir once, also when the gateway
//! died between the delivery and its record of it, because the file's name comes from the message
//! id and the recipient's number alone.
//!
//! The content is `Return-Path`, the trace header and the body octet for octet, with its CRLFs:
//! nothing that a signature covers changes, and a message without any bare LF stays what it was.
//! Every Maildir reader of today takes CRLF.
//!
//! How it fails: a full disk, a missing permission or a broken device are for later (4.3.x); a
//! path that the file system cannot hold is for never.  The texts name no path, since they go to
//! the originator.  What it does not do: choose the path (the route's template does), count
//! quotas, or clean `tmp`, which Maildir leaves to readers.

use std::borrow::Cow;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::delivery::outcome::{Attempted, Reason};
use crate::message::MessageId;
use crate::smtp::address::{ForwardPath, ReversePath};
use crate::smtp::code::EnhancedCode;

/// A message for one recipient, all but its body.
#[derive(Debug, Clone, Copy)]
pub struct MaildirMessage<'a> {
    /// The message's id.
    pub id: MessageId,
    /// The recipient's index in the envelope.
    pub recipient: u16,
    /// When the message was accepted, in milliseconds since 1970 UTC.
    pub accepted_unix_ms: u64,
    /// Goes into `Return-Path` (RFC 5321 section 4.4).
    pub return_path: &'a ReversePath,
    /// Our trace header, with its last CRLF.
    pub trace: &'a [u8],
    /// Octets of the body without stuffed dots; another count means that a part is missing.
    pub body_octets: u64,
    /// Our host name.
    pub hostname: &'a str,
    /// Whether an earlier run may have delivered it.  Then `cur` is searched too, where a reader
    /// may have moved it.
    pub perhaps_delivered: bool,
}

/// A delivery that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// Written now, under this path.
    Written(PathBuf),
    /// An earlier attempt had written it.
    AlreadyThere,
}

/// A delivery that did not happen; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum MaildirError {
    /// The file system refused.
    #[error("cannot {step} {}: {source}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The body ended early, or went on: its reader failed.
    #[error("the body has {found_octets} octets and should have {expected_octets}")]
    BodyLength {
        /// Octets that came.
        found_octets: u64,
        /// Octets that were announced.
        expected_octets: u64,
    },
}

impl MaildirError {
    /// What this means for the recipient.
    pub fn attempted(&self) -> Attempted {
        let reason = |class, subject, detail, text: &str| Reason::Local {
            status: EnhancedCode::new(class, subject, detail).expect("written in this file"),
            text: text.into(),
        };
        let MaildirError::Io { source, .. } = self else {
            return Attempted::Deferred(reason(4, 3, 0, "the message could not be read here"));
        };
        match source.kind() {
            ErrorKind::InvalidFilename | ErrorKind::InvalidInput => {
                Attempted::Failed(reason(5, 3, 5, "the mailbox's name cannot be stored here"))
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Attempted::Deferred(reason(4, 3, 1, "the mail system is full"))
            }
            _ => Attempted::Deferred(reason(4, 3, 0, "the mailbox could not be written to")),
        }
    }
}

/// The local part and the domain as a route's path template takes them.  The local part loses its
/// quotes, for `"bob"@x` and `bob@x` are one mailbox; postmaster, alone not case-sensitive
/// (RFC 5321 section 4.5.1), is in lower case; the domain is in A-labels and lower case.
pub fn template_names<'a>(
    recipient: &'a ForwardPath,
    hostname: &'a str,
) -> (Cow<'a, str>, Cow<'a, str>) {
    let Some(mailbox) = recipient.mailbox() else {
        return ("postmaster".into(), hostname.to_ascii_lowercase().into());
    };
    let local = match mailbox.is_postmaster() {
        true => "postmaster".into(),
        false => mailbox.local_unquoted(),
    };
    let domain =
        mailbox.domain_ascii().unwrap_or_else(|| mailbox.domain().to_ascii_lowercase().into());
    (local, domain)
}

/// Writes the message into the Maildir at `maildir`, which is made if it is not there.  `body`
/// gives the body without stuffed dots, in pieces.
pub fn deliver<B: AsRef<[u8]>>(
    maildir: &Path,
    message: &MaildirMessage<'_>,
    body: impl IntoIterator<Item = B>,
) -> Result<Stored, MaildirError> {
    let new = maildir.join("new");
    if !is_there(&new)? {
        make_maildir(maildir)?;
    }
    let name = file_name(message);
    let path = new.join(&name);
    if is_there(&path)? {
        // Whoever put it there may have died before this sync.
        sync_directory(&new)?;
        return Ok(Stored::AlreadyThere);
    }
    if message.perhaps_delivered && was_read(&maildir.join("cur"), &name)? {
        return Ok(Stored::AlreadyThere);
    }
    let temporary = write_temporary(&maildir.join("tmp"), &name, message, body)?;
    let stored = publish(temporary, path)?;
    sync_directory(&new)?;
    Ok(stored)
}

/// A file in `tmp` that goes when it is dropped.
struct Temporary {
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed is litter that Maildir readers clean after 36 hours.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes and syncs the file under a name of its own.
fn write_temporary<B: AsRef<[u8]>>(
    tmp: &Path,
    name: &str,
    message: &MaildirMessage<'_>,
    body: impl IntoIterator<Item = B>,
) -> Result<Temporary, MaildirError> {
    let (temporary, file) = create_temporary(tmp, name)?;
    let io = |source| MaildirError::Io { step: "write", path: temporary.path.clone(), source };
    let mut file = BufWriter::with_capacity(WRITE_OCTETS, file);
    write!(file, "Return-Path: {}\r\n", message.return_path).map_err(io)?;
    file.write_all(message.trace).map_err(io)?;
    let mut found_octets = 0u64;
    for piece in body {
        let piece = piece.as_ref();
        found_octets = found_octets.saturating_add(piece.len() as u64);
        file.write_all(piece).map_err(io)?;
    }
    let expected_octets = message.body_octets;
    if found_octets != expected_octets {
        return Err(MaildirError::BodyLength { found_octets, expected_octets });
    }
    let file = file.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    Ok(temporary)
}

/// Pid and counter keep deliveries of one time apart; what a dead process of the same pid has
/// left is stepped over.
fn create_temporary(tmp: &Path, name: &str) -> Result<(Temporary, File), MaildirError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    loop {
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = tmp.join(format!("{name}.P{}Q{counter}", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return Ok((Temporary { path }, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(source) => {
                return Err(MaildirError::Io { step: "create", path, source });
            }
        }
    }
}

/// Moves a file into `new`, never over another one.
fn publish(temporary: Temporary, path: PathBuf) -> Result<Stored, MaildirError> {
    let moved = match renameat_with(CWD, &temporary.path, CWD, &path, RenameFlags::NOREPLACE) {
        // Some file systems (NFS among them) know no such rename.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            std::fs::hard_link(&temporary.path, &path)
        }
        moved => moved.map_err(io::Error::from),
    };
    match moved {
        Ok(()) => Ok(Stored::Written(path)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Stored::AlreadyThere),
        Err(source) => Err(MaildirError::Io { step: "publish", path, source }),
    }
}

/// `seconds.Mmicroseconds` of the acceptance, `P` the message id, `Q` the recipient, the host:
/// the shape that Maildir asks for, and the same at every attempt.
fn file_name(message: &MaildirMessage<'_>) -> String {
    let MaildirMessage { id, recipient, accepted_unix_ms, .. } = message;
    let (seconds, micros) = (accepted_unix_ms / 1000, accepted_unix_ms % 1000 * 1000);
    // A host name that is longer, or odd, is told apart by the rest of the name.
    let plain = |octet: &u8| octet.is_ascii_alphanumeric() || b"-.".contains(octet);
    let host = message.hostname.bytes().filter(plain).take(HOST_OCTETS).map(char::from);
    format!("{seconds}.M{micros}P{id}Q{recipient}.{}", host.collect::<String>())
}

/// Whether a reader has moved the file to `cur`, with its flags behind a colon.
fn was_read(cur: &Path, name: &str) -> Result<bool, MaildirError> {
    let io = |source| MaildirError::Io { step: "read", path: cur.to_owned(), source };
    for entry in std::fs::read_dir(cur).map_err(io)? {
        let entry = entry.map_err(io)?.file_name();
        let rest = entry.as_encoded_bytes().strip_prefix(name.as_bytes());
        if rest.is_some_and(|rest| rest.is_empty() || rest[0] == b':') {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes the Maildir and what is missing above it.  `new` comes last, so that a delivery that
/// finds it may take everything above it for durable.
fn make_maildir(maildir: &Path) -> Result<(), MaildirError> {
    make_directories(maildir)?;
    for name in ["tmp", "cur", "new"] {
        make_directory(&maildir.join(name))?;
    }
    sync_directory(maildir)
}

/// Each directory's entry is synced before anything is made in it.  Another delivery may be
/// making the same ones: an entry that is found may not be synced yet, but those above it are.
fn make_directories(path: &Path) -> Result<(), MaildirError> {
    let mut missing = Vec::new();
    for directory in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        if is_there(directory)? {
            sync_entry_if_ours(directory)?;
            break;
        }
        missing.push(directory);
    }
    for directory in missing.into_iter().rev() {
        make_directory(directory)?;
        sync_directory(parent(directory))?;
    }
    Ok(())
}

/// Where we may not even look into the parent, we did not make the directory.
fn sync_entry_if_ours(directory: &Path) -> Result<(), MaildirError> {
    match sync_directory(parent(directory)) {
        Err(MaildirError::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            Ok(())
        }
        synced => synced,
    }
}

fn parent(directory: &Path) -> &Path {
    match directory.parent() {
        None => directory,
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
    }
}

fn make_directory(path: &Path) -> Result<(), MaildirError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => {
            Err(MaildirError::Io { step: "create", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn sync_directory(path: &Path) -> Result<(), MaildirError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|source| MaildirError::Io {
        step: "sync",
        path: path.to_owned(),
        source,
    })
}

fn is_there(path: &Path) -> Result<bool, MaildirError> {
    path.try_exists().map_err(|source| MaildirError::Io {
        step: "look for",
        path: path.to_owned(),
        source,
    })
}

/// A small message goes out in one write; a piece of this size or more is not copied.
const WRITE_OCTETS: usize = 64 * 1024;
/// Of the host name in a file name, so that the whole stays far below 255.
const HOST_OCTETS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::address::Mailbox;
    use std::os::unix::fs::PermissionsExt;

    const TRACE: &[u8] = b"Received: by mx.test; now\r\n";

    fn message(return_path: &ReversePath) -> MaildirMessage<'_> {
        MaildirMessage {
            id: MessageId(77),
            recipient: 3,
            accepted_unix_ms: 1_750_000_000_123,
            return_path,
            trace: TRACE,
            body_octets: 9,
            hostname: "mx.test",
            perhaps_delivered: false,
        }
    }

    fn sender() -> ReversePath {
        ReversePath::parse(b"<s@s.test>", crate::smtp::address::Utf8::Refused).expect("valid")
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).expect("a directory");
        entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn the_file_is_whole_and_its_directories_are_private() {
        let root = tempfile::tempdir().expect("a directory");
        let maildir = root.path().join("a/b/c");
        let pieces: [&[u8]; 2] = [b"a\r\n.b", b"\r\n\0c"];
        let sender = sender();
        for body_octets in [8, 10] {
            let message = MaildirMessage { body_octets, ..message(&sender) };
            let error = deliver(&maildir, &message, pieces).expect_err("it has 9 octets");
            assert!(matches!(error, MaildirError::BodyLength { found_octets: 9, .. }));
        }
        assert!(names(&maildir.join("tmp")).is_empty() && names(&maildir.join("new")).is_empty());

        let stored = deliver(&maildir, &message(&sender), pieces).expect("stored");
        let Stored::Written(path) = stored else { panic!("{stored:?}") };
        let expected = b"Return-Path: <s@s.test>\r\nReceived: by mx.test; now\r\na\r\n.b\r\n\0c";
        assert_eq!(std::fs::read(&path).expect("readable"), expected);
        let name = "1750000000.M123000P000000000002dQ3.mx.test";
        assert_eq!(path, maildir.join("new").join(name));
        assert!(names(&maildir.join("tmp")).is_empty());
        assert_eq!(mode(&path), 0o600);
        for directory in ["", "..", "../..", "tmp", "new", "cur"] {
            assert_eq!(mode(&maildir.join(directory)), 0o700, "{directory}");
        }
    }

    /// The gateway dies after the delivery and before DONE is durable.
    #[test]
    fn the_second_delivery_of_a_message_finds_the_first() {
        let root = tempfile::tempdir().expect("a directory");
        let sender = sender();
        let again = MaildirMessage { perhaps_delivered: true, ..message(&sender) };
        let stored = deliver(root.path(), &again, ["123456789"]).expect("stored");
        let Stored::Written(path) = stored else { panic!("{stored:?}") };
        let second = || deliver(root.path(), &again, ["123456789"]).expect("stored");
        assert_eq!(second(), Stored::AlreadyThere);

        let name = path.file_name().expect("a name").to_str().expect("ASCII");
        let read = root.path().join("cur").join(format!("{name}:2,S"));
        std::fs::rename(&path, &read).expect("moved");
        assert_eq!(second(), Stored::AlreadyThere);

        let other = MaildirMessage { recipient: 30, ..again };
        let stored = deliver(root.path(), &other, ["123456789"]).expect("stored");
        assert!(matches!(stored, Stored::Written(_)));
    }

    /// Two that race for one name: the first in `new` stays.
    #[test]
    fn a_file_in_new_is_never_written_over() {
        let root = tempfile::tempdir().expect("a directory");
        make_maildir(root.path()).expect("made");
        let target = root.path().join("new/x");
        std::fs::write(&target, "first").expect("written");
        let (temporary, _) = create_temporary(&root.path().join("tmp"), "x").expect("created");
        let stored = publish(temporary, target.clone()).expect("published");
        assert_eq!(stored, Stored::AlreadyThere);
        assert_eq!(std::fs::read(&target).expect("readable"), b"first");
        assert!(names(&root.path().join("tmp")).is_empty());
    }

    #[test]
    fn many_at_once_make_one_maildir_and_lose_nothing() {
        let root = tempfile::tempdir().expect("a directory");
        let maildir = root.path().join("x/y/z");
        std::thread::scope(|scope| {
            for recipient in 0..8 {
                let maildir = &maildir;
                scope.spawn(move || {
                    let sender = sender();
                    let message = MaildirMessage { recipient, ..message(&sender) };
                    deliver(maildir, &message, ["123456789"]).expect("stored");
                });
            }
        });
        assert_eq!(names(&maildir.join("new")).len(), 8);
    }

    #[test]
    fn a_failure_is_for_later_unless_the_name_is_the_reason() {
        let sender = sender();
        let root = tempfile::tempdir().expect("a directory");
        let status = |maildir: &Path| {
            let error = deliver(maildir, &message(&sender), ["123456789"]).expect_err("refused");
            match error.attempted() {
                Attempted::Deferred(reason) | Attempted::Failed(reason) => {
                    assert!(!reason.to_string().contains('/'), "no path for the originator");
                    reason.status().to_string()
                }
                other => panic!("{other:?}"),
            }
        };
        std::fs::write(root.path().join("file"), "").expect("written");
        assert_eq!(status(&root.path().join("file")), "4.3.0");
        assert_eq!(status(&root.path().join("x".repeat(256))), "5.3.5");
        assert_eq!(status(&root.path().join("a\0b")), "5.3.5");
        // Where everything is always full.
        let full = io::Error::from(Errno::NOSPC);
        let error = MaildirError::Io { step: "write", path: "x".into(), source: full };
        let Attempted::Deferred(reason) = error.attempted() else { panic!("a deferral") };
        assert_eq!(reason.status().to_string(), "4.3.1");
    }

    #[test]
    fn spellings_of_one_mailbox_have_one_name() {
        let cases = [
            ("bob@Example.COM", "bob", "example.com"),
            ("\"bob\"@example.com", "bob", "example.com"),
            ("\"b\\ob\"@example.com", "bob", "example.com"),
            ("Bob@example.com", "Bob", "example.com"),
            ("PostMaster@example.com", "postmaster", "example.com"),
            ("bob@[IPv6:2001:DB8::1]", "bob", "[ipv6:2001:db8::1]"),
        ];
        for (address, local, domain) in cases {
            let mailbox = Mailbox::from_stored(address).expect("valid");
            let path = ForwardPath::Mailbox(mailbox);
            let names = template_names(&path, "mx.test");
            assert_eq!((&*names.0, &*names.1), (local, domain), "{address}");
        }
        let (local, domain) = template_names(&ForwardPath::Postmaster, "MX.test");
        assert_eq!((&*local, &*domain), ("postmaster", "mx.test"));
    }

    #[test]
    fn no_host_name_makes_a_bad_file_name() {
        let sender = sender();
        for hostname in ["../../etc", "a:b/c", "", &"x".repeat(300), "h\u{f6}st"] {
            let name = file_name(&MaildirMessage { hostname, ..message(&sender) });
            assert!(!name.contains(['/', ':']) && name.len() < 200, "{name}");
            assert!(name.starts_with("1750000000.M123000P"));
        }
    }
}
