//! The checker of locks that expire and have fences.
//!
//! Each process takes down, in a [`Diary`], when it was granted a lock, until when it could believe in it, and when it
//! gave it up. What the locks protect takes down each [`Access`] in the order in which they came. [`check`] then holds
//! that
//!
//! - no two who hold the same lock believe in it at one instant;
//! - a grant has a higher fence than each that was known before it was asked for, and no other grant has the same;
//! - what is protected has accepted nothing under a lower fence than it had seen, lost no write, and refused nobody
//!   who had reason to believe in the lock.
//!
//! A belief is taken down a little shorter than it was: from after the answer, and until the last deadline that was
//! looked at, or the last word of a process that was killed. So what is found is true, on whatever machine.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::diary::DiaryError;
use crate::history::{OpId, ProcessId, Time};

/// A lock that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Which lock.
    pub key: u64,
    /// The grant's number.
    pub fence: u64,
    /// Who, and which of his grants.
    pub holder: OpId,
    /// When he began to ask.
    pub asked: Time,
    /// Since when he believed in it.
    pub from: Time,
    /// Until when.
    pub until: Time,
}

/// What came to that which is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// When.
    pub at: Time,
    /// By which lock it is protected.
    pub key: u64,
    /// The fence that was shown.
    pub fence: u64,
    /// Of a write, how many were accepted before that which it knew; `None` is a read.
    pub write: Option<u64>,
    /// Whether it was let in.
    pub accepted: bool,
}

/// What must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// Two believed in one lock at the same time.
    Overlap {
        /// Who began earlier.
        first: Grant,
        /// Who began later.
        second: Grant,
    },
    /// Two grants of one lock have one number.
    SameFence {
        /// Who began earlier.
        first: Grant,
        /// Who began later.
        second: Grant,
    },
    /// A grant has no higher number than one that was known before it was asked for.
    FenceNotHigher {
        /// The one before.
        first: Grant,
        /// The one with the number that is too low.
        second: Grant,
    },
    /// A write was accepted that did not know of one before it.
    LostUpdate(Access),
    /// Something was accepted under a lower fence than the highest so far.
    LowerFence {
        /// What was accepted.
        access: Access,
        /// That fence.
        highest: u64,
    },
    /// Somebody was refused who believed in his lock, and still did after that.
    HolderRefused {
        /// What was refused.
        access: Access,
        /// His grant.
        grant: Grant,
    },
}

/// The judgement.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// How many grants there were.
    pub grants: usize,
    /// How many writes were accepted.
    pub accepted: usize,
    /// How many writes were refused.
    pub refused: usize,
    /// How many writes were offered under a lower fence than one that had been let in.
    pub stale: usize,
    /// What was wrong.
    pub violations: Vec<Violation>,
}

// === impl Report ===

impl Report {
    /// Nothing is wrong.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.violations.is_empty()
    }

    /// How many violations are like this.
    pub fn count(&self, like: impl Fn(&Violation) -> bool) -> usize {
        self.violations.iter().filter(|one| like(one)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        write!(
            f,
            "{} grants, {} writes accepted; {} stale writes offered, {} writes refused; {} violations",
            self.grants,
            self.accepted,
            self.stale,
            self.refused,
            self.violations.len()
        )?;
        for violation in self.violations.iter().take(SHOWN) {
            write!(f, "\n    {violation:?}")?;
        }
        Ok(())
    }
}

/// Judges grants, and what came to that which the locks protect, in the order in which it came.
///
/// `n log n` in their number.
///
/// # Examples
/// ```
/// use lockkit_test::history::{OpId, ProcessId, Time};
/// use lockkit_test::locks::{self, Grant};
///
/// let grant = |worker, fence, from, until| Grant {
///     key: 1,
///     fence,
///     holder: OpId::new(ProcessId::worker(worker), 0),
///     asked: Time(from - 1),
///     from: Time(from),
///     until: Time(until),
/// };
/// assert!(locks::check(&[grant(1, 7, 10, 20), grant(2, 8, 20, 30)], &[]).is_ok());
/// assert!(!locks::check(&[grant(1, 7, 10, 21), grant(2, 8, 20, 30)], &[]).is_ok());
/// ```
#[must_use]
pub fn check(grants: &[Grant], accesses: &[Access]) -> Report {
    let writes = |accepted| {
        let all = accesses.iter().filter(|access| access.write.is_some());
        all.filter(|access| access.accepted == accepted).count()
    };
    let mut report = Report {
        grants: grants.len(),
        accepted: writes(true),
        refused: writes(false),
        stale: 0,
        violations: Vec::new(),
    };
    for grants in by_key(grants).values() {
        beliefs(grants, &mut report.violations);
        fences(grants, &mut report.violations);
    }
    protected(grants, accesses, &mut report);
    report
}

/// The longest time for which somebody waited for a lock in which nobody believed, of those who began to believe in it
/// after `since`.
///
/// How long a lock is kept from those who want it by nobody: a holder who was killed, or whose word was lost.
#[must_use]
pub fn longest_idle(grants: &[Grant], since: Time) -> Option<(Duration, Grant)> {
    let mut longest = None;
    for grants in by_key(grants).values() {
        let mut free = Time(0);
        for grant in grants {
            let wanted = free.max(grant.asked).max(since);
            let idle = Duration::from_nanos(grant.from.0.saturating_sub(wanted.0));
            if longest.is_none_or(|(longest, _)| longest < idle) {
                longest = Some((idle, *grant));
            }
            free = free.max(grant.until);
        }
    }
    longest
}

/// In the order in which they began.
fn by_key(grants: &[Grant]) -> BTreeMap<u64, Vec<Grant>> {
    let mut by_key: BTreeMap<u64, Vec<Grant>> = BTreeMap::new();
    for grant in grants {
        by_key.entry(grant.key).or_default().push(*grant);
    }
    for grants in by_key.values_mut() {
        grants.sort_by_key(|grant| (grant.from, grant.until));
    }
    by_key
}

fn beliefs(grants: &[Grant], violations: &mut Vec<Violation>) {
    // Who believes for longest, of those so far.
    let mut last: Option<Grant> = None;
    for &second in grants {
        if let Some(first) = last.filter(|first| second.from < first.until)
            // Who never believed in it, as it was over when he heard of it, disturbs nobody.
            && second.from < second.until
        {
            violations.push(Violation::Overlap { first, second });
        }
        if last.is_none_or(|last| last.until < second.until) {
            last = Some(second);
        }
    }
}

fn fences(grants: &[Grant], violations: &mut Vec<Violation>) {
    let mut seen: HashMap<u64, Grant> = HashMap::new();
    // The one with the highest fence, of each so many of the first.
    let mut highest: Vec<Grant> = Vec::new();
    for &second in grants {
        if let Some(&first) = seen.get(&second.fence) {
            violations.push(Violation::SameFence { first, second });
        }
        seen.insert(second.fence, second);
        let known = grants.partition_point(|grant| grant.from < second.asked);
        if let Some(&first) = known.checked_sub(1).and_then(|last| highest.get(last))
            && second.fence < first.fence
        {
            violations.push(Violation::FenceNotHigher { first, second });
        }
        let before = highest.last().copied();
        highest.push(
            before
                .filter(|last| last.fence > second.fence)
                .unwrap_or(second),
        );
    }
}

fn protected(grants: &[Grant], accesses: &[Access], report: &mut Report) {
    let violations = &mut report.violations;
    let by_fence: HashMap<(u64, u64), &Grant> = grants
        .iter()
        .map(|grant| ((grant.key, grant.fence), grant))
        .collect();
    // By key: the highest fence, and how many writes were accepted.
    let mut seen: HashMap<u64, (u64, u64)> = HashMap::new();
    for &access in accesses {
        let (highest, writes) = seen.entry(access.key).or_default();
        report.stale += usize::from(access.write.is_some() && access.fence < *highest);
        if !access.accepted {
            let grant = by_fence.get(&(access.key, access.fence));
            if let Some(&&grant) = grant
                && access.at < grant.until
            {
                violations.push(Violation::HolderRefused { access, grant });
            }
            continue;
        }
        if access.fence < *highest {
            let highest = *highest;
            violations.push(Violation::LowerFence { access, highest });
        }
        *highest = access.fence.max(*highest);
        if let Some(knows) = access.write {
            if knows != *writes {
                violations.push(Violation::LostUpdate(access));
            }
            *writes += 1;
        }
    }
}

// === the diary ===

/// What a process takes down of its locks: a line an entry, each handed to the kernel by one write before the process
/// goes on. Share it by reference or `Arc`.
#[derive(Debug)]
pub struct Diary {
    file: File,
    clock: Clock,
}

/// What a diary says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diaries {
    /// The locks that were granted.
    pub grants: Vec<Grant>,
    /// Those that were waited for in vain: since when, and until when.
    pub in_vain: Vec<(Time, Time)>,
}

/// Reads [`Instant`]s as [`Time`]s. On Linux, both are of the one clock that all processes of a machine share.
#[derive(Clone, Copy, Debug)]
struct Clock {
    instant: Instant,
    time: Time,
}

#[derive(Serialize, Deserialize)]
struct Line {
    at: Time,
    entry: Entry,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Granted {
        grant: u64,
        key: u64,
        fence: u64,
        asked: Time,
        until: Option<Time>,
    },
    Holds {
        grant: u64,
        until: Time,
    },
    GivesUp {
        grant: u64,
        held: Time,
    },
    InVain {
        asked: Time,
    },
    Ends,
}

impl Diary {
    /// Begins one in a file.
    ///
    /// # Errors
    ///
    /// The system's own; a file that is there already is one.
    pub fn begin(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = File::options().append(true).create_new(true).open(path)?;
        let clock = Clock::new();
        Ok(Self { file, clock })
    }

    /// A lock was granted that was asked for at `asked`, and is held until a deadline; `None` if that is over. The
    /// number is one that no other grant of this process has.
    ///
    /// # Panics
    ///
    /// When the file cannot be written, as do the others: a test without its record proves nothing.
    pub fn granted(&self, grant: u64, key: u64, fence: u64, asked: Time, until: Option<Instant>) {
        let until = until.map(|until| self.clock.time(until));
        self.write(Entry::Granted {
            grant,
            key,
            fence,
            asked,
            until,
        });
    }

    /// A lock that was granted is held until a deadline, which may be another one than before. Nothing is said of one
    /// that is lost.
    pub fn holds(&self, grant: u64, until: Option<Instant>) {
        if let Some(until) = until {
            let until = self.clock.time(until);
            self.write(Entry::Holds { grant, until });
        }
    }

    /// A lock is about to be given up that was held after this time.
    pub fn gives_up(&self, grant: u64, held: Time) {
        self.write(Entry::GivesUp { grant, held });
    }

    /// A lock that was asked for at `asked` was waited for in vain.
    pub fn in_vain(&self, asked: Time) {
        self.write(Entry::InVain { asked });
    }

    /// The process ends. One that does not say so was killed.
    pub fn ends(&self) {
        self.write(Entry::Ends);
    }

    fn write(&self, entry: Entry) {
        let at = Time::now();
        let mut line = serde_json::to_string(&Line { at, entry }).expect("numbers can be written");
        line.push('\n');
        let written = (&self.file).write_all(line.as_bytes());
        written.expect("the diary can be written");
    }
}

impl Diaries {
    /// Reads one more: of the life of one process.
    ///
    /// A last line without its end is left out: its writer was killed while it wrote.
    ///
    /// # Errors
    ///
    /// [`DiaryError`] for what was not written by a [`Diary`].
    pub fn read(&mut self, mut from: impl BufRead, process: ProcessId) -> Result<(), DiaryError> {
        let begin = self.grants.len();
        let mut places: HashMap<u64, usize> = HashMap::new();
        // Whoever is killed believes no more.
        let mut last = Time(0);
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
            let Line { at, entry } = serde_json::from_str(whole).map_err(|_| nonsense())?;
            last = last.max(at);
            match entry {
                Entry::Granted {
                    grant,
                    key,
                    fence,
                    asked,
                    until,
                } => {
                    if places.insert(grant, self.grants.len()).is_some() {
                        return Err(nonsense());
                    }
                    self.grants.push(Grant {
                        key,
                        fence,
                        holder: OpId::new(process, grant),
                        asked,
                        from: at,
                        until: until.unwrap_or(at),
                    });
                }
                Entry::Holds { grant, until } => {
                    let place = *places.get(&grant).ok_or_else(nonsense)?;
                    let grant = &mut self.grants[place];
                    grant.until = grant.until.max(until);
                }
                Entry::GivesUp { grant, held } => {
                    let place = places.remove(&grant).ok_or_else(nonsense)?;
                    self.grants[place].until = held;
                }
                Entry::InVain { asked } => self.in_vain.push((asked, at)),
                Entry::Ends => {}
            }
        }
        for grant in &mut self.grants[begin..] {
            grant.until = grant.until.min(last);
        }
        Ok(())
    }
}

impl Clock {
    /// Two readings of one clock, with next to nothing between them.
    fn new() -> Self {
        const NOTHING: u64 = 20_000;
        loop {
            let (time, instant) = (Time::now(), Instant::now());
            if Time::now().0 - time.0 < NOTHING {
                return Self { instant, time };
            }
        }
    }

    /// Earlier by next to nothing.
    fn time(self, instant: Instant) -> Time {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        match instant.checked_duration_since(self.instant) {
            Some(after) => Time(self.time.0.saturating_add(nanos(after))),
            None => Time(self.time.0.saturating_sub(nanos(self.instant - instant))),
        }
    }
}
