//! `mailrace user add|passwd|list|remove`: the users file, changed as one.
//!
//! The new text is written beside the file, synced and moved over it, so that a running gateway
//! reads the old one or the new one and a power cut leaves one of both.  Two of these commands at
//! a time wait for each other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use rustix::fs::{FlockOperation, flock};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::{Failure, UserAddArgs, UserCommand, UserPlace, load_quietly};
use crate::auth::scram::{ITERATIONS, ScramHash, Verifier};
use crate::auth::users::{edit, is_name};
use crate::auth::{PasswordHash, SenderRule, User, Users, prepare};
use crate::config::Pattern;

/// Does what the command says.
pub fn user(command: &UserCommand) -> Result<(), Failure> {
    match command {
        UserCommand::Add(arguments) => add(arguments),
        UserCommand::Passwd(arguments) => change(&arguments.place, &arguments.name, |known| {
            let known = known.ok_or_else(|| unknown(&arguments.name))?.clone();
            let sha_1 = known.scram_sha_1.is_some();
            Ok(Some(with_password(known, &ask_password()?, sha_1)?))
        }),
        UserCommand::Remove(arguments) => change(&arguments.place, &arguments.name, |known| {
            known.map(|_| None).ok_or_else(|| unknown(&arguments.name))
        }),
        UserCommand::List(place) => list(place),
    }
}

fn add(arguments: &UserAddArgs) -> Result<(), Failure> {
    let name = &*arguments.name;
    if !is_name(name) {
        let words = format!("`{name}` cannot be a user's name: no white space, no leading #");
        return Err(Failure::Failed(words));
    }
    if arguments.senders.is_empty() && !name.contains('@') {
        let words = format!(
            "`{name}` is no address, so name those that it may send as: --sender ADDRESS or \
             --sender '*@example.com'"
        );
        return Err(Failure::Failed(words));
    }
    change(&arguments.place, name, |known| {
        if known.is_some() {
            let words = format!("the user {name} is there; `mailrace user passwd` changes it");
            return Err(Failure::Failed(words));
        }
        let senders = match arguments.senders.as_slice() {
            [] => SenderRule::Own(name.into()),
            patterns => SenderRule::Patterns(patterns.to_vec().into()),
        };
        let user = User {
            name: name.into(),
            password: None,
            scram_sha_256: None,
            scram_sha_1: None,
            senders,
        };
        Ok(Some(with_password(user, &ask_password()?, arguments.scram_sha_1)?))
    })
}

fn list(place: &UserPlace) -> Result<(), Failure> {
    let path = users_file(place)?;
    let text = read(&path)?;
    let mut out = io::stdout().lock();
    for user in parse(&path, &text)?.all() {
        let has = [
            ("argon2id", user.password.is_some()),
            ("scram-sha-256", user.scram_sha_256.is_some()),
            ("scram-sha-1", user.scram_sha_1.is_some()),
        ];
        let has: Vec<&str> = has.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
        let senders = match &user.senders {
            SenderRule::Own(name) => name.to_string(),
            SenderRule::Patterns(all) => {
                all.iter().map(Pattern::to_string).collect::<Vec<_>>().join(",")
            }
        };
        writeln!(out, "{}\t{}\t{senders}", user.name, has.join(","))?;
    }
    Ok(())
}

fn unknown(name: &str) -> Failure {
    Failure::Failed(format!("there is no user {name}; `mailrace user add` makes one"))
}

fn with_password(user: User, password: &str, sha_1: bool) -> Result<User, Failure> {
    let bad = || Failure::Failed("the password is empty or holds control characters".to_owned());
    let password = prepare(password).ok_or_else(bad)?;
    let iterations = NonZeroU32::new(ITERATIONS).expect("not zero");
    let verifier = |hash| Ok::<_, Failure>(Verifier::make(hash, &password, &salt()?, iterations));
    Ok(User {
        password: Some(PasswordHash::make(&password, &salt()?).ok_or_else(bad)?),
        scram_sha_256: Some(verifier(ScramHash::Sha256)?),
        scram_sha_1: if sha_1 { Some(verifier(ScramHash::Sha1)?) } else { None },
        ..user
    })
}

fn salt() -> Result<[u8; 16], Failure> {
    let mut salt = [0; 16];
    let filled = SystemRandom::new().fill(&mut salt);
    filled.map_err(|_| Failure::Failed("the system gives no random octets".to_owned()))?;
    Ok(salt)
}

// ---- the file ----------------------------------------------------------------------------

fn users_file(place: &UserPlace) -> Result<PathBuf, Failure> {
    if let Some(file) = &place.file {
        return Ok(file.clone());
    }
    let none = "name the users file with --file, or a configuration with `[auth] users`";
    load_quietly(place.config.as_deref())?.auth.users.ok_or(Failure::Failed(none.to_owned()))
}

/// Gives `decide` the user as the file has it, and puts what it returns in its place.
fn change(
    place: &UserPlace,
    name: &str,
    decide: impl FnOnce(Option<&User>) -> Result<Option<User>, Failure>,
) -> Result<(), Failure> {
    let path = users_file(place)?;
    let failed = |error: io::Error| Failure::Failed(format!("{}: {error}", path.display()));
    let _lock = lock(&path).map_err(failed)?;
    let text = read(&path)?;
    let new = decide(parse(&path, &text)?.find(name))?;
    replace(&path, &edit(&text, name, new.as_ref())).map_err(failed)?;
    let told = "a running gateway reads the users again on SIGHUP\n";
    let _ = io::stderr().write_all(told.as_bytes());
    Ok(())
}

fn read(path: &Path) -> Result<String, Failure> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|error| Failure::Failed(format!("{}: {error}", path.display()))),
    }
}

fn parse(path: &Path, text: &str) -> Result<Users, Failure> {
    Users::parse(text).map_err(|error| Failure::Failed(format!("{}, {error}", path.display())))
}

/// A lock beside the file: the file itself is replaced.
fn lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let lock = options.write(true).create(true).truncate(false).mode(0o600);
    let lock = lock.open(beside(path, "lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = beside(path, "new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    // The gateway's user must go on being able to read it when root has changed it.
    if let Ok(old) = fs::metadata(path) {
        chown(&new, Some(old.uid()), Some(old.gid()))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

// ---- the password ------------------------------------------------------------------------

/// The longest password that is read.
const PASSWORD_MAX: u64 = 8 * 1024;

/// Two times from a terminal, without echo; else the first line of standard input.
fn ask_password() -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return Ok(read_line()?);
    }
    let echo = Silence::begin()?;
    let first = prompt("Password: ")?;
    let second = prompt("Again: ")?;
    drop(echo);
    match first == second {
        true => Ok(first),
        false => Err(Failure::Failed("the passwords differ".to_owned())),
    }
}

fn prompt(words: &str) -> io::Result<String> {
    io::stderr().write_all(words.as_bytes())?;
    let line = read_line();
    io::stderr().write_all(b"\n")?;
    line
}

fn read_line() -> io::Result<String> {
    let mut line = String::new();
    io::stdin().lock().take(PASSWORD_MAX).read_line(&mut line)?;
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    Ok(line)
}

/// A terminal without echo, for as long as it lives.
struct Silence(rustix::termios::Termios);

impl Silence {
    fn begin() -> io::Result<Silence> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Silence(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
