//! What is measured.

use std::fmt;
use std::time::Duration;

use crate::queue::JobId;

/// What was measured. A part that was not looked at is empty, and among the
/// [unchecked](super::Checkup::unchecked).
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Figures {
    /// The database's version.
    pub version: Option<String>,
    /// The last step of the tables' schema, and the last one that this version of the crate knows.
    pub schema: Option<(i64, i64)>,
    /// Whether the database is a standby.
    pub standby: bool,
    /// Settings that matter to the queue, as a connection has them that sets nothing itself.
    pub settings: Vec<Setting>,
    /// The plans of the statements that claim, settle and give back.
    pub plans: Vec<Plan>,
    /// The tables that are written to all the time.
    pub tables: Vec<TableFigures>,
    /// Who has a snapshot, or an open transaction; the oldest first, twenty at most.
    pub holders: Vec<Holder>,
    /// By how much this machine's clock is ahead of the store's.
    pub clock: Option<ClockOffset>,
    /// The sessions, and what they hold.
    pub leases: Leases,
    /// How full the server's queue of notifications is: 1.0 is full.
    pub notifications: Option<f64>,
    /// The queues that are paused.
    pub paused: Vec<PausedQueue>,
    /// The file of a SQLite store.
    pub file: Option<StoreFile>,
}

/// A setting of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// What it is.
    pub value: String,
}

/// How the database carries a statement out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The statement, by the name of its file.
    pub statement: &'static str,
    /// The plan as the database tells it. It shows the statement's conditions, never the values of parameters.
    pub text: String,
    /// What is wrong with it.
    pub problems: Vec<PlanProblem>,
}

/// A step of a plan that costs more with each job.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlanProblem {
    /// The step, as the database calls it.
    pub step: String,
}

/// A table in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableFigures {
    /// Its name.
    pub name: String,
    /// Its size in bytes, without indexes and what is stored apart.
    pub bytes: u64,
    /// The size of its indexes.
    pub index_bytes: u64,
    /// Its rows, by the server's estimate.
    pub live: u64,
    /// Versions of rows that nobody needs any more, by the server's estimate.
    pub dead: u64,
    /// How long ago it was vacuumed, if ever.
    pub vacuumed: Option<Duration>,
    /// Whether it is vacuumed by itself.
    pub autovacuum: bool,
}

/// Somebody who has a snapshot or an open transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Who.
    pub who: Who,
    /// For how long; unknown where the server keeps no time of it, or does not show it.
    pub since: Option<Duration>,
    /// For how long it has been doing nothing in its transaction.
    pub idle: Option<Duration>,
    /// How many transactions have begun since, if dead rows are kept for it.
    pub behind: Option<u64>,
}

/// Who holds something.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Who {
    /// A session of the database.
    Session {
        /// Its process number on the server.
        pid: i32,
        /// What it calls itself.
        application: String,
        /// Its user.
        user: String,
    },
    /// A standby that is connected.
    Standby {
        /// Its process number on the server.
        pid: i32,
        /// What it calls itself.
        application: String,
    },
    /// A prepared transaction.
    Prepared {
        /// Its name.
        name: String,
    },
    /// A replication slot.
    Slot {
        /// Its name.
        name: String,
        /// Whether it is in use.
        active: bool,
    },
}

/// By how much one clock is ahead of another: between these two, each in milliseconds and below zero when it is
/// behind. They are as far apart as the answer was on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClockOffset {
    /// At least so much.
    pub least_ms: i64,
    /// At most so much.
    pub most_ms: i64,
}

/// The sessions of a store, and what they hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leases {
    /// Sessions whose lease is not over.
    pub live: u64,
    /// Those whose lease is over and that were not ended yet, the oldest first, ten at most.
    pub over: Vec<OverLease>,
    /// Jobs that are claimed by sessions that have ended or are gone.
    pub orphans: u64,
    /// How long ago the oldest of them was claimed.
    pub oldest_orphan: Option<Duration>,
    /// The claims that living sessions have had for longest, ten at most.
    pub longest: Vec<HeldClaim>,
}

/// A session whose lease is over.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OverLease {
    /// Its number.
    pub session: i64,
    /// Its worker's name.
    pub worker: String,
    /// How long its lease was.
    pub lease: Duration,
    /// For how long it has been over.
    pub over: Duration,
    /// How many jobs it holds.
    pub jobs: u64,
}

/// A claim of a living session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldClaim {
    /// The job.
    pub job: JobId,
    /// Its queue.
    pub queue: String,
    /// Its kind.
    pub kind: String,
    /// Which attempt it is at.
    pub attempt: u32,
    /// The worker that has it.
    pub worker: String,
    /// The lease of the worker's session.
    pub lease: Duration,
    /// How long ago it was claimed.
    pub since: Duration,
}

/// A queue that is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PausedQueue {
    /// Its name.
    pub queue: String,
    /// How many jobs are ready in it, counted up to 10,001.
    pub ready: u64,
}

/// The file of a SQLite store, in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreFile {
    /// The size of a page in bytes.
    pub page_bytes: u64,
    /// Pages of the database.
    pub pages: u64,
    /// Of these, how many are free.
    pub free: u64,
    /// Pages in the write-ahead log.
    pub wal: u64,
    /// Of these, how many are not in the file yet.
    pub wal_pending: u64,
}

// === impl ClockOffset ===

impl ClockOffset {
    /// From two readings of this machine's clock in microseconds, one before a question was sent and one after its
    /// answer had come, and the other clock's answer in whole milliseconds.
    ///
    /// The other clock was read somewhere between, and stood anywhere within its millisecond.
    #[cfg(feature = "postgres")]
    pub(in crate::queue) fn measured(sent_us: i64, other_ms: i64, received_us: i64) -> Self {
        let least_us = sent_us - (other_ms + 1) * 1000;
        let most_us = received_us - other_ms * 1000;
        Self {
            least_ms: least_us.div_euclid(1000),
            most_ms: most_us.div_euclid(1000) + 1,
        }
    }

    /// How far apart the two clocks are for certain, in milliseconds.
    #[must_use]
    pub fn certain_ms(&self) -> u64 {
        if self.least_ms > 0 {
            self.least_ms.unsigned_abs()
        } else if self.most_ms < 0 {
            self.most_ms.unsigned_abs()
        } else {
            0
        }
    }

    /// How far apart its two ends are, in milliseconds.
    #[cfg(feature = "postgres")]
    pub(in crate::queue) fn width_ms(&self) -> u64 {
        self.most_ms.abs_diff(self.least_ms)
    }
}

impl fmt::Display for ClockOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (side, least, most) = if self.most_ms < 0 {
            ("behind", self.most_ms, self.least_ms)
        } else {
            ("ahead of", self.least_ms, self.most_ms)
        };
        let (least, most) = (least.unsigned_abs(), most.unsigned_abs());
        write!(f, "{least} to {most} ms {side}")
    }
}

// === impl Holder, PlanProblem ===

impl Holder {
    /// What to do about it.
    pub(super) fn remedy(&self) -> String {
        match &self.who {
            Who::Session { pid, .. } => format!(
                "see what that program does, and end it with `SELECT pg_terminate_backend({pid})` if it hangs"
            ),
            Who::Standby { .. } => {
                "end the long query on the standby, or turn its hot_standby_feedback off".to_owned()
            }
            Who::Prepared { .. } => "commit it, or roll it back".to_owned(),
            Who::Slot { .. } => "start its reader again, or drop the slot".to_owned(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Session {
                pid,
                application,
                user,
            } => write!(
                f,
                "session {pid} (application {application:?}, user {user:?})"
            )?,
            Who::Standby { pid, application } => write!(f, "standby {application:?} ({pid})")?,
            Who::Prepared { name } => write!(f, "the prepared transaction {name:?}")?,
            Who::Slot { name, active } => {
                let unused = if *active {
                    ""
                } else {
                    ", which is not in use,"
                };
                write!(f, "the replication slot {name:?}{unused}")?;
            }
        }
        if let Some(since) = self.since {
            write!(f, " has been open for {since:?}")?;
            f.write_str(if self.idle.is_some() {
                ", idle, and"
            } else {
                " and"
            })?;
        }
        Ok(())
    }
}

impl fmt::Display for PlanProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.step)
    }
}
