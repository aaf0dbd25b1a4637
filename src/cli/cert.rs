//! `mailrace cert self-signed`: a certificate for a first try, and the lines that use it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use jiff::Timestamp;

use super::{CertCommand, Failure};
use crate::tls::Fingerprint;
use crate::tls::self_signed::{self, pem};

/// Makes what was asked for and prints the lines that use it.
pub fn cert(command: &CertCommand) -> Result<(), Failure> {
    let CertCommand::SelfSigned(arguments) = command;
    let names: Vec<&str> = arguments.names.iter().map(String::as_str).collect();
    if let Some(bad) = names.iter().find(|name| !is_name(name)) {
        let words = format!("`{bad}` is no host name; expected one like mx1.example.com");
        return Err(Failure::Failed(words));
    }
    let made = self_signed::generate(&names, Timestamp::now());
    let made = made.map_err(|error| Failure::Failed(error.to_string()))?;
    let directory = std::path::absolute(&arguments.out).unwrap_or(arguments.out.clone());
    let stem = names[0].replace('*', "_");
    let (chain, key) =
        (directory.join(format!("{stem}.pem")), directory.join(format!("{stem}.key")));
    let written = fs::create_dir_all(&directory).and_then(|()| {
        write_new(&key, &pem("PRIVATE KEY", &made.key), 0o600)?;
        write_new(&chain, &pem("CERTIFICATE", &made.certificate), 0o644)
    });
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::Failed(format!(
            "{} or {} is there already; remove both, or give another --out",
            key.display(),
            chain.display()
        )),
        _ => Failure::Failed(format!("cannot write into {}: {error}", directory.display())),
    })?;
    let told = format!(
        "# {}\n[[tls.certificate]]\nchain = {:?}\nkey = {:?}\n\n\
         # and in a [[listener]]:\n# tls = \"starttls\"\n",
        Fingerprint::of(&made.certificate),
        chain.display().to_string(),
        key.display().to_string(),
    );
    io::stdout().write_all(told.as_bytes()).map_err(Failure::from)
}

/// A host name, with a star in front perhaps, or an address; nothing that could be a path.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '*' | ':' | '_');
    !name.is_empty() && name.len() <= 253 && !name.starts_with('.') && name.chars().all(allowed)
}

/// A file that was not there: what is in use is never overwritten by a try.
fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())
}
