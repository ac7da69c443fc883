//! Child processes that a test may kill, stop and continue, and that cannot outlive it.
//!
//! The child talks in lines of JSON: what it reads on standard input is [`Child::send`]'s, what it
//! prints on standard output is [`Child::next_line`]'s; standard error is the test's own.
//!
//! **No orphans.** The program is started through `setpriv --pdeathsig KILL`, which asks the kernel
//! to kill it when its parent dies and then becomes the program, under the same process id. The
//! kernel's "parent" is the *thread* that started it; all children are therefore started by one
//! thread that lives as long as this process. A parent that dies in the few milliseconds before
//! `setpriv` has asked is missed, so a program should also end at the end of its standard input.
//! The request is not inherited: it covers the child, not the child's children.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// How often [`Child::stop`] looks whether the process stands still.
const STOP_POLL: Duration = Duration::from_millis(1);

/// What to start.
///
/// # Examples
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// use std::time::Duration;
/// use lockkit_test::child::Command;
///
/// let soon = Duration::from_secs(10);
/// let mut echo = Command::new("cat").spawn()?;
/// echo.send(&("hello", 1), soon).await?;
/// assert_eq!(echo.next_line::<(String, u32)>(soon).await?, ("hello".to_owned(), 1));
/// echo.kill().await?;
/// # Ok::<(), lockkit_test::child::ChildError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Command(tokio::process::Command);

impl Command {
    /// The program, by its path or to be found in `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = tokio::process::Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        Self(command)
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.0.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.0.args(args);
        self
    }

    /// A variable of the child's environment, besides those of this process. Its `PATH` is the one
    /// in which `setpriv` and the program are looked up.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Starts it.
    ///
    /// A program that does not exist shows as an end of its output, and as exit code 127.
    ///
    /// # Errors
    ///
    /// [`ChildError::NoSetpriv`], [`ChildError::NoRuntime`], or the system's own.
    ///
    /// # Panics
    ///
    /// As tokio does, when the runtime has no I/O driver.
    pub fn spawn(mut self) -> Result<Child, ChildError> {
        let runtime = Handle::try_current().map_err(|_| ChildError::NoRuntime)?;
        self.0.stdin(Stdio::piped()).stdout(Stdio::piped());
        let (reply, answer) = mpsc::channel();
        let start: Start = Box::new(move || {
            let _inside = runtime.enter();
            // A panic belongs to the caller; it must not end the parent of all other children.
            let _ = reply.send(catch_unwind(AssertUnwindSafe(|| self.0.spawn())));
        });
        STARTER.send(start).expect("the starter never ends");
        let spawned = answer.recv().expect("the starter answers");
        let spawned = spawned.unwrap_or_else(|panic| resume_unwind(panic));
        let mut inner = spawned.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ChildError::NoSetpriv,
            _ => ChildError::Io(error),
        })?;
        let stdin = inner.stdin.take();
        let stdout = inner.stdout.take().expect("standard output is piped");
        Ok(Child {
            inner,
            stdin,
            unsent: VecDeque::new(),
            lines: BufReader::new(stdout).lines(),
        })
    }
}

type Start = Box<dyn FnOnce() + Send>;

/// The thread that is every child's parent, see the module.
static STARTER: LazyLock<mpsc::Sender<Start>> = LazyLock::new(|| {
    let (sender, starts) = mpsc::channel::<Start>();
    thread::Builder::new()
        .name("child-starter".to_owned())
        .spawn(move || starts.into_iter().for_each(|start| start()))
        .expect("a thread can be started");
    sender
});

/// A running child. Dropped, it is killed and reaped, stopped or not: this blocks for the moment
/// that the kernel takes.
#[derive(Debug)]
pub struct Child {
    inner: tokio::process::Child,
    stdin: Option<ChildStdin>,
    /// Whole lines, but for the part of the first that is already in the pipe.
    unsent: VecDeque<u8>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Its process id, or `None` once it has been reaped here.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.inner.id()
    }

    /// Writes `line` as one line of JSON; waits while the pipe is full.
    ///
    /// # Errors
    ///
    /// [`ChildError::TimedOut`] when the pipe was not read `within` this time,
    /// [`ChildError::Ended`] when the child or its standard input is closed.
    ///
    /// # Cancel safety
    ///
    /// A line is not lost: what is unsent, after a time-out too, is sent by the next call.
    pub async fn send(
        &mut self,
        line: &impl Serialize,
        within: Duration,
    ) -> Result<(), ChildError> {
        let stdin = self.stdin.as_mut().ok_or(ChildError::Ended)?;
        self.unsent.extend(serde_json::to_vec(line)?);
        self.unsent.push_back(b'\n');
        let written = timeout(within, stdin.write_all_buf(&mut self.unsent)).await;
        match written.map_err(|_| ChildError::TimedOut { within })? {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ChildError::Ended),
            result => Ok(result?),
        }
    }

    /// Closes its standard input: it reads the end.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The next line of its output.
    ///
    /// # Errors
    ///
    /// [`ChildError::TimedOut`] when none came `within` this time, [`ChildError::Ended`] at the end
    /// of the output, [`ChildError::Line`] when it is not a `T`; that line is then gone.
    ///
    /// # Cancel safety
    ///
    /// No line is lost.
    pub async fn next_line<T: DeserializeOwned>(
        &mut self,
        within: Duration,
    ) -> Result<T, ChildError> {
        let line = timeout(within, self.lines.next_line())
            .await
            .map_err(|_| ChildError::TimedOut { within })??
            .ok_or(ChildError::Ended)?;
        serde_json::from_str(&line).map_err(|source| ChildError::Line { line, source })
    }

    /// Waits for its end and reaps it. Does not close its standard input.
    ///
    /// # Errors
    ///
    /// [`ChildError::TimedOut`] when it still lives.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost; call it again.
    pub async fn wait(&mut self, within: Duration) -> Result<ExitStatus, ChildError> {
        // tokio's `wait` closes the input that it owns; ours was taken out, so it stays.
        timeout(within, self.inner.wait())
            .await
            .map_err(|_| ChildError::TimedOut { within })?
            .map_err(ChildError::Io)
    }

    /// Kills it (SIGKILL) and reaps it. What it has printed can still be read.
    ///
    /// # Errors
    ///
    /// The system's own. A child that has already ended is no error.
    ///
    /// # Cancel safety
    ///
    /// The signal is sent at the first poll.
    pub async fn kill(&mut self) -> Result<ExitStatus, ChildError> {
        if self.id().is_some() {
            self.signal(Signal::KILL)?;
        }
        Ok(self.inner.wait().await?)
    }

    /// Stops it (SIGSTOP), and returns when it stands still.
    ///
    /// # Errors
    ///
    /// [`ChildError::Ended`] when it has ended, before or meanwhile.
    ///
    /// # Cancel safety
    ///
    /// The signal is sent at the first poll.
    pub async fn stop(&mut self) -> Result<(), ChildError> {
        let pid = self.signal(Signal::STOP)?;
        // The signal reaches a running process only later. NOWAIT leaves the news where it is: a
        // second `stop` finds it again, and the end of the process is left for tokio to reap.
        // Asking again and again, not a blocking wait in a thread, so that nothing is left behind
        // when this is dropped.
        let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        loop {
            match waitid(WaitId::Pid(pid), options | WaitIdOptions::NOHANG) {
                Ok(Some(news)) if news.stopped() => return Ok(()),
                Ok(Some(_)) => return Err(ChildError::Ended),
                Ok(None) | Err(Errno::INTR) => tokio::time::sleep(STOP_POLL).await,
                Err(error) => return Err(ChildError::Io(error.into())),
            }
        }
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    ///
    /// [`ChildError::Ended`] when it was reaped.
    pub fn cont(&mut self) -> Result<(), ChildError> {
        self.signal(Signal::CONT).map(drop)
    }

    /// As long as the child is not reaped, its id is not given to another process.
    fn signal(&self, signal: Signal) -> Result<Pid, ChildError> {
        let pid = self.pid().ok_or(ChildError::Ended)?;
        kill_process(pid, signal).map_err(io::Error::from)?;
        Ok(pid)
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.id()?.cast_signed())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Ok(pid) = self.signal(Signal::KILL) {
            // `try_wait` alone would find it still alive and leave a zombie.
            let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            let _ = retry_on_intr(|| waitid(WaitId::Pid(pid), ended));
            let _ = self.inner.try_wait();
        }
    }
}

/// What can go wrong with a child.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChildError {
    /// `setpriv` is not in `PATH`.
    #[error("setpriv is not installed: it is in the Debian package util-linux")]
    NoSetpriv,
    /// Called outside of a tokio runtime.
    #[error("a child is started inside a tokio runtime, and this is none")]
    NoRuntime,
    /// It did not answer, read or end in time.
    #[error("the child did not do so within {within:?}")]
    TimedOut {
        /// The time it had.
        within: Duration,
    },
    /// It has ended, or has closed the stream.
    #[error("the child has ended or closed its end")]
    Ended,
    /// What is to be sent is not JSON.
    #[error("the line cannot be written as JSON")]
    Unprintable(#[from] serde_json::Error),
    /// What it printed is not what was asked for.
    #[error("the child printed {line:?}")]
    Line {
        /// The line.
        line: String,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// The system's own.
    #[error("a system call about the child failed")]
    Io(#[from] io::Error),
}
