//! Locks with a connection of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lockkit_db::Error;
use lockkit_db::advisory::AdvisorySessions;
use lockkit_db::sqlx::postgres::PgPoolOptions;
use lockkit_db::sqlx::{self, ConnectOptions as _, PgConnection};
use lockkit_test::cancel;

use crate::scene::Postgres;
use crate::{advisory, locks, seen};

/// Ends the sessions that have an advisory lock.
async fn kill(view: &mut PgConnection) {
    let killed: i64 = sqlx::query_scalar(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_locks l \
         JOIN pg_database d ON d.oid = l.database \
         WHERE d.datname = current_database() AND locktype = 'advisory' AND granted",
    )
    .fetch_one(view)
    .await
    .unwrap();
    assert_eq!(killed, 1);
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("it takes for ever")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_held_until_it_is_released_or_dropped() {
    let scene = Postgres::new(1).await;
    let mut view = scene.database.connect().await;
    // Two processes, as it were.
    let (here, there) = (
        AdvisorySessions::new(&scene.pool),
        AdvisorySessions::new(&scene.pool),
    );
    let lock = advisory("a");
    let guard = here.acquire(&lock).await.unwrap();
    assert_eq!(guard.key(), lock.key());
    assert!(!guard.is_lost());
    locks(&mut view, 1, 0).await;
    assert!(there.try_acquire(&lock).await.unwrap().is_none());
    assert!(here.try_acquire(&lock).await.unwrap().is_none());
    let other = there.try_acquire(&advisory("b")).await.unwrap().unwrap();
    guard.release().await.unwrap();

    let guard = there.try_acquire(&lock).await.unwrap().unwrap();
    let gone = guard.lost();
    drop(guard);
    drop(other);
    soon(gone).await;
    locks(&mut view, 0, 0).await;
    scene.is_clean().await;
}

// Mutant: B16
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_of_a_process_wait_in_turn_and_without_a_connection() {
    const TASKS: usize = 20;
    let scene = Postgres::new(1).await;
    let mut view = scene.database.connect().await;
    let sessions = AdvisorySessions::new(&scene.pool);
    let lock = advisory("a").at_most(Duration::from_mins(1));
    let guard = sessions.acquire(&lock).await.unwrap();
    let inside = Arc::new(AtomicU32::new(0));
    let mut tasks = Vec::new();
    for _ in 0..TASKS {
        let (sessions, lock, inside) = (sessions.clone(), lock.clone(), Arc::clone(&inside));
        let options = scene.database.options();
        tasks.push(tokio::spawn(async move {
            let guard = sessions.acquire(&lock).await.unwrap();
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            // Nobody of this process asks the server meanwhile; the stranger may.
            let mut view = options.connect().await.unwrap();
            let (_, waiting) = seen(&mut view).await;
            assert!(waiting <= 1, "{waiting} wait with a connection");
            inside.fetch_sub(1, Ordering::SeqCst);
            guard.release().await.unwrap();
        }));
    }
    let elsewhere = AdvisorySessions::new(&scene.pool);
    let stranger = tokio::spawn({
        let lock = lock.clone();
        async move { elsewhere.acquire(&lock).await.unwrap().release().await }
    });
    locks(&mut view, 1, 1).await;
    guard.release().await.unwrap();
    for task in tasks {
        task.await.unwrap();
    }
    stranger.await.unwrap().unwrap();
    locks(&mut view, 0, 0).await;
}

// Mutant: B17
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sharers_of_a_process_share() {
    let scene = Postgres::new(1).await;
    let mut view = scene.database.connect().await;
    let sessions = AdvisorySessions::new(&scene.pool);
    let shared = advisory("a").shared();
    let first = sessions.acquire(&shared).await.unwrap();
    let second = sessions.try_acquire(&shared).await.unwrap().unwrap();
    locks(&mut view, 2, 0).await;
    assert!(
        sessions
            .try_acquire(&advisory("a"))
            .await
            .unwrap()
            .is_none()
    );
    first.release().await.unwrap();
    second.release().await.unwrap();
    let alone = sessions.try_acquire(&advisory("a")).await.unwrap().unwrap();
    assert!(sessions.try_acquire(&shared).await.unwrap().is_none());
    alone.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_and_names_who_blocked_if_that_is_another_session() {
    let scene = Postgres::new(1).await;
    let (here, there) = (
        AdvisorySessions::new(&scene.pool),
        AdvisorySessions::new(&scene.pool),
    );
    let lock = advisory("a").at_most(Duration::from_millis(500));
    let guard = here.acquire(&lock).await.unwrap();
    let count = async |sessions: &AdvisorySessions| {
        let error = sessions.acquire(&lock).await.unwrap_err();
        let Error::LockNotAvailable { blockers, .. } = &error else {
            panic!("{error:?}");
        };
        blockers.len()
    };
    assert_eq!((count(&there).await, count(&here).await), (1, 0));
    guard.release().await.unwrap();
    scene.is_quiet().await;
}

// Mutant: B18
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_holder_learns_of_it_and_others_get_the_lock() {
    let scene = Postgres::new(1).await;
    let mut view = scene.database.connect().await;
    let sessions = AdvisorySessions::new(&scene.pool)
        .keepalive(Duration::from_millis(20))
        .unwrap();
    let guard = sessions.acquire(&advisory("a")).await.unwrap();
    let lost = guard.lost();
    kill(&mut view).await;
    soon(lost).await;
    assert!(guard.is_lost());
    // The next one of this process has his turn, while the loser still has his guard.
    let next = soon(sessions.acquire(&advisory("a"))).await.unwrap();
    assert!(matches!(guard.release().await, Err(Error::LockLost { .. })));
    next.release().await.unwrap();
    locks(&mut view, 0, 0).await;
}

// Mutant: B19
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_tells_that_the_lock_was_lost_before() {
    let scene = Postgres::new(1).await;
    let mut view = scene.database.connect().await;
    // Nobody will have looked.
    let sessions = AdvisorySessions::new(&scene.pool)
        .keepalive(Duration::from_hours(1))
        .unwrap();
    let guard = sessions.acquire(&advisory("a")).await.unwrap();
    kill(&mut view).await;
    locks(&mut view, 0, 0).await;
    assert!(matches!(guard.release().await, Err(Error::LockLost { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_at_every_poll_it_leaves_no_lock() {
    let scene = Postgres::new(1).await;
    let mut view = scene.database.connect().await;
    let sessions = AdvisorySessions::new(&scene.pool);
    for lock in [advisory("a"), advisory("a").shared()] {
        let cuts = cancel::at_every_poll_async(
            || async {
                let guard = sessions.acquire(&lock).await.unwrap();
                guard.release().await.unwrap();
            },
            async |_| {
                locks(&mut view, 0, 0).await;
                scene.is_clean().await;
            },
        )
        .await;
        let _ = cuts.demand(1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_dropped_at_every_poll_leaves_no_lock_and_no_claim() {
    let scene = Postgres::new(1).await;
    let mut view = scene.database.connect().await;
    let (here, there) = (
        AdvisorySessions::new(&scene.pool),
        AdvisorySessions::new(&scene.pool),
    );
    let taken = there.acquire(&advisory("taken")).await.unwrap();
    let cuts = cancel::at_every_poll_async(
        || async {
            let guard = here.try_acquire(&advisory("free")).await.unwrap().unwrap();
            assert!(
                here.try_acquire(&advisory("taken"))
                    .await
                    .unwrap()
                    .is_none()
            );
            assert!(!guard.is_lost());
            guard.release().await.unwrap();
        },
        async |cut| {
            locks(&mut view, 1, 0).await;
            // Nobody of this process stands in the way, now or as soon as a dropped guard is gone.
            let sure = advisory("free").at_most(Duration::from_secs(20));
            here.acquire(&sure).await.unwrap().release().await.unwrap();
            let guard = here.try_acquire(&advisory("free")).await.unwrap();
            guard
                .unwrap_or_else(|| panic!("{cut}: it is claimed"))
                .release()
                .await
                .unwrap();
        },
    )
    .await;
    let _ = cuts.demand(1);
    taken.release().await.unwrap();
    scene.is_clean().await;
}

// Mutant: B161
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_released_can_be_had_at_once() {
    let scene = Postgres::new(1).await;
    let sessions = AdvisorySessions::new(&scene.pool);
    for _ in 0..20 {
        let guard = sessions.try_acquire(&advisory("a")).await.unwrap();
        guard.expect("nobody has it").release().await.unwrap();
    }
}

// Mutant: B20
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_that_is_dropped_leaves_neither_lock_nor_place() {
    let scene = Postgres::new(1).await;
    let mut view = scene.database.connect().await;
    let here = AdvisorySessions::new(&scene.pool);
    let there = AdvisorySessions::new(&scene.pool);
    // So that its wait does not end by itself meanwhile.
    let lock = advisory("a").at_most(Duration::from_mins(1));
    let guard = there.acquire(&lock).await.unwrap();
    // One waits for the server, and one for him.
    let waiters = [0, 1].map(|_| {
        let (here, lock) = (here.clone(), lock.clone());
        tokio::spawn(async move { here.acquire(&lock).await.map(drop) })
    });
    locks(&mut view, 1, 1).await;
    for waiter in &waiters {
        waiter.abort();
    }
    // The server sees that nobody waits any more, before the lock is free.
    locks(&mut view, 1, 0).await;
    guard.release().await.unwrap();
    let guard = here.acquire(&lock).await.unwrap();
    guard.release().await.unwrap();
    locks(&mut view, 0, 0).await;
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_before_anything_is_sent() {
    let scene = Postgres::new(1).await;
    let sessions = AdvisorySessions::new(&scene.pool);
    for wait in [Duration::ZERO, Duration::MAX] {
        let error = sessions
            .acquire(&advisory("a").at_most(wait))
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::Invalid {
                    field: "at_most",
                    ..
                }
            ),
            "{error:?}"
        );
        let error = sessions
            .try_acquire(&advisory("a").at_most(wait))
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::Invalid {
                    field: "at_most",
                    ..
                }
            ),
            "{error:?}"
        );
        let error = sessions.clone().keepalive(wait).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Invalid {
                    field: "keepalive",
                    ..
                }
            ),
            "{error:?}"
        );
    }
    scene.pool.close().await;
    assert!(matches!(
        sessions.acquire(&advisory("a")).await,
        Err(Error::Closed)
    ));
    assert!(matches!(
        sessions.try_acquire(&advisory("a")).await,
        Err(Error::Closed)
    ));
}

// Mutant: B158
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_is_the_locks_own_whatever_time_the_user_has_for_a_statement() {
    let scene = Postgres::new(1).await;
    let hasty = scene
        .database
        .options()
        .options([("statement_timeout", "30ms")]);
    let pool = PgPoolOptions::new().connect_lazy_with(hasty);
    let mut view = scene.database.connect().await;
    let elsewhere = AdvisorySessions::new(&scene.pool);
    let guard = elsewhere.acquire(&advisory("a")).await.unwrap();
    let here = AdvisorySessions::new(&pool);
    let short = advisory("a").at_most(Duration::from_millis(200));
    let error = here.acquire(&short).await.unwrap_err();
    assert!(matches!(error, Error::LockNotAvailable { .. }), "{error:?}");
    let waiter = tokio::spawn(async move { here.acquire(&advisory("a")).await });
    locks(&mut view, 1, 1).await;
    guard.release().await.unwrap();
    waiter.await.unwrap().unwrap().release().await.unwrap();
    locks(&mut view, 0, 0).await;
}

#[test]
fn guards_and_futures_can_be_sent() {
    fn send<T: Send>(_: &T) {}
    fn both<T: Send + Sync + Unpin>() {}
    both::<lockkit_db::advisory::AdvisoryGuard>();
    both::<AdvisorySessions>();
    let _ = |sessions: AdvisorySessions| {
        send(&sessions.acquire(&advisory("a")));
        send(&sessions.try_acquire(&advisory("a")));
    };
}
