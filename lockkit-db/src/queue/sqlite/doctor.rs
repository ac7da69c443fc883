//! A look at the file, and at what the queue has in it.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnection, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Row as _};

use super::{Durability, MIGRATIONS};
use crate::Error;
use crate::backend::sqlite::file::{Slot, connect_options, in_turn, sqlite_version};
use crate::queue::JobId;
use crate::queue::checkup::{
    Check, Checkup, Figures, HeldClaim, OverLease, PausedQueue, Plan, PlanProblem, Setting,
    StoreFile, Unchecked, Why,
};

macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!("../../../sql/sqlite/", $name, ".sql"))
    };
}

/// How long is waited for a file that is locked, if the store's patience is not shorter.
const LIMIT: Duration = Duration::from_secs(5);

/// The statements whose plans are looked at.
const STATEMENTS: [(&str, &str); 7] = [
    ("claim", sql!("claim")),
    ("ack_done", sql!("ack_done")),
    ("ack_requeue", sql!("ack_requeue")),
    ("ack_bury", sql!("ack_bury")),
    ("reap_requeue", sql!("reap_requeue")),
    ("reap_bury", sql!("reap_bury")),
    ("promote", sql!("promote")),
];

/// Indexes that list only the jobs of one state: to walk over one of these is to walk over what is asked for.
const PARTIAL: [&str; 4] = [
    "lockkit_job_ready",
    "lockkit_job_owner",
    "lockkit_job_due",
    "lockkit_job_settled",
];

/// Looks at a file on a connection of its own, which cannot write.
pub(super) async fn look(
    path: &Path,
    durability: Durability,
    patience: Duration,
) -> Result<Checkup, Error> {
    let options = connect_options(path, SqliteSynchronous::Normal, false);
    let slot = Slot::new(options.pragma("query_only", "1"), patience.min(LIMIT));
    let figures = in_turn!(slot, turn => { measure(turn.connection().await?).await })?;
    let synchronous = match durability {
        Durability::Full => "full",
        Durability::Normal => "normal",
    };
    let figures = Figures {
        settings: vec![Setting {
            name: "synchronous".to_owned(),
            value: synchronous.to_owned(),
        }],
        ..figures
    };
    let left_out = [
        (Check::Clock, "it is this machine's own"),
        (Check::Snapshots, "SQLite does not tell who reads"),
        (Check::Tables, "there are no dead rows in a SQLite file"),
        (Check::Notifications, "other processes look for themselves"),
    ];
    let unchecked = left_out.map(|(check, why)| Unchecked {
        check,
        why: Why::NotApplicable(why),
    });
    Ok(Checkup::new(figures, unchecked.into()))
}

async fn measure(connection: &mut SqliteConnection) -> Result<Figures, sqlx::Error> {
    let mut figures = Figures {
        version: Some(format!("SQLite {}", sqlite_version(connection).await?)),
        ..Figures::default()
    };
    let step = "SELECT coalesce(max(version), 0) FROM lockkit_migration";
    let step = sqlx::query_scalar(step).fetch_one(&mut *connection).await?;
    let known = MIGRATIONS.iter().map(|step| step.version).max();
    figures.schema = known.map(|known| (step, known));
    figures.file = Some(file(connection).await?);
    leases(connection, &mut figures).await?;
    let paused = sqlx::query(sql!("doctor_paused"));
    let queue = |row: &SqliteRow| PausedQueue {
        queue: row.get(0),
        ready: count(row, 1),
    };
    let paused = paused.fetch_all(&mut *connection).await?;
    figures.paused = paused.iter().map(queue).collect();
    for (statement, sql) in STATEMENTS {
        figures.plans.push(plan(connection, statement, sql).await?);
    }
    Ok(figures)
}

async fn file(connection: &mut SqliteConnection) -> Result<StoreFile, sqlx::Error> {
    let mut pragma = async |sql: &'static str| {
        let row = sqlx::query(sql).fetch_one(&mut *connection).await?;
        Ok::<_, sqlx::Error>(row)
    };
    // With NOOP it moves nothing, and takes no lock.
    let wal = pragma("PRAGMA wal_checkpoint(NOOP)").await?;
    Ok(StoreFile {
        page_bytes: count(&pragma("PRAGMA page_size").await?, 0),
        pages: count(&pragma("PRAGMA page_count").await?, 0),
        free: count(&pragma("PRAGMA freelist_count").await?, 0),
        wal: count(&wal, 1),
        wal_pending: count(&wal, 1).saturating_sub(count(&wal, 2)),
    })
}

async fn leases(
    connection: &mut SqliteConnection,
    figures: &mut Figures,
) -> Result<(), sqlx::Error> {
    let ms = |row: &SqliteRow, at| Duration::from_millis(count(row, at));
    let orphans = sqlx::query(sql!("doctor_orphans"));
    let orphans = orphans.fetch_one(&mut *connection).await?;
    let over = sqlx::query(sql!("doctor_over"));
    let over = over.fetch_all(&mut *connection).await?;
    let claims = sqlx::query(sql!("doctor_claims"));
    let claims = claims.fetch_all(connection).await?;
    let leases = &mut figures.leases;
    leases.live = count(&orphans, 0);
    leases.orphans = count(&orphans, 1);
    leases.oldest_orphan = (leases.orphans > 0).then(|| ms(&orphans, 2));
    let session = |row: &SqliteRow| OverLease {
        session: row.get(0),
        worker: row.get(1),
        lease: ms(row, 2),
        over: ms(row, 3),
        jobs: count(row, 4),
    };
    leases.over = over.iter().map(session).collect();
    let claim = |row: &SqliteRow| HeldClaim {
        job: JobId(row.get(0)),
        queue: row.get(1),
        kind: row.get(2),
        attempt: row.get(3),
        worker: row.get(4),
        lease: ms(row, 5),
        since: ms(row, 6),
    };
    leases.longest = claims.iter().map(claim).collect();
    Ok(())
}

/// The plan of a statement, which is not carried out. Its parameters are all NULL.
async fn plan(
    connection: &mut SqliteConnection,
    statement: &'static str,
    sql: &str,
) -> Result<Plan, sqlx::Error> {
    let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN\n{sql}"));
    let explain = sqlx::query(explain).persistent(false);
    let rows = explain.fetch_all(connection).await?;
    let steps: Vec<(i64, String)> = rows.iter().map(|row| (row.get(1), row.get(3))).collect();
    let texts: Vec<_> = steps.iter().map(|(_, text)| &**text).collect();
    Ok(Plan {
        statement,
        text: texts.join("\n"),
        problems: problems(&steps),
    })
}

/// The steps that cost more with each job there is, of steps with the number of what they are part of.
fn problems(steps: &[(i64, String)]) -> Vec<PlanProblem> {
    let bad = steps.iter().filter(|(part, text)| {
        let sorts = text.starts_with("USE TEMP B-TREE");
        let beside = || steps.iter().filter(|(of, _)| of == part);
        walks_jobs(text) || sorts && beside().any(|(_, text)| reads_jobs(text))
    });
    let problem = |(_, text): &(i64, String)| PlanProblem { step: text.clone() };
    bad.map(problem).collect()
}

/// Whether a step reads the jobs; in the statements, `j` is a name for them and for nothing else.
fn reads_jobs(step: &str) -> bool {
    let mut words = step.split(' ');
    matches!(words.next(), Some("SCAN" | "SEARCH"))
        && matches!(words.next(), Some("lockkit_job" | "j"))
}

/// Whether a step reads all jobs, and not only those of one state.
fn walks_jobs(step: &str) -> bool {
    let by_state = step.split(' ').any(|word| PARTIAL.contains(&word));
    step.starts_with("SCAN") && reads_jobs(step) && !by_state
}

fn count(row: &SqliteRow, at: usize) -> u64 {
    row.get::<i64, _>(at).max(0) as u64
}
