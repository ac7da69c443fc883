//! Every step may be dropped at every await: the store goes on working, and the step can be said again.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use lockkit_core::lease::{AcquireSpec, Acquired, Extended, LeaseStore as _, Released, Watch as _};
use lockkit_redis::RedisStore;
use lockkit_test::cancel::at_every_poll_async;

use crate::fixture::{Fixture, ask, extend, granted, in_line, is_silent, key};

/// What is under test, and what the last run used.
struct Runs {
    fixture: Fixture,
    last: RefCell<Option<(Arc<RedisStore>, AcquireSpec)>>,
}

impl Runs {
    async fn new() -> Self {
        Self {
            fixture: Fixture::new().await,
            last: RefCell::default(),
        }
    }

    /// A store that has never been used, so that connecting is cut as well, and a lock that nobody holds.
    fn fresh(&self) -> (Arc<RedisStore>, AcquireSpec) {
        let fresh = (Arc::new(self.fixture.store()), ask("k"));
        *self.last.borrow_mut() = Some(fresh.clone());
        fresh
    }

    fn last(&self) -> (Arc<RedisStore>, AcquireSpec) {
        self.last.borrow_mut().take().expect("there was a run")
    }
}

#[tokio::test]
async fn a_dropped_acquire_may_be_said_again_and_given_back() {
    let runs = Runs::new().await;
    let outcomes = RefCell::new(BTreeSet::new());
    at_every_poll_async(
        || {
            let (store, spec) = runs.fresh();
            async move { store.acquire(&spec).await.map(drop) }
        },
        async |cut| {
            let (store, spec) = runs.last();
            let before = store.inspect(&spec.key).await.unwrap();
            outcomes.borrow_mut().insert(before.is_some());
            let fence = granted(store.acquire(&spec).await);
            if let Some(before) = before {
                assert_eq!(before.holder.fence, fence, "{cut}");
            }
            let released = store.release(&spec.key, &spec.token).await.unwrap();
            assert_eq!(released, Released::Released, "{cut}");
            // It may arrive still, and is given back in that case too.
            while !matches!(
                store.release(&spec.key, &spec.token).await,
                Ok(Released::Absent)
            ) {}
        },
    )
    .await
    .demand(1);
    assert_eq!(outcomes.into_inner(), BTreeSet::from([false, true]));
}

#[tokio::test]
async fn a_dropped_extension_or_release_is_done_or_not() {
    let runs = Runs::new().await;
    at_every_poll_async(
        || {
            let (store, spec) = runs.fresh();
            async move {
                granted(store.acquire(&spec).await);
                store.extend(&[extend(&spec)]).await.unwrap();
                store.release(&spec.key, &spec.token).await.unwrap();
            }
        },
        async |cut| {
            let (store, spec) = runs.last();
            granted(store.acquire(&spec).await);
            let extended = store.extend(&[extend(&spec)]).await.unwrap();
            assert!(
                matches!(extended[..], [Extended::Extended | Extended::Absent]),
                "{cut}: {extended:?}"
            );
            while !matches!(
                store.release(&spec.key, &spec.token).await,
                Ok(Released::Absent)
            ) {}
        },
    )
    .await
    .demand(1);
}

#[tokio::test]
async fn a_dropped_wait_leaves_nobody_in_line_and_nobody_listening() {
    let runs = Runs::new().await;
    let holder = ask("k");
    let store = runs.fixture.store();
    granted(store.acquire(&holder).await);
    at_every_poll_async(
        || {
            let (store, spec) = runs.fresh();
            async move {
                let spec = in_line(spec);
                let busy = store.acquire(&spec).await.unwrap();
                assert!(matches!(busy, Acquired::Busy { .. }));
                let mut watch = store.watch(&spec.key, &spec.token).await.unwrap().unwrap();
                // Nothing is published, so this is where a whole run ends.
                is_silent(watch.heard()).await
            }
        },
        async |cut| {
            let (store, spec) = runs.last();
            let released = store.release(&spec.key, &spec.token).await.unwrap();
            assert_eq!(released, Released::HeldByOther, "{cut}");
            while !runs.fixture.channels().await.is_empty() {
                tokio::task::yield_now().await;
            }
        },
    )
    .await
    .demand(1);
    let held = store.inspect(&holder.key).await.unwrap().unwrap();
    // What was on its way when it was dropped may have come after its release.
    assert!(held.waiting.is_some());
}

#[tokio::test]
async fn who_dials_and_goes_holds_nobody_up() {
    let runs = Runs::new().await;
    let store = runs.fixture.store();
    at_every_poll_async(
        || async {
            // Each from a broken connection on, so that it dials.
            runs.fixture.proxy.cut();
            let _ = store.inspect(&key("k")).await;
            store.inspect(&key("k")).await.unwrap()
        },
        async |cut| {
            runs.fixture.proxy.cut();
            let _ = store.inspect(&key("k")).await;
            let again = store.inspect(&key("k")).await;
            assert!(again.is_ok(), "{cut}: {again:?}");
        },
    )
    .await
    .demand(1);
}
