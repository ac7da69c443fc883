//! What a job is on its way in, in a worker's hands, and on its way out.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, SystemTime};

use lockkit_core::Fence;

use crate::{Cause, Error};

/// Most bytes of a payload or of a result.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Most jobs in one batch: of an enqueue, a claim or an acknowledgement.
pub const MAX_BATCH: usize = 10_000;
/// Most characters of a queue's, a worker's or a kind's name.
pub const MAX_NAME: usize = 64;
/// Most bytes of a job's unique key.
pub const MAX_UNIQUE: usize = 512;
/// Longest delay of a job.
pub const MAX_DELAY: Duration = Duration::from_hours(10 * 366 * 24);
/// Most bytes of all results in one batch of acknowledgements.
pub const MAX_BATCH_BYTES: usize = 64 << 20;
/// Most bytes of an error's text that are kept with a job.
pub(crate) const MAX_ERROR: usize = 8 * 1024;

/// A job's number, given at enqueue and never given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub i64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// When a job becomes claimable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schedule {
    /// At once.
    #[default]
    Now,
    /// After a delay, counted by the store's clock from the enqueue.
    After(Duration),
    /// At a time of the store's clock.
    At(SystemTime),
}

/// A job to enqueue.
///
/// ```
/// use std::time::Duration;
/// use lockkit_db::queue::NewJob;
///
/// let job = NewJob::new("resize", b"photo-17.jpg".to_vec())
///     .priority(-5)
///     .after(Duration::from_secs(60))
///     .max_attempts(3);
/// # let _ = job;
/// ```
#[derive(Debug, Clone)]
pub struct NewJob {
    pub(crate) kind: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) priority: i16,
    pub(crate) schedule: Schedule,
    pub(crate) max_attempts: u32,
    pub(crate) unique: Option<(String, OnDuplicate)>,
}

/// What becomes of a [unique](NewJob::unique) job whose key another one of the queue has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnDuplicate {
    /// It is not put in: what is queued stands for it.
    Skip,
    /// What is queued becomes what this one says, but for its id: kind, payload, priority, time, and
    /// attempts, of which none is used.
    Replace,
}

/// What became of a job that was put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Enqueued {
    /// It is in the queue.
    New(JobId),
    /// It is not: the job of this number has its key.
    Skipped(JobId),
    /// The job of this number had its key, and is now what this one says.
    Replaced(JobId),
}

impl Enqueued {
    /// The job that stands for what was to be put in.
    #[must_use]
    pub fn id(self) -> JobId {
        match self {
            Self::New(id) | Self::Skipped(id) | Self::Replaced(id) => id,
        }
    }
}

impl NewJob {
    /// A job of a kind with a payload: priority 0, at once, at most 10 attempts.
    #[must_use]
    pub fn new(kind: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            kind: kind.into(),
            payload: payload.into(),
            priority: 0,
            schedule: Schedule::Now,
            max_attempts: 10,
            unique: None,
        }
    }

    /// Lower numbers are claimed first.
    #[must_use]
    pub fn priority(mut self, priority: i16) -> Self {
        self.priority = priority;
        self
    }

    /// Claimable only after a delay.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.schedule = Schedule::After(delay);
        self
    }

    /// Claimable only from a time on.
    #[must_use]
    pub fn at(mut self, time: SystemTime) -> Self {
        self.schedule = Schedule::At(time);
        self
    }

    /// How many claims the job may cost before it is dead. A claim counts when it is made,
    /// so that a job that kills its worker ends too.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Gives it a key that one queued job of a queue can have at most: while it waits for its first
    /// attempt, and while it waits for another one after a failure.
    ///
    /// A job that runs does not stand for a new one, as it may have read already what the new one is about.
    /// So one is put in, and takes the key: if the one that runs fails, it comes back without a key, and both are
    /// there.
    ///
    /// ```
    /// use std::time::Duration;
    /// use lockkit_db::queue::{NewJob, OnDuplicate};
    ///
    /// // However often the document is changed, it is indexed once, a second after the last change.
    /// let job = NewJob::new("index", b"document 17".to_vec())
    ///     .after(Duration::from_secs(1))
    ///     .unique("index document 17", OnDuplicate::Replace);
    /// # let _ = job;
    /// ```
    #[must_use]
    pub fn unique(mut self, key: impl Into<String>, on_duplicate: OnDuplicate) -> Self {
        self.unique = Some((key.into(), on_duplicate));
        self
    }

    /// Its unique key.
    pub(crate) fn key(&self) -> Option<&str> {
        self.unique.as_ref().map(|(key, _)| &**key)
    }

    pub(crate) fn replaces(&self) -> bool {
        matches!(self.unique, Some((_, OnDuplicate::Replace)))
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        check_name("kind", &self.kind)?;
        self.key().map_or(Ok(()), check_unique)?;
        check_payload("payload", &self.payload)?;
        if self.max_attempts == 0 || self.max_attempts > i32::MAX as u32 {
            return Err(Error::invalid(
                "max_attempts",
                "must be from 1 to 2147483647",
            ));
        }
        match self.schedule {
            Schedule::After(delay) if delay > MAX_DELAY => Err(Error::invalid(
                "after",
                format!("must be at most {MAX_DELAY:?}"),
            )),
            Schedule::At(time) => unix_ms(time).map(drop),
            _ => Ok(()),
        }
    }
}

/// Whole milliseconds since 1970; times before that are 0.
pub(crate) fn unix_ms(time: SystemTime) -> Result<i64, Error> {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    // The same horizon as a delay's, seen from 1970, with two centuries added.
    let limit = Duration::from_hours(200 * 366 * 24);
    if since > limit {
        return Err(Error::invalid("at", "is too far in the future"));
    }
    Ok(since.as_millis() as i64)
}

pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::invalid(field, "is empty"));
    }
    if name.chars().count() > MAX_NAME {
        return Err(Error::invalid(
            field,
            format!("is longer than {MAX_NAME} characters"),
        ));
    }
    if name.contains('\0') {
        return Err(Error::invalid(field, "contains a NUL character"));
    }
    Ok(())
}

fn check_unique(key: &str) -> Result<(), Error> {
    let problem = if key.is_empty() {
        "is empty".to_owned()
    } else if key.len() > MAX_UNIQUE {
        format!("is longer than {MAX_UNIQUE} bytes")
    } else if key.contains('\0') {
        "contains a NUL character".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::invalid("unique", problem))
}

pub(crate) fn check_payload(field: &'static str, bytes: &[u8]) -> Result<(), Error> {
    if bytes.len() > MAX_PAYLOAD {
        return Err(Error::invalid(
            field,
            format!("is larger than {MAX_PAYLOAD} bytes"),
        ));
    }
    Ok(())
}

pub(crate) fn check_enqueue(queue: &str, jobs: &[NewJob]) -> Result<(), Error> {
    check_name("queue", queue)?;
    check_batch("jobs", jobs.len())?;
    let mut keys = HashSet::new();
    for job in jobs {
        job.check()?;
        if let Some(key) = job.key()
            && !keys.insert(key)
        {
            let problem = format!("{key:?} is the key of two jobs of one call");
            return Err(Error::invalid("unique", problem));
        }
    }
    Ok(())
}

pub(crate) fn check_ids(ids: &[JobId]) -> Result<(), Error> {
    check_batch("ids", ids.len())
}

pub(crate) fn check_batch(field: &'static str, n: usize) -> Result<(), Error> {
    if n == 0 || n > MAX_BATCH {
        return Err(Error::invalid(
            field,
            format!("must be from 1 to {MAX_BATCH}, not {n}"),
        ));
    }
    Ok(())
}

/// A job in the hands of the session that claimed it.
///
/// `(id, epoch)` is the right to write: the store accepts an [`Ack`] only while the job is
/// still claimed under both, by a session whose lease is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedJob {
    /// The job.
    pub id: JobId,
    /// The fencing token of this claim: larger than that of any earlier claim of the job.
    /// Hand it to whatever else the handler writes to.
    pub epoch: Fence,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The attempt after which the job is dead.
    pub max_attempts: u32,
    /// Its priority.
    pub priority: i16,
    /// How long the job was claimable before it was claimed, by the store's clock.
    pub waited: Duration,
    /// What kind of job it is.
    pub kind: String,
    /// What it is about.
    pub payload: Vec<u8>,
}

impl ClaimedJob {
    /// The error with which a handler ends whose job's payload is not what it takes, whatever the format: the job
    /// is dead at once.
    #[must_use]
    pub fn undecodable(&self, cause: impl Into<Cause>) -> Error {
        Error::Undecodable {
            job: self.id.0,
            kind: self.kind.clone(),
            source: cause.into(),
        }
    }
}

/// What is to become of a claimed job.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It is done. A result is kept in the list of completed jobs; without one the job
    /// leaves no trace but a count.
    Done {
        /// The result to keep.
        result: Option<Vec<u8>>,
    },
    /// It failed and is tried again after a delay, or is dead if this was its last attempt.
    Retry {
        /// How long it rests first.
        delay: Duration,
        /// Why it failed, with its causes.
        error: String,
    },
    /// It failed in a way that no further attempt can mend.
    Dead {
        /// Why, with its causes.
        error: String,
    },
    /// It was not begun: back it goes, and the attempt is not counted.
    Release,
    /// It is not its time yet: it comes back after a delay, and the attempt is not counted.
    Snooze {
        /// How long it rests.
        delay: Duration,
    },
    /// Nobody wants it any more: it leaves no trace but a count.
    Cancelled,
}

/// The end of one claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The job.
    pub id: JobId,
    /// The epoch under which it was claimed.
    pub epoch: Fence,
    /// What is to become of it.
    pub verdict: Verdict,
    /// How long it was worked on, for the worker's statistics.
    pub busy: Duration,
}

impl Ack {
    /// The end of `job` with a verdict.
    #[must_use]
    pub fn new(job: &ClaimedJob, verdict: Verdict) -> Self {
        Self {
            id: job.id,
            epoch: job.epoch,
            verdict,
            busy: Duration::ZERO,
        }
    }

    /// Done, without a result to keep.
    #[must_use]
    pub fn done(job: &ClaimedJob) -> Self {
        Self::new(job, Verdict::Done { result: None })
    }

    /// States how long the job was worked on.
    #[must_use]
    pub fn busy(mut self, busy: Duration) -> Self {
        self.busy = busy;
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.busy > MAX_DELAY {
            return Err(Error::invalid(
                "busy",
                format!("must be at most {MAX_DELAY:?}"),
            ));
        }
        match &self.verdict {
            Verdict::Done {
                result: Some(result),
            } => check_payload("result", result),
            Verdict::Retry { delay, .. } | Verdict::Snooze { delay } if *delay > MAX_DELAY => Err(
                Error::invalid("delay", format!("must be at most {MAX_DELAY:?}")),
            ),
            _ => Ok(()),
        }
    }
}

impl Verdict {
    /// How many bytes of a result it carries.
    #[must_use]
    pub fn result_bytes(&self) -> usize {
        match self {
            Self::Done {
                result: Some(result),
            } => result.len(),
            _ => 0,
        }
    }
}

/// The text of an error as it is kept with a job: cut to its limit, and without NUL characters, which not every
/// database can hold.
pub(crate) fn kept_error(error: &str) -> Cow<'_, str> {
    let cut = &error[..error.floor_char_boundary(MAX_ERROR)];
    if cut.contains('\0') {
        Cow::Owned(cut.replace('\0', " "))
    } else {
        Cow::Borrowed(cut)
    }
}

/// What the store said to an [`Ack`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// It is committed.
    Accepted,
    /// A transaction in which the job was acknowledged before is committed, so the job is done, and the verdict
    /// that was offered now is not needed. Told to all verdicts but [`Verdict::Done`], which says the same.
    Committed,
    /// It was refused and changed nothing: the claim had ended, because the lease was over
    /// or because the job had been claimed anew.
    Stale,
    /// Nobody can tell. No store says so, but a worker does: the answer to the batch was lost, and when it
    /// was sent again its session had ended, and with it the memory of what had been committed.
    Unknown,
}

/// The answer to a batch that is here again: of `n` acknowledgements all were accepted, but for those at `others`:
/// their places from 1, below zero if a transaction had settled the job.
pub(crate) fn repeat_answer(
    asked: usize,
    n: usize,
    others: &[i64],
) -> Result<Vec<Settlement>, Error> {
    if asked != n {
        let problem = format!("under this number {n} were sent before, and now {asked}");
        return Err(Error::invalid("acks", problem));
    }
    let mut settled = vec![Settlement::Accepted; n];
    for place in others {
        settled[place.unsigned_abs() as usize - 1] = match place {
            1.. => Settlement::Stale,
            _ => Settlement::Committed,
        };
    }
    Ok(settled)
}

pub(crate) fn seq_must_grow(last: u64) -> Error {
    Error::invalid(
        "seq",
        format!("must be larger than the last batch's, which was {last}"),
    )
}
