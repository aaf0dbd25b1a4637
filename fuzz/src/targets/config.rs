//! Configuration files: whatever the text, a verdict with lines that can be drawn.

use std::path::{Path, PathBuf};

use mailrace::config::{Config, Environment};

/// The input is the file.
pub fn run(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else { return };
    let environment = Environment {
        host_name: "build7".to_owned(),
        cores: 2,
        descriptors: 1_024,
        directory: PathBuf::from("/srv"),
        user_exists: |name| name == "mailrace",
    };
    match Config::parse(text, Path::new("mailrace.toml"), &environment) {
        Ok(checked) => {
            assert!(!checked.report.has_errors());
            let _ = checked.report.render(false);
            assert!(!checked.config.listeners.is_empty(), "nobody could send anything");
        }
        Err(report) => {
            assert!(report.has_errors(), "refused and nothing said");
            assert!(!report.render(true).is_empty() && !report.render(false).is_empty());
        }
    }
}
