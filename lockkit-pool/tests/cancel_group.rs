//! Every future of a group, dropped after each of its polls: no child lives on, no room is lost.

use std::cell::RefCell;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use lockkit_pool::{GroupSpawner, Policy, TaskGroup};
use lockkit_test::cancel::{Cut, at_every_poll, at_every_poll_async};
use tokio::task::yield_now;

type Group = TaskGroup<u32, u32>;

/// As many clones as children live.
type Census = Arc<()>;

async fn some_work(alive: Census) -> Result<u32, u32> {
    for _ in 0..3 {
        yield_now().await;
    }
    drop(alive);
    Ok(1)
}

async fn endless(alive: Census) -> Result<u32, u32> {
    let result = pending().await;
    drop(alive);
    result
}

#[tokio::test]
async fn a_join_can_be_dropped_at_any_time() {
    for grace in [None, Some(Duration::from_mins(1))] {
        for failing in [false, true] {
            let current = RefCell::new(None);
            let cuts = at_every_poll_async(
                || {
                    let mut group = Group::builder();
                    if let Some(grace) = grace {
                        group = group.grace(grace);
                    }
                    let (group, census) = (group.build().unwrap(), Census::default());
                    for _ in 0..3 {
                        group.try_spawn(some_work(census.clone())).unwrap();
                    }
                    if failing {
                        let failing = async {
                            yield_now().await;
                            Err(1)
                        };
                        group.try_spawn(failing).unwrap();
                    }
                    current.replace(Some((group.spawner(), census)));
                    async move { group.join().await.unwrap() }
                },
                async |cut| {
                    let (spawner, census): (GroupSpawner<_, _>, Census) = current.take().unwrap();
                    assert_eq!(Arc::strong_count(&census), 1, "{cut}: a child lives on");
                    assert!(spawner.try_spawn(endless(census)).is_err(), "{cut}");
                    assert!(spawner.token().is_cancelled(), "{cut}");
                },
            )
            .await;
            cuts.demand(1);
        }
    }
}

#[tokio::test]
async fn a_spawn_can_be_dropped_while_it_waits() {
    let current = RefCell::new(None);
    let cuts = at_every_poll_async(
        || {
            let group = Group::builder().limit(1).policy(Policy::CollectAll);
            let (group, census) = (group.build().unwrap(), Census::default());
            group.try_spawn(some_work(census.clone())).unwrap();
            let (spawner, waits) = (group.spawner(), some_work(census.clone()));
            current.replace(Some((group, census)));
            async move { spawner.spawn(waits).await.unwrap() }
        },
        async |cut| {
            let (group, census) = current.take().unwrap();
            while group.running() > 0 {
                yield_now().await;
            }
            assert_eq!(Arc::strong_count(&census), 1, "{cut}");
            // The room is free again.
            group.try_spawn(some_work(census)).unwrap();
            let spawned = group.join().await.unwrap().into_all().unwrap().len();
            let expected = if cut == Cut::Completed { 3 } else { 2 };
            assert_eq!(spawned, expected, "{cut}");
        },
    )
    .await;
    cuts.demand(1);
}

#[test]
fn a_join_that_waits_for_nobody_needs_no_runtime() {
    let cuts = at_every_poll(|| async { Group::new().join().await.unwrap() }, |_| {});
    assert_eq!(cuts.demand(0), 1);
}
