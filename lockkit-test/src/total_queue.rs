//! The total-queue checker: what went in came out, and nothing else did.
//!
//! Workers record three operations of a [`history`](crate::history), [`Op`]; at the end the test
//! drains or reads the store ([`End`]) and [`check`]s. Jobs are known by a number that the test
//! puts into the payload, because the store's own id of a job is lost with the answer of its
//! enqueue.
//!
//! Only what can be proved is a fault, so that a fault is always one of the system under test:
//! - an enqueue of unknown outcome may have happened, and so may an acknowledgement;
//! - a worker killed between a claim and the start of its run leaves an attempt that nobody saw;
//! - a job may run twice, since its worker may be gone, but it may not be *completed* twice.
//!
//! Such runs and attempts are counted and bounded by the caller ([`Allowed`]), who knows how often
//! it killed or paused a worker. The stale acknowledgements are counted as well: a run in which
//! none was offered has not tested that they are refused.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::history::{Operation, Outcome, Time};

/// What a process does with a job, to be recorded with its [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Put it in. `Done` is an acknowledged enqueue.
    Enqueue {
        /// The test's number of the job.
        job: u64,
    },
    /// Work on it. Its invocation is the fact that it started; its outcome is not looked at.
    Run {
        /// The test's number of the job.
        job: u64,
        /// The fence of the claim.
        epoch: u64,
        /// Which attempt the store says it is, counted from 1.
        attempt: Option<u32>,
    },
    /// Report the end of a run. `Done` is accepted, `Busy` refused as stale.
    Ack {
        /// The test's number of the job.
        job: u64,
        /// The fence of the claim.
        epoch: u64,
        /// What is reported.
        verdict: Verdict,
    },
}

/// What a worker reports of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The job is done, once and for all.
    Complete,
    /// The run failed; the store tries again or gives the job up.
    Fail,
}

/// What the store holds when all workers have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Jobs that are waiting, scheduled or claimed.
    pub live: BTreeSet<u64>,
    /// Dead letters.
    pub dead: BTreeSet<u64>,
}

/// How much of what is no fault in itself the caller puts up with; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Allowed {
    /// Runs beyond the first and those that followed an accepted failure: at most one for each job
    /// in the hands of a worker that was killed, paused or cut off.
    pub duplicate_runs: usize,
    /// Attempts counted by the store that no worker started: at most one for each job claimed, and
    /// not started, by a worker that was killed or whose answer was lost.
    pub unseen_attempts: usize,
}

/// A class of proven faults of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fault {
    /// Its enqueue was acknowledged, and it was neither completed, nor is it dead or live.
    Lost,
    /// It ran, was completed, or is in the store, but no enqueue can have put it in.
    OutOfNowhere,
    /// Two of its completions were accepted.
    AcceptedTwice,
    /// A completion was accepted, and the job is still, or again, in the store.
    Resurrected,
    /// An acknowledgement was accepted that was sent after a newer claim of the job had started.
    StaleAccepted,
    /// Two claims, or two accepted acknowledgements, have the same epoch.
    EpochReused,
    /// A later attempt has a smaller epoch.
    EpochsDisordered,
    /// Two runs are the same attempt, or one is attempt 0.
    AttemptRepeated,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lost => "lost",
            Self::OutOfNowhere => "out of nowhere",
            Self::AcceptedTwice => "accepted twice",
            Self::Resurrected => "resurrected",
            Self::StaleAccepted => "stale accepted",
            Self::EpochReused => "epoch reused",
            Self::EpochsDisordered => "epochs disordered",
            Self::AttemptRepeated => "attempt repeated",
        })
    }
}

/// The judgement of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Jobs whose enqueue was acknowledged.
    pub enqueued: usize,
    /// Jobs whose enqueue ended unknown, and that turned up.
    pub recovered: usize,
    /// Jobs of which a completion was accepted.
    pub accepted: usize,
    /// Jobs that are gone and of which a completion ended unknown: it was accepted, then.
    pub presumed: usize,
    /// Jobs that are dead letters at the end.
    pub dead: usize,
    /// Jobs that are live at the end.
    pub live: usize,
    /// Runs started.
    pub runs: usize,
    /// Of these, the ones for which [`Allowed::duplicate_runs`] is the bound.
    pub duplicate_runs: usize,
    /// Gaps in the attempts of jobs, for which [`Allowed::unseen_attempts`] is the bound.
    pub unseen_attempts: usize,
    /// Acknowledgements that were refused as stale, or were stale for certain.
    pub stale_offered: usize,
    /// Acknowledgements that were refused as stale.
    pub stale_refused: usize,
    /// What the caller put up with.
    pub allowed: Allowed,
    /// The proven faults and their jobs.
    pub faults: BTreeMap<Fault, BTreeSet<u64>>,
}

impl Report {
    /// No fault, and no more duplicates and gaps than allowed.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.faults.is_empty()
            && self.duplicate_runs <= self.allowed.duplicate_runs
            && self.unseen_attempts <= self.allowed.unseen_attempts
    }

    /// The jobs with this fault.
    pub fn jobs_with(&self, fault: Fault) -> impl Iterator<Item = u64> {
        self.faults.get(&fault).into_iter().flatten().copied()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "jobs        enqueued {}, recovered {}, accepted {}, presumed {}, dead {}, live {}",
            self.enqueued, self.recovered, self.accepted, self.presumed, self.dead, self.live
        )?;
        writeln!(
            f,
            "runs        started {}, duplicate {} (allowed {}), unseen {} (allowed {})",
            self.runs,
            self.duplicate_runs,
            self.allowed.duplicate_runs,
            self.unseen_attempts,
            self.allowed.unseen_attempts
        )?;
        writeln!(
            f,
            "stale acks  offered {}, refused {}",
            self.stale_offered, self.stale_refused
        )?;
        for (fault, jobs) in &self.faults {
            const SHOWN: usize = 8;
            write!(f, "FAULT       {fault} {}: job", jobs.len())?;
            for job in jobs.iter().take(SHOWN) {
                write!(f, " {job}")?;
            }
            writeln!(f, "{}", if jobs.len() > SHOWN { " …" } else { "" })?;
        }
        write!(
            f,
            "verdict     {}",
            if self.is_ok() { "ok" } else { "NOT OK" }
        )
    }
}

/// Judges the operations of all processes against what is left in the store.
///
/// Quadratic in the claims of one job, `n log n` in the number of jobs.
///
/// # Examples
///
/// ```
/// use lockkit_test::history::{Outcome, ProcessId, Recorder};
/// use lockkit_test::total_queue::{self, Allowed, End, Fault, Op, Verdict};
///
/// let recorder = Recorder::new();
/// let (client, worker) = (ProcessId::worker(0), ProcessId::worker(1));
/// for job in [1, 2] {
///     recorder.complete(recorder.invoke(client, Op::Enqueue { job }), Outcome::Done(()));
/// }
/// let run = recorder.invoke(worker, Op::Run { job: 1, epoch: 7, attempt: Some(1) });
/// recorder.complete(run, Outcome::Done(()));
/// let ack = Op::Ack { job: 1, epoch: 7, verdict: Verdict::Complete };
/// recorder.complete(recorder.invoke(worker, ack), Outcome::Done(()));
///
/// let operations = recorder.history().operations()?;
/// let report = total_queue::check(&operations, &End::default(), Allowed::default());
/// assert!(!report.is_ok(), "{report}");
/// assert!(report.jobs_with(Fault::Lost).eq([2]));
/// # Ok::<(), lockkit_test::history::IllFormed>(())
/// ```
#[must_use]
pub fn check<'a>(
    operations: impl IntoIterator<Item = &'a Operation<Op, ()>>,
    end: &End,
    allowed: Allowed,
) -> Report {
    let mut jobs: BTreeMap<u64, Job> = BTreeMap::new();
    for operation in operations {
        match operation.op {
            Op::Enqueue { job } => jobs
                .entry(job)
                .or_default()
                .enqueues
                .push(operation.outcome),
            Op::Run {
                job,
                epoch,
                attempt,
            } => jobs.entry(job).or_default().runs.push(Run {
                epoch,
                attempt,
                at: operation.invoked,
            }),
            Op::Ack {
                job,
                epoch,
                verdict,
            } => jobs.entry(job).or_default().acks.push(Ack {
                epoch,
                verdict,
                sent: operation.invoked,
                outcome: operation.outcome,
            }),
        }
    }
    for &job in end.live.iter().chain(&end.dead) {
        jobs.entry(job).or_default().in_store = true;
    }

    let mut report = Report {
        enqueued: 0,
        recovered: 0,
        accepted: 0,
        presumed: 0,
        dead: end.dead.len(),
        live: end.live.len(),
        runs: 0,
        duplicate_runs: 0,
        unseen_attempts: 0,
        stale_offered: 0,
        stale_refused: 0,
        allowed,
        faults: BTreeMap::new(),
    };
    for (number, job) in &jobs {
        job.count(&mut report);
        for fault in job.faults() {
            report.faults.entry(fault).or_default().insert(*number);
        }
    }
    report
}

/// All that is known of one job.
#[derive(Default)]
struct Job {
    enqueues: Vec<Outcome<()>>,
    runs: Vec<Run>,
    acks: Vec<Ack>,
    in_store: bool,
}

struct Run {
    epoch: u64,
    attempt: Option<u32>,
    at: Time,
}

struct Ack {
    epoch: u64,
    verdict: Verdict,
    sent: Time,
    outcome: Outcome<()>,
}

impl Job {
    fn enqueued(&self) -> bool {
        self.enqueues.contains(&Outcome::Done(()))
    }

    fn perhaps_enqueued(&self) -> bool {
        self.enqueues.contains(&Outcome::Unknown)
    }

    /// Acknowledgements of this verdict that ended so.
    fn acks(&self, verdict: Verdict, outcome: Outcome<()>) -> usize {
        self.acks
            .iter()
            .filter(|ack| ack.verdict == verdict && ack.outcome == outcome)
            .count()
    }

    fn completions(&self) -> usize {
        self.acks(Verdict::Complete, Outcome::Done(()))
    }

    fn perhaps_completed(&self) -> bool {
        self.acks(Verdict::Complete, Outcome::Unknown) > 0
    }

    fn turned_up(&self) -> bool {
        self.in_store || !self.runs.is_empty() || self.acks.iter().any(Ack::accepted)
    }

    /// A newer claim had begun its run before this was sent. The claim itself was earlier still,
    /// so the store knew of it.
    fn is_stale(&self, ack: &Ack) -> bool {
        self.runs
            .iter()
            .any(|run| run.epoch > ack.epoch && run.at < ack.sent)
    }

    fn count(&self, report: &mut Report) {
        let completed = self.completions() > 0;
        report.enqueued += usize::from(self.enqueued());
        report.recovered +=
            usize::from(!self.enqueued() && self.perhaps_enqueued() && self.turned_up());
        report.accepted += usize::from(completed);
        report.presumed += usize::from(!completed && !self.in_store && self.perhaps_completed());
        report.runs += self.runs.len();
        let retries = self.acks(Verdict::Fail, Outcome::Done(()));
        report.duplicate_runs += self.runs.len().saturating_sub(1 + retries);
        report.unseen_attempts += self.unseen_attempts();
        for ack in &self.acks {
            let refused = ack.outcome == Outcome::Busy;
            report.stale_refused += usize::from(refused);
            report.stale_offered += usize::from(refused || self.is_stale(ack));
        }
    }

    /// Attempts below the highest one seen that nobody started.
    fn unseen_attempts(&self) -> usize {
        let seen: HashSet<u32> = self.runs.iter().filter_map(|run| run.attempt).collect();
        let highest = seen.iter().copied().max().unwrap_or(0);
        (1..=highest)
            .filter(|attempt| !seen.contains(attempt))
            .count()
    }

    fn faults(&self) -> impl Iterator<Item = Fault> {
        let completed = self.completions() > 0;
        let settled = completed || self.perhaps_completed() || self.in_store;
        let accepted = || self.acks.iter().filter(|ack| ack.accepted());
        [
            (Fault::Lost, self.enqueued() && !settled),
            (
                Fault::OutOfNowhere,
                self.turned_up() && !self.enqueued() && !self.perhaps_enqueued(),
            ),
            (Fault::AcceptedTwice, self.completions() > 1),
            (Fault::Resurrected, completed && self.in_store),
            (
                Fault::StaleAccepted,
                accepted().any(|ack| self.is_stale(ack)),
            ),
            (
                Fault::EpochReused,
                repeats(self.runs.iter().map(|run| run.epoch))
                    || repeats(accepted().map(|ack| ack.epoch)),
            ),
            (Fault::EpochsDisordered, self.epochs_disordered()),
            (
                Fault::AttemptRepeated,
                repeats(self.runs.iter().filter_map(|run| run.attempt))
                    || self.runs.iter().any(|run| run.attempt == Some(0)),
            ),
        ]
        .into_iter()
        .filter_map(|(fault, found)| found.then_some(fault))
    }

    fn epochs_disordered(&self) -> bool {
        let attempts: BTreeMap<_, _> = self
            .runs
            .iter()
            .filter_map(|run| Some((run.attempt?, run.epoch)))
            .collect();
        !attempts.values().is_sorted()
    }
}

impl Ack {
    fn accepted(&self) -> bool {
        self.outcome == Outcome::Done(())
    }
}

fn repeats<T: Eq + std::hash::Hash>(items: impl Iterator<Item = T>) -> bool {
    let mut seen = HashSet::new();
    !items.into_iter().all(|item| seen.insert(item))
}
