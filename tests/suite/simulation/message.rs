//! A message as an attempt needs it, out of memory or off the disk; and how messages rot there.

use std::sync::Arc;

use mailrace::message::{Envelope, MessageId};
use mailrace::smtp::body::{BodyForm, Reshape};
use mailrace::spool::disk::Disk;
use mailrace::spool::{Kind, RecordPlace, RecordView, SegmentPin, StoredBody, StoredMessage};

use super::books::Key;
use super::plan::Rot;
use super::scene::Scene;
use super::worker::{Shared, Worker};

/// A message that was read back.
pub struct Loaded {
    pub stored: StoredMessage,
    pub envelope: Arc<Envelope>,
    pub inline: Vec<u8>,
    /// Only its envelope could be read.
    lacks_body: bool,
    /// The segments of its chunks stay while it is at hand.
    _pins: Vec<SegmentPin>,
}

/// Why a message was not read, in words.
#[derive(Debug)]
pub struct Unread(String);

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A message's recipients as the books name them.
pub fn keys(message: &Loaded, places: &[u16]) -> Vec<Key> {
    keys_of(&message.stored, &message.envelope, places)
}

fn keys_of(stored: &StoredMessage, envelope: &Envelope, places: &[u16]) -> Vec<Key> {
    let address = |&place: &u16| {
        let address = envelope.recipients[usize::from(place)].path.as_str();
        if stored.trace.is_empty() {
            format!("{address}/{}", stored.id)
        } else {
            address.to_owned()
        }
    };
    places.iter().map(address).collect()
}

/// Loads a message for an attempt; see `delivery::message`.
pub fn load(
    scene: &mut Scene,
    worker: &Worker,
    shared: &Shared,
    id: MessageId,
    place: RecordPlace,
) -> Result<Loaded, Unread> {
    let decode = |record: &[u8]| {
        let view = RecordView::parse(record).expect("it was parsed before");
        StoredMessage::decode(&view).map_err(|error| Unread(error.to_string()))
    };
    let mut record = read(scene, worker, shared, id, place, Kind::Message)?;
    let mut stored = decode(&record)?;
    let mut pins = pin_chunks(shared, &stored);
    if pins.is_none() {
        // What is in memory names chunks that have been moved since.
        record = read_from_disk(scene, shared, id, place, Kind::Message, true)?;
        stored = decode(&record)?;
        pins = pin_chunks(shared, &stored);
    }
    let inline = RecordView::parse(&record).expect("it was parsed before").body().to_vec();
    let envelope = Arc::new(stored.envelope.clone());
    let pins = pins.ok_or(Unread("its chunks were retired".into()))?;
    Ok(Loaded { inline, envelope, stored, lacks_body: false, _pins: pins })
}

/// Loads the envelope of a message that could not be loaded.
pub fn load_envelope(
    scene: &mut Scene,
    shared: &Shared,
    id: MessageId,
    place: RecordPlace,
) -> Result<Loaded, Unread> {
    let record = read_from_disk(scene, shared, id, place, Kind::Message, false)?;
    let view = RecordView::parse(&record).expect("it was parsed before");
    let stored = StoredMessage::decode(&view).map_err(|error| Unread(error.to_string()))?;
    let envelope = Arc::new(stored.envelope.clone());
    scene.happens("of a message the envelope alone can be read");
    Ok(Loaded { inline: Vec::new(), envelope, stored, lacks_body: true, _pins: Vec::new() })
}

fn pin_chunks(shared: &Shared, stored: &StoredMessage) -> Option<Vec<SegmentPin>> {
    let StoredBody::Chunks(chunks) = &stored.body else { return Some(Vec::new()) };
    chunks.iter().map(|chunk| shared.table.pin(chunk.place.segment)).collect()
}

/// A record out of memory, or off the disk and verified.
pub fn read(
    scene: &mut Scene,
    worker: &Worker,
    shared: &Shared,
    id: MessageId,
    place: RecordPlace,
    kind: Kind,
) -> Result<Vec<u8>, Unread> {
    let in_memory = worker.in_memory(place).and_then(|batch| batch.record(place).map(Vec::from));
    match in_memory {
        Some(octets) => verified(octets, id, kind, true),
        None => read_from_disk(scene, shared, id, place, kind, true),
    }
}

fn read_from_disk(
    scene: &mut Scene,
    shared: &Shared,
    id: MessageId,
    place: RecordPlace,
    kind: Kind,
    whole: bool,
) -> Result<Vec<u8>, Unread> {
    let place = match kind {
        Kind::Message => shared.table.place_of(id, place),
        _ => place,
    };
    let file = shared.table.file(place.segment);
    let file = file.ok_or(Unread("its segment was retired".into()))?;
    let mut octets = vec![0; place.length as usize];
    let read = shared.disk.read(file, place.offset, &mut octets);
    read.map_err(|error| Unread(error.to_string()))?;
    let verified = verified(octets, id, kind, whole);
    if verified.is_err() {
        scene.happens("a record cannot be read");
    }
    verified
}

fn verified(octets: Vec<u8>, id: MessageId, kind: Kind, whole: bool) -> Result<Vec<u8>, Unread> {
    let view = RecordView::parse(&octets).map_err(|error| Unread(error.to_string()))?;
    if whole {
        view.verify_body().map_err(|error| Unread(error.to_string()))?;
    }
    if view.id() != id || view.kind() != kind {
        return Err(Unread(format!("it is the {:?} of {}", view.kind(), view.id())));
    }
    Ok(octets)
}

/// Its size as BDAT sends it.
pub fn octets_unstuffed(
    scene: &mut Scene,
    message: &Loaded,
    shared: &Shared,
) -> Result<u64, Unread> {
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
    let id = message.stored.id;
    for chunk in chunks {
        let record = read_from_disk(scene, shared, id, chunk.place, Kind::Chunk, true)?;
        let view = RecordView::parse(&record).expect("it was parsed before");
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
        let is_inline = matches!(self.stored.body, StoredBody::Inline) && !self.lacks_body;
        let is_whole = is_inline && out.len() <= octets_max;
        out.truncate(octets_max);
        (out, is_whole)
    }
}

/// A message has come to the disk: there it may rot.
pub fn let_rot(shared: &Shared, scene: &mut Scene, place: RecordPlace) {
    let (Rot::Bodies(permil) | Rot::Heads(permil)) = scene.plan.rot else { return };
    let Some(file) = shared.table.file(place.segment).filter(|_| scene.trouble(permil)) else {
        return;
    };
    let contents = shared.disk.sim.contents(file);
    let from = place.offset as usize;
    let record = &contents[from..from + place.length as usize];
    let Ok(view) = RecordView::parse(record) else { return };
    let Ok(stored) = StoredMessage::decode(&view) else { return };
    // Notices have nobody who could miss them.
    if stored.trace.is_empty() {
        return;
    }
    let (head, body) = (view.head_length(), view.body_length());
    let offset = match scene.plan.rot {
        Rot::Bodies(_) if body == 0 => return,
        Rot::Bodies(_) => {
            let body_offset = view.body().as_ptr() as usize - record.as_ptr() as usize;
            body_offset + scene.random.usize(0..body)
        }
        _ => {
            let everybody: Vec<u16> = (0..stored.envelope.recipients.len() as u16).collect();
            let keys = keys_of(&stored, &stored.envelope, &everybody);
            scene.books.rots(&keys);
            scene.random.usize(0..head)
        }
    };
    scene.happens("a message rots");
    scene.trace(|| format!("{} rots at {offset}", stored.id));
    shared.disk.sim.flip_bit(file, from + offset, scene.random.u8(0..8));
}
