//! Throwaway PostgreSQL: a server of the test process's own, and a database a test.
//!
//! [`Cluster::shared`] makes one server for the process, in a temporary folder, reached through a
//! Unix socket in that folder: no port, so nothing to collide with. It takes well under a second. A
//! database of its own for each test also separates what PostgreSQL counts by database: advisory
//! locks, and the rows of its views that [`Database::name`] selects.
//!
//! **No orphans.** Beside the server runs a shell, the warden, that waits for the end of its
//! standard input. When the test process ends, in whichever way, the kernel closes that pipe; the
//! warden then stops the server, which gives its shared memory back, and removes the folder.
//!
//! **Root.** PostgreSQL refuses to run as root, so warden and server then run as the user
//! `postgres`, which Debian's package makes, or else as `nobody`.
//!
//! With `LOCKKIT_TEST_POSTGRES=postgres://user:password@host/postgres` the shared cluster is that
//! server instead; its user must be allowed to create databases. A test process that is killed leaves
//! its databases behind there; their names begin with `lockkit_test_`.

mod proxy;

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, mpsc};
use std::time::Duration;
use std::{env, fs, process, thread};

use parking_lot::Mutex;
use rustix::process::geteuid;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Executor as _};

pub use proxy::{Cut, Proxy};

/// The variable that names a server to use.
pub const SERVER: &str = "LOCKKIT_TEST_POSTGRES";

/// For a server to start or stop. Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_mins(1);

/// The log's last lines, for errors.
const LOG_LINES: usize = 50;

/// Reads words from its standard input until it ends: `start`, `shut`, which is how a server ends that is to be
/// started again, and `stop`, which is a crash: at once, and without a checkpoint. Passes on what the server says, and says `lockkit: down` each time that it
/// and all its sessions have ended, of their own accord too.
const WARDEN: &str = r#"
folder=$1; shift
pid=
# Nobody may be left to read what it says.
trap '' PIPE
exec 2>/dev/null
stop() {
    [ -n "$pid" ] || return
    kill -"$1" "$pid"; wait "$pid"; pid=
}
mkfifo "$folder/log"
while read -r word; do
    case $word in
    start)
        { cat "$folder/log"; echo "lockkit: down"; } &
        setpriv --pdeathsig QUIT -- "$@" >"$folder/log" 2>&1 & pid=$! ;;
    shut) stop INT ;;
    stop) stop QUIT ;;
    esac
done
stop QUIT
rm -rf "$folder"
"#;

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
    own: Option<Own>,
}

/// A server that this process has started.
#[derive(Debug)]
struct Own {
    folder: PathBuf,
    /// Its end is what the warden waits for.
    words: Mutex<ChildStdin>,
    news: Mutex<mpsc::Receiver<News>>,
    log: Log,
}

type Log = Arc<Mutex<VecDeque<String>>>;

/// What the log told.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Ready,
    Down,
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
    #[error("{what}; it said:\n{said}")]
    Failed {
        /// What happened.
        what: String,
        /// The last lines of its output.
        said: String,
    },
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
        let mut warden = as_user("sh", user.as_ref());
        warden
            .args(["-c", WARDEN, "warden"])
            .arg(folder.path())
            .arg(&postgres)
            .arg("-D")
            .arg(&data)
            .args(parameters.iter().flat_map(|parameter| ["-c", parameter]));
        // A group of its own, so that Ctrl-C is the test's and the warden does its work after it.
        let mut child = warden
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (Some(words), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are piped");
        };
        // From here on the folder is the warden's to remove.
        let folder = folder.keep();
        let (sender, news) = mpsc::channel();
        let log = Log::default();
        let lines = Arc::clone(&log);
        thread::Builder::new()
            .name("postgres-log".to_owned())
            .spawn(move || {
                listen(BufReader::new(output), &lines, &sender);
                // The warden has ended, or is about to.
                let _ = child.wait();
            })?;
        let options = PgConnectOptions::new_without_pgpass()
            .socket(&folder)
            .username("postgres")
            .database("postgres")
            .disable_statement_logging();
        let own = Own {
            folder,
            words: Mutex::new(words),
            news: Mutex::new(news),
            log,
        };
        own.say("start", &News::Ready)?;
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
        self.again("stop")
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
        self.again("shut")
    }

    fn again(&self, end: &str) -> Result<(), PostgresError> {
        let own = self.own.as_ref().expect("a server of one's own");
        own.say(end, &News::Down)?;
        own.say("start", &News::Ready)
    }

    /// The folder with the server's socket, or `None` when it is not this process's own.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.own.as_ref().map(|own| own.folder.as_path())
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

// === impl Own ===

impl Own {
    /// Tells the warden, and waits for what shall come of it.
    fn say(&self, word: &str, expected: &News) -> Result<(), PostgresError> {
        let failed = |what: String| PostgresError::Failed {
            what,
            said: Vec::from(self.log.lock().clone()).join("\n"),
        };
        let news = self.news.lock();
        writeln!(self.words.lock(), "{word}")?;
        loop {
            match news.recv_timeout(SOON) {
                Ok(told) if told == *expected => return Ok(()),
                Ok(News::Down) => return Err(failed(format!("PostgreSQL did not {word}"))),
                // Left over from what happened before.
                Ok(News::Ready) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(failed(format!("PostgreSQL took too long to {word}")));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(failed("PostgreSQL has ended".to_owned()));
                }
            }
        }
    }
}

/// Keeps the log's end, and passes on what is waited for.
fn listen(output: impl BufRead, log: &Log, news: &mpsc::Sender<News>) {
    for line in output.lines().map_while(Result::ok) {
        let told = if line.contains("database system is ready to accept connections") {
            Some(News::Ready)
        } else if line == "lockkit: down" {
            Some(News::Down)
        } else {
            None
        };
        {
            let mut log = log.lock();
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(line);
        }
        if let Some(told) = told {
            let _ = news.send(told);
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
    Err(PostgresError::Failed {
        what: format!("initdb failed ({})", output.status),
        said: String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
    })
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
