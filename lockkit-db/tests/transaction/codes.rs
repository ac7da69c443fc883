//! Each code that a transaction is tried again for, and those that it is not, provoked for real.
//!
//! Mutants: A9a 40001, A9b 40P01, A9c SQLite's busy not seen as a conflict

use std::sync::Arc;
use std::time::Duration;

use lockkit_core::retry::{Backoff, Policy};
use lockkit_db::sqlx::postgres::PgConnection;
use lockkit_db::sqlx::sqlite::SqliteJournalMode;
use lockkit_db::sqlx::{self, ConnectOptions as _, Executor as _};
use lockkit_db::transaction::{Class, Isolation, Tx, TxOptions, classify};
use lockkit_db::{Error, retry_tx};
use lockkit_test::postgres::{Cluster, Settings};
use tokio::sync::Barrier;

use crate::scene::{Postgres, Sqlite};

fn quick() -> TxOptions {
    let policy = Policy::builder().backoff(Backoff::none()).build().unwrap();
    TxOptions::new().policy(policy)
}

fn code(error: &sqlx::Error) -> String {
    error
        .as_database_error()
        .unwrap()
        .code()
        .unwrap()
        .into_owned()
}

/// The class and code of what a statement fails with.
async fn fails(connection: &mut PgConnection, statement: &'static str) -> (Class, String) {
    let error = connection.execute(statement).await.unwrap_err();
    (classify(&error), code(&error))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serialization_failure_of_a_statement_is_tried_again() {
    let scene = Postgres::new(1).await;
    let mut other = scene.database.connect().await;
    let attempts = retry_tx!(
        &scene.pool,
        quick().isolation(Isolation::RepeatableRead),
        |tx| {
            let n: i64 = sqlx::query_scalar("SELECT n FROM t WHERE id = 1")
                .fetch_one(&mut *tx)
                .await?;
            if tx.attempt() == 1 {
                other
                    .execute("UPDATE t SET n = n + 10 WHERE id = 1")
                    .await?;
            }
            let written = sqlx::query("UPDATE t SET n = $1 WHERE id = 1")
                .bind(n + 1)
                .execute(&mut *tx)
                .await;
            if let Err(error) = &written {
                assert_eq!(
                    (classify(error), code(error)),
                    (Class::Serialization, "40001".into())
                );
            }
            written?;
            Ok::<_, Error>(tx.attempt())
        }
    )
    .unwrap();
    assert_eq!((attempts, scene.n(1).await), (2, 11));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serialization_failure_of_the_commit_is_tried_again() {
    let scene = Postgres::new(2).await;
    let both_have_read = Arc::new(Barrier::new(2));
    // Each sets its own row if the sum is zero: in turn, only one does.
    let write_skew = async |id: i32| {
        let mut attempts = 0;
        retry_tx!(&scene.pool, quick().serializable(), |tx| {
            attempts += 1;
            let sum: i64 = sqlx::query_scalar("SELECT sum(n)::bigint FROM t")
                .fetch_one(&mut *tx)
                .await?;
            if attempts == 1 {
                both_have_read.wait().await;
            }
            if sum == 0 {
                sqlx::query("UPDATE t SET n = 1 WHERE id = $1")
                    .bind(id)
                    .execute(&mut *tx)
                    .await?;
            }
            if attempts == 1 {
                // So that the first error there is can only be the commit's.
                both_have_read.wait().await;
            }
            Ok::<_, Error>(())
        })
        .unwrap();
        attempts
    };
    let (one, two) = tokio::join!(write_skew(1), write_skew(2));
    assert_eq!(one + two, 3, "one of them was tried again");
    assert_eq!(scene.n(1).await + scene.n(2).await, 1);
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlocks_victim_is_tried_again_as_a_whole() {
    let scene = Postgres::new(2).await;
    let both_hold = Arc::new(Barrier::new(2));
    let transfer = async |from: i32, to: i32| {
        let mut attempts = 0;
        retry_tx!(&scene.pool, |tx| {
            attempts += 1;
            for (id, change) in [(from, -1), (to, 1)] {
                let updated = sqlx::query("UPDATE t SET n = n + $2 WHERE id = $1")
                    .bind(id)
                    .bind(change)
                    .execute(&mut *tx)
                    .await;
                if let Err(error) = &updated {
                    assert_eq!(
                        (classify(error), code(error)),
                        (Class::Deadlock, "40P01".into())
                    );
                }
                updated?;
                if attempts == 1 && id == from {
                    both_hold.wait().await;
                }
            }
            Ok::<_, Error>(())
        })
        .unwrap();
        attempts
    };
    let (one, two) = tokio::join!(transfer(1, 2), transfer(2, 1));
    // Its next attempt may be so early that it is in the way once more.
    assert!(one + two >= 3, "one of them was the victim");
    // Had the victim gone on with its second statement, these would not be zero.
    assert_eq!((scene.n(1).await, scene.n(2).await), (0, 0));
    scene.is_clean().await;
}

// Mutants: B6a SET in place of SET LOCAL, T5 for ever
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_not_free_in_time_is_an_error_and_tried_again_on_request() {
    let scene = Postgres::new(1).await;
    let mut holder = scene.database.connect().await;
    let hold = "BEGIN; UPDATE t SET n = 1 WHERE id = 1";
    holder.execute(hold).await.unwrap();
    let short = || quick().wait(Duration::from_millis(20));
    let result: Result<(), Error> = retry_tx!(&scene.pool, short(), |tx| {
        tx.execute("UPDATE t SET n = 2 WHERE id = 1").await?;
        Ok(())
    });
    let error = result.unwrap_err();
    assert!(matches!(&error, Error::LockNotAvailable { blockers, .. } if blockers.is_empty()));
    assert_eq!(classify(&error), Class::LockNotAvailable);
    scene.pool.acquire().await.unwrap();

    let attempts = retry_tx!(&scene.pool, short().retry_lock_timeouts(), |tx| {
        if tx.attempt() == 2 {
            holder.execute("COMMIT").await?;
        }
        tx.execute("UPDATE t SET n = 2 WHERE id = 1").await?;
        Ok::<_, Error>(tx.attempt())
    })
    .unwrap();
    assert_eq!((attempts, scene.n(1).await), (2, 2));
    scene.is_clean().await;

    holder.execute(hold).await.unwrap();
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let nowait = "SELECT 1 FROM t WHERE id = 1 FOR UPDATE NOWAIT";
    assert_eq!(
        fails(&mut tx, nowait).await,
        (Class::LockNotAvailable, "55P03".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_of_a_watched_wait_names_who_has_the_lock() {
    let scene = Postgres::new(2).await;
    let mut holder = scene
        .database
        .options()
        .application_name("the holder")
        .connect()
        .await
        .unwrap();
    holder
        .execute("BEGIN; UPDATE t SET n = 1 WHERE id = 1")
        .await
        .unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut holder)
        .await
        .unwrap();
    let options = TxOptions::new().wait(Duration::from_millis(800));
    let mut tx = Tx::begin(&scene.pool, &options).await.unwrap();
    let watch = tx.watch(&scene.pool).await.unwrap();
    let free = watch
        .over(tx.execute("SELECT 1 FROM t WHERE id = 2 FOR UPDATE"))
        .await;
    assert!(free.is_ok());
    let error = watch
        .over(tx.execute("SELECT 1 FROM t WHERE id = 1 FOR UPDATE"))
        .await
        .unwrap_err();
    let Error::LockNotAvailable { blockers, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(blockers.len(), 1, "{blockers:?}");
    assert_eq!(
        (blockers[0].pid, &*blockers[0].application),
        (pid, "the holder")
    );
    assert_eq!(blockers[0].state, "idle in transaction");
    assert!(error.to_string().contains("the holder"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_interrupted_aborted_or_duplicate_is_told_apart_and_not_tried_again() {
    let scene = Postgres::new(2).await;
    scene
        .database
        .connect()
        .await
        .execute("CREATE TABLE span (s int4range, EXCLUDE USING gist (s WITH &&)); INSERT INTO span VALUES ('[1,9]')")
        .await
        .unwrap();
    let options = TxOptions::new().statement_timeout(Duration::from_millis(20));
    for (statement, expected) in [
        ("SELECT pg_sleep(60)", (Class::Interrupted, "57014")),
        ("INSERT INTO t VALUES (1, 1)", (Class::Duplicate, "23505")),
        (
            "INSERT INTO span VALUES ('[5,6]')",
            (Class::Duplicate, "23P01"),
        ),
        ("SELECT 1/0", (Class::Other, "22012")),
    ] {
        let mut tx = Tx::begin(&scene.pool, &options).await.unwrap();
        let (class, code) = fails(&mut tx, statement).await;
        assert_eq!((class, &*code), expected);
        assert_eq!(
            fails(&mut tx, "SELECT 1").await,
            (Class::Aborted, "25P02".into())
        );
        tx.rollback().await;

        let mut runs = 0;
        let result: Result<(), Error> = retry_tx!(
            &scene.pool,
            quick().statement_timeout(Duration::from_millis(20)),
            |tx| {
                runs += 1;
                tx.execute(statement).await?;
                Ok(())
            }
        );
        assert!(matches!(result, Err(Error::Database { .. })), "{result:?}");
        assert_eq!(runs, 1, "{statement}");
    }
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_is_tried_again_on_request() {
    let scene = Postgres::new(1).await;
    let mut other = scene.database.connect().await;
    let found = retry_tx!(&scene.pool, quick().retry_duplicates(), |tx| {
        let found: Option<i64> = sqlx::query_scalar("SELECT n FROM t WHERE id = 9")
            .fetch_optional(&mut *tx)
            .await?;
        if found.is_none() {
            other.execute("INSERT INTO t VALUES (9, 7)").await?;
            tx.execute("INSERT INTO t VALUES (9, 1)").await?;
        }
        Ok::<_, Error>(found)
    })
    .unwrap();
    assert_eq!(found, Some(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_transaction_that_the_server_ends_is_interrupted_or_a_lost_connection() {
    let scene = Postgres::new(1).await;
    let mut runs = 0;
    let result = retry_tx!(&scene.pool, quick(), |tx| {
        runs += 1;
        if tx.attempt() == 1 {
            tx.execute("SET LOCAL idle_in_transaction_session_timeout = 1")
                .await?;
            scene.is_quiet().await;
        }
        tx.execute("UPDATE t SET n = n + 1 WHERE id = 1").await?;
        Ok::<_, Error>(())
    });
    // The server's last words arrive, or the socket is closed by then.
    match result {
        Ok(()) => assert_eq!((runs, scene.n(1).await), (2, 1)),
        Err(Error::Database { source }) => {
            let source = source.downcast_ref::<sqlx::Error>().unwrap();
            assert_eq!(
                (classify(source), &*code(source)),
                (Class::Interrupted, "25P03")
            );
            assert_eq!((runs, scene.n(1).await), (1, 0));
        }
        Err(error) => panic!("{error:?}"),
    }
    scene.is_clean().await;
}

/// Any code can be had from a server that is asked to raise it.
async fn raised(connection: &mut PgConnection, code: &str, message: &str) -> Class {
    let raise = format!(
        "DO $do$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}', MESSAGE = '{message}'; END $do$"
    );
    let raise = sqlx::AssertSqlSafe(raise);
    classify(&connection.execute(raise).await.unwrap_err())
}

// Mutants: T6 the message's text is looked at, D157
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_code_has_its_class_whatever_the_message_says() {
    let scene = Postgres::new(1).await;
    let mut session = scene.database.connect().await;
    let table = [
        ("40001", Class::Serialization),
        ("OC000", Class::Serialization),
        ("OC001", Class::Serialization),
        ("40P01", Class::Deadlock),
        ("55P03", Class::LockNotAvailable),
        ("57014", Class::Interrupted),
        ("25P03", Class::Interrupted),
        ("25P04", Class::Interrupted),
        ("25P02", Class::Aborted),
        ("26000", Class::StaleStatement),
        ("0A000", Class::Other),
        ("23505", Class::Duplicate),
        ("23P01", Class::Duplicate),
        ("40003", Class::ConnectionLost),
        ("57P01", Class::ConnectionLost),
        ("57P02", Class::ConnectionLost),
        ("57P03", Class::ConnectionLost),
        ("57P05", Class::ConnectionLost),
        ("08000", Class::ConnectionLost),
        ("08006", Class::ConnectionLost),
        ("40000", Class::Other),
        ("40002", Class::Other),
        ("23503", Class::Other),
        ("55006", Class::Other),
        ("XX000", Class::Other),
    ];
    for (code, class) in table {
        for message in [
            "",
            "deadlock 40P01",
            "could not serialize access 40001",
            "55P03",
        ] {
            assert_eq!(raised(&mut session, code, message).await, class, "{code}");
        }
    }
    // Every other one is of no class, and none is a panic.
    let mut random = fastrand::Rng::with_seed(7);
    let letters = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for _ in 0..2000 {
        let code: String = (0..5)
            .map(|_| char::from(letters[random.usize(..36)]))
            .collect();
        if code == "00000" || code.starts_with("08") || table.iter().any(|row| row.0 == code) {
            continue;
        }
        assert_eq!(
            raised(&mut session, &code, "40001").await,
            Class::Other,
            "{code}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_in_the_middle_is_tried_again() {
    let cluster = Cluster::start(&Settings::new()).unwrap();
    let database = cluster.database().await;
    database
        .connect()
        .await
        .execute("CREATE TABLE t (n int)")
        .await
        .unwrap();
    let pool = database.pool(1);
    let attempts = retry_tx!(&pool, quick(), |tx| {
        tx.execute("INSERT INTO t VALUES (1)").await?;
        if tx.attempt() == 1 {
            tokio::task::block_in_place(|| cluster.crash().unwrap());
        }
        let error = tx.execute("INSERT INTO t VALUES (2)").await;
        if let Err(error) = &error {
            assert_eq!(classify(error), Class::ConnectionLost, "{error}");
        }
        error?;
        Ok::<_, Error>(tx.attempt())
    })
    .unwrap();
    assert_eq!(attempts, 2);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(rows, 2);
}

/// Such a connection fails with each use of the statement: a pool would lend it again and again.
// Mutant: D155
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_is_forgotten_or_of_another_table_now_is_prepared_anew_on_another_connection()
 {
    for (change, expected) in [
        ("DEALLOCATE ALL", "26000"),
        ("ALTER TABLE t ADD COLUMN more int", "0A000"),
    ] {
        let scene = Postgres::new(1).await;
        let all = "SELECT * FROM t ORDER BY id LIMIT 1";
        let _ = sqlx::query(all).fetch_one(&scene.pool).await.unwrap();
        // In the session that has prepared it, which is the pool's only one.
        scene.pool.execute(change).await.unwrap();
        let error = sqlx::query(all).fetch_one(&scene.pool).await.unwrap_err();
        assert_eq!(
            (classify(&error), &*code(&error)),
            (Class::StaleStatement, expected)
        );
        let pid = "SELECT pg_backend_pid()";
        let pid = async || {
            sqlx::query_scalar::<_, i32>(pid)
                .fetch_one(&scene.pool)
                .await
        };
        let before = pid().await.unwrap();
        let attempts = retry_tx!(&scene.pool, quick(), |tx| {
            let _ = sqlx::query(all).fetch_one(&mut *tx).await?;
            Ok::<_, Error>(tx.attempt())
        });
        assert_eq!(attempts.unwrap(), 2, "{change}");
        assert_ne!(pid().await.unwrap(), before, "{change}");
        let _ = sqlx::query(all).fetch_one(&scene.pool).await.unwrap();
        scene.is_clean().await;
    }
}

// Mutant: D159
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_stale_connections_than_tries_are_not_too_many() {
    let scene = Postgres::new(10).await;
    let all = "SELECT * FROM t ORDER BY id LIMIT 1";
    let mut warm = Vec::new();
    for _ in 0..10 {
        let mut connection = scene.pool.acquire().await.unwrap();
        let _ = sqlx::query(all).fetch_one(&mut *connection).await.unwrap();
        warm.push(connection);
    }
    drop(warm);
    let alter = "ALTER TABLE t ADD COLUMN more int";
    scene.database.connect().await.execute(alter).await.unwrap();
    let attempts = retry_tx!(&scene.pool, quick(), |tx| {
        let _ = sqlx::query(all).fetch_one(&mut *tx).await?;
        Ok::<_, Error>(tx.attempt())
    });
    assert_eq!(attempts.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_a_locked_file_is_tried_again() {
    let scene = Sqlite::new(1).await;
    let mut holder = scene.options().connect().await.unwrap();
    holder.execute("BEGIN IMMEDIATE").await.unwrap();
    let short = || quick().wait(Duration::from_millis(5));
    let error = Tx::begin(&scene.pool, &short()).await.unwrap_err();
    assert_eq!(classify(&error), Class::Busy);
    // Mutant: A191
    assert!(error.is_transient() && !error.is_unknown());
    let lost = Error::from(sqlx::Error::WorkerCrashed);
    assert!(!lost.is_transient(), "nobody knows what was done");
    scene.pool.acquire().await.unwrap();

    let policy = Policy::builder().attempts(3).build().unwrap();
    let result: Result<(), Error> = retry_tx!(&scene.pool, short().policy(policy), |tx| {
        tx.execute("UPDATE t SET n = 1").await?;
        Ok(())
    });
    let error = result.unwrap_err();
    assert!(
        matches!(error, Error::GaveUp { attempts: 3, .. }),
        "{error:?}"
    );

    let patient = Policy::builder().attempts(u32::MAX).build().unwrap();
    let writes = async {
        retry_tx!(&scene.pool, short().policy(patient), |tx| {
            tx.execute("UPDATE t SET n = 1").await?;
            Ok::<_, Error>(tx.attempt())
        })
    };
    let mut writes = std::pin::pin!(writes);
    let still = tokio::time::timeout(Duration::from_millis(30), writes.as_mut()).await;
    assert!(still.is_err(), "it has not waited");
    holder.execute("ROLLBACK").await.unwrap();
    assert!(writes.await.unwrap() > 1);
    scene.is_clean().await;
}

// Mutant: B9 BEGIN deferred
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_a_reader_that_writes_too_late_is_told_and_ours_never_is() {
    let scene = Sqlite::new(2).await;
    let mut deferred = scene.options().connect().await.unwrap();
    deferred.execute("BEGIN; SELECT n FROM t").await.unwrap();
    let mut other = scene.options().connect().await.unwrap();

    // Somebody writes at this moment.
    other
        .execute("BEGIN IMMEDIATE; UPDATE t SET n = 5")
        .await
        .unwrap();
    let busy = deferred.execute("UPDATE t SET n = 6").await.unwrap_err();
    assert_eq!((classify(&busy), &*code(&busy)), (Class::Busy, "5"));
    // Somebody has written.
    other.execute("COMMIT").await.unwrap();
    let stale = deferred.execute("UPDATE t SET n = 6").await.unwrap_err();
    assert_eq!(
        (classify(&stale), &*code(&stale)),
        (Class::StaleSnapshot, "517")
    );
    assert!(Class::StaleSnapshot.is_retryable());
    deferred.execute("ROLLBACK").await.unwrap();

    // Both read before they write, at the same time.
    let add = async || {
        for _ in 0..50 {
            retry_tx!(&scene.pool, |tx| {
                let n: i64 = sqlx::query_scalar("SELECT n FROM t WHERE id = 2")
                    .fetch_one(&mut *tx)
                    .await?;
                sqlx::query("UPDATE t SET n = $1 WHERE id = 2")
                    .bind(n + 1)
                    .execute(&mut *tx)
                    .await?;
                assert_eq!(tx.attempt(), 1);
                Ok::<_, Error>(())
            })
            .unwrap();
        }
    };
    tokio::join!(add(), add());
    assert_eq!(scene.n(2).await, 105);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_a_commit_that_readers_hold_up_is_tried_again() {
    let scene = Sqlite::new(1).await;
    let mut reader = scene
        .options()
        .journal_mode(SqliteJournalMode::Delete)
        .connect()
        .await
        .unwrap();
    let pool =
        sqlx::SqlitePool::connect_lazy_with(scene.options().busy_timeout(Duration::from_millis(5)));
    reader.execute("BEGIN; SELECT n FROM t").await.unwrap();
    let mut runs = 0;
    let attempts = retry_tx!(&pool, quick(), |tx| {
        runs += 1;
        tx.execute("UPDATE t SET n = n + 1").await?;
        if tx.attempt() == 2 {
            reader.execute("ROLLBACK").await?;
        }
        Ok::<_, Error>(tx.attempt())
    })
    .unwrap();
    assert_eq!((attempts, runs, scene.n(1).await), (2, 2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_a_deferred_constraint_fails_the_commit_and_leaves_a_clean_connection() {
    let scene = Sqlite::new(1).await;
    scene
        .pool
        .execute("CREATE TABLE child (id INTEGER REFERENCES t (id) DEFERRABLE INITIALLY DEFERRED)")
        .await
        .unwrap();
    let result: Result<(), Error> = retry_tx!(&scene.pool, |tx| {
        tx.execute("INSERT INTO child VALUES (77)").await?;
        Ok(())
    });
    assert!(matches!(result, Err(Error::Database { .. })), "{result:?}");
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deferred_constraint_fails_the_commit_and_leaves_a_clean_connection() {
    let scene = Postgres::new(1).await;
    scene
        .pool
        .execute("CREATE TABLE child (id INTEGER REFERENCES t (id) DEFERRABLE INITIALLY DEFERRED)")
        .await
        .unwrap();
    let before = scene.pool.size();
    let result: Result<(), Error> = retry_tx!(&scene.pool, |tx| {
        tx.execute("INSERT INTO child VALUES (77)").await?;
        Ok(())
    });
    assert!(matches!(result, Err(Error::Database { .. })), "{result:?}");
    assert_eq!(classify(&result.unwrap_err()), Class::Other);
    scene.is_clean().await;
    assert_eq!(scene.pool.size(), before, "the connection was kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_engine_cannot_do_is_refused() {
    let scene = Sqlite::new(1).await;
    for options in [
        TxOptions::new().statement_timeout(Duration::from_secs(1)),
        TxOptions::new().resolve_unknown(),
    ] {
        let error = Tx::begin(&scene.pool, &options).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Unsupported {
                    database: "SQLite",
                    ..
                }
            ),
            "{error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_insert_that_finds_a_later_row_is_a_serialization_failure() {
    let scene = Postgres::new(1).await;
    let mut other = scene.database.connect().await;
    let options = || quick().isolation(Isolation::RepeatableRead);
    let attempts = retry_tx!(&scene.pool, options(), |tx| {
        tx.execute("SELECT count(*) FROM t").await?;
        if tx.attempt() == 1 {
            other.execute("INSERT INTO t VALUES (9, 9)").await?;
        }
        let inserted = tx
            .execute("INSERT INTO t VALUES (9, 1) ON CONFLICT DO NOTHING")
            .await;
        if let Err(error) = &inserted {
            assert_eq!(
                (classify(error), &*code(error)),
                (Class::Serialization, "40001")
            );
        }
        inserted?;
        Ok::<_, Error>(tx.attempt())
    })
    .unwrap();
    assert_eq!((attempts, scene.n(9).await), (2, 9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_killed_says_so_in_a_class_of_lost_connections() {
    let scene = Postgres::new(1).await;
    let mut session = scene.database.connect().await;
    let kill = "SELECT pg_terminate_backend(pg_backend_pid())";
    assert_eq!(
        fails(&mut session, kill).await,
        (Class::ConnectionLost, "57P01".into())
    );
}

// As after a failover, when a pool still goes to the server that was the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_only_reads_is_told_and_not_asked_again() {
    let scene = Postgres::new(1).await;
    let read_only = "DO $do$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', \
                     current_database()); END $do$";
    let mut session = scene.database.connect().await;
    session.execute(read_only).await.unwrap();
    let mut runs = 0;
    let result: Result<(), Error> = retry_tx!(&scene.pool, quick(), |tx| {
        runs += 1;
        let written = tx.execute("UPDATE t SET n = 1").await;
        let error = written.unwrap_err();
        assert_eq!((classify(&error), &*code(&error)), (Class::Other, "25006"));
        Err(error.into())
    });
    assert!(matches!(result, Err(Error::Database { .. })), "{result:?}");
    assert_eq!(runs, 1);
    // Nor does it matter to whoever reads, or asks what became of a transaction.
    for options in [quick().read_only(), quick().resolve_unknown()] {
        let n: i64 = retry_tx!(&scene.pool, options, |tx| {
            let n = sqlx::query_scalar("SELECT n FROM t WHERE id = 1");
            Ok::<_, Error>(n.fetch_one(&mut *tx).await?)
        })
        .unwrap();
        assert_eq!(n, 0);
    }
    scene.is_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_full_is_waited_for_as_long_as_the_pool_will() {
    let scene = Postgres::new(1).await;
    let role = format!("few_{}", scene.database.name());
    let make = format!(
        "CREATE ROLE \"{role}\" LOGIN CONNECTION LIMIT 1; GRANT ALL ON ALL TABLES IN SCHEMA public TO \"{role}\""
    );
    let mut maker = scene.database.connect().await;
    maker.execute(sqlx::AssertSqlSafe(make)).await.unwrap();
    let options = scene.database.options().username(&role);
    let holder = options.connect().await.unwrap();
    let full = options.connect().await.unwrap_err();
    assert_eq!(
        (classify(&full), &*code(&full)),
        (Class::ConnectionLost, "53300")
    );

    let pool = |patience| {
        sqlx::postgres::PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(patience)
            .connect_lazy_with(options.clone())
    };
    let add = async |pool: sqlx::PgPool| {
        retry_tx!(&pool, quick(), |tx| {
            tx.execute("UPDATE t SET n = n + 1 WHERE id = 1").await?;
            Ok::<_, Error>(tx.attempt())
        })
    };
    let error = add(pool(Duration::from_millis(30))).await.unwrap_err();
    let Error::Database { source } = &error else {
        panic!("{error:?}");
    };
    let source = source.downcast_ref::<sqlx::Error>();
    assert!(matches!(source, Some(sqlx::Error::PoolTimedOut)));

    let waits = add(pool(Duration::from_mins(1)));
    let (added, closed) = tokio::join!(waits, sqlx::Connection::close(holder));
    closed.unwrap();
    assert_eq!((added.unwrap(), scene.n(1).await), (1, 1));
    let mut look = scene.database.connect().await;
    let drop_role = format!("DROP OWNED BY \"{role}\"; DROP ROLE \"{role}\"");
    look.execute(sqlx::AssertSqlSafe(drop_role)).await.unwrap();
}

// A smart shutdown: whoever is in may finish, and nobody else comes in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_shutting_down_lets_nobody_in_and_ends_what_runs_well() {
    let cluster = Cluster::start(&Settings::new()).unwrap();
    let database = cluster.database().await;
    let mut session = database.connect().await;
    session.execute("CREATE TABLE t (n int)").await.unwrap();
    let pool = database.pool(1);
    let mut tx = Tx::begin(&pool, &TxOptions::new()).await.unwrap();
    tx.execute("INSERT INTO t VALUES (1)").await.unwrap();
    // No rows, as nobody reads them.
    session
        .execute("COPY (SELECT WHERE false) TO PROGRAM 'kill -TERM $(head -n 1 postmaster.pid)'")
        .await
        .unwrap();
    let refused = loop {
        match database.options().connect().await {
            Ok(still_in) => sqlx::Connection::close(still_in).await.unwrap(),
            Err(error) => break error,
        }
    };
    assert_eq!(
        (classify(&refused), &*code(&refused)),
        (Class::ConnectionLost, "57P03")
    );
    tx.commit().await.unwrap();
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t")
        .fetch_one(&mut session)
        .await
        .unwrap();
    assert_eq!(rows, 1);
}

// Connections of one process that share a cache lock tables against each other, and do not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_a_table_that_a_shared_cache_has_locked_is_busy() {
    let scene = Sqlite::new(1).await;
    let shared = || scene.options().shared_cache(true);
    let mut writer = shared().connect().await.unwrap();
    let mut reader = shared().connect().await.unwrap();
    writer
        .execute("BEGIN IMMEDIATE; UPDATE t SET n = 1")
        .await
        .unwrap();
    let locked = reader.execute("SELECT n FROM t").await.unwrap_err();
    assert_eq!((classify(&locked), &*code(&locked)), (Class::Busy, "262"));
    writer.execute("ROLLBACK").await.unwrap();
    reader.execute("SELECT n FROM t").await.unwrap();

    assert!(Class::Busy.is_retryable());
}
