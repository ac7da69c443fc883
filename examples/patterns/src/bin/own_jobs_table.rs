//! Jobs in a table that was there before: weekly reports, each to be written once, by any of several processes. One
//! of these is killed with jobs in hand, and one sleeps through the end of its lease and comes back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use lockkit_db::own_table::{JobTable, LeasedJob, LeasedJobs, Leasing, States};
use lockkit_db::{Error, retry_tx, sqlx};
use patterns::Tables as _;
use tokio::sync::Barrier;

const WEEKS: i64 = 52;
const WORKERS: usize = 3;

patterns::on_either_database! {
    async fn prove(pool: Pool) -> anyhow::Result<()> {
        match patterns::role().as_deref() {
            Some("worker") => return work(&pool).await,
            Some("sleeper") => return sleep(&pool).await,
            _ => {}
        }
        let create = "DROP TABLE IF EXISTS example_job; DROP TABLE IF EXISTS example_report;
             CREATE TABLE example_report (week BIGINT NOT NULL);
             CREATE TABLE example_job (week BIGINT PRIMARY KEY, status VARCHAR(10) NOT NULL DEFAULT 'pending',
                 scheduled_at TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP, attempts INTEGER NOT NULL DEFAULT 0,
                 lease_until TIMESTAMPTZ, fence BIGINT);
             CREATE INDEX example_job_ready ON example_job (scheduled_at, week) WHERE status = 'pending';
             CREATE INDEX example_job_running ON example_job (lease_until, week) WHERE status = 'running'";
        pool.create(create).await?;
        for week in 1..=WEEKS {
            sqlx::query("INSERT INTO example_job (week) VALUES ($1)").bind(week).execute(&pool).await?;
        }

        let all_have_looked = Arc::new(Barrier::new(WORKERS));
        let taken = patterns::at_once(WORKERS, || take_blindly(pool.clone(), all_have_looked.clone())).await?;
        println!("without a claim: {WORKERS} workers look for a job, and take those of weeks {taken:?}");
        ensure!(taken.iter().all(|week| *week == taken[0]), "they did not take the same, so this shows nothing");
        sqlx::query("UPDATE example_job SET status = 'pending'").execute(&pool).await?;

        let (mut dead, mut late) = (patterns::process("sleeper")?, patterns::process("sleeper")?);
        let (mut dead_says, mut late_says) = (patterns::says(&mut dead), patterns::says(&mut late));
        let in_hand = dead_says.line().await?.parse::<i64>()? + late_says.line().await?.parse::<i64>()?;
        dead.kill().await?;
        println!("a process is killed and another one sleeps, with {in_hand} jobs in hand");

        let [written] = patterns::sums(WORKERS, "worker").await?;
        let (jobs, attempts) = pool.two("SELECT count(*), CAST(sum(attempts) AS bigint) FROM example_job WHERE status = 'done'").await?;
        let (reports, weeks) = pool.two("SELECT count(*), count(DISTINCT week) FROM example_report").await?;
        println!("{WORKERS} processes write {written} reports of {weeks} weeks, in {attempts} attempts");
        ensure!((jobs, reports, weeks, written) == (WEEKS, WEEKS, WEEKS, WEEKS), "{jobs} jobs are done by {reports} reports");
        ensure!(attempts >= WEEKS + in_hand, "somebody's claim was forgotten");

        patterns::tell(&mut late).await?;
        println!("the sleeper wakes up and wants to write its reports: {}", late_says.line().await?);
        let (reports, _) = pool.two("SELECT count(*), count(DISTINCT week) FROM example_report").await?;
        ensure!(reports == WEEKS, "{reports} reports are written of {WEEKS} weeks");
        Ok(())
    }

    /// What people write who do not think of each other.
    async fn take_blindly(pool: Pool, all_have_looked: Arc<Barrier>) -> Result<i64, Error> {
        let next = "SELECT week FROM example_job WHERE status = 'pending' ORDER BY scheduled_at, week LIMIT 1";
        let week: i64 = sqlx::query_scalar(next).fetch_one(&pool).await?;
        all_have_looked.wait().await;
        sqlx::query("UPDATE example_job SET status = 'running' WHERE week = $1").bind(week).execute(&pool).await?;
        Ok(week)
    }

    /// A worker, until nothing is left. Says how many reports it has written.
    async fn work(pool: &Pool) -> anyhow::Result<()> {
        let (jobs, mut written) = (jobs()?, 0);
        while pool.two("SELECT count(*), count(*) FROM example_job WHERE status <> 'done'").await?.0 > 0 {
            for job in jobs.claim::<i64>(pool, 4).await? {
                match write(pool, &jobs, &job).await {
                    Ok(()) => written += 1,
                    // It has taken too long, and somebody else does it.
                    Err(Error::JobLost { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("{written}");
        Ok(())
    }

    /// The report and the end of its job are committed together, or neither is.
    async fn write(pool: &Pool, jobs: &LeasedJobs<Db>, job: &LeasedJob<Db, i64>) -> Result<(), Error> {
        retry_tx!(pool, |tx| {
            let insert = sqlx::query("INSERT INTO example_report (week) VALUES ($1)").bind(job.claim.key);
            insert.execute(&mut *tx).await?;
            jobs.done_in(&mut tx, &job.claim).await
        })
    }

    /// Says how many jobs it has claimed, sleeps until it is woken, and then does what it believes to be its work.
    async fn sleep(pool: &Pool) -> anyhow::Result<()> {
        let jobs = jobs()?;
        let claimed = jobs.claim::<i64>(pool, 3).await?;
        println!("{}", claimed.len());
        patterns::told().await;
        for job in &claimed {
            let told = write(pool, &jobs, job).await;
            ensure!(matches!(told, Err(Error::JobLost { .. })), "{told:?}");
        }
        println!("all {} are refused", claimed.len());
        Ok(())
    }

    /// The table as it is, in words. The lease is short, since somebody is going to watch it end.
    fn jobs() -> Result<LeasedJobs<Db>, Error> {
        let states = States { ready: "pending", done: "done", failed: "failed" };
        let table = JobTable::describe("example_job").key("week").status("status", states);
        let table = table.scheduled_at("scheduled_at").attempts("attempts").build()?;
        let lasts = Duration::from_millis(500);
        LeasedJobs::new(&table, Leasing { running: "running", until: "lease_until", fence: "fence", lasts })
    }
}
