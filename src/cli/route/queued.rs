//! What a running gateway has queued for the same place, asked over its admin socket.
//!
//! One count and one entry, the oldest message's: it says whether the place rests, until when, and
//! what was heard there last.  Nothing of it changes the verdict.

use std::path::Path;

use super::findings::{Queued, Waiting};
use crate::control::client::{AdminClient, ClientError};
use crate::control::port::Filter;

/// What waits for a domain or a site; `None` if no gateway runs on this data directory.
pub(super) fn queued(data_dir: &Path, place: &str) -> Option<Queued> {
    match ask(data_dir, place) {
        Ok(waiting) => Some(Queued::Known(Box::new(waiting))),
        Err(ClientError::NotRunning { .. }) => None,
        Err(error) => Some(Queued::Unknown { error: error.to_string() }),
    }
}

fn ask(data_dir: &Path, place: &str) -> Result<Waiting, ClientError> {
    let filter = Filter { site: Some(place.into()), ..Filter::default() };
    let client = AdminClient::new(data_dir)?;
    let count = client.count(filter.clone())?;
    let oldest = match count.messages {
        0 => None,
        _ => client.list(filter, None, 1)?.entries.into_iter().next(),
    };
    Ok(Waiting { place: place.to_owned(), messages: count.messages, oldest })
}
