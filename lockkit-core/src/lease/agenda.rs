//! What a background task is to do, and when; and whether there is such a task.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::sync::Mutex;

/// For so long a worker that finds the agenda empty looks out for what was put on it and is off it again.
const LINGER: Duration = Duration::from_millis(100);

/// Things to do at their times, of which one worker takes those that are due.
///
/// The worker is made by whoever puts the first thing on the agenda, and ends when the agenda is closed and
/// empty. Both are decided under the one lock: nothing is put on an agenda that nobody will look at.
///
/// | `worker` | what is true | who leaves it |
/// |---|---|---|
/// | `None` | nobody looks; nothing was put on it yet, or the runtime has dropped the worker | whoever puts something on it: `Awake`, and he makes the worker |
/// | `Awake` | the worker is about to look | the worker: `Asleep`, or `None` when it ends or is dropped |
/// | `Asleep` | the worker looks at its time, or when its waker is called | the worker; whoever puts on something for an earlier time, or closes: `Awake`, and he wakes it |
#[derive(Debug)]
pub(crate) struct Agenda<T> {
    books: Mutex<Books<T>>,
}

#[derive(Debug)]
struct Books<T> {
    items: BTreeMap<(Instant, u64), T>,
    /// When each is due.
    times: BTreeMap<u64, Instant>,
    next_id: u64,
    /// What that was when the worker has last found the agenda empty.
    seen_id: u64,
    /// It has room for so many.
    most: usize,
    closed: bool,
    worker: Worker,
}

#[derive(Debug)]
enum Worker {
    None,
    Awake,
    Asleep {
        until: Option<Instant>,
        waker: Waker,
    },
}

/// What the worker finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look<T> {
    /// These are due, and off the agenda.
    Due(Vec<(u64, T)>),
    /// Nothing is before this time, if ever, or before the waker is called.
    Sleep(Option<Instant>),
    /// There is nothing more to do, and there is no worker any more.
    End,
}

/// What was put on the agenda.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    /// The caller is to make the worker.
    pub(crate) start: bool,
}

impl<T> Agenda<T> {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            books: Mutex::new(Books {
                items: BTreeMap::new(),
                times: BTreeMap::new(),
                next_id: 0,
                seen_id: 0,
                most,
                closed: false,
                worker: Worker::None,
            }),
        }
    }

    /// Puts something on the agenda, unless it is full.
    pub(crate) fn put(&self, at: Instant, item: T) -> Result<Entry, T> {
        let mut books = self.books.lock();
        if books.items.len() >= books.most {
            drop(books);
            return Err(item);
        }
        let id = books.next_id;
        books.next_id += 1;
        books.insert(id, at, item);
        let start = matches!(books.worker, Worker::None);
        if start {
            books.worker = Worker::Awake;
        }
        let waker = books.rouse(Some(at));
        drop(books);
        wake(waker);
        Ok(Entry { id, start })
    }

    /// Puts back what the worker has taken, unless it is not wanted any more. That is asked under the lock:
    /// whoever makes it unwanted, and [`remove`](Self::remove)s it then, finds it, or it is not put back.
    pub(crate) fn put_back(&self, id: u64, at: Instant, item: T, wanted: impl FnOnce(&T) -> bool) {
        let mut books = self.books.lock();
        if !wanted(&item) {
            drop(books);
            return drop(item);
        }
        books.insert(id, at, item);
        // Not always the worker: it may be one whom the worker has sent.
        let waker = books.rouse(Some(at));
        drop(books);
        wake(waker);
    }

    /// Makes it due at `at` if that is earlier, and if it is on the agenda.
    pub(crate) fn bring_forward(&self, id: u64, at: Instant) {
        let mut books = self.books.lock();
        let waker = match books.times.get(&id) {
            Some(&due) if at < due => {
                let item = books.take(id).expect("it has a time, so it is there");
                books.insert(id, at, item);
                books.rouse(Some(at))
            }
            _ => None,
        };
        drop(books);
        wake(waker);
    }

    /// Takes something off the agenda.
    pub(crate) fn remove(&self, id: u64) -> Option<T> {
        self.books.lock().take(id)
    }

    /// The worker may end when nothing is left.
    pub(crate) fn close(&self) {
        let mut books = self.books.lock();
        books.closed = true;
        let waker = books.rouse(None);
        drop(books);
        wake(waker);
    }

    /// The worker takes what is due at `now`, but no more than `most`.
    pub(crate) fn look(&self, now: Instant, most: usize, task: &Waker) -> Look<T> {
        let waker = task.clone();
        let mut books = self.books.lock();
        let mut due = Vec::new();
        while due.len() < most
            && let Some(first) = books.items.first_entry()
            && first.key().0 <= now
        {
            let ((_, id), item) = first.remove_entry();
            books.times.remove(&id);
            due.push((id, item));
        }
        let (look, worker) = if !due.is_empty() {
            (Look::Due(due), Worker::Awake)
        } else if books.closed && books.items.is_empty() {
            (Look::End, Worker::None)
        } else {
            let until = match books.items.keys().next() {
                Some((at, _)) => Some(*at),
                None => books.linger(now),
            };
            (Look::Sleep(until), Worker::Asleep { until, waker })
        };
        let old = std::mem::replace(&mut books.worker, worker);
        drop(books);
        drop(old);
        look
    }

    /// The worker is no more, whatever is left to do.
    pub(crate) fn abandon(&self) {
        let mut books = self.books.lock();
        let old = std::mem::replace(&mut books.worker, Worker::None);
        drop(books);
        drop(old);
    }

    /// How much there is to do.
    pub(crate) fn len(&self) -> usize {
        self.books.lock().items.len()
    }
}

impl<T> Books<T> {
    fn insert(&mut self, id: u64, at: Instant, item: T) {
        self.items.insert((at, id), item);
        self.times.insert(id, at);
    }

    fn take(&mut self, id: u64) -> Option<T> {
        let at = self.times.remove(&id)?;
        self.items.remove(&(at, id))
    }

    /// When to look at an empty agenda again. Where things are put on and taken off before their time, and the
    /// agenda is empty in between, the worker would be woken for each, and find nothing: so it looks by itself for
    /// a while, and is woken only for what is due before that.
    fn linger(&mut self, now: Instant) -> Option<Instant> {
        let seen = std::mem::replace(&mut self.seen_id, self.next_id);
        (seen != self.next_id).then(|| now + LINGER)
    }

    /// The waker of a worker that sleeps for longer than until `at`; with `None`, of one that sleeps.
    fn rouse(&mut self, at: Option<Instant>) -> Option<Waker> {
        match &self.worker {
            Worker::Asleep { until, .. }
                if at.is_none_or(|at| until.is_none_or(|until| at < until)) =>
            {
                let worker = std::mem::replace(&mut self.worker, Worker::Awake);
                match worker {
                    Worker::Asleep { waker, .. } => Some(waker),
                    Worker::None | Worker::Awake => None,
                }
            }
            _ => None,
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
