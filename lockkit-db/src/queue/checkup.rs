//! What a look at a job store finds: see [`JobStore::doctor`](super::JobStore::doctor).

mod figures;
mod judge;

use std::fmt;
use std::time::Duration;

pub use self::figures::{
    ClockOffset, Figures, HeldClaim, Holder, Leases, OverLease, PausedQueue, Plan, PlanProblem,
    Setting, StoreFile, TableFigures, Who,
};
pub(super) use self::judge::judge;

/// A job store's state of health: what is wrong, what could not be looked at, and what was measured.
///
/// Its text is a line for each finding and for each check that could not be made.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Checkup {
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// What was not looked at, and why.
    pub unchecked: Vec<Unchecked>,
    /// What was measured, whether anything is wrong with it or not.
    pub figures: Figures,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// It may be just as it is meant to be.
    Note,
    /// It slows the queue down, or delays jobs, or will do so.
    Warning,
    /// Jobs cannot be worked on, or what was committed can be lost.
    Danger,
}

/// Something that is wrong, with what was measured of it. Its text says what to do.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Finding {
    /// A statement of the queue walks over jobs, or sorts them: it gets slower with each job that waits.
    SlowPlan {
        /// The statement, by the name of its file.
        statement: &'static str,
        /// The step of its plan.
        problem: PlanProblem,
    },
    /// A table has many versions of rows that nobody needs any more, and no vacuum has taken them.
    DeadRows {
        /// Which table.
        table: TableFigures,
    },
    /// Nothing vacuums a table, or all of them.
    AutovacuumOff {
        /// Which table, or none: it is the server's setting.
        table: Option<String>,
    },
    /// A table, or the file, is mostly empty space.
    Bloated {
        /// The table, or the file.
        what: String,
        /// Its size in bytes.
        bytes: u64,
        /// How much of that is in use, at most.
        used: u64,
    },
    /// Somebody keeps dead rows from being removed: an old snapshot, or a transaction that does not end.
    HeldBack {
        /// Who, and for how long.
        holder: Holder,
    },
    /// Somebody has an open transaction and does nothing with it.
    IdleInTransaction {
        /// Who, and for how long.
        holder: Holder,
    },
    /// This process and the store do not agree about the time.
    ClockSkew {
        /// By how much, at the least and at the most.
        offset: ClockOffset,
    },
    /// The lease of a session is long over, and nobody has given its jobs back: no worker does the upkeep.
    LeaseOver {
        /// Which session.
        session: OverLease,
    },
    /// Jobs are claimed by sessions that are not there any more, and nobody has given them back.
    Orphans {
        /// How many jobs.
        jobs: u64,
        /// How long ago the oldest of them was claimed.
        oldest: Duration,
    },
    /// A session that lives has had a job for very long: its handler may never end.
    LongClaim {
        /// Which job.
        claim: HeldClaim,
    },
    /// Notifications pile up on the server, because somebody who listens does not read them.
    Notifications {
        /// How full their queue is: 1.0 is full.
        usage: f64,
    },
    /// A setting under which a crash of the server, or a power cut, may undo what was committed.
    LosesCommits {
        /// The setting.
        setting: Setting,
    },
    /// The database cannot be written to.
    ReadOnly {
        /// Whether that is because it is a standby; or else it is set so.
        standby: bool,
    },
    /// The tables are not those that this version of the crate has made.
    Schema {
        /// The number of their last step.
        found: i64,
        /// The last step that this version knows.
        known: i64,
    },
    /// A queue is paused and has jobs that wait.
    Paused {
        /// Which queue.
        queue: PausedQueue,
    },
    /// What was written to the write-ahead log of a SQLite file cannot go into the file: somebody is reading for long.
    WalHeldBack {
        /// The file.
        file: StoreFile,
    },
}

/// A check that was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unchecked {
    /// Which check.
    pub check: Check,
    /// Why not.
    pub why: Why,
}

/// What a look at a store looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Check {
    /// The plans of the queue's statements.
    Plans,
    /// The size of the tables, their dead rows, and their vacuum.
    Tables,
    /// Who keeps dead rows from being removed.
    Snapshots,
    /// Whether the clocks agree.
    Clock,
    /// The leases of sessions, and what they hold.
    Leases,
    /// The server's queue of notifications.
    Notifications,
    /// Settings, and the version of the tables.
    Settings,
    /// The queues that are paused.
    Queues,
    /// The file, and its log.
    File,
}

/// Why a check was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// There is no such thing in this store.
    NotApplicable(&'static str),
    /// The database does not show it to this user; or not all of it.
    NotVisible(String),
    /// There was no answer in time: somebody has locked what was to be looked at, or the database is overloaded.
    NoAnswer,
}

// === impl Checkup ===

impl Checkup {
    /// Of what was measured.
    pub(super) fn new(figures: Figures, unchecked: Vec<Unchecked>) -> Self {
        let mut findings = judge(&figures);
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity()));
        Self {
            findings,
            unchecked,
            figures,
        }
    }

    /// Whether nothing was found, and all was looked at that this store has.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let applies = |one: &Unchecked| !matches!(one.why, Why::NotApplicable(_));
        self.findings.is_empty() && !self.unchecked.iter().any(applies)
    }

    /// How bad the worst finding is, if there is one.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(Finding::severity).max()
    }
}

impl fmt::Display for Checkup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.findings.is_empty() {
            writeln!(f, "nothing was found")?;
        }
        for finding in &self.findings {
            writeln!(f, "{}: {finding}", finding.severity())?;
        }
        for one in &self.unchecked {
            writeln!(f, "unchecked: {one}")?;
        }
        Ok(())
    }
}

// === impl Finding ===

impl Finding {
    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::ReadOnly { .. } | Self::Schema { .. } => Severity::Danger,
            Self::Notifications { usage } if *usage >= 0.5 => Severity::Danger,
            Self::LosesCommits { setting } => match &*setting.name {
                "fsync" | "full_page_writes" => Severity::Danger,
                "synchronous_commit" => Severity::Warning,
                _ => Severity::Note,
            },
            Self::Bloated { .. } | Self::LongClaim { .. } | Self::Paused { .. } => Severity::Note,
            _ => Severity::Warning,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SlowPlan { statement, problem } => write!(
                f,
                "a step of the statement `{statement}` is `{problem}`, which takes longer with each job; see whether all indexes of lockkit_job are there \
                 and valid, and make those that are missing as the migrations do"
            ),
            Self::DeadRows { table } => write!(
                f,
                "{} has {} dead rows beside {} live ones; see who holds them back, and let autovacuum run, or run VACUUM",
                table.name, table.dead, table.live
            ),
            Self::AutovacuumOff { table: Some(table) } => write!(
                f,
                "autovacuum is off for {table}; type `ALTER TABLE {table} RESET (autovacuum_enabled)`"
            ),
            Self::AutovacuumOff { table: None } => {
                f.write_str("the server's autovacuum is off; turn `autovacuum` and `track_counts` on")
            }
            Self::Bloated { what, bytes, used } => write!(
                f,
                "{what} takes {bytes} bytes, of which {used} at most are in use; new jobs will fill it, or run VACUUM FULL \
                 when no worker runs"
            ),
            Self::HeldBack { holder } => {
                write!(f, "{holder} keeps dead rows from being removed; {}", holder.remedy())
            }
            Self::IdleInTransaction { holder } => {
                write!(f, "{holder} does nothing in an open transaction; {}", holder.remedy())
            }
            Self::ClockSkew { offset } => write!(
                f,
                "this machine's clock is {offset} the store's; have both follow one time server, or jobs that are \
                 scheduled at a time will come at another"
            ),
            Self::LeaseOver { session } => write!(
                f,
                "the lease of session {} of worker {:?} is over since {:?} and it still has {} jobs; start a worker, or \
                 call upkeep()",
                session.session, session.worker, session.over, session.jobs
            ),
            Self::Orphans { jobs, oldest } => write!(
                f,
                "{jobs} jobs are claimed by sessions that are gone, the oldest for {oldest:?}; start a worker, or call \
                 upkeep(), and see whether somebody keeps their rows locked"
            ),
            Self::LongClaim { claim } => write!(
                f,
                "worker {:?} has had job {} of kind {:?} for {:?}; see whether its handler ever ends, and cancel the job if not",
                claim.worker, claim.job, claim.kind, claim.since
            ),
            Self::Notifications { usage } => write!(
                f,
                "the server's queue of notifications is {:.1} % full; end the sessions that listen and stay in a \
                 transaction, or no transaction that notifies can commit",
                usage * 100.0
            ),
            Self::LosesCommits { setting } => write!(
                f,
                "with {} = {} a crash may undo what was committed, so that jobs are lost or run again; turn it on",
                setting.name, setting.value
            ),
            Self::ReadOnly { standby: true } => {
                f.write_str("the database is a standby and cannot be written to; connect to its primary")
            }
            Self::ReadOnly { standby: false } => f.write_str(
                "transactions are read-only unless they say otherwise; turn `default_transaction_read_only` off",
            ),
            Self::Schema { found, known } => write!(
                f,
                "the tables are at step {found} and this version knows step {known}; use one version of the crate"
            ),
            Self::Paused { queue } => write!(
                f,
                "queue {:?} is paused and {} jobs wait in it; resume() it when they shall run",
                queue.queue, queue.ready
            ),
            Self::WalHeldBack { file } => write!(
                f,
                "{} pages of the write-ahead log are not in the file yet; find the program that reads from it in a \
                 transaction that does not end",
                file.wal_pending
            ),
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Danger => "danger",
        })
    }
}

impl fmt::Display for Unchecked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let check = match self.check {
            Check::Plans => "plans",
            Check::Tables => "tables",
            Check::Snapshots => "snapshots",
            Check::Clock => "clock",
            Check::Leases => "leases",
            Check::Notifications => "notifications",
            Check::Settings => "settings",
            Check::Queues => "queues",
            Check::File => "file",
        };
        match &self.why {
            Why::NotApplicable(why) => write!(f, "{check}: {why}"),
            Why::NotVisible(what) => write!(f, "{check}: not visible: {what}"),
            Why::NoAnswer => write!(f, "{check}: no answer in time"),
        }
    }
}
