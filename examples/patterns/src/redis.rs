//! The Redis server that `--redis` names, or one of the example's own.

use std::io::ErrorKind;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser as _;
use lockkit_redis::redis::Client;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::options::Options;
use crate::process::interruptible;

/// What `--redis` has to say for the same server in another process.
pub(crate) static REDIS: OnceLock<String> = OnceLock::new();

/// Ends the server, and removes its folder, when nobody holds the other end of its input any more: at the end of the
/// example, and also when that is killed or interrupted.
const KEEPER: &str = r#"
trap '' HUP INT TERM
"$@" >/dev/null 2>&1 &
cat >/dev/null
kill -KILL $!
wait
rm -rf "$0"
"#;

/// For a server to be there that takes some ten milliseconds.
const SOON: Duration = Duration::from_secs(20);

/// Reads the options, and connects to the server for `prove`.
///
/// # Errors
///
/// When there is no server; what `prove` returns.
pub async fn with_redis(
    prove: impl AsyncFnOnce(Client) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some(url) = Options::parse().redis else {
        let (keeper, url) = start().await?;
        let proven = proven(url, prove).await;
        stop(keeper).await?;
        return proven;
    };
    proven(url, prove).await
}

/// [`with_redis`], where a server is named or installed, and without one elsewhere. A [process](crate::process) has
/// what the one has that has started it.
///
/// # Errors
///
/// As [`with_redis`].
pub async fn with_redis_if_any(
    prove: impl AsyncFnOnce(Option<Client>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let named = Options::parse().redis.is_some();
    if named || crate::role().is_none() && is_installed().await? {
        return with_redis(async |client| prove(Some(client)).await).await;
    }
    prove(None).await
}

async fn proven(
    url: String,
    prove: impl AsyncFnOnce(Client) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let url = REDIS.get_or_init(|| url);
    let client = Client::open(url.as_str())?;
    // Who waits for a lock would go on trying for a while.
    let connected = client.get_multiplexed_async_connection().await;
    drop(connected.with_context(|| format!("no server at {url}"))?);
    interruptible(Box::pin(prove(client))).await
}

async fn is_installed() -> anyhow::Result<bool> {
    match Command::new("redis-server").arg("--version").output().await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A server on a socket in a folder of its own, without a port.
async fn start() -> anyhow::Result<(Child, String)> {
    if !is_installed().await? {
        bail!(
            "no redis-server is installed: `apt-get install redis-server`, or name a server by --redis"
        );
    }
    // The name of a socket is short, and that of TMPDIR need not be.
    let folder = TempDir::with_prefix_in("example-redis-", "/tmp")?.keep();
    let socket = folder.join("socket");
    let mut keeper = Command::new("sh");
    keeper.args(["-c", KEEPER]).arg(&folder);
    keeper.args([
        "redis-server",
        "--port",
        "0",
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    keeper
        .arg("--dir")
        .arg(&folder)
        .arg("--unixsocket")
        .arg(&socket);
    let keeper = keeper.stdin(Stdio::piped()).spawn()?;
    let ready = async {
        while UnixStream::connect(&socket).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, ready)
        .await
        .context("redis-server does not start")?;
    Ok((keeper, format!("redis+unix://{}", socket.display())))
}

async fn stop(mut keeper: Child) -> anyhow::Result<()> {
    drop(keeper.stdin.take());
    keeper.wait().await?;
    Ok(())
}
