//! Those in line who are told of their grant, and need not ask for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockkit_core::Fence;
use lockkit_core::lease::{Holder, Owner, ReleaseOutcome, Watch};

use super::*;

/// For a place in line, which is shorter than the TTL: how long a holder may trust in it.
const PLACE: Duration = Duration::from_millis(3_000 - 30 - 2);
const HOLDER: i64 = 5;
const ASKED: i64 = 9;

/// Says at first that the lock is taken, and then tells of a grant a second later.
#[derive(Clone)]
struct Telling {
    tells: i64,
    /// How long an answer takes.
    slow: Duration,
    asked: Arc<AtomicUsize>,
    extended: Arc<AtomicUsize>,
    released: Arc<AtomicUsize>,
}

struct Told(Option<Fence>, Option<Fence>);

impl Watch for Told {
    async fn heard(&mut self) {
        if self.0.is_none() {
            return std::future::pending().await;
        }
        sleep(SECOND / 2).await;
        self.1 = self.0.take();
    }

    fn granted(&mut self) -> Option<Fence> {
        self.1
    }
}

impl LeaseStore for Telling {
    type Watch = Told;

    async fn acquire(&self, spec: &AcquireSpec) -> Result<Acquired, StoreError> {
        sleep(self.slow).await;
        // Ordering: Relaxed, no partner: all is in one thread.
        Ok(if self.asked.fetch_add(1, Ordering::Relaxed) == 0 {
            Acquired::Busy {
                remaining: TTL,
                holder: Holder::new(Owner::default(), fence(HOLDER)),
            }
        } else {
            assert!(spec.line.is_some());
            Acquired::Granted {
                fence: fence(ASKED),
            }
        })
    }

    async fn extend(&self, batch: &[ExtendSpec]) -> Result<Vec<Extended>, StoreError> {
        // Ordering: Relaxed, as above.
        self.extended.fetch_add(1, Ordering::Relaxed);
        assert!(batch.iter().all(|spec| spec.ttl.get() == TTL));
        Ok(vec![Extended::Extended; batch.len()])
    }

    async fn release(&self, _: &Key, _: &Token) -> Result<Released, StoreError> {
        // Ordering: Relaxed, as above.
        self.released.fetch_add(1, Ordering::Relaxed);
        Ok(Released::Released)
    }

    async fn watch(&self, _: &Key, _: &Token) -> Result<Option<Told>, StoreError> {
        panic!("it is listened to already");
    }

    fn listening(&self, _: &Key, _: &Token) -> Option<Told> {
        Some(Told(Some(fence(self.tells)), None))
    }

    async fn inspect(&self, _: &Key) -> Result<Option<Status>, StoreError> {
        Ok(None)
    }

    fn is_fair(&self) -> bool {
        true
    }
}

fn fence(number: i64) -> Fence {
    Fence::try_from(number).unwrap()
}

fn telling(tells: i64, slow: Duration) -> Telling {
    Telling {
        tells,
        slow,
        asked: Arc::default(),
        extended: Arc::default(),
        released: Arc::default(),
    }
}

fn fair(store: &Telling) -> LockerBuilder<Telling> {
    Locker::builder(store.clone()).ttl(TTL).fair(true)
}

fn count(of: &AtomicUsize) -> usize {
    // Ordering: Relaxed, as above.
    of.load(Ordering::Relaxed)
}

// Mutants: D124, D125
#[tokio::test(start_paused = true)]
async fn who_is_told_has_the_lock_for_as_long_as_his_place_and_soon_for_its_whole_ttl() {
    let store = telling(HOLDER + 1, Duration::ZERO);
    let locker = fair(&store).build().unwrap();
    let sent = Instant::now();
    let guard = locker.lock("k").acquire().await.unwrap();
    assert_eq!(guard.fence(), fence(HOLDER + 1));
    assert_eq!(count(&store.asked), 1);
    assert_eq!(guard.valid_until(), Some((sent + PLACE).into_std()));
    let extended = Instant::now() + MS * 50;
    sleep(MS * 60).await;
    assert_eq!(guard.valid_until(), Some((extended + TRUSTED).into_std()));
    assert_eq!(guard.release().await, ReleaseOutcome::Released);
}

#[tokio::test(start_paused = true)]
async fn who_is_told_and_soon_done_does_not_extend() {
    let store = telling(HOLDER + 1, Duration::ZERO);
    let locker = fair(&store).build().unwrap();
    let guard = locker.lock("k").acquire().await.unwrap();
    sleep(MS * 40).await;
    assert_eq!(guard.release().await, ReleaseOutcome::Released);
    sleep(TTL).await;
    assert_eq!((count(&store.asked), count(&store.extended)), (1, 0));
}

// Mutant: D126
#[tokio::test(start_paused = true)]
async fn a_message_about_a_grant_before_the_holders_is_not_believed() {
    for tells in [HOLDER - 1, HOLDER] {
        let store = telling(tells, Duration::ZERO);
        let locker = fair(&store).build().unwrap();
        let guard = locker.lock("k").acquire().await.unwrap();
        assert_eq!((guard.fence(), count(&store.asked)), (fence(ASKED), 2));
    }
}

// Mutant: D127
#[tokio::test(start_paused = true)]
async fn who_is_told_when_half_of_his_place_is_over_asks() {
    let store = telling(HOLDER + 1, SECOND + SECOND / 4);
    let locker = fair(&store).build().unwrap();
    let guard = locker.lock("k").acquire().await.unwrap();
    assert_eq!((guard.fence(), count(&store.asked)), (fence(ASKED), 2));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_renew_and_who_may_not_hold_it_for_long_ask() {
    let store = telling(HOLDER + 1, Duration::ZERO);
    for builder in [fair(&store).renew(false), fair(&store).max_hold(SECOND)] {
        store.asked.store(0, Ordering::Relaxed);
        let locker = builder.build().unwrap();
        let sent = Instant::now();
        let guard = locker.lock("k").acquire().await.unwrap();
        assert_eq!((guard.fence(), count(&store.asked)), (fence(ASKED), 2));
        let whole = (sent + SECOND).into_std();
        assert!(guard.valid_until().is_some_and(|until| until > whole));
    }
}

// Mutant: D128
#[tokio::test(start_paused = true)]
async fn who_goes_when_the_message_has_come_gives_the_lock_back() {
    let store = telling(HOLDER + 1, Duration::ZERO);
    let locker = fair(&store).build().unwrap();
    let mut waiting = Box::pin(locker.lock("k").acquire());
    let asked = tokio::time::timeout(MS, waiting.as_mut()).await;
    assert!(asked.is_err() && count(&store.asked) == 1);
    // It comes while nobody looks.
    sleep(SECOND).await;
    drop(waiting);
    settle().await;
    assert_eq!(count(&store.released), 1);
}
