//! A store's tables, brought up to date.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use tokio::time::Instant;

use super::connections::{Connections, Transaction, failed};
use crate::Error;

/// One step of the schema. Frozen once released.
pub(crate) struct Migration {
    pub(crate) version: i32,
    pub(crate) name: &'static str,
    pub(crate) sql: &'static str,
}

/// What the processes that migrate one database agree on: nobody else uses the number, which is "lockkit" in ASCII.
const TURN: i64 = 0x6c_6f63_6b6b_6974;

/// Finds the tables as they must be, or makes them so if that is allowed.
///
/// A look comes first, so that tables which are up to date need neither the right to make some nor a server that can
/// be written to. Of many processes that migrate at once one does, and the others find it done. The steps that were taken
/// are noted in a table of the store's own, so that another one in the same schema does not take them for its future.
///
/// It has a patience of its own, as it may wait in line for all of those.
pub(crate) async fn prepare(
    connections: &Connections,
    journal: &str,
    all: &'static [Migration],
    migrate: bool,
    patience: Duration,
) -> Result<(), Error> {
    let steps = {
        // Each statement sees what is committed when it begins. In one view of all, the journal might be there already,
        // for the catalog is always read as it is, and its notes not yet.
        let mut transaction = connections.begin_within(patience).await?;
        let noted = sqlx::query("SELECT to_regclass($1::text) IS NOT NULL").bind(journal);
        let exists = transaction.rows(noted).await?;
        let steps = if exists[0].get(0) {
            missing(&mut transaction, journal, all).await?
        } else {
            all
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
    let mut transaction = connections.begin_within(patience).await?;
    let turn = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(TURN);
    transaction.rows(turn).await?;
    let table = format!(
        "CREATE TABLE IF NOT EXISTS {journal} (version integer PRIMARY KEY, name text NOT NULL, \
         applied_at timestamptz NOT NULL DEFAULT now())"
    );
    transaction.rows(sqlx::query(AssertSqlSafe(table))).await?;
    for step in missing(&mut transaction, journal, all).await? {
        let begun = Instant::now();
        let made = transaction.connection().execute(AssertSqlSafe(step.sql));
        made.await.map_err(|error| failed(error, begun))?;
        let note = format!("INSERT INTO {journal} (version, name) VALUES ($1, $2)");
        let note = sqlx::query(AssertSqlSafe(note))
            .bind(step.version)
            .bind(step.name);
        transaction.rows(note).await?;
    }
    transaction.commit().await
}

/// The steps that were not taken yet, or why those that were are none of ours.
async fn missing(
    transaction: &mut Transaction<'_>,
    journal: &str,
    all: &'static [Migration],
) -> Result<&'static [Migration], Error> {
    let taken = format!("SELECT version, name FROM {journal} ORDER BY version");
    let rows = transaction.rows(sqlx::query(AssertSqlSafe(taken))).await?;
    for (at, row) in rows.iter().enumerate() {
        let (version, name): (i32, String) = (row.get(0), row.get(1));
        let problem = match all.get(at) {
            Some(step) if step.version == version && step.name == name => continue,
            Some(step) => {
                let (wanted, called) = (step.version, step.name);
                format!("step {version} ({name}) is where step {wanted} ({called}) should be")
            }
            None => format!("they are at step {version} ({name}), which is newer"),
        };
        return Err(Error::Schema { problem });
    }
    Ok(&all[rows.len()..])
}
