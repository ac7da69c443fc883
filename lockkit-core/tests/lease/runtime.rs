//! The tasks of a locker: when they are there, when they end, and what is true without them.

use lockkit_core::lease::{Loss, ReleaseOutcome};
use tokio::runtime::{Builder, Handle, Runtime};

use super::*;

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

// Mutant: D44
#[tokio::test(start_paused = true)]
async fn the_tasks_end_with_the_last_handle() {
    let store = store();
    let before = tasks();
    let locker = locker(&store);
    assert_eq!(tasks(), before, "nothing to do, and nobody there to do it");
    let guard = locker.lock("k").acquire().await.unwrap();
    assert_eq!(tasks(), before + 1);
    drop(locker.lock("other").acquire().await.unwrap());
    settle().await;
    assert_eq!(tasks(), before + 2);
    // A guard does not need its locker.
    drop(locker);
    sleep(TTL * 2).await;
    assert!(guard.is_valid());
    drop(guard);
    settle().await;
    assert_eq!(tasks(), before);
    assert!(is_free(&store, "k").await);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_lockers_leave_no_task() {
    let store = store();
    let before = tasks();
    for round in 0..1_000 {
        let locker = locker(&store);
        let guard = locker.lock("k").acquire().await.unwrap();
        if round % 2 == 0 {
            drop(locker);
        }
        assert_eq!(guard.release().await, ReleaseOutcome::Released);
    }
    settle().await;
    assert_eq!(tasks(), before);
}

// Mutant: D31
#[test]
fn a_guard_that_outlives_its_runtime_ends_with_its_ttl() {
    let store = MemoryStore::new();
    let ttl = SECOND;
    let first = runtime();
    let [kept, left] = ["kept", "left"].map(|key| {
        first.block_on(async {
            let locker = Locker::builder(store.clone()).ttl(ttl).build().unwrap();
            locker.lock(key).acquire().await.unwrap()
        })
    });
    assert!(kept.is_valid());
    drop(first);
    // Nobody is there to release it, and nothing else happens.
    drop(left);
    let second = runtime();
    second.block_on(async {
        // Who waits for the end does it in a runtime of his own.
        let begun = Instant::now();
        let lost = tokio::time::timeout(SECOND * 20, kept.lost()).await;
        assert_eq!(lost, Ok(Loss::Expired));
        assert!(
            begun.elapsed() < SECOND * 15,
            "told by nobody, but seen when it was over"
        );
        assert!(!kept.is_valid());
        // By the store's clock no time has passed.
        assert!(!is_free(&store, "left").await && !is_free(&store, "kept").await);
        assert_eq!(kept.release().await, ReleaseOutcome::Released);
    });
}

#[test]
fn a_guard_that_is_dropped_with_its_runtime_does_no_harm() {
    let store = MemoryStore::new();
    let runtime = runtime();
    let inside = store.clone();
    runtime.spawn(async move {
        let locker = locker(&inside);
        let _guard = locker.lock("k").acquire().await.unwrap();
        std::future::pending::<()>().await;
    });
    runtime.block_on(settle());
    assert_eq!(store.calls(Op::Acquire), 1);
    drop(runtime);
}

#[test]
fn a_guard_can_be_dropped_outside_of_a_runtime() {
    let store = MemoryStore::new();
    let runtime = runtime();
    let guard = runtime.block_on(async { locker(&store).lock("k").acquire().await.unwrap() });
    std::thread::spawn(move || drop(guard)).join().unwrap();
    runtime.block_on(settle());
    assert!(runtime.block_on(is_free(&store, "k")));
}

/// A store whose extensions panic.
#[derive(Clone)]
struct Panics(MemoryStore);

impl LeaseStore for Panics {
    type Watch = NoWatch;

    async fn acquire(&self, spec: &AcquireSpec) -> Result<Acquired, StoreError> {
        self.0.acquire(spec).await
    }

    async fn extend(&self, batch: &[ExtendSpec]) -> Result<Vec<Extended>, StoreError> {
        let _ = self.0.extend(&batch[..0]).await;
        panic!("of the store's")
    }

    async fn release(&self, _: &Key, _: &Token) -> Result<Released, StoreError> {
        panic!("of the store's")
    }

    async fn watch(&self, _: &Key, _: &Token) -> Result<Option<NoWatch>, StoreError> {
        Ok(None)
    }

    async fn inspect(&self, key: &Key) -> Result<Option<Status>, StoreError> {
        self.0.inspect(key).await
    }
}

// Mutant: D14
#[tokio::test(start_paused = true)]
async fn a_store_that_panics_loses_the_lock_in_time_and_is_tried_again() {
    let store = store();
    let locker = Locker::builder(Panics(store.clone()))
        .ttl(TTL)
        .build()
        .unwrap();
    let guard = locker.lock("k").acquire().await.unwrap();
    let begun = Instant::now();
    assert_eq!(guard.lost().await, Loss::Expired);
    assert_eq!(begun.elapsed(), TRUSTED);
    assert!(store.calls(Op::Extend) > 2);
    assert!(matches!(
        guard.release().await,
        ReleaseOutcome::Unknown { .. }
    ));
    assert_eq!(locker.left_over(), 1);
}
