//! A store to test, with a clock that the test turns.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lockkit_db::Error;
use lockkit_db::queue::{
    Ack, JobStore, MemoryStore, PostgresOptions, PostgresStore, Session, SqliteOptions,
    SqliteStore, TransactionalStore,
};
use lockkit_db::sqlx::{
    self, Connection as _, PgConnection, PgPool, Pool, SqliteConnection, SqlitePool,
};
use lockkit_db::transaction::{Tx, TxOptions};
use tempfile::TempDir;

use crate::postgres::{Cluster, Database};

/// An empty store of its own, whose clock stands still until it is turned.
pub trait Bench: Send + Sync + 'static {
    /// The store under test.
    type Store: JobStore;

    /// The store.
    fn store(&self) -> &Arc<Self::Store>;

    /// Another handle on the same jobs, as another process would have it.
    fn second(&self) -> impl Future<Output = Arc<Self::Store>> + Send;

    /// Whether a claim always gets the most urgent of all the jobs that are ready. If not, it may overlook for a while
    /// what another process has made ready.
    fn is_strict(&self) -> bool {
        true
    }

    /// Turns the store's clock forward.
    fn advance(&self, by: Duration) -> impl Future<Output = ()> + Send;

    /// Acknowledges in a transaction, which is then committed or not. Nothing, where there are no transactions.
    fn ack_in(
        &self,
        session: &Session,
        ack: &Ack,
        commit: bool,
    ) -> impl Future<Output = Option<Result<(), Error>>> + Send {
        let _ = (session, ack, commit);
        async { None }
    }
}

/// The database of a bench whose store has one.
pub type DatabaseOf<B> = <<B as Bench>::Store as TransactionalStore>::Database;

/// A bench in whose database there are other tables, and transactions.
pub trait TransactionalBench: Bench<Store: TransactionalStore> {
    /// Connections to the database, of which some may be used at once.
    fn pool(&self) -> &Pool<DatabaseOf<Self>>;
}

async fn ack_in<B: TransactionalBench>(
    bench: &B,
    session: &Session,
    ack: &Ack,
    commit: bool,
) -> Result<(), Error> {
    let mut tx = Tx::begin(bench.pool(), &TxOptions::new()).await?;
    bench.store().ack_in(&mut tx, session, ack).await?;
    if commit {
        tx.commit().await?;
    } else {
        tx.rollback().await;
    }
    Ok(())
}

/// The store in memory.
pub struct MemoryBench(Arc<MemoryStore>);

/// The store on a SQLite file in a temporary folder.
pub struct SqliteBench {
    store: Arc<SqliteStore>,
    clock: tokio::sync::Mutex<SqliteConnection>,
    pool: SqlitePool,
    folder: TempDir,
}

/// The store in a PostgreSQL database of its own.
pub struct PostgresBench {
    store: Arc<PostgresStore>,
    clock: tokio::sync::Mutex<PgConnection>,
    pool: PgPool,
    database: Database,
    rescan: Duration,
    alone: bool,
}

impl MemoryBench {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(MemoryStore::new()))
    }
}

impl Default for MemoryBench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench for MemoryBench {
    type Store = MemoryStore;

    fn store(&self) -> &Arc<MemoryStore> {
        &self.0
    }

    async fn second(&self) -> Arc<MemoryStore> {
        Arc::clone(&self.0)
    }

    async fn advance(&self, by: Duration) {
        self.0.advance(by);
    }
}

impl SqliteBench {
    /// A new file, whose view of the time is replaced by a table with one row.
    ///
    /// # Panics
    /// If there is no room for a file.
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("jobs.db");
        let store = open(&folder).await;
        let url = format!("sqlite://{}", path.display());
        let mut clock = SqliteConnection::connect(&url)
            .await
            .expect("the file is there");
        let swap = "BEGIN IMMEDIATE;
             CREATE TABLE test_clock (ms INTEGER NOT NULL);
             INSERT INTO test_clock VALUES (0);
             DROP VIEW lockkit_now;
             CREATE VIEW lockkit_now AS SELECT ms FROM test_clock;
             COMMIT";
        sqlx::raw_sql(swap)
            .execute(&mut clock)
            .await
            .expect("the clock can be replaced");
        Self {
            store: Arc::new(store),
            clock: tokio::sync::Mutex::new(clock),
            pool: SqlitePool::connect_lazy(&url).expect("it is an address"),
            folder,
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("jobs.db")
    }
}

async fn open(folder: &TempDir) -> SqliteStore {
    let options = SqliteOptions::new(folder.path().join("jobs.db"));
    SqliteStore::open_with(options)
        .await
        .expect("a new file can be opened")
}

impl Bench for SqliteBench {
    type Store = SqliteStore;

    fn store(&self) -> &Arc<SqliteStore> {
        &self.store
    }

    async fn second(&self) -> Arc<SqliteStore> {
        Arc::new(open(&self.folder).await)
    }

    async fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).expect("a test's times are short");
        let mut clock = self.clock.lock().await;
        sqlx::query("UPDATE test_clock SET ms = ms + ?1")
            .bind(ms)
            .execute(&mut *clock)
            .await
            .expect("the clock can be turned");
    }

    async fn ack_in(
        &self,
        session: &Session,
        ack: &Ack,
        commit: bool,
    ) -> Option<Result<(), Error>> {
        Some(ack_in(self, session, ack, commit).await)
    }
}

impl TransactionalBench for SqliteBench {
    fn pool(&self) -> &SqlitePool {
        &self.pool
    }
}

impl PostgresBench {
    /// A new database, whose view of the time is replaced by a table with one row.
    ///
    /// # Panics
    /// If there is no server.
    pub async fn new() -> Self {
        Self::with_rescan(Duration::from_mins(1)).await
    }

    /// One whose claims always look from the start.
    ///
    /// # Panics
    /// If there is no server.
    pub async fn strict() -> Self {
        Self::with_rescan(Duration::ZERO).await
    }

    /// One of which there is one handle. Its claims do not look from the start again once one has, and nothing that
    /// happens is unknown to it.
    ///
    /// # Panics
    /// If there is no server.
    pub async fn alone() -> Self {
        let bench = Self::with_rescan(Duration::from_hours(1)).await;
        Self {
            alone: true,
            ..bench
        }
    }

    async fn with_rescan(rescan: Duration) -> Self {
        let database = Cluster::shared().database().await;
        let store = connect(&database, rescan).await;
        let mut clock = database.connect().await;
        let swap = "CREATE TABLE test_clock (ms bigint NOT NULL);
             INSERT INTO test_clock VALUES (0);
             CREATE OR REPLACE VIEW lockkit_now AS SELECT ms FROM test_clock";
        sqlx::raw_sql(swap)
            .execute(&mut clock)
            .await
            .expect("the clock can be replaced");
        Self {
            store: Arc::new(store),
            clock: tokio::sync::Mutex::new(clock),
            pool: database.pool(3),
            database,
            rescan,
            alone: false,
        }
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }
}

async fn connect(database: &Database, rescan: Duration) -> PostgresStore {
    let options = PostgresOptions::new(database.options()).rescan(rescan);
    PostgresStore::open_with(options)
        .await
        .expect("a new database can be used")
}

impl Bench for PostgresBench {
    type Store = PostgresStore;

    fn store(&self) -> &Arc<PostgresStore> {
        &self.store
    }

    async fn second(&self) -> Arc<PostgresStore> {
        if self.alone {
            return Arc::clone(&self.store);
        }
        Arc::new(connect(&self.database, self.rescan).await)
    }

    fn is_strict(&self) -> bool {
        self.alone || self.rescan.is_zero()
    }

    async fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).expect("a test's times are short");
        let mut clock = self.clock.lock().await;
        sqlx::query("UPDATE test_clock SET ms = ms + $1")
            .bind(ms)
            .execute(&mut *clock)
            .await
            .expect("the clock can be turned");
    }

    async fn ack_in(
        &self,
        session: &Session,
        ack: &Ack,
        commit: bool,
    ) -> Option<Result<(), Error>> {
        Some(ack_in(self, session, ack, commit).await)
    }
}

impl TransactionalBench for PostgresBench {
    fn pool(&self) -> &PgPool {
        &self.pool
    }
}
