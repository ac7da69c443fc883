//! A store to test, with a clock that the test turns, or waits for.

use std::time::Duration;

use lockkit_core::lease::{LeaseStore, MemoryStore};

/// An empty store of its own.
pub trait Bench: Send + Sync + 'static {
    /// The store under test.
    type Store: LeaseStore;

    /// The store.
    fn store(&self) -> &Self::Store;

    /// Another handle on the same locks, as another process would have it.
    fn second(&self) -> impl Future<Output = Self::Store> + Send;

    /// Lets this much time pass by the store's clock.
    fn advance(&self, by: Duration) -> impl Future<Output = ()> + Send;

    /// The time in whose multiples the cases reckon. Where time passes by itself, longer than a case may be
    /// held up between two steps; and the shorter, the sooner they end.
    fn unit(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Whether the store's clock stands still unless it is turned, so that times can be asked for exactly.
    fn is_exact(&self) -> bool {
        true
    }

    /// Whether [`advance`](Self::advance) turns a clock, and does not wait for it.
    fn is_turned(&self) -> bool {
        self.is_exact()
    }

    /// Restarts the store so that it forgets all it can forget, and tells whether it could be done.
    fn restart(&self) -> impl Future<Output = bool> + Send {
        async { false }
    }
}

/// The store in memory.
#[derive(Debug, Default)]
pub struct MemoryBench(MemoryStore);

impl MemoryBench {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Bench for MemoryBench {
    type Store = MemoryStore;

    fn store(&self) -> &MemoryStore {
        &self.0
    }

    async fn second(&self) -> MemoryStore {
        self.0.clone()
    }

    async fn advance(&self, by: Duration) {
        self.0.advance(by);
    }

    async fn restart(&self) -> bool {
        self.0.restart();
        true
    }
}
