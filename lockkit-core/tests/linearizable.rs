//! Histories of real threads, each of which a plain thing explains, one operation after another.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use lockkit_core::{KeyedMutex, Semaphore, SingleFlight};
use lockkit_test::history::{Outcome, ProcessId, Recorder};
use lockkit_test::linearizability::{
    Explained, Flights, FlightsOp, Lock, LockOp, Model, Permits, PermitsOp, Verdict, by, check,
};

/// Of few operations each, as many of those find more than one that is long.
const HISTORIES: u64 = 250;
const THREADS: u32 = 5;
const EACH: u64 = 12;

type Record<M> = Arc<Recorder<<M as Model>::Op, <M as Model>::Answer>>;

/// The history of threads that begin together, and do `act(thread, turn)` until each has had its turns.
fn history_of<O, T>(
    act: impl AsyncFn(&Recorder<O, T>, u32, u64) + Send + Sync + Copy,
) -> Vec<lockkit_test::history::Operation<O, T>>
where
    O: Clone + Send,
    T: Clone + Send,
{
    let record = Recorder::new();
    let together = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for worker in 0..THREADS {
            let (record, together) = (&record, &together);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .build()
                    .unwrap();
                together.wait();
                runtime.block_on(async {
                    for turn in 0..EACH {
                        act(record, worker, turn).await;
                    }
                });
            });
        }
    });
    record.history().operations().unwrap()
}

#[test]
fn permits_are_explained() {
    let mut all = Explained::of("semaphore");
    for _ in 0..HISTORIES {
        let semaphore = &Semaphore::new(3).unwrap();
        let operations = history_of(async move |record, worker, turn| {
            let process = ProcessId::worker(worker);
            let count = 1 + (u64::from(worker) + turn) as usize % 3;
            let id = record.invoke(process, PermitsOp::Acquire(count));
            let permit = semaphore.acquire_many(count).await.unwrap();
            record.complete(id, Outcome::Done(()));
            thread::yield_now();
            let id = record.invoke(process, PermitsOp::Release(count));
            drop(permit);
            record.complete(id, Outcome::Done(()));
        });
        all.explain(&Permits { free: 3 }, &operations);
    }
    all.tell(HISTORIES);
}

#[test]
fn tries_for_permits_are_explained() {
    let mut all = Explained::of("semaphore");
    for _ in 0..HISTORIES {
        let semaphore = &Semaphore::new(2).unwrap();
        let operations = history_of(async move |record, worker, _| {
            let process = ProcessId::worker(worker);
            let id = record.invoke(process, PermitsOp::Try(1));
            let Ok(permit) = semaphore.try_acquire() else {
                record.complete(id, Outcome::Busy);
                return;
            };
            record.complete(id, Outcome::Done(()));
            thread::yield_now();
            let id = record.invoke(process, PermitsOp::Release(1));
            drop(permit);
            record.complete(id, Outcome::Done(()));
        });
        all.explain(&Permits { free: 2 }, &operations);
    }
    all.tell(HISTORIES);
}

#[test]
fn keyed_locks_are_explained_key_by_key() {
    let mut all = Explained::of("keyed lock");
    for _ in 0..HISTORIES {
        let mutex = &KeyedMutex::<u64>::new();
        let operations = history_of(async move |record, worker, turn| {
            let process = ProcessId::worker(worker);
            let key = turn % 3;
            let id = record.invoke(process, (key, LockOp::Lock));
            let guard = mutex.lock(key).await;
            record.complete(id, Outcome::Done(()));
            thread::yield_now();
            let id = record.invoke(process, (key, LockOp::Unlock));
            drop(guard);
            record.complete(id, Outcome::Done(()));
        });
        for operations in by(&operations, |&(key, _)| key).into_values() {
            let of_one: Vec<_> = operations
                .into_iter()
                .map(|it| lockkit_test::history::Operation {
                    id: it.id,
                    op: it.op.1,
                    invoked: it.invoked,
                    completed: it.completed,
                    outcome: it.outcome,
                })
                .collect();
            all.explain(&Lock::default(), &of_one);
        }
    }
    all.tell(HISTORIES);
}

#[test]
fn flights_are_explained() {
    let mut all = Explained::of("single flight");
    for _ in 0..HISTORIES {
        let flights = &SingleFlight::<u8, u64>::new();
        let number = &AtomicU64::new(1);
        let record: Record<Flights> = Arc::default();
        let together = &Barrier::new(THREADS as usize);
        thread::scope(|scope| {
            for worker in 0..THREADS {
                let record = &record;
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .build()
                        .unwrap();
                    together.wait();
                    for _ in 0..EACH {
                        let work = || {
                            let flight = number.fetch_add(1, Ordering::Relaxed);
                            let of_it =
                                |ends: u32| ProcessId::worker(100 + 2 * flight as u32 + ends);
                            let begin = record.invoke(of_it(0), FlightsOp::Begin(flight));
                            record.complete(begin, Outcome::Done(flight));
                            let (record, process) = (Arc::clone(record), of_it(1));
                            async move {
                                tokio::task::yield_now().await;
                                record.invoke(process, FlightsOp::End(flight));
                                flight
                            }
                        };
                        let id = record.invoke(ProcessId::worker(worker), FlightsOp::Call);
                        let flight = runtime.block_on(flights.run(7, work)).unwrap();
                        record.complete(id, Outcome::Done(flight));
                    }
                });
            }
        });
        let operations = Flights::closed(record.history().operations().unwrap());
        all.explain(&Flights::default(), &operations);
    }
    all.tell(HISTORIES);
}

/// The control: two threads that both have looked before either takes.
#[test]
fn permits_in_two_steps_are_not_explained() {
    let (free, looked) = (&AtomicUsize::new(1), &Barrier::new(2));
    let record: &Recorder<PermitsOp, ()> = &Recorder::new();
    thread::scope(|scope| {
        for worker in 0..2 {
            scope.spawn(move || {
                let id = record.invoke(ProcessId::worker(worker), PermitsOp::Try(1));
                let seen = free.load(Ordering::SeqCst);
                looked.wait();
                free.store(seen - 1, Ordering::SeqCst);
                record.complete(id, Outcome::Done(()));
            });
        }
    });
    let verdict = check(
        &Permits { free: 1 },
        &record.history().operations().unwrap(),
    );
    assert!(matches!(verdict, Verdict::Impossible { .. }), "{verdict}");
}
