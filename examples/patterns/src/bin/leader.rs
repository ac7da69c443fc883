//! Leader election: of several processes one leads, for as long as it says so. The leader is killed, and another one
//! takes over when its time is over; that one is paused, and when it wakes up it is told that it leads no more.

use std::future::pending;
use std::io::stdin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use lockkit_redis::lease::{Ran, View};
use lockkit_redis::redis::Client;
use lockkit_redis::{Fence, RedisLocks, RedisStore};
use tokio::process::Child;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;

const NODES: usize = 3;
/// How long nobody leads after a leader has died. A service takes ten seconds, and is hardly ever without one.
const TTL: Duration = Duration::from_secs(2);
/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_mins(2);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    patterns::with_redis(async |client| match patterns::role() {
        Some(_) => stand(client).await,
        None => prove().await,
    })
    .await
}

/// A node: leads when it is its turn, again and again.
async fn stand(client: Client) -> anyhow::Result<()> {
    std::thread::spawn(|| {
        // Nobody writes there: it ends with the process that has started this one.
        let _ = stdin().read_line(&mut String::new());
        std::process::exit(0);
    });
    let store = RedisStore::new(client).prefix("example")?;
    let locks = RedisLocks::builder(store).ttl(TTL).wait(PATIENCE).build()?;
    loop {
        // The body is dropped where it stands when the lock is lost.
        match locks.lock("leader").run(lead).await? {
            Ran::Cancelled(loss) => println!("deposed {loss}"),
            Ran::Finished { .. } => return Ok(()),
        }
    }
}

/// What only the leader does. Whatever it writes has to show the fence.
async fn lead(office: View) {
    println!("elected {}", office.fence());
    pending::<()>().await;
}

async fn prove() -> anyhow::Result<()> {
    let (tell, mut told) = channel(100);
    let mut nodes = Vec::new();
    for number in 0..NODES {
        nodes.push(start(number, tell.clone())?);
    }

    let (first, one) = elected(&mut told).await?;
    println!("of {NODES} nodes number {first} leads: fence {one}");
    nodes[first].kill().await?;
    let since = Instant::now();
    let (second, two) = elected(&mut told).await?;
    let later = since.elapsed();
    println!("it is killed, and {later:.1?} later number {second} leads: fence {two}");

    patterns::pause(&nodes[second])?;
    let since = Instant::now();
    let (third, three) = elected(&mut told).await?;
    let later = since.elapsed();
    println!("that one is paused, and {later:.1?} later number {third} leads: fence {three}");
    patterns::resume(&nodes[second])?;
    let (who, why) = hear(&mut told, "deposed ").await?;
    println!("number {who} wakes up, and leads no more: {why}");

    ensure!(one < two && two < three, "a fence was given twice");
    ensure!(who == second, "another one was deposed");
    Ok(())
}

fn start(number: usize, tell: Sender<(usize, String)>) -> anyhow::Result<Child> {
    let mut node = patterns::process("node")?;
    let mut says = patterns::says(&mut node);
    tokio::spawn(async move {
        while let Ok(line) = says.line().await {
            let _ = tell.send((number, line)).await;
        }
    });
    Ok(node)
}

/// The next one who leads, and by which fence.
async fn elected(told: &mut Receiver<(usize, String)>) -> anyhow::Result<(usize, Fence)> {
    let (node, fence) = hear(told, "elected ").await?;
    Ok((node, fence.parse()?))
}

/// Waits until somebody says this. Who, and what comes after it.
async fn hear(told: &mut Receiver<(usize, String)>, what: &str) -> anyhow::Result<(usize, String)> {
    let heard = async {
        while let Some((node, says)) = told.recv().await {
            if let Some(rest) = says.strip_prefix(what) {
                return Ok((node, rest.to_owned()));
            }
        }
        bail!("all have ended");
    };
    timeout(PATIENCE, heard).await.context("nobody says so")?
}
