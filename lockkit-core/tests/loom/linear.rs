//! Every schedule of a few threads has a history that a plain thing explains, one operation after another.

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering as StdOrdering};

use linear::{Flights, FlightsOp, Lock, LockOp, Permits, PermitsOp};
use lockkit_core::model::{block_on, check, refute};
use lockkit_core::sync::Mutex as Lockable;
use lockkit_core::sync::atomic::{AtomicUsize, Ordering};
use lockkit_core::sync::thread::spawn;
use lockkit_core::{KeyedMutex, Semaphore, SingleFlight};
use lockkit_test::history::{OpId, Operation, Outcome, ProcessId, Recorder};
use lockkit_test::linearizability::{self as linear, Model};

/// Without a seed: which shard a key is in must not differ from run to run.
type Mutex = KeyedMutex<u8, BuildHasherDefault<DefaultHasher>>;
type Record<M> = Arc<Clerk<<M as Model>::Op, <M as Model>::Answer>>;

/// Records under a lock that the checker sees. Without it, what came before by the clock would not have come before by any
/// rule of memory, and a thread might be refused by what it saw long ago.
struct Clerk<O, T> {
    recorder: Recorder<O, T>,
    order: Lockable<()>,
}

impl<O, T> Default for Clerk<O, T> {
    fn default() -> Self {
        Self {
            recorder: Recorder::new(),
            order: Lockable::new(()),
        }
    }
}

impl<O: Clone, T: Clone> Clerk<O, T> {
    fn invoke(&self, process: ProcessId, op: O) -> OpId {
        let _order = self.order.lock();
        self.recorder.invoke(process, op)
    }

    fn complete(&self, id: OpId, outcome: Outcome<T>) {
        let _order = self.order.lock();
        self.recorder.complete(id, outcome);
    }

    fn operations(&self) -> Vec<Operation<O, T>> {
        self.recorder.history().operations().unwrap()
    }
}

/// Records what an act comes to.
fn told<M: Model<Op: Clone, Answer: Clone>, T>(
    record: &Record<M>,
    worker: u32,
    op: M::Op,
    act: impl FnOnce() -> (T, Outcome<M::Answer>),
) -> T {
    let id = record.invoke(ProcessId::worker(worker), op);
    let (value, outcome) = act();
    record.complete(id, outcome);
    value
}

fn done<T>(value: T) -> (T, Outcome<()>) {
    (value, Outcome::Done(()))
}

#[track_caller]
fn is_explained<M: Model<Op: Clone, Answer: Clone>>(initial: &M, record: &Record<M>) {
    let operations = record.operations();
    let verdict = linear::check(initial, &operations);
    assert!(verdict.is_explained(), "{verdict}");
}

// Mutant: T34
#[test]
fn linear_permits() {
    check("linear: permits", 3, || {
        let semaphore = Arc::new(Semaphore::new(2).unwrap());
        let record: Record<Permits> = Arc::default();
        let works = |worker, count| {
            let (semaphore, record) = (Arc::clone(&semaphore), Arc::clone(&record));
            move || {
                let permit = told::<Permits, _>(&record, worker, PermitsOp::Acquire(count), || {
                    done(block_on(semaphore.acquire_many(count)).unwrap())
                });
                told::<Permits, _>(&record, worker, PermitsOp::Release(count), || {
                    drop(permit);
                    done(())
                });
            }
        };
        let others = [spawn(works(1, 1)), spawn(works(2, 2))];
        works(0, 1)();
        for other in others {
            other.join().unwrap();
        }
        is_explained(&Permits { free: 2 }, &record);
    });
}

// Mutant: T34
#[test]
fn linear_tries() {
    check("linear: tries", 3, || {
        let semaphore = Arc::new(Semaphore::new(1).unwrap());
        let record: Record<Permits> = Arc::default();
        let works = |worker| {
            let (semaphore, record) = (Arc::clone(&semaphore), Arc::clone(&record));
            move || {
                let permit = told::<Permits, _>(&record, worker, PermitsOp::Try(1), || {
                    let permit = semaphore.try_acquire().ok();
                    let outcome = if permit.is_some() {
                        Outcome::Done(())
                    } else {
                        Outcome::Busy
                    };
                    (permit, outcome)
                });
                if let Some(permit) = permit {
                    told::<Permits, _>(&record, worker, PermitsOp::Release(1), || {
                        drop(permit);
                        done(())
                    });
                }
            }
        };
        let others = [spawn(works(1)), spawn(works(2))];
        works(0)();
        for other in others {
            other.join().unwrap();
        }
        is_explained(&Permits { free: 1 }, &record);
    });
}

/// The control: permits that are looked at, and then taken.
#[test]
fn linear_permits_in_two_steps_are_found() {
    let found = refute("linear: permits in two steps", 2, || {
        let free = Arc::new(AtomicUsize::new(1));
        let record: Record<Permits> = Arc::default();
        let works = |worker| {
            let (free, record) = (Arc::clone(&free), Arc::clone(&record));
            move || {
                told::<Permits, _>(&record, worker, PermitsOp::Try(1), || {
                    let seen = free.load(Ordering::SeqCst);
                    if seen == 0 {
                        return ((), Outcome::Busy);
                    }
                    free.store(seen - 1, Ordering::SeqCst);
                    done(())
                });
            }
        };
        let other = spawn(works(1));
        works(0)();
        other.join().unwrap();
        is_explained(&Permits { free: 1 }, &record);
    });
    assert!(found.contains("cannot be explained"), "{found}");
}

// Mutant: T35
#[test]
fn linear_keyed_lock() {
    check("linear: a keyed lock", 3, || {
        let mutex = Arc::new(Mutex::default());
        let record: Record<Lock> = Arc::default();
        let works = |worker| {
            let (mutex, record) = (Arc::clone(&mutex), Arc::clone(&record));
            move || {
                let guard = told::<Lock, _>(&record, worker, LockOp::Lock, || {
                    done(block_on(mutex.lock(7)))
                });
                told::<Lock, _>(&record, worker, LockOp::Unlock, || {
                    drop(guard);
                    done(())
                });
            }
        };
        let others = [spawn(works(1)), spawn(works(2))];
        works(0)();
        for other in others {
            other.join().unwrap();
        }
        is_explained(&Lock::default(), &record);
    });
}

// Mutant: T36
#[test]
fn linear_single_flight() {
    check("linear: a single flight", 3, || {
        let flights = Arc::new(SingleFlight::<(), u64>::new());
        let record: Record<Flights> = Arc::default();
        // Of std: the checker need not see how they are numbered.
        let number = Arc::new(AtomicU64::new(1));
        let works = |worker| {
            let (flights, record, number) = (
                Arc::clone(&flights),
                Arc::clone(&record),
                Arc::clone(&number),
            );
            move || {
                told::<Flights, _>(&record, worker, FlightsOp::Call, || {
                    let work = || {
                        let flight = number.fetch_add(1, StdOrdering::Relaxed);
                        let of_it =
                            |begins: u32| ProcessId::worker(100 + 2 * flight as u32 + begins);
                        let begin = record.invoke(of_it(0), FlightsOp::Begin(flight));
                        record.complete(begin, Outcome::Done(flight));
                        let (record, process) = (Arc::clone(&record), of_it(1));
                        async move {
                            record.invoke(process, FlightsOp::End(flight));
                            flight
                        }
                    };
                    let flight = block_on(flights.run((), work)).unwrap();
                    ((), Outcome::Done(flight))
                });
            }
        };
        let others = [spawn(works(1)), spawn(works(2))];
        works(0)();
        for other in others {
            other.join().unwrap();
        }
        let operations = Flights::closed(record.operations());
        let verdict = linear::check(&Flights::default(), &operations);
        assert!(verdict.is_explained(), "{verdict}");
    });
}
