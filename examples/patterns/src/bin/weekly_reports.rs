//! All of it together: three processes write the weekly reports of a company. A lock across processes lets one of them plan the
//! jobs, and the queue gives each job to one of them. A job asks for two things at once, with one fate, within a time, one of
//! them in a cache; and adds what it has heard to a report to which others add as well. Then the reports are approved, by
//! whoever of two comes first, and mailed. What goes wrong without each of these is shown by the program that has its name.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lockkit_db::lease::{LeaseStore, Locker};
use lockkit_db::pessimistic::RowLock;
use lockkit_db::queue::{Completion, HandlerResult, Job, JobStore, NewJob, Worker};
use lockkit_db::{Cause, Error, Versioned as _, optimistic, retry_tx, sqlx};
use lockkit_pool::{Pipeline, TaskGroup, WorkerPool};
use lockkit_redis::RedisStore;
use patterns::weekly::{self, CLERKS, Cache, Report, TEAMS, WEEKS};
use patterns::{Stores, Tables as _, shop};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(2);

patterns::on_either_database! {
    async fn prove(pool: Pool) -> anyhow::Result<()> {
        patterns::with_redis_if_any(async |redis| match (patterns::role(), redis) {
            (None, redis) => show(pool, ["the database", "Redis"][usize::from(redis.is_some())]).await,
            (Some(queue), Some(client)) => write(Locker::new(RedisStore::new(client).prefix("example")?)?, pool, &queue).await,
            (Some(queue), None) => write(Locker::new(<Db as Stores>::leases(patterns::url()).await?)?, pool, &queue).await,
        })
        .await
    }

    async fn show(pool: Pool, place: &str) -> anyhow::Result<()> {
        pool.create(weekly::TABLES).await?;
        weekly::prove_written(&pool, place, patterns::sums(CLERKS, &shop::fresh("weekly")).await?).await?;

        // Two want to approve each report. At most 20 places, and a long report takes three.
        let (desk, mut approvals, mut approved) = (WorkerPool::new(20)?, Vec::new(), Vec::new());
        for week in (0..WEEKS).flat_map(|week| [week, week]) {
            let place = desk.task().weight(if week % 4 == 0 { 3 } else { 1 });
            approvals.push(place.spawn(approve(pool.clone(), week)).await.map_err(|refused| refused.reason)?);
        }
        for approval in approvals {
            approved.extend(approval.await.done().context("an approval has panicked")??);
        }
        // One hands out what was approved, and ten mail it.
        let (weeks, post) = (approved.clone(), pool.clone());
        let pipeline = Pipeline::builder().capacity(10).producers(1, move |sender| weekly::hand_out(weeks.clone(), sender));
        let ended = pipeline.consumers(10, move |week| mail(post.clone(), week)).run()?.join().await?;
        ensure!(ended.is_clean(), "a mail is lost: {ended:?}");
        weekly::prove_mailed(&pool, approved.len()).await
    }

    /// A clerk: sees to it that there are jobs, and takes some until all reports are written. Says what has happened.
    async fn write(locks: Locker<impl LeaseStore>, pool: Pool, queue: &str) -> anyhow::Result<()> {
        let (jobs, cache) = (<Db as Stores>::jobs(patterns::url()).await?, Arc::new(Cache::default()));
        let guard = locks.lock("weekly plan").wait(Duration::from_mins(1)).acquire().await?;
        let (drafts, _) = pool.two("SELECT count(*), count(*) FROM example_weekly").await?;
        tokio::time::sleep(LONG / 50).await; // It thinks, and no other one does meanwhile.
        if drafts == 0 {
            pool.create(weekly::DRAFTS).await?;
            let parts = (0..WEEKS * TEAMS).map(|part| NewJob::json("part", &part));
            jobs.enqueue(queue, &parts.collect::<Result<Vec<_>, _>>()?).await?;
        }
        let _ = guard.release().await;

        let (rows, answers) = (pool.clone(), cache.clone());
        let worker = Worker::builder(Arc::new(jobs), move |job| add(rows.clone(), answers.clone(), job));
        let worker = worker.queue(queue).slots(8).poll(LONG / 20).build()?;
        let ended = worker.run(weekly::all_written(&pool)).await;
        println!("{} {} {}", i64::from(drafts == 0), ended.failed, cache.queries());
        Ok(())
    }

    /// A job: adds the hours of a team to the report of a week. After an error the queue runs it again.
    async fn add(pool: Pool, cache: Arc<Cache>, job: Job) -> HandlerResult {
        let part: i64 = job.json()?;
        let (week, team) = (part / TEAMS, part % TEAMS);
        // Who is late is dropped, and its children with it.
        let hours = timeout(LONG, ask(&pool, cache, part, job.attempt)).await??;
        let add = |report: &Report| match report.teams >> team & 1 {
            0 => Report { hours: report.hours + hours, teams: report.teams | 1 << team, ..report.clone() },
            _ => report.clone(),
        };
        optimistic(&pool, Report::table(), week).apply(add).run().await?;
        Ok(Completion::Done)
    }

    /// Two questions at once: if one fails, the other one is not waited for.
    async fn ask(pool: &Pool, cache: Arc<Cache>, part: i64, attempt: u32) -> Result<i64, Cause> {
        let (pool, group) = (pool.clone(), TaskGroup::new());
        let query = async move {
            let hours = sqlx::query_scalar("SELECT hours FROM example_weekly_team WHERE team = $1");
            Ok(hours.bind(part % TEAMS).fetch_one(&pool).await?)
        };
        group.try_spawn(async move { cache.get(part % TEAMS, query).await }).map_err(|refused| refused.reason)?;
        group.try_spawn(weekly::extra_hours(part, attempt)).map_err(|refused| refused.reason)?;
        let ended = group.join().await.ok().context("no child has joined it")?;
        Ok(ended.into_all()?.iter().sum())
    }

    /// The week, if this call has approved it. On SQLite, where one transaction at a time may write, the lock adds nothing.
    async fn approve(pool: Pool, week: i64) -> Result<Option<i64>, Error> {
        let reports = RowLock::on("example_weekly", "week").columns(["status"]);
        retry_tx!(&pool, |tx| {
            let found = reports.lock::<_, _, (String,)>(&mut tx, &[week]).await?.all()?;
            if found[0].0 != "draft" { return Ok(None); }
            let approve = sqlx::query("UPDATE example_weekly SET status = 'approved', approvals = approvals + 1 WHERE week = $1");
            approve.bind(week).execute(&mut *tx).await?;
            Ok::<_, Error>(Some(week))
        })
    }

    async fn mail(pool: Pool, week: i64) -> Result<(), Error> {
        sqlx::query("INSERT INTO example_weekly_mail VALUES ($1)").bind(week).execute(&pool).await?;
        Ok(())
    }
}
