//! Whatever of a lock is dropped at whatever point, nobody has it in the end.

use std::time::Duration;

use lockkit_core::lease::{Fault, Guard, Locker, MemoryStore, Op, Ran};
use lockkit_test::cancel::at_every_poll_async;
use tokio::time::sleep;

const MS: Duration = Duration::from_millis(1);
const TTL: Duration = Duration::from_secs(30);
/// A store's `settle`, and a call after it.
const SETTLED: Duration = Duration::from_secs(6);

/// A store each of whose calls takes a while.
fn slow() -> MemoryStore {
    let store = MemoryStore::on_tokio_clock();
    store.outage(Some(Fault::LateReply(MS)));
    store
}

fn locker(store: &MemoryStore) -> Locker<MemoryStore> {
    Locker::builder(store.clone()).ttl(TTL).build().unwrap()
}

async fn is_free(locker: &Locker<MemoryStore>) -> bool {
    locker.inspect("k").await.unwrap().is_none()
}

/// All is as if it had never been, long before the TTL is over.
async fn nothing_is_left(locker: &Locker<MemoryStore>, at: &impl std::fmt::Display) {
    sleep(MS * 10).await;
    assert!(is_free(locker).await, "{at}: the lock is held");
    sleep(SETTLED).await;
    assert!(is_free(locker).await, "{at}: its ghost has taken the lock");
    assert_eq!((locker.left_over(), locker.renewed()), (0, 0), "{at}");
}

// Mutant: D6
#[tokio::test(start_paused = true)]
async fn an_acquire_dropped_at_any_point_leaves_no_lock() {
    for waits in [false, true] {
        let locker = locker(&slow());
        let cuts = at_every_poll_async(
            || async {
                let request = locker.lock("k");
                if waits {
                    drop(request.acquire().await.unwrap());
                } else {
                    drop(request.try_acquire().await.unwrap());
                }
            },
            async |cut| nothing_is_left(&locker, &cut).await,
        )
        .await;
        cuts.demand(1);
    }
}

/// With its reply lost, and its request carried out when nobody waits for it any more.
// Mutants: D6, D29
#[tokio::test(start_paused = true)]
async fn an_acquire_without_an_answer_dropped_at_any_point_leaves_no_lock() {
    for fault in [Fault::LoseReply, Fault::LateRequest(MS * 500)] {
        let store = slow();
        let locker = locker(&store);
        let cuts = at_every_poll_async(
            || {
                store.inject(Op::Acquire, fault);
                async { drop(locker.lock("k").acquire().await.unwrap()) }
            },
            async |cut| {
                // One that was not polled has left the fault.
                let _ = locker.lock("other").try_acquire().await;
                sleep(SETTLED).await;
                nothing_is_left(&locker, &format!("{fault:?}, {cut}")).await;
            },
        )
        .await;
        cuts.demand(1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_dropped_at_any_point_holds_up_nobody() {
    for fair in [false, true] {
        let store = slow();
        let [here, there, last] = [(); 3].map(|()| locker(&store));
        let cuts = at_every_poll_async(
            || async {
                let guard = there.lock("k").acquire().await.unwrap();
                let holds = async {
                    sleep(MS * 20).await;
                    drop(guard);
                };
                let waits = here.lock("k").fair(fair).acquire();
                drop(tokio::join!(waits, holds).0.unwrap());
            },
            async |cut| {
                sleep(MS * 10).await;
                let next = last.lock("k").fair(fair).wait(MS * 50).acquire().await;
                assert!(next.is_ok(), "{fair}, {cut}: {next:?}");
                drop(next);
                nothing_is_left(&here, &cut).await;
            },
        )
        .await;
        cuts.demand(4);
    }
}

// Mutant: D45
#[tokio::test(start_paused = true)]
async fn a_release_dropped_at_any_point_releases() {
    for fault in [
        None,
        Some(Fault::Refuse),
        Some(Fault::LoseReply),
        Some(Fault::Hang),
    ] {
        let store = slow();
        let locker = locker(&store);
        let cuts = at_every_poll_async(
            || async {
                let guard = locker.lock("k").acquire().await.unwrap();
                if let Some(fault) = fault {
                    store.inject(Op::Release, fault);
                }
                let _ = guard.release().await;
            },
            async |cut| {
                sleep(SETTLED).await;
                nothing_is_left(&locker, &format!("{fault:?}, {cut}")).await;
            },
        )
        .await;
        cuts.demand(2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_dropped_at_any_point_leaves_no_lock() {
    let locker = locker(&slow());
    let cuts = at_every_poll_async(
        || async {
            let body = |_| async { sleep(MS * 5).await };
            let ran = locker.lock("k").run(body).await.unwrap();
            assert!(matches!(ran, Ran::Finished { .. }));
        },
        async |cut| nothing_is_left(&locker, &cut).await,
    )
    .await;
    cuts.demand(3);
}

/// The lock is what it was, or what it was to be.
#[tokio::test(start_paused = true)]
async fn an_extension_dropped_at_any_point_harms_nothing() {
    let store = slow();
    let locker = locker(&store);
    let guard = locker.lock("k").acquire().await.unwrap();
    let cuts = at_every_poll_async(
        || async { guard.extend(TTL).await.unwrap() },
        async |cut| {
            assert!(guard.is_valid(), "{cut}");
            sleep(TTL * 2).await;
            assert!(guard.is_valid(), "{cut}: it is not renewed any more");
        },
    )
    .await;
    cuts.demand(1);
    drop(guard);
    nothing_is_left(&locker, &"after all").await;
}

/// Until a ticket is attached it can be used again; then it is the guard's.
#[tokio::test(start_paused = true)]
async fn an_attachment_dropped_at_any_point_can_be_repeated() {
    let locker = locker(&slow());
    let acquire = async || locker.lock("k").acquire().await.unwrap().detach().unwrap();
    let ticket = std::cell::RefCell::new(acquire().await);
    let cuts = at_every_poll_async(
        || {
            let ticket = ticket.borrow().clone();
            let locker = &locker;
            async move { drop(locker.attach(&ticket).await.unwrap()) }
        },
        async |_| {
            let again = ticket.borrow().clone();
            drop::<Option<Guard<_>>>(locker.attach(&again).await.ok());
            sleep(MS * 10).await;
            assert!(is_free(&locker).await);
            ticket.replace(acquire().await);
        },
    )
    .await;
    cuts.demand(1);
}
