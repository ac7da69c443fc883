//! The server with the databases: one that is started for this run and crashed in the middle of it, or one that is there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use lockkit_test::postgres::{Cluster, PostgresError, Settings};
use parking_lot::Mutex;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// How to connect to an address. The parser's own error may repeat what it was given, with the password.
pub(crate) fn connect_options(address: &str) -> anyhow::Result<PgConnectOptions> {
    let known = ["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| address.starts_with(scheme));
    let options: Option<PgConnectOptions> = known.then(|| address.parse().ok()).flatten();
    let options = options.context("--db is not the address of a PostgreSQL database")?;
    Ok(options.disable_statement_logging())
}

/// A server, and the databases that were made there.
pub(crate) struct Place {
    admin: PgConnectOptions,
    /// `None`: it is somebody else's.
    own: Option<Arc<Cluster>>,
    made: Mutex<Vec<String>>,
}

impl Place {
    /// The server of that address, or one that lives as long as this.
    pub(crate) async fn find(db: Option<&str>) -> anyhow::Result<Self> {
        let made = Mutex::default();
        if let Some(db) = db {
            let admin = connect_options(db)?;
            let own = None;
            return Ok(Self { admin, own, made });
        }
        // What is acknowledged is on the disk: this server is going to crash.
        let started = spawn_blocking(|| Cluster::start(&Settings::new().fsync(true))).await?;
        let own = match started {
            Ok(own) => Arc::new(own),
            Err(PostgresError::Missing { program }) => bail!(
                "PostgreSQL is not installed ({program} is missing): type `apt-get install -y \
                 --no-install-recommends postgresql`, or name a server with --db postgres://user@host/database"
            ),
            Err(error) => return Err(error.into()),
        };
        let folder = own.folder().map(PathBuf::from).unwrap_or_default();
        let admin = PgConnectOptions::new_without_pgpass()
            .socket(folder)
            .username("postgres")
            .database("postgres")
            .disable_statement_logging();
        let own = Some(own);
        Ok(Self { admin, own, made })
    }

    /// Whether its outages are crashes.
    pub(crate) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// A new database, empty. On somebody else's server it is there until [`clear`](Self::clear).
    pub(crate) async fn create(&self, what: &str) -> anyhow::Result<PgConnectOptions> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
        let name = format!("sessions_{}_{now}_{what}", std::process::id());
        self.made.lock().push(name.clone());
        let create = self
            .run(&format!("CREATE DATABASE {name} TEMPLATE template0"))
            .await;
        create.context("no database can be made on that server")?;
        Ok(self.admin.clone().database(&name))
    }

    /// Takes the database away from all who use it: the server crashes, or if it is somebody else's, it lets nobody
    /// into this database.
    pub(crate) async fn down(&self, database: &PgConnectOptions) -> anyhow::Result<()> {
        if let Some(own) = self.own.clone() {
            return Ok(spawn_blocking(move || own.halt()).await??);
        }
        let name = database.get_database().unwrap_or_default();
        self.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
            .await?;
        // Whoever was just being let in is seen a moment later.
        let mut alone = 0;
        while alone < 3 {
            alone = if self.end_sessions(name).await? == 0 {
                alone + 1
            } else {
                0
            };
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Ends the sessions of a database; how many there were.
    async fn end_sessions(&self, database: &str) -> anyhow::Result<i64> {
        let mut admin = self.admin.connect().await?;
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = $1 AND backend_type = 'client backend'";
        let ended = sqlx::query_scalar(end)
            .bind(database)
            .fetch_one(&mut admin)
            .await?;
        admin.close().await?;
        Ok(ended)
    }

    /// Gives it back.
    pub(crate) async fn up(&self, database: &PgConnectOptions) -> anyhow::Result<()> {
        if let Some(own) = self.own.clone() {
            return Ok(spawn_blocking(move || own.resume()).await??);
        }
        let name = database.get_database().unwrap_or_default();
        self.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
            .await
    }

    /// Leaves nothing behind on somebody else's server.
    pub(crate) async fn clear(&self) -> anyhow::Result<()> {
        let made = std::mem::take(&mut *self.made.lock());
        if self.own.is_none() {
            for name in made {
                self.run(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
                    .await?;
            }
        }
        Ok(())
    }

    /// The names in it are made here.
    async fn run(&self, statement: &str) -> anyhow::Result<()> {
        let mut admin = self.admin.connect().await?;
        admin.execute(AssertSqlSafe(statement.to_owned())).await?;
        Ok(admin.close().await?)
    }
}
