//! A backup while the service runs, and the way back.
//!
//! Everything is read in one REPEATABLE READ transaction, which sees what was committed when it began: so no entry of
//! the queue without its message, and nobody has to wait. It is written as a line of JSON for each row, between a
//! first line and a last one with the counts, by which a torn file is known.
//!
//! `pg_dump` reads in just such a transaction, and is the tool for a whole database. But it has to be there in a
//! release not older than the server's; this needs no more than a connection, knows the sessions from other tables of the
//! database, and its file can be read by people and by any program.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use futures_util::TryStreamExt as _;
use lockkit_db::transaction::{Isolation, Tx, TxOptions};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::types::Json;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool};

/// Rows for one statement.
const BATCH: usize = 200;

/// How many rows of each table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) sessions: u64,
    pub(crate) manual_replies: u64,
    pub(crate) switches: u64,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The first one.
    Backup {
        format: u32,
    },
    Session(Value),
    ManualReply(Value),
    Switch(Value),
    /// The last one.
    End(Counts),
}

const FORMAT: u32 = 1;

/// Writes a backup of that database to that file, which is there whole or not at all.
pub(crate) async fn write(database: &PgConnectOptions, to: &Path) -> anyhow::Result<Counts> {
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
    let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))
        .with_context(|| format!("{} cannot be written", to.display()))?;
    let mut out = BufWriter::new(file);
    let pool = connect(database).await?;
    let options = TxOptions::new()
        .isolation(Isolation::RepeatableRead)
        .read_only();
    let mut tx = Tx::begin(&pool, &options).await?;
    put(&mut out, &Line::Backup { format: FORMAT })?;
    let counts = Counts {
        sessions: copy(
            &mut tx,
            &mut out,
            "SELECT to_jsonb(s) FROM sessions AS s",
            Line::Session,
        )
        .await?,
        manual_replies: copy(
            &mut tx,
            &mut out,
            "SELECT to_jsonb(r) FROM manual_replies AS r",
            Line::ManualReply,
        )
        .await?,
        switches: copy(
            &mut tx,
            &mut out,
            "SELECT to_jsonb(s) FROM switches AS s",
            Line::Switch,
        )
        .await?,
    };
    tx.commit().await?;
    put(&mut out, &Line::End(counts))?;
    let file = out
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(to)?;
    Ok(counts)
}

/// A row at a time: a table need not fit into memory.
async fn copy(
    connection: &mut PgConnection,
    out: &mut impl std::io::Write,
    rows: &'static str,
    line: fn(Value) -> Line,
) -> anyhow::Result<u64> {
    let mut rows = sqlx::query_scalar::<_, Json<Value>>(rows).fetch(connection);
    let mut count = 0;
    while let Some(Json(row)) = rows.try_next().await? {
        put(out, &line(row))?;
        count += 1;
    }
    Ok(count)
}

fn put(out: &mut impl std::io::Write, line: &Line) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    Ok(out.write_all(b"\n")?)
}

/// Makes the tables in an empty database, and fills them from a backup: with all of it, or not at all.
pub(crate) async fn restore(from: &Path, database: &PgConnectOptions) -> anyhow::Result<Counts> {
    let file = File::open(from).with_context(|| format!("{} cannot be read", from.display()))?;
    let pool = connect(database).await?;
    let mut tx = Tx::begin(&pool, &TxOptions::new()).await?;
    make_tables(&mut tx)
        .await
        .context("the database is not an empty one")?;
    sqlx::raw_sql("DELETE FROM switches")
        .execute(&mut *tx)
        .await?;
    let mut counts = Counts::default();
    let mut tables = [
        Batch::of(
            "INSERT INTO sessions SELECT * FROM jsonb_populate_recordset(NULL::sessions, $1)",
        ),
        Batch::of(
            "INSERT INTO manual_replies SELECT * FROM jsonb_populate_recordset(NULL::manual_replies, $1)",
        ),
        Batch::of(
            "INSERT INTO switches SELECT * FROM jsonb_populate_recordset(NULL::switches, $1)",
        ),
    ];
    let mut lines = BufReader::new(file).lines();
    let mut next = || -> anyhow::Result<Option<Line>> {
        let Some(line) = lines.next().transpose()? else {
            return Ok(None);
        };
        Ok(Some(
            serde_json::from_str(&line).context("a line of the backup is damaged")?,
        ))
    };
    match next()? {
        Some(Line::Backup { format: FORMAT }) => {}
        _ => bail!("{} is no backup of this program", from.display()),
    }
    loop {
        let (table, row) = match next()? {
            Some(Line::Session(row)) => (0, row),
            Some(Line::ManualReply(row)) => (1, row),
            Some(Line::Switch(row)) => (2, row),
            Some(Line::End(expected)) => {
                // Sessions first, to which the others refer.
                for table in &mut tables {
                    table.insert(&mut tx).await?;
                }
                [counts.sessions, counts.manual_replies, counts.switches] =
                    tables.map(|table| table.rows);
                ensure!(
                    counts == expected,
                    "the backup has other counts than its last line"
                );
                break;
            }
            Some(Line::Backup { .. }) => bail!("two backups are in one file"),
            None => bail!("the backup ends too early"),
        };
        tables[table].waiting.push(row);
        if tables[table].waiting.len() == BATCH {
            tables[0].insert(&mut tx).await?;
            tables[table].insert(&mut tx).await?;
        }
    }
    // New entries come after the old ones.
    let places = "SELECT setval(pg_get_serial_sequence('manual_replies', 'place'), max(place)) FROM manual_replies";
    sqlx::query(places).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(counts)
}

/// Makes the tables.
pub(crate) async fn make_tables(connection: &mut PgConnection) -> anyhow::Result<()> {
    sqlx::raw_sql(include_str!("../sql/schema.sql"))
        .execute(connection)
        .await?;
    Ok(())
}

struct Batch {
    statement: &'static str,
    waiting: Vec<Value>,
    rows: u64,
}

impl Batch {
    fn of(statement: &'static str) -> Self {
        Self {
            statement,
            waiting: Vec::new(),
            rows: 0,
        }
    }

    async fn insert(&mut self, connection: &mut PgConnection) -> anyhow::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let rows = Json(std::mem::take(&mut self.waiting));
        let done = sqlx::query(self.statement)
            .bind(rows)
            .execute(connection)
            .await?;
        self.rows += done.rows_affected();
        Ok(())
    }
}

/// Transactions want a pool. It would say no more than that it took too long.
async fn connect(database: &PgConnectOptions) -> anyhow::Result<PgPool> {
    let connected = database
        .connect()
        .await
        .context("the database cannot be used")?;
    connected.close().await?;
    Ok(PgPoolOptions::new()
        .max_connections(1)
        .connect_lazy_with(database.clone()))
}
