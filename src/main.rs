//! The `mailrace` command.
fn main() {}
