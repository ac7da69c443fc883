//! All of it together: three processes write the weekly reports of a company. A lock across processes lets one of them plan the
//! jobs, and the queue gives each job to one of them. A job asks for two things at once, with one fate, within a time, one of
//! them in a cache; and adds what it has heard to a report to which others add as well. Then the reports are approved, by
//! whoever of two comes first, and mailed. What goes wrong without each of these is shown by the program that has its name.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use lockkit_core::SingleFlight;
use lockkit_db::lease::{LeaseStore, Locker};
use lockkit_db::pessimistic::RowLock;
use lockkit_db::queue::{Completion, HandlerResult, Job, JobStore, NewJob, Worker};
use lockkit_db::{Cause, Error, Versioned, optimistic, retry_tx, sqlx};
use lockkit_pool::{Outcome, Pipeline, Sender, TaskGroup, WorkerPool};
use lockkit_redis::RedisStore;
use parking_lot::RwLock;
use patterns::Stores;
use tokio::time::{sleep, timeout};

const CLERKS: usize = 3;
const WEEKS: i64 = 26;
const TEAMS: i64 = 4;
/// In the first attempt this job gets no answer, and that one gets an error.
const SILENT: i64 = 13;
const BROKEN: i64 = 17;
const LONG: Duration = Duration::from_secs(2);

#[derive(Clone, Versioned)]
#[versioned(table = "example_weekly")]
struct Report {
    #[versioned(key)]
    week: i64,
    hours: i64,
    /// A bit for each team whose hours are in it, since a job may run twice.
    teams: i64,
    #[versioned(version)]
    version: i64,
}

/// What a clerk knows, and what has happened to it.
#[derive(Default)]
struct Clerk {
    hours: RwLock<HashMap<i64, i64>>,
    flights: SingleFlight<i64, Result<i64, Arc<Error>>>,
    queries: AtomicI64,
    late: AtomicI64,
    failed: AtomicI64,
}

patterns::on_either_database! {
    async fn prove(pool: Pool) -> anyhow::Result<()> {
        patterns::with_redis_if_any(async |redis| {
            let jobs = <Db as Stores>::jobs(patterns::url()).await?;
            let Some(queue) = patterns::role() else { return show(&pool, redis.is_some()).await };
            let planned = match redis {
                Some(client) => plan(Locker::new(RedisStore::new(client).prefix("example")?)?, &pool, &jobs, &queue).await?,
                None => plan(Locker::new(<Db as Stores>::leases(patterns::url()).await?)?, &pool, &jobs, &queue).await?,
            };
            work(&pool, jobs, &queue, planned).await
        })
        .await
    }

    async fn show(pool: &Pool, redis: bool) -> anyhow::Result<()> {
        let create = "DROP TABLE IF EXISTS example_weekly; DROP TABLE IF EXISTS example_weekly_team; DROP TABLE IF EXISTS example_weekly_mail;
             CREATE TABLE example_weekly (week BIGINT PRIMARY KEY, hours BIGINT NOT NULL DEFAULT 0, teams BIGINT NOT NULL DEFAULT 0,
                 version BIGINT NOT NULL DEFAULT 1, status VARCHAR(10) NOT NULL DEFAULT 'draft', approvals BIGINT NOT NULL DEFAULT 0);
             CREATE TABLE example_weekly_mail (week BIGINT NOT NULL);
             CREATE TABLE example_weekly_team (team BIGINT PRIMARY KEY, hours BIGINT NOT NULL);
             INSERT INTO example_weekly_team VALUES (0, 100), (1, 200), (2, 300), (3, 400)";
        sqlx::raw_sql(create).execute(pool).await?;
        let queue = format!("weekly-{}", SystemTime::UNIX_EPOCH.elapsed()?.as_micros());
        let mut sums = [0; 4];
        for told in patterns::processes(CLERKS, &queue).await? {
            for (sum, word) in sums.iter_mut().zip(told.split_whitespace()) {
                *sum += word.parse::<i64>()?;
            }
        }
        let [planned, late, failed, queries] = sums;
        println!("{CLERKS} processes, with a lock in {}: {planned} has planned {} jobs", ["the database", "Redis"][usize::from(redis)], WEEKS * TEAMS);
        println!("{late} took too long and {failed} failed, and were run again; a cache has made {queries} queries");
        let (teams, hours) = two(pool, "SELECT min(teams), CAST(sum(hours) AS BIGINT) FROM example_weekly").await?;
        let expected = (0..WEEKS * TEAMS).map(|job| 100 * (job % TEAMS + 1) + job / TEAMS).sum::<i64>();
        println!("{WEEKS} reports have {hours} hours of {expected}");
        ensure!(planned == 1 && late + failed >= 2, "what was to happen has not");
        ensure!(queries <= TEAMS * CLERKS as i64, "what was in the cache was asked for again");
        ensure!(teams == (1 << TEAMS) - 1 && hours == expected, "hours are lost, or there twice");

        // Two want to approve each report. At most 20 places, and a long report takes three.
        let desk = WorkerPool::new(20)?;
        let (mut approvals, mut approved) = (Vec::new(), 0);
        for week in (0..WEEKS).chain(0..WEEKS) {
            let place = desk.task().weight(if week % 4 == 0 { 3 } else { 1 });
            approvals.push(place.spawn(approve(pool.clone(), week)).await.map_err(|refused| refused.reason)?);
        }
        for approval in approvals {
            match approval.await {
                Outcome::Done(first) => approved += i64::from(first?),
                other => println!("    an approval has ended otherwise: {other:?}"),
            }
        }
        let (source, post) = (pool.clone(), pool.clone());
        let pipeline = Pipeline::builder().capacity(100).producers(1, move |sender| approved_ones(source.clone(), sender));
        let ended = pipeline.consumers(10, move |week| mail(post.clone(), week)).run()?.join().await?;
        let (mails, weeks) = two(pool, "SELECT count(*), count(DISTINCT week) FROM example_weekly_mail").await?;
        let (most, _) = two(pool, "SELECT max(approvals), min(approvals) FROM example_weekly").await?;
        println!("{approved} are approved, each by one of two, and {mails} are mailed, of {weeks} weeks");
        ensure!(approved == WEEKS && most == 1, "one was approved twice, or not");
        ensure!(ended.is_clean() && mails == WEEKS && weeks == WEEKS, "one was mailed twice, or not: {ended:?}");
        Ok(())
    }

    /// Puts the jobs in, if nobody has. Whether it has.
    async fn plan<S: LeaseStore>(locks: Locker<S>, pool: &Pool, jobs: &impl JobStore, queue: &str) -> anyhow::Result<bool> {
        let guard = locks.lock("weekly plan").wait(Duration::from_mins(1)).acquire().await?;
        let (planned, _) = two(pool, "SELECT count(*), count(*) FROM example_weekly").await?;
        sleep(LONG / 50).await; // It thinks, and no other one does meanwhile.
        if planned == 0 {
            let parts = (0..WEEKS * TEAMS).map(|part| NewJob::json("part", &part)).collect::<Result<Vec<_>, _>>()?;
            jobs.enqueue(queue, &parts).await?;
            for week in 0..WEEKS {
                sqlx::query("INSERT INTO example_weekly (week) VALUES ($1)").bind(week).execute(pool).await?;
            }
        }
        let _ = guard.release().await;
        Ok(planned == 0)
    }

    /// A clerk: takes jobs until all reports are written, and says what has happened.
    async fn work(pool: &Pool, jobs: <Db as Stores>::Jobs, queue: &str, planned: bool) -> anyhow::Result<()> {
        let clerk = Arc::new(Clerk::default());
        let handler = { let (pool, clerk) = (pool.clone(), clerk.clone()); move |job| add(pool.clone(), clerk.clone(), job) };
        let worker = Worker::builder(Arc::new(jobs), handler).queue(queue).slots(8).poll(LONG / 20).build()?;
        let all_are_written = async {
            let left = "SELECT count(*), count(*) FROM example_weekly WHERE teams < 15";
            while two(pool, left).await.map_or(1, |(left, _)| left) > 0 {
                sleep(LONG / 50).await;
            }
        };
        worker.run(all_are_written).await;
        let [late, failed, queries] = [&clerk.late, &clerk.failed, &clerk.queries].map(|count| count.load(Relaxed));
        println!("{} {late} {failed} {queries}", i64::from(planned));
        Ok(())
    }

    /// A job: adds the hours of a team to the report of a week. After an error the queue runs it again.
    async fn add(pool: Pool, clerk: Arc<Clerk>, job: Job) -> HandlerResult {
        let part: i64 = job.json()?;
        let (week, team) = (part / TEAMS, part % TEAMS);
        // Who is late is dropped, and its children with it.
        let asked = timeout(LONG, ask(&pool, &clerk, part, job.attempt)).await;
        let asked = asked.inspect_err(|_| _ = clerk.late.fetch_add(1, Relaxed))?;
        let hours = asked.inspect_err(|_| _ = clerk.failed.fetch_add(1, Relaxed))?;
        let add = |report: &Report| match report.teams >> team & 1 {
            0 => Report { hours: report.hours + hours, teams: report.teams | 1 << team, ..report.clone() },
            _ => report.clone(),
        };
        optimistic(&pool, Report::table(), week).apply(add).run().await?;
        Ok(Completion::Done)
    }

    /// Two questions at once: if one fails, the other one is not waited for.
    async fn ask(pool: &Pool, clerk: &Arc<Clerk>, part: i64, attempt: u32) -> Result<i64, Cause> {
        let group = TaskGroup::new();
        group.try_spawn(hours(pool.clone(), clerk.clone(), part % TEAMS)).map_err(|refused| refused.reason)?;
        group.try_spawn(extra_hours(part, attempt)).map_err(|refused| refused.reason)?;
        let ended = group.join().await.ok().context("no child has joined it")?;
        Ok(ended.into_all()?.iter().sum())
    }

    /// From the cache, or by a query that is shared by all who miss the same.
    async fn hours(pool: Pool, clerk: Arc<Clerk>, team: i64) -> Result<i64, Arc<Error>> {
        let cache = clerk.clone();
        let query = move || async move {
            let kept = cache.hours.read().get(&team).copied();
            if let Some(hours) = kept {
                return Ok(hours);
            }
            let found = sqlx::query_scalar("SELECT hours FROM example_weekly_team WHERE team = $1").bind(team).fetch_one(&pool).await;
            let hours = found.map_err(|error| Arc::new(error.into()))?;
            cache.queries.fetch_add(1, Relaxed);
            cache.hours.write().insert(team, hours);
            Ok(hours)
        };
        clerk.flights.run(team, query).await.map_err(|panicked| Arc::new(Error::stop(panicked)))?
    }

    async fn extra_hours(part: i64, attempt: u32) -> Result<i64, Arc<Error>> {
        match part {
            SILENT if attempt == 1 => std::future::pending().await,
            BROKEN if attempt == 1 => Err(Arc::new(Error::stop("nobody is there"))),
            _ => Ok(part / TEAMS),
        }
    }

    /// Whether this call has approved it.
    async fn approve(pool: Pool, week: i64) -> Result<bool, Error> {
        let reports = RowLock::on("example_weekly", "week").columns(["status"]);
        retry_tx!(&pool, |tx| {
            let found = reports.lock::<_, _, (String,)>(&mut tx, &[week]).await?.all()?;
            if found[0].0 != "draft" {
                return Ok(false);
            }
            let approve = sqlx::query("UPDATE example_weekly SET status = 'approved', approvals = approvals + 1 WHERE week = $1");
            approve.bind(week).execute(&mut *tx).await?;
            Ok::<_, Error>(true)
        })
    }

    async fn approved_ones(pool: Pool, sender: Sender<i64>) -> Result<(), Error> {
        let weeks: Vec<i64> = sqlx::query_scalar("SELECT week FROM example_weekly WHERE status = 'approved'").fetch_all(&pool).await?;
        for week in weeks {
            if sender.send(week).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn mail(pool: Pool, week: i64) -> Result<(), Error> {
        sqlx::query("INSERT INTO example_weekly_mail VALUES ($1)").bind(week).execute(&pool).await?;
        Ok(())
    }

    async fn two(pool: &Pool, question: &'static str) -> Result<(i64, i64), Error> {
        Ok(sqlx::query_as(question).fetch_one(pool).await?)
    }
}
