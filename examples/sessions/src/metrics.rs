//! What an instance counts, as Prometheus reads it.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use lockkit_db::Versioned as _;
use lockkit_db::cas::Table;
use sqlx::Postgres;

use crate::store::{Session, Store};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) requests: Counter,
    /// Answers that the service is not available.
    pub(crate) unavailable: Counter,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
    /// There, but older than what the client had seen.
    pub(crate) cache_too_old: Counter,
    pub(crate) database_reads: Counter,
    pub(crate) activity_noted: Counter,
    /// Rows.
    pub(crate) activity_written: Counter,
    /// Statements.
    pub(crate) batches: Counter,
    pub(crate) batches_failed: Counter,
    pub(crate) expired: Counter,
}

impl Counter {
    // Ordering: relaxed both times; the numbers are for people, and nothing else is read by them.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Store {
    /// All numbers of this instance.
    pub(crate) fn prometheus(&self) -> String {
        let metrics = &self.metrics;
        let sessions: &Table<Postgres> = Session::table();
        let conflicts = sessions.conflicts();
        let (connections, idle, waiting) = self.connections();
        let mut text = String::new();
        for (name, kind, value) in [
            ("requests_total", "counter", metrics.requests.get()),
            ("unavailable_total", "counter", metrics.unavailable.get()),
            ("update_tries_total", "counter", conflicts.tries),
            ("update_conflicts_total", "counter", conflicts.conflicts),
            ("update_escalated_total", "counter", conflicts.escalated),
            (
                "update_locked_first_total",
                "counter",
                conflicts.locked_first,
            ),
            ("cache_hits_total", "counter", metrics.cache_hits.get()),
            ("cache_misses_total", "counter", metrics.cache_misses.get()),
            (
                "cache_too_old_total",
                "counter",
                metrics.cache_too_old.get(),
            ),
            (
                "database_reads_total",
                "counter",
                metrics.database_reads.get(),
            ),
            (
                "activity_noted_total",
                "counter",
                metrics.activity_noted.get(),
            ),
            (
                "activity_written_total",
                "counter",
                metrics.activity_written.get(),
            ),
            ("activity_batches_total", "counter", metrics.batches.get()),
            (
                "batches_failed_total",
                "counter",
                metrics.batches_failed.get(),
            ),
            ("expired_total", "counter", metrics.expired.get()),
            ("connections", "gauge", connections.into()),
            ("connections_idle", "gauge", idle as u64),
            ("requests_waiting", "gauge", waiting as u64),
        ] {
            let _ = writeln!(
                text,
                "# TYPE sessions_{name} {kind}\nsessions_{name} {value}"
            );
        }
        text
    }
}

/// The number of that name in such a text.
pub(crate) fn number(text: &str, name: &str) -> u64 {
    let value = |line: &str| {
        line.strip_prefix("sessions_")?
            .strip_prefix(name)?
            .strip_prefix(' ')?
            .parse()
            .ok()
    };
    text.lines().find_map(value).unwrap_or_default()
}
