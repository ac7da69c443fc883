//! Both stores do what every store of locks has to.

use std::time::Duration;

use lockkit_test::lease::Bench;
use lockkit_test::postgres::Database;

use crate::scene::{File, Ground};

/// A database whose clock is turned.
struct Turned<G: Ground> {
    ground: G,
    store: G::Store,
}

impl<G: Ground> Turned<G> {
    async fn new() -> Self {
        let ground = G::new().await;
        let store = ground.store().await;
        ground.stop_clock().await;
        Self { ground, store }
    }
}

macro_rules! bench {
    ($ground:ty) => {
        impl Bench for Turned<$ground> {
            type Store = <$ground as Ground>::Store;

            fn store(&self) -> &Self::Store {
                &self.store
            }

            async fn second(&self) -> Self::Store {
                self.ground.store().await
            }

            async fn advance(&self, by: Duration) {
                self.ground.turn_clock(by).await;
            }
        }
    };
}

bench!(File);
bench!(Database);

mod sqlite {
    use super::{File, Turned};

    lockkit_test::lease_conformance!(Turned::<File>::new());
}

mod postgres {
    use super::{Database, Turned};

    lockkit_test::lease_conformance!(Turned::<Database>::new());
}
