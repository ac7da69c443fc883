//! The line before the pool of connections.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use lockkit_core::{OwnedPermit, Semaphore};
use lockkit_db::sqlx::{Database, Pool};
use serde::Serialize;

use super::refusal::Refusal;

/// Longest time in line. Whoever waits for longer is better told so.
const PATIENCE: Duration = Duration::from_mins(1);

/// Closes a pool, when it is awaited.
pub(crate) type Close = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A pool of connections, and the line before it: fair, bounded, and it can tell how many wait, which a pool of
/// sqlx's cannot.
pub(crate) struct Gate<DB: Database> {
    line: Arc<Semaphore>,
    pool: Pool<DB>,
}

/// `GET /api/pool-stats`.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct PoolStats {
    /// Open connections.
    pub(crate) total: u32,
    /// Those that nobody uses.
    pub(crate) idle: usize,
    /// Requests in line.
    pub(crate) waiting: usize,
}

impl<DB: Database> Gate<DB> {
    /// Lets so many in at once. The pool should have one connection more: with it the health is looked after,
    /// however long the line is.
    pub(crate) fn new(pool: Pool<DB>, at_once: u32) -> anyhow::Result<Self> {
        let line = Arc::new(Semaphore::new(at_once as usize)?);
        Ok(Self { line, pool })
    }

    /// Waits for a turn, which lasts as long as the permit. The pool then has a connection at once.
    pub(crate) async fn enter(&self) -> Result<(OwnedPermit, &Pool<DB>), Refusal> {
        let turn = self.line.acquire_timeout_owned(1, PATIENCE).await;
        let turn = turn.map_err(|error| Refusal::Busy(error.to_string()))?;
        Ok((turn, &self.pool))
    }

    pub(crate) fn pool(&self) -> &Pool<DB> {
        &self.pool
    }

    pub(crate) fn stats(&self) -> PoolStats {
        PoolStats {
            total: self.pool.size(),
            idle: self.pool.num_idle(),
            waiting: self.line.waiting(),
        }
    }

    /// Closes the pool, once this is awaited.
    pub(crate) fn close(&self) -> Close {
        let pool = self.pool.clone();
        Box::pin(async move { pool.close().await })
    }
}
