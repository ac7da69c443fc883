//! The diary of a worker process: what it began, what it reported, and what it was told.
//!
//! A line an entry, handed to the kernel by one write before what it tells of goes on. So whatever kills the
//! process cuts off its last line at most: an end that was reported, and of which nobody wrote down what the
//! store said, is of unknown outcome, and not lost.
//!
//! [`read`] makes the operations of a [`history`](crate::history) of it, for [`total_queue`](crate::total_queue) and
//! [`audit`](crate::audit) to judge. A [`Recorder`](crate::history::Recorder) does the same for strands of operations
//! that follow one another; in a worker hundreds are open at a time, and its diary keeps none of them in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, Write as _};
use std::path::Path;

use crate::history::{OpId, Operation, Outcome, ProcessId, Time};
use crate::total_queue::{Op, Verdict};

/// Takes it down. Share it by reference or `Arc`.
#[derive(Debug)]
pub struct Diary(File);

impl Diary {
    /// Begins one in a file.
    ///
    /// # Errors
    ///
    /// The system's own; a file that is there already is one.
    pub fn begin(path: impl AsRef<Path>) -> io::Result<Self> {
        // Lines of several threads do not mix, as each is one write at the end.
        let file = File::options().append(true).create_new(true).open(path)?;
        Ok(Self(file))
    }

    /// A run has begun.
    ///
    /// # Panics
    ///
    /// When the file cannot be written, as do the others: a test without its record proves nothing.
    pub fn began(&self, job: u64, epoch: u64, attempt: u32) {
        self.write(format_args!("began {job} {epoch} {attempt}"));
    }

    /// A run has ended so, and that is about to be offered to the store.
    pub fn reports(&self, job: u64, epoch: u64, verdict: Verdict) {
        let verdict = match verdict {
            Verdict::Complete => "complete",
            Verdict::Fail => "fail",
        };
        self.write(format_args!("reports {job} {epoch} {verdict}"));
    }

    /// The store has said what became of it: accepted, or refused as stale.
    pub fn told(&self, job: u64, epoch: u64, accepted: bool) {
        let told = if accepted { "accepted" } else { "stale" };
        self.write(format_args!("told {job} {epoch} {told}"));
    }

    fn write(&self, entry: std::fmt::Arguments<'_>) {
        let line = format!("{} {entry}\n", Time::now().0);
        let written = (&self.0).write_all(line.as_bytes());
        written.expect("the diary can be written");
    }
}

/// Why a diary is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiaryError {
    /// The source failed.
    #[error("the diary could not be read")]
    Io(#[from] io::Error),
    /// A whole line that makes no sense, or not at its place.
    #[error("line {number} of the diary is {line:?}")]
    Line {
        /// Counted from 1.
        number: usize,
        /// The line.
        line: String,
    },
}

/// Reads the diary of one process. Its operations get the numbers of `process`, which need not be well formed
/// as a history, since they overlap.
///
/// A last line without its end is left out: its writer was killed while it wrote.
///
/// # Errors
///
/// [`DiaryError`] for what was not written by a [`Diary`].
///
/// # Examples
///
/// ```
/// use lockkit_test::diary;
/// use lockkit_test::history::{Outcome, ProcessId};
///
/// let lines = "10 began 7 1 1\n20 reports 7 1 complete\n30 told 7 1 accepted\n40 began 8 1 1\n50 repo";
/// let operations = diary::read(lines.as_bytes(), ProcessId::worker(1))?;
/// assert_eq!(operations.len(), 3);
/// assert_eq!(operations[1].outcome, Outcome::Done(()));
/// # Ok::<(), diary::DiaryError>(())
/// ```
pub fn read(
    mut from: impl BufRead,
    process: ProcessId,
) -> Result<Vec<Operation<Op, ()>>, DiaryError> {
    let mut operations: Vec<Operation<Op, ()>> = Vec::new();
    // The reports whose ends are not known yet, by their claims.
    let mut open: HashMap<(u64, u64), usize> = HashMap::new();
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        from.read_line(&mut line)?;
        let Some(whole) = line.strip_suffix('\n') else {
            break;
        };
        let nonsense = || DiaryError::Line {
            number,
            line: whole.to_owned(),
        };
        let entry = Entry::parse(whole).ok_or_else(nonsense)?;
        let claim = (entry.job, entry.epoch);
        let (op, outcome) = match entry.what {
            What::Began(attempt) => {
                let op = Op::Run {
                    job: entry.job,
                    epoch: entry.epoch,
                    attempt: Some(attempt),
                };
                (op, Outcome::Done(()))
            }
            What::Reports(verdict) => {
                let op = Op::Ack {
                    job: entry.job,
                    epoch: entry.epoch,
                    verdict,
                };
                if open.insert(claim, operations.len()).is_some() {
                    return Err(nonsense());
                }
                (op, Outcome::Unknown)
            }
            What::Told(outcome) => {
                let report = open.remove(&claim).ok_or_else(nonsense)?;
                operations[report].completed = Some(entry.at);
                operations[report].outcome = outcome;
                continue;
            }
        };
        operations.push(Operation {
            id: OpId::new(process, operations.len() as u64),
            op,
            invoked: entry.at,
            completed: (outcome != Outcome::Unknown).then_some(entry.at),
            outcome,
        });
    }
    Ok(operations)
}

struct Entry {
    at: Time,
    job: u64,
    epoch: u64,
    what: What,
}

enum What {
    Began(u32),
    Reports(Verdict),
    Told(Outcome<()>),
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let &[at, what, job, epoch, more] = &words[..] else {
            return None;
        };
        let what = match (what, more) {
            ("began", attempt) => What::Began(attempt.parse().ok()?),
            ("reports", "complete") => What::Reports(Verdict::Complete),
            ("reports", "fail") => What::Reports(Verdict::Fail),
            ("told", "accepted") => What::Told(Outcome::Done(())),
            ("told", "stale") => What::Told(Outcome::Busy),
            _ => return None,
        };
        Some(Self {
            at: Time(at.parse().ok()?),
            job: job.parse().ok()?,
            epoch: epoch.parse().ok()?,
            what,
        })
    }
}
