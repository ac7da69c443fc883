//! The histories of locks on Redis are explained, one operation after another, while answers get lost.

use std::sync::Arc;
use std::time::Duration;

use lockkit_redis::RedisStore;
use lockkit_test::lease::course;
use lockkit_test::linearizability::{Explained, Leased};
use lockkit_test::redis::Fault;
use lockkit_test::soak::seed;

use crate::fixture::Fixture;

/// A lock each.
const HISTORIES: u64 = 150;
const PROCESSES: usize = 5;
const TURNS: u32 = 4;

/// Not among them: what leaves a connection open that nobody hears on, as it takes its time to be given up; and what is
/// carried out twice, as a release then says what the second one has found.
const FAULTS: [Fault; 4] = [
    Fault::CutBefore,
    Fault::CutAfter,
    Fault::CutLate(Duration::from_millis(5)),
    Fault::Delay(Duration::from_millis(5)),
];

// Mutant: B179
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_on_redis_are_explained() {
    let fixture = Fixture::new().await;
    let stores: Vec<Arc<RedisStore>> = (0..PROCESSES).map(|_| Arc::new(fixture.store())).collect();
    fixture.proxy.at_random(seed(), 5, &FAULTS);
    let mut all = Explained::of("locks on Redis");
    for history in 0..HISTORIES {
        let seed = seed() * HISTORIES + history;
        let operations = course(&stores, &format!("k{history}"), TURNS, seed, None).await;
        all.explain(&Leased::default(), &operations);
    }
    assert!(fixture.proxy.faults() > 0, "no lost answer proves nothing");
    all.tell(HISTORIES);
}
