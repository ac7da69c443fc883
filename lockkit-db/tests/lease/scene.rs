//! Stores in databases of their own, and who asks for their locks.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use lockkit_core::Fence;
use lockkit_db::Error;
use lockkit_db::lease::{
    AcquireSpec, Acquired, ExtendSpec, Key, LeaseStore, PostgresStore, SqliteStore, StoreError,
    Token, Ttl,
};
use lockkit_db::lease::{PostgresOptions, SqliteOptions};
use lockkit_db::queue;
use lockkit_db::sqlx::{
    self, AssertSqlSafe, Connection as _, PgPool, Pool, Postgres, Sqlite, SqliteConnection,
    SqlitePool,
};
use lockkit_db::transaction::Backend;
use lockkit_test::postgres::{Cluster, Database};
use tempfile::TempDir;

/// Where the turned clocks begin.
const BEGIN: i64 = 1_000_000;

/// A database of a test's own.
pub(crate) trait Ground: Sized {
    type Database: Backend;
    type Store: LeaseStore + Debug;

    async fn new() -> Self;

    /// A store like that of another process.
    async fn open(&self) -> Result<Self::Store, Error>;

    async fn store(&self) -> Self::Store {
        self.open().await.unwrap()
    }

    /// Opens the store of the queue in the same database.
    async fn queue(&self) -> Result<(), Error>;

    /// How a worker process gets there.
    fn address(&self) -> String;

    fn pool(&self) -> Pool<Self::Database>;

    /// Runs statements as somebody else.
    async fn run(&self, sql: &str);

    async fn forget(store: &Self::Store, unused_for: Duration) -> Result<u64, Error>;

    /// Puts the clock into a table, where it stands still until it is turned.
    async fn stop_clock(&self);

    async fn turn_clock(&self, by: Duration) {
        let turn = format!("UPDATE test_clock SET us = us + {}", by.as_micros());
        self.run(&turn).await;
    }
}

/// A file in a folder of its own.
pub(crate) struct File {
    folder: TempDir,
}

impl File {
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("locks.db")
    }

    pub(crate) async fn connect(&self) -> SqliteConnection {
        SqliteConnection::connect(&self.url()).await.unwrap()
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.path().display())
    }
}

impl Ground for File {
    type Database = Sqlite;
    type Store = SqliteStore;

    async fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    async fn open(&self) -> Result<SqliteStore, Error> {
        // A commit may have to wait for the disk of a busy machine.
        let options = SqliteOptions::new(self.path()).patience(Duration::from_secs(30));
        SqliteStore::open_with(options).await
    }

    async fn queue(&self) -> Result<(), Error> {
        queue::SqliteStore::open(self.path()).await.map(drop)
    }

    fn address(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    fn pool(&self) -> SqlitePool {
        SqlitePool::connect_lazy(&self.url()).unwrap()
    }

    async fn run(&self, sql: &str) {
        let mut connection = self.connect().await;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
    }

    async fn forget(store: &SqliteStore, unused_for: Duration) -> Result<u64, Error> {
        store.forget_unused(unused_for).await
    }

    async fn stop_clock(&self) {
        let swap = format!(
            "BEGIN IMMEDIATE;
             CREATE TABLE test_clock (us INTEGER NOT NULL);
             INSERT INTO test_clock VALUES ({BEGIN});
             DROP VIEW lockkit_lease_now;
             CREATE VIEW lockkit_lease_now AS SELECT us FROM test_clock;
             COMMIT"
        );
        self.run(&swap).await;
    }
}

impl Ground for Database {
    type Database = Postgres;
    type Store = PostgresStore;

    async fn new() -> Self {
        Cluster::shared().database().await
    }

    async fn open(&self) -> Result<PostgresStore, Error> {
        // What was dropped is then on its way for less time than it takes to open another connection.
        PostgresStore::open_with(patient(self).connections(1)).await
    }

    async fn queue(&self) -> Result<(), Error> {
        let options = queue::PostgresOptions::new(self.options());
        queue::PostgresStore::open_with(options).await.map(drop)
    }

    fn address(&self) -> String {
        self.url()
    }

    fn pool(&self) -> PgPool {
        Database::pool(self, 2)
    }

    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut self.connect().await)
            .await
            .unwrap();
    }

    async fn forget(store: &PostgresStore, unused_for: Duration) -> Result<u64, Error> {
        store.forget_unused(unused_for).await
    }

    async fn stop_clock(&self) {
        let swap = format!(
            "CREATE TABLE test_clock (us bigint NOT NULL);
             INSERT INTO test_clock VALUES ({BEGIN});
             CREATE OR REPLACE VIEW lockkit_lease_now AS SELECT us FROM test_clock"
        );
        self.run(&swap).await;
    }
}

/// For a busy machine.
pub(crate) fn patient(database: &Database) -> PostgresOptions {
    PostgresOptions::new(database.options()).patience(Duration::from_secs(30))
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// One who asks for a lock, for an hour.
pub(crate) fn ask(name: &str) -> AcquireSpec {
    let ttl = Ttl::new(Duration::from_hours(1)).unwrap();
    AcquireSpec::new(key(name), Token::new(), ttl)
}

pub(crate) fn extension(spec: &AcquireSpec) -> ExtendSpec {
    ExtendSpec::new(spec.key.clone(), spec.token, spec.ttl)
}

#[track_caller]
pub(crate) fn granted(answer: Result<Acquired, StoreError>) -> Fence {
    match answer {
        Ok(Acquired::Granted { fence }) => fence,
        other => panic!("it was not granted: {other:?}"),
    }
}

/// The fence of whoever has the lock instead.
#[track_caller]
pub(crate) fn busy(answer: Result<Acquired, StoreError>) -> Fence {
    match answer {
        Ok(Acquired::Busy { holder, .. }) => holder.fence,
        other => panic!("it is not held: {other:?}"),
    }
}

/// Makes a test of each case on each database.
macro_rules! on_both {
    ($($case:ident)+) => {
        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case::<crate::scene::File>().await;
                }
            )+
        }
        mod on_postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case::<lockkit_test::postgres::Database>().await;
                }
            )+
        }
    };
}
pub(crate) use on_both;
