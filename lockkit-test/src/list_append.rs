//! The list-append checker: which anomalies of isolation a history has.
//!
//! Transactions append elements to lists and read lists, [`Step`]; no element is appended twice. So a list shows its
//! whole past: which transaction wrote each of its versions, and in which order. From that follows who
//! depends on whom, and a circle of dependencies is an anomaly.
//!
//! The anomalies are those of Adya (*Weak Consistency: A Generalized Theory and Optimistic Implementations for
//! Distributed Transactions*, MIT 1999), and they are read from lists as in Elle (Kingsbury and Alvaro, *Elle:
//! Inferring Isolation Anomalies from Experimental Observations*, VLDB 2020). Elle infers the order of the
//! versions from all reads; here the test reads all lists at the end, when nobody writes any more, and that
//! is the order.
//!
//! Three dependencies lead from one transaction to another:
//!
//! | edge | the other one |
//! |---|---|
//! | write-write | appended the next element to the same list |
//! | write-read | read a list that ends with the first one's element |
//! | read-write | appended the next element to a list as the first one has read it |
//!
//! A transaction of unknown outcome is committed if an element of it is in a list at the end. Else it is left
//! out, as one that has failed, whose elements nobody may see.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;

use crate::history::{OpId, Operation, Outcome};

/// What a transaction does, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Put `element` at the end of the list of `key`.
    Append {
        /// Which list.
        key: u64,
        /// Appended by nobody else, to no list.
        element: u64,
    },
    /// Read the list of `key`.
    Read {
        /// Which list.
        key: u64,
    },
}

/// A transaction, whose answer is what each of its reads has seen, in the order of the reads.
pub type Transaction = Operation<Vec<Step>, Vec<Vec<u64>>>;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Anomaly {
    /// An append of a committed transaction is not in the list at the end.
    Lost,
    /// An element is in a list more than once at the end.
    Twice,
    /// A list was read with an element that nobody has appended to it.
    OutOfNowhere,
    /// A transaction does not see what it has itself appended before, or sees what it appends later, or two of its
    /// appends are in the list the wrong way round.
    Internal,
    /// A list was read that is no beginning of what it is at the end: what was seen was undone.
    Undone,
    /// G0: a circle of write-write dependencies.
    DirtyWrite,
    /// G1a: what a failed transaction has written was seen.
    AbortedRead,
    /// G1b: a list was read that ends half-way in a transaction.
    IntermediateRead,
    /// G1c: a circle of write-write and write-read dependencies.
    CircularInformation,
    /// P4: two transactions have read the same version of a list, and both appended to it.
    LostUpdate,
    /// G-single: a circle with one read-write dependency, such as a skewed read.
    SingleAntiDependency,
    /// A circle with several read-write dependencies, of which none follows another at once, such as two readers
    /// who see two changes in different orders: snapshots have an order, so it cannot be on them.
    ScatteredAntiDependencies,
    /// G2: a circle with several read-write dependencies, such as a skewed write.
    AntiDependencies,
}

/// What a database promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Adya's PL-2: no G0, no G1.
    ReadCommitted,
    /// Snapshot isolation, PostgreSQL's REPEATABLE READ: no lost update and no G-single either, and of G2 only
    /// circles in which one read-write dependency follows another.
    Snapshot,
    /// No anomaly at all.
    Serializable,
}

impl Level {
    /// Whether this may happen there.
    #[must_use]
    pub fn allows(self, anomaly: Anomaly) -> bool {
        match anomaly {
            Anomaly::LostUpdate
            | Anomaly::SingleAntiDependency
            | Anomaly::ScatteredAntiDependencies => self <= Self::ReadCommitted,
            Anomaly::AntiDependencies => self <= Self::Snapshot,
            _ => false,
        }
    }
}

/// The judgement of a history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Transactions that were committed, those found out included.
    pub committed: usize,
    /// Reads of lists that were judged.
    pub reads: usize,
    /// Dependencies of one transaction on another.
    pub edges: usize,
    /// What was found, each with its transactions: those of a circle in its order. Of a knot of transactions that
    /// depend on one another one circle is shown, of the gravest kind.
    pub anomalies: BTreeMap<Anomaly, Vec<Vec<OpId>>>,
}

impl Report {
    /// Whether there is nothing that the level does not allow.
    #[must_use]
    pub fn holds(&self, level: Level) -> bool {
        self.anomalies.keys().all(|&anomaly| level.allows(anomaly))
    }

    /// Whether this was found.
    #[must_use]
    pub fn has(&self, anomaly: Anomaly) -> bool {
        self.anomalies.contains_key(&anomaly)
    }

    fn found(&mut self, anomaly: Anomaly, transactions: Vec<OpId>) {
        self.anomalies
            .entry(anomaly)
            .or_default()
            .push(transactions);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} transactions, {} reads, {} dependencies",
            self.committed, self.reads, self.edges
        )?;
        for (anomaly, cases) in &self.anomalies {
            write!(f, "\n{anomaly:?} {}, at first:", cases.len())?;
            for id in &cases[0] {
                write!(f, " {id}")?;
            }
        }
        Ok(())
    }
}

/// Judges the transactions by what the lists are at the end. A list that is not in `end` is empty.
///
/// Linear in the length of all lists read, but for knots of transactions: of one, a search for each of its
/// read-write dependencies.
///
/// # Panics
///
/// When an element is appended twice, or an answer has not a list for each read: faults of the test.
///
/// # Examples
///
/// ```
/// use std::collections::BTreeMap;
/// use lockkit_test::history::{Outcome, ProcessId, Recorder};
/// use lockkit_test::list_append::{self, Anomaly, Level, Step};
///
/// // Each reads the list that the other one writes, and sees nothing of it.
/// let recorder = Recorder::new();
/// for (worker, reads, writes) in [(1, 10, 20), (2, 20, 10)] {
///     let steps = vec![Step::Read { key: reads }, Step::Append { key: writes, element: writes + 1 }];
///     let id = recorder.invoke(ProcessId::worker(worker), steps);
///     recorder.complete(id, Outcome::Done(vec![vec![]]));
/// }
/// let transactions = recorder.history().operations()?;
/// let end = BTreeMap::from([(10, vec![11]), (20, vec![21])]);
/// let report = list_append::check(&transactions, &end);
/// assert!(report.has(Anomaly::AntiDependencies), "{report}");
/// assert!(report.holds(Level::Snapshot) && !report.holds(Level::Serializable));
/// # Ok::<(), lockkit_test::history::IllFormed>(())
/// ```
#[must_use]
pub fn check(transactions: &[Transaction], end: &BTreeMap<u64, Vec<u64>>) -> Report {
    let mut past = Past::of(transactions, end);
    past.judge_end();
    for at in 0..transactions.len() {
        past.judge_reads(at);
    }
    past.judge_circles();
    past.report
}

/// Who has appended an element.
#[derive(Clone, Copy)]
struct Writer {
    transaction: usize,
    /// By which of its steps.
    step: usize,
    key: u64,
    /// Whether it is the transaction's last one to that list.
    last: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    WriteWrite,
    WriteRead,
    ReadWrite,
}

struct Past<'a> {
    transactions: &'a [Transaction],
    end: &'a BTreeMap<u64, Vec<u64>>,
    writers: HashMap<u64, Writer>,
    /// To whom from each, and how.
    graph: Vec<Vec<(usize, Kind)>>,
    /// From whom to whom, and how: each once in the graph, however many have read what one has written.
    known: HashSet<(usize, usize, Kind)>,
    /// Who has read which version of which list and then appended to it.
    read_and_written: BTreeMap<(u64, usize), Vec<usize>>,
    report: Report,
}

impl<'a> Past<'a> {
    fn of(transactions: &'a [Transaction], end: &'a BTreeMap<u64, Vec<u64>>) -> Self {
        let mut writers = HashMap::new();
        for (transaction, operation) in transactions.iter().enumerate() {
            let mut later = HashSet::new();
            for (step, did) in operation.op.iter().enumerate().rev() {
                if let &Step::Append { key, element } = did {
                    let last = later.insert(key);
                    let writer = Writer {
                        transaction,
                        step,
                        key,
                        last,
                    };
                    let other = writers.insert(element, writer);
                    assert!(other.is_none(), "{element} is appended twice");
                }
            }
        }
        Self {
            transactions,
            end,
            writers,
            graph: vec![Vec::new(); transactions.len()],
            known: HashSet::new(),
            read_and_written: BTreeMap::new(),
            report: Report::default(),
        }
    }

    fn id(&self, transaction: usize) -> OpId {
        self.transactions[transaction].id
    }

    fn failed(&self, transaction: usize) -> bool {
        let outcome = &self.transactions[transaction].outcome;
        matches!(outcome, Outcome::NotDone | Outcome::Busy)
    }

    fn edge(&mut self, from: usize, to: usize, kind: Kind) {
        if from != to && self.known.insert((from, to, kind)) {
            self.graph[from].push((to, kind));
            self.report.edges += 1;
        }
    }

    /// The lists as they are at the end: what has to be in them, what may be, and in which order it came.
    fn judge_end(&mut self) {
        let mut present = HashSet::new();
        for (&key, list) in self.end {
            let mut before: Option<Writer> = None;
            for &element in list {
                let writer = self.writers.get(&element).copied();
                let Some(writer) = writer.filter(|writer| writer.key == key) else {
                    self.report.found(Anomaly::OutOfNowhere, Vec::new());
                    continue;
                };
                let by = writer.transaction;
                if !present.insert(element) {
                    self.report.found(Anomaly::Twice, vec![self.id(by)]);
                }
                if self.failed(by) {
                    self.report.found(Anomaly::AbortedRead, vec![self.id(by)]);
                }
                if let Some(before) = before.replace(writer) {
                    self.edge(before.transaction, by, Kind::WriteWrite);
                    if before.transaction == by && before.step > writer.step {
                        self.report.found(Anomaly::Internal, vec![self.id(by)]);
                    }
                }
            }
        }
        for transaction in self.transactions {
            let appends = transaction.op.iter().filter_map(|step| match step {
                Step::Append { element, .. } => Some(element),
                Step::Read { .. } => None,
            });
            let acknowledged = matches!(transaction.outcome, Outcome::Done(_));
            let found_out = transaction.outcome == Outcome::Unknown
                && appends.clone().any(|element| present.contains(element));
            let committed = acknowledged || found_out;
            self.report.committed += usize::from(committed);
            // What was found out by one append was to make all of them.
            if committed && appends.clone().any(|element| !present.contains(element)) {
                self.report.found(Anomaly::Lost, vec![transaction.id]);
            }
        }
    }

    /// What one transaction has read. Of one that has failed or is unknown, that is not known.
    fn judge_reads(&mut self, at: usize) {
        let transaction = &self.transactions[at];
        let Outcome::Done(answer) = &transaction.outcome else {
            return;
        };
        let mut answers = answer.iter();
        let mut own: HashMap<u64, Vec<u64>> = HashMap::new();
        // The version of each list that its next append there goes by.
        let mut before: HashMap<u64, usize> = HashMap::new();
        for step in &transaction.op {
            match *step {
                Step::Append { key, element } => {
                    if let Some(length) = before.remove(&key) {
                        let version = self.read_and_written.entry((key, length)).or_default();
                        version.push(at);
                    }
                    own.entry(key).or_default().push(element);
                }
                Step::Read { key } => {
                    let seen = answers.next().expect("a list for each read");
                    let own = own.get(&key).map_or(&[][..], Vec::as_slice);
                    self.judge_read(at, key, seen, own);
                    before.entry(key).or_insert(seen.len());
                }
            }
        }
        assert!(answers.next().is_none(), "a read for each list");
    }

    /// One read, and what the transaction had itself appended to that list before it.
    fn judge_read(&mut self, at: usize, key: u64, seen: &[u64], own: &[u64]) {
        self.report.reads += 1;
        let me = self.id(at);
        let Some(others) = seen.strip_suffix(own) else {
            return self.report.found(Anomaly::Internal, vec![me]);
        };
        for element in others {
            match self.writers.get(element) {
                Some(writer) if writer.key != key => {
                    self.report.found(Anomaly::OutOfNowhere, vec![me]);
                }
                None => self.report.found(Anomaly::OutOfNowhere, vec![me]),
                Some(writer) if writer.transaction == at => {
                    return self.report.found(Anomaly::Internal, vec![me]);
                }
                Some(&Writer { transaction, .. }) if self.failed(transaction) => {
                    let both = vec![self.id(transaction), me];
                    self.report.found(Anomaly::AbortedRead, both);
                }
                Some(_) => {}
            }
        }
        let last = others
            .last()
            .and_then(|last| self.writers.get(last).copied());
        if let Some(writer) = last.filter(|writer| !writer.last) {
            let both = vec![self.id(writer.transaction), me];
            self.report.found(Anomaly::IntermediateRead, both);
        }
        let end = self.end.get(&key).map_or(&[][..], Vec::as_slice);
        if !end.starts_with(seen) {
            // Which version it has read cannot be told.
            return self.report.found(Anomaly::Undone, vec![me]);
        }
        if let Some(writer) = last {
            self.edge(writer.transaction, at, Kind::WriteRead);
        }
        let next = end
            .get(others.len())
            .and_then(|next| self.writers.get(next));
        if let Some(&Writer { transaction, .. }) = next {
            self.edge(at, transaction, Kind::ReadWrite);
        }
    }

    fn judge_circles(&mut self) {
        for readers in std::mem::take(&mut self.read_and_written).into_values() {
            if readers.len() > 1 {
                let readers = readers.into_iter().map(|at| self.id(at)).collect();
                self.report.found(Anomaly::LostUpdate, readers);
            }
        }
        // Each with the edge that closes the circle, and what may lead back.
        let classes = [
            (Anomaly::DirtyWrite, Kind::WriteWrite, Back::WRITES),
            (Anomaly::CircularInformation, Kind::WriteRead, Back::READS),
            (Anomaly::SingleAntiDependency, Kind::ReadWrite, Back::READS),
            (
                Anomaly::ScatteredAntiDependencies,
                Kind::ReadWrite,
                Back::SCATTERED,
            ),
            (Anomaly::AntiDependencies, Kind::ReadWrite, Back::ANY),
        ];
        let mut in_circles = Vec::new();
        for (anomaly, closing, back) in classes {
            let knots = knots(&self.graph, closing.max(back.most));
            // Something graver was found in these.
            let mut done: HashSet<usize> = in_circles.iter().map(|&at: &usize| knots[at]).collect();
            for from in 0..self.graph.len() {
                for &(to, kind) in &self.graph[from] {
                    if kind != closing || knots[to] != knots[from] || done.contains(&knots[from]) {
                        continue;
                    }
                    if let Some(circle) = way(&self.graph, &knots, to, from, back) {
                        let ids = circle.iter().map(|&at| self.id(at)).collect();
                        self.report.found(anomaly, ids);
                        done.insert(knots[from]);
                        in_circles.extend(circle);
                    }
                }
            }
        }
    }
}

/// For each transaction its knot, within which a way leads from everyone to everyone, by edges up to this kind. A
/// knot has the number of one of its members.
fn knots(graph: &[Vec<(usize, Kind)>], most: Kind) -> Vec<usize> {
    // Kosaraju's two passes, without recursion, since a knot may be as large as the history.
    let mut backwards = vec![Vec::new(); graph.len()];
    for (from, edges) in graph.iter().enumerate() {
        for &(to, _) in edges.iter().filter(|(_, kind)| *kind <= most) {
            backwards[to].push(from);
        }
    }
    let mut ended = Vec::with_capacity(graph.len());
    let mut seen = vec![false; graph.len()];
    for start in 0..graph.len() {
        let mut path = vec![(start, 0)];
        if std::mem::replace(&mut seen[start], true) {
            continue;
        }
        while let Some((at, next)) = path.last_mut() {
            let at = *at;
            match graph[at].get(*next) {
                None => {
                    ended.push(at);
                    path.pop();
                }
                Some(&(to, kind)) => {
                    *next += 1;
                    if kind <= most && !std::mem::replace(&mut seen[to], true) {
                        path.push((to, 0));
                    }
                }
            }
        }
    }
    let mut knots = vec![usize::MAX; graph.len()];
    for start in ended.into_iter().rev() {
        if knots[start] != usize::MAX {
            continue;
        }
        let mut members = vec![start];
        knots[start] = start;
        let mut looked = 0;
        while let Some(&at) = members.get(looked) {
            looked += 1;
            for &from in &backwards[at] {
                if knots[from] == usize::MAX {
                    knots[from] = start;
                    members.push(from);
                }
            }
        }
    }
    knots
}

/// Which edges may lead back to where a circle began.
#[derive(Clone, Copy)]
struct Back {
    /// Up to this kind.
    most: Kind,
    /// Whether read-write edges stand apart: neither at the ends of the way, as one closes the circle, nor one
    /// after another.
    scattered: bool,
}

impl Back {
    const WRITES: Self = Self::up_to(Kind::WriteWrite);
    const READS: Self = Self::up_to(Kind::WriteRead);
    const ANY: Self = Self::up_to(Kind::ReadWrite);
    const SCATTERED: Self = Self {
        most: Kind::ReadWrite,
        scattered: true,
    };

    const fn up_to(most: Kind) -> Self {
        Self {
            most,
            scattered: false,
        }
    }
}

/// A shortest way from one to another within their knot. A scattered one may come by twice.
fn way(
    graph: &[Vec<(usize, Kind)>],
    knots: &[usize],
    from: usize,
    to: usize,
    back: Back,
) -> Option<Vec<usize>> {
    // A place is a transaction, and whether it was come to by an edge after which no read-write edge may be.
    let start = (from, back.scattered);
    let mut came_from = HashMap::from([(start, start)]);
    let mut next = VecDeque::from([start]);
    while let Some(place) = next.pop_front() {
        let (at, barred) = place;
        if at == to && !(barred && back.scattered) {
            let mut way = vec![at];
            let mut place = place;
            while place != start {
                place = came_from[&place];
                way.push(place.0);
            }
            way.reverse();
            return Some(way);
        }
        for &(to, kind) in &graph[at] {
            let read_write = kind == Kind::ReadWrite;
            if kind > back.most || (barred && read_write) || knots[to] != knots[from] {
                continue;
            }
            let other = (to, back.scattered && read_write);
            if let Entry::Vacant(unseen) = came_from.entry(other) {
                unseen.insert(place);
                next.push_back(other);
            }
        }
    }
    None
}
