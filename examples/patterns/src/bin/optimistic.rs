//! Optimistic locking: a weekly report to which many add entries. Nobody locks it while he thinks; whoever was
//! overtaken meanwhile is told, reads it again, and adds his entry to what is there now.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lockkit_db::cas::Outcome;
use lockkit_db::{Versioned, optimistic, sqlx};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// A row of the table, with a version that every change raises.
#[derive(Clone, Versioned)]
#[versioned(table = "example_report")]
struct Report {
    #[versioned(key)]
    week: i64,
    entries: i64,
    #[versioned(version)]
    version: i64,
}

const WEEK: i64 = 7;
const WRITERS: i64 = 20;

patterns::on_either_database! {
    async fn prove(pool: Pool) -> anyhow::Result<()> {
        sqlx::raw_sql(
            "DROP TABLE IF EXISTS example_report;
             CREATE TABLE example_report (
                 week BIGINT PRIMARY KEY, entries BIGINT NOT NULL, version BIGINT NOT NULL)",
        )
        .execute(&pool)
        .await?;
        let mut report = Report { week: WEEK, entries: 0, version: 0 };
        report.insert(&pool).await?.context("somebody else is at this table")?;

        // All have read it before the first one writes.
        let all_have_read = Arc::new(Barrier::new(WRITERS as usize));
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            writers.spawn(add_blindly(pool.clone(), all_have_read.clone()));
        }
        writers.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let kept = entries(&pool).await?;
        println!("without a version: {WRITERS} writers add an entry each, and {kept} is kept");
        ensure!(kept < WRITERS, "nothing was lost, so this shows nothing");

        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            writers.spawn(add_by_hand(pool.clone()));
        }
        let told: Vec<bool> = writers.join_all().await.into_iter().collect::<anyhow::Result<_>>()?;
        let done = told.iter().filter(|done| **done).count() as i64;
        let before = kept;
        let kept = entries(&pool).await? - before;
        println!("three tries by hand: {done} writers are told that it is done, and {kept} entries are kept");
        ensure!(kept == done && done > 0, "of {done} entries {kept} are kept");

        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            writers.spawn(add(pool.clone()));
        }
        writers.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let kept = entries(&pool).await? - before - kept;
        println!("optimistic(): {WRITERS} writers add an entry each, and {kept} are kept");
        ensure!(kept == WRITERS, "of {WRITERS} entries {kept} are kept");
        Ok(())
    }

    /// What people write who do not think of each other.
    async fn add_blindly(pool: Pool, all_have_read: Arc<Barrier>) -> anyhow::Result<()> {
        let entries = entries(&pool).await?;
        all_have_read.wait().await;
        sqlx::query("UPDATE example_report SET entries = $1, version = version + 1 WHERE week = $2")
            .bind(entries + 1)
            .bind(WEEK)
            .execute(&pool)
            .await?;
        Ok(())
    }

    /// Up to three tries, with a longer pause after each. Whether one of them was in time.
    async fn add_by_hand(pool: Pool) -> anyhow::Result<bool> {
        for attempt in 1..=3 {
            let mut report = Report::load(&pool, WEEK).await?.context("there is no such report")?;
            report.entries += 1;
            match report.update(&pool).await? {
                Outcome::Updated { .. } => return Ok(true),
                Outcome::Conflict { .. } => sleep(Duration::from_millis(100) * attempt).await,
                Outcome::NotFound => anyhow::bail!("the report was deleted"),
            }
        }
        Ok(false) // "max retries exceeded": nothing of it is in the row.
    }

    /// The same, with pauses by chance, and in a queue for the row after two conflicts: everybody gets his turn.
    async fn add(pool: Pool) -> anyhow::Result<()> {
        optimistic(&pool, Report::table(), WEEK)
            .apply(|report: &Report| Report { entries: report.entries + 1, ..report.clone() })
            .run()
            .await?;
        Ok(())
    }

    async fn entries(pool: &Pool) -> anyhow::Result<i64> {
        Ok(Report::load(pool, WEEK).await?.context("there is no such report")?.entries)
    }
}
