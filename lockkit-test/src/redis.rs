//! Throwaway Redis: a server a test, reached through a Unix socket in a temporary folder.
//!
//! No port, so nothing to collide with; it is there in some ten milliseconds, so each test has its own, and may
//! pause it, kill it, or flush it. It ends with the test process, in whichever way that ends. [`Proxy`] stands
//! between a client and it, on a port of its own.

mod proxy;
mod resp;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use crate::warden::{Kept, ServerFailed, Warden};

pub use proxy::{Fault, Proxy};

/// The name of its socket.
const SOCKET: &str = "socket";

/// How to set a server up.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    durable: bool,
    parameters: Vec<String>,
}

/// A running server, stopped and removed when it is dropped.
#[derive(Debug)]
pub struct Server {
    warden: Warden,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisError {
    /// The program is missing.
    #[error(
        "Redis is not installed: no redis-server in PATH; type \
         `apt-get install -y --no-install-recommends redis-server`"
    )]
    Missing,
    /// It failed, or did not get ready in time.
    #[error(transparent)]
    Failed(#[from] ServerFailed),
    /// The system's own.
    #[error("a system call about the server failed")]
    Io(#[from] io::Error),
}

// === impl Settings ===

impl Settings {
    /// Nothing is written to the disk: what was there is lost when the server ends.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether each write is on the disk before its answer, so that it survives a crash.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// One more parameter, such as `("maxmemory", "2mb")` or `("requirepass", "secret")`.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: &str) -> Self {
        self.parameters
            .extend([format!("--{name}"), value.to_owned()]);
        self
    }
}

// === impl Server ===

impl Server {
    /// Starts one. Blocks until it is ready.
    ///
    /// # Errors
    ///
    /// [`RedisError::Missing`] says what to install; [`RedisError::Failed`] what the server said.
    pub fn start(settings: &Settings) -> Result<Self, RedisError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path)
            .map(|folder| folder.join("redis-server"))
            .find(|program| program.is_file())
            .ok_or(RedisError::Missing)?;
        // Not in TMPDIR, whose name may be too long for the name of a socket.
        let folder = tempfile::Builder::new()
            .prefix("lockkit-redis-")
            .tempdir_in("/tmp")?;
        let socket = folder.path().join(SOCKET);
        let append = if settings.durable { "yes" } else { "no" };
        let mut server: Vec<OsString> = vec![program.into()];
        server.extend(["--port", "0", "--save", ""].map(OsString::from));
        server.extend(["--appendonly", append, "--appendfsync", "always"].map(OsString::from));
        server.extend(["--dir".into(), folder.path().into()]);
        server.extend(["--unixsocket".into(), socket.into()]);
        server.extend(settings.parameters.iter().map(OsString::from));
        let warden = Warden::new(Kept {
            name: "Redis",
            folder,
            shell: Command::new("sh"),
            server,
            // With a capital letter in some releases.
            ready: "eady to accept connections",
            last: "KILL",
        })?;
        warden.start()?;
        Ok(Self { warden })
    }

    /// Its address, for the `redis` crate.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.warden.folder().join(SOCKET)
    }

    /// Kills it and starts it again: all is lost that is not [durable](Settings::durable). Blocks until it is
    /// ready.
    ///
    /// # Errors
    ///
    /// [`RedisError::Failed`] when it does not come back.
    pub fn crash(&self) -> Result<(), RedisError> {
        self.kill()?;
        self.revive()
    }

    /// Kills it. Blocks until it has ended.
    ///
    /// # Errors
    ///
    /// [`RedisError::Failed`] when it does not end.
    pub fn kill(&self) -> Result<(), RedisError> {
        Ok(self.warden.crash()?)
    }

    /// Starts it after a [`kill`](Self::kill). Blocks until it is ready.
    ///
    /// # Errors
    ///
    /// [`RedisError::Failed`] when it does not come back.
    pub fn revive(&self) -> Result<(), RedisError> {
        Ok(self.warden.start()?)
    }

    /// Makes it stand still: connections stay open, and what is sent is carried out when it goes on.
    ///
    /// # Errors
    ///
    /// [`RedisError::Failed`] when its warden is gone.
    pub fn pause(&self) -> Result<(), RedisError> {
        Ok(self.warden.send("STOP")?)
    }

    /// Carries a command out that takes words only, and answers that it is done. On a connection of its own.
    ///
    /// # Errors
    ///
    /// What the server has said instead, or the system's own.
    pub async fn tell(&self, command: &str) -> io::Result<()> {
        let mut server = BufReader::new(UnixStream::connect(self.socket()).await?);
        server
            .write_all(format!("{command}\r\n").as_bytes())
            .await?;
        let mut answer = String::new();
        server.read_line(&mut answer).await?;
        if answer == "+OK\r\n" {
            Ok(())
        } else {
            Err(io::Error::other(answer))
        }
    }

    /// Lets it go on.
    ///
    /// # Errors
    ///
    /// [`RedisError::Failed`] when its warden is gone.
    pub fn resume(&self) -> Result<(), RedisError> {
        Ok(self.warden.send("CONT")?)
    }
}
