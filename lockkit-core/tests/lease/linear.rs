//! The histories of locks in memory, and of lockers that use them, are explained, one operation after another.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use lockkit_core::lease::{Attempt, Fault, Guard, Locker, MemoryStore, Op, ReleaseOutcome};
use lockkit_test::history::{Operation, Outcome, ProcessId, Recorder};
use lockkit_test::lease::course;
use lockkit_test::linearizability::{Explained, Leased, LeasedAnswer, LeasedOp};
use lockkit_test::soak::seed;
use tokio::task::JoinSet;

const HISTORIES: u64 = 250;
const WORKERS: u32 = 5;
const TURNS: u32 = 6;

/// Nothing is over by itself.
const TTL: Duration = Duration::from_hours(1);

type Record = Recorder<LeasedOp, LeasedAnswer>;

// Mutant: B175
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn locks_in_memory_are_explained() {
    let mut all = Explained::of("locks in memory");
    for history in 0..HISTORIES {
        let store = MemoryStore::new();
        let stores: Vec<_> = (0..WORKERS).map(|_| Arc::new(store.clone())).collect();
        let expires: Option<fn(&MemoryStore)> = Some(|store| store.advance(2 * TTL));
        let seed = seed() * HISTORIES + history;
        let operations = course(&stores, "k", TURNS, seed, expires).await;
        all.explain(&Leased::default(), &operations);
    }
    all.tell(HISTORIES);
}

/// A locker each, as processes have, and calls that go wrong.
// Mutant: B176
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lockers_of_several_are_explained() {
    let mut all = Explained::of("lockers in memory");
    for history in 0..HISTORIES {
        let store = MemoryStore::new();
        let lockers: Vec<_> = (0..WORKERS).map(|_| locker(&store)).collect();
        let operations = taken(lockers, seed() * HISTORIES + history, Ask::Once);
        all.explain(&Leased::default(), &operations.await);
    }
    all.tell(HISTORIES);
}

/// One for all of them, who wait for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_locker_is_explained() {
    const FEWER: u64 = HISTORIES / 5;
    let mut all = Explained::of("lockers in memory");
    for history in 0..FEWER {
        let locker = locker(&MemoryStore::new());
        let lockers = (0..WORKERS).map(|_| locker.clone()).collect();
        let operations = taken(lockers, seed() * FEWER + history, Ask::Wait);
        all.explain(&Leased::default(), &operations.await);
    }
    all.tell(FEWER);
}

fn locker(store: &MemoryStore) -> Locker<MemoryStore> {
    Locker::builder(store.clone()).ttl(TTL).build().unwrap()
}

#[derive(Clone, Copy)]
enum Ask {
    /// And some calls of the store go wrong.
    Once,
    Wait,
}

/// What came of it when these took the lock and gave it back, all at once.
async fn taken(
    lockers: Vec<Locker<MemoryStore>>,
    seed: u64,
    ask: Ask,
) -> Vec<Operation<LeasedOp, LeasedAnswer>> {
    let record = Arc::new(Record::new());
    let mut all = JoinSet::new();
    for (worker, locker) in lockers.into_iter().enumerate() {
        let (record, worker) = (Arc::clone(&record), worker as u32);
        let mut rng = Rng::with_seed(seed * 1000 + u64::from(worker));
        all.spawn(async move {
            let mut me = ProcessId::worker(worker);
            for who in worker * TURNS..(worker + 1) * TURNS {
                me = take(&record, me, who, &locker, &mut rng, ask).await;
            }
        });
    }
    while let Some(ended) = all.join_next().await {
        ended.unwrap();
    }
    record.history().operations().unwrap()
}

/// One turn; who goes on after that.
async fn take(
    record: &Record,
    me: ProcessId,
    who: u32,
    locker: &Locker<MemoryStore>,
    rng: &mut Rng,
    ask: Ask,
) -> ProcessId {
    let number = u64::from(who);
    // By somebody else, at some time from now on.
    let given_back_behind = || {
        record.invoke(ProcessId::worker(1000 + who), LeasedOp::Release(number));
    };
    let id = record.invoke(me, LeasedOp::Acquire(number));
    let guard: Guard<_> = match ask {
        Ask::Wait => locker.lock("k").acquire().await.unwrap(),
        Ask::Once => {
            if rng.u8(..4) == 0 {
                let op = [Op::Acquire, Op::Extend, Op::Release][rng.usize(..3)];
                let fault = [Fault::Refuse, Fault::LoseRequest, Fault::LoseReply][rng.usize(..3)];
                locker.store().inject(op, fault);
            }
            match locker.lock("k").try_acquire().await {
                Ok(Attempt::Acquired(guard)) => guard,
                Ok(Attempt::Busy { .. }) => return record.complete(id, Outcome::Busy),
                Err(_) => {
                    given_back_behind();
                    return record.complete(id, Outcome::Unknown);
                }
            }
        }
    };
    let granted = LeasedAnswer::Granted(guard.fence().get());
    let mut me = record.complete(id, Outcome::Done(granted));
    if rng.bool() {
        let id = record.invoke(me, LeasedOp::Extend(number));
        let outcome = match guard.extend(TTL).await {
            Ok(_) => Outcome::Done(LeasedAnswer::His),
            Err(_) => Outcome::Unknown,
        };
        me = record.complete(id, outcome);
    }
    if rng.u8(..4) == 0 {
        given_back_behind();
        drop(guard);
        return me;
    }
    let id = record.invoke(me, LeasedOp::Release(number));
    let outcome = match guard.release().await {
        ReleaseOutcome::Released => Outcome::Done(LeasedAnswer::His),
        ReleaseOutcome::AlreadyExpired => Outcome::Done(LeasedAnswer::Nobodys),
        ReleaseOutcome::HeldByOther => Outcome::Done(LeasedAnswer::Anothers),
        _ => Outcome::Unknown,
    };
    record.complete(id, outcome)
}
