//! Throwaway PostgreSQL: a server of the test process's own, and a database a test.
//!
//! [`Cluster::shared`] makes one server for the process, in a temporary folder, reached through a
//! Unix socket in that folder: no port, so nothing to collide with. It takes well under a second. A
//! database of its own for each test also separates what PostgreSQL counts by database: advisory
//! locks, and the rows of its views that [`Database::name`] selects.
//!
//! **No orphans.** When the test process ends, in whichever way, the server is stopped, which gives its
//! shared memory back, and the folder removed.
//!
//! **Root.** PostgreSQL refuses to run as root, so warden and server then run as the user
//! `postgres`, which Debian's package makes, or else as `nobody`.
//!
//! With `LOCKKIT_TEST_POSTGRES=postgres://user:password@host/postgres` the shared cluster is that
//! server instead; its user must be allowed to create databases. A test process that is killed leaves
//! its databases behind there; their names begin with `lockkit_test_`.

mod proxy;

use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, fs, process, thread};

use rustix::process::geteuid;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Executor as _};

use crate::warden::{Kept, ServerFailed, Warden};

pub use proxy::{Cut, Proxy};

/// The variable that names a server to use.
pub const SERVER: &str = "LOCKKIT_TEST_POSTGRES";

/// How to set a cluster up.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    fsync: bool,
    parameters: Vec<String>,
}

/// A running server.
#[derive(Debug)]
pub struct Cluster {
    options: PgConnectOptions,
    /// `None` when the server is not ours.
    own: Option<Warden>,
}

/// A database, empty when it was made.
#[derive(Debug)]
pub struct Database {
    name: String,
    options: PgConnectOptions,
    /// Set when the server outlives this process: how to reach it to drop the database.
    drop_by: Option<PgConnectOptions>,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// A program is missing.
    #[error(
        "PostgreSQL is not installed: no {program} in PATH or in /usr/lib/postgresql/*/bin; type \
         `apt-get install -y --no-install-recommends postgresql`, or name a server in {SERVER}"
    )]
    Missing {
        /// Its name.
        program: &'static str,
    },
    /// A program failed, or did not get ready in time.
    #[error(transparent)]
    Failed(#[from] ServerFailed),
    /// The address of a server cannot be read, or it cannot be reached.
    #[error("the server cannot be used")]
    Server(#[from] sqlx::Error),
    /// The system's own.
    #[error("a system call about the server failed")]
    Io(#[from] io::Error),
}

// === impl Settings ===

impl Settings {
    /// Nothing is forced to the disk: fast, and good for all that does not crash the machine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether commits reach the disk, for tests that crash the server.
    #[must_use]
    pub fn fsync(mut self, fsync: bool) -> Self {
        self.fsync = fsync;
        self
    }

    /// One more server parameter, such as `("deadlock_timeout", "50ms")`.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: &str) -> Self {
        self.parameters.push(format!("{name}={value}"));
        self
    }
}

// === impl Cluster ===

impl Cluster {
    /// The process's shared server, started by the first who asks. Blocks meanwhile.
    ///
    /// # Panics
    ///
    /// When there is no server to be had; the message says what to install.
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Cluster> = LazyLock::new(|| {
            let cluster = match env::var(SERVER) {
                Ok(address) => Cluster::at(&address),
                Err(_) => Cluster::start(&Settings::new()),
            };
            cluster.unwrap_or_else(|error| panic!("{}", chain(&error)))
        });
        &SHARED
    }

    /// A server that is there already.
    fn at(address: &str) -> Result<Self, PostgresError> {
        let options: PgConnectOptions = address.parse()?;
        Ok(Self {
            options: options.disable_statement_logging(),
            own: None,
        })
    }

    /// A server of one's own, stopped and removed when it is dropped. Blocks until it is ready.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Missing`] says what to install; [`PostgresError::Failed`] what the server said.
    pub fn start(settings: &Settings) -> Result<Self, PostgresError> {
        let (initdb, postgres) = (program("initdb")?, program("postgres")?);
        let user = Unprivileged::needed()?;
        // Not in TMPDIR, whose name may be too long for the name of a socket.
        let folder = tempfile::Builder::new()
            .prefix("lockkit-postgres-")
            .tempdir_in("/tmp")?;
        if let Some(user) = &user {
            chown(folder.path(), Some(user.uid), Some(user.gid))?;
        }
        let data = folder.path().join("data");
        make(&initdb, &data, user.as_ref())?;

        let on = if settings.fsync { "on" } else { "off" };
        let mut parameters = vec![
            format!("fsync={on}"),
            format!("full_page_writes={on}"),
            format!("unix_socket_directories={}", folder.path().display()),
            "listen_addresses=".to_owned(),
            "max_connections=200".to_owned(),
            "shared_buffers=32MB".to_owned(),
            // What a test waits for in a deadlock.
            "deadlock_timeout=100ms".to_owned(),
        ];
        parameters.extend(settings.parameters.iter().cloned());
        let mut server = vec![
            postgres.into_os_string(),
            "-D".into(),
            data.into_os_string(),
        ];
        for parameter in parameters {
            server.extend(["-c".into(), parameter.into()]);
        }
        let own = Warden::new(Kept {
            name: "PostgreSQL",
            folder,
            shell: as_user("sh", user.as_ref()),
            server,
            // Of a standby, which has a signal for that in its folder, it is read-only connections.
            ready: "database system is ready to accept",
            last: "QUIT",
        })?;
        let options = PgConnectOptions::new_without_pgpass()
            .socket(own.folder())
            .username("postgres")
            .database("postgres")
            .disable_statement_logging();
        own.start()?;
        Ok(Self {
            options,
            own: Some(own),
        })
    }

    /// Ends the server and its sessions at once, as a crash does, and starts it again: it then recovers
    /// from its log. Blocks until it is ready.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Failed`] when it does not come back.
    ///
    /// # Panics
    ///
    /// When the server is not this process's own.
    pub fn crash(&self) -> Result<(), PostgresError> {
        self.again("QUIT")
    }

    /// Shuts the server down, which ends its sessions and writes a checkpoint, and starts it again. Blocks until it
    /// is ready.
    ///
    /// # Errors
    ///
    /// As [`crash`](Self::crash).
    ///
    /// # Panics
    ///
    /// As [`crash`](Self::crash).
    pub fn restart(&self) -> Result<(), PostgresError> {
        self.again("INT")
    }

    /// Ends the server and its sessions at once, as a crash does, and leaves it down until [`resume`](Self::resume).
    /// Blocks until it has ended.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Failed`] when it does not end.
    ///
    /// # Panics
    ///
    /// As [`crash`](Self::crash).
    pub fn halt(&self) -> Result<(), PostgresError> {
        Ok(self.own().end("QUIT")?)
    }

    /// Starts a server again that is down. Blocks until it is ready.
    ///
    /// # Errors
    ///
    /// As [`crash`](Self::crash).
    ///
    /// # Panics
    ///
    /// As [`crash`](Self::crash).
    pub fn resume(&self) -> Result<(), PostgresError> {
        Ok(self.own().start()?)
    }

    fn own(&self) -> &Warden {
        self.own.as_ref().expect("a server of one's own")
    }

    fn again(&self, signal: &str) -> Result<(), PostgresError> {
        self.own().end(signal)?;
        Ok(self.own().start()?)
    }

    /// The folder with the server's socket, or `None` when it is not this process's own.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.own.as_ref().map(Warden::folder)
    }

    /// A database that nobody else uses.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn database(&self) -> Database {
        // Ordering: Relaxed, the number only has to be another each time.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lockkit_test_{}_{number}", process::id());
        let mut admin = self.options.connect().await.unwrap_or_else(|error| {
            panic!("the test's PostgreSQL cannot be reached: {}", chain(&error))
        });
        let create = format!("CREATE DATABASE {name} TEMPLATE template0");
        admin
            .execute(AssertSqlSafe(create))
            .await
            .unwrap_or_else(|error| panic!("{name} cannot be made: {}", chain(&error)));
        let _ = admin.close().await;
        Database {
            options: self.options.clone().database(&name),
            name,
            drop_by: self.own.is_none().then(|| self.options.clone()),
        }
    }
}

// === impl Database ===

impl Database {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How to connect to it. Statements are not logged.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// How to connect to it, for a program of its own.
    #[must_use]
    pub fn url(&self) -> String {
        self.options.to_url_lossy().into()
    }

    /// A connection to it.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn connect(&self) -> PgConnection {
        let connected = self.options.connect().await;
        connected.unwrap_or_else(|error| panic!("{}: {}", self.name, chain(&error)))
    }

    /// A pool of at most so many connections, none of them open yet.
    #[must_use]
    pub fn pool(&self, connections: u32) -> PgPool {
        PgPoolOptions::new()
            .max_connections(connections)
            .connect_lazy_with(self.options())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(options) = self.drop_by.take() else {
            return;
        };
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // A thread, since a test's own runtime cannot be blocked on from inside.
        let dropping = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut admin = options.connect().await?;
                admin.execute(AssertSqlSafe(statement)).await.map(drop)
            })
        });
        if let Ok(Err(error)) = dropping.join() {
            eprintln!("{} is left behind: {error}", self.name);
        }
    }
}

// === programs and users ===

/// Makes the cluster's files.
fn make(initdb: &Path, data: &Path, user: Option<&Unprivileged>) -> Result<(), PostgresError> {
    let output = as_user(initdb, user)
        .arg("-D")
        .arg(data)
        .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"])
        .args(["--no-sync", "--no-instructions"])
        .current_dir("/")
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let failed = ServerFailed {
        what: format!("initdb failed ({})", output.status),
        said: String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
    };
    Err(failed.into())
}

/// Where a program is: in `PATH`, or where Debian puts PostgreSQL's, the newest release first.
fn program(name: &'static str) -> Result<PathBuf, PostgresError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut releases: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let release = entry.file_name().to_str()?.parse().ok()?;
            Some((release, entry.path().join("bin")))
        })
        .collect();
    releases.sort();
    env::split_paths(&path)
        .chain(releases.into_iter().rev().map(|(_, folder)| folder))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .ok_or(PostgresError::Missing { program: name })
}

/// The user that the server runs as when the test itself is root.
struct Unprivileged {
    uid: u32,
    gid: u32,
}

impl Unprivileged {
    fn needed() -> Result<Option<Self>, PostgresError> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd")?;
        let of = |name: &str| {
            let line = users
                .lines()
                .find(|line| line.split(':').next() == Some(name))?;
            let mut numbers = line.split(':').skip(2).map(str::parse);
            Some(Self {
                uid: numbers.next()?.ok()?,
                gid: numbers.next()?.ok()?,
            })
        };
        of("postgres")
            .or_else(|| of("nobody"))
            .map(Some)
            .ok_or_else(|| io::Error::other("neither a user postgres nor nobody").into())
    }
}

fn as_user(program: impl AsRef<std::ffi::OsStr>, user: Option<&Unprivileged>) -> Command {
    let Some(user) = user else {
        return Command::new(program);
    };
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={}", user.uid))
        .arg(format!("--regid={}", user.gid))
        .args(["--clear-groups", "--"])
        .arg(program);
    command
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
