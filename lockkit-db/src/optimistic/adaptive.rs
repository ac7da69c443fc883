//! Where the next update of a table begins: what the last ones have met decides.

/// What the optimistic updates of a table have met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConflictStats {
    /// Compare-and-sets without a lock that were answered.
    pub tries: u64,
    /// How many of those found the row changed.
    pub conflicts: u64,
    /// Updates that went on under a row lock after conflicts of their own.
    pub escalated: u64,
    /// Updates that began with a row lock, because of the conflicts of others before.
    pub locked_first: u64,
    /// The share of conflicts among the latest tries, in percent. While updates begin with a row lock, also of
    /// tries behind which somebody stood in line.
    pub percent: u8,
    /// Whether updates begin with a row lock at present.
    pub locking: bool,
}

/// The latest tries of a table, as a moving average in which each counts for an eighth.
///
/// | state | what is true | left by |
/// |---|---|---|
/// | free | updates begin without a lock | a rate above `LOCK_ABOVE` |
/// | locking | updates begin with a row lock, but for one in `PROBE_EVERY` | a rate below `FREE_BELOW`, which only the probes can bring about |
///
/// A probe stands in line with those that lock, as it would only meet conflicts, and cause some, beside them. So it
/// counts as one that has met a conflict also if somebody stands behind it: that one would have been it.
///
/// The gap between the two keeps it from going to and fro. It is a few numbers whatever the table's size, so
/// it speaks of the table and not of a row: a table with one hot row among many is best described twice.
#[derive(Debug)]
pub(crate) struct Adaptive {
    /// Of `ONE`.
    rate: u32,
    locking: bool,
    /// Updates since the last probe.
    since: u32,
    seen: ConflictStats,
}

/// How an update begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Free,
    /// Without a lock, in the line of those that begin with one.
    Probe,
    Locked,
}

const ONE: u32 = 1 << 16;
/// Five or six conflicts in a row.
const LOCK_ABOVE: u32 = ONE / 2;
const FREE_BELOW: u32 = ONE / 8;
const PROBE_EVERY: u32 = 16;

impl Adaptive {
    pub(crate) fn new() -> Self {
        Self {
            rate: 0,
            locking: false,
            since: 0,
            seen: ConflictStats::default(),
        }
    }

    /// How the next update begins.
    pub(crate) fn start(&mut self) -> Start {
        if !self.locking {
            return Start::Free;
        }
        self.since += 1;
        if self.since >= PROBE_EVERY {
            self.since = 0;
            return Start::Probe;
        }
        self.seen.locked_first = self.seen.locked_first.saturating_add(1);
        Start::Locked
    }

    /// A try without a lock was answered, and somebody stood behind it or not.
    pub(crate) fn answered(&mut self, conflict: bool, crowded: bool) {
        self.seen.tries = self.seen.tries.saturating_add(1);
        self.rate -= self.rate / 8;
        if conflict {
            self.seen.conflicts = self.seen.conflicts.saturating_add(1);
        }
        if conflict || crowded {
            self.rate += ONE / 8;
        }
        if self.rate > LOCK_ABOVE && !self.locking {
            self.locking = true;
            self.since = 0;
        } else if self.rate < FREE_BELOW {
            self.locking = false;
        }
    }

    /// An update goes on under a lock.
    pub(crate) fn escalated(&mut self) {
        self.seen.escalated = self.seen.escalated.saturating_add(1);
    }

    pub(crate) fn stats(&self) -> ConflictStats {
        ConflictStats {
            // At most 100: the rate never exceeds `ONE` and seven of rounding.
            percent: (u64::from(self.rate) * 100 / u64::from(ONE)).min(100) as u8,
            locking: self.locking,
            ..self.seen
        }
    }
}
