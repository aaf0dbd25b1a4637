//! The table of recipients: every address of the file, packed, and what stands behind it.
//!
//! Read once ([`super::read`]), never changed, asked for every recipient.  An address costs its
//! local part, five octets and a place in an open hash table of offsets; a million of them fit
//! some 25 MiB.  Look-ups fold case: of the domain because the DNS does, of the local part because
//! people do (only the final system may tell `Bob` from `bob`, and the file speaks for it).
//!
//! Invariant, which reading proves: no chain of aliases comes back to where it began, and every
//! target in a domain of the file leads to somebody.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::delivery::sites::routing_domain;
use crate::smtp::address::Mailbox;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Table {
    pub(super) domains: HashMap<Box<str>, Domain>,
    /// Each address as [`Address::pack`] has it, one behind the other.
    packed: Vec<u8>,
    /// Offsets into `packed`, each one more than it is; 0 is a free place.  The length is a power
    /// of two and greater than the number of addresses.
    places: Box<[u32]>,
    hasher: RandomState,
    addresses: usize,
    pub(super) expansions: Vec<Expansion>,
    pub(super) divider: Box<str>,
}

/// A domain that the file speaks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Domain {
    pub(super) index: u32,
    /// What becomes of who has no line.
    pub(super) others: Option<Entry>,
}

/// What an address stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// A mailbox.
    Mailbox,
    /// Others, by index.
    Expands(u32),
}

/// An alias, which has one target, or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expansion {
    /// Whom its mail goes to, as the file has them.
    pub targets: Box<[Mailbox]>,
    /// Its own mailbox, where the line names the address itself beside others.
    pub own: Option<Mailbox>,
    /// The address itself, as the file has it.
    pub(super) name: Box<str>,
    /// Its line in the file, from 1.
    pub(super) line: u32,
}

/// What the table says of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding<'table> {
    /// Nothing: the file has no line for its domain.
    NotJudged,
    /// Nobody is there.
    Unknown,
    /// Somebody is there.
    Mailbox,
    /// It is an alias or a list.
    Expands(&'table Expansion),
}

/// How much there is in a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Lines with an address of their own.
    pub addresses: usize,
    /// Aliases and lists among them, and among those for a whole domain.
    pub expansions: usize,
    /// Domains that the file speaks for.
    pub domains: usize,
    /// What all of it takes of memory, in octets; targets are counted roughly.
    pub octets: usize,
}

impl Table {
    /// What stands behind an address.
    ///
    /// The address itself counts before the one without its detail (`alice+shop` before `alice`),
    /// and both before what the file says of everybody else in the domain.  A postmaster is always
    /// there (RFC 5321 section 4.5.1).
    pub fn find(&self, mailbox: &Mailbox) -> Finding<'_> {
        self.entry(mailbox).map_or_else(
            |nobody| nobody,
            |entry| match entry {
                Entry::Mailbox => Finding::Mailbox,
                Entry::Expands(index) => Finding::Expands(&self.expansions[index as usize]),
            },
        )
    }

    /// The same by index; what there is no entry for is the error.
    pub(super) fn entry(&self, mailbox: &Mailbox) -> Result<Entry, Finding<'static>> {
        let Some(domain) = self.domains.get(&*routing_domain(mailbox)) else {
            return Err(Finding::NotJudged);
        };
        let unquoted = mailbox.local_unquoted();
        let local = folded(&unquoted);
        let whole = self.exact(domain.index, &local);
        let found = whole.or_else(|| self.exact(domain.index, self.without_detail(&local)?));
        match found.or(domain.others) {
            Some(entry) => Ok(entry),
            None if mailbox.is_postmaster() => Ok(Entry::Mailbox),
            None => Err(Finding::Unknown),
        }
    }

    /// Whether the file has lines for the domain (lower case, A-labels).
    pub fn speaks_for(&self, domain: &str) -> bool {
        self.domains.contains_key(domain)
    }

    /// The domains that the file speaks for, in their order.
    pub fn domains(&self) -> Vec<&str> {
        let mut domains: Vec<&str> = self.domains.keys().map(|domain| &**domain).collect();
        domains.sort_unstable();
        domains
    }

    /// All aliases and lists, in the order of the file.
    pub fn expansions(&self) -> &[Expansion] {
        &self.expansions
    }

    /// How much there is.
    pub fn figures(&self) -> Figures {
        let targets = self.expansions.iter().flat_map(Expansion::all);
        let octets = targets.map(|target| target.as_str().len() + size_of::<Mailbox>());
        Figures {
            addresses: self.addresses,
            expansions: self.expansions.len(),
            domains: self.domains.len(),
            octets: self.packed.capacity()
                + size_of_val(&*self.places)
                + size_of::<Expansion>() * self.expansions.capacity()
                + octets.sum::<usize>(),
        }
    }

    /// The part before the detail; `None` where there is no detail, or nothing before it.
    fn without_detail<'local>(&self, local: &'local str) -> Option<&'local str> {
        let at = local.find(&*self.divider).filter(|&at| at > 0 && !self.divider.is_empty())?;
        Some(&local[..at])
    }

    fn exact(&self, domain: u32, local: &str) -> Option<Entry> {
        let address = Address { domain, local };
        match self.place(address) {
            Some((_, 0)) | None => None,
            Some((_, offset)) => Some(Address::unpack(&self.packed, offset as usize - 1).1),
        }
    }

    /// The place of an address, and what stands in it; `None` in a table without places.
    fn place(&self, address: Address<'_>) -> Option<(usize, u32)> {
        let mask = self.places.len().checked_sub(1)?;
        let mut place = self.hasher.hash_one(address) as usize & mask;
        loop {
            let offset = self.places[place];
            if offset == 0 || Address::unpack(&self.packed, offset as usize - 1).0 == address {
                return Some((place, offset));
            }
            place = (place + 1) & mask;
        }
    }
}

impl Expansion {
    /// Whether it is a list: who is behind it is not known to who writes to it.
    pub fn is_list(&self) -> bool {
        self.all().count() > 1
    }

    /// Its line in the file, from 1.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// The targets, its own mailbox among them.
    pub fn all(&self) -> impl Iterator<Item = &Mailbox> {
        self.own.iter().chain(&self.targets)
    }
}

/// The local part as it is compared.
pub(super) fn folded(local: &str) -> Cow<'_, str> {
    if !local.is_ascii() {
        Cow::Owned(local.to_lowercase())
    } else if local.bytes().any(|octet| octet.is_ascii_uppercase()) {
        Cow::Owned(local.to_ascii_lowercase())
    } else {
        Cow::Borrowed(local)
    }
}

/// A mailbox, or an alias, as it is packed and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Address<'a> {
    pub(super) domain: u32,
    /// Folded and without quotes.
    pub(super) local: &'a str,
}

impl Address<'_> {
    /// The longest local part that can be packed, in octets: more than one that folding made
    /// longer.
    pub(super) const LOCAL_MAX: usize = 0x7f;
    /// Marks a length that an index of an expansion follows.
    const EXPANDS: u8 = 0x80;
    const HEAD: usize = 1 + 4;

    /// Length and mark, domain, local part, and for an alias the index of its expansion.
    fn pack(self, entry: Entry, packed: &mut Vec<u8>) {
        debug_assert!(self.local.len() <= Self::LOCAL_MAX);
        let length = self.local.len() as u8;
        let mark = if entry == Entry::Mailbox { 0 } else { Self::EXPANDS };
        packed.push(length | mark);
        packed.extend_from_slice(&self.domain.to_le_bytes());
        packed.extend_from_slice(self.local.as_bytes());
        if let Entry::Expands(index) = entry {
            packed.extend_from_slice(&index.to_le_bytes());
        }
    }

    /// What was packed at an offset.
    fn unpack(packed: &[u8], offset: usize) -> (Address<'_>, Entry) {
        let number = |at: usize| {
            let octets = packed[at..at + 4].try_into().expect("four octets");
            u32::from_le_bytes(octets)
        };
        let length = (packed[offset] & !Self::EXPANDS) as usize;
        let begin = offset + Self::HEAD;
        let local = str::from_utf8(&packed[begin..begin + length]).expect("packed from text");
        let entry = match packed[offset] & Self::EXPANDS {
            0 => Entry::Mailbox,
            _ => Entry::Expands(number(begin + length)),
        };
        (Address { domain: number(offset + 1), local }, entry)
    }
}

/// Makes the part of a table that is looked up by address.
#[derive(Debug)]
pub(super) struct Builder {
    pub(super) table: Table,
    /// The line of each address, in the order in which they were packed, to tell of duplicates.
    lines: Vec<(u32, u32)>,
}

impl Builder {
    /// An empty table with places for so many addresses.
    pub(super) fn new(addresses_max: usize, divider: &str) -> Builder {
        // Places are at most two thirds full, so that look-ups stay short.
        let places = (addresses_max + addresses_max / 2 + 1).next_power_of_two();
        let places = vec![0; places].into();
        let table = Table { places, divider: divider.into(), ..Table::default() };
        Builder { table, lines: Vec::new() }
    }

    /// The domain's index, which may be new.
    pub(super) fn domain(&mut self, name: &str) -> u32 {
        let next = self.table.domains.len() as u32;
        match self.table.domains.get(name) {
            Some(domain) => domain.index,
            None => {
                self.table.domains.insert(name.into(), Domain { index: next, others: None });
                next
            }
        }
    }

    /// Adds an address.
    ///
    /// # Errors
    /// The line that it stands in already.
    pub(super) fn add(&mut self, address: Address<'_>, entry: Entry, line: u32) -> Result<(), u32> {
        let (place, known) = self.table.place(address).expect("made with places");
        if known != 0 {
            let earlier = self.lines.binary_search_by_key(&known, |&(offset, _)| offset);
            return Err(earlier.map_or(line, |at| self.lines[at].1));
        }
        let offset = self.table.packed.len() as u32 + 1;
        address.pack(entry, &mut self.table.packed);
        self.table.places[place] = offset;
        self.table.addresses += 1;
        self.lines.push((offset, line));
        Ok(())
    }

    /// The table, without what only its making needed.
    pub(super) fn finish(mut self) -> Table {
        self.table.packed.shrink_to_fit();
        self.table.expansions.shrink_to_fit();
        self.table
    }
}
