//! A worker that settles its jobs by their ids alone, as those of most queues do: the negative control.

use std::time::Duration;

use lockkit_db::Error;
use lockkit_db::queue::{ClaimSpec, JobStore, PostgresStore, Renewal, SessionSpec};
use lockkit_db::sqlx::postgres::PgPoolOptions;
use lockkit_db::sqlx::{self, PgPool};
use lockkit_test::diary::Diary;
use lockkit_test::total_queue::Verdict;
use tokio_util::sync::CancellationToken;

use crate::worker::{Orders, name, number};

/// Claims as the others do, keeps its lease alive, and never asks whether it still has what it settles.
pub(crate) async fn work(
    store: PostgresStore,
    orders: &Orders,
    worker: usize,
    diary: &Diary,
    over: &CancellationToken,
) -> Result<(), Error> {
    let pool = PgPoolOptions::new().connect_lazy(&orders.url)?;
    let spec = SessionSpec {
        worker: name(worker),
        host: "h".into(),
        lease: orders.lease,
    };
    let mut session = store.open_session(&spec).await?;
    while !over.is_cancelled() {
        store.upkeep().await?;
        let claim = ClaimSpec::new("q", orders.batch);
        let exchange = store.exchange(&session, None, Some(&claim)).await?;
        for job in &exchange.claimed {
            let (number, epoch) = (number(job), job.epoch.get());
            diary.began(number, epoch, job.attempt);
            diary.reports(number, epoch, Verdict::Complete);
        }
        // That is what it has done all the time, too.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let ids: Vec<i64> = exchange.claimed.iter().map(|job| job.id.0).collect();
        settle(&pool, &ids).await?;
        for job in &exchange.claimed {
            diary.told(number(job), job.epoch.get(), true);
        }
        if store.renew(&session).await? == Renewal::Lost {
            session = store.open_session(&spec).await?;
        }
    }
    store.close_session(&session).await
}

/// What is not there is done.
async fn settle(pool: &PgPool, ids: &[i64]) -> Result<(), Error> {
    let settle = sqlx::query("DELETE FROM lockkit_job WHERE id = ANY ($1)");
    settle.bind(ids).execute(pool).await?;
    Ok(())
}
