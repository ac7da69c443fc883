//! Waiting for a lock that somebody else has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockkit_core::lease::{AcquireError, Fault};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_waiter_gets_the_lock_when_it_is_released() {
    let store = store();
    let [here, there] = [(); 2].map(|()| locker(&store));
    let guard = here.lock("k").acquire().await.unwrap();
    let waiter =
        tokio::spawn(async move { there.lock("k").acquire().await.map(|_| Instant::now()) });
    sleep(SECOND).await;
    let released = Instant::now();
    drop(guard);
    let got = waiter.await.unwrap().unwrap();
    assert!(got - released <= MS, "{:?}", got - released);
}

/// Else nobody would know of the end of a holder who has died.
#[tokio::test(start_paused = true)]
async fn a_waiter_gets_the_lock_when_its_holder_is_dead_for_the_ttl() {
    let store = store();
    let locker = builder(&store).wait(TTL * 2).build().unwrap();
    std::mem::forget(
        locker
            .lock("k")
            .renew(false)
            .ttl(SECOND * 3)
            .acquire()
            .await
            .unwrap(),
    );
    let begun = Instant::now();
    drop(locker.lock("k").acquire().await.unwrap());
    let waited = begun.elapsed();
    assert!(
        waited >= SECOND * 3 && waited <= SECOND * 3 + MS * 25,
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_tell_is_asked_again_and_again() {
    let store = store();
    let mute = Mute(store.clone());
    let locker = Locker::builder(mute)
        .ttl(TTL)
        .poll(MS * 50)
        .build()
        .unwrap();
    let guard = locker.lock("k").acquire().await.unwrap();
    let waiter = {
        let locker = locker.clone();
        tokio::spawn(async move { locker.lock("k").acquire().await.map(|_| Instant::now()) })
    };
    sleep(SECOND).await;
    let asked = store.calls(Op::Acquire);
    assert!((15..=24).contains(&asked), "{asked}");
    let released = Instant::now();
    drop(guard);
    let got = waiter.await.unwrap().unwrap();
    assert!(got - released <= MS * 60);
}

/// What is released between the first answer and the watch would be heard by nobody.
// Mutant: D32
#[tokio::test(start_paused = true)]
async fn whoever_has_begun_to_listen_asks_once_more() {
    let store = store();
    let locker = builder(&store).renew(false).build().unwrap();
    let guard = locker.lock("k").acquire().await.unwrap();
    store.inject(Op::Watch, Fault::LateReply(SECOND));
    let begun = Instant::now();
    let waiter = {
        let locker = locker.clone();
        tokio::spawn(async move { locker.lock("k").acquire().await.map(drop) })
    };
    sleep(MS * 500).await;
    drop(guard);
    waiter.await.unwrap().unwrap();
    assert_eq!(begun.elapsed(), SECOND);
}

// Mutant: D33
#[tokio::test(start_paused = true)]
async fn of_those_who_wait_in_one_process_one_asks_and_all_are_served_in_order() {
    let store = store();
    let locker = builder(&store).wait(SECOND * 60).build().unwrap();
    let first = locker.lock("k").acquire().await.unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let waiters: Vec<_> = (0..20)
        .map(|number| {
            let (locker, served) = (locker.clone(), Arc::clone(&served));
            tokio::spawn(async move {
                let guard = locker.lock("k").acquire().await.unwrap();
                assert_eq!(served.fetch_add(1, Ordering::SeqCst), number);
                sleep(MS * 100).await;
                drop(guard);
            })
        })
        .collect();
    sleep(SECOND).await;
    // The holder; the one who asks: twice.
    assert_eq!((store.calls(Op::Acquire), store.calls(Op::Watch)), (3, 1));
    drop(first);
    for waiter in waiters {
        waiter.await.unwrap();
    }
    assert_eq!(served.load(Ordering::SeqCst), 20);
}

#[tokio::test(start_paused = true)]
async fn those_who_stand_in_line_are_served_in_order_across_processes() {
    let store = store();
    let lockers = [(); 6].map(|()| {
        builder(&store)
            .wait(SECOND * 60)
            .fair(true)
            .build()
            .unwrap()
    });
    let first = lockers[0].lock("k").acquire().await.unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let mut waiters = Vec::new();
    for (number, locker) in lockers.iter().enumerate() {
        let (locker, served) = (locker.clone(), Arc::clone(&served));
        waiters.push(tokio::spawn(async move {
            let guard = locker.lock("k").acquire().await.unwrap();
            let place = served.fetch_add(1, Ordering::SeqCst);
            sleep(SECOND).await;
            drop(guard);
            assert_eq!(place, number);
        }));
        sleep(MS * 10).await;
    }
    // Longer than a place lasts that nobody speaks for.
    sleep(SECOND * 8).await;
    let status = lockers[0].inspect("k").await.unwrap().unwrap();
    assert_eq!(status.waiting, Some(6));
    // In line is who waits; who does not, does not overtake either.
    let try_now = locker(&store).lock("k").try_acquire().await.unwrap();
    assert!(matches!(try_now, Attempt::Busy { .. }));
    drop(first);
    for waiter in waiters {
        waiter.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn one_in_line_who_goes_away_holds_up_nobody() {
    let store = store();
    let lockers = [(); 3].map(|()| {
        builder(&store)
            .wait(SECOND * 60)
            .fair(true)
            .build()
            .unwrap()
    });
    let first = lockers[0].lock("k").acquire().await.unwrap();
    let mut waiters = Vec::new();
    for locker in &lockers[1..] {
        let locker = locker.clone();
        waiters.push(tokio::spawn(async move {
            locker.lock("k").acquire().await.map(|_| Instant::now())
        }));
        sleep(MS).await;
    }
    waiters.remove(0).abort();
    settle().await;
    let status = lockers[0].inspect("k").await.unwrap().unwrap();
    assert_eq!(status.waiting, Some(1));
    let released = Instant::now();
    drop(first);
    let got = waiters.remove(0).await.unwrap().unwrap();
    assert!(got - released <= MS);
}

#[tokio::test(start_paused = true)]
async fn a_store_without_a_line_says_so() {
    let locker = Locker::new(Mute(store())).unwrap();
    let refused = locker.lock("k").fair(true).acquire().await;
    assert!(matches!(refused, Err(AcquireError::NotFair)));
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_in_time_and_says_who_has_the_lock() {
    let store = store();
    let locker = builder(&store).owner("me").build().unwrap();
    let _guard = locker.lock("k").acquire().await.unwrap();
    for wait in [Duration::ZERO, MS, SECOND, TTL * 3] {
        let begun = Instant::now();
        let late = locker.lock("k").wait(wait).acquire().await;
        let Err(AcquireError::TimedOut { waited, holder }) = late else {
            panic!("{late:?}");
        };
        assert_eq!(holder.unwrap().owner.as_str(), "me");
        assert!(
            waited <= wait + MS && begun.elapsed() <= wait + MS,
            "{waited:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_in_time_behind_others_of_the_process() {
    let store = store();
    let locker = locker(&store);
    let _guard = locker.lock("k").acquire().await.unwrap();
    let other = locker.clone();
    let _asks = tokio::spawn(async move { other.lock("k").wait(TTL).acquire().await.map(drop) });
    settle().await;
    let begun = Instant::now();
    let late = locker.lock("k").wait(SECOND).acquire().await;
    assert!(matches!(
        late,
        Err(AcquireError::TimedOut { holder: None, .. })
    ));
    assert!(begun.elapsed() <= SECOND + MS);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_in_time_when_the_store_is_not_there() {
    for (fault, unknown) in [
        (Fault::Refuse, false),
        (Fault::Hang, true),
        (Fault::LoseRequest, true),
        (Fault::LoseReply, true),
    ] {
        let store = store();
        let locker = locker(&store);
        store.outage(Some(fault));
        let begun = Instant::now();
        let failed = locker.lock("k").wait(SECOND * 5).acquire().await;
        let waited = begun.elapsed();
        assert!(waited <= SECOND * 5 + MS, "{fault:?}: {waited:?}");
        match failed {
            Err(AcquireError::Unreachable { .. }) => assert!(!unknown, "{fault:?}"),
            Err(AcquireError::Unknown { gone_by, .. }) => {
                assert!(unknown, "{fault:?}");
                assert!(gone_by > Instant::now().into_std());
            }
            other => panic!("{fault:?}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_store_refuses_is_not_tried_again() {
    let store = store();
    let locker = locker(&store);
    store.outage(Some(Fault::Reject));
    let refused = locker.lock("k").acquire().await;
    assert!(matches!(refused, Err(AcquireError::Rejected { .. })));
    assert_eq!(store.calls(Op::Acquire), 1);
}

// Mutant: D30
#[tokio::test(start_paused = true)]
async fn an_acquire_whose_reply_is_lost_finds_its_own_lock() {
    let store = store();
    let locker = locker(&store);
    store.inject(Op::Acquire, Fault::LoseReply);
    let guard = locker.lock("k").acquire().await.unwrap();
    assert!(guard.is_valid());
    store.inject(Op::Acquire, Fault::LoseReply);
    drop(acquired(locker.lock("other").try_acquire().await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_comes_back_within_the_wait_is_waited_for() {
    let store = store();
    let locker = locker(&store);
    store.outage(Some(Fault::Refuse));
    let waiter = {
        let locker = locker.clone();
        tokio::spawn(async move { locker.lock("k").acquire().await.map(drop) })
    };
    sleep(SECOND * 3).await;
    store.outage(None);
    waiter.await.unwrap().unwrap();
    assert!(store.calls(Op::Acquire) < 40);
}

/// An acquire that was answered when its time was over already is no lock.
// Mutants: D23, D96, D138
#[tokio::test(start_paused = true)]
async fn a_grant_that_comes_too_late_is_not_handed_out() {
    let store = store();
    let locker = builder(&store).ttl(SECOND).build().unwrap();
    store.inject(Op::Acquire, Fault::LateReply(SECOND));
    let late = locker.lock("k").try_acquire().await;
    assert!(
        matches!(late, Err(AcquireError::TooSlow { ttl: SECOND, took }) if took == SECOND),
        "{late:?}"
    );
    assert!(is_free(&store, "k").await);

    store.inject(Op::Acquire, Fault::LateReply(SECOND));
    let guard = locker.lock("k").acquire().await.unwrap();
    assert!(guard.is_valid());
    assert_eq!(store.calls(Op::Acquire), 3);

    // Too late by our clock, and not by the store's: it was given back before this was told.
    store.inject(Op::Acquire, Fault::LateReply(MS * 990));
    let late = locker.lock("l").try_acquire().await;
    assert!(matches!(late, Err(AcquireError::TooSlow { .. })));
    assert!(is_free(&store, "l").await);

    // Also by him who goes on waiting: he is not in his own way when he asks again.
    store.inject(Op::Acquire, Fault::LateReply(MS * 990));
    let guard = locker.lock("m").acquire().await.unwrap();
    assert!(guard.is_valid());
    assert_eq!((store.calls(Op::Acquire), store.calls(Op::Watch)), (6, 0));
}

/// It is not asked for again and again until the wait is over.
// Mutant: D94
#[tokio::test(start_paused = true)]
async fn a_store_that_is_always_too_slow_for_a_ttl_is_told_of_with_both_times() {
    let store = store();
    let locker = builder(&store).ttl(MS * 50).build().unwrap();
    store.outage(Some(Fault::LateReply(MS * 80)));
    let slow = locker.lock("k").wait(SECOND * 60).acquire().await;
    let slow = slow.unwrap_err();
    assert_eq!(
        slow.to_string(),
        "granted for 50ms by an answer that took 80ms: over before it began"
    );
    assert_eq!(store.calls(Op::Acquire), 3);
    store.outage(None);
    assert!(is_free(&store, "k").await);
}

// Mutant: E179
#[tokio::test(start_paused = true)]
async fn a_longest_hold_that_no_answer_meets_is_told_of_with_both_times() {
    let store = store();
    store.outage(Some(Fault::LateReply(MS * 80)));
    let slow = locker(&store).lock("k").max_hold(MS * 50).acquire().await;
    assert_eq!(
        slow.unwrap_err().to_string(),
        "granted for 50ms by an answer that took 80ms: over before it began"
    );
}

/// However many of them there are: their places are over when he is missed, too.
// Mutants: D92, D93
#[tokio::test(start_paused = true)]
async fn whoever_lives_is_served_within_a_ttl_and_a_heartbeat_of_the_last_death() {
    for (ttl, place, dead) in [
        (MS * 100, MS * 300, 4),
        (MS * 450, MS * 450, 4),
        (SECOND * 2, SECOND * 2, 1),
        (TTL, SECOND * 3, 4),
    ] {
        for holder_dies in [false, true] {
            let store = store();
            let process = || {
                let builder = builder(&store).ttl(ttl).fair(true);
                builder.wait(SECOND * 60).build().unwrap()
            };
            let locker = process();
            let holder = locker.lock("k").renew(!holder_dies).acquire();
            let holder = holder.await.unwrap();
            for number in 1..=dead {
                let locker = Box::leak(Box::new(process()));
                let mut waits = Box::pin(locker.lock("k").acquire());
                let polled = waits.as_mut();
                assert!(tokio::time::timeout(MS, polled).await.is_err());
                let status = locker.inspect("k").await.unwrap().unwrap();
                assert_eq!(status.waiting, Some(number));
                std::mem::forget(waits);
            }
            let locker = process();
            let waits = tokio::spawn(async move {
                let guard = locker.lock("k").acquire().await.unwrap();
                (guard.is_valid(), Instant::now())
            });
            let died = Instant::now();
            settle().await;
            if holder_dies {
                std::mem::forget(holder);
            } else {
                drop(holder);
            }
            let (valid, got) = waits.await.unwrap();
            let waited = got - died;
            assert!(
                valid && waited <= ttl.max(place) + place / 3,
                "{ttl:?}, {dead} dead, {holder_dies}: {waited:?}"
            );
        }
    }
}

/// Else his place would be over before he speaks for it.
// Mutant: D95
#[tokio::test(start_paused = true)]
async fn one_in_line_asks_as_often_as_his_place_demands_however_seldom_others_ask() {
    let store = store();
    let lockers = [(); 3].map(|()| {
        builder(&store)
            .wait(SECOND * 60)
            .poll(SECOND * 30)
            .fair(true)
            .build()
            .unwrap()
    });
    let first = lockers[0].lock("k").acquire().await.unwrap();
    store.inject(Op::Watch, Fault::Refuse);
    let waiter = {
        let locker = lockers[1].clone();
        tokio::spawn(async move { locker.lock("k").acquire().await.map(drop) })
    };
    sleep(SECOND * 10).await;
    let status = lockers[2].inspect("k").await.unwrap().unwrap();
    assert_eq!(status.waiting, Some(1));
    drop(first);
    waiter.await.unwrap().unwrap();
}

/// Nobody speaks for his place meanwhile.
// Mutant: E178
#[tokio::test(start_paused = true)]
async fn who_is_long_in_beginning_to_listen_keeps_his_place() {
    let store = store();
    let _first = locker(&store).lock("k").acquire().await.unwrap();
    let locker = builder(&store).ttl(MS * 300).fair(true).build().unwrap();
    store.inject(Op::Watch, Fault::Hang);
    let waits = locker.clone();
    let _waits = tokio::spawn(async move { waits.lock("k").acquire().await.map(drop) });
    sleep(SECOND).await;
    let status = locker.inspect("k").await.unwrap().unwrap();
    assert_eq!(status.waiting, Some(1));
}

/// Else a store that was slow once would be asked again and again for as long as he waits.
// Mutant: D158
#[tokio::test(start_paused = true)]
async fn who_could_not_begin_to_listen_tries_again_after_a_while() {
    for fault in [Fault::Hang, Fault::Refuse] {
        let store = store();
        let first = locker(&store).lock("k").acquire().await.unwrap();
        let locker = builder(&store).fair(true).wait(SECOND * 60).build();
        let locker = locker.unwrap();
        store.inject(Op::Watch, fault);
        let waits = tokio::spawn(async move { locker.lock("k").acquire().await.map(drop) });
        sleep(SECOND * 4).await;
        assert_eq!(store.calls(Op::Watch), 1);
        sleep(SECOND * 6).await;
        assert_eq!(store.calls(Op::Watch), 2);
        drop(first);
        waits.await.unwrap().unwrap();
        assert_eq!(store.calls(Op::Watch), 2);
    }
}

/// Else he would not stand in any line for as long as others hand the lock on in theirs.
// Mutant: E177
#[tokio::test(start_paused = true)]
async fn who_is_fair_stands_in_line_whoever_else_of_his_process_waits() {
    let store = store();
    let locker = builder(&store).wait(SECOND * 60).build().unwrap();
    let first = locker.lock("k").acquire().await.unwrap();
    let mut waiters = Vec::new();
    for fair in [false, true] {
        let locker = locker.clone();
        waiters.push(tokio::spawn(async move {
            locker.lock("k").fair(fair).acquire().await.map(drop)
        }));
        settle().await;
    }
    let status = locker.inspect("k").await.unwrap().unwrap();
    assert_eq!(status.waiting, Some(1));
    drop(first);
    for waiter in waiters {
        waiter.await.unwrap().unwrap();
    }
}

// Mutant: D7
#[tokio::test(start_paused = true)]
async fn validity_counts_from_before_the_message() {
    let store = store();
    let locker = builder(&store).renew(false).build().unwrap();
    store.inject(Op::Acquire, Fault::LateReply(SECOND));
    let sent = Instant::now();
    let guard = locker.lock("k").acquire().await.unwrap();
    assert_eq!(guard.valid_until(), Some((sent + TRUSTED).into_std()));
}
