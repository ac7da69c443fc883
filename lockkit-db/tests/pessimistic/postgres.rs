//! Who waits for whom on PostgreSQL. Nobody is slept for: that a session waits is read from the server.

use std::time::{Duration, Instant};

use lockkit_db::Error;
use lockkit_db::pessimistic::{Found, LockMode, RowLock, Wait, lock_clause};
use lockkit_db::sqlx::{self, AssertSqlSafe, Executor as _, PgPool};
use lockkit_db::transaction::{Class, Tx, TxOptions, classify};

use crate::both::rows;
use crate::scene::Postgres;
use crate::somebody_waits;

type PgTx = Tx<'static, sqlx::Postgres>;

async fn begin(pool: &PgPool) -> PgTx {
    Tx::begin(pool, &TxOptions::new()).await.unwrap()
}

/// A transaction that has the row.
async fn holder(pool: &PgPool, id: i32) -> PgTx {
    let mut tx = begin(pool).await;
    let found = rows().lock_one::<_, _, ()>(&mut tx, &id).await.unwrap();
    assert_eq!(found, Found::Locked(()));
    tx
}

async fn lock_timeout(tx: &mut PgTx) -> String {
    sqlx::query_scalar("SELECT current_setting('lock_timeout')")
        .fetch_one(&mut **tx)
        .await
        .unwrap()
}

// Mutants: B1, B2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modes_keep_out_whom_they_should() {
    use LockMode::{KeyShare, NoKeyUpdate, Share, Update};
    let scene = Postgres::new(2).await;
    let modes = [KeyShare, Share, NoKeyUpdate, Update];
    // PostgreSQL's own table of conflicts, in this order.
    let conflicts = [
        [false, false, false, true],
        [false, false, true, true],
        [false, true, true, true],
        [true, true, true, true],
    ];
    for (held, conflicts) in modes.into_iter().zip(conflicts) {
        for (asked, conflict) in modes.into_iter().zip(conflicts) {
            let mut first = begin(&scene.pool).await;
            let lock = rows().mode(held);
            lock.lock_one::<_, _, ()>(&mut first, &1).await.unwrap();
            let mut second = begin(&scene.pool).await;
            let lock = rows().mode(asked).wait(Wait::NoWait);
            let result = lock.lock_one::<_, _, (i64,)>(&mut second, &1).await;
            if conflict {
                let error = result.unwrap_err();
                assert!(
                    matches!(error, Error::LockNotAvailable { .. }),
                    "{held:?}, {asked:?}: {error:?}"
                );
                assert!(error.is_transient());
            } else {
                assert_eq!(result.unwrap(), Found::Locked((0,)), "{held:?}, {asked:?}");
            }
            first.rollback().await;
            second.rollback().await;
        }
    }
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_default_does_not_hold_up_rows_that_refer_to_the_locked_one() {
    let scene = Postgres::new(2).await;
    scene
        .pool
        .execute("CREATE TABLE child (t INTEGER REFERENCES t)")
        .await
        .unwrap();
    let mut strong = RowLock::on("t", "id");
    for waits in [false, true] {
        let mut tx = begin(&scene.pool).await;
        strong.lock_one::<_, _, ()>(&mut tx, &1).await.unwrap();
        let insert = "SET lock_timeout = 1; INSERT INTO child VALUES (1)";
        let result = scene.database.connect().await.execute(insert).await;
        assert_eq!(result.is_err(), waits);
        tx.rollback().await;
        strong = strong.for_update();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_when_the_row_is_free_and_reads_what_was_committed() {
    let scene = Postgres::new(2).await;
    let mut look = scene.database.connect().await;
    let mut first = holder(&scene.pool, 2).await;
    let pool = scene.pool.clone();
    let waiter = tokio::spawn(async move {
        let mut tx = begin(&pool).await;
        let found = rows().lock::<_, _, (i64,)>(&mut tx, &[3, 2]).await;
        let found = found.unwrap().all().unwrap();
        tx.commit().await.unwrap();
        found
    });
    somebody_waits(&mut look).await;
    first
        .execute("UPDATE t SET n = 7 WHERE id = 2")
        .await
        .unwrap();
    first.commit().await.unwrap();
    assert_eq!(waiter.await.unwrap(), [(0,), (7,)]);

    // A row that goes meanwhile is missing.
    let mut first = holder(&scene.pool, 2).await;
    let pool = scene.pool.clone();
    let waiter = tokio::spawn(async move {
        let mut tx = begin(&pool).await;
        rows().lock_one::<_, _, ()>(&mut tx, &2).await.unwrap()
    });
    somebody_waits(&mut look).await;
    first.execute("DELETE FROM t WHERE id = 2").await.unwrap();
    first.commit().await.unwrap();
    assert_eq!(waiter.await.unwrap(), Found::Missing);
}

// Mutant: B12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skipped_rows_are_told_from_missing_ones() {
    let scene = Postgres::new(2).await;
    let first = holder(&scene.pool, 2).await;
    let mut tx = begin(&scene.pool).await;
    let lock = rows().wait(Wait::SkipLocked);
    let keys = [9, 2, 1, 2];
    let found = lock.lock::<_, _, (i64,)>(&mut tx, &keys).await.unwrap();
    assert_eq!(found.skipped().copied().collect::<Vec<_>>(), [2, 2]);
    assert_eq!(found.missing().copied().collect::<Vec<_>>(), [9]);
    let error = found.all().unwrap_err();
    assert!(
        matches!(&error, Error::NotAllLocked { missing, skipped, .. }
            if *missing == [0] && *skipped == [1, 3]),
        "{error:?}"
    );
    let only_skipped = lock.lock::<_, _, ()>(&mut tx, &[2]).await.unwrap();
    assert!(only_skipped.all().unwrap_err().is_transient());
    tx.commit().await.unwrap();
    first.rollback().await;
    scene.is_clean().await;
}

// Mutants: B6b, B13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_of_its_own_ends_in_time_and_leaves_the_transactions_bound() {
    let scene = Postgres::new(2).await;
    let options = TxOptions::new().wait(Duration::from_mins(10));
    let mut tx = Tx::begin(&scene.pool, &options).await.unwrap();
    let lock = rows().wait(Wait::AtMost(Duration::from_millis(30)));
    lock.lock_one::<_, _, ()>(&mut tx, &1).await.unwrap();
    assert_eq!(lock_timeout(&mut tx).await, "10min");
    lock.get_or_insert(&mut tx, &8)
        .set("n", 0_i64)
        .run::<()>()
        .await
        .unwrap();
    assert_eq!(lock_timeout(&mut tx).await, "10min");

    let first = holder(&scene.pool, 3).await;
    let part = tx.savepoint().await.unwrap();
    let mut part = part;
    let begun = Instant::now();
    let error = lock.lock::<_, _, ()>(&mut part, &[2, 3]).await.unwrap_err();
    assert!(matches!(error, Error::LockNotAvailable { .. }), "{error:?}");
    assert!(begun.elapsed() >= Duration::from_millis(30));
    part.rollback().await.unwrap();
    assert_eq!(lock_timeout(&mut tx).await, "10min");
    // The savepoint's rollback has also freed what was locked before the one that was not to be had.
    let mut free = scene.database.connect().await;
    free.execute("SELECT n FROM t WHERE id = 2 FOR UPDATE NOWAIT")
        .await
        .unwrap();
    first.rollback().await;
    tx.commit().await.unwrap();
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_insert_waits_no_longer_than_it_may() {
    let scene = Postgres::new(2).await;
    // Somebody is just making the row.
    let mut first = begin(&scene.pool).await;
    first.execute("INSERT INTO t VALUES (50, 0)").await.unwrap();
    for wait in [Wait::NoWait, Wait::AtMost(Duration::from_millis(20))] {
        let mut tx = begin(&scene.pool).await;
        let lock = rows().wait(wait);
        let made = lock.get_or_insert(&mut tx, &50).set("n", 1_i64).run::<()>();
        let error = made.await.unwrap_err();
        assert!(matches!(error, Error::LockNotAvailable { .. }), "{error:?}");
        tx.rollback().await;
    }
    first.rollback().await;
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_appears_behind_a_snapshot_is_a_serialization_failure() {
    let scene = Postgres::new(1).await;
    let options = TxOptions::new().isolation(lockkit_db::transaction::Isolation::RepeatableRead);
    let mut tx = Tx::begin(&scene.pool, &options).await.unwrap();
    tx.execute("SELECT 1").await.unwrap();
    let mut other = scene.database.connect().await;
    other.execute("INSERT INTO t VALUES (60, 0)").await.unwrap();
    let lock = rows();
    let made = lock
        .get_or_insert(&mut tx, &60)
        .set("n", 1_i64)
        .run::<()>()
        .await;
    assert_eq!(classify(&made.unwrap_err()), Class::Serialization);
    tx.rollback().await;
    // The same in a transaction of somebody else's is his to begin again.
    let mut owner = scene
        .pool
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ")
        .await
        .unwrap();
    owner.execute("SELECT 1").await.unwrap();
    other.execute("UPDATE t SET n = 1").await.unwrap();
    let mut tx = Tx::join(&mut *owner).unwrap();
    let error = rows().lock_one::<_, _, ()>(&mut tx, &1).await.unwrap_err();
    assert!(matches!(error, Error::MustRestart { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_has_ended_names_who_blocked() {
    let scene = Postgres::new(3).await;
    let mut first = holder(&scene.pool, 1).await;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut *first)
        .await
        .unwrap();
    for wait in [Wait::Bound, Wait::AtMost(Duration::from_millis(400))] {
        let options = TxOptions::new().wait(Duration::from_millis(400));
        let mut tx = Tx::begin(&scene.pool, &options).await.unwrap();
        let watch = tx.watch(&scene.pool).await.unwrap();
        let lock = rows().wait(wait).watch(&watch);
        let error = lock.lock_one::<_, _, ()>(&mut tx, &1).await.unwrap_err();
        let Error::LockNotAvailable { blockers, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(blockers.iter().map(|it| it.pid).collect::<Vec<_>>(), [pid]);
        tx.rollback().await;
    }
    first.rollback().await;
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clause_locks_the_rows_of_the_tables_that_it_names() {
    let scene = Postgres::new(1).await;
    scene
        .pool
        .execute(
            "CREATE TABLE child (id INTEGER, t INTEGER); INSERT INTO child VALUES (1, 1), (2, 2)",
        )
        .await
        .unwrap();
    let clause = lock_clause::<sqlx::Postgres>(LockMode::Update, Wait::NoWait, &["c"]).unwrap();
    assert_eq!(clause, r#" FOR UPDATE OF "c" NOWAIT"#);
    let sql = format!("SELECT c.id FROM child c JOIN t ON t.id = c.t ORDER BY c.id{clause}");
    let mut tx = begin(&scene.pool).await;
    let ids: Vec<i32> = sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_all(&mut *tx)
        .await
        .unwrap();
    assert_eq!(ids, [1, 2]);
    let mut other = scene.database.connect().await;
    other
        .execute("SELECT 1 FROM t FOR UPDATE NOWAIT")
        .await
        .unwrap();
    let taken = other.execute("SELECT 1 FROM child FOR UPDATE NOWAIT").await;
    assert_eq!(classify(&taken.unwrap_err()), Class::LockNotAvailable);

    for (wait, of, wrong) in [
        (Wait::AtMost(Duration::from_secs(1)), "c", "wait"),
        (Wait::Bound, "c; DROP TABLE t", "of"),
        (Wait::Bound, "", "of"),
    ] {
        let clause = lock_clause::<sqlx::Postgres>(LockMode::Share, wait, &[of]);
        assert!(
            matches!(clause, Err(Error::Invalid { field, .. }) if field == wrong),
            "{clause:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_found_in_its_schema() {
    let scene = Postgres::new(1).await;
    scene
        .pool
        .execute(
            "CREATE SCHEMA shop; CREATE TABLE shop.item (id UUID PRIMARY KEY, n TEXT); \
                  INSERT INTO shop.item VALUES ('00000000-0000-0000-0000-000000000001', 'x')",
        )
        .await
        .unwrap();
    scene
        .pool
        .execute("CREATE TABLE shop.word (word VARCHAR(9) PRIMARY KEY); INSERT INTO shop.word VALUES ('a'), ('B')")
        .await
        .unwrap();
    let mut tx = begin(&scene.pool).await;
    let words = RowLock::on("shop.word", "word");
    let keys = ["a".to_owned(), "c".to_owned(), "B".to_owned()];
    let found = words.lock::<_, _, (String,)>(&mut tx, &keys).await.unwrap();
    let found = found.into_vec().into_iter().map(Found::locked);
    assert!(found.eq([Some(("a".to_owned(),)), None, Some(("B".to_owned(),))]));
    tx.commit().await.unwrap();
}

// Mutant: B157
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_of_its_own_is_over_when_the_answer_cannot_be_read() {
    let scene = Postgres::new(1).await;
    let mut tx = begin(&scene.pool).await;
    let lock = rows().wait(Wait::AtMost(Duration::from_millis(300)));
    lock.lock::<_, _, (String,)>(&mut tx, &[1])
        .await
        .unwrap_err();
    assert_eq!(lock_timeout(&mut tx).await, "5s");
    for id in [1, 70] {
        let first = lock.get_or_insert(&mut tx, &id).set("n", 1_i64);
        first.run::<(String,)>().await.unwrap_err();
        assert_eq!(lock_timeout(&mut tx).await, "5s", "{id}");
    }
    tx.rollback().await;
    scene.is_clean().await;
}
