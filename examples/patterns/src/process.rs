//! An example that is several processes.

use std::process::Stdio;
use std::sync::OnceLock;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::signal::ctrl_c;
use tokio::task::spawn_blocking;

use crate::redis::REDIS;

/// What `--db` has to say for the same database in another process.
pub(crate) static DB: OnceLock<String> = OnceLock::new();

/// In the environment of a process that another one has started: what it is for.
const ROLE: &str = "EXAMPLE_ROLE";

/// This program once more, as a process of its own with the same servers, for what `role` says. It dies with the
/// handle.
///
/// # Errors
///
/// When it cannot be started.
pub fn process(role: &str) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    for (option, named) in [("--db", &DB), ("--redis", &REDIS)] {
        command.args(named.get().map(|url| [option, url]).into_iter().flatten());
    }
    command
        .env(ROLE, role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    Ok(command.kill_on_drop(true).spawn()?)
}

/// So many of [`process`] at once, until all have ended. Each has said some numbers: the sum of the first ones, of the second
/// ones, and so on.
///
/// # Errors
///
/// When one of them cannot be started, or fails.
pub async fn sums<const N: usize>(count: usize, role: &str) -> anyhow::Result<[i64; N]> {
    let started = (0..count).map(|_| process(role));
    let mut sums = [0; N];
    for process in started.collect::<anyhow::Result<Vec<_>>>()? {
        let output = process.wait_with_output().await?;
        ensure!(output.status.success(), "a process has failed");
        let said = String::from_utf8(output.stdout)?;
        for (sum, number) in sums.iter_mut().zip(said.split_whitespace()) {
            *sum += number.parse::<i64>()?;
        }
    }
    Ok(sums)
}

/// What a process says, line by line.
pub struct Says(Lines<BufReader<ChildStdout>>);

impl Says {
    /// The next line.
    ///
    /// # Errors
    ///
    /// When the process has ended.
    pub async fn line(&mut self) -> anyhow::Result<String> {
        self.0.next_line().await?.context("it has ended")
    }
}

/// What a process is going to say.
///
/// # Panics
///
/// Asked for twice.
pub fn says(process: &mut Child) -> Says {
    let stdout = process.stdout.take().expect("nobody has taken it");
    Says(BufReader::new(stdout).lines())
}

/// Tells a process to go on, which waits to be [`told`].
///
/// # Errors
///
/// When it has ended.
pub async fn tell(process: &mut Child) -> anyhow::Result<()> {
    let stdin = process.stdin.as_mut().context("it is piped")?;
    Ok(stdin.write_all(b"go on\n").await?)
}

/// Waits until whoever has started this process [tells](tell) it to go on, waits for its end, or has ended.
pub async fn told() {
    let _ = spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await;
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

/// Runs this, or is interrupted: what is dropped then takes its processes and its folder with it, and also a process that
/// stands still and would not hear of it by itself.
pub(crate) async fn interruptible(
    prove: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::select! {
        // Listened to before anything is begun that would be left behind.
        biased;
        interrupted = ctrl_c() => {
            interrupted?;
            bail!("stopped by Ctrl-C")
        }
        proven = prove => proven,
    }
}

/// Makes a process stand still, wherever it is.
///
/// # Errors
///
/// When it has ended.
pub fn pause(process: &Child) -> anyhow::Result<()> {
    signal(process, Signal::STOP)
}

/// Lets a process go on.
///
/// # Errors
///
/// When it has ended.
pub fn resume(process: &Child) -> anyhow::Result<()> {
    signal(process, Signal::CONT)
}

fn signal(process: &Child, signal: Signal) -> anyhow::Result<()> {
    let id = process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    Ok(kill_process(id.context("it has ended")?, signal)?)
}
