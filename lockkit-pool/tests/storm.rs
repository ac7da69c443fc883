//! Many tasks at once, most of which are cut short, fail or are in the others' way: nobody is let in twice, nothing is
//! lost, and in the end all is as in the beginning.
//!
//! The counts are for a run of every day; `cargo xtask soak` multiplies them, and draws other courses of events.

use std::collections::BTreeMap;
use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lockkit_core::{FlightError, KeyedMutex, Semaphore, SingleFlight};
use lockkit_pool::{Outcome, WorkerPool};
use lockkit_test::soak::{Tally, seed, times};
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;

const TASKS: u64 = 16;

/// When all trouble is over, everybody has what he wants within that.
const SOON: Duration = Duration::from_secs(5);

/// More than this for each time, and they are stuck. Some seconds would do.
const LIMIT: Duration = Duration::from_mins(3);

/// Polls it a few times at most, and then drops it where it is.
async fn cut_short<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// A panic that drops what it is given, and prints nothing.
fn panic_with<T>(held: T) {
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _held = held;
        resume_unwind(Box::new("on purpose"));
    }));
    assert!(panicked.is_err());
}

/// How often what happened.
#[derive(Default)]
struct Counts {
    operations: AtomicU64,
    cut_short: AtomicU64,
    timed_out: AtomicU64,
    panics: AtomicU64,
    resizes: AtomicU64,
    violations: AtomicU64,
}

impl Counts {
    fn add(count: &AtomicU64) {
        // Ordering: Relaxed, it is read when all who add have been joined.
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn demand(&self, holds: bool) {
        if !holds {
            Self::add(&self.violations);
        }
    }

    /// Prints them, and judges: each kind of trouble that there should have been has been there, and nothing is wrong.
    fn judge(&self, pattern: &'static str, troubles: &[&'static str], leaks: u64, calm: Duration) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let all = [
            ("cut short", of(&self.cut_short)),
            ("timed out", of(&self.timed_out)),
            ("panics", of(&self.panics)),
            ("resizes", of(&self.resizes)),
        ];
        let faults: BTreeMap<_, _> = all.into_iter().filter(|(_, count)| *count > 0).collect();
        let tally = Tally {
            pattern,
            operations: of(&self.operations),
            faults,
            violations: of(&self.violations),
            leaks,
            recovery_ms: calm.as_millis() as u64,
            ..Tally::default()
        };
        tally.print();
        assert_eq!((tally.violations, tally.leaks), (0, 0), "{tally:?}");
        for trouble in troubles {
            assert!(
                tally.faults.contains_key(trouble),
                "no {trouble} proves nothing: {tally:?}"
            );
        }
    }
}

/// Runs the tasks, each with its own random numbers, until each has done its share.
async fn in_tasks<F>(operations: u64, task: impl Fn(Rng, u64) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut all = JoinSet::new();
    for number in 0..TASKS {
        let rng = Rng::with_seed(seed() * 1000 + number);
        all.spawn(task(rng, times(operations) / TASKS));
    }
    let ended = timeout(LIMIT * times(1) as u32, all.join_all()).await;
    ended.expect("nobody waits for ever");
}

// Mutants: E1, E2
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_permit_is_lost_or_given_twice() {
    const LEAST: usize = 4;
    const MOST: usize = 12;
    let semaphore = Arc::new(Semaphore::new(LEAST).unwrap());
    let (counts, inside) = (Arc::new(Counts::default()), Arc::new(AtomicUsize::new(0)));
    // Nobody is let in beyond the largest size; that an unchanged one is exact is for the end, and for the models.
    in_tasks(5_000_000, |mut rng, operations| {
        let (semaphore, counts) = (Arc::clone(&semaphore), Arc::clone(&counts));
        let inside = Arc::clone(&inside);
        async move {
            for _ in 0..operations {
                let wanted = rng.usize(1..=LEAST);
                let permit = match rng.u8(..16) {
                    0 => {
                        semaphore.resize(rng.usize(LEAST..=MOST)).unwrap();
                        Counts::add(&counts.resizes);
                        None
                    }
                    1..=4 => semaphore.try_acquire_many(wanted).ok(),
                    5..=9 => {
                        let asked = semaphore.acquire_many(wanted);
                        let granted = cut_short(rng.u32(..3), asked).await;
                        if granted.is_none() {
                            Counts::add(&counts.cut_short);
                        }
                        granted.map(|granted| granted.expect("it is open"))
                    }
                    10 => {
                        let wait = Duration::from_micros(rng.u64(..50));
                        let granted = timeout(wait, semaphore.acquire_many(wanted)).await;
                        if granted.is_err() {
                            Counts::add(&counts.timed_out);
                        }
                        granted.ok().map(|granted| granted.expect("it is open"))
                    }
                    _ => Some(semaphore.acquire_many(wanted).await.expect("it is open")),
                };
                Counts::add(&counts.operations);
                let Some(mut permit) = permit else { continue };
                counts.demand(permit.count() == wanted);
                let now = inside.fetch_add(wanted, Ordering::SeqCst) + wanted;
                counts.demand(now <= MOST);
                if rng.bool() {
                    yield_now().await;
                }
                inside.fetch_sub(wanted, Ordering::SeqCst);
                match rng.u8(..8) {
                    0 => {
                        Counts::add(&counts.panics);
                        panic_with(permit);
                    }
                    1 if wanted > 1 => drop(permit.split(1)),
                    _ => {}
                }
            }
        }
    })
    .await;

    semaphore.resize(LEAST).unwrap();
    let calm = Instant::now();
    let all = timeout(SOON, semaphore.acquire_many(LEAST)).await;
    drop(all.expect("nobody has one any more").unwrap());
    let left = semaphore.held() + semaphore.waiting() + semaphore.available().abs_diff(LEAST);
    counts.judge(
        "semaphore",
        &["cut short", "timed out", "panics", "resizes"],
        left as u64,
        calm.elapsed(),
    );
}

// Mutant: E62
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_at_a_time_has_a_key() {
    const KEYS: usize = 8;
    let locks = Arc::new(KeyedMutex::new());
    let counts = Arc::new(Counts::default());
    let inside: Arc<[AtomicBool; KEYS]> = Arc::default();
    in_tasks(500_000, |mut rng, operations| {
        let (locks, counts) = (Arc::clone(&locks), Arc::clone(&counts));
        let inside = Arc::clone(&inside);
        async move {
            let enter = |key: usize| counts.demand(!inside[key].swap(true, Ordering::SeqCst));
            let leave = |key: usize| inside[key].store(false, Ordering::SeqCst);
            for _ in 0..operations {
                let (key, other) = (rng.usize(..KEYS), rng.usize(..KEYS));
                Counts::add(&counts.operations);
                let guard = match rng.u8(..8) {
                    0 => {
                        let guards = locks.lock_many([key, other]).await;
                        enter(key);
                        if other != key {
                            enter(other);
                        }
                        yield_now().await;
                        leave(key);
                        leave(other);
                        drop(guards);
                        None
                    }
                    1 | 2 => locks.try_lock(key).ok(),
                    3..=5 => {
                        let locked = cut_short(rng.u32(..3), locks.lock(key)).await;
                        if locked.is_none() {
                            Counts::add(&counts.cut_short);
                        }
                        locked
                    }
                    _ => Some(locks.lock(key).await),
                };
                let Some(guard) = guard else { continue };
                enter(key);
                if rng.bool() {
                    yield_now().await;
                }
                leave(key);
                if rng.u8(..16) == 0 {
                    Counts::add(&counts.panics);
                    panic_with(guard);
                }
            }
        }
    })
    .await;

    let calm = Instant::now();
    let all = timeout(SOON, locks.lock_many(0..KEYS)).await;
    drop(all.expect("nobody has a key any more"));
    let left = locks.len() + locks.waiting();
    counts.judge(
        "keyed lock",
        &["cut short", "panics"],
        left as u64,
        calm.elapsed(),
    );
}

// Mutant: E79
/// The works of a key are numbered. Who calls after somebody has been told a result is told a later one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_share_a_flight_and_none_is_told_an_old_result() {
    const KEYS: usize = 4;
    #[derive(Default)]
    struct Key {
        begun: AtomicU64,
        told: AtomicU64,
        polled: AtomicBool,
    }
    let flights = Arc::new(SingleFlight::<usize, (usize, u64)>::new());
    let counts = Arc::new(Counts::default());
    let keys: Arc<[Key; KEYS]> = Arc::default();
    in_tasks(500_000, |mut rng, operations| {
        let (flights, counts) = (Arc::clone(&flights), Arc::clone(&counts));
        let keys = Arc::clone(&keys);
        async move {
            for _ in 0..operations {
                let key = rng.usize(..KEYS);
                let (fails, mut turns) = (rng.u8(..16) == 0, rng.u8(..4));
                let before = keys[key].told.load(Ordering::SeqCst);
                let work = {
                    let (keys, counts) = (Arc::clone(&keys), Arc::clone(&counts));
                    move || {
                        let number = keys[key].begun.fetch_add(1, Ordering::SeqCst) + 1;
                        poll_fn(move |cx| {
                            // By one caller, of the one flight that there is.
                            counts.demand(!keys[key].polled.swap(true, Ordering::SeqCst));
                            let landed = turns == 0;
                            turns = turns.saturating_sub(1);
                            cx.waker().wake_by_ref();
                            keys[key].polled.store(false, Ordering::SeqCst);
                            if landed && fails {
                                resume_unwind(Box::new("on purpose"));
                            }
                            if landed {
                                Poll::Ready((key, number))
                            } else {
                                Poll::Pending
                            }
                        })
                    }
                };
                let run = flights.run(key, work);
                let told = if rng.bool() {
                    cut_short(rng.u32(..4), run).await
                } else {
                    Some(run.await)
                };
                Counts::add(&counts.operations);
                match told {
                    Some(Ok((of, number))) => {
                        counts.demand(of == key && number > before);
                        keys[key].told.fetch_max(number, Ordering::SeqCst);
                    }
                    Some(Err(FlightError::Panicked { .. })) => Counts::add(&counts.panics),
                    Some(Err(_)) => counts.demand(false),
                    None => Counts::add(&counts.cut_short),
                }
            }
        }
    })
    .await;

    let calm = Instant::now();
    for key in 0..KEYS {
        let told = timeout(SOON, flights.run(key, move || async move { (key, 0) })).await;
        assert_eq!(told.expect("nobody is in the way"), Ok((key, 0)));
    }
    counts.judge(
        "single flight",
        &["cut short", "panics"],
        flights.len() as u64,
        calm.elapsed(),
    );
}

// Mutant: E94
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_accepted_task_ends_once_and_no_other_runs() {
    /// A task alive, from its making to its drop.
    struct Alive(Arc<AtomicUsize>);
    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let pool = Arc::new(WorkerPool::new(4).unwrap());
    let (counts, alive) = (Arc::new(Counts::default()), Arc::new(AtomicUsize::new(0)));
    in_tasks(200_000, |mut rng, operations| {
        let (pool, counts, alive) = (Arc::clone(&pool), Arc::clone(&counts), Arc::clone(&alive));
        async move {
            for number in 0..operations {
                Counts::add(&counts.operations);
                alive.fetch_add(1, Ordering::SeqCst);
                let mark = Alive(Arc::clone(&alive));
                let kind = rng.u8(..8);
                let task = async move {
                    let _mark = mark;
                    match kind {
                        0 => resume_unwind(Box::new("on purpose")),
                        1 => pending().await,
                        2..=4 => yield_now().await,
                        _ => {}
                    }
                    number
                };
                let submitted = match rng.u8(..8) {
                    0 => {
                        pool.resize(rng.usize(1..=8)).unwrap();
                        Counts::add(&counts.resizes);
                        pool.spawn(task).await.ok()
                    }
                    1 => pool.try_spawn(task).ok(),
                    // Whether it was accepted by then is not told; what is, ends by itself or with the pool.
                    2 if kind != 1 => cut_short(rng.u32(..3), pool.spawn(task)).await.map_or_else(
                        || {
                            Counts::add(&counts.cut_short);
                            None
                        },
                        Result::ok,
                    ),
                    _ => pool.spawn(task).await.ok(),
                };
                let Some(handle) = submitted else { continue };
                if kind == 1 {
                    handle.abort();
                }
                match handle.await {
                    Outcome::Done(told) => counts.demand(told == number && kind > 1),
                    Outcome::Panicked(report) => {
                        Counts::add(&counts.panics);
                        counts.demand(report.message == "on purpose" && kind == 0);
                    }
                    Outcome::Cancelled => counts.demand(kind == 1),
                }
            }
        }
    })
    .await;

    let calm = Instant::now();
    let one_more = timeout(SOON, pool.execute(async { 1 })).await;
    assert_eq!(
        one_more.expect("there is a place").unwrap(),
        Outcome::Done(1)
    );
    let calm = calm.elapsed();
    let drained = pool.drain(SOON).await.unwrap();
    assert!(drained.is_clean(), "{drained:?}");
    let stats = pool.stats();
    let ended = stats.done + stats.panicked + stats.cancelled;
    assert_eq!(stats.accepted, ended, "{stats:?}");
    let left = stats.running + stats.occupied + stats.queued + alive.load(Ordering::SeqCst);
    counts.judge(
        "worker pool",
        &["cut short", "panics", "resizes"],
        left as u64,
        calm,
    );
}
