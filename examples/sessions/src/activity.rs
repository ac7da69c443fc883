//! When each session was last used: noted in memory, and written in batches. A session that is read a hundred times a
//! second costs a share of four statements; and who loses a quarter of a second of notes loses nothing that matters,
//! since sessions expire after much longer.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::PgPool;
use tokio::time::{MissedTickBehavior, interval};

use crate::metrics::Metrics;

/// Between two batches.
const BATCH: Duration = Duration::from_millis(250);

/// Batches between two looks for idle sessions.
const LOOK_EVERY: u32 = 4;

/// What was used, and when it was last.
pub(crate) struct Activity {
    pool: PgPool,
    noted: Mutex<HashMap<String, Instant>>,
    metrics: Arc<Metrics>,
}

impl Activity {
    pub(crate) fn new(pool: PgPool, metrics: Arc<Metrics>) -> Self {
        let noted = Mutex::default();
        Self {
            pool,
            noted,
            metrics,
        }
    }

    /// A session is used now.
    pub(crate) fn note(&self, id: &str) {
        self.metrics.activity_noted.add(1);
        let now = Instant::now();
        let mut noted = self.noted.lock();
        match noted.get_mut(id) {
            Some(at) => *at = now,
            None => {
                noted.insert(id.to_owned(), now);
            }
        }
    }

    /// Writes batches, and ends sessions that were idle for so long, until it is dropped.
    ///
    /// While the database was away nobody's use was written. So an instance that could not write for a moment lets
    /// the whole time pass before it calls anybody idle.
    pub(crate) async fn keep(&self, idle: Duration) {
        let mut ticks = interval(BATCH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut well_since = Instant::now();
        for tick in 0_u32.. {
            ticks.tick().await;
            let written = match self.write().await {
                Ok(()) if tick.is_multiple_of(LOOK_EVERY) => self.expire(idle, well_since).await,
                written => written,
            };
            if written.is_err() {
                self.metrics.batches_failed.add(1);
                well_since = Instant::now();
            }
        }
    }

    /// Writes what was noted, in one statement. What could not be written is noted still.
    pub(crate) async fn write(&self) -> Result<(), sqlx::Error> {
        let noted = mem::take(&mut *self.noted.lock());
        if noted.is_empty() {
            return Ok(());
        }
        let (ids, times): (Vec<_>, Vec<_>) = noted.into_iter().unzip();
        let written = self.send(&ids, &times).await;
        if let Ok(rows) = &written {
            self.metrics.activity_written.add(*rows);
            self.metrics.batches.add(1);
        } else {
            let mut noted = self.noted.lock();
            for (id, at) in ids.into_iter().zip(times) {
                let newest = noted.entry(id).or_insert(at);
                *newest = at.max(*newest);
            }
        }
        written.map(drop)
    }

    /// Writes that one session is used now.
    pub(crate) async fn write_one(&self, id: &str) -> Result<(), sqlx::Error> {
        self.send(&[id.to_owned()], &[Instant::now()])
            .await
            .map(drop)
    }

    async fn send(&self, ids: &[String], times: &[Instant]) -> Result<u64, sqlx::Error> {
        let ages: Vec<_> = times
            .iter()
            .map(|at| at.elapsed().as_micros() as i64)
            .collect();
        let batch = sqlx::query(include_str!("../sql/activity.sql"));
        let done = batch.bind(ids).bind(ages).execute(&self.pool).await?;
        Ok(done.rows_affected())
    }

    async fn expire(&self, idle: Duration, well_since: Instant) -> Result<(), sqlx::Error> {
        let look = if well_since.elapsed() < idle {
            // To know how well it is.
            sqlx::query("SELECT")
        } else {
            sqlx::query(include_str!("../sql/expire.sql")).bind(idle.as_micros() as i64)
        };
        let ended = look.fetch_all(&self.pool).await?;
        self.metrics.expired.add(ended.len() as u64);
        Ok(())
    }
}
