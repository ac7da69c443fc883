//! The claim of jobs in a table of your own, as it is: no schema of this crate, columns by a description.
//!
//! Use `queue` instead if the table may be this crate's: it is faster, and has workers, retries with
//! back-off and dead letters. This here is for a table that is there already, and that others write as well.
//!
//! # Two ways
//!
//! ```text
//!  JobTable, in one transaction            LeasedJobs, with columns for a lease
//!
//!        claim_in: the row is locked             claim: fence + 1, lease until
//!   ready ──────────────────────┐           ready ─────────────────────► running ───┐
//!     ▲  crash, rollback,       │             ▲                          │  │  ▲    │ lease over: claimed
//!     ├─ or nothing said ◄──────┤             │ retry, release           │  │  └────┘ again, fence + 1
//!     └─ retry_in ◄─────────────┤             └──────────────────────────┤  └─ extend: lease until later
//!                               │                                        │
//!        done_in, fail_in ──────┴──► done, failed       done, fail ──────┴──► done, failed
//! ```
//!
//! [`JobTable`] needs no more than a status. The claim is a lock of the row, and lasts as long as its
//! transaction: whatever ends that without a commit makes the job ready again. Effects in the same
//! database and the end of the job are committed together, so they happen once.
//!
//! [`LeasedJobs`] needs two more columns: until when the lease lasts, by the server's clock, and a number that
//! grows with each claim, the fence. The claim is committed at once; no transaction is open while the job is worked
//! on. Each later word about the job shows the fence, and is refused in its own statement once the
//! lease is over or somebody else has claimed: [`Settlement::Stale`], which is an answer and no error.
//!
//! # What is lost without a lease
//!
//! - **Nothing ends a claim but its session.** A worker that hangs, rather than dies, keeps its jobs until
//!   somebody closes its connection.
//! - **A transaction stays open during the work**, with its connection. On PostgreSQL it keeps the whole
//!   database from removing dead rows, and `idle_in_transaction_session_timeout` may end it. **On SQLite nobody else
//!   can write anything meanwhile**, so jobs are worked on one batch after the other.
//! - **Attempts of workers that die are not counted**, as that is undone with the rest. A job that kills its worker
//!   comes back for ever.
//! - **There is no fence to show elsewhere.** An effect outside of the database may happen again, and
//!   whoever receives it cannot tell the late from the new.
//! - **Nobody sees who works on what**: to all others the job is ready until the commit.
//!
//! # What the table must have
//!
//! - A key of one column, alone unique, that is never used again for another job: its fence would begin anew. The
//!   status as text, as an enum of PostgreSQL, or as an integer.
//! - A job is due when its time is not later than the server's clock. **A time that is NULL never comes**, and
//!   a lease that is NULL is never over: when you add the columns, give leases to the jobs that are running. A row
//!   whose key is NULL is left alone, and so is one whose fence is negative or the last that there is.
//! - With a lease, a count of attempts is worth its column: a job that kills its workers comes back after each
//!   lease, and only who sees the number can fail it.
//! - An index in the order of the claim, or each claim sorts all that is ready. The status stands in
//!   the statements as it is, so that a partial one serves:
//!
//! ```sql
//! CREATE INDEX ON jobs (priority, scheduled_at, id) WHERE status = 'pending';
//! CREATE INDEX ON jobs (lease_until, id) WHERE status = 'running';
//! ```
//!
//! # Replies that are lost
//!
//! - A claim with a lease: the jobs may be claimed for nobody. Claim again; they come back when their lease is over,
//!   with the next fence, and the attempt counts.
//! - A word: say the same again. Accepted is true whichever of the two was carried out, as long as the lease lasts for
//!   the second if the first was not.
//! - The COMMIT of a transaction: the job is done with all that was written beside it, or ready with none of that
//!   (with a lease: running until that ends). To run the whole again is safe: a job that is done is not claimed again,
//!   and [`LeasedJobs::done_in`] refuses one that is done.
//!
//! # Not promised
//!
//! - That it holds against others who change the status of a row without asking for its lock, or its fence. Those who
//!   claim by a `FOR UPDATE SKIP LOCKED` of their own may go on beside [`JobTable`].
//! - That a job is worked on once. A worker may die after the work and before it says so.
//! - On PostgreSQL, the order among those who claim at once: rows that are locked are skipped.

mod describe;
pub(crate) mod dialect;
mod held;
mod leased;
mod table;

pub use describe::{First, JobTableBuilder, States, StatusValue, Times};
pub use held::HeldJob;
pub use leased::{Claim, LeasedJob, LeasedJobs, Leasing};
pub use table::{JobKey, JobRow, JobTable};

/// What became of a word about a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a stale one has changed nothing"]
pub enum Settlement {
    /// It is so.
    Accepted,
    /// The job is not the caller's any more, and nothing was changed: the lease is over, somebody else
    /// has claimed or changed the job, or it is gone. What belongs to it is to be undone, or to be left
    /// to the next one.
    Stale,
}
