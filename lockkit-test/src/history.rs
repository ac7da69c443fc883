//! Records what was asked of a system and what came of it, for a checker to judge.
//!
//! Every operation ends in one of four ways: done, definitely not done, busy, or **unknown**. An
//! operation of unknown outcome may take effect at any later time, so it stays open to the end of
//! the history, and so does one whose process was killed before it could tell.
//!
//! A [`Recorder`] is shared by the threads and tasks of one operating-system process. A child that
//! is to be killed streams its events ([`Recorder::streaming`]): what it invoked is then on record
//! before it happens. Its parent reads the lines back ([`History::read_from`]) and merges them
//! ([`History::merge`]).
//!
//! **Time** is `CLOCK_MONOTONIC` in nanoseconds, which all processes of one host share as long as
//! they run in the same time namespace. It says nothing across hosts or after a reboot.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, BufRead, Write};

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome<T> {
    /// It took effect, once, between its start and its end.
    Done(T),
    /// It took no effect and never will.
    NotDone,
    /// It was refused because of somebody else: taken, conflicting, stale. No effect either.
    Busy,
    /// Nobody can tell: it took effect, or will, or never does.
    Unknown,
}

/// One strand of operations that follow one another: a task or a worker, and which of its lives.
///
/// The number of a worker is chosen by the caller and is unique over all processes whose histories
/// are merged. A strand whose operation is unknown may still be busy with it, so the worker goes on
/// as its [`successor`](Self::successor).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    worker: u32,
    life: u32,
}

impl ProcessId {
    /// The first life of this worker.
    #[must_use]
    pub const fn worker(worker: u32) -> Self {
        Self { worker, life: 0 }
    }

    /// The next life of the same worker.
    ///
    /// # Panics
    ///
    /// After `u32::MAX` lives.
    #[must_use]
    pub const fn successor(self) -> Self {
        Self {
            worker: self.worker,
            life: self.life.checked_add(1).expect("fewer lives than 2^32"),
        }
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.worker, self.life)
    }
}

/// One operation: its process, and its number among the operations of that process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId {
    process: ProcessId,
    number: u64,
}

impl OpId {
    /// The operation of `process` with this number; numbers grow.
    #[must_use]
    pub const fn new(process: ProcessId, number: u64) -> Self {
        Self { process, number }
    }

    /// Whose operation it is.
    #[must_use]
    pub const fn process(self) -> ProcessId {
        self.process
    }
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.process, self.number)
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Time {
    /// The time now: one call of the kernel's clock, never failing.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event<O, T> {
    /// When it was recorded.
    pub at: Time,
    /// The operation it belongs to.
    pub id: OpId,
    /// What happened.
    pub what: What<O, T>,
}

/// What an [`Event`] says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What<O, T> {
    /// The operation is about to start.
    Invoke(O),
    /// The operation has ended.
    Complete(Outcome<T>),
}

/// An operation with its end, as checkers want it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<O, T> {
    /// Which one it is.
    pub id: OpId,
    /// What was asked.
    pub op: O,
    /// It took no effect before this.
    pub invoked: Time,
    /// It takes no effect after this; `None` if unknown.
    pub completed: Option<Time>,
    /// What came of it; [`Outcome::Unknown`] also when no completion was recorded.
    pub outcome: Outcome<T>,
}

/// Takes down the events of one operating-system process. Share it by reference or `Arc`.
///
/// # Examples
///
/// ```
/// use lockkit_test::history::{Outcome, ProcessId, Recorder};
///
/// let recorder = Recorder::new();
/// let mut me = ProcessId::worker(1);
/// let op = recorder.invoke(me, "increment");
/// me = recorder.complete(op, Outcome::Unknown); // the connection broke
/// let op = recorder.invoke(me, "increment");
/// me = recorder.complete(op, Outcome::Done(2));
/// # let _ = me;
///
/// let operations = recorder.history().operations()?;
/// assert_eq!(operations[0].completed, None);
/// assert_eq!(operations[1].outcome, Outcome::Done(2));
/// # Ok::<(), lockkit_test::history::IllFormed>(())
/// ```
pub struct Recorder<O, T> {
    state: Mutex<State<O, T>>,
}

struct State<O, T> {
    events: Vec<Event<O, T>>,
    invoked: HashMap<ProcessId, u64>,
    sink: Option<Sink<O, T>>,
}

type Sink<O, T> = Box<dyn FnMut(&Event<O, T>) -> io::Result<()> + Send>;

impl<O, T> Recorder<O, T> {
    /// Keeps the events in memory.
    #[must_use]
    pub fn new() -> Self {
        Self::with(None)
    }

    fn with(sink: Option<Sink<O, T>>) -> Self {
        Self {
            state: Mutex::new(State {
                events: Vec::new(),
                invoked: HashMap::new(),
                sink,
            }),
        }
    }

    /// Records that `process` is about to do `op`. Call it *before* the operation starts.
    ///
    /// Cost: a lock and an allocation; a streaming recorder has handed the line over to its sink
    /// when this returns.
    ///
    /// # Panics
    ///
    /// When the sink fails: a test without its record proves nothing.
    pub fn invoke(&self, process: ProcessId, op: O) -> OpId {
        let mut state = self.state.lock();
        let number = state.invoked.entry(process).or_default();
        let id = OpId::new(process, *number);
        *number += 1;
        state.record(id, What::Invoke(op));
        id
    }

    /// Records how operation `id` ended. Call it *after* it ended.
    ///
    /// Returns the process under which its worker goes on: the same, or the next life after
    /// [`Outcome::Unknown`]. That a process keeps to its turn is checked by
    /// [`History::operations`], not here.
    ///
    /// # Panics
    ///
    /// When the sink fails.
    pub fn complete(&self, id: OpId, outcome: Outcome<T>) -> ProcessId {
        let next = match outcome {
            Outcome::Unknown => id.process.successor(),
            Outcome::Done(_) | Outcome::NotDone | Outcome::Busy => id.process,
        };
        self.state.lock().record(id, What::Complete(outcome));
        next
    }
}

impl<O: Serialize, T: Serialize> Recorder<O, T> {
    /// Writes each event as a line of JSON and flushes it before the call that records it returns;
    /// keeps it in memory as well.
    ///
    /// What was handed to a pipe or a file survives the death of the process, and a line cut short
    /// by it is left out by [`History::read_from`].
    pub fn streaming(mut sink: impl Write + Send + 'static) -> Self {
        Self::with(Some(Box::new(move |event| {
            // One write a line, so that lines of several writers to one pipe do not mix.
            let mut line = serde_json::to_vec(event)?;
            line.push(b'\n');
            sink.write_all(&line)?;
            sink.flush()
        })))
    }
}

impl<O: Clone, T: Clone> Recorder<O, T> {
    /// A copy of what has been recorded so far.
    pub fn history(&self) -> History<O, T> {
        History::from_events(self.state.lock().events.iter().cloned())
    }
}

impl<O, T> Default for Recorder<O, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<O, T> fmt::Debug for Recorder<O, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events = self.state.lock().events.len();
        f.debug_struct("Recorder")
            .field("events", &events)
            .finish_non_exhaustive()
    }
}

impl<O, T> State<O, T> {
    /// Under the lock, so that the order of the events is the order of their times.
    fn record(&mut self, id: OpId, what: What<O, T>) {
        let at = Time::now();
        let event = Event { at, id, what };
        if let Some(sink) = &mut self.sink {
            sink(&event).expect("the history's sink takes its lines");
        }
        self.events.push(event);
    }
}

/// Events in the order of their times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History<O, T> {
    events: Vec<Event<O, T>>,
}

impl<O, T> History<O, T> {
    /// Sorts the events by time; those of one time stay in the order given.
    pub fn from_events(events: impl IntoIterator<Item = Event<O, T>>) -> Self {
        let mut events: Vec<_> = events.into_iter().collect();
        events.sort_by_key(|event| event.at);
        Self { events }
    }

    /// One history of many, taken on one host.
    pub fn merge(histories: impl IntoIterator<Item = Self>) -> Self {
        Self::from_events(histories.into_iter().flat_map(|history| history.events))
    }

    /// The events in order.
    #[must_use]
    pub fn events(&self) -> &[Event<O, T>] {
        &self.events
    }
}

impl<O: Clone, T: Clone> History<O, T> {
    /// The operations in the order of their starts, if the history is well formed.
    ///
    /// Linear in the number of events.
    ///
    /// # Errors
    ///
    /// [`IllFormed`] names the first operation that breaks a rule. It is a fault of the test, not
    /// of the system under test.
    pub fn operations(&self) -> Result<Vec<Operation<O, T>>, IllFormed> {
        let mut operations: Vec<Operation<O, T>> = Vec::new();
        let mut open: HashMap<ProcessId, usize> = HashMap::new();
        let mut last: HashMap<ProcessId, OpId> = HashMap::new();
        let mut retired: HashSet<ProcessId> = HashSet::new();
        for Event { at, id, what } in &self.events {
            let process = id.process;
            match what {
                What::Invoke(op) => {
                    if retired.contains(&process) {
                        return Err(IllFormed::AfterUnknown(*id));
                    }
                    if let Some(&earlier) = open.get(&process) {
                        return Err(IllFormed::TwoOpen(operations[earlier].id, *id));
                    }
                    if let Some(&earlier) = last.get(&process)
                        && earlier >= *id
                    {
                        return Err(IllFormed::OutOfOrder(earlier, *id));
                    }
                    last.insert(process, *id);
                    open.insert(process, operations.len());
                    operations.push(Operation {
                        id: *id,
                        op: op.clone(),
                        invoked: *at,
                        completed: None,
                        outcome: Outcome::Unknown,
                    });
                }
                What::Complete(outcome) => {
                    let Some(&index) = open.get(&process).filter(|&&i| operations[i].id == *id)
                    else {
                        let known = operations.iter().any(|operation| operation.id == *id);
                        return Err(if known {
                            IllFormed::CompletedTwice(*id)
                        } else {
                            IllFormed::NotInvoked(*id)
                        });
                    };
                    open.remove(&process);
                    if matches!(outcome, Outcome::Unknown) {
                        retired.insert(process);
                    } else {
                        operations[index].completed = Some(*at);
                    }
                    operations[index].outcome = outcome.clone();
                }
            }
        }
        Ok(operations)
    }
}

impl<O: Serialize, T: Serialize> History<O, T> {
    /// Writes a line of JSON an event.
    ///
    /// # Errors
    ///
    /// Those of `to`.
    pub fn write_to(&self, mut to: impl Write) -> io::Result<()> {
        for event in &self.events {
            serde_json::to_writer(&mut to, event)?;
            to.write_all(b"\n")?;
        }
        to.flush()
    }
}

impl<O: DeserializeOwned, T: DeserializeOwned> History<O, T> {
    /// Reads what [`write_to`](Self::write_to) or a streaming recorder wrote.
    ///
    /// A last line without its end is left out: its writer was killed while it wrote. If it was an
    /// invocation, the operation did not start; if it was a completion, the operation stays open.
    ///
    /// # Errors
    ///
    /// Those of `from`, and [`ReadError::Line`] for a line that is not an event of these types.
    pub fn read_from(mut from: impl BufRead) -> Result<Self, ReadError> {
        let mut events = Vec::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            from.read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                return Ok(Self::from_events(events));
            }
            events.push(
                serde_json::from_slice(&line).map_err(|source| ReadError::Line {
                    number: events.len() + 1,
                    source,
                })?,
            );
        }
    }
}

/// Why a history is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IllFormed {
    /// A process starts an operation while another of its own is open.
    #[error("operation {1} starts while {0} of the same process is open")]
    TwoOpen(OpId, OpId),
    /// A process goes on after an operation of unknown outcome.
    #[error("operation {0} belongs to a process that ended with an unknown outcome")]
    AfterUnknown(OpId),
    /// The numbers of a process do not grow: a number was used twice, by two processes under one
    /// name perhaps, or the clock went back.
    #[error("operation {1} comes after {0}, which has no smaller number")]
    OutOfOrder(OpId, OpId),
    /// A completion without, or before, its invocation.
    #[error("operation {0} is completed but was not invoked before")]
    NotInvoked(OpId),
    /// A second completion.
    #[error("operation {0} is completed twice")]
    CompletedTwice(OpId),
}

/// Why a history could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The source failed.
    #[error("the history could not be read")]
    Io(#[from] io::Error),
    /// A whole line that is no event.
    #[error("line {number} of the history is not an event")]
    Line {
        /// Counted from 1.
        number: usize,
        /// What the parser says.
        source: serde_json::Error,
    },
}
