//! OAUTHBEARER (RFC 7628) and XOAUTH2: a token of somebody who knows the user.

use super::{Claim, Failure, Step};
use crate::auth::prep::prepare;

pub(super) struct Bearer {
    form: Form,
    refused: bool,
}

enum Form {
    /// `gs2-header, kvsep, *(key "=" value kvsep), kvsep`.
    Standard,
    /// The same without the header; the user is a pair of its own.
    Older,
}

/// What parts the pairs.
const SEPARATOR: char = '\u{1}';

impl Bearer {
    pub(super) fn standard() -> Bearer {
        Bearer { form: Form::Standard, refused: false }
    }

    pub(super) fn older() -> Bearer {
        Bearer { form: Form::Older, refused: false }
    }

    pub(super) fn respond(&mut self, response: Option<&[u8]>) -> Step {
        if self.refused {
            // Whatever it says to the error; it is a lone separator, or nothing.
            return Step::Failed(Failure::Credentials);
        }
        let Some(response) = response else { return Step::Challenge(Vec::new()) };
        let text = std::str::from_utf8(response).ok();
        let claim = text.and_then(|text| match self.form {
            Form::Standard => standard(text),
            Form::Older => older(text),
        });
        claim.map_or(Step::Failed(Failure::Malformed), Step::Verify)
    }

    /// The token is no good: the client is told in JSON before the exchange fails (section 3.2.2).
    pub(super) fn refused(&mut self) -> Step {
        self.refused = true;
        Step::Challenge(match self.form {
            Form::Standard => br#"{"status":"invalid_token"}"#.to_vec(),
            Form::Older => br#"{"status":"401","schemes":"bearer"}"#.to_vec(),
        })
    }
}

fn standard(text: &str) -> Option<Claim> {
    let (header, pairs) = text.split_once(SEPARATOR)?;
    let acting = header.strip_prefix("n,").or(header.strip_prefix("y,"))?.strip_suffix(',')?;
    let name = match acting {
        "" => None,
        _ => Some(super::scram::unescaped(acting.strip_prefix("a=")?)?),
    };
    let name = name.as_deref().map(prepare);
    token_of(pairs).and_then(|token| claim(name, token))
}

fn older(text: &str) -> Option<Claim> {
    let (user, pairs) = text.strip_prefix("user=")?.split_once(SEPARATOR)?;
    token_of(pairs).and_then(|token| claim(Some(prepare(user)), token))
}

fn claim(name: Option<Option<std::borrow::Cow<'_, str>>>, token: &str) -> Option<Claim> {
    let name = match name {
        None => None,
        Some(prepared) => Some(prepared?.into()),
    };
    Some(Claim::Token { name, token: token.into() })
}

/// The token in `auth=Bearer TOKEN` among the pairs, which end with two separators.
fn token_of(pairs: &str) -> Option<&str> {
    let pairs = pairs.strip_suffix(SEPARATOR)?.strip_suffix(SEPARATOR)?;
    let value = pairs.split(SEPARATOR).find_map(|pair| pair.strip_prefix("auth="))?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
}
