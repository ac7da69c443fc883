//! What a lock that expires cannot do: a holder who is paused wakes up after its end, and writes. The database refuses
//! him, since he shows a fence, and since whoever came after him has claimed the row under a higher one when he *read* it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use lockkit_db::cas::Table;
use lockkit_db::fenced::FencedRows;
use lockkit_db::{Error, sqlx};
use lockkit_redis::{Fence, RedisLocks, RedisStore};
use tokio::task::JoinSet;

const CLERKS: i64 = 3;
const TIMES: i64 = 5;
/// Short, since somebody is going to watch it end.
const TTL: Duration = Duration::from_secs(1);

patterns::on_either_database! {
    async fn prove(pool: Pool) -> anyhow::Result<()> {
        patterns::with_redis(async |client| {
            let locks = RedisLocks::builder(RedisStore::new(client).prefix("example")?);
            let locks = locks.ttl(TTL).wait(Duration::from_mins(1)).build()?;
            match patterns::role() {
                Some(role) => sleep(&pool, &locks, role == "fenced").await,
                None => show(&pool, &locks).await,
            }
        })
        .await
    }

    async fn show(pool: &Pool, locks: &RedisLocks) -> anyhow::Result<()> {
        let create = "DROP TABLE IF EXISTS example_hours;
            CREATE TABLE example_hours (week BIGINT PRIMARY KEY, hours BIGINT NOT NULL, version BIGINT NOT NULL, mark BIGINT)";
        sqlx::raw_sql(create).execute(pool).await?;
        for fenced in [false, true] {
            sqlx::raw_sql("DELETE FROM example_hours; INSERT INTO example_hours VALUES (7, 0, 1, NULL)").execute(pool).await?;
            let mut sleeper = patterns::process(if fenced { "fenced" } else { "blind" })?;
            let mut says = patterns::says(&mut sleeper);
            let fence = says.line().await?;
            patterns::pause(&sleeper)?;

            // They wait until its lock is over, and then come one after the other.
            let mut clerks = JoinSet::new();
            for _ in 0..CLERKS {
                let (pool, locks) = (pool.clone(), locks.clone());
                clerks.spawn(async move {
                    for _ in 0..TIMES {
                        while !add(&pool, &locks, fenced).await? {}
                    }
                    Ok::<_, anyhow::Error>(())
                });
            }
            clerks.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;

            patterns::resume(&sleeper)?;
            patterns::tell(&mut sleeper).await?;
            let told = says.line().await?;
            let hours: i64 = sqlx::query_scalar("SELECT hours FROM example_hours").fetch_one(pool).await?;
            println!("{} the fence: a holder with fence {fence} reads 0 hours, and is paused; {CLERKS} others add 1 {TIMES} times each;", ["without", "with"][usize::from(fenced)]);
            println!("    it wakes up and adds 10, which is {told}: {hours} hours are there");
            ensure!(!fenced || told == "refused" && hours == CLERKS * TIMES, "it was let in, and hours are lost");
            ensure!(fenced || hours < CLERKS * TIMES + 10, "no hours are lost, so this shows nothing");
        }
        Ok(())
    }

    /// Reads under the lock, and adds to that. Whether it was let in: anybody may be too slow.
    async fn add(pool: &Pool, locks: &RedisLocks, fenced: bool) -> anyhow::Result<bool> {
        let guard = locks.lock("week 7").acquire().await?;
        let Some(hours) = read(pool, guard.fence(), fenced).await? else { return Ok(false) };
        let done = write(pool, guard.fence(), hours + 1, fenced).await?;
        let _ = guard.release().await;
        Ok(done)
    }

    /// The same, with a pause in it.
    async fn sleep(pool: &Pool, locks: &RedisLocks, fenced: bool) -> anyhow::Result<()> {
        let guard = locks.lock("week 7").acquire().await?;
        let hours = read(pool, guard.fence(), fenced).await?.context("it is not late yet")?;
        println!("{}", guard.fence());
        patterns::told().await;
        let done = write(pool, guard.fence(), hours + 10, fenced).await?;
        println!("{}", if done { "done" } else { "refused" });
        Ok(())
    }

    /// The hours; `None` if somebody has come who has the lock after us.
    async fn read(pool: &Pool, fence: Fence, fenced: bool) -> Result<Option<i64>, Error> {
        if !fenced {
            return Ok(Some(sqlx::query_scalar("SELECT hours FROM example_hours").fetch_one(pool).await?));
        }
        match reports()?.claim::<i64, _>(pool, 7, fence).await {
            Ok(row) => Ok(Some(row.value)),
            Err(Error::Stale { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether it was let in.
    async fn write(pool: &Pool, fence: Fence, hours: i64, fenced: bool) -> Result<bool, Error> {
        if !fenced {
            sqlx::query("UPDATE example_hours SET hours = $1").bind(hours).execute(pool).await?;
            return Ok(true);
        }
        match reports()?.write(pool, 7, fence, hours).await {
            Ok(_) => Ok(true),
            Err(Error::Stale { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The table as it is, in words: the highest fence that has read a row is in a column of its own.
    fn reports() -> Result<FencedRows<Db>, Error> {
        let table = Table::describe("example_hours").key("week").columns(["hours"]).version("version");
        FencedRows::new(&table.build()?, "mark")
    }
}
