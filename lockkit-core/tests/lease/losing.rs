//! Locks that are lost, and who hears of it.

use lockkit_core::lease::{Ended, ExtendError, Fault, Loss, Ran, ReleaseOutcome};
use lockkit_test::wake::{CountingWaker, poll_with};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_lock_that_cannot_be_renewed_is_lost_at_its_deadline() {
    for fault in [
        Fault::Refuse,
        Fault::Reject,
        Fault::LoseRequest,
        Fault::Hang,
    ] {
        let store = store();
        let locker = locker(&store);
        let guard = locker.lock("k").acquire().await.unwrap();
        let view = guard.view();
        let begun = Instant::now();
        store.outage(Some(fault));
        assert_eq!(guard.lost().await, Loss::Expired, "{fault:?}");
        assert_eq!(begun.elapsed(), TRUSTED, "{fault:?}");
        assert!(!guard.is_valid() && !view.is_valid());
        assert_eq!(guard.check(), Err(Loss::Expired));
        assert_eq!(view.ended().await, Ended::Lost(Loss::Expired));
        let calls = store.calls(Op::Extend);
        assert!((3..=12).contains(&calls), "{fault:?}: {calls}");
    }
}

/// Whose answers only are lost is not heard either: what cannot be known is not believed.
#[tokio::test(start_paused = true)]
async fn a_success_that_is_heard_too_late_is_not_believed() {
    let store = store();
    let locker = builder(&store).call_timeout(TTL * 2).build().unwrap();
    let guard = locker.lock("k").acquire().await.unwrap();
    store.outage(Some(Fault::LateReply(TTL)));
    assert_eq!(guard.lost().await, Loss::Expired);
    sleep(TTL).await;
    assert!(!guard.is_valid());
}

// Mutant: D42
#[tokio::test(start_paused = true)]
async fn two_renewals_that_are_lost_do_no_harm() {
    let store = store();
    let locker = locker(&store);
    let guard = locker.lock("k").acquire().await.unwrap();
    for _ in 0..10 {
        for fault in [Fault::LoseRequest, Fault::Hang] {
            store.inject(Op::Extend, fault);
        }
        sleep(TTL).await;
        assert!(guard.is_valid());
    }
    assert!(!is_free(&store, "k").await);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_the_store_has_forgotten_is_lost_at_the_next_renewal() {
    let store = store();
    let locker = locker(&store);
    let guard = locker.lock("k").acquire().await.unwrap();
    store.restart();
    let begun = Instant::now();
    assert_eq!(guard.lost().await, Loss::Gone);
    assert!(begun.elapsed() <= TTL / 3);
    assert_eq!(guard.release().await, ReleaseOutcome::AlreadyExpired);

    let guard = locker.lock("k").acquire().await.unwrap();
    store.restart();
    let other = locker.lock("k").acquire().await.unwrap();
    assert_eq!(guard.lost().await, Loss::TakenOver);
    assert!(matches!(
        guard.extend(TTL).await,
        Err(ExtendError::Lost(Loss::TakenOver))
    ));
    assert_eq!(guard.release().await, ReleaseOutcome::HeldByOther);
    assert!(other.is_valid());
    assert_eq!(store.calls(Op::Release), 0);
}

// Mutant: D41
#[tokio::test(start_paused = true)]
async fn a_lock_is_held_no_longer_than_it_may_be() {
    let store = store();
    let locker = locker(&store);
    let guard = locker.lock("k").max_hold(TTL * 3).acquire().await.unwrap();
    let begun = Instant::now();
    assert_eq!(guard.lost().await, Loss::MaxHold);
    assert_eq!(begun.elapsed(), TTL * 3);
    // Its holder is stuck, and does not give it back.
    sleep(TTL + MS).await;
    assert!(is_free(&store, "k").await);
    drop(guard);

    let guard = locker.lock("k").max_hold(SECOND).acquire().await.unwrap();
    assert_eq!(
        guard.valid_until(),
        Some((Instant::now() + SECOND).into_std())
    );
    sleep(SECOND).await;
    assert_eq!(guard.check(), Err(Loss::MaxHold));
    assert_eq!(guard.release().await, ReleaseOutcome::Released);
}

#[tokio::test(start_paused = true)]
async fn a_body_is_cancelled_when_its_lock_is_lost() {
    let store = store();
    let locker = locker(&store);
    store.inject(Op::Extend, Fault::Refuse);
    let begun = Instant::now();
    let ran = locker
        .lock("k")
        .run(|view| {
            store.outage(Some(Fault::Hang));
            async move {
                loop {
                    sleep(MS).await;
                    assert!(view.is_valid(), "it runs on without the lock");
                }
            }
        })
        .await
        .unwrap();
    assert_eq!(ran, Ran::<()>::Cancelled(Loss::Expired));
    assert_eq!(begun.elapsed(), TRUSTED);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_ends_is_answered_with_how_its_lock_has_ended() {
    let store = store();
    let locker = locker(&store);
    let ran = locker.lock("k").run(|_| async { 7 }).await.unwrap();
    let released = ReleaseOutcome::Released;
    assert_eq!(ran, Ran::Finished { value: 7, released });

    // The result is not lost with the lock.
    let restarts = store.clone();
    let body = async move {
        restarts.restart();
        7
    };
    let ran = locker.lock("k").run(|_| body).await.unwrap();
    let released = ReleaseOutcome::AlreadyExpired;
    assert_eq!(ran, Ran::Finished { value: 7, released });
}

#[tokio::test(start_paused = true)]
async fn a_body_that_panics_leaves_no_lock() {
    let store = store();
    let locker = locker(&store);
    let body = tokio::spawn(async move {
        let body = |_| async { panic!("a body") };
        locker.lock("k").run(body).await.map(|_: Ran<()>| ())
    });
    assert!(body.await.unwrap_err().is_panic());
    settle().await;
    assert!(is_free(&store, "k").await);
}

#[tokio::test(start_paused = true)]
async fn who_is_told_of_the_end_is_the_task_that_polled_last() {
    let store = store();
    let locker = locker(&store);
    let guard = locker.lock("k").acquire().await.unwrap();
    let view = guard.view();
    let (mut ended, [one, two]) = (view.ended(), [0, 1].map(|_| CountingWaker::new()));
    assert!(poll_with(&mut ended, &one.waker()).is_pending());
    assert!(poll_with(&mut ended, &two.waker()).is_pending());
    assert_eq!(guard.release().await, ReleaseOutcome::Released);
    assert_eq!((one.wakes(), two.wakes()), (0, 1));
    assert!(poll_with(&mut ended, &two.waker()).is_ready());
}

/// A lock that is given back is not lost, though the store says so to a renewal that was under way.
// Mutant: D34
#[tokio::test(start_paused = true)]
async fn nobody_hears_of_a_loss_who_gives_the_lock_back() {
    let store = store();
    let locker = locker(&store);
    let guard = locker.lock("k").acquire().await.unwrap();
    let view = guard.view();
    store.inject(Op::Extend, Fault::LateReply(SECOND));
    sleep(TTL / 3).await;
    store.restart();
    let _ = guard.release().await;
    sleep(SECOND * 2).await;
    assert_eq!(view.ended().await, Ended::Released);
}
