//! The conformance suite of job stores, on every store.

mod memory {
    lockkit_test::queue_conformance!(async { lockkit_test::queue::MemoryBench::new() });
}

mod sqlite {
    lockkit_test::queue_conformance!(lockkit_test::queue::SqliteBench::new());
}

mod postgres {
    lockkit_test::queue_conformance!(lockkit_test::queue::PostgresBench::new());
}

/// Jobs in the caller's transactions.
mod transactions {
    mod sqlite {
        lockkit_test::queue_transactions!(lockkit_test::queue::SqliteBench::new());
    }

    mod postgres {
        lockkit_test::queue_transactions!(lockkit_test::queue::PostgresBench::new());
    }
}
