//! The bank checker: transfers move money, and neither make nor lose any.
//!
//! The test of the name from the Jepsen suites. Workers record transfers and reads of all accounts in a
//! [`history`](crate::history), [`Op`] and [`Answer`]; at the end the test reads the accounts once more and
//! [`check`]s that
//!
//! - every read, the last one too, has the total of the beginning: half of a transfer is never seen, which
//!   reads at READ COMMITTED in several statements do see;
//! - no account is ever below zero, which two withdrawals that each have looked first can bring about (write
//!   skew, or a lost update);
//! - each account ends where the transfers lead that were acknowledged, give or take those of unknown outcome.

use std::collections::BTreeMap;
use std::fmt;

use crate::history::{OpId, Operation, Outcome};

/// What is asked of the bank. Accounts are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Move money, if there is enough: refused transfers are to end [`Outcome::NotDone`].
    Transfer {
        /// The account that has it.
        from: usize,
        /// The account that gets it.
        to: usize,
        /// How much.
        amount: i64,
    },
    /// Read all accounts, in one transaction.
    Read,
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The money is moved.
    Moved,
    /// What each account has.
    Balances(Vec<i64>),
}

/// A class of proven faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// A read had another total.
    Total,
    /// A read had an account below zero.
    Negative,
    /// An account has not ended where the transfers lead.
    Astray,
}

/// The judgement of a history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Transfers that were acknowledged.
    pub transfers: usize,
    /// Transfers of unknown outcome.
    pub unknown: usize,
    /// Reads that were judged.
    pub reads: usize,
    /// The proven faults: a sentence each.
    pub faults: BTreeMap<Fault, Vec<String>>,
}

impl Report {
    /// No fault.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.faults.is_empty()
    }

    /// How often there is this fault.
    #[must_use]
    pub fn count(&self, fault: Fault) -> usize {
        self.faults.get(&fault).map_or(0, Vec::len)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} transfers, {} unknown, {} reads",
            self.transfers, self.unknown, self.reads
        )?;
        for (fault, cases) in &self.faults {
            write!(
                f,
                "\nFAULT {fault:?} {}, at first: {}",
                cases.len(),
                cases[0]
            )?;
        }
        Ok(())
    }
}

/// Judges the operations by what the accounts had in the beginning and have at the end.
///
/// Linear in the number of balances read.
///
/// # Panics
///
/// When a transfer names an account that there is not.
///
/// # Examples
///
/// ```
/// use lockkit_test::bank::{self, Answer, Fault, Op};
/// use lockkit_test::history::{Outcome, ProcessId, Recorder};
///
/// let recorder = Recorder::new();
/// let (teller, auditor) = (ProcessId::worker(0), ProcessId::worker(1));
/// let transfer = recorder.invoke(teller, Op::Transfer { from: 0, to: 1, amount: 30 });
/// let read = recorder.invoke(auditor, Op::Read);
/// recorder.complete(read, Outcome::Done(Answer::Balances(vec![70, 0])));
/// recorder.complete(transfer, Outcome::Done(Answer::Moved));
///
/// let operations = recorder.history().operations()?;
/// let report = bank::check(&operations, &[100, 0], &[70, 30]);
/// assert_eq!((report.count(Fault::Total), report.count(Fault::Astray)), (1, 0), "{report}");
/// # Ok::<(), lockkit_test::history::IllFormed>(())
/// ```
#[must_use]
pub fn check<'a>(
    operations: impl IntoIterator<Item = &'a Operation<Op, Answer>>,
    begin: &[i64],
    end: &[i64],
) -> Report {
    let mut report = Report::default();
    let total: i64 = begin.iter().sum();
    // Of each account, the least and the most that it can end with.
    let mut bounds: Vec<(i64, i64)> = begin.iter().map(|&amount| (amount, amount)).collect();
    for operation in operations {
        match (operation.op, &operation.outcome) {
            (Op::Transfer { from, to, amount }, Outcome::Done(_)) => {
                report.transfers += 1;
                for (account, change) in [(from, -amount), (to, amount)] {
                    bounds[account].0 += change;
                    bounds[account].1 += change;
                }
            }
            (Op::Transfer { from, to, amount }, Outcome::Unknown) => {
                report.unknown += 1;
                for (account, change) in [(from, -amount), (to, amount)] {
                    bounds[account].0 += change.min(0);
                    bounds[account].1 += change.max(0);
                }
            }
            (Op::Read, Outcome::Done(Answer::Balances(balances))) => {
                report.read(&Reader::Operation(operation.id), balances, total);
            }
            _ => {}
        }
    }
    report.read(&Reader::End, end, total);
    for (account, (least, most)) in bounds.into_iter().enumerate() {
        let amount = end.get(account).copied();
        if !amount.is_some_and(|amount| (least..=most).contains(&amount)) {
            let case = format!("account {account} has {amount:?}, not {least} to {most}");
            report.faults.entry(Fault::Astray).or_default().push(case);
        }
    }
    report
}

enum Reader {
    Operation(OpId),
    End,
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation(id) => write!(f, "operation {id}"),
            Self::End => f.write_str("the end"),
        }
    }
}

impl Report {
    fn read(&mut self, reader: &Reader, balances: &[i64], total: i64) {
        self.reads += 1;
        let seen: i64 = balances.iter().sum();
        if seen != total {
            let case = format!("{reader} has {seen} in all, not {total}");
            self.faults.entry(Fault::Total).or_default().push(case);
        }
        if let Some(account) = balances.iter().position(|&amount| amount < 0) {
            let case = format!("{reader} has {} in account {account}", balances[account]);
            self.faults.entry(Fault::Negative).or_default().push(case);
        }
    }
}
