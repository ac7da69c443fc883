//! What is left behind, and who cleans it up.

use lockkit_core::lease::{AcquireError, Fault};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_dropped_is_released_until_it_works() {
    for fault in [
        Fault::Refuse,
        Fault::Reject,
        Fault::LoseRequest,
        Fault::LoseReply,
        Fault::Hang,
    ] {
        let store = store();
        let locker = builder(&store).ttl(SECOND * 60).build().unwrap();
        let guard = locker.lock("k").acquire().await.unwrap();
        store.inject(Op::Release, fault);
        store.inject(Op::Release, fault);
        drop(guard);
        sleep(SECOND * 10).await;
        assert!(is_free(&store, "k").await, "{fault:?}");
        assert_eq!(
            (store.calls(Op::Release), locker.left_over()),
            (3, 0),
            "{fault:?}"
        );
    }
}

/// The request was on its way when its caller gave up, and takes the lock when nobody wants it any more.
// Mutant: D29
#[tokio::test(start_paused = true)]
async fn an_acquire_that_is_carried_out_late_leaves_no_lock() {
    let store = store();
    let locker = builder(&store).ttl(SECOND * 60).build().unwrap();
    store.inject(Op::Acquire, Fault::LateRequest(SECOND * 4));
    store.inject(Op::Acquire, Fault::LoseRequest);
    let failed = locker.lock("k").try_acquire().await;
    assert!(matches!(failed, Err(AcquireError::Unknown { .. })));
    sleep(SECOND * 4 + MS).await;
    assert!(!is_free(&store, "k").await, "the ghost has it");
    sleep(SECOND).await;
    assert!(is_free(&store, "k").await);
    assert_eq!(locker.left_over(), 0);
}

/// A ticket does not tell whether there may be one.
// Mutant: D139
#[tokio::test(start_paused = true)]
async fn the_ghost_of_an_acquire_leaves_no_lock_that_was_handed_on() {
    let store = store();
    let locker = builder(&store).ttl(SECOND * 60).build().unwrap();
    store.inject(Op::Acquire, Fault::Twice(SECOND * 4));
    let ticket = locker.lock("k").acquire().await.unwrap().detach().unwrap();
    let guard = locker.attach(&ticket).await.unwrap();
    let _ = guard.release().await;
    sleep(SECOND * 4 + MS).await;
    assert!(!is_free(&store, "k").await, "the ghost has it");
    sleep(SECOND).await;
    assert!(is_free(&store, "k").await);
}

/// Of two copies of an acquire one is answered, and the other takes the lock after it was released.
// Mutant: D29
#[tokio::test(start_paused = true)]
async fn the_ghost_of_an_acquire_that_was_repeated_leaves_no_lock() {
    let store = store();
    let locker = builder(&store).ttl(SECOND * 60).build().unwrap();
    store.inject(Op::Acquire, Fault::LateRequest(SECOND * 4));
    let guard = locker.lock("k").acquire().await.unwrap();
    let _ = guard.release().await;
    sleep(SECOND * 4 + MS).await;
    assert!(!is_free(&store, "k").await, "the ghost has it");
    sleep(SECOND).await;
    assert!(is_free(&store, "k").await);

    store.inject(Op::Acquire, Fault::LateRequest(SECOND * 4));
    drop(locker.lock("k").acquire().await.unwrap());
    sleep(SECOND * 5 + MS).await;
    assert!(is_free(&store, "k").await);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_is_dropped_is_cleaned_up() {
    let store = store();
    let locker = locker(&store);
    store.inject(Op::Acquire, Fault::LateReply(SECOND));
    let waiter = {
        let locker = locker.clone();
        tokio::spawn(async move { locker.lock("k").acquire().await.map(drop) })
    };
    settle().await;
    assert!(!is_free(&store, "k").await);
    waiter.abort();
    settle().await;
    assert!(is_free(&store, "k").await);
}

/// What nobody can be told of is left to its TTL in the end.
#[tokio::test(start_paused = true)]
async fn cleaning_up_ends_when_the_lock_is_gone_by_itself() {
    let store = store();
    let locker = locker(&store);
    let guard = locker.lock("k").acquire().await.unwrap();
    store.outage(Some(Fault::Refuse));
    drop(guard);
    sleep(TTL * 2).await;
    let calls = store.calls(Op::Release);
    assert!((5..=60).contains(&calls), "{calls}");
    sleep(TTL * 5).await;
    assert_eq!((store.calls(Op::Release), locker.left_over()), (calls, 0));
}

#[tokio::test(start_paused = true)]
async fn a_release_that_is_dropped_is_finished_in_the_background() {
    let store = store();
    let locker = locker(&store);
    let guard = locker.lock("k").acquire().await.unwrap();
    store.inject(Op::Release, Fault::Hang);
    let releases = tokio::spawn(guard.release());
    settle().await;
    releases.abort();
    settle().await;
    assert!(is_free(&store, "k").await);
}

/// Nobody can know of the second one but the client that has sent it.
// Mutant: D29
#[tokio::test(start_paused = true)]
async fn the_ghost_of_an_acquire_that_was_doubled_leaves_no_lock() {
    let store = store();
    let locker = Locker::builder(Mute(store.clone()))
        .ttl(SECOND * 60)
        .build()
        .unwrap();
    store.inject(Op::Acquire, Fault::Twice(SECOND * 4));
    let guard = locker.lock("k").acquire().await.unwrap();
    let _ = guard.release().await;
    sleep(SECOND * 4 + MS).await;
    assert!(!is_free(&store, "k").await, "the ghost has it");
    sleep(SECOND).await;
    assert!(is_free(&store, "k").await);
}
