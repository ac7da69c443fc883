//! Taking a lock, keeping it, giving it back.

use lockkit_core::lease::{Ended, Fault, LockerError, ReleaseOutcome, Ticket};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_lock_is_one_holders_until_he_gives_it_back() {
    let store = store();
    let [here, there] =
        ["here", "there"].map(|owner| builder(&store).owner(owner).build().unwrap());
    let guard = acquired(here.lock("k").try_acquire().await.unwrap());
    assert!(guard.is_valid());
    match there.lock("k").try_acquire().await.unwrap() {
        Attempt::Busy { remaining, holder } => {
            assert_eq!((remaining, holder.owner.as_str()), (TTL, "here"));
            assert_eq!(holder.fence, guard.fence());
        }
        Attempt::Acquired(_) => panic!("held twice"),
    }
    assert_eq!(guard.release().await, ReleaseOutcome::Released);
    drop(acquired(there.lock("k").try_acquire().await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn the_lock_is_looked_at_without_touching_it() {
    let store = store();
    let locker = builder(&store).owner("me").build().unwrap();
    assert_eq!(locker.inspect("k").await.unwrap(), None);
    let guard = locker.lock("k").renew(false).acquire().await.unwrap();
    sleep(SECOND).await;
    let status = locker.inspect("k").await.unwrap().unwrap();
    assert_eq!(status.holder.owner.as_str(), "me");
    assert_eq!(status.holder.fence, guard.fence());
    assert_eq!((status.remaining, status.waiting), (SECOND * 11, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn fences_grow_with_every_grant_and_over_restarts_and_stay_over_renewals() {
    let store = store();
    let locker = locker(&store);
    let mut last = None;
    for round in 0..5 {
        let guard = locker.lock("k").acquire().await.unwrap();
        let fence = guard.fence();
        assert!(last < Some(fence), "round {round}");
        sleep(TTL * 3).await;
        assert!(guard.is_valid());
        guard.extend(TTL * 2).await.unwrap();
        assert_eq!((guard.fence(), guard.view().fence()), (fence, fence));
        let status = locker.inspect("k").await.unwrap().unwrap();
        assert_eq!(status.holder.fence, fence);
        last = Some(fence);
        drop(guard);
        settle().await;
        store.restart();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_renewed_for_as_long_as_its_guard_lives() {
    let store = store();
    let locker = locker(&store);
    let guard = locker.lock("k").acquire().await.unwrap();
    sleep(TTL * 10).await;
    assert!(guard.is_valid());
    let renewals = store.calls(Op::Extend);
    assert!(
        (28..=36).contains(&renewals),
        "{renewals} at a third of the TTL each"
    );
    assert!(!is_free(&store, "k").await);
    drop(guard);
    settle().await;
    assert!(is_free(&store, "k").await);
    sleep(TTL * 3).await;
    assert_eq!(store.calls(Op::Extend), renewals);
    assert_eq!((locker.renewed(), locker.left_over()), (0, 0));
}

/// Else a server would get as many messages as there are locks.
#[tokio::test(start_paused = true)]
async fn many_locks_are_renewed_in_few_messages() {
    let store = store();
    let locker = locker(&store);
    let mut guards = Vec::new();
    for key in 0..250 {
        guards.push(locker.lock(format!("k{key}")).acquire().await.unwrap());
        sleep(MS).await;
    }
    assert_eq!(locker.renewed(), 250);
    sleep(TTL).await;
    let calls = store.calls(Op::Extend);
    assert!(guards.iter().all(Guard::is_valid));
    // Three rounds, of three batches each, or one more where a grid line lies among the 250 ms.
    assert!((6..=15).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_not_renewed_ends_before_the_store_ends_it() {
    let store = store();
    let locker = builder(&store).renew(false).build().unwrap();
    let guard = locker.lock("k").acquire().await.unwrap();
    sleep(TRUSTED.saturating_sub(MS)).await;
    assert!(guard.is_valid());
    sleep(MS).await;
    assert!(!guard.is_valid());
    assert_eq!(guard.valid_until(), None);
    assert!(!is_free(&store, "k").await);
    assert_eq!(store.calls(Op::Extend), 0);
    sleep(TTL).await;
    assert_eq!(guard.release().await, ReleaseOutcome::AlreadyExpired);
}

#[tokio::test(start_paused = true)]
async fn an_extension_counts_from_before_it_was_sent_and_never_shortens() {
    let store = store();
    let locker = builder(&store).renew(false).build().unwrap();
    let guard = locker.lock("k").acquire().await.unwrap();
    store.inject(Op::Extend, Fault::LateReply(SECOND));
    let sent = Instant::now();
    let until = guard.extend(TTL * 2).await.unwrap();
    assert_eq!(sent.elapsed(), SECOND);
    assert_eq!(until, (sent + TTL * 2 - TTL / 50 - MS * 2).into_std());
    assert_eq!(guard.extend(TTL).await.unwrap(), until);
    let status = locker.inspect("k").await.unwrap().unwrap();
    assert_eq!(status.remaining, SECOND * 23);
}

#[tokio::test(start_paused = true)]
async fn a_release_says_that_somebody_else_has_it() {
    let store = store();
    let locker = builder(&store).renew(false).build().unwrap();
    let late = locker.lock("k").acquire().await.unwrap();
    sleep(TTL).await;
    let other = locker.lock("k").acquire().await.unwrap();
    assert!(other.fence() > late.fence());
    assert_eq!(late.release().await, ReleaseOutcome::HeldByOther);
    assert!(other.is_valid() && !is_free(&store, "k").await);
}

#[tokio::test(start_paused = true)]
async fn a_release_whose_reply_is_lost_is_known_to_be_done_when_it_is_asked_again() {
    let store = store();
    let locker = locker(&store);
    let guard = locker.lock("k").acquire().await.unwrap();
    store.inject(Op::Release, Fault::LoseReply);
    assert_eq!(guard.release().await, ReleaseOutcome::Released);
    assert_eq!(store.calls(Op::Release), 2);
}

#[tokio::test(start_paused = true)]
async fn a_release_without_an_answer_tells_when_the_lock_is_free_and_goes_on() {
    let store = store();
    let locker = locker(&store);
    let guard = locker.lock("k").acquire().await.unwrap();
    store.outage(Some(Fault::LoseRequest));
    let ReleaseOutcome::Unknown { gone_by } = guard.release().await else {
        panic!("nobody can know");
    };
    assert!(gone_by >= (Instant::now() + TTL - SECOND).into_std());
    assert_eq!(store.calls(Op::Release), 3);
    sleep(SECOND).await;
    store.outage(None);
    sleep(SECOND * 3).await;
    assert!(is_free(&store, "k").await);
    assert_eq!(locker.left_over(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lock_goes_to_another_process_with_its_fence() {
    let store = store();
    let [here, there] = [(); 2].map(|()| locker(&store));
    let guard = here.lock("a:b").acquire().await.unwrap();
    let (fence, view) = (guard.fence(), guard.view());
    let ticket = guard.detach().unwrap();
    assert_eq!(view.ended().await, Ended::Released);
    settle().await;
    assert!(!is_free(&store, "a:b").await);

    let ticket = Ticket::from_text(&ticket.to_text()).unwrap();
    assert_eq!((ticket.key().as_str(), ticket.fence()), ("a:b", fence));
    // Unknown, and so tried again.
    store.inject(Op::Extend, Fault::LoseReply);
    there.attach(&ticket).await.unwrap_err();
    let guard = there.attach(&ticket).await.unwrap();
    assert_eq!(guard.fence(), fence);
    sleep(TTL * 2).await;
    assert_eq!(guard.release().await, ReleaseOutcome::Released);
    there.attach(&ticket).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn the_token_is_printed_nowhere() {
    let store = store();
    let locker = locker(&store);
    let guard = locker.lock("k").acquire().await.unwrap();
    let token = guard.token().to_hex();
    let mut texts = vec![format!("{guard:?} {:?} {:?}", guard.view(), guard.token())];
    texts.push(format!("{:?}", guard.detach().unwrap()));
    for text in texts {
        assert!(!text.contains(&token), "{text}");
    }
}

#[test]
fn without_a_runtime_there_is_no_locker() {
    let made = Locker::new(MemoryStore::new());
    assert_eq!(made.unwrap_err(), LockerError::NoRuntime);
}
