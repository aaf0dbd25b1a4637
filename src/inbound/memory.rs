//! How much memory messages on their way in may take, and how a worker shares it out.
//!
//! Half is for receive buffers (commands and small bodies), half for the chunks of large bodies;
//! each worker has its own part.  Beyond it nothing is allocated: sessions stop reading, then
//! their messages are refused with 452.  What a process may use at all is asked of the system
//! once, at the start; without an answer the most that is any use is assumed.
//!
//! Not counted here, each with a bound of its own: batches and delivery (`spool`), the queue's
//! handles, events, the DNS cache, and some 3 KiB of each idle session.

use std::fs;
use std::path::{Path, PathBuf};

use crate::limits;

/// One worker's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// What all receive buffers may take, in octets.
    pub receive_octets: usize,
    /// Chunks of large bodies.
    pub chunks: usize,
}

impl Share {
    /// The part of one of `workers` that have `octets` together.
    pub fn of(octets: u64, workers: usize) -> Share {
        let each = usize::try_from(octets).unwrap_or(usize::MAX) / workers.max(1);
        Share {
            receive_octets: (each / 2).max(RECEIVE_LEAST),
            chunks: (each / 2 / limits::CHUNK).max(CHUNKS_LEAST),
        }
    }
}

/// What all workers have together where the operator did not say: a quarter of what the process
/// may use, and no more than they have a use for.
pub fn default_octets(workers: usize) -> u64 {
    let most = WORKER_MOST * workers as u64;
    host_octets().map_or(most, |octets| (octets / 4).min(most))
}

/// What the process may use: the machine's memory, or less where its control groups say so.
fn host_octets() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups).into_iter();
    let limits = limits.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    limits.chain(machine_octets(&meminfo)).min()
}

fn machine_octets(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Where the limits of a process may stand whose `/proc/self/cgroup` this is.  In a container its
/// own group is often the root of what it sees.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, name) = match controllers {
            "" => (Path::new("/sys/fs/cgroup"), "memory.max"),
            "memory" => (Path::new("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        // The limits of the groups around it hold as well.
        let path = Path::new(path.trim_start_matches('/'));
        files.extend(path.ancestors().map(|group| root.join(group).join(name)));
    }
    files
}

/// Some sessions must always be able to go on.
const RECEIVE_LEAST: usize = 2 << 20;
/// Two uploads with all that they may have in flight.
const CHUNKS_LEAST: usize = 2 * (limits::CHUNKS_IN_FLIGHT + 1);
/// What a worker has a use for: two thousand bodies of 32 KiB and 256 chunks.
const WORKER_MOST: u64 = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_evenly_and_never_get_nothing() {
        let share = Share::of(64 << 20, 2);
        assert_eq!(share, Share { receive_octets: 16 << 20, chunks: 64 });
        let least = Share { receive_octets: RECEIVE_LEAST, chunks: CHUNKS_LEAST };
        assert_eq!(Share::of(0, 2), least);
        assert_eq!(Share::of(1 << 20, 64), least);
        assert_eq!(Share::of(256 << 20, 2).chunks, 256);
    }

    #[test]
    fn limits_stand_where_the_kernel_puts_them() {
        let files = limit_files("5:cpu,cpuacct:/x\n4:memory:/a/b\n0::/c\n");
        let files: Vec<&str> = files.iter().map(|file| file.to_str().expect("ASCII")).collect();
        assert_eq!(
            files,
            [
                "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/c/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert!(limit_files("nonsense\n1:\n").is_empty());
        assert_eq!(machine_octets("MemTotal:       16 kB\nMemFree: 1 kB\n"), Some(16_384));
        assert_eq!(machine_octets("MemTotal: many\n"), None);
    }
}
