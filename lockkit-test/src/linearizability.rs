//! Whether a history can be explained: each operation as if it had taken effect at one instant between its start and its
//! end, in an order in which a plain [`Model`] would have given the very same answers.
//!
//! The search is that of Wing and Gong, with Lowe's list of what is still to be explained, and a memory of the states
//! that led nowhere. An operation of unknown outcome may have taken effect at any time after its start, or never.
//!
//! It takes time that grows exponentially with the number of operations that overlap, and with that of unknown ones,
//! so keep to ten processes and a thousand operations, and [split](by) a history of things that do not depend on each
//! other. What it cannot decide within its limit it says.
//!
//! | a history of | is explained by |
//! |---|---|
//! | a semaphore | [`Permits`] |
//! | a lock, or one key of a keyed one | [`Lock`] |
//! | a register: a row with a version, a cell | [`Register`] |
//! | the callers of one key of a single flight | [`Flights`] |
//! | a lock of a store, which knows who has it | [`Leased`] |
//!
//! [`Explained`] counts the histories of a test, so that a run can tell how many there were.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::Hash;

use crate::history::{OpId, Operation, Outcome, Time};
use crate::soak::Tally;

/// A thing that does one operation after another.
pub trait Model: Clone + Eq + Hash {
    /// What is asked.
    type Op;
    /// What a done operation answers.
    type Answer;

    /// What the thing is after it has done the operation with this outcome; `None` if it cannot have ended like this.
    ///
    /// [`Outcome::NotDone`] never comes here, as it explains itself. For [`Outcome::Unknown`] say what the thing is if it
    /// has taken effect; that it has not is tried as well.
    fn step(&self, op: &Self::Op, outcome: &Outcome<Self::Answer>) -> Option<Self>;
}

/// What [`check`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An order in which all is as it was answered. What is unknown is in it if it has taken effect.
    Explained(Vec<OpId>),
    /// There is none.
    Impossible {
        /// The longest order that was found.
        longest: Vec<OpId>,
        /// An operation that could not follow it.
        stuck: OpId,
    },
    /// There were more steps to try than the limit.
    Undecided,
}

/// How many steps are tried before it gives up.
pub const LIMIT: u64 = 20_000_000;

impl Verdict {
    /// There is such an order.
    #[must_use]
    pub fn is_explained(&self) -> bool {
        matches!(self, Self::Explained(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Explained(order) => write!(f, "{} operations are explained", order.len()),
            Self::Impossible { longest, stuck } => {
                write!(f, "{stuck} cannot be explained; in order before it:")?;
                longest.iter().try_for_each(|id| write!(f, " {id}"))
            }
            Self::Undecided => write!(f, "not decided in {LIMIT} steps"),
        }
    }
}

/// Explains the operations of a thing that begins like this, or finds that they cannot be.
///
/// # Examples
/// ```
/// use lockkit_test::history::{Outcome, ProcessId, Recorder};
/// use lockkit_test::linearizability::{Lock, LockOp, check};
///
/// let recorder = Recorder::new();
/// let [a, b] = [1, 2].map(ProcessId::worker);
/// for process in [a, b] {
///     let locks = recorder.invoke(process, LockOp::Lock);
///     recorder.complete(locks, Outcome::Done(()));
/// }
/// let operations = recorder.history().operations().unwrap();
/// assert!(check(&Lock::default(), &operations[..1]).is_explained());
/// assert!(!check(&Lock::default(), &operations).is_explained()); // two hold it
/// ```
#[must_use]
pub fn check<M: Model>(initial: &M, operations: &[Operation<M::Op, M::Answer>]) -> Verdict {
    Search::new(initial, operations).run()
}

/// A history in parts that do not depend on each other, which is explained if each of them is.
#[must_use]
pub fn by<O: Clone, T: Clone, K: Ord>(
    operations: &[Operation<O, T>],
    key: impl Fn(&O) -> K,
) -> BTreeMap<K, Vec<Operation<O, T>>> {
    let mut parts: BTreeMap<K, Vec<_>> = BTreeMap::new();
    for operation in operations {
        parts
            .entry(key(&operation.op))
            .or_default()
            .push(operation.clone());
    }
    parts
}

/// Histories of one pattern, each of which was explained.
#[derive(Clone, Debug)]
pub struct Explained {
    pattern: &'static str,
    histories: u64,
    operations: u64,
}

impl Explained {
    /// None yet.
    #[must_use]
    pub fn of(pattern: &'static str) -> Self {
        Self {
            pattern,
            histories: 0,
            operations: 0,
        }
    }

    /// One more.
    ///
    /// # Panics
    ///
    /// When it is not explained, or when that is not decided.
    #[track_caller]
    pub fn explain<M: Model>(&mut self, initial: &M, operations: &[Operation<M::Op, M::Answer>])
    where
        M::Op: fmt::Debug,
        M::Answer: fmt::Debug,
    {
        let verdict = check(initial, operations);
        assert!(
            verdict.is_explained(),
            "{}: {verdict}\n{operations:#?}",
            self.pattern
        );
        self.histories += 1;
        self.operations += operations.len() as u64;
    }

    /// Tells how many there were, which have to be so many.
    ///
    /// # Panics
    ///
    /// When there were fewer.
    #[track_caller]
    pub fn tell(self, least: u64) {
        let tally = Tally {
            pattern: self.pattern,
            operations: self.operations,
            counts: [("histories explained", self.histories)].into(),
            ..Tally::default()
        };
        tally.print();
        assert!(self.histories >= least, "{self:?} of {least}");
    }
}

/// A place in the list: the start of an operation, or its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Start(usize),
    End(usize),
}

/// The list has a place 0 before the first mark and leads to [`Search::end`]; `next` and `before` are by place.
struct Search<'a, M: Model> {
    operations: Vec<&'a Operation<M::Op, M::Answer>>,
    marks: Vec<Mark>,
    next: Vec<usize>,
    before: Vec<usize>,
    /// By operation: the places of its start and of its end, if it has one.
    places: Vec<(usize, Option<usize>)>,
    state: M,
    /// Which are explained, a bit each.
    explained: Vec<u64>,
    /// Those, in their order, with the state before each.
    order: Vec<(usize, M)>,
    dead: HashSet<(Vec<u64>, M)>,
    /// How many that are known to have ended are still to be explained.
    open: usize,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(initial: &M, operations: &'a [Operation<M::Op, M::Answer>]) -> Self {
        let operations: Vec<_> = operations
            .iter()
            .filter(|operation| !matches!(operation.outcome, Outcome::NotDone))
            .collect();
        let mut timed = Vec::new();
        for (at, operation) in operations.iter().enumerate() {
            // Of one instant the starts come first: they overlap then, as nobody can tell.
            timed.push((operation.invoked, 0, Mark::Start(at)));
            if let (Some(completed), false) = (
                operation.completed,
                matches!(operation.outcome, Outcome::Unknown),
            ) {
                timed.push((completed, 1, Mark::End(at)));
            }
        }
        timed.sort_by_key(|&(time, kind, _)| (time, kind));
        let marks: Vec<_> = timed.into_iter().map(|(_, _, mark)| mark).collect();
        let mut places = vec![(0, None); operations.len()];
        for (at, mark) in marks.iter().enumerate() {
            match *mark {
                Mark::Start(operation) => places[operation].0 = at + 1,
                Mark::End(operation) => places[operation].1 = Some(at + 1),
            }
        }
        let end = marks.len() + 1;
        Self {
            next: (1..=end).collect(),
            before: std::iter::once(0).chain(0..end).collect(),
            state: initial.clone(),
            explained: vec![0; operations.len().div_ceil(64)],
            order: Vec::new(),
            dead: HashSet::new(),
            open: places.iter().filter(|place| place.1.is_some()).count(),
            operations,
            marks,
            places,
        }
    }

    fn run(mut self) -> Verdict {
        let mut longest: Option<(Vec<OpId>, usize)> = None;
        let mut at = self.next[0];
        for _ in 0..LIMIT {
            if self.open == 0 {
                return Verdict::Explained(self.ids());
            }
            // A start is tried; an end comes only when its operation could not be explained before it.
            match self.mark(at) {
                Some(Mark::Start(operation)) => {
                    at = if self.explain(operation) {
                        self.next[0]
                    } else {
                        self.next[at]
                    };
                }
                end => {
                    if let Some(Mark::End(stuck)) = end
                        && longest
                            .as_ref()
                            .is_none_or(|(ids, _)| ids.len() < self.order.len())
                    {
                        longest = Some((self.ids(), stuck));
                    }
                    let Some(operation) = self.take_back() else {
                        let (longest, stuck) = longest.unwrap_or_default();
                        let stuck = self.operations[stuck].id;
                        return Verdict::Impossible { longest, stuck };
                    };
                    at = self.next[self.places[operation].0];
                }
            }
        }
        Verdict::Undecided
    }

    fn ids(&self) -> Vec<OpId> {
        let ids = self.order.iter().map(|&(at, _)| self.operations[at].id);
        ids.collect()
    }

    fn mark(&self, place: usize) -> Option<Mark> {
        self.marks.get(place - 1).copied()
    }

    /// Takes an operation as the next one, unless it cannot be, or that has led nowhere already.
    fn explain(&mut self, operation: usize) -> bool {
        let asked = self.operations[operation];
        let Some(state) = self.state.step(&asked.op, &asked.outcome) else {
            return false;
        };
        self.explained[operation / 64] ^= 1 << (operation % 64);
        if !self.dead.insert((self.explained.clone(), state.clone())) {
            self.explained[operation / 64] ^= 1 << (operation % 64);
            return false;
        }
        let before = std::mem::replace(&mut self.state, state);
        self.order.push((operation, before));
        let (start, end) = self.places[operation];
        self.unlink(start);
        if let Some(end) = end {
            self.unlink(end);
            self.open -= 1;
        }
        true
    }

    fn take_back(&mut self) -> Option<usize> {
        let (operation, before) = self.order.pop()?;
        self.state = before;
        self.explained[operation / 64] ^= 1 << (operation % 64);
        let (start, end) = self.places[operation];
        // In the other order than they were taken out.
        if let Some(end) = end {
            self.link(end);
            self.open += 1;
        }
        self.link(start);
        Some(operation)
    }

    fn unlink(&mut self, place: usize) {
        let (before, next) = (self.before[place], self.next[place]);
        self.next[before] = next;
        self.before[next] = before;
    }

    fn link(&mut self, place: usize) {
        let (before, next) = (self.before[place], self.next[place]);
        self.next[before] = place;
        self.before[next] = place;
    }
}

// === what is explained ===

/// A semaphore.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Permits {
    /// How many are free.
    pub free: usize,
}

/// What is asked of [`Permits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermitsOp {
    /// So many, waited for.
    Acquire(usize),
    /// So many, now or not. Busy says that there were fewer, so record it only where nobody waits: a fair semaphore
    /// refuses who would overtake.
    Try(usize),
    /// So many are given back.
    Release(usize),
}

impl Model for Permits {
    type Op = PermitsOp;
    type Answer = ();

    fn step(&self, op: &PermitsOp, outcome: &Outcome<()>) -> Option<Self> {
        let free = match *op {
            PermitsOp::Try(count) if *outcome == Outcome::Busy => {
                return (self.free < count).then(|| self.clone());
            }
            PermitsOp::Acquire(count) | PermitsOp::Try(count) => self.free.checked_sub(count)?,
            PermitsOp::Release(count) => self.free + count,
        };
        Some(Self { free })
    }
}

/// A lock that one may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lock {
    held: bool,
}

/// What is asked of a [`Lock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOp {
    /// It, waited for or not. Busy says that it was held.
    Lock,
    /// It is given back, by who held it.
    Unlock,
}

impl Model for Lock {
    type Op = LockOp;
    type Answer = ();

    fn step(&self, op: &LockOp, outcome: &Outcome<()>) -> Option<Self> {
        let locks = *op == LockOp::Lock;
        if *outcome == Outcome::Busy {
            return (locks && self.held).then(|| self.clone());
        }
        (self.held != locks).then_some(Self { held: locks })
    }
}

/// A value that is read, and set if it is as expected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Register(pub i64);

/// What is asked of a [`Register`]. The answer is the value, before anything was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterOp {
    /// The value.
    Read,
    /// Another one.
    Write(i64),
    /// Another one, if it is still the first of these. Busy says that it was not.
    Cas(i64, i64),
}

impl Model for Register {
    type Op = RegisterOp;
    type Answer = i64;

    fn step(&self, op: &RegisterOp, outcome: &Outcome<i64>) -> Option<Self> {
        match (*op, outcome) {
            (RegisterOp::Cas(expected, _), Outcome::Busy) => {
                return (self.0 != expected).then(|| self.clone());
            }
            (_, Outcome::Done(answer)) if *answer != self.0 => return None,
            _ => {}
        }
        match *op {
            RegisterOp::Read => Some(self.clone()),
            RegisterOp::Write(value) => Some(Self(value)),
            RegisterOp::Cas(expected, value) => (self.0 == expected).then_some(Self(value)),
        }
    }
}

/// The flights of one key of a single flight: one at a time, and who calls gets the value of one that was under way while
/// he waited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flights {
    under_way: Option<u64>,
}

/// What happens to [`Flights`]. Each has a number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlightsOp {
    /// The work of a flight is begun.
    Begin(u64),
    /// It is over. Recorded when it ends, and left open: [`Flights::closed`] knows when it was over to all.
    End(u64),
    /// Somebody calls; the answer is the flight whose value he got.
    Call,
}

impl Flights {
    /// The same operations, where each flight is over, at the latest, when the first of its callers has his value: who
    /// calls after that gets another one's.
    #[must_use]
    pub fn closed(
        mut operations: Vec<Operation<FlightsOp, u64>>,
    ) -> Vec<Operation<FlightsOp, u64>> {
        let mut first: BTreeMap<u64, Time> = BTreeMap::new();
        for operation in &operations {
            if let (FlightsOp::Call, Outcome::Done(flight), Some(completed)) =
                (operation.op, operation.outcome, operation.completed)
            {
                let first = first.entry(flight).or_insert(completed);
                *first = completed.min(*first);
            }
        }
        for operation in &mut operations {
            if let FlightsOp::End(flight) = operation.op
                && let Some(&completed) = first.get(&flight)
            {
                operation.completed = Some(completed.max(operation.invoked));
                operation.outcome = Outcome::Done(flight);
            }
        }
        operations
    }
}

impl Model for Flights {
    type Op = FlightsOp;
    type Answer = u64;

    fn step(&self, op: &FlightsOp, outcome: &Outcome<u64>) -> Option<Self> {
        match (*op, outcome) {
            (FlightsOp::Begin(flight), _) => self.under_way.is_none().then_some(Self {
                under_way: Some(flight),
            }),
            (FlightsOp::End(flight), _) => {
                (self.under_way == Some(flight)).then_some(Self { under_way: None })
            }
            (FlightsOp::Call, Outcome::Done(flight)) => {
                (self.under_way == Some(*flight)).then(|| self.clone())
            }
            // Who got none says nothing of the flights.
            (FlightsOp::Call, _) => Some(self.clone()),
        }
    }
}

/// A lock of a store that knows who has it, and by which fence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Leased {
    /// Who, and the fence, if somebody has been told it.
    holder: Option<(u64, Option<u64>)>,
    /// The highest that was told.
    fence: u64,
}

/// What is asked of a [`Leased`] lock, by whoever has this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeasedOp {
    /// It, now or not. Busy says that another has it.
    Acquire(u64),
    /// That it be his for longer.
    Extend(u64),
    /// It is given back.
    Release(u64),
    /// Whose it is.
    Look,
    /// The time of whoever has it is over.
    Expire,
}

/// What a [`Leased`] lock answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeasedAnswer {
    /// He has it now, or had it already, by this fence.
    Granted(u64),
    /// It was his when he asked.
    His,
    /// Nobody has it.
    Nobodys,
    /// Another has it.
    Anothers,
    /// Somebody has it by this fence.
    Held(u64),
}

impl Leased {
    /// He has it by this fence, which is new.
    fn granted(&self, who: u64, fence: u64) -> Option<Self> {
        (fence > self.fence).then_some(Self {
            holder: Some((who, Some(fence))),
            fence,
        })
    }

    /// What may be answered to who asks after his lock.
    fn tells(&self, who: u64, answer: LeasedAnswer) -> bool {
        match self.holder {
            None => answer == LeasedAnswer::Nobodys,
            Some((holder, _)) if holder == who => answer == LeasedAnswer::His,
            Some(_) => answer == LeasedAnswer::Anothers,
        }
    }

    fn freed(&self) -> Self {
        Self {
            holder: None,
            fence: self.fence,
        }
    }
}

impl Model for Leased {
    type Op = LeasedOp;
    type Answer = LeasedAnswer;

    fn step(&self, op: &LeasedOp, outcome: &Outcome<LeasedAnswer>) -> Option<Self> {
        let is = |who| self.holder.is_some_and(|(holder, _)| holder == who);
        match (*op, *outcome) {
            (LeasedOp::Acquire(who), Outcome::Busy) => {
                (self.holder.is_some() && !is(who)).then(|| self.clone())
            }
            (LeasedOp::Acquire(who), Outcome::Done(LeasedAnswer::Granted(fence))) => {
                match self.holder {
                    Some((holder, _)) if holder != who => None,
                    Some((_, Some(same))) => (same == fence).then(|| self.clone()),
                    _ => self.granted(who, fence),
                }
            }
            (LeasedOp::Acquire(who), Outcome::Unknown) => match self.holder {
                None => Some(Self {
                    holder: Some((who, None)),
                    fence: self.fence,
                }),
                Some(_) => is(who).then(|| self.clone()),
            },
            (LeasedOp::Extend(who), Outcome::Done(answer)) => {
                self.tells(who, answer).then(|| self.clone())
            }
            (LeasedOp::Release(who), Outcome::Done(answer)) => {
                let after = if is(who) { self.freed() } else { self.clone() };
                self.tells(who, answer).then_some(after)
            }
            (LeasedOp::Release(who), Outcome::Unknown) => is(who).then(|| self.freed()),
            (LeasedOp::Look, Outcome::Done(LeasedAnswer::Nobodys)) => {
                self.holder.is_none().then(|| self.clone())
            }
            (LeasedOp::Look, Outcome::Done(LeasedAnswer::Held(fence))) => match self.holder? {
                (_, Some(same)) => (same == fence).then(|| self.clone()),
                // Whose grant nobody was told of.
                (who, None) => self.granted(who, fence),
            },
            (LeasedOp::Expire, _) => Some(self.freed()),
            // What only asks changes nothing, answered or not.
            (LeasedOp::Extend(_) | LeasedOp::Look, Outcome::Unknown) => Some(self.clone()),
            _ => None,
        }
    }
}
