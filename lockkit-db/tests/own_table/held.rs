//! The claim in a transaction.

use std::time::Duration;

use lockkit_db::own_table::{JobTable, Settlement};
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_db::{Error, retry_tx, sqlx};

use crate::scene::{self, on_both};
use crate::table::{STATES, effect, effects, held, job, sql, with_tables};

on_both! {
    async fn what_is_due_is_claimed_in_order_and_the_rest_is_left_alone(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id, status, scheduled_at, rank) VALUES \
            (1, 'pending', '2001-01-01 00:00:00', 1), (2, 'pending', '2001-01-02 00:00:00', 0), \
            (3, 'pending', '2001-01-01 00:00:00', 0), (4, 'pending', '2001-01-02 00:00:00', 0), \
            (5, 'pending', '2999-01-01 00:00:00', 0), (6, 'pending', NULL, 0), \
            (7, 'done', '2001-01-01 00:00:00', 0), (8, 'running', '2001-01-01 00:00:00', 0), \
            (9, 'other', '2001-01-01 00:00:00', 0), (10, NULL, '2001-01-01 00:00:00', 0)");
        let jobs = held(&scene);
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let claimed = jobs.claim_in::<i64>(&mut tx, 3).await.unwrap();
        let ids: Vec<_> = claimed.iter().map(|job| job.key).collect();
        assert_eq!(ids, [3, 2, 4]);
        let ids: Vec<_> = jobs.claim_in::<i64>(&mut tx, 10_000).await.unwrap().iter().map(|job| job.key).collect();
        assert_eq!(ids, [3, 2, 4, 1]);
        tx.commit().await.unwrap();
    }
}

on_both! {
    async fn a_job_is_done_with_what_is_committed_beside_it(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id, report) VALUES (1, 'week 1'), (2, 'week 2')");
        let jobs = held(&scene);
        let report = retry_tx!(&scene.pool, |tx| {
            let claimed = jobs.claim_in::<i64>(&mut tx, 1).await?;
            effect!(tx, claimed[0].key);
            assert_eq!(jobs.done_in(&mut tx, &claimed[0]).await?, Settlement::Accepted);
            let (report,) = claimed[0].row.read::<(String,)>()?;
            Ok::<_, Error>(report)
        });
        assert_eq!(report.unwrap(), "week 1");
        let called_off = retry_tx!(&scene.pool, |tx| {
            let claimed = jobs.claim_in::<i64>(&mut tx, 1).await?;
            effect!(tx, claimed[0].key);
            assert_eq!(jobs.done_in(&mut tx, &claimed[0]).await?, Settlement::Accepted);
            Err::<(), _>(Error::stop("no"))
        });
        assert!(matches!(called_off, Err(Error::Stopped { .. })));
        assert_eq!(effects!(scene), [1]);
        assert_eq!(job!(scene, 1), ("done".to_owned(), None, Some(1)));
        assert_eq!(job!(scene, 2), ("pending".to_owned(), None, None));
        scene.is_clean().await;
    }
}

// Mutant: T24
on_both! {
    async fn a_failed_job_stays_failed_and_one_to_retry_comes_when_it_is_due(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id, attempts) VALUES (1, 4), (2, 0)");
        let jobs = held(&scene);
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let claimed = jobs.claim_in::<i64>(&mut tx, 2).await.unwrap();
        assert_eq!(jobs.fail_in(&mut tx, &claimed[0]).await.unwrap(), Settlement::Accepted);
        let delay = Duration::from_hours(1);
        assert_eq!(jobs.retry_in(&mut tx, &claimed[1], delay).await.unwrap(), Settlement::Accepted);
        assert!(jobs.claim_in::<i64>(&mut tx, 2).await.unwrap().is_empty());
        tx.commit().await.unwrap();
        assert_eq!(job!(scene, 1), ("failed".to_owned(), None, Some(5)));
        assert_eq!(job!(scene, 2), ("pending".to_owned(), None, Some(1)));
        sql!(scene, "UPDATE jobs SET scheduled_at = '2001-01-01 00:00:00'");
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let claimed = jobs.claim_in::<i64>(&mut tx, 2).await.unwrap();
        assert_eq!(claimed.iter().map(|job| job.key).collect::<Vec<_>>(), [2]);
        // Without a delay it is due at once.
        assert_eq!(jobs.retry_in(&mut tx, &claimed[0], Duration::ZERO).await.unwrap(), Settlement::Accepted);
        tx.commit().await.unwrap();
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        assert_eq!(jobs.claim_in::<i64>(&mut tx, 2).await.unwrap().len(), 1);
        tx.rollback().await;
    }
}

// Mutant: T23
on_both! {
    async fn a_job_that_is_settled_cannot_be_settled_again(scene: 2) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
        let jobs = held(&scene);
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let claimed = jobs.claim_in::<i64>(&mut tx, 1).await.unwrap().remove(0);
        assert_eq!(jobs.done_in(&mut tx, &claimed).await.unwrap(), Settlement::Accepted);
        assert_eq!(jobs.fail_in(&mut tx, &claimed).await.unwrap(), Settlement::Stale);
        tx.commit().await.unwrap();
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        assert_eq!(jobs.retry_in(&mut tx, &claimed, Duration::ZERO).await.unwrap(), Settlement::Stale);
        tx.commit().await.unwrap();
        assert_eq!(job!(scene, 1), ("done".to_owned(), None, Some(1)));
    }
}

// Mutant: T10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_transaction_holds_is_skipped_and_not_waited_for() {
    let scene = scene::Postgres::new(3).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO jobs (id) VALUES (1), (2), (3)");
    let jobs = held(&scene);
    let mut first = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let mut second = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let ids = async |tx: &mut Tx<'_, _>, n| {
        let claimed = jobs.claim_in::<i64>(tx, n).await.unwrap();
        claimed.iter().map(|job| job.key).collect::<Vec<_>>()
    };
    assert_eq!(ids(&mut first, 2).await, [1, 2]);
    assert_eq!(ids(&mut second, 3).await, [3]);
    first.rollback().await;
    assert_eq!(ids(&mut second, 3).await, [1, 2, 3]);
    second.rollback().await;
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_comes_back_when_the_session_that_holds_it_is_killed() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
    let jobs = held(&scene);
    let mut killed = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let claimed = jobs
        .claim_in::<i64>(&mut killed, 1)
        .await
        .unwrap()
        .remove(0);
    effect!(killed, 1);
    assert_eq!(
        jobs.done_in(&mut killed, &claimed).await.unwrap(),
        Settlement::Accepted
    );
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut *killed)
        .await
        .unwrap();
    sql!(scene, "SELECT pg_terminate_backend({pid}, 60000)");
    killed.commit().await.unwrap_err();
    assert!(effects!(scene).is_empty());
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    assert_eq!(jobs.claim_in::<i64>(&mut tx, 1).await.unwrap().len(), 1);
    tx.rollback().await;
}

// Mutant: T11
#[tokio::test]
async fn on_sqlite_a_claim_keeps_others_from_writing_however_the_transaction_was_begun() {
    let scene = scene::Sqlite::new(1).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
    let jobs = held(&scene);
    let mut deferred = scene.pool.begin().await.unwrap();
    let mut tx = Tx::join(&mut *deferred).unwrap();
    let claimed = jobs.claim_in::<i64>(&mut tx, 1).await.unwrap().remove(0);
    let mut other = sqlx::ConnectOptions::connect(&scene.options().busy_timeout(Duration::ZERO))
        .await
        .unwrap();
    let write = sqlx::raw_sql("UPDATE jobs SET status = 'done'").execute(&mut other);
    write.await.expect_err("it is locked");
    assert_eq!(
        jobs.done_in(&mut tx, &claimed).await.unwrap(),
        Settlement::Accepted
    );
    drop(tx);
    deferred.commit().await.unwrap();
}

#[tokio::test]
async fn an_error_in_a_joined_transaction_that_another_attempt_may_mend_says_so() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
    let jobs = held(&scene);
    let mut begun = scene.pool.begin().await.unwrap();
    sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM jobs")
        .execute(&mut *begun)
        .await
        .unwrap();
    sql!(scene, "UPDATE jobs SET rank = 1");
    let mut tx = Tx::join(&mut *begun).unwrap();
    let claimed = jobs.claim_in::<i64>(&mut tx, 1).await;
    assert!(
        matches!(claimed, Err(Error::MustRestart { .. })),
        "{claimed:?}"
    );
}

on_both! {
    async fn a_status_alone_is_enough(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
        let jobs = JobTable::describe("jobs").key("id").status("status", STATES).build().unwrap();
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let claimed = jobs.claim_in::<i64>(&mut tx, 5).await.unwrap().remove(0);
        let late = jobs.retry_in(&mut tx, &claimed, Duration::from_secs(1)).await;
        assert!(matches!(late, Err(Error::Invalid { field: "delay", .. })), "{late:?}");
        assert_eq!(jobs.retry_in(&mut tx, &claimed, Duration::ZERO).await.unwrap(), Settlement::Accepted);
        assert_eq!(jobs.done_in(&mut tx, &claimed).await.unwrap(), Settlement::Accepted);
        tx.commit().await.unwrap();
        assert_eq!(job!(scene, 1).0, "done");
    }
}
