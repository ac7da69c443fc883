//! The queue on a PostgreSQL server.

use anyhow::ensure;
use lockkit_db::queue::{JobId, NewJob, PostgresOptions, PostgresStore, TransactionalStore as _};
use lockkit_db::sqlx::postgres::PgConnectOptions;
use lockkit_db::sqlx::{self, ConnectOptions as _, Connection as _, Executor as _, PgConnection};
use lockkit_db::transaction::Tx;

use crate::Durability;
use crate::place::Place;
use crate::worker::PATIENCE;

/// A database of a server.
pub(crate) struct Server {
    connect: Box<PgConnectOptions>,
}

impl Server {
    pub(crate) fn new(address: &str, durability: Durability) -> anyhow::Result<Self> {
        ensure!(
            matches!(durability, Durability::Full),
            "--durability normal is for a file: a server's queue commits to its disk"
        );
        // The parser's own error may repeat what it was given, with the password.
        let connect = address
            .parse()
            .map_err(|_| anyhow::anyhow!("--db is not the address of a PostgreSQL database"))?;
        Ok(Self {
            connect: Box::new(connect),
        })
    }

    async fn connect(&self) -> sqlx::Result<PgConnection> {
        self.connect.connect().await
    }
}

impl Place for Server {
    type Store = PostgresStore;
    /// A transaction that is rolled back when its connection is dropped.
    type Held<'a> = PgConnection;
    const WHOLE: &'static str = "table of leases";
    const CUTS: bool = true;
    const ONE_TRANSACTION: bool = false;

    async fn open(&self, name: &str) -> anyhow::Result<PostgresStore> {
        let connect = PgConnectOptions::clone(&self.connect).application_name(name);
        let options = PostgresOptions::new(connect).patience(PATIENCE);
        Ok(PostgresStore::open_with(options).await?)
    }

    /// An exchange locks its session's tally first. So one that is on its way waits at the server for as long as
    /// this is held, also while its worker stands still; and a late one finds its lease over.
    async fn hold(&self, _store: &PostgresStore, worker: &str) -> anyhow::Result<PgConnection> {
        let mut connection = self.connect().await?;
        connection.execute("BEGIN").await?;
        let tallies =
            "SELECT FROM lockkit_tally AS t JOIN lockkit_session AS s ON s.id = t.session_id
            WHERE s.worker = $1 FOR UPDATE OF t";
        sqlx::query(tallies)
            .bind(worker)
            .execute(&mut connection)
            .await?;
        Ok(connection)
    }

    /// Heartbeats, claims and results all need the table of leases, and so does who would take the jobs over.
    async fn lock(
        &self,
        store: &PostgresStore,
        queue: &str,
        jobs: &[NewJob],
        inside: impl FnOnce(Vec<JobId>),
    ) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin().await?;
        let mut joined = Tx::join(&mut *transaction)?;
        let ids = store.enqueue_in(&mut joined, queue, jobs).await?;
        transaction.execute("LOCK TABLE lockkit_session").await?;
        inside(ids);
        transaction.commit().await?;
        connection.close().await?;
        Ok(())
    }

    async fn cut(&self, names: &str) -> anyhow::Result<u64> {
        let cut = "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) AS ended FROM pg_stat_activity
            WHERE datname = current_database() AND starts_with(application_name, $1)) AS c WHERE ended";
        let cut = sqlx::query_scalar::<_, i64>(cut).bind(names);
        Ok(cut
            .fetch_one(&mut self.connect().await?)
            .await?
            .cast_unsigned())
    }

    async fn left(&self, queue: &str) -> anyhow::Result<u64> {
        let left = "SELECT count(*) FROM lockkit_job
            WHERE queue_id = (SELECT id FROM lockkit_queue WHERE name = $1)";
        let left = sqlx::query_scalar::<_, i64>(left).bind(queue);
        Ok(left
            .fetch_one(&mut self.connect().await?)
            .await?
            .cast_unsigned())
    }

    async fn integrity(&self) -> anyhow::Result<Option<String>> {
        Ok(None)
    }
}
