//! An example that is several processes.

use std::process::Stdio;
use std::sync::OnceLock;

use tokio::process::{Child, Command};

/// What `--db` has to say for the same database in another process.
pub(crate) static DB: OnceLock<String> = OnceLock::new();

/// In the environment of a process that another one has started: what it is for.
const ROLE: &str = "EXAMPLE_ROLE";

/// This program once more, as a process of its own with the same database, for what `role` says. It dies with the
/// handle.
///
/// # Errors
///
/// When it cannot be started.
pub fn process(role: &str) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(DB.get().map(|db| ["--db", db]).into_iter().flatten());
    command
        .env(ROLE, role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    Ok(command.kill_on_drop(true).spawn()?)
}

/// What `--db` has named: the URL of a server, or the path of a file.
///
/// # Panics
///
/// Before the database is open.
#[must_use]
pub fn url() -> &'static str {
    DB.get().expect("the database is open")
}

/// What this process was started for by [`process`], if it was.
#[must_use]
pub fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}
