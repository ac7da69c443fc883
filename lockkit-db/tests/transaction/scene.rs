//! A database with one table, on either engine, and a look at what is left open in it.

use std::time::Duration;

use lockkit_db::sqlx::postgres::PgConnection;
use lockkit_db::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use lockkit_db::sqlx::{
    self, ConnectOptions as _, Connection as _, Executor as _, PgPool, SqlitePool,
};
use lockkit_test::postgres::{Cluster, Database};
use tempfile::TempDir;

/// A table `t (id, n)` with the rows (1, 0), (2, 0), and (3, 0).
const TABLE: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, n BIGINT NOT NULL);
     INSERT INTO t VALUES (1, 0), (2, 0), (3, 0)";

pub(crate) struct Postgres {
    pub(crate) database: Database,
    pub(crate) pool: PgPool,
}

pub(crate) struct Sqlite {
    pub(crate) pool: SqlitePool,
    folder: TempDir,
}

impl Postgres {
    pub(crate) async fn new(connections: u32) -> Self {
        let database = Cluster::shared().database().await;
        database.connect().await.execute(TABLE).await.unwrap();
        Self {
            pool: database.pool(connections),
            database,
        }
    }

    pub(crate) async fn n(&self, id: i32) -> i64 {
        sqlx::query_scalar("SELECT n FROM t WHERE id = $1")
            .bind(id)
            .fetch_one(&mut self.database.connect().await)
            .await
            .unwrap()
    }

    /// Nothing is open in any session of the database, and no lock is held: now, or as soon as the server
    /// has seen that a connection was closed, or is done with what it does by itself.
    pub(crate) async fn is_quiet(&self) {
        let mut look = self.database.connect().await;
        let mut left = (0, 0);
        let quiet = async {
            loop {
                // What a serializable transaction has read is kept track of after its end, for as long as any other
                // one of the server's lasts, and holds nobody up.
                left = sqlx::query_as(
                    "SELECT (SELECT count(*) FROM pg_stat_activity \
                             WHERE datname = current_database() AND pid <> pg_backend_pid() \
                               AND state <> 'idle'), \
                            (SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
                             WHERE d.datname = current_database() AND pid <> pg_backend_pid() \
                               AND mode <> 'SIReadLock')",
                )
                .fetch_one(&mut look)
                .await
                .unwrap();
                if left == (0_i64, 0_i64) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_mins(1), quiet).await;
        assert!(
            ended.is_ok(),
            "sessions in a transaction and locks stay: {left:?}"
        );
    }

    /// Every connection of the pool is as it was made: outside of a transaction, with its own settings.
    // Mutant: B162
    pub(crate) async fn is_clean(&self) {
        self.is_quiet().await;
        let new = settings(&mut self.database.connect().await).await;
        let mut all = Vec::new();
        for _ in 0..self.pool.options().get_max_connections() {
            let mut connection = self.pool.acquire().await.unwrap();
            let outside = connection.execute("SAVEPOINT probe").await.unwrap_err();
            let code = outside.as_database_error().unwrap().code();
            assert_eq!(code.as_deref(), Some("25P01"), "it was in a transaction");
            for (setting, value) in [
                ("lock_timeout", "0"),
                ("statement_timeout", "0"),
                ("transaction_isolation", "read committed"),
                ("transaction_read_only", "off"),
            ] {
                let shown: String = sqlx::query_scalar("SELECT current_setting($1)")
                    .bind(setting)
                    .fetch_one(&mut *connection)
                    .await
                    .unwrap();
                assert_eq!(shown, value, "{setting}");
            }
            assert_eq!(settings(&mut connection).await, new, "some other setting");
            all.push(connection);
        }
    }
}

/// All settings of a session, in one, without those of extensions, which are there only once they were used.
async fn settings(session: &mut PgConnection) -> String {
    sqlx::query_scalar(
        "SELECT md5(string_agg(name || '=' || setting, ',' ORDER BY name)) FROM pg_settings \
         WHERE name NOT LIKE '%.%'",
    )
    .fetch_one(session)
    .await
    .unwrap()
}

impl Sqlite {
    pub(crate) async fn new(connections: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(folder.path().join("t.db"))
            .create_if_missing(true)
            .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
            .busy_timeout(Duration::from_secs(5))
            .disable_statement_logging();
        let mut maker = options.connect().await.unwrap();
        maker.execute(TABLE).await.unwrap();
        // Closed for certain: the last one to leave locks the file for a moment.
        maker.close().await.unwrap();
        Self {
            pool: SqlitePoolOptions::new()
                .max_connections(connections)
                .connect_lazy_with(options),
            folder,
        }
    }

    pub(crate) fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(self.folder.path().join("t.db"))
            .disable_statement_logging()
    }

    pub(crate) async fn n(&self, id: i32) -> i64 {
        sqlx::query_scalar("SELECT n FROM t WHERE id = $1")
            .bind(id)
            .fetch_one(&mut self.options().connect().await.unwrap())
            .await
            .unwrap()
    }

    /// Somebody else can write.
    pub(crate) async fn is_quiet(&self) {
        self.options()
            .busy_timeout(Duration::from_secs(20))
            .connect()
            .await
            .unwrap()
            .execute("BEGIN IMMEDIATE; ROLLBACK")
            .await
            .unwrap();
    }

    /// As on PostgreSQL.
    pub(crate) async fn is_clean(&self) {
        self.is_quiet().await;
        let mut all = Vec::new();
        for _ in 0..self.pool.options().get_max_connections() {
            let mut connection = self.pool.acquire().await.unwrap();
            connection
                .execute("BEGIN IMMEDIATE; ROLLBACK")
                .await
                .expect("it was in a transaction");
            let settings: (i64, i64, i64, i64, i64, String) = sqlx::query_as(
                "SELECT (SELECT timeout FROM pragma_busy_timeout), \
                        (SELECT query_only FROM pragma_query_only), \
                        (SELECT foreign_keys FROM pragma_foreign_keys), \
                        (SELECT synchronous FROM pragma_synchronous), \
                        (SELECT read_uncommitted FROM pragma_read_uncommitted), \
                        (SELECT journal_mode FROM pragma_journal_mode)",
            )
            .fetch_one(&mut *connection)
            .await
            .unwrap();
            assert_eq!(settings, (5000, 0, 1, 2, 0, "wal".to_owned()));
            all.push(connection);
        }
    }
}

/// Makes a module with a test for each engine: `scene` is a new [`Postgres`], or [`Sqlite`].
macro_rules! on_both {
    ($(#[$about:meta])* async fn $name:ident($scene:ident: $connections:literal) $body:block) => {
        $(#[$about])*
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                let $scene = crate::scene::Postgres::new($connections).await;
                $body
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                let $scene = crate::scene::Sqlite::new($connections).await;
                $body
            }
        }
    };
}
pub(crate) use on_both;
