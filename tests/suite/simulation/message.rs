//! A message as an attempt needs it, out of memory or off the disk.

use std::sync::Arc;

use mailrace::message::{Envelope, MessageId};
use mailrace::smtp::body::{BodyForm, Reshape};
use mailrace::spool::disk::Disk;
use mailrace::spool::{Kind, RecordPlace, RecordView, SegmentPin, StoredBody, StoredMessage};

use super::books::Key;
use super::worker::{Shared, Worker};

/// A message that was read back.
pub struct Loaded {
    pub stored: StoredMessage,
    pub envelope: Arc<Envelope>,
    pub inline: Vec<u8>,
    /// The segments of its chunks stay while it is at hand.
    _pins: Vec<SegmentPin>,
}

/// A message's recipients as the books name them.
pub fn keys(message: &Loaded, places: &[u16]) -> Vec<Key> {
    let address = |&place: &u16| {
        let address = message.envelope.recipients[usize::from(place)].path.as_str();
        if message.stored.trace.is_empty() {
            format!("{address}/{}", message.stored.id)
        } else {
            address.to_owned()
        }
    };
    places.iter().map(address).collect()
}

/// Loads a message for an attempt.
pub fn load(
    worker: &Worker,
    shared: &Shared,
    id: MessageId,
    place: RecordPlace,
) -> Result<Loaded, String> {
    let decode = |record: &[u8]| {
        let view = RecordView::parse(record).expect("it was parsed before");
        StoredMessage::decode(&view).map_err(|error| error.to_string())
    };
    let mut record = read(worker, shared, id, place, Kind::Message)?;
    let mut stored = decode(&record)?;
    let mut pins = pin_chunks(shared, &stored);
    if pins.is_none() {
        // What is in memory names chunks that have been moved since.
        record = read_from_disk(shared, id, place, Kind::Message)?;
        stored = decode(&record)?;
        pins = pin_chunks(shared, &stored);
    }
    let inline = RecordView::parse(&record).expect("it was parsed before").body().to_vec();
    let envelope = Arc::new(stored.envelope.clone());
    Ok(Loaded { inline, envelope, stored, _pins: pins.ok_or("its chunks were retired")? })
}

fn pin_chunks(shared: &Shared, stored: &StoredMessage) -> Option<Vec<SegmentPin>> {
    let StoredBody::Chunks(chunks) = &stored.body else { return Some(Vec::new()) };
    chunks.iter().map(|chunk| shared.table.pin(chunk.place.segment)).collect()
}

/// A record out of memory, or off the disk and verified.
pub fn read(
    worker: &Worker,
    shared: &Shared,
    id: MessageId,
    place: RecordPlace,
    kind: Kind,
) -> Result<Vec<u8>, String> {
    let in_memory = worker.in_memory(place).and_then(|batch| batch.record(place).map(Vec::from));
    match in_memory {
        Some(octets) => verified(octets, id, kind),
        None => read_from_disk(shared, id, place, kind),
    }
}

fn read_from_disk(
    shared: &Shared,
    id: MessageId,
    place: RecordPlace,
    kind: Kind,
) -> Result<Vec<u8>, String> {
    let place = match kind {
        Kind::Message => shared.table.place_of(id, place),
        _ => place,
    };
    let file = shared.table.file(place.segment).ok_or("its segment was retired")?;
    let mut octets = vec![0; place.length as usize];
    shared.disk.read(file, place.offset, &mut octets).map_err(|error| error.to_string())?;
    verified(octets, id, kind)
}

fn verified(octets: Vec<u8>, id: MessageId, kind: Kind) -> Result<Vec<u8>, String> {
    let view = RecordView::parse(&octets).map_err(|error| error.to_string())?;
    view.verify_body().map_err(|error| error.to_string())?;
    if view.id() != id || view.kind() != kind {
        return Err(format!("it is the {:?} of {}", view.kind(), view.id()));
    }
    Ok(octets)
}

/// Its size as BDAT sends it.
pub fn octets_unstuffed(message: &Loaded, shared: &Shared) -> Result<u64, String> {
    let summary = &message.stored.summary;
    let mut reshape = Reshape::new(summary.flags, BodyForm::Bdat);
    let trace = message.stored.trace.len() as u64;
    if reshape.is_identity() {
        return Ok(trace + summary.octets);
    }
    let mut octets = trace;
    let StoredBody::Chunks(chunks) = &message.stored.body else {
        return Ok(octets + reshape.slices(&message.inline).octets() as u64);
    };
    for chunk in chunks {
        let file = shared.table.file(chunk.place.segment).ok_or("its segment was retired")?;
        let mut record = vec![0; chunk.place.length as usize];
        let read = shared.disk.read(file, chunk.place.offset, &mut record);
        read.map_err(|error| error.to_string())?;
        let view = RecordView::parse(&record).map_err(|error| error.to_string())?;
        octets += reshape.slices(view.body()).octets() as u64;
    }
    Ok(octets)
}

impl Loaded {
    /// The beginning of the body without stuffed dots, for a notice, and whether that is all.
    pub fn beginning(&self, octets_max: usize) -> (Vec<u8>, bool) {
        let mut reshape = Reshape::new(self.stored.summary.flags, BodyForm::Bdat);
        let mut out = Vec::new();
        reshape.write(&self.inline, &mut out);
        // Of a body in chunks nothing is returned here: a notice may go without.
        let is_whole = matches!(self.stored.body, StoredBody::Inline) && out.len() <= octets_max;
        out.truncate(octets_max);
        (out, is_whole)
    }
}
