//! The PostgreSQL server of the experiments: the one of `--db`, or a throwaway one.

use std::time::Duration;

use anyhow::Context as _;
use lockkit_db::sqlx::postgres::PgConnectOptions;
use lockkit_db::sqlx::{self, AssertSqlSafe, ConnectOptions as _, PgConnection};
use lockkit_test::postgres::{Cluster, Database, PostgresError, Settings};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::timeout;

/// To reach a server. One that does not answer in that time is not there.
const CONNECT: Duration = Duration::from_secs(10);

/// A server, and a schema of this run's own in one of its databases, so that what is there already is left alone.
pub(crate) struct Server {
    connect: PgConnectOptions,
    schema: String,
    /// In this order they are dropped.
    _throwaway: Option<(Database, Cluster)>,
}

/// A way to the server that can be closed and opened again.
pub(crate) struct Bridge {
    folder: TempDir,
    server: PgConnectOptions,
    open: Option<JoinHandle<()>>,
}

impl Server {
    /// The server with this address, or a new one that ends with this process.
    pub(crate) async fn new(address: Option<&str>) -> anyhow::Result<Self> {
        let schema = format!("lockkit_lab_{}", std::process::id());
        let (connect, throwaway) = if let Some(address) = address {
            // The parser's own error may repeat what it was given, with the password.
            let connect = address.parse();
            let connect = connect
                .map_err(|_| anyhow::anyhow!("--db is not the address of a PostgreSQL database"))?;
            (connect, None)
        } else {
            let started = spawn_blocking(|| Cluster::start(&Settings::new().fsync(true))).await?;
            let cluster = started.map_err(|error| match error {
                PostgresError::Missing { program } => anyhow::anyhow!(
                    "there is no {program}; type `apt-get install -y --no-install-recommends postgresql`, or name \
                     a server of yours by --db postgres://user@host/database"
                ),
                error => error.into(),
            })?;
            let database = cluster.database().await;
            (database.options(), Some((database, cluster)))
        };
        let server = Self {
            connect,
            schema,
            _throwaway: throwaway,
        };
        let make = format!("CREATE SCHEMA {}", server.schema);
        sqlx::raw_sql(AssertSqlSafe(make))
            .execute(&mut server.connect().await?)
            .await
            .context("--db: a schema cannot be made there")?;
        Ok(server)
    }

    /// A connection of the lab's own.
    pub(crate) async fn connect(&self) -> anyhow::Result<PgConnection> {
        let options = self
            .connect
            .clone()
            .options([("search_path", &self.schema)]);
        let connected = timeout(CONNECT, options.connect()).await;
        let connected = connected.with_context(|| format!("--db: no answer within {CONNECT:?}"))?;
        connected.context("--db: the database cannot be used")
    }

    /// How the app processes reach it.
    pub(crate) fn url(&self) -> String {
        self.within(&self.connect)
    }

    /// The same through a bridge.
    pub(crate) fn url_over(&self, bridge: &Bridge) -> String {
        self.within(&self.connect.clone().socket(bridge.folder.path()).port(5432))
    }

    fn within(&self, options: &PgConnectOptions) -> String {
        let mut url = options.to_url_lossy();
        url.query_pairs_mut()
            .append_pair("options[search_path]", &self.schema);
        url.into()
    }

    pub(crate) fn bridge(&self) -> anyhow::Result<Bridge> {
        // Not in TMPDIR, whose name may be too long for the name of a socket.
        let folder = tempfile::Builder::new()
            .prefix("lockkit-lab-")
            .tempdir_in("/tmp")?;
        let mut bridge = Bridge {
            folder,
            server: self.connect.clone(),
            open: None,
        };
        bridge.open()?;
        Ok(bridge)
    }

    /// Takes the schema away.
    pub(crate) async fn clear(&self) -> anyhow::Result<()> {
        let drop = format!(
            "SET lock_timeout = '10s'; DROP SCHEMA {} CASCADE",
            self.schema
        );
        sqlx::raw_sql(AssertSqlSafe(drop))
            .execute(&mut self.connect().await?)
            .await?;
        Ok(())
    }
}

impl Bridge {
    pub(crate) fn open(&mut self) -> anyhow::Result<()> {
        let listener = UnixListener::bind(self.folder.path().join(".s.PGSQL.5432"))?;
        let server = self.server.clone();
        self.open = Some(tokio::spawn(async move {
            // Dropped with this task, and every connection with it.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = server.clone();
                connections.spawn(async move { pass(client, &server).await });
                while connections.try_join_next().is_some() {}
            }
        }));
        Ok(())
    }

    /// Ends all connections; nobody gets a new one.
    pub(crate) async fn close(&mut self) -> anyhow::Result<()> {
        if let Some(open) = self.open.take() {
            open.abort();
            let _ = open.await;
            std::fs::remove_file(self.folder.path().join(".s.PGSQL.5432"))?;
        }
        Ok(())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            open.abort();
        }
    }
}

async fn pass(mut client: UnixStream, server: &PgConnectOptions) -> std::io::Result<()> {
    let socket = format!(".s.PGSQL.{}", server.get_port());
    // As libpq does: a host that begins with a slash is the folder of a socket.
    let folder = server.get_socket().cloned().or_else(|| {
        let host = server.get_host();
        host.starts_with('/').then(|| host.into())
    });
    if let Some(folder) = folder {
        let mut server = UnixStream::connect(folder.join(socket)).await?;
        copy_bidirectional(&mut client, &mut server).await?;
    } else {
        let mut server = TcpStream::connect((server.get_host(), server.get_port())).await?;
        copy_bidirectional(&mut client, &mut server).await?;
    }
    Ok(())
}
