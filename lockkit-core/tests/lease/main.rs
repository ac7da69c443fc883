//! What the locks of a store promise to those who hold them and to those who wait: on the store in memory, with
//! tokio's clock paused, so that all times are exact.
#![cfg(feature = "tokio")]

mod cleaning;
mod conformance;
mod holding;
mod input;
mod linear;
mod losing;
mod runtime;
mod telling;
mod waiting;

use std::time::Duration;

use lockkit_core::lease::{
    AcquireSpec, Acquired, Attempt, ExtendSpec, Extended, Guard, Key, LeaseStore, Locker,
    LockerBuilder, MemoryStore, NoWatch, Op, Released, Status, StoreError, Token,
};
use tokio::time::{Instant, sleep};

const TTL: Duration = Duration::from_secs(12);
/// For locks of this TTL: how long a holder may trust in it.
const TRUSTED: Duration = Duration::from_millis(12_000 - 120 - 2);
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn store() -> MemoryStore {
    MemoryStore::on_tokio_clock()
}

fn builder(store: &MemoryStore) -> LockerBuilder<MemoryStore> {
    Locker::builder(store.clone()).ttl(TTL)
}

fn locker(store: &MemoryStore) -> Locker<MemoryStore> {
    builder(store).build().unwrap()
}

async fn is_free(store: &MemoryStore, key: &str) -> bool {
    let key = Key::new(key).unwrap();
    store.inspect(&key).await.unwrap().is_none()
}

fn acquired<S: LeaseStore>(attempt: Attempt<S>) -> Guard<S> {
    match attempt {
        Attempt::Acquired(guard) => guard,
        Attempt::Busy { .. } => panic!("busy"),
    }
}

/// Lets the background tasks run; takes no time.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// A store that does not tell when a lock is free, and whose client may send what it sends twice.
#[derive(Clone)]
struct Mute(MemoryStore);

impl LeaseStore for Mute {
    type Watch = NoWatch;

    async fn acquire(&self, spec: &AcquireSpec) -> Result<Acquired, StoreError> {
        self.0.acquire(spec).await
    }

    async fn extend(&self, batch: &[ExtendSpec]) -> Result<Vec<Extended>, StoreError> {
        self.0.extend(batch).await
    }

    async fn release(&self, key: &Key, token: &Token) -> Result<Released, StoreError> {
        self.0.release(key, token).await
    }

    async fn watch(&self, _: &Key, _: &Token) -> Result<Option<NoWatch>, StoreError> {
        Ok(None)
    }

    async fn inspect(&self, key: &Key) -> Result<Option<Status>, StoreError> {
        self.0.inspect(key).await
    }

    fn resends(&self) -> bool {
        true
    }
}
