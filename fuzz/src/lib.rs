//! The fuzz targets of mailrace as a library; `fuzz_targets/` has a line for each, for libFuzzer.
//!
//! The targets are plain functions, which the tests of the gateway run too, over the seeds and a
//! bounded number of mutations: `tests/suite/fuzz.rs`.  `README.md` says how to run long.

#[allow(dead_code)]
#[path = "../../tests/suite/dialogue/mod.rs"]
mod dialogue;
pub mod targets;
