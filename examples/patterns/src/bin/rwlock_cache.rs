//! A cache under a read-write lock. Who misses a report at the same time shares one query, nobody waits for a query that
//! he does not need, and a query that was overtaken by a change does not bring the old report back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lockkit_core::{FlightError, SingleFlight};
use parking_lot::{Mutex, RwLock};
use patterns::until;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

const READERS: usize = 50;

/// Of a report, its version is enough here.
type Report = u64;

#[derive(Default)]
struct Cache {
    reports: RwLock<HashMap<u32, Report>>,
    flights: SingleFlight<u32, Report>,
    /// What is in the database, and how often it was asked. Answers come when the line is open.
    newest: Mutex<Report>,
    queries: Mutex<usize>,
    line: watch::Sender<bool>,
    /// How often the cache was asked.
    asked: Mutex<usize>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    patterns::no_options();
    for shared in [false, true] {
        let cache = Arc::new(Cache::default());
        cache.change(6);
        let mut readers = JoinSet::new();
        for _ in 0..READERS {
            readers.spawn(cache.clone().read(7, shared));
        }
        // All have asked before the first answer comes.
        let queries = if shared { 1 } else { READERS };
        until(|| *cache.asked.lock() == READERS).await?;
        until(|| *cache.queries.lock() >= queries).await?;
        let other = timeout(Duration::from_mins(1), cache.clone().read(6, shared));
        other.await.context("it waits for another query")??;
        // An old report is on its way.
        cache.change(7);
        cache.line.send_replace(true);
        while let Some(read) = readers.join_next().await {
            read??;
        }

        let kept = cache.clone().read(7, shared).await?;
        let (newest, queries) = (*cache.newest.lock(), *cache.queries.lock());
        let how = if shared { "with" } else { "without" };
        println!("{how} single flight: {READERS} miss one report, and {queries} queries are made;");
        println!("    it is changed meanwhile, to version {newest}, and version {kept} is kept");
        let right = queries == 1 && kept == newest;
        ensure!(right || !shared, "two queries, or the old one is back");
        ensure!(!right || shared, "this shows nothing");
    }
    Ok(())
}

impl Cache {
    async fn read(self: Arc<Self>, week: u32, shared: bool) -> Result<Report, FlightError> {
        *self.asked.lock() += 1;
        if let Some(found) = self.find(week) {
            return Ok(found);
        }
        if !shared {
            // What people write who do not think of each other.
            let found = self.query().await;
            self.reports.write().insert(week, found);
            return Ok(found);
        }
        let cache = Arc::clone(&self);
        let load = move || async move {
            // Since the look above, another flight may have ended.
            match cache.find(week) {
                Some(found) => found,
                None => cache.keep(week, cache.query().await),
            }
        };
        // Whoever of its callers is cancelled, the query goes on for the others.
        self.flights.run(week, load).await
    }

    /// The lock is held for a look, and never while something is awaited.
    fn find(&self, week: u32) -> Option<Report> {
        self.reports.read().get(&week).copied()
    }

    /// Keeps a report, or the one that is there and is newer.
    fn keep(&self, week: u32, report: Report) -> Report {
        let mut reports = self.reports.write();
        let kept = reports.entry(week).or_default();
        *kept = report.max(*kept);
        *kept
    }

    /// Changes a report, in the database and here.
    fn change(&self, week: u32) {
        let mut newest = self.newest.lock();
        *newest += 1;
        self.keep(week, *newest);
    }

    async fn query(&self) -> Report {
        let found = *self.newest.lock();
        *self.queries.lock() += 1;
        let _ = self.line.subscribe().wait_for(|open| *open).await;
        found
    }
}
