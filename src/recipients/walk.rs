//! Ways through aliases: the proof that each ends, and the walk that an expansion is.
//!
//! [`check`] runs once, when the file is read, and refuses loops, targets that are nobody, and
//! lists of more members than a message can have.  [`Table::members`] may rely on it.  Neither
//! recurses: a chain is as long as the file's author likes.

use std::collections::HashSet;

use super::read::BadTable;
use super::table::{Entry, Expansion, Finding, Table, folded};
use crate::delivery::sites::routing_domain;
use crate::limits;
use crate::smtp::address::Mailbox;

/// How far the check has come with an expansion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    New,
    /// On the way that is being walked.
    Open,
    /// Everything behind it is well; so many members at most.
    Done(usize),
}

/// A step of the way that is being walked.
struct Visit {
    expansion: u32,
    /// Targets that were looked at.
    seen: usize,
    members: usize,
}

/// Refuses what no message could go through.
pub(super) fn check(table: &Table) -> Result<(), BadTable> {
    let mut marks = vec![Mark::New; table.expansions.len()];
    for start in 0..table.expansions.len() as u32 {
        if marks[start as usize] == Mark::New {
            walk(table, start, &mut marks)?;
        }
    }
    Ok(())
}

fn walk(table: &Table, start: u32, marks: &mut [Mark]) -> Result<(), BadTable> {
    let enter = |expansion: u32, marks: &mut [Mark]| {
        marks[expansion as usize] = Mark::Open;
        let own = table.expansions[expansion as usize].own.is_some();
        Visit { expansion, seen: 0, members: usize::from(own) }
    };
    let mut way = vec![enter(start, marks)];
    while let Some(visit) = way.last_mut() {
        let expansion = &table.expansions[visit.expansion as usize];
        if visit.members > limits::EXPANDED_RECIPIENTS {
            return Err(too_long(expansion));
        }
        let Some(target) = expansion.targets.get(visit.seen) else {
            let (done, members) = (visit.expansion, visit.members);
            marks[done as usize] = Mark::Done(members);
            way.pop();
            if let Some(before) = way.last_mut() {
                before.members = before.members.saturating_add(members);
            }
            continue;
        };
        visit.seen += 1;
        match table.entry(target) {
            Err(Finding::Unknown) => return Err(nobody(expansion, target)),
            Err(_) | Ok(Entry::Mailbox) => visit.members += 1,
            Ok(Entry::Expands(next)) => match marks[next as usize] {
                Mark::Done(members) => visit.members = visit.members.saturating_add(members),
                Mark::Open => return Err(a_loop(table, &way, next)),
                Mark::New => way.push(enter(next, marks)),
            },
        }
    }
    Ok(())
}

fn too_long(expansion: &Expansion) -> BadTable {
    let (name, most) = (&expansion.name, limits::EXPANDED_RECIPIENTS);
    let what = format!("`{name}` stands for more than {most} recipients; part it into several");
    BadTable { line: expansion.line, what: what.into() }
}

fn nobody(expansion: &Expansion, target: &Mailbox) -> BadTable {
    let name = &expansion.name;
    let what = format!(
        "`{name}` leads to `{target}`, and the file has no line for that; add one, or take it out"
    );
    BadTable { line: expansion.line, what: what.into() }
}

/// The loop, drawn from where it is entered to where it comes back.
fn a_loop(table: &Table, way: &[Visit], back_to: u32) -> BadTable {
    let begin = way.iter().position(|visit| visit.expansion == back_to).unwrap_or(0);
    let stops = way[begin..].iter().map(|visit| &table.expansions[visit.expansion as usize]);
    let mut drawn: String =
        stops.map(|stop| format!("{} (line {}) -> ", stop.name, stop.line)).collect();
    let first = &table.expansions[back_to as usize];
    drawn.push_str(&first.name);
    let what = format!("the aliases form a loop: {drawn}; take one of its steps out");
    BadTable { line: first.line, what: what.into() }
}

impl Table {
    /// Everybody whom mail for an expansion goes to in the end, each once, in the order of the
    /// file.
    pub fn members(&self, expansion: &Expansion) -> Vec<Mailbox> {
        let mut members = Vec::new();
        let mut seen = HashSet::new();
        // What is still to be looked at, the next one last.
        let mut ahead: Vec<&Mailbox> = expansion.targets.iter().rev().collect();
        let mut entered = HashSet::from([std::ptr::from_ref(expansion)]);
        let mut take = |mailbox: &Mailbox| {
            let local = folded(&mailbox.local_unquoted()).into_owned();
            if seen.insert((local, routing_domain(mailbox).into_owned())) {
                members.push(mailbox.clone());
            }
        };
        expansion.own.iter().for_each(&mut take);
        while let Some(target) = ahead.pop() {
            match self.find(target) {
                Finding::Expands(next) => {
                    if entered.insert(std::ptr::from_ref(next)) {
                        next.own.iter().for_each(&mut take);
                        ahead.extend(next.targets.iter().rev());
                    }
                }
                _ => take(target),
            }
        }
        members
    }
}
