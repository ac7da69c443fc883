//! The queue in a SQLite file.

use std::path::{Path, PathBuf};

use lockkit_db::queue::{
    JobId, NewJob, SqliteOptions, SqliteStore, TransactionalStore as _, WritesHeld,
};
use lockkit_db::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use lockkit_db::sqlx::{self, ConnectOptions as _, Connection as _, SqliteConnection};
use lockkit_db::transaction::Tx;

use crate::Durability;
use crate::place::Place;
use crate::worker::PATIENCE;

/// A file, and what a commit to it survives.
pub(crate) struct File {
    path: PathBuf,
    durability: Durability,
}

impl File {
    pub(crate) fn new(path: &Path, durability: Durability) -> Self {
        let path = path.to_owned();
        Self { path, durability }
    }

    async fn reader(&self) -> sqlx::Result<SqliteConnection> {
        let options = SqliteConnectOptions::new().filename(&self.path);
        options.read_only(true).connect().await
    }
}

impl Place for File {
    type Store = SqliteStore;
    type Held<'a> = WritesHeld<'a>;
    const WHOLE: &'static str = "file";
    const CUTS: bool = false;
    const ONE_TRANSACTION: bool = true;

    async fn open(&self, _name: &str) -> anyhow::Result<SqliteStore> {
        let options = SqliteOptions::new(&self.path)
            .durability(self.durability.into())
            .patience(PATIENCE);
        Ok(SqliteStore::open_with(options).await?)
    }

    /// Heartbeats are held too: whoever is stopped in the middle of one has the file locked for all.
    async fn hold<'a>(
        &self,
        store: &'a SqliteStore,
        _worker: &str,
    ) -> anyhow::Result<WritesHeld<'a>> {
        Ok(store.hold_writes().await)
    }

    async fn lock(
        &self,
        store: &SqliteStore,
        queue: &str,
        jobs: &[NewJob],
        inside: impl FnOnce(Vec<JobId>),
    ) -> anyhow::Result<()> {
        let mut connection = SqliteConnectOptions::new()
            .filename(&self.path)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(PATIENCE)
            .connect()
            .await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let mut joined = Tx::join(&mut *transaction)?;
        inside(store.enqueue_in(&mut joined, queue, jobs).await?);
        transaction.commit().await?;
        connection.close().await?;
        Ok(())
    }

    async fn cut(&self, _names: &str) -> anyhow::Result<u64> {
        Ok(0)
    }

    async fn left(&self, queue: &str) -> anyhow::Result<u64> {
        let left = "SELECT count(*) FROM lockkit_job
            WHERE queue_id = (SELECT id FROM lockkit_queue WHERE name = ?1)";
        let left = sqlx::query_scalar::<_, i64>(left).bind(queue);
        Ok(left
            .fetch_one(&mut self.reader().await?)
            .await?
            .cast_unsigned())
    }

    async fn integrity(&self) -> anyhow::Result<Option<String>> {
        let sound = sqlx::query_scalar("PRAGMA integrity_check");
        Ok(Some(sound.fetch_one(&mut self.reader().await?).await?))
    }
}
