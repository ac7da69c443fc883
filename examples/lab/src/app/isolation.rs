//! What each isolation level lets a transaction see of another one, observed.

use lockkit_db::sqlx::postgres::PgConnectOptions;
use lockkit_db::sqlx::{self, AssertSqlSafe, ConnectOptions as _, PgConnection};
use serde::{Deserialize, Serialize};

/// As in the standard. PostgreSQL knows four names and has three levels.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Level {
    ReadUncommitted,
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

/// What was seen.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Anomalies {
    /// What the other one had not committed.
    pub(crate) dirty_read: bool,
    /// Another value in the same row, after the other one's commit.
    pub(crate) non_repeatable_read: bool,
    /// Another row.
    pub(crate) phantom: bool,
}

impl Level {
    pub(crate) const ALL: [Self; 4] = [
        Self::ReadUncommitted,
        Self::ReadCommitted,
        Self::RepeatableRead,
        Self::Serializable,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ReadUncommitted => "READ UNCOMMITTED",
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }
}

/// Two sessions take turns: one reads again and again, the other changes a row, adds one, and commits in between.
pub(crate) async fn observe(connect: &PgConnectOptions, level: Level) -> sqlx::Result<Anomalies> {
    let (mut reader, mut writer) = (connect.connect().await?, connect.connect().await?);
    // Of this call alone, and gone with it.
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut writer)
        .await?;
    let table = format!("isolation_{pid}");
    let make = format!(
        "DROP TABLE IF EXISTS {table};
         CREATE TABLE {table} (id INT PRIMARY KEY, value INT NOT NULL);
         INSERT INTO {table} VALUES (1, 0)"
    );
    run(&mut writer, make).await?;

    run(
        &mut reader,
        format!("BEGIN ISOLATION LEVEL {}", level.name()),
    )
    .await?;
    let (value, rows) = look(&mut reader, &table).await?;
    let change = format!("BEGIN; UPDATE {table} SET value = 1; INSERT INTO {table} VALUES (2, 1)");
    run(&mut writer, change).await?;
    let (uncommitted, more) = look(&mut reader, &table).await?;
    run(&mut writer, "COMMIT".to_owned()).await?;
    let (committed, now) = look(&mut reader, &table).await?;
    run(&mut reader, "COMMIT".to_owned()).await?;
    run(&mut writer, format!("DROP TABLE {table}")).await?;
    Ok(Anomalies {
        dirty_read: uncommitted != value || more != rows,
        non_repeatable_read: committed != value,
        phantom: now != rows,
    })
}

/// The value of the first row, and how many rows there are.
async fn look(reader: &mut PgConnection, table: &str) -> sqlx::Result<(i32, i64)> {
    let value = format!("SELECT value FROM {table} WHERE id = 1");
    let value = sqlx::query_scalar(AssertSqlSafe(value))
        .fetch_one(&mut *reader)
        .await?;
    let rows = format!("SELECT count(*) FROM {table}");
    let rows = sqlx::query_scalar(AssertSqlSafe(rows))
        .fetch_one(&mut *reader)
        .await?;
    Ok((value, rows))
}

async fn run(connection: &mut PgConnection, statements: String) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statements))
        .execute(connection)
        .await
        .map(drop)
}
