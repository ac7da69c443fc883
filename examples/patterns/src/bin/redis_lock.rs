//! The lock on Redis: several processes count one report up, and one at a time has it in its hands. One of them is
//! killed with the lock, and whoever comes next has it when its time is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use lockkit_redis::lease::{Attempt, Ran};
use lockkit_redis::redis::{AsyncCommands as _, Client};
use lockkit_redis::{Fence, RedisLocks, RedisStore};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

const TOTAL: &str = "example_total";
const PROCESSES: u64 = 3;
const TASKS: u64 = 4;
const TIMES: u64 = 10;
/// How long a dead one's lock keeps the others out: short, since somebody is going to watch it end.
const SHORT: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    patterns::with_redis(async |client| {
        let locks = RedisLocks::builder(RedisStore::new(client.clone()).prefix("example")?)
            .owner(format!("process {}", std::process::id()))
            .wait(Duration::from_mins(1))
            .build()?;
        match patterns::role().as_deref() {
            Some("worker") => work(&client, &locks).await,
            Some(_) => hold(&locks).await,
            None => prove(&client, &locks).await,
        }
    })
    .await
}

async fn prove(client: &Client, locks: &RedisLocks) -> anyhow::Result<()> {
    let mut server = client.get_multiplexed_async_connection().await?;
    let _: () = server.set(TOTAL, 0).await?;
    let all_have_looked = Arc::new(Barrier::new(TASKS as usize));
    let mut blind = JoinSet::new();
    for _ in 0..TASKS {
        let (client, all_have_looked) = (client.clone(), all_have_looked.clone());
        blind.spawn(async move { count_up(&client, Some(&all_have_looked)).await });
    }
    while let Some(ended) = blind.join_next().await {
        ended??;
    }
    let total: u64 = server.get(TOTAL).await?;
    println!("without a lock: {TASKS} tasks add 1, and the total is {total}");
    ensure!(total < TASKS, "nothing was lost, so this shows nothing");

    let _: () = server.set(TOTAL, 0).await?;
    let workers = (0..PROCESSES).map(|_| patterns::process("worker"));
    for mut worker in workers.collect::<Result<Vec<_>, _>>()? {
        ensure!(worker.wait().await?.success(), "a worker has failed");
    }
    let (total, all): (u64, _) = (server.get(TOTAL).await?, PROCESSES * TASKS * TIMES);
    println!("with the lock: {PROCESSES} processes add 1 {all} times, and the total is {total}");
    ensure!(total == all, "an addition was lost");

    let mut dead = patterns::process("holder")?;
    let mut says = patterns::says(&mut dead);
    let fence: Fence = says.line().await?.parse()?;
    let Attempt::Busy { holder, .. } = locks.lock("report").try_acquire().await? else {
        bail!("two have it");
    };
    println!("{} has the lock: fence {fence}", holder.owner);
    dead.kill().await?;
    let killed = Instant::now();
    let guard = locks.lock("report").acquire().await?;
    let (later, next) = (killed.elapsed(), guard.fence());
    println!("it is killed, and we have it {later:.1?} later, by a TTL of {SHORT:?}: fence {next}");
    ensure!(next > fence, "a fence was given twice");
    let _ = guard.release().await;
    Ok(())
}

/// What is to be done by one at a time: reads, thinks, writes.
async fn count_up(client: &Client, looked: Option<&Barrier>) -> anyhow::Result<()> {
    let mut server = client.get_multiplexed_async_connection().await?;
    let total: u64 = server.get(TOTAL).await?;
    if let Some(looked) = looked {
        looked.wait().await;
    } else {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(server.set(TOTAL, total + 1).await?)
}

/// A worker: some tasks, each of which counts up under the lock.
async fn work(client: &Client, locks: &RedisLocks) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (client, locks) = (client.clone(), locks.clone());
        tasks.spawn(async move {
            for _ in 0..TIMES {
                let request = locks.lock("report");
                match request.run(|_| count_up(&client, None)).await? {
                    Ran::Finished { value, .. } => value?,
                    Ran::Cancelled(loss) => bail!(loss),
                }
            }
            Ok(())
        });
    }
    tasks.join_all().await.into_iter().collect()
}

/// Takes the lock, says so, and keeps it until it is killed.
async fn hold(locks: &RedisLocks) -> anyhow::Result<()> {
    let guard = locks.lock("report").ttl(SHORT).acquire().await?;
    println!("{}", guard.fence());
    patterns::told().await;
    Ok(())
}
