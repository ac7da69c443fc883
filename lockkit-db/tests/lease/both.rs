//! What is true on both databases, beside the contract.

use std::time::Duration;

use lockkit_core::Fence;
use lockkit_db::Error;
use lockkit_db::fenced::Fences;
use lockkit_db::lease::{
    Attempt, Extended, LeaseStore as _, Locker, ReleaseOutcome, Released, StoreError,
};
use lockkit_db::transaction::{Tx, TxOptions};

use crate::scene::{Ground, ask, busy, extension, granted, key, on_both};

const DAY: Duration = Duration::from_hours(24);

on_both! {
    a_fence_grows_over_a_row_that_was_forgotten
    a_fence_that_is_ahead_of_the_clock_is_not_forgotten
    what_is_held_or_was_lately_is_not_forgotten
    all_that_is_unused_is_forgotten_wherever_it_is
    a_clock_that_is_set_back_takes_no_lock_away_and_no_fence_back
    locks_and_a_queue_share_a_database
    tables_of_another_version_are_refused
    a_table_that_is_gone_is_a_refusal_of_every_step
    when_no_fence_is_left_the_lock_is_refused
    what_others_have_written_into_a_row_is_refused
    a_holder_who_was_paused_writes_nothing_any_more
    a_locker_waits_for_the_holder_of_another_process
    first_come_first_served_is_refused
}

/// Because the next one is the time.
async fn a_fence_grows_over_a_row_that_was_forgotten<G: Ground>() {
    let ground = G::new().await;
    let store = ground.store().await;
    ground.stop_clock().await;
    let one = ask("k");
    let first = granted(store.acquire(&one).await);
    assert_eq!(
        store.release(&one.key, &one.token).await.unwrap(),
        Released::Released
    );
    ground.turn_clock(2 * DAY).await;
    assert_eq!(G::forget(&store, 2 * DAY).await.unwrap(), 1);
    assert_eq!(G::forget(&store, 2 * DAY).await.unwrap(), 0);
    let second = granted(ground.store().await.acquire(&ask("k")).await);
    assert!(second > first, "{second} after {first}");
}

// Mutant: D75
async fn a_fence_that_is_ahead_of_the_clock_is_not_forgotten<G: Ground>() {
    let ground = G::new().await;
    let store = ground.store().await;
    ground.stop_clock().await;
    let one = ask("k");
    granted(store.acquire(&one).await);
    assert!(store.release(&one.key, &one.token).await.is_ok());
    // As if the clock had been set back by a year since then.
    let ahead = (365 * DAY).as_micros();
    ground
        .run(&format!("UPDATE lockkit_lease SET fence = {ahead}"))
        .await;
    ground.turn_clock(10 * DAY).await;
    assert_eq!(G::forget(&store, 2 * DAY).await.unwrap(), 0);
    let next = granted(store.acquire(&ask("k")).await);
    assert_eq!(next.get(), ahead as u64 + 1);
}

async fn what_is_held_or_was_lately_is_not_forgotten<G: Ground>() {
    let ground = G::new().await;
    let store = ground.store().await;
    ground.stop_clock().await;
    granted(store.acquire(&ask("old")).await);
    ground.turn_clock(3 * DAY).await;
    let held = ask("held");
    let fence = granted(store.acquire(&held).await);
    granted(store.acquire(&ask("released")).await);
    // An hour later it is over.
    ground.turn_clock(Duration::from_mins(59)).await;
    assert_eq!(G::forget(&store, 2 * DAY).await.unwrap(), 1);
    assert_eq!(granted(store.acquire(&held).await), fence);

    for wrong in [
        Duration::ZERO,
        2 * DAY.saturating_sub(Duration::from_nanos(1)),
        Duration::MAX,
    ] {
        let refused = G::forget(&store, wrong).await;
        assert!(
            refused.is_err_and(|error| error.is_invalid()),
            "{wrong:?} is not refused"
        );
    }
}

// Mutant: D144
async fn all_that_is_unused_is_forgotten_wherever_it_is<G: Ground>() {
    let ground = G::new().await;
    let store = ground.store().await;
    ground.stop_clock().await;
    ground.turn_clock(3 * DAY).await;
    // Every other one was held until now.
    ground
        .run(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
             INSERT INTO lockkit_lease
             SELECT 'k' || i, NULL, '', 1, CASE i % 2 WHEN 0 THEN 1 ELSE us END
             FROM n, lockkit_lease_now",
        )
        .await;
    assert_eq!(G::forget(&store, 2 * DAY).await.unwrap(), 1250);
    assert_eq!(G::forget(&store, 2 * DAY).await.unwrap(), 0);
    ground.turn_clock(2 * DAY).await;
    assert_eq!(G::forget(&store, 2 * DAY).await.unwrap(), 1250);
}

async fn a_clock_that_is_set_back_takes_no_lock_away_and_no_fence_back<G: Ground>() {
    let ground = G::new().await;
    let store = ground.store().await;
    ground.stop_clock().await;
    ground.turn_clock(DAY).await;
    let holder = ask("k");
    let fence = granted(store.acquire(&holder).await);
    let back = Duration::from_mins(30);
    ground
        .run(&format!(
            "UPDATE test_clock SET us = us - {}",
            back.as_micros()
        ))
        .await;
    assert_eq!(busy(store.acquire(&ask("k")).await), fence);
    let extended = store.extend(&[extension(&holder)]).await.unwrap();
    assert_eq!(extended, [Extended::Extended]);
    let held = store.inspect(&holder.key).await.unwrap().unwrap();
    assert_eq!(held.remaining, holder.ttl.get() + back);
    let released = store.release(&holder.key, &holder.token).await.unwrap();
    assert_eq!(released, Released::Released);
    assert!(granted(store.acquire(&ask("k")).await) > fence);
}

/// Neither takes the other's steps for its own future, or past.
// Mutant: D87
async fn locks_and_a_queue_share_a_database<G: Ground>() {
    for locks_first in [true, false] {
        let ground = G::new().await;
        for at in 0..4 {
            if locks_first == (at % 2 == 0) {
                let _ = granted(ground.store().await.acquire(&ask("k")).await);
                ground.run("DELETE FROM lockkit_lease").await;
            } else {
                ground.queue().await.unwrap();
            }
        }
    }
}

async fn tables_of_another_version_are_refused<G: Ground>() {
    let ground = G::new().await;
    drop(ground.store().await);
    ground
        .run(
            "INSERT INTO lockkit_lease_migration (version, name, applied_at) \
             VALUES (999, 'from the future', '2000-01-01')",
        )
        .await;
    match ground.open().await.err() {
        Some(Error::Schema { problem }) => assert!(
            problem.contains("999 (from the future), which is newer"),
            "{problem}"
        ),
        other => panic!("it was not refused: {other:?}"),
    }
    ground
        .run(
            "DELETE FROM lockkit_lease_migration WHERE version = 999;
             UPDATE lockkit_lease_migration SET name = 'other'",
        )
        .await;
    match ground.open().await.err() {
        Some(Error::Schema { problem }) => assert!(problem.contains("other"), "{problem}"),
        other => panic!("it was not refused: {other:?}"),
    }
}

async fn a_table_that_is_gone_is_a_refusal_of_every_step<G: Ground>() {
    let ground = G::new().await;
    let store = ground.store().await;
    let spec = ask("k");
    granted(store.acquire(&spec).await);
    ground.run("DROP TABLE lockkit_lease").await;
    let is_refused = |error: Option<StoreError>| {
        assert!(
            matches!(error, Some(StoreError::Rejected { .. })),
            "{error:?}"
        );
    };
    is_refused(store.acquire(&spec).await.err());
    is_refused(store.extend(&[extension(&spec)]).await.err());
    is_refused(store.release(&spec.key, &spec.token).await.err());
    is_refused(store.inspect(&spec.key).await.err());
}

async fn when_no_fence_is_left_the_lock_is_refused<G: Ground>() {
    let ground = G::new().await;
    let store = ground.store().await;
    let one = ask("k");
    granted(store.acquire(&one).await);
    ground
        .run(&format!("UPDATE lockkit_lease SET fence = {}", i64::MAX))
        .await;
    // The last one is a fence like any other.
    assert_eq!(granted(store.acquire(&one).await), Fence::MAX);
    assert_eq!(
        store.release(&one.key, &one.token).await.unwrap(),
        Released::Released
    );
    let refused = store.acquire(&ask("k")).await;
    assert!(
        matches!(refused, Err(StoreError::Rejected { .. })),
        "{refused:?}"
    );
    assert_eq!(store.inspect(&one.key).await.unwrap(), None);
}

async fn what_others_have_written_into_a_row_is_refused<G: Ground>() {
    let ground = G::new().await;
    let store = ground.store().await;
    granted(store.acquire(&ask("k")).await);
    let owner = "x".repeat(600);
    ground
        .run(&format!("UPDATE lockkit_lease SET owner = '{owner}'"))
        .await;
    let refused = store.acquire(&ask("k")).await;
    assert!(
        matches!(refused, Err(StoreError::Rejected { .. })),
        "{refused:?}"
    );
    let refused = store.inspect(&key("k")).await;
    assert!(
        matches!(refused, Err(StoreError::Rejected { .. })),
        "{refused:?}"
    );
}

/// He has looked at his watch, was paused, and writes when another has had the lock for long.
async fn a_holder_who_was_paused_writes_nothing_any_more<G: Ground>() {
    let ground = G::new().await;
    let (one, other) = (ground.store().await, ground.store().await);
    ground.stop_clock().await;
    ground
        .run("CREATE TABLE account (amount integer); INSERT INTO account VALUES (1)")
        .await;
    let pool = ground.pool();
    let fences = Fences::<G::Database>::new();
    fences.migrate(&pool).await.unwrap();
    let claim = async |fence| {
        let mut tx = Tx::begin(&pool, &TxOptions::new()).await?;
        fences.claim(&mut tx, "account", fence).await?;
        tx.commit().await
    };
    let write = async |fence| {
        let mut tx = Tx::begin(&pool, &TxOptions::new()).await?;
        fences.write(&mut tx, "account", fence).await?;
        tx.commit().await
    };

    let (paused, next) = (ask("account"), ask("account"));
    let early = granted(one.acquire(&paused).await);
    claim(early).await.unwrap();
    write(early).await.unwrap();
    ground.turn_clock(Duration::from_hours(1)).await;
    let late = granted(other.acquire(&next).await);
    claim(late).await.unwrap();
    let refused = write(early).await;
    assert!(matches!(refused, Err(Error::Stale { .. })), "{refused:?}");
    assert!(matches!(claim(early).await, Err(Error::Stale { .. })));
    write(late).await.unwrap();
    let extended = one.extend(&[extension(&paused)]).await.unwrap();
    assert_eq!(extended, [Extended::HeldByOther]);
    pool.close().await;
}

async fn a_locker_waits_for_the_holder_of_another_process<G: Ground>() {
    let ground = G::new().await;
    let locker = async || {
        Locker::builder(ground.store().await)
            .wait(Duration::from_mins(2))
            .call_timeout(Duration::from_secs(30))
            .ttl(Duration::from_mins(5))
            .build()
            .unwrap()
    };
    let (one, other) = (locker().await, locker().await);
    let mut last = None;
    for round in 0..5 {
        let (holder, waiter) = if round % 2 == 0 {
            (&one, &other)
        } else {
            (&other, &one)
        };
        let guard = holder.lock("k").acquire().await.unwrap();
        assert!(Some(guard.fence()) > last);
        let first = guard.fence();
        let waits = waiter.lock("k").acquire();
        let release = async {
            let attempt = waiter.lock("k").try_acquire().await.unwrap();
            assert!(matches!(attempt, Attempt::Busy { .. }));
            assert_eq!(guard.release().await, ReleaseOutcome::Released);
        };
        let (second, ()) = tokio::join!(waits, release);
        let second = second.unwrap();
        assert!(second.fence() > first);
        last = Some(second.fence());
        assert_eq!(second.release().await, ReleaseOutcome::Released);
    }
}

async fn first_come_first_served_is_refused<G: Ground>() {
    let ground = G::new().await;
    let store = ground.store().await;
    assert!(!store.is_fair());
    // A place that is asked for all the same is none.
    let holder = ask("k");
    let fence = granted(store.acquire(&holder).await);
    let mut waits = ask("k");
    waits.line = Some(waits.ttl);
    assert_eq!(busy(store.acquire(&waits).await), fence);
    assert!(store.release(&holder.key, &holder.token).await.is_ok());
    assert_eq!(store.inspect(&holder.key).await.unwrap(), None);
    let locker = Locker::new(store).unwrap();
    let refused = locker.lock("k").fair(true).acquire().await;
    assert!(refused.is_err(), "{refused:?}");
}
