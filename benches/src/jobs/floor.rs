//! The floors: pgbench, statements by hand on a held connection, bare commits.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lockkit_db::queue::{JobStore, NewJob, PostgresStore};
use lockkit_db::sqlx::{self, Connection as _, Executor as _, PgConnection};

use super::{Figures, Of, PAYLOAD, QUEUE, TASK};
use crate::race::median;

/// Clients of pgbench, and jobs of its batches.
const CLIENTS: u64 = 2;
const BATCH: u64 = 1000;

/// The claim and the end of a batch, with no fence and no statistics. What is returned is what a handler needs.
const SCRIPT: &str = "\
WITH picked AS MATERIALIZED (
    SELECT id FROM lockkit_job
    WHERE state = 0 AND queue_id = 1
    ORDER BY priority, run_at, id
    LIMIT 1000 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE lockkit_job AS j
SET state = 1, session_id = :client_id + 1, claimed_at = 1, attempt = j.attempt + 1, epoch = j.epoch + 1
FROM picked
WHERE j.id = picked.id
RETURNING j.id, j.epoch, j.attempt, j.kind, j.payload;
DELETE FROM lockkit_job WHERE state = 1 AND session_id = :client_id + 1;
";

/// As lockkit's own connections.
const OPTIONS: &str = "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_bitmapscan=off \
     -c enable_hashjoin=off -c enable_mergejoin=off -c jit=off";

/// Has pgbench work the jobs off.
pub(super) async fn drain(url: &str, jobs: u64) -> Result<Figures> {
    let mut script = tempfile::NamedTempFile::new()?;
    script.write_all(SCRIPT.as_bytes())?;
    let output = tokio::process::Command::new("pgbench")
        .args(["--no-vacuum", "--protocol=prepared"])
        .arg(format!("--client={CLIENTS}"))
        .arg(format!("--jobs={CLIENTS}"))
        .arg(format!("--transactions={}", jobs / BATCH / CLIENTS))
        .arg("--file")
        .arg(script.path())
        .arg(of_libpq(url))
        .env("PGOPTIONS", OPTIONS)
        .stdin(Stdio::null())
        .output()
        .await
        .context("there is no pgbench; it comes with Debian's package postgresql")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "pgbench failed: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let tps = said.lines().find_map(|line| line.strip_prefix("tps = "));
    let tps: f64 = tps
        .and_then(|line| line.split(' ').next())
        .with_context(|| format!("pgbench told no speed: {said}"))?
        .parse()?;
    Ok(Figures::from([(Of::PerSecond, tps * BATCH as f64)]))
}

/// An address without what only sqlx knows.
fn of_libpq(url: &str) -> String {
    let (address, parameters) = url.split_once('?').unwrap_or((url, ""));
    let known = parameters
        .split('&')
        .filter(|one| !one.starts_with("statement-cache-capacity"));
    format!("{address}?{}", known.collect::<Vec<_>>().join("&"))
}

/// How many jobs are put in, in enqueues of so many each.
fn enqueued(each: u64) -> u64 {
    if each == 1 { 1000 } else { 50_000 }
}

const MANY_BY_HAND: &str = "INSERT INTO lockkit_job (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload)
     SELECT 1, 0, 0, $1, 25, $1, kind, payload FROM unnest($2::text[], $3::bytea[]) AS j (kind, payload)
     RETURNING id";

const ONE_BY_HAND: &str = "INSERT INTO lockkit_job (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload)
     VALUES (1, 0, 0, $1, 25, $1, $2, $3) RETURNING id";

/// Puts jobs in, so many at once: through the public API, or by hand on a connection that is held.
pub(super) async fn enqueue(url: &str, each: u64, lockkit: bool) -> Result<Figures> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute("CHECKPOINT").await?;
    connection.execute("TRUNCATE lockkit_job").await?;
    let store = PostgresStore::open(url).await?;
    let payload = vec![b'x'; PAYLOAD];
    let turns = enqueued(each) / each;
    let mut began = Instant::now();
    // A tenth before the clock runs.
    let early = turns / 10;
    for turn in 0..early + turns {
        if turn == early {
            began = Instant::now();
        }
        if lockkit {
            let jobs = vec![NewJob::new(TASK, payload.clone()); each as usize];
            store.enqueue(QUEUE, &jobs).await?;
        } else if each == 1 {
            sqlx::query(ONE_BY_HAND)
                .bind(1_i64)
                .bind(TASK)
                .bind(payload.clone())
                .fetch_all(&mut connection)
                .await?;
        } else {
            sqlx::query(MANY_BY_HAND)
                .bind(1_i64)
                .bind(vec![TASK; each as usize])
                .bind(vec![payload.clone(); each as usize])
                .fetch_all(&mut connection)
                .await?;
        }
    }
    let per_second = enqueued(each) as f64 / began.elapsed().as_secs_f64();
    Ok(Figures::from([(Of::PerSecond, per_second)]))
}

/// Two commits of one row each, and 3 ms.
pub(super) async fn commits(url: &str) -> Result<Figures> {
    let mut connection = PgConnection::connect(url).await?;
    connection
        .execute("CREATE TABLE IF NOT EXISTS bare_commit (n bigint)")
        .await?;
    let mut times = Vec::new();
    for n in 0..300_i64 {
        let began = Instant::now();
        sqlx::query("INSERT INTO bare_commit VALUES ($1)")
            .bind(n)
            .execute(&mut connection)
            .await?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Figures::from([(Of::P50Us, median(&times) * 2.0 + 3000.0)]))
}
