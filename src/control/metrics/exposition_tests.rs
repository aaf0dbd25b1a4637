//! The page as a scraper reads it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::*;
use crate::control::metrics::Histogram;

fn sources() -> (Vec<Arc<WorkerMetrics>>, Metrics) {
    let workers: Vec<_> = (0..2).map(|_| Arc::new(WorkerMetrics::default())).collect();
    let status = Status::new(|| {
        let commit = Histogram::new(&[100, 1_000]);
        commit.observe(Duration::from_micros(170));
        SpoolFigures {
            commits: 1,
            segments_used: 3,
            commit: commit.figures(),
            ..Default::default()
        }
    });
    let sources = Sources {
        workers: workers.clone(),
        events: Arc::new(EventCounters::default()),
        status: Arc::new(status),
        lists: Arc::new(Lists::new(&[])),
    };
    (workers, Metrics::new(sources))
}

/// Sample lines without their values, and their values.
fn samples(page: &str) -> HashMap<&str, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let sample = |line| str::rsplit_once(line, ' ').unwrap();
    lines.map(sample).map(|(name, value)| (name, value.parse().unwrap())).collect()
}

#[test]
fn workers_are_added_up() {
    let (workers, metrics) = sources();
    workers[0].messages_accepted.count();
    workers[1].messages_accepted.add(2);
    workers[0].sessions_open.raise();
    workers[0].refused.count("relay_denied");
    workers[1].refused.count("syntax");
    workers[1].refused.count("relay_denied");
    workers[1].octets_accepted.add(10_240);
    workers[0].commit_wait.observe(Duration::from_micros(170));
    workers[1].commit_wait.observe(Duration::from_millis(2));
    let page = metrics.render().unwrap();
    let samples = samples(&page);
    for (name, value) in [
        ("mailrace_messages_accepted_total", 3.0),
        ("mailrace_accepted_bytes_total", 10_240.0),
        ("mailrace_sessions_open", 1.0),
        ("mailrace_refused_total{reason=\"relay_denied\"}", 2.0),
        ("mailrace_refused_total{reason=\"syntax\"}", 1.0),
        ("mailrace_accept_seconds_count", 2.0),
        ("mailrace_accept_seconds_sum", 0.00217),
        ("mailrace_accept_seconds_bucket{le=\"0.0001\"}", 0.0),
        ("mailrace_accept_seconds_bucket{le=\"0.00025\"}", 1.0),
        ("mailrace_accept_seconds_bucket{le=\"+Inf\"}", 2.0),
        ("mailrace_spool_commits_total", 1.0),
        ("mailrace_spool_commit_seconds_bucket{le=\"0.001\"}", 1.0),
        ("mailrace_spool_segments{state=\"used\"}", 3.0),
        ("mailrace_workers", 2.0),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name}\n{page}");
    }
}

#[test]
fn every_family_says_what_it_is() {
    let page = sources().1.render().unwrap();
    let described = |kind: &str| -> HashSet<&str> {
        let lines = page.lines().filter_map(|line| line.strip_prefix(kind));
        lines.map(|line| line.split(' ').next().unwrap()).collect()
    };
    let (help, kinds) = (described("# HELP "), described("# TYPE "));
    assert_eq!(help, kinds);
    assert!(page.ends_with("# EOF\n"));
    for sample in samples(&page).keys() {
        let name = sample.split('{').next().unwrap();
        let is_of = |family: &&str| {
            let suffix = name.strip_prefix(*family);
            suffix.is_some_and(|rest| {
                ["", "_total", "_info", "_sum", "_count", "_bucket"].contains(&rest)
            })
        };
        assert!(kinds.iter().any(is_of), "{sample}");
        assert!(name.starts_with("mailrace_"));
    }
}

#[test]
fn the_page_of_documentation_lists_every_metric() {
    let page = sources().1.render().unwrap();
    let documentation = include_str!("../../../docs/operations.md");
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (family, kind) = line.split_once(' ').unwrap();
        let name = match kind {
            "counter" => format!("`{family}_total`"),
            "info" => format!("`{family}_info`"),
            _ => format!("`{family}`"),
        };
        assert!(documentation.contains(&name), "docs/operations.md does not name {name}");
    }
}
