//! What the kernel says about this process.

use std::fs;

/// Resident memory in octets, or `None` where there is no `/proc`.
pub(super) fn resident_octets() -> Option<u64> {
    let pages = resident_pages(&fs::read_to_string("/proc/self/statm").ok()?)?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

/// The second number of `/proc/self/statm` (proc(5)).
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Open file descriptors, or `None` where there is no `/proc`.
pub(super) fn open_descriptors() -> Option<u64> {
    // The descriptor that reads the directory is among them.
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statm_as_the_kernel_writes_it() {
        assert_eq!(resident_pages("3153 961 892 53 0 113 0\n"), Some(961));
        for text in ["", "3153", "3153 x", "3153 -1"] {
            assert_eq!(resident_pages(text), None, "{text}");
        }
    }

    #[test]
    fn this_process_has_memory_and_descriptors() {
        assert!(resident_octets().unwrap() > 100_000);
        assert!(open_descriptors().unwrap() > 2);
    }
}
