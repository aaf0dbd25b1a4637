//! The metrics as text (OpenMetrics 1.0), added up over the workers when somebody asks.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{
    Counter, Gauge, Histogram, HistogramFigures, LabelledCounters, WorkerMetrics, process,
};
use crate::control::events::EventCounters;
use crate::control::status::{Phase, SpoolFigures, SpoolHealth, Status};
use crate::edge::lists::{Lists, Zone, board::Figures, health::State};

/// The content type of what [`Metrics::render`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics(Registry);

/// Where the figures come from.
pub struct Sources {
    /// Each worker's own.
    pub workers: Vec<Arc<WorkerMetrics>>,
    /// Those of the event log.
    pub events: Arc<EventCounters>,
    /// Where the process stands; it knows the spool's figures too.
    pub status: Arc<Status>,
    /// The lists of the edge filter.
    pub lists: Arc<Lists>,
}

impl Metrics {
    /// The metrics of these sources.
    pub fn new(sources: Sources) -> Metrics {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut registry = Registry::with_prefix("mailrace");
        registry.register_collector(Box::new(Everything {
            sources,
            started_seconds: started.as_secs_f64(),
        }));
        Metrics(registry)
    }

    /// Writes all of them.
    ///
    /// # Errors
    /// Our bug only: a string takes all text.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut page = String::with_capacity(16 * 1024);
        text::encode(&mut page, &self.0)?;
        Ok(page)
    }
}

struct Everything {
    sources: Sources,
    started_seconds: f64,
}

impl fmt::Debug for Everything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Everything").field("workers", &self.sources.workers.len()).finish()
    }
}

impl Collector for Everything {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.process(&mut page)?;
        self.intake(&mut page)?;
        self.edge(&mut page)?;
        self.queue(&mut page)?;
        self.delivery(&mut page)?;
        self.spool(&mut page)?;
        self.events(&mut page)
    }
}

impl Everything {
    fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.info("build", "This build of mailrace", &version)?;
        let seconds = Some(Unit::Seconds);
        let started = self.started_seconds;
        page.gauge_f64(
            "process_start_time",
            seconds,
            "When the process started, since 1970",
            started,
        )?;
        if let Some(octets) = process::resident_octets() {
            page.gauge("process_resident_memory", Some(Unit::Bytes), "Resident memory", octets)?;
        }
        if let Some(count) = process::open_descriptors() {
            page.gauge("process_open_fds", None, "Open file descriptors", count)?;
        }
        let workers = self.sources.workers.len() as u64;
        page.gauge("workers", None, "Worker threads", workers)?;
        let ready = u64::from(self.sources.status.readiness().is_ok());
        page.gauge("ready", None, "1 while mail is accepted, as in /ready", ready)?;
        let stopping = u64::from(self.sources.status.phase() == Phase::Stopping);
        page.gauge("stopping", None, "1 while the gateway drains before it ends", stopping)
    }

    fn intake(&self, page: &mut Page<'_>) -> fmt::Result {
        let opened = self.sum(|worker| &worker.sessions_opened);
        page.counter("sessions", None, "Sessions that began", opened)?;
        let open = self.level(|worker| &worker.sessions_open);
        page.gauge("sessions_open", None, "Sessions that there are", open)?;
        let errors = self.sum(|worker| &worker.accept_errors);
        page.counter("accept_errors", None, "Connections that could not be accepted", errors)?;
        let pauses = self.sum(|worker| &worker.accept_pauses);
        let help = "Times that a listener stopped accepting for a moment";
        page.counter("accept_pauses", None, help, pauses)?;
        let bytes = || Some(Unit::Bytes);
        let receive = self.level(|worker| &worker.receive_octets);
        let help = "Receive buffers and envelopes in use";
        page.gauge("receive_memory", bytes(), help, receive)?;
        let chunks = self.level(|worker| &worker.chunk_octets);
        page.gauge("chunk_memory", bytes(), "Chunks of large bodies in use", chunks)?;
        let paused = self.sum(|worker| &worker.reads_paused);
        let help = "Times that a session stopped reading because receive memory was used up";
        page.counter("reads_paused", None, help, paused)?;
        let delayed = self.sum(|worker| &worker.appends_delayed);
        let help = "Messages that waited for the disk to follow before they were written";
        page.counter("messages_delayed", None, help, delayed)?;
        let cut = self.sum(|worker| &worker.sessions_cut);
        let help = "Sessions cut off while others waited for what they held: memory, or a next hop";
        page.counter("sessions_cut", None, help, cut)?;
        let secured = self.sum(|worker| &worker.sessions_secured);
        page.counter("sessions_secured", None, "Sessions that TLS began in", secured)?;
        let failed = self.sum(|worker| &worker.handshakes_failed);
        page.counter("tls_handshakes_failed", None, "TLS handshakes that failed", failed)?;
        let succeeded = self.sum(|worker| &worker.logins);
        page.counter("logins", None, "AUTH commands that succeeded", succeeded)?;
        let failed = self.sum(|worker| &worker.logins_failed);
        page.counter("logins_failed", None, "AUTH commands that failed", failed)?;
        let refusals = self.by_label(|worker| &worker.refused);
        page.by_label("refused", "Refusals by reason", "reason", &refusals)?;
        let messages = self.sum(|worker| &worker.messages_accepted);
        page.counter("messages_accepted", None, "Messages that got their 250", messages)?;
        let octets = self.sum(|worker| &worker.octets_accepted);
        page.counter("accepted", Some(Unit::Bytes), "Octets of accepted messages", octets)?;
        let recipients = self.sum(|worker| &worker.recipients_accepted);
        page.counter("recipients_accepted", None, "Recipients of accepted messages", recipients)?;
        let passed = self.sum(|worker| &worker.messages_passed_on);
        let help = "Messages that went straight to a next hop, which has taken them";
        page.counter("messages_passed_on", None, help, passed)?;
        let lost = self.sum(|worker| &worker.next_hops_lost);
        let help = "Times that a next hop failed while a client waited for it";
        page.counter("next_hops_lost", None, help, lost)?;
        let calls = [
            ("answered", self.sum(|worker| &worker.calls_ahead)),
            ("failed", self.sum(|worker| &worker.calls_ahead_failed)),
        ];
        let help = "Questions to next hops about recipients by what came of them";
        page.by_label("calls_ahead", help, "outcome", &calls)?;
        let wait = self.histogram(|worker| &worker.commit_wait);
        page.histogram("accept", "From the end of a message's data to its 250", &wait)
    }

    fn edge(&self, page: &mut Page<'_>) -> fmt::Result {
        let verdicts = self.by_label(|worker| &worker.verdicts);
        page.by_label("verdicts", "Verdicts of the edge filter by action", "action", &verdicts)?;
        let findings = self.by_label(|worker| &worker.findings);
        let help = "Findings of the edge filter that counted, by check";
        page.by_label("findings", help, "check", &findings)?;
        let said = self.by_label(|worker| &worker.rspamd_verdicts);
        page.by_label("rspamd_verdicts", "What rspamd said of messages", "advice", &said)?;
        let failures = self.by_label(|worker| &worker.rspamd_failures);
        let help = "Messages that rspamd did not judge, by reason";
        page.by_label("rspamd_failures", help, "reason", &failures)?;
        let wait = self.histogram(|worker| &worker.rspamd_wait);
        page.histogram("rspamd", "From the end of a message's data to rspamd's word", &wait)?;
        let figures = || self.sources.lists.zones().iter().map(|zone| (zone, zone.board.figures()));
        let help = "1 while a DNS list counts, 0 while it is switched off";
        let is_on = |zone: &Zone| u64::from(zone.board.state() == State::On);
        page.of_lists("list_on", help, MetricType::Gauge, figures().map(|(z, _)| (z, is_on(z))))?;
        for (name, help, count) in LIST_COUNTS {
            let values = figures().map(|(zone, figures)| (zone, count(&figures)));
            page.of_lists(name, help, MetricType::Counter, values)?;
        }
        Ok(())
    }

    fn queue(&self, page: &mut Page<'_>) -> fmt::Result {
        let states = [
            ("ready", self.level(|worker| &worker.handles_ready)),
            ("active", self.level(|worker| &worker.handles_active)),
            ("deferred", self.level(|worker| &worker.handles_deferred)),
            ("held", self.level(|worker| &worker.handles_held)),
            ("quarantined", self.level(|worker| &worker.handles_quarantined)),
        ];
        let help = "Queue entries, one for each message and site, by state";
        page.gauges_by_label("queue_entries", help, "state", &states)
    }

    fn delivery(&self, page: &mut Page<'_>) -> fmt::Result {
        let attempts = self.sum(|worker| &worker.attempts);
        page.counter("attempts", None, "Attempts to deliver a message to a site", attempts)?;
        let delivered = self.sum(|worker| &worker.messages_delivered);
        let help = "Messages that a next hop took over, counted once a site";
        page.counter("messages_delivered", None, help, delivered)?;
        let outcomes = [
            ("delivered", self.sum(|worker| &worker.recipients_delivered)),
            ("deferred", self.sum(|worker| &worker.recipients_deferred)),
            ("bounced", self.sum(|worker| &worker.recipients_bounced)),
            ("expired", self.sum(|worker| &worker.recipients_expired)),
        ];
        page.by_label("recipients", "Recipients by what came of an attempt", "outcome", &outcomes)?;
        let delay = self.histogram(|worker| &worker.delivery_delay);
        page.histogram("delivery_delay", "From acceptance to delivery", &delay)?;
        let connections = [
            ("opened", self.sum(|worker| &worker.connections_opened)),
            ("failed", self.sum(|worker| &worker.connections_failed)),
            ("tls_failed", self.sum(|worker| &worker.tls_failed)),
            ("login_failed", self.sum(|worker| &worker.smart_host_logins_failed)),
        ];
        let help = "Connections to next hops by what came of them";
        page.by_label("connections", help, "outcome", &connections)?;
        let open = self.level(|worker| &worker.connections_open);
        page.gauge("connections_open", None, "Connections to next hops that there are", open)?;
        let delivery = self.level(|worker| &worker.delivery_octets);
        let help = "Buffers of connections to next hops in use";
        page.gauge("delivery_memory", Some(Unit::Bytes), help, delivery)?;
        let waiting = self.level(|worker| &worker.sites_waiting);
        let help = "Sites that wait because there are as many connections as there may be";
        page.gauge("sites_waiting", None, help, waiting)?;
        let cut = self.sum(|worker| &worker.connections_cut);
        let help = "Connections to next hops cut off for slowness while others waited for buffers";
        page.counter("connections_cut", None, help, cut)?;
        let late = self.sum(|worker| &worker.work_late);
        let help = "Reads of the log and work on files that took too long and were given up";
        page.counter("work_late", None, help, late)
    }

    fn spool(&self, page: &mut Page<'_>) -> fmt::Result {
        let SpoolFigures {
            commits,
            batches,
            records,
            written_octets,
            commit,
            commit_failures,
            rolls,
            retired,
            chore_failures,
            segments_used,
            segments_spare,
            segments_damaged,
            live_records,
            compactions,
            messages_moved,
            compacted_octets,
            reads,
            read_failures,
            health,
        } = self.sources.status.spool();
        page.histogram("spool_commit", "Writes of the log, each with its sync", &commit)?;
        let bytes = || Some(Unit::Bytes);
        for (name, unit, help, value) in [
            ("spool_commits", None, "Writes of the log that succeeded", commits),
            ("spool_batches", None, "Batches in those", batches),
            ("spool_records", None, "Records in those", records),
            ("spool_written", bytes(), "Octets written, padding included", written_octets),
            (
                "spool_commit_failures",
                None,
                "Writes or syncs that the disk refused",
                commit_failures,
            ),
            ("spool_segments_opened", None, "Segments begun", rolls),
            ("spool_segments_retired", None, "Segments emptied and freed", retired),
            (
                "spool_chore_failures",
                None,
                "Background work of the log that failed",
                chore_failures,
            ),
            ("spool_compactions", None, "Compactions of old segments", compactions),
            ("spool_messages_moved", None, "Messages that compactions wrote again", messages_moved),
            (
                "spool_compacted",
                bytes(),
                "Octets that compactions wrote, padding included",
                compacted_octets,
            ),
            ("spool_reads", None, "Reads of the log", reads),
            ("spool_read_failures", None, "Reads that failed or did not verify", read_failures),
        ] {
            page.counter(name, unit, help, value)?;
        }
        let segments =
            [("used", segments_used), ("spare", segments_spare), ("damaged", segments_damaged)];
        page.gauges_by_label("spool_segments", "Segments by state", "state", &segments)?;
        let help = "Records of messages that are not done";
        page.gauge("spool_live_records", None, help, live_records)?;
        let writable = u64::from(health == SpoolHealth::Good);
        page.gauge("spool_writable", None, "1 while the log takes messages", writable)
    }

    fn events(&self, page: &mut Page<'_>) -> fmt::Result {
        let events = self.sources.events.figures();
        for (name, help, value) in [
            ("events_written", "Events written", events.written),
            ("events_lost", "Events given up because they could not be written", events.lost),
            (
                "events_waits",
                "Times that a worker began to wait for the events' reader",
                events.waits,
            ),
            ("events_failures", "Writes of events that failed", events.failures),
        ] {
            page.counter(name, None, help, value)?;
        }
        let queued = events.queued_bytes;
        page.gauge("events_queued", Some(Unit::Bytes), "Octets that wait to be written", queued)
    }

    fn sum(&self, counter: impl Fn(&WorkerMetrics) -> &Counter) -> u64 {
        self.sources.workers.iter().map(|worker| counter(worker).value()).sum()
    }

    fn level(&self, gauge: impl Fn(&WorkerMetrics) -> &Gauge) -> u64 {
        self.sources.workers.iter().map(|worker| gauge(worker).value()).sum()
    }

    fn histogram(&self, histogram: impl Fn(&WorkerMetrics) -> &Histogram) -> HistogramFigures {
        let all = self.sources.workers.iter().map(|worker| histogram(worker).figures());
        all.fold(HistogramFigures::default(), HistogramFigures::add)
    }

    /// Counts of all workers, by label in alphabetical order.
    fn by_label(&self, counters: impl Fn(&WorkerMetrics) -> &LabelledCounters) -> Vec<(&str, u64)> {
        let mut sums = std::collections::BTreeMap::new();
        for worker in &self.sources.workers {
            for (label, count) in counters(worker).values() {
                *sums.entry(label).or_insert(0) += count;
            }
        }
        sums.into_iter().collect()
    }
}

/// A counter of each list: the metric, its help, the figure.
type ListCount = (&'static str, &'static str, fn(&Figures) -> u64);

const LIST_COUNTS: [ListCount; 4] = [
    ("list_asked", "Questions to a DNS list, from the cache or not", |f| f.asked),
    ("list_listed", "Answers of a DNS list that were listings", |f| f.listed),
    ("list_odd", "Answers of a DNS list that say nothing about a client", |f| f.odd),
    ("list_unanswered", "Questions to a DNS list that nobody answered", |f| f.unanswered),
];

/// The encoder with the few forms that we use.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn counter(&mut self, name: &str, unit: Option<Unit>, help: &str, value: u64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    fn gauge(&mut self, name: &str, unit: Option<Unit>, help: &str, value: u64) -> fmt::Result {
        // Gauges are signed there; none of ours comes near the end of the range.
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?.encode_gauge(&value)
    }

    fn gauge_f64(&mut self, name: &str, unit: Option<Unit>, help: &str, value: f64) -> fmt::Result {
        self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?.encode_gauge(&value)
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str); 1]) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
    }

    /// A value of each DNS list, by its zone and what its entries are.
    fn of_lists<'z>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        values: impl Iterator<Item = (&'z Zone, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (zone, value) in values {
            let labels = [("list", zone.name.as_str()), ("of", zone.kind.as_str())];
            let mut line = family.encode_family(&labels)?;
            match kind {
                MetricType::Gauge => {
                    line.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?
                }
                _ => line.encode_counter::<NoLabelSet, _, f64>(&value, None)?,
            }
        }
        Ok(())
    }

    fn by_label(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(&str, u64)],
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        values.iter().try_for_each(|(value, count)| {
            let labels = [(label, *value)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(count, None)
        })
    }

    fn gauges_by_label(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(&str, u64)],
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values.iter().try_for_each(|(value, level)| {
            let labels = [(label, *value)];
            let level = i64::try_from(*level).unwrap_or(i64::MAX);
            family.encode_family(&labels)?.encode_gauge(&level)
        })
    }

    /// A histogram of seconds.
    fn histogram(&mut self, name: &str, help: &str, figures: &HistogramFigures) -> fmt::Result {
        let seconds = |us: u64| us as f64 / 1e6;
        let ends = figures.bounds_us.iter().map(|&us| seconds(us)).chain([f64::MAX]);
        // One that has never been looked at has no counts yet.
        let counts = figures.counts.iter().copied().chain(std::iter::repeat(0));
        let buckets: Vec<(f64, u64)> = ends.zip(counts).collect();
        let count = figures.counts.iter().sum();
        self.0
            .encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(seconds(figures.sum_us), count, &buckets, None)
    }
}

#[cfg(test)]
#[path = "exposition_tests.rs"]
mod tests;
