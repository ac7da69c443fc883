//! The instance processes as seen by their parent.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lockkit_test::child::{Child, Command};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

use crate::instance::Listening;

/// For what takes a moment when nothing is broken.
const SOON: Duration = Duration::from_mins(1);

/// How to start an instance.
pub(crate) struct Orders {
    pub(crate) db: String,
    pub(crate) idle: Duration,
    pub(crate) naive: bool,
}

/// A running instance. Dropped, it is killed.
pub(crate) struct Instance {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Instance {
    /// Starts one, and waits until it listens.
    pub(crate) async fn start(orders: &Orders) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?)
            .args(["instance", "--child", "--db", &orders.db])
            .args(["--idle", &orders.idle.as_secs().to_string()]);
        if orders.naive {
            command = command.arg("--naive");
        }
        let mut child = command.spawn().context("an instance cannot be started")?;
        let listening: Listening = child
            .next_line(SOON)
            .await
            .context("an instance has not begun")?;
        let address = listening.listening;
        Ok(Self { child, address })
    }

    /// Sends SIGKILL, and returns when the process is gone.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    /// Sends SIGTERM, and waits for a good end.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let id = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()));
        let id = id.context("an instance has ended although nobody told it to")?;
        kill_process(id, Signal::TERM)?;
        let status = timeout(SOON, self.child.wait(SOON)).await??;
        ensure!(status.success(), "an instance ended with {status}");
        Ok(())
    }
}
