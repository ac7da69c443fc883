//! The counter checker: no increment is lost, and none is counted twice.
//!
//! Workers record each increment of a [`history`](crate::history) under the number of its counter; at the end the
//! test reads the counters and [`check`]s. What each of them shows is to lie between the increments that were
//! acknowledged, and those and the ones of unknown outcome together.
//!
//! An update lost and another one made twice would cancel each other out: the [`ledger`](crate::ledger) tells
//! those apart, for it knows every operation by its number.

use std::collections::BTreeMap;
use std::fmt;

use crate::history::{Operation, Outcome};

/// What is known of one counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Increments that were acknowledged.
    pub acknowledged: i64,
    /// Increments that were made or were not.
    pub unknown: i64,
    /// What it shows at the end, counted from 0.
    pub value: i64,
}

impl Tally {
    /// Acknowledged increments that cannot be in the value.
    #[must_use]
    pub fn lost(&self) -> i64 {
        (self.acknowledged - self.value).max(0)
    }

    /// What the value has that nobody can have put in: made twice, or told to have failed.
    #[must_use]
    pub fn surplus(&self) -> i64 {
        (self.value - self.acknowledged - self.unknown).max(0)
    }
}

/// The judgement of a history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The counters.
    pub counters: BTreeMap<u64, Tally>,
}

impl Report {
    /// Nothing lost and no surplus, in each counter.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        let mut all = self.counters.values();
        all.all(|tally| tally.lost() == 0 && tally.surplus() == 0)
    }

    /// All counters together. A loss in one and a surplus in another cancel each other out here.
    #[must_use]
    pub fn total(&self) -> Tally {
        let add = |sum: Tally, one: &Tally| Tally {
            acknowledged: sum.acknowledged + one.acknowledged,
            unknown: sum.unknown + one.unknown,
            value: sum.value + one.value,
        };
        self.counters.values().fold(Tally::default(), add)
    }

    /// Acknowledged increments that are lost for certain.
    #[must_use]
    pub fn lost(&self) -> i64 {
        self.counters.values().map(Tally::lost).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        write!(
            f,
            "{} counters: {} acknowledged, {} unknown, {} counted",
            self.counters.len(),
            total.acknowledged,
            total.unknown,
            total.value
        )?;
        for (counter, tally) in &self.counters {
            let (lost, surplus) = (tally.lost(), tally.surplus());
            if lost > 0 || surplus > 0 {
                write!(f, "\ncounter {counter}: {lost} lost, {surplus} too many")?;
            }
        }
        Ok(())
    }
}

/// Judges the increments by what the counters, which began at 0, show at the end. A counter that is not in `values`
/// shows 0.
///
/// Linear in the number of operations.
///
/// # Examples
///
/// ```
/// use std::collections::BTreeMap;
/// use lockkit_test::counter;
/// use lockkit_test::history::{Outcome, ProcessId, Recorder};
///
/// let recorder = Recorder::new();
/// for worker in [1, 2] {
///     let add = recorder.invoke(ProcessId::worker(worker), 7);
///     recorder.complete(add, Outcome::Done(()));
/// }
/// let operations = recorder.history().operations()?;
/// let report = counter::check(&operations, &BTreeMap::from([(7, 1)]));
/// assert!(!report.is_ok(), "{report}");
/// assert_eq!(report.lost(), 1);
/// # Ok::<(), lockkit_test::history::IllFormed>(())
/// ```
#[must_use]
pub fn check<'a>(
    operations: impl IntoIterator<Item = &'a Operation<u64, ()>>,
    values: &BTreeMap<u64, i64>,
) -> Report {
    let mut report = Report::default();
    for (&counter, &value) in values {
        report.counters.entry(counter).or_default().value = value;
    }
    for operation in operations {
        let tally = report.counters.entry(operation.op).or_default();
        match operation.outcome {
            Outcome::Done(()) => tally.acknowledged += 1,
            Outcome::Unknown => tally.unknown += 1,
            Outcome::NotDone | Outcome::Busy => {}
        }
    }
    report
}
