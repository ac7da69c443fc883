//! Random histories on every store, against one model.
//!
//! Mutants: C3, C4, C6, C8, C9, C15, C16.

use lockkit_test::queue::{MemoryBench, SqliteBench, model};
use proptest::prelude::*;

fn run(check: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(check);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_store_agrees_with_the_model(history in model::histories(60)) {
        run(async { model::check(&MemoryBench::new(), &history).await });
    }
}

proptest! {
    // A case makes a file of its own.
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_sqlite_store_agrees_with_the_model(history in model::histories(60)) {
        run(async { model::check(&SqliteBench::new().await, &history).await });
    }
}
