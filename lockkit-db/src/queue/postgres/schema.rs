//! The store's tables, brought up to date.

use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use tokio::time::Instant;

use super::connections::{Connections, Transaction, failed};
use crate::Error;

/// One step of the schema. Frozen once released.
struct Migration {
    version: i32,
    name: &'static str,
    sql: &'static str,
}

const MIGRATIONS: &[Migration] = &[Migration {
    version: 2,
    name: "queue",
    sql: include_str!("../../../migrations/postgres/0002_queue.sql"),
}];

/// What the processes that migrate one database agree on: nobody else uses the number, which is "lockkit" in ASCII.
const TURN: i64 = 0x6c_6f63_6b6b_6974;

const APPLIED: &str = "SELECT version, name FROM lockkit_migration ORDER BY version";

const JOURNAL: &str = "CREATE TABLE IF NOT EXISTS lockkit_migration (
    version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())";

/// The number of the last step.
pub(super) fn newest() -> i64 {
    MIGRATIONS.last().map_or(0, |step| step.version.into())
}

/// Finds the tables as they must be, or makes them so if that is allowed.
///
/// A look comes first, so that tables which are up to date need neither the right to make some nor a server that can
/// be written to. Of many processes that migrate at once one does, and the others find it done.
pub(super) async fn prepare(connections: &Connections, migrate: bool) -> Result<(), Error> {
    let steps = {
        let mut transaction = connections.begin_reading().await?;
        let journal = "SELECT to_regclass('lockkit_migration') IS NOT NULL";
        let exists = transaction.rows(sqlx::query(journal)).await?;
        let steps = if exists[0].get(0) {
            missing(&mut transaction).await?
        } else {
            MIGRATIONS
        };
        transaction.commit().await?;
        steps
    };
    let Some(first) = steps.first() else {
        return Ok(());
    };
    if !migrate {
        let Migration { version, name, .. } = first;
        let problem = format!("step {version} ({name}) is missing, and it was not to be made");
        return Err(Error::Schema { problem });
    }
    let mut transaction = connections.begin().await?;
    let turn = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(TURN);
    transaction.rows(turn).await?;
    transaction.rows(sqlx::query(JOURNAL)).await?;
    for step in missing(&mut transaction).await? {
        let begun = Instant::now();
        let made = transaction.connection().execute(AssertSqlSafe(step.sql));
        made.await.map_err(|error| failed(error, begun))?;
        let note = sqlx::query("INSERT INTO lockkit_migration (version, name) VALUES ($1, $2)")
            .bind(step.version)
            .bind(step.name);
        transaction.rows(note).await?;
    }
    transaction.commit().await
}

/// The steps that were not taken yet, or why those that were are none of ours.
async fn missing(transaction: &mut Transaction<'_>) -> Result<&'static [Migration], Error> {
    let rows = transaction.rows(sqlx::query(APPLIED)).await?;
    for (at, row) in rows.iter().enumerate() {
        let (version, name): (i32, String) = (row.get(0), row.get(1));
        let problem = match MIGRATIONS.get(at) {
            Some(step) if step.version == version && step.name == name => continue,
            Some(step) => {
                let (wanted, called) = (step.version, step.name);
                format!("step {version} ({name}) is where step {wanted} ({called}) should be")
            }
            None => format!("they are at step {version} ({name}), which is newer"),
        };
        return Err(Error::Schema { problem });
    }
    Ok(&MIGRATIONS[rows.len()..])
}
