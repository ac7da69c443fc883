//! Pessimistic locking: a report is to be approved, by whoever of many comes first, and once. The row is locked
//! before anybody looks at its status, so that nobody decides by what is over when he writes.

use std::sync::Arc;

use anyhow::ensure;
use lockkit_db::pessimistic::RowLock;
use lockkit_db::{Error, retry_tx, sqlx};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

const APPROVERS: usize = 20;

patterns::on_either_database! {
    async fn prove(pool: Pool) -> anyhow::Result<()> {
        sqlx::raw_sql(
            "DROP TABLE IF EXISTS example_approval;
             CREATE TABLE example_approval (
                 week BIGINT PRIMARY KEY, status TEXT NOT NULL, approvals BIGINT NOT NULL);
             INSERT INTO example_approval VALUES (1, 'draft', 0), (2, 'draft', 0), (3, 'draft', 0)",
        )
        .execute(&pool)
        .await?;

        // All have looked at it before the first one writes.
        let all_have_looked = Arc::new(Barrier::new(APPROVERS));
        let mut approvers = JoinSet::new();
        for _ in 0..APPROVERS {
            approvers.spawn(approve_blindly(pool.clone(), 1, all_have_looked.clone()));
        }
        let told = approvers.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let approved = told.iter().filter(|approved| **approved).count();
        println!("without a lock: {APPROVERS} look at a draft, and {approved} approve it");
        ensure!(approved > 1, "it was approved once, so this shows nothing");

        let mut approvers = JoinSet::new();
        for _ in 0..APPROVERS {
            approvers.spawn(approve(pool.clone(), 2));
        }
        let told = approvers.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let approved = told.iter().filter(|approved| **approved).count();
        println!("with a lock: {APPROVERS} want to approve a draft, and {approved} does");
        ensure!(approved == 1, "{approved} were told that they have approved it");
        ensure!(row(&pool, 2).await? == ("approved".to_owned(), 1), "it was approved more than once");

        let error = approve_and_fail(pool.clone(), 3).await.expect_err("it fails on purpose");
        println!("an error after the change ({error}) takes the change back");
        ensure!(row(&pool, 3).await? == ("draft".to_owned(), 0), "half of it is done");
        Ok(())
    }

    /// What people write who do not think of each other. Whether it has approved the report.
    async fn approve_blindly(pool: Pool, week: i64, all_have_looked: Arc<Barrier>) -> Result<bool, Error> {
        let (status, _) = row(&pool, week).await?;
        all_have_looked.wait().await;
        if status != "draft" {
            return Ok(false);
        }
        sqlx::query("UPDATE example_approval SET status = 'approved', approvals = approvals + 1 WHERE week = $1")
            .bind(week)
            .execute(&pool)
            .await?;
        Ok(true)
    }

    /// Locks, looks, decides, writes, commits. If the database ends it for somebody else's sake, all of it is
    /// run again. Whether this call has approved the report.
    async fn approve(pool: Pool, week: i64) -> Result<bool, Error> {
        let reports = RowLock::on("example_approval", "week").columns(["status"]);
        retry_tx!(&pool, |tx| {
            // Others wait here, and then see what has become of it. A missing one is an error that says so.
            let found = reports.lock::<_, _, (String,)>(&mut tx, &[week]).await?.all()?;
            if found[0].0 != "draft" {
                return Ok(false);
            }
            sqlx::query("UPDATE example_approval SET status = 'approved', approvals = approvals + 1 WHERE week = $1")
                .bind(week)
                .execute(&mut *tx)
                .await?;
            Ok::<_, Error>(true)
        })
    }

    /// Any error rolls back; `Error::stop` is for one of yours, that no further attempt can mend.
    async fn approve_and_fail(pool: Pool, week: i64) -> Result<(), Error> {
        retry_tx!(&pool, |tx| {
            sqlx::query("UPDATE example_approval SET status = 'approved', approvals = approvals + 1 WHERE week = $1")
                .bind(week)
                .execute(&mut *tx)
                .await?;
            Err(Error::stop("the printer is on fire"))
        })
    }

    async fn row(pool: &Pool, week: i64) -> Result<(String, i64), Error> {
        Ok(sqlx::query_as("SELECT status, approvals FROM example_approval WHERE week = $1")
            .bind(week)
            .fetch_one(pool)
            .await?)
    }
}
