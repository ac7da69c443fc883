//! How long a claim takes where that could grow: behind an old snapshot, and in a table of millions.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lockkit_db::queue::{Ack, AckBatch, ClaimSpec, JobStore, NewJob, PostgresStore, SessionSpec};
use lockkit_db::sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use super::side::Side;
use super::{Figures, Of, PAYLOAD, QUEUE, TASK};

/// Jobs of a claim.
const BATCH: usize = 100;
/// Jobs that are ready in a small table.
const READY: u64 = 2000;
/// Longer than any turn: no heartbeat is needed.
const LEASE: Duration = Duration::from_hours(1);

/// How long it goes on before it is measured, and then: with an old snapshot, and without.
const HELD: (Duration, Duration) = (Duration::from_secs(50), Duration::from_secs(10));
const FREE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
const SHORT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));

/// Claims at the end of a minute in which a transaction may still read all that was there at its beginning.
pub(super) async fn snapshot(url: &str, held: bool) -> Result<Figures> {
    let mut reader = PgConnection::connect(url).await?;
    refill(&mut reader).await?;
    if held {
        reader
            .execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            .await?;
        reader.execute("SELECT count(*) FROM lockkit_job").await?;
    }
    let figures = cycle(url, if held { HELD } else { FREE }).await?;
    reader.close().await?;
    Ok(figures)
}

/// Claims from a queue of a few jobs.
pub(super) async fn refilled(url: &str) -> Result<Figures> {
    refill(&mut PgConnection::connect(url).await?).await?;
    few(url).await
}

/// Claims from a table as it is.
pub(super) async fn few(url: &str) -> Result<Figures> {
    cycle(url, SHORT).await
}

async fn refill(connection: &mut PgConnection) -> Result<()> {
    for statement in Side::Lockkit.fill(READY) {
        connection.execute(AssertSqlSafe(statement)).await?;
    }
    Ok(())
}

/// Fills new tables with 3.5 million jobs whose time has not come and a million that are ready.
pub(super) async fn fill_large(url: &str) -> Result<()> {
    drop(PostgresStore::open(url).await?);
    let mut connection = PgConnection::connect(url).await?;
    for statement in Side::Lockkit.fill(1_000_000) {
        connection.execute(AssertSqlSafe(statement)).await?;
    }
    let scheduled = format!(
        "INSERT INTO lockkit_job
            (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload)
         SELECT q.id, 2, 0, n.ms + 86400000 + g, 25, n.ms, '{TASK}', decode(repeat('00', {PAYLOAD}), 'hex')
         FROM lockkit_queue AS q, lockkit_now AS n, generate_series(1, 3500000) AS g
         WHERE q.name = '{QUEUE}'"
    );
    connection.execute(AssertSqlSafe(scheduled)).await?;
    connection.execute("VACUUM (ANALYZE) lockkit_job").await?;
    connection.execute("CHECKPOINT").await?;
    Ok(())
}

/// Puts jobs in, claims as many, and settles them, over and over; how long the claims took.
async fn cycle(url: &str, (before, measured): (Duration, Duration)) -> Result<Figures> {
    let store = PostgresStore::open(url).await?;
    let spec = SessionSpec {
        worker: "bench".into(),
        host: "localhost".into(),
        lease: LEASE,
    };
    let session = store.open_session(&spec).await?;
    let jobs = vec![NewJob::new(TASK, vec![b'x'; PAYLOAD]); BATCH];
    let mut times = Vec::new();
    let began = Instant::now();
    for seq in 1.. {
        store.enqueue(QUEUE, &jobs).await?;
        let claim = ClaimSpec::new(QUEUE, BATCH).numbered(seq);
        let at = Instant::now();
        let claimed = store.exchange(&session, None, Some(&claim)).await?.claimed;
        let time = at.elapsed();
        ensure!(
            claimed.len() == BATCH,
            "only {} jobs were ready",
            claimed.len()
        );
        if at - began > before {
            times.push(time.as_secs_f64() * 1e6);
        }
        let batch = AckBatch {
            seq,
            acks: claimed.iter().map(Ack::done).collect(),
        };
        store.exchange(&session, Some(&batch), None).await?;
        if began.elapsed() > before + measured {
            break;
        }
    }
    store.close_session(&session).await?;
    times.sort_unstable_by(f64::total_cmp);
    Ok(Figures::from([
        (
            Of::PerSecond,
            (times.len() * BATCH) as f64 / measured.as_secs_f64(),
        ),
        (Of::P50Us, times[times.len() / 2]),
        (Of::P99Us, times[times.len() * 99 / 100]),
    ]))
}
