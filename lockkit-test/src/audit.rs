//! The audit of a queue: what its workers were told is what the store has written down.
//!
//! The workers' operations alone leave open what became of an acknowledgement whose answer was lost. The store's
//! own [`Books`] know: under which claims the jobs have left it, and what it has counted for each worker. So
//! [`check`]
//!
//! - holds each acknowledgement against them: what was accepted is written down, what was refused is not, and
//!   nothing else is (the [`ledger`] checker, with the claims for its operations);
//! - then knows the outcome of each, and judges the whole as [`total_queue`] does, where nothing is presumed;
//! - compares the store's statistics with the acknowledgements that it has accepted of each worker.
//!
//! For the first, a test has to write down who leaves the queue: a trigger on the table can.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::history::{Operation, Outcome};
use crate::ledger;
use crate::total_queue::{self, Allowed, End, Op, Verdict};

/// What the store holds at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// The claims, job and epoch, under which jobs have left as done.
    pub done: Vec<(u64, u64)>,
    /// The jobs that are there.
    pub end: End,
    /// What it counted, by the worker's name.
    pub counted: BTreeMap<String, Counted>,
}

/// What was accepted of one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Completions.
    pub done: u64,
    /// Failures, for another try or for good.
    pub failed: u64,
}

/// A worker whose statistics are not what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Miscounted {
    /// What the store has counted.
    pub counted: Counted,
    /// What it has accepted.
    pub accepted: Counted,
    /// Failures of which the worker never heard what became.
    pub unknown: u64,
}

/// The judgement.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Each completion against the books.
    pub ledger: ledger::Report,
    /// The claims that the ledger's faults are about, by their numbers there: job and epoch.
    pub claims: Vec<(u64, u64)>,
    /// The queue as a whole, with the outcomes that the books tell.
    pub queue: total_queue::Report,
    /// The workers whose statistics are wrong.
    pub miscounted: BTreeMap<String, Miscounted>,
}

impl Report {
    /// No fault of any kind.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.ledger.is_ok() && self.queue.is_ok() && self.miscounted.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "completions {}", self.ledger)?;
        for operations in self.ledger.faults.values() {
            const SHOWN: usize = 8;
            for &number in operations.iter().take(SHOWN) {
                let (job, epoch) = self.claims[number as usize];
                writeln!(f, "            {number} is job {job} under epoch {epoch}")?;
            }
        }
        for (
            worker,
            Miscounted {
                counted,
                accepted,
                unknown,
            },
        ) in &self.miscounted
        {
            writeln!(
                f,
                "MISCOUNTED  {worker}: {counted:?}, for {accepted:?} and {unknown} failures of unknown outcome"
            )?;
        }
        write!(f, "{}", self.queue)
    }
}

/// Judges what was put in, and what the workers did by their names, against the books.
///
/// `n log n` in the number of operations.
///
/// # Examples
///
/// ```
/// use std::collections::BTreeMap;
/// use lockkit_test::audit::{self, Books, Counted};
/// use lockkit_test::history::ProcessId;
/// use lockkit_test::total_queue::{Allowed, Fault};
/// use lockkit_test::diary;
///
/// // It was killed before it heard what became of job 7.
/// let lines = "10 began 7 1 1\n20 reports 7 1 complete\n";
/// let operations = diary::read(lines.as_bytes(), ProcessId::worker(1))?;
/// let workers = BTreeMap::from([("w".to_owned(), operations)]);
/// # let enqueued = [lockkit_test::history::Operation {
/// #     id: lockkit_test::history::OpId::new(ProcessId::worker(0), 0),
/// #     op: lockkit_test::total_queue::Op::Enqueue { job: 7 },
/// #     invoked: lockkit_test::history::Time(1),
/// #     completed: Some(lockkit_test::history::Time(2)),
/// #     outcome: lockkit_test::history::Outcome::Done(()),
/// # }];
/// let counted = BTreeMap::from([("w".to_owned(), Counted { done: 1, failed: 0 })]);
/// let books = Books { done: vec![(7, 1)], counted, ..Books::default() };
/// assert!(audit::check(&enqueued, &workers, &books, Allowed::default()).is_ok());
/// let report = audit::check(&enqueued, &workers, &Books::default(), Allowed::default());
/// assert!(report.queue.jobs_with(Fault::Lost).eq([7]), "{report}");
/// # Ok::<(), diary::DiaryError>(())
/// ```
#[must_use]
pub fn check(
    enqueued: &[Operation<Op, ()>],
    workers: &BTreeMap<String, Vec<Operation<Op, ()>>>,
    books: &Books,
    allowed: Allowed,
) -> Report {
    let mut claims = Claims::default();
    let written: Vec<u64> = books
        .done
        .iter()
        .map(|&claim| claims.number(claim))
        .collect();
    let done: BTreeSet<u64> = written.iter().copied().collect();

    let mut completions = Vec::new();
    let mut known = enqueued.to_vec();
    let mut accepted = BTreeMap::new();
    for (worker, operations) in workers {
        let (counted, unknown): &mut (Counted, u64) = accepted.entry(worker).or_default();
        for operation in operations {
            let mut operation = operation.clone();
            if let Op::Ack {
                job,
                epoch,
                verdict,
            } = operation.op
            {
                match verdict {
                    Verdict::Complete => {
                        let number = claims.number((job, epoch));
                        completions.push(Operation {
                            id: operation.id,
                            op: number,
                            invoked: operation.invoked,
                            completed: operation.completed,
                            outcome: operation.outcome,
                        });
                        if operation.outcome == Outcome::Unknown {
                            operation.outcome = if done.contains(&number) {
                                Outcome::Done(())
                            } else {
                                Outcome::NotDone
                            };
                        }
                        counted.done += u64::from(operation.outcome == Outcome::Done(()));
                    }
                    Verdict::Fail => {
                        counted.failed += u64::from(operation.outcome == Outcome::Done(()));
                        *unknown += u64::from(operation.outcome == Outcome::Unknown);
                    }
                }
            }
            known.push(operation);
        }
    }

    let names: BTreeSet<&String> = workers.keys().chain(books.counted.keys()).collect();
    let miscounted = names.into_iter().filter_map(|name| {
        let counted = books.counted.get(name).copied().unwrap_or_default();
        let (accepted, unknown) = accepted.get(name).copied().unwrap_or_default();
        let failed = accepted.failed..=accepted.failed + unknown;
        let right = counted.done == accepted.done && failed.contains(&counted.failed);
        let wrong = Miscounted {
            counted,
            accepted,
            unknown,
        };
        (!right).then(|| (name.clone(), wrong))
    });
    Report {
        ledger: ledger::check(&completions, written),
        queue: total_queue::check(&known, &books.end, allowed),
        miscounted: miscounted.collect(),
        claims: claims.all,
    }
}

/// Claims and their numbers.
#[derive(Default)]
struct Claims {
    numbers: BTreeMap<(u64, u64), u64>,
    all: Vec<(u64, u64)>,
}

impl Claims {
    fn number(&mut self, claim: (u64, u64)) -> u64 {
        *self.numbers.entry(claim).or_insert_with(|| {
            self.all.push(claim);
            self.all.len() as u64 - 1
        })
    }
}
