//! Every step may be dropped at every await: the store goes on working, and the step can be said again.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use lockkit_db::lease::{AcquireSpec, Extended, LeaseStore, Released, Watch as _};
use lockkit_test::cancel::at_every_poll_async;
use tokio::time::timeout;

use crate::scene::{Ground, ask, busy, extension, granted, on_both};

on_both! {
    a_dropped_acquire_may_be_said_again_and_given_back
    a_dropped_extension_or_release_is_done_or_not
    a_dropped_wait_keeps_nobody_from_the_lock_nor_from_hearing
}

/// For what a busy machine is to come round to.
const SOON: Duration = Duration::from_mins(2);

/// What the last run used.
struct Runs<G: Ground> {
    ground: G,
    count: Cell<u32>,
    last: RefCell<Option<(Arc<G::Store>, AcquireSpec)>>,
}

impl<G: Ground> Runs<G> {
    async fn new() -> Self {
        let ground = G::new().await;
        drop(ground.store().await);
        Self {
            ground,
            count: Cell::new(0),
            last: RefCell::default(),
        }
    }

    /// A store that has not been used yet, so that connecting is cut as well, and a lock of the run's own: what was dropped
    /// may come when the next one is at it.
    async fn fresh(&self) -> (Arc<G::Store>, AcquireSpec) {
        self.count.set(self.count.get() + 1);
        let spec = ask(&format!("k{}", self.count.get()));
        let fresh = (Arc::new(self.ground.store().await), spec);
        *self.last.borrow_mut() = Some(fresh.clone());
        fresh
    }

    fn last(&self) -> Option<(Arc<G::Store>, AcquireSpec)> {
        self.last.borrow_mut().take()
    }
}

/// What was dropped may be on its way still, but not for ever.
async fn give_back(store: &impl LeaseStore, spec: &AcquireSpec) {
    while store.release(&spec.key, &spec.token).await.unwrap() != Released::Absent {}
}

async fn a_dropped_acquire_may_be_said_again_and_given_back<G: Ground>() {
    let runs = Runs::<G>::new().await;
    at_every_poll_async(
        || async {
            let (store, spec) = runs.fresh().await;
            store.acquire(&spec).await.map(drop)
        },
        async |cut| {
            let Some((store, spec)) = runs.last() else {
                return;
            };
            let before = store.inspect(&spec.key).await.unwrap();
            let fence = granted(store.acquire(&spec).await);
            if let Some(before) = before {
                assert_eq!(before.holder.fence, fence, "{cut}");
            }
            let other = ask(spec.key.as_str());
            assert_eq!(busy(store.acquire(&other).await), fence, "{cut}");
            let released = store.release(&spec.key, &spec.token).await.unwrap();
            assert_eq!(released, Released::Released, "{cut}");
            give_back(&*store, &spec).await;
        },
    )
    .await
    .demand(1);
}

async fn a_dropped_extension_or_release_is_done_or_not<G: Ground>() {
    let runs = Runs::<G>::new().await;
    at_every_poll_async(
        || async {
            let (store, spec) = runs.fresh().await;
            granted(store.acquire(&spec).await);
            store.extend(&[extension(&spec)]).await.unwrap();
            store.release(&spec.key, &spec.token).await.unwrap();
        },
        async |cut| {
            let Some((store, spec)) = runs.last() else {
                return;
            };
            granted(store.acquire(&spec).await);
            let extended = store.extend(&[extension(&spec)]).await.unwrap();
            assert!(
                matches!(extended[..], [Extended::Extended | Extended::Absent]),
                "{cut}: {extended:?}"
            );
            give_back(&*store, &spec).await;
        },
    )
    .await
    .demand(1);
}

async fn a_dropped_wait_keeps_nobody_from_the_lock_nor_from_hearing<G: Ground>() {
    let runs = Runs::<G>::new().await;
    let holder = ask("k");
    let store = runs.ground.store().await;
    let mut fence = granted(store.acquire(&holder).await);
    at_every_poll_async(
        || async {
            let (store, _) = runs.fresh().await;
            let spec = ask("k");
            busy(store.acquire(&spec).await);
            let mut watch = store.watch(&spec.key, &spec.token).await.unwrap().unwrap();
            // Nothing is released, so this is where a whole run ends.
            let _ = timeout(Duration::from_millis(20), watch.heard()).await;
        },
        async |cut| {
            let Some((waits, _)) = runs.last() else {
                return;
            };
            let spec = ask("k");
            let mut watch = waits.watch(&spec.key, &spec.token).await.unwrap().unwrap();
            assert_eq!(busy(waits.acquire(&spec).await), fence, "{cut}");
            let released = waits.release(&spec.key, &spec.token).await.unwrap();
            assert_eq!(released, Released::HeldByOther, "{cut}");
            // Polled, and dropped.
            let _ = timeout(Duration::ZERO, watch.heard()).await;
            let released = store.release(&holder.key, &holder.token).await.unwrap();
            assert_eq!(released, Released::Released, "{cut}");
            timeout(SOON, watch.heard()).await.expect("it is told");
            fence = granted(store.acquire(&holder).await);
        },
    )
    .await
    .demand(1);
    assert_eq!(
        store.release(&holder.key, &holder.token).await.unwrap(),
        Released::Released
    );
    assert!(granted(store.acquire(&ask("k")).await) > fence);
}
