//! PLAIN (RFC 4616) and LOGIN: the password itself.

use super::{Claim, Failure, Step};
use crate::auth::prep::prepare;

pub(super) struct Plain;

#[derive(Default)]
pub(super) struct Login {
    asked: bool,
    name: Option<Box<str>>,
}

impl Plain {
    pub(super) fn respond(&mut self, response: Option<&[u8]>) -> Step {
        match response {
            None => Step::Challenge(Vec::new()),
            Some(response) => plain_claim(response),
        }
    }
}

/// `[authzid] NUL authcid NUL passwd`.
fn plain_claim(response: &[u8]) -> Step {
    let Ok(text) = std::str::from_utf8(response) else { return Step::Failed(Failure::Malformed) };
    let mut parts = text.split('\0');
    let (Some(acting), Some(name), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Step::Failed(Failure::Malformed);
    };
    // Nobody acts for somebody else here.
    if !acting.is_empty() && acting != name {
        return Step::Failed(Failure::Credentials);
    }
    claim(name, password)
}

fn claim(name: &str, password: &str) -> Step {
    match (prepare(name), prepare(password)) {
        (Some(name), Some(password)) => {
            Step::Verify(Claim::Password { name: name.into(), password: password.into() })
        }
        _ => Step::Failed(Failure::Credentials),
    }
}

impl Login {
    pub(super) fn respond(&mut self, response: Option<&[u8]>) -> Step {
        let Some(response) = response else {
            self.asked = true;
            return Step::Challenge(b"Username:".to_vec());
        };
        // Some clients answer the prompt that they did not wait for with an empty line.
        if response.is_empty() && !self.asked && self.name.is_none() {
            self.asked = true;
            return Step::Challenge(b"Username:".to_vec());
        }
        let Ok(text) = std::str::from_utf8(response) else {
            return Step::Failed(Failure::Malformed);
        };
        match self.name.take() {
            None => {
                self.name = Some(text.into());
                Step::Challenge(b"Password:".to_vec())
            }
            Some(name) => claim(&name, text),
        }
    }
}
