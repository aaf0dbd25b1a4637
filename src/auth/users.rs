//! The users file: one line a user, a name and then fields.
//!
//! ```text
//! # name               fields, parted by white space
//! alice@example.com    argon2id=$argon2id$v=19$.. scram-sha-256=10000,SALT,STORED,SERVER
//! backup               argon2id=$argon2id$v=19$.. senders=backup@example.com,*@lists.example.com
//! ```
//!
//! [`Users::parse`] gives what the gateway looks up; [`edit`] changes one line and leaves the rest
//! of the file as it is.  Reading and writing files is [`super::Authority`]'s and the command
//! line's.  Errors name the line and never show what stands in it.

use std::collections::HashMap;

use super::prep::prepare;
use super::scram::{ScramHash, Verifier};
use super::secret::PasswordHash;
use crate::config::{Pattern, unquoted};
use crate::smtp::address::{Mailbox, ReversePath, Utf8};

/// One user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// As the file has it.
    pub name: Box<str>,
    /// For PLAIN and LOGIN.
    pub password: Option<PasswordHash>,
    /// For SCRAM-SHA-256, and for PLAIN where there is no hash.
    pub scram_sha_256: Option<Verifier>,
    /// For SCRAM-SHA-1.
    pub scram_sha_1: Option<Verifier>,
    /// Whose mail it may send.
    pub senders: SenderRule,
}

/// The sender addresses that a user may use; the null one always, for notices of mail programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SenderRule {
    /// The user's own name, if that is an address.
    Own(Box<str>),
    /// Those that one of the patterns matches.
    Patterns(Box<[Pattern]>),
}

/// All users, by name.
#[derive(Debug, Default)]
pub struct Users {
    by_name: HashMap<Box<str>, User>,
}

/// What is wrong with the file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct BadUsers {
    /// From 1.
    pub line: usize,
    /// A sentence without any of the line's secrets.
    pub what: &'static str,
}

/// The longest name, in octets.
const NAME_MAX: usize = 320;

impl Users {
    /// Reads the text of a users file.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Users, BadUsers> {
        let mut by_name = HashMap::new();
        for (place, line) in text.lines().enumerate() {
            let bad = |what| BadUsers { line: place + 1, what };
            let Some(user) = read_line(line).map_err(bad)? else { continue };
            if by_name.insert(key(&user.name), user).is_some() {
                return Err(bad("the name stands in an earlier line too"));
            }
        }
        Ok(Users { by_name })
    }

    /// The user of this prepared name; ASCII letters in either case.
    pub fn find(&self, name: &str) -> Option<&User> {
        self.by_name.get(&key(name))
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<&User> {
        let mut all: Vec<&User> = self.by_name.values().collect();
        all.sort_by(|left, right| left.name.cmp(&right.name));
        all
    }
}

impl User {
    /// The verifier for a hash.
    pub fn verifier(&self, hash: ScramHash) -> Option<&Verifier> {
        match hash {
            ScramHash::Sha1 => self.scram_sha_1.as_ref(),
            ScramHash::Sha256 => self.scram_sha_256.as_ref(),
        }
    }

    /// Whether a prepared password is the user's.  Slow on purpose, and about as slow for a user
    /// without any.
    pub fn verify(&self, password: &str) -> bool {
        match (&self.password, &self.scram_sha_256, &self.scram_sha_1) {
            (Some(hash), ..) => hash.verify(password),
            (None, Some(verifier), _) | (None, None, Some(verifier)) => verifier.verify(password),
            (None, None, None) => {
                PasswordHash::verify_nobody(password);
                false
            }
        }
    }

    /// The user's line of the file.
    pub fn to_line(&self) -> String {
        let mut line = self.name.to_string();
        if let Some(password) = &self.password {
            line.push_str(&format!(" argon2id={}", password.as_str()));
        }
        for (name, verifier) in
            [("scram-sha-256", &self.scram_sha_256), ("scram-sha-1", &self.scram_sha_1)]
        {
            if let Some(verifier) = verifier {
                line.push_str(&format!(" {name}={}", verifier.to_text()));
            }
        }
        if let SenderRule::Patterns(patterns) = &self.senders {
            let patterns: Vec<String> = patterns.iter().map(Pattern::to_string).collect();
            line.push_str(&format!(" senders={}", patterns.join(",")));
        }
        line
    }
}

impl SenderRule {
    /// Whether the user may send as this one.
    pub fn allows(&self, path: &ReversePath) -> bool {
        let ReversePath::Mailbox(mailbox) = path else { return true };
        match self {
            SenderRule::Own(name) => {
                Mailbox::parse(name.as_bytes(), Utf8::Allowed).is_ok_and(|own| same(&own, mailbox))
            }
            SenderRule::Patterns(patterns) => {
                let domain = crate::delivery::sites::routing_domain(mailbox);
                let local = unquoted(mailbox.local_part());
                patterns.iter().any(|pattern| pattern.matches(&local, &domain))
            }
        }
    }
}

/// Whether two mailboxes are one user's: domains by their A-labels, local parts in either case, as
/// the names of users are.
fn same(left: &Mailbox, right: &Mailbox) -> bool {
    use crate::delivery::sites::routing_domain;
    let (ours, theirs) = (unquoted(left.local_part()), unquoted(right.local_part()));
    ours.eq_ignore_ascii_case(&theirs) && routing_domain(left) == routing_domain(right)
}

/// Changes the line of `name` to `user`, takes it out, or adds it at the end; gives the new text.
pub fn edit(text: &str, name: &str, user: Option<&User>) -> String {
    let mut edited = String::with_capacity(text.len() + 512);
    let mut new = user.map(User::to_line);
    for line in text.lines() {
        let is_it = fields(line).is_some_and(|(found, _)| key(found) == key(name));
        let line = if is_it { new.take() } else { Some(line.to_owned()) };
        if let Some(line) = line {
            edited.push_str(&line);
            edited.push('\n');
        }
    }
    if let Some(line) = new {
        edited.push_str(&line);
        edited.push('\n');
    }
    edited
}

/// Whether a name can stand in the file: prepared, without white space or control characters.
pub fn is_name(name: &str) -> bool {
    let fits = |c: char| !c.is_whitespace() && !c.is_control();
    name.len() <= NAME_MAX
        && !name.starts_with('#')
        && name.chars().all(fits)
        && prepare(name).as_deref() == Some(name)
}

fn key(name: &str) -> Box<str> {
    name.to_ascii_lowercase().into()
}

/// The name of a line and the rest; none for an empty line and a comment.
fn fields(line: &str) -> Option<(&str, std::str::SplitWhitespace<'_>)> {
    let mut fields = line.split_whitespace();
    let name = fields.next().filter(|name| !name.starts_with('#'))?;
    Some((name, fields))
}

fn read_line(line: &str) -> Result<Option<User>, &'static str> {
    let Some((name, fields)) = fields(line) else { return Ok(None) };
    if !is_name(name) {
        return Err("the name holds what SASLprep (RFC 4013) changes or prohibits");
    }
    let mut user = User {
        name: name.into(),
        password: None,
        scram_sha_256: None,
        scram_sha_1: None,
        senders: SenderRule::Own(name.into()),
    };
    let mut seen = Vec::new();
    for field in fields {
        let (key, value) = field.split_once('=').ok_or("expected fields of the form key=value")?;
        if seen.contains(&key) {
            return Err("a field stands there twice");
        }
        seen.push(key);
        match key {
            "argon2id" => {
                let hash = PasswordHash::parse(value);
                user.password =
                    Some(hash.ok_or("the value of argon2id is no hash that we verify")?);
            }
            "scram-sha-256" => {
                let verifier = Verifier::parse(ScramHash::Sha256, value);
                let verifier = verifier.ok_or("the value of scram-sha-256 is no verifier")?;
                user.scram_sha_256 = Some(verifier);
            }
            "scram-sha-1" => {
                let verifier = Verifier::parse(ScramHash::Sha1, value);
                let verifier = verifier.ok_or("the value of scram-sha-1 is no verifier")?;
                user.scram_sha_1 = Some(verifier);
            }
            "senders" => user.senders = SenderRule::Patterns(read_senders(value)?),
            _ => return Err("expected argon2id=, scram-sha-256=, scram-sha-1= or senders="),
        }
    }
    Ok(Some(user))
}

fn read_senders(value: &str) -> Result<Box<[Pattern]>, &'static str> {
    let patterns: Result<Vec<Pattern>, _> = value.split(',').map(str::parse).collect();
    patterns.map(Vec::into_boxed_slice).map_err(|_| "an entry of senders is not a pattern")
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn user(name: &str, senders: Option<&str>) -> User {
        let verifier = |hash| {
            Some(Verifier::make(
                hash,
                "pencil",
                b"0123456789abcdef",
                NonZeroU32::new(4096).unwrap(),
            ))
        };
        User {
            name: name.into(),
            password: PasswordHash::make("pencil", &[1; 16]),
            scram_sha_256: verifier(ScramHash::Sha256),
            scram_sha_1: verifier(ScramHash::Sha1),
            senders: senders.map_or(SenderRule::Own(name.into()), |senders| {
                SenderRule::Patterns(read_senders(senders).unwrap())
            }),
        }
    }

    #[test]
    fn a_line_comes_back_as_it_was_written() {
        for user in [user("a@b.example", None), user("Backup", Some("x@y.example,*@z.example"))] {
            let users = Users::parse(&format!("# comment\n\n{}\n", user.to_line())).unwrap();
            assert_eq!(users.find(&user.name.to_ascii_uppercase()), Some(&user));
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line_and_without_its_secrets() {
        for (text, line) in [
            ("a\na b\n", 2),
            ("a colour=red\n", 1),
            ("\na argon2id=hunter2\n", 2),
            ("a scram-sha-256=4096,hunter2\n", 1),
            ("a senders=@\n", 1),
            ("a\nb\nA\n", 3),
            ("a senders=* senders=*\n", 1),
            ("a\u{ad}b\n", 1),
        ] {
            let error = Users::parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text:?}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn an_edit_leaves_the_rest_alone() {
        let text = "# ours\nb  senders=*\n\nA senders=*\n";
        let user = user("a", Some("*"));
        let line = user.to_line();
        assert_eq!(edit(text, "a", Some(&user)), format!("# ours\nb  senders=*\n\n{line}\n"));
        assert_eq!(edit(text, "a", None), "# ours\nb  senders=*\n\n");
        assert_eq!(edit("b", "a", Some(&user)), format!("b\n{line}\n"));
    }

    #[test]
    fn whose_mail_a_user_may_send() {
        let path = |text: &str| ReversePath::parse(text.as_bytes(), Utf8::Refused).unwrap();
        let own = SenderRule::Own("Alice@B.example".into());
        let listed = user("x", Some("x@y.example,*@z.example")).senders;
        for (rule, sender, allowed) in [
            (&own, "<>", true),
            (&own, "<alice@b.EXAMPLE>", true),
            (&own, "<bob@b.example>", false),
            (&own, "<alice@c.example>", false),
            (&SenderRule::Own("alice".into()), "<alice@b.example>", false),
            (&listed, "<anybody@Z.example>", true),
            (&listed, "<x@y.example>", true),
            (&listed, "<z@y.example>", false),
        ] {
            assert_eq!(rule.allows(&path(sender)), allowed, "{sender}");
        }
    }
}
