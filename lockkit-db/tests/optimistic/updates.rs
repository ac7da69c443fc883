//! Updates that try again until they have won.

use std::any::type_name_of_val;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lockkit_core::retry::{Backoff, Policy, Reason};
use lockkit_db::cas::{Loaded, Outcome, Table, Version};
use lockkit_db::optimistic::three_way;
use lockkit_db::sqlx::postgres::PgPoolOptions;
use lockkit_db::sqlx::{self, ConnectOptions as _, Row as _};
use lockkit_db::{Error, optimistic};
use lockkit_test::wake::poll_once;
use tokio::runtime::Handle;

use crate::scene::on_both;
use crate::table::{notes, sql, stars, timed, with_tables};

type Note = (String, i64);

fn tries(attempts: u32) -> Policy {
    let policy = Policy::builder().attempts(attempts);
    policy.backoff(Backoff::none()).build().unwrap()
}

/// Runs a future from within a closure that cannot wait.
fn meanwhile<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| Handle::current().block_on(future))
}

on_both! {
    async fn an_update_without_conflict_takes_one_try(scene: 1) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 3)");
        let done = optimistic(&scene.pool, &stars, 7).apply(|n: &i64| n * 2).run().await.unwrap();
        assert_eq!((done.value, done.version, done.attempts), (6, Version::new(2), 1));
        assert!(done.changed && !done.locked);
        scene.is_clean().await;
    }
}

on_both! {
    // Mutants: A3, A4, O1
    async fn after_a_conflict_the_closure_gets_the_row_as_it_is_by_then(scene: 3) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 0)");
        let seen = Mutex::new(Vec::new());
        let done = optimistic(&scene.pool, &stars, 7)
            .policy(tries(8))
            .apply(|n: &i64| {
                seen.lock().unwrap().push(*n);
                if seen.lock().unwrap().len() <= 2 {
                    meanwhile(async {
                        sql!(scene, "UPDATE note SET stars = stars + 10, version = version + 1");
                    });
                }
                n + 1
            })
            .run()
            .await
            .unwrap();
        assert_eq!(*seen.lock().unwrap(), [0, 10, 20]);
        assert_eq!((done.value, done.version), (21, Version::new(4)));
        // After two conflicts nobody can be faster.
        assert_eq!((done.attempts, done.locked), (3, true));
        let met = stars.conflicts();
        assert_eq!((met.tries, met.conflicts, met.escalated), (2, 2, 1));
        scene.is_clean().await;
    }
}

on_both! {
    async fn the_last_try_is_under_a_lock(scene: 3) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 0)");
        let calls = AtomicU32::new(0);
        let run = async |attempts| {
            calls.store(0, Ordering::SeqCst);
            optimistic(&scene.pool, &stars, 7)
                .policy(tries(attempts))
                .apply(|n: &i64| {
                    if calls.fetch_add(1, Ordering::SeqCst) == 0 {
                        meanwhile(async {
                            sql!(scene, "UPDATE note SET version = version + 1");
                        });
                    }
                    n + 1
                })
                .run()
                .await
        };
        let done = run(2).await.unwrap();
        assert_eq!((done.attempts, done.locked), (2, true));
        // Unless it is the first as well.
        let error = run(1).await.unwrap_err();
        let Error::GaveUp { attempts: 1, reason: Reason::Attempts, source } = error else {
            panic!("{error:?}");
        };
        let source = source.downcast::<Error>().unwrap();
        assert!(matches!(&*source, Error::Conflict { table, .. } if table == "note"), "{source:?}");
    }
}

on_both! {
    async fn a_missing_row_ends_it_at_once(scene: 1) {
        with_tables!(scene);
        let stars = stars();
        let error = optimistic(&scene.pool, &stars, 7).apply(|n: &i64| n + 1).run().await.unwrap_err();
        assert!(matches!(&error, Error::NotFound { table } if table == "note"), "{error:?}");
    }
}

on_both! {
    async fn a_closure_can_leave_the_row_or_call_it_off(scene: 1) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 3)");
        let kept = optimistic(&scene.pool, &stars, 7)
            .try_apply(|_: &i64| Ok(None))
            .run()
            .await
            .unwrap();
        assert_eq!((kept.value, kept.version, kept.changed), (3, Version::new(1), false));
        let off = optimistic(&scene.pool, &stars, 7)
            .try_apply(|n: &i64| if *n < 5 { Err(Error::stop("not enough")) } else { Ok(Some(n - 5)) })
            .run()
            .await;
        assert!(matches!(off, Err(Error::Stopped { .. })));
        let note: Loaded<i64> = stars.load(&scene.pool, 7).await.unwrap().unwrap();
        assert_eq!((note.value, note.version), (3, Version::new(1)));
    }
}

on_both! {
    async fn a_closure_that_panics_leaves_nothing_behind(scene: 2) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 3)");
        let panicked = tokio::spawn({
            let (pool, stars) = (scene.pool.clone(), stars.clone());
            async move {
                let calls = AtomicU32::new(0);
                optimistic(&pool, &stars, 7)
                    .policy(tries(2))
                    .apply(|n: &i64| {
                        // The second one is under the lock.
                        assert!(calls.fetch_add(1, Ordering::SeqCst) == 0, "the closure's own");
                        meanwhile(async {
                            sqlx::query("UPDATE note SET version = version + 1").execute(&pool).await.unwrap();
                        });
                        n + 1
                    })
                    .run()
                    .await
            }
        });
        assert!(panicked.await.unwrap_err().is_panic());
        scene.is_clean().await;
        let note: Loaded<i64> = stars.load(&scene.pool, 7).await.unwrap().unwrap();
        assert_eq!(note.value, 3);
    }
}

on_both! {
    async fn a_merge_keeps_what_both_have_changed(scene: 2) {
        with_tables!(scene);
        let notes = notes();
        sql!(scene, "INSERT INTO note (id, title, stars) VALUES (7, 'old', 1)");
        let calls = AtomicU32::new(0);
        let merges = AtomicU32::new(0);
        let done = optimistic(&scene.pool, &notes, 7)
            .apply(|note: &Note| {
                calls.fetch_add(1, Ordering::SeqCst);
                meanwhile(async {
                    sql!(scene, "UPDATE note SET title = 'theirs', version = version + 1");
                });
                (note.0.clone(), 5)
            })
            .merge(|base, mine, theirs| {
                merges.fetch_add(1, Ordering::SeqCst);
                Some((three_way(&base.0, &mine.0, &theirs.0)?, three_way(&base.1, &mine.1, &theirs.1)?))
            })
            .run()
            .await
            .unwrap();
        assert_eq!(done.value, ("theirs".to_owned(), 5));
        assert_eq!((calls.into_inner(), merges.into_inner()), (1, 1));
    }
}

on_both! {
    async fn what_cannot_be_merged_is_applied_anew(scene: 2) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 1)");
        let calls = AtomicU32::new(0);
        let done = optimistic(&scene.pool, &stars, 7)
            .apply(|n: &i64| {
                if calls.fetch_add(1, Ordering::SeqCst) == 0 {
                    meanwhile(async {
                        sql!(scene, "UPDATE note SET stars = 100, version = version + 1");
                    });
                }
                n + 1
            })
            .merge(three_way)
            .run()
            .await
            .unwrap();
        assert_eq!((done.value, calls.into_inner()), (101, 2));
    }
}

on_both! {
    async fn it_is_spawned_with_borrows(scene: 2) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 1)");
        let pool = scene.pool.clone();
        let done = tokio::spawn(async move {
            let stars = stars();
            let by = String::from("borrowed");
            let key = 7;
            optimistic(&pool, &stars, &key).apply(|n: &i64| n + by.len() as i64).run().await
        });
        assert_eq!(done.await.unwrap().unwrap().value, 9);
    }
}

on_both! {
    async fn a_closed_pool_and_a_wrong_key_end_it_at_once(scene: 1) {
        let stars = stars();
        let wrong = optimistic(&scene.pool, &stars, (7, 8)).apply(|n: &i64| n + 1).run().await;
        assert!(matches!(wrong, Err(Error::Invalid { field: "key", .. })));
        scene.pool.close().await;
        let closed = optimistic(&scene.pool, &stars, 7).apply(|n: &i64| n + 1).run().await;
        assert!(matches!(closed, Err(Error::Closed)));
    }
}

on_both! {
    async fn a_pool_that_closes_in_the_middle_ends_it_and_the_row_is_left(scene: 2) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO note (id) VALUES (7)");
        let mut other = (*scene.pool.connect_options()).clone().connect().await.unwrap();
        let stars = stars();
        let (pool, other) = (scene.pool.clone(), tokio::sync::Mutex::new(&mut other));
        let update = optimistic(&scene.pool, &stars, 7).apply(|n: &i64| {
            // There is a conflict, and no connection for the next try.
            meanwhile(async {
                let write = "UPDATE note SET version = version + 1";
                sqlx::query(write).execute(&mut **other.lock().await).await.unwrap();
                tokio::spawn({
                    let pool = pool.clone();
                    async move { pool.close().await }
                });
                pool.close_event().await;
            });
            n + 1
        });
        let closed = update.run().await;
        assert!(matches!(closed, Err(Error::Closed)), "{closed:?}");
        pool.close().await;
        let other = other.into_inner();
        let row: Loaded<i64> = stars.load(&mut *other, 7).await.unwrap().unwrap();
        assert_eq!((row.value, row.version.get()), (0, 2));
    }
}

on_both! {
    // Mutant: A150
    async fn an_error_of_the_closure_ends_it_whatever_is_at_the_bottom_of_it(scene: 1) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 3)");
        let errors: [fn() -> Error; 3] = [
            || Error::from(sqlx::Error::WorkerCrashed),
            || Error::LockNotAvailable { blockers: Vec::new(), source: "elsewhere".into() },
            // Of something else that the closure has asked: nothing of ours is unknown.
            || Error::Unknown { source: "elsewhere".into() },
        ];
        for error in errors {
            let calls = AtomicU32::new(0);
            let ended = optimistic(&scene.pool, &stars, 7)
                .policy(tries(8))
                .try_apply(|_: &i64| {
                    calls.fetch_add(1, Ordering::SeqCst);
                    Err(error())
                })
                .run()
                .await
                .unwrap_err();
            assert_eq!(std::mem::discriminant(&ended), std::mem::discriminant(&error()), "{ended:?}");
            assert_eq!(calls.into_inner(), 1, "{ended:?}");
        }
        // But for the one that asks for another try.
        let calls = AtomicU32::new(0);
        let done = optimistic(&scene.pool, &stars, 7)
            .policy(tries(8))
            .try_apply(|n: &i64| match calls.fetch_add(1, Ordering::SeqCst) {
                0 | 1 => Err(Error::again("not yet")),
                _ => Ok(Some(n + 1)),
            })
            .run()
            .await
            .unwrap();
        assert_eq!((done.value, done.attempts), (4, 3));
        scene.is_clean().await;
    }
}

// A database where whoever has waited for a row is refused, unless he says otherwise.
// Mutants: A151, A152
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_runs_out_of_tries_where_transactions_are_repeatable_by_default() {
    for level in ["repeatable read", "serializable"] {
        let scene = crate::scene::Postgres::new(1).await;
        with_tables!(scene);
        sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 0)");
        let options = scene
            .database
            .options()
            .options([("default_transaction_isolation", level)]);
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .connect_lazy_with(options);
        let stars = stars();
        let work = (0..8).map(|_| {
            let (pool, stars) = (pool.clone(), stars.clone());
            tokio::spawn(async move {
                for _ in 0..20 {
                    // One without a lock, and one with it.
                    let update = optimistic(&pool, &stars, 7).policy(tries(2));
                    update.apply(|n: &i64| n + 1).run().await.unwrap();
                }
            })
        });
        let work: Vec<_> = work.collect();
        for task in work {
            task.await.unwrap();
        }
        let row: Loaded<i64> = stars.load(&scene.pool, 7).await.unwrap().unwrap();
        assert_eq!(row.value, 160, "{level}");
    }
}

on_both! {
    async fn a_table_with_many_conflicts_begins_with_the_lock_until_they_cease(scene: 3) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 0)");
        let contended = async || {
            let calls = AtomicU32::new(0);
            optimistic(&scene.pool, &stars, 7)
                .policy(tries(8))
                .apply(|n: &i64| {
                    if calls.fetch_add(1, Ordering::SeqCst) < 2 && !stars.conflicts().locking {
                        meanwhile(async {
                            sql!(scene, "UPDATE note SET version = version + 1");
                        });
                    }
                    n + 1
                })
                .run()
                .await
                .unwrap()
        };
        for _ in 0..3 {
            contended().await;
        }
        assert!(stars.conflicts().locking);
        let first = contended().await;
        assert_eq!((first.attempts, first.locked), (1, true));
        let mut calls = 0;
        while stars.conflicts().locking {
            calls += 1;
            assert!(calls < 1000, "it never looks again: {:?}", stars.conflicts());
            optimistic(&scene.pool, &stars, 7).apply(|n: &i64| n + 1).run().await.unwrap();
        }
        let done = optimistic(&scene.pool, &stars, 7).apply(|n: &i64| n + 1).run().await.unwrap();
        assert!(!done.locked);
    }
}

on_both! {
    // Mutants: O40, O41
    async fn those_of_one_process_who_want_the_lock_of_a_row_stand_in_line(scene: 4) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 0), (8, 0)");
        while !stars.conflicts().locking {
            let calls = AtomicU32::new(0);
            let update = optimistic(&scene.pool, &stars, 8).apply(|n: &i64| {
                if calls.fetch_add(1, Ordering::SeqCst) < 2 && !stars.conflicts().locking {
                    meanwhile(async {
                        sql!(scene, "UPDATE note SET version = version + 1");
                    });
                }
                *n
            });
            update.run().await.unwrap();
        }
        // So that a free one is had at the first poll.
        let mut all = Vec::new();
        for _ in 0..4 {
            all.push(scene.pool.acquire().await.unwrap());
        }
        for mut connection in all {
            connection.return_to_pool().await;
        }
        let in_use = || scene.pool.size() as usize - scene.pool.num_idle();
        // What an update before has dropped is given back in the background.
        while in_use() > 0 {
            tokio::task::yield_now().await;
        }

        let append = |id: i64, digit: i64| {
            let update = optimistic(&scene.pool, &stars, id).apply(move |n: &i64| n * 10 + digit);
            Box::pin(update.run())
        };
        // A server hands the lock on to whoever waits for it, so there is one.
        let stands_at_the_lock = type_name_of_val(&scene.pool).contains("Postgres");
        let others = Mutex::new([append(7, 2), append(7, 3), append(7, 4), append(8, 5)]);
        let first = optimistic(&scene.pool, &stars, 7_i64).apply(|n: &i64| {
            let mut others = others.lock().unwrap();
            // This one's, perhaps that of the next, and that of the one at the other row.
            let next = usize::from(stands_at_the_lock);
            let expected = [1 + next, 1 + next, 1 + next, 2 + next];
            let used = others.iter_mut().zip(expected).map(|(other, expected)| {
                // The pool may be about to have one back.
                for _ in 0..100_000 {
                    assert!(poll_once(other.as_mut()).is_pending());
                    if in_use() >= expected {
                        break;
                    }
                    std::thread::yield_now();
                }
                in_use()
            });
            assert_eq!(used.collect::<Vec<_>>(), expected);
            n * 10 + 1
        });
        assert!(first.run().await.unwrap().locked);
        let [second, gone, fourth, elsewhere] = others.into_inner().unwrap();
        drop(gone);
        let (second, fourth, elsewhere) = tokio::join!(second, fourth, elsewhere);
        let values = (second.unwrap().value, fourth.unwrap().value);
        // Of the two that are at the server then, the later one may find the row free before the other one has woken up.
        let overtaken = stands_at_the_lock && values == (142, 14);
        assert!(overtaken || values == (12, 124), "{values:?}");
        assert_eq!(elsewhere.unwrap().value, 5);
        scene.is_clean().await;
    }
}

on_both! {
    // Mutant: O42
    async fn a_probe_with_others_behind_it_does_not_end_the_line(scene: 4) {
        with_tables!(scene);
        let stars = stars();
        sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 0)");
        let add = || optimistic(&scene.pool, &stars, 7_i64).apply(|n: &i64| n + 1).run();
        while !stars.conflicts().locking {
            let calls = AtomicU32::new(0);
            let update = optimistic(&scene.pool, &stars, 7_i64).apply(|n: &i64| {
                if calls.fetch_add(1, Ordering::SeqCst) < 2 {
                    meanwhile(async {
                        sql!(scene, "UPDATE note SET version = version + 1");
                    });
                }
                *n
            });
            update.run().await.unwrap();
        }
        // One of 16 is a probe: by turns each of the seven, of whom one or two have nobody behind them.
        for round in 0..50 {
            let all = futures::future::join_all((0..7).map(|_| add())).await;
            assert!(all.iter().all(Result::is_ok));
            assert!(stars.conflicts().locking, "{round}: {:?}", stars.conflicts());
        }
    }
}

// === no lost update ===

const TASKS: u64 = 8;

/// Every task adds its share, and each success has a version of its own.
macro_rules! adds_up {
    ($scene:ident, $each:expr, $add:expr) => {{
        with_tables!($scene);
        sql!(
            $scene,
            "INSERT INTO note (id, version) VALUES (1, 1), (2, 1)"
        );
        $scene.start_times().await;
        let each: u64 = $each;
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let pool = $scene.pool.clone();
                let add = $add;
                tokio::spawn(async move {
                    let mut versions = Vec::new();
                    for round in 0..each {
                        // One row that everybody wants, and another one now and then.
                        let id: i64 = if (task + round) % 8 == 0 { 2 } else { 1 };
                        versions.push((id, add(pool.clone(), id).await));
                    }
                    versions
                })
            })
            .collect();
        let mut versions = Vec::new();
        for task in tasks {
            versions.extend(task.await.unwrap());
        }
        let rows = sqlx::query("SELECT stars, version FROM note ORDER BY id")
            .fetch_all(&$scene.pool)
            .await
            .unwrap();
        let sum: i64 = rows.iter().map(|row| row.get::<i64, _>(0)).sum();
        let all = versions.len();
        versions.sort_unstable();
        versions.dedup();
        (sum, all as i64, versions.len() as i64)
    }};
}

impl crate::scene::Postgres {
    async fn start_times(&self) {
        sql!(self, "UPDATE note SET changed = now()");
    }
}

impl crate::scene::Sqlite {
    async fn start_times(&self) {
        sql!(self, "UPDATE note SET changed = 1");
    }
}

/// Additions of each strategy on each engine; the tests of faults make ten times as many, by more strategies.
const ALL: i64 = 2_000;

/// How often each task adds.
const EACH: u64 = ALL as u64 / TASKS;

/// Until it has won: the patience of a test, not of a policy.
fn patient() -> Policy {
    Policy::builder()
        .attempts(u32::MAX)
        .no_deadline()
        .build()
        .unwrap()
}

on_both! {
    async fn no_update_is_lost_by_hand(scene: 8) {
        let sum = adds_up!(scene, EACH, async |pool, id: i64| {
            let stars: Table<_> = stars();
            loop {
                let row: Loaded<i64> = stars.load(&pool, id).await.unwrap().unwrap();
                let outcome = stars.cas(&pool, id, row.version, row.value + 1).await.unwrap();
                match outcome {
                    Outcome::Updated { version } => break version,
                    Outcome::Conflict { current } => assert!(current > row.version),
                    Outcome::NotFound => panic!("it is there"),
                }
            }
        });
        assert_eq!(sum, (ALL, ALL, ALL));
    }
}

on_both! {
    async fn no_update_is_lost_by_a_closure(scene: 8) {
        let table = stars();
        let sum = adds_up!(scene, EACH, {
            let table = table.clone();
            async move |pool, id: i64| {
                let add = optimistic(&pool, &table, id).policy(patient()).apply(|n: &i64| n + 1);
                add.run().await.unwrap().version
            }
        });
        assert_eq!(sum, (ALL, ALL, ALL));
        scene.is_clean().await;
    }
}

on_both! {
    async fn no_update_is_lost_by_a_closure_with_no_memory_of_conflicts(scene: 8) {
        let sum = adds_up!(scene, EACH, async |pool, id: i64| {
            // A description of its own each time, so it always begins without the lock.
            let table = stars();
            let add = optimistic(&pool, &table, id).policy(patient()).apply(|n: &i64| n + 1);
            add.run().await.unwrap().version
        });
        assert_eq!(sum, (ALL, ALL, ALL));
        scene.is_clean().await;
    }
}

on_both! {
    async fn no_update_is_lost_by_time(scene: 8) {
        let table = timed();
        let sum = adds_up!(scene, EACH, {
            let table = table.clone();
            async move |pool, id: i64| {
                let add = optimistic(&pool, &table, id).policy(patient()).apply(|n: &i64| n + 1);
                add.run().await.unwrap().version
            }
        });
        assert_eq!(sum, (ALL, ALL, ALL));
    }
}

on_both! {
    async fn no_update_is_lost_by_a_merge(scene: 8) {
        let table = stars();
        let sum = adds_up!(scene, EACH, {
            let table = table.clone();
            async move |pool, id: i64| {
                let add = optimistic(&pool, &table, id)
                    .policy(patient())
                    .apply(|n: &i64| n + 1)
                    .merge(|base, mine, theirs| Some(theirs + (mine - base)));
                add.run().await.unwrap().version
            }
        });
        assert_eq!(sum, (ALL, ALL, ALL));
    }
}

on_both! {
    // The negative control: without the version these tests do see updates get lost.
    async fn without_a_version_updates_are_lost(scene: 8) {
        let nothing = std::sync::Arc::new(AtomicU64::new(0));
        let (sum, all, _) = adds_up!(scene, EACH, {
            let nothing = nothing.clone();
            async move |pool, id: i64| {
                let n: i64 = sqlx::query_scalar("SELECT stars FROM note WHERE id = $1")
                    .bind(id)
                    .fetch_one(&pool)
                    .await
                    .unwrap();
                sqlx::query("UPDATE note SET stars = $2 WHERE id = $1")
                    .bind(id)
                    .bind(n + 1)
                    .execute(&pool)
                    .await
                    .unwrap();
                nothing.fetch_add(1, Ordering::SeqCst)
            }
        });
        assert!(sum < all, "{sum} of {all}: nobody was in anybody's way");
    }
}

/// A pool would lend the connection that fails with it again and again.
// Mutant: D156
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_the_server_has_forgotten_is_prepared_anew_on_another_connection() {
    let scene = crate::scene::Postgres::new(1).await;
    with_tables!(scene);
    let stars = stars();
    sql!(scene, "INSERT INTO note (id, stars) VALUES (7, 0)");
    for forgotten in [false, true, false] {
        if forgotten {
            sql!(scene, "DEALLOCATE ALL");
        }
        let update = optimistic(&scene.pool, &stars, 7).policy(tries(2));
        let done = update.apply(|n: &i64| n + 1).run().await.unwrap();
        assert_eq!(done.attempts, if forgotten { 2 } else { 1 });
    }
    scene.is_clean().await;
}
