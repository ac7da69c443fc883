//! The floor: rusqlite with the statements of lockkit-db, and nothing around them.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rusqlite::{CachedStatement, Connection, ErrorCode, params};

use super::QUEUE;
use super::claimer::{LEASE, Lane, Settings};

macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!("../../../lockkit-db/sql/sqlite/", $name, ".sql"))
    };
}

pub(super) struct Bare {
    connection: Connection,
    session: i64,
    batch: usize,
    /// The number of the last batch of acknowledgements; the next claim's is one more.
    seq: i64,
}

/// The columns of a claimed job.
#[expect(dead_code, reason = "that they are fetched is the point")]
pub(super) struct Job {
    id: i64,
    epoch: i64,
    attempt: u32,
    max_attempts: u32,
    priority: i16,
    run_at: i64,
    claimed_at: i64,
    kind: String,
    payload: Vec<u8>,
}

impl Bare {
    /// Opens the file with the settings that lockkit-db and sqlx give their connections.
    pub(super) fn open(settings: &Settings) -> Result<Self> {
        let connection = Connection::open(&settings.file)?;
        connection.busy_timeout(Duration::from_millis(500))?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", settings.sync.name())?;
        let session = retried(|| {
            connection.query_row(
                sql!("session_open"),
                params!["bench", "localhost", LEASE.as_millis() as i64],
                |row| row.get(0),
            )
        })?;
        Ok(Self {
            connection,
            session,
            batch: settings.batch,
            seq: 0,
        })
    }

    fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }

    fn prepared(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.connection.prepare_cached(sql)
    }

    fn claim(&self) -> rusqlite::Result<Vec<Job>> {
        self.prepared(sql!("claim"))?
            .query_map(
                params![self.session, QUEUE, self.batch as i64, self.seq + 1],
                |row| {
                    Ok(Job {
                        id: row.get(0)?,
                        epoch: row.get(1)?,
                        attempt: row.get(2)?,
                        max_attempts: row.get(3)?,
                        priority: row.get(4)?,
                        run_at: row.get(5)?,
                        claimed_at: row.get(6)?,
                        kind: row.get(7)?,
                        payload: row.get(8)?,
                    })
                },
            )?
            .collect()
    }

    /// Returns the `(id, epoch)` that were accepted.
    fn acknowledge(&self, finished: &[Job]) -> Result<Vec<(i64, i64)>> {
        let (lives, last, _answer): (bool, i64, String) = self
            .prepared(sql!("session_last"))?
            .query_row(params![self.session], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        ensure!(lives, "the session has ended");
        ensure!(
            last + 1 == self.seq,
            "batch {last} was followed by {}",
            self.seq
        );
        let mut done = String::new();
        for job in finished {
            let before = if done.is_empty() { '[' } else { ',' };
            write!(done, "{before}[{},{}]", job.id, job.epoch)?;
        }
        done.push(']');
        let accepted = self
            .prepared(sql!("ack_done"))?
            .query_map(params![self.session, done], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let done = accepted.len() as i64;
        let (retried, dead, released, busy) = (0, 0, 0, 0);
        self.prepared(sql!("session_count"))?.execute(params![
            self.session,
            self.seq,
            "[]",
            done,
            retried,
            dead,
            released,
            busy
        ])?;
        Ok(accepted)
    }
}

impl Lane for Bare {
    type Job = Job;

    async fn exchange(&mut self, finished: Vec<Job>) -> Result<Vec<Job>> {
        if finished.is_empty() {
            return retried(|| self.claim());
        }
        self.seq += 1;
        retried(|| self.run("BEGIN IMMEDIATE"))?;
        let accepted = self.acknowledge(&finished)?;
        let claimed = self.claim()?;
        self.run("COMMIT")?;
        ensure!(
            accepted.len() == finished.len(),
            "an acknowledgement was refused"
        );
        Ok(claimed)
    }
}

/// Waits for a file that others have locked for longer than SQLite itself waits.
fn retried<T>(mut f: impl FnMut() -> rusqlite::Result<T>) -> Result<T> {
    loop {
        match f() {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
            result => return result.context("a statement failed"),
        }
    }
}
