//! Crashes of the real binary under load.

mod mount;
mod mount_tests;
mod volume;
