//! The ledger checker: what was acknowledged is written down, and nothing that was told to have failed.
//!
//! Each operation has a number of its own, by which it is recorded in a [`history`](crate::history), and which it
//! writes into a table in the very transaction that does its work. At the end the test reads the table and
//! [`check`]s that
//!
//! - every acknowledged operation is in the ledger;
//! - every operation in the ledger was acknowledged, or its outcome is unknown;
//! - no operation is in the ledger twice.
//!
//! So the table has no unique key on that number: it would hide the last.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::history::{Operation, Outcome};

/// A class of proven faults of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// It was acknowledged, and is not in the ledger.
    Lost,
    /// It is in the ledger, and was told to have failed.
    FailedButDone,
    /// It is in the ledger, and nobody has asked for it.
    OutOfNowhere,
    /// It is in the ledger more than once.
    Twice,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lost => "lost",
            Self::FailedButDone => "told to have failed, but done",
            Self::OutOfNowhere => "out of nowhere",
            Self::Twice => "done twice",
        })
    }
}

/// The judgement of a history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Operations that were acknowledged.
    pub acknowledged: usize,
    /// Operations of unknown outcome.
    pub unknown: usize,
    /// Of these, the ones that are in the ledger.
    pub recovered: usize,
    /// Operations that were told to have failed.
    pub failed: usize,
    /// The proven faults and their operations.
    pub faults: BTreeMap<Fault, BTreeSet<u64>>,
}

impl Report {
    /// No fault.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.faults.is_empty()
    }

    /// The operations with this fault.
    pub fn operations_with(&self, fault: Fault) -> impl Iterator<Item = u64> {
        self.faults.get(&fault).into_iter().flatten().copied()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        write!(
            f,
            "{} acknowledged, {} unknown, of which {} are done, {} failed",
            self.acknowledged, self.unknown, self.recovered, self.failed
        )?;
        for (fault, operations) in &self.faults {
            write!(f, "\nFAULT {fault} {}: operation", operations.len())?;
            for operation in operations.iter().take(SHOWN) {
                write!(f, " {operation}")?;
            }
            f.write_str(if operations.len() > SHOWN { " …" } else { "" })?;
        }
        Ok(())
    }
}

/// Judges the operations by the numbers that are in the ledger at the end.
///
/// One number may be asked for several times; it is to be done once.
///
/// `n log n` in the number of operations.
///
/// # Examples
///
/// ```
/// use lockkit_test::history::{Outcome, ProcessId, Recorder};
/// use lockkit_test::ledger::{self, Fault};
///
/// let recorder = Recorder::new();
/// let mut me = ProcessId::worker(1);
/// for (number, outcome) in [(10, Outcome::Done(())), (11, Outcome::Unknown), (12, Outcome::NotDone)] {
///     me = recorder.complete(recorder.invoke(me, number), outcome);
/// }
/// let operations = recorder.history().operations()?;
/// assert!(ledger::check(&operations, [10]).is_ok());
/// assert!(ledger::check(&operations, [10, 11]).is_ok());
/// let report = ledger::check(&operations, [10, 12]);
/// assert!(report.operations_with(Fault::FailedButDone).eq([12]), "{report}");
/// # Ok::<(), lockkit_test::history::IllFormed>(())
/// ```
#[must_use]
pub fn check<'a>(
    operations: impl IntoIterator<Item = &'a Operation<u64, ()>>,
    ledger: impl IntoIterator<Item = u64>,
) -> Report {
    /// What its callers were told, the most certain of it.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Told {
        Failed,
        Unknown,
        Acknowledged,
    }

    let mut report = Report::default();
    let mut told: BTreeMap<u64, Told> = BTreeMap::new();
    for operation in operations {
        let answer = match operation.outcome {
            Outcome::Done(()) => Told::Acknowledged,
            Outcome::Unknown => Told::Unknown,
            Outcome::NotDone | Outcome::Busy => Told::Failed,
        };
        let known = told.entry(operation.op).or_insert(answer);
        *known = answer.max(*known);
    }
    let mut written = BTreeSet::new();
    let mut twice = BTreeSet::new();
    for number in ledger {
        if !written.insert(number) {
            twice.insert(number);
        }
    }
    let mut faults: Vec<(Fault, u64)> = twice.into_iter().map(|n| (Fault::Twice, n)).collect();
    for (&number, answer) in &told {
        let done = written.contains(&number);
        match answer {
            Told::Acknowledged => report.acknowledged += 1,
            Told::Unknown => {
                report.unknown += 1;
                report.recovered += usize::from(done);
            }
            Told::Failed => report.failed += 1,
        }
        match (answer, done) {
            (Told::Acknowledged, false) => faults.push((Fault::Lost, number)),
            (Told::Failed, true) => faults.push((Fault::FailedButDone, number)),
            _ => {}
        }
    }
    let strangers = written.iter().filter(|number| !told.contains_key(number));
    faults.extend(strangers.map(|&number| (Fault::OutOfNowhere, number)));
    for (fault, number) in faults {
        report.faults.entry(fault).or_default().insert(number);
    }
    report
}
