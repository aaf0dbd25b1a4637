//! What we log in with at a smart host, and where its secret is kept.
//!
//! The configuration names the place; the secret itself is read anew for each login, so that a
//! password or a token that has changed needs no reload, and so that no configuration that is
//! printed can show one.

use std::path::{Path, PathBuf};

use super::authority::{self, AuthorityError};
use super::sasl::client::Credentials;

/// Who we are at a smart host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SmartHostLogin {
    /// The name of our account there.
    pub user: Box<str>,
    /// Where its secret is.
    pub secret: SecretPlace,
}

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretPlace {
    /// A password, all of a file but the newline at its end.
    PasswordFile(PathBuf),
    /// A password in a variable of the environment.
    PasswordVariable(Box<str>),
    /// An access token for OAUTHBEARER or XOAUTH2, which somebody else keeps fresh in a file.
    TokenFile(PathBuf),
}

impl SmartHostLogin {
    /// Reads the secret: a small file, so for the blocking pool.
    ///
    /// # Errors
    /// The file cannot be read, everybody else can read it, or there is nothing in it.
    pub fn credentials(&self) -> Result<Credentials, AuthorityError> {
        let (secret, is_token) = match &self.secret {
            SecretPlace::PasswordFile(path) => (from_file(path)?, false),
            SecretPlace::TokenFile(path) => (from_file(path)?, true),
            SecretPlace::PasswordVariable(name) => {
                let secret = std::env::var(&**name).ok().filter(|secret| !secret.is_empty());
                let name = name.clone();
                (secret.ok_or(AuthorityError::NoVariable { name })?.into(), false)
            }
        };
        Ok(Credentials { name: self.user.clone(), secret, is_token })
    }
}

fn from_file(path: &Path) -> Result<Box<str>, AuthorityError> {
    // A group may read it: so secrets are given to services that do not run as their owner.
    let text = authority::read(path, 0o007)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    match line.strip_suffix('\r').unwrap_or(line) {
        "" => Err(AuthorityError::Empty { path: path.to_owned() }),
        secret => Ok(secret.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn login(secret: SecretPlace) -> SmartHostLogin {
        SmartHostLogin { user: "u".into(), secret }
    }

    #[test]
    fn a_file_holds_the_secret_and_one_newline() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secret");
        for (text, secret) in [
            ("hunter2", Some("hunter2")),
            ("hunter2\n", Some("hunter2")),
            ("hunter2\r\n", Some("hunter2")),
            (" hunter 2 \n", Some(" hunter 2 ")),
            ("", None),
            ("\n", None),
        ] {
            write(&path, text).unwrap();
            set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
            let read = login(SecretPlace::PasswordFile(path.clone())).credentials();
            assert_eq!(read.ok().map(|read| read.secret), secret.map(Box::from), "{text:?}");
            let read = login(SecretPlace::TokenFile(path.clone())).credentials();
            assert_eq!(read.ok().map(|read| read.is_token), secret.map(|_| true));
        }
    }

    #[test]
    fn what_everybody_can_read_is_no_secret() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secret");
        write(&path, "hunter2").unwrap();
        set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let read = login(SecretPlace::PasswordFile(path)).credentials();
        let error = read.expect_err("it is refused").to_string();
        assert!(error.contains("chmod 600") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_variable_that_is_not_there_is_named() {
        let read = login(SecretPlace::PasswordVariable("MAILRACE_NO_SUCH".into())).credentials();
        assert!(read.expect_err("it is not there").to_string().contains("MAILRACE_NO_SUCH"));
    }
}
