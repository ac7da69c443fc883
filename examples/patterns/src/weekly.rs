//! The company of `weekly_reports`: its tables, what its teams answer, and what has to be true at the end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::ensure;
use lockkit_core::SingleFlight;
use lockkit_db::{Error, Versioned};
use lockkit_pool::Sender;
use parking_lot::RwLock;
use tokio::time::sleep;

use crate::Tables;

/// How many processes write reports.
pub const CLERKS: usize = 3;
/// How many reports.
pub const WEEKS: i64 = 26;
/// How many teams have their hours in each.
pub const TEAMS: i64 = 4;
/// In the first attempt this job gets no answer, and that one gets an error.
const SILENT: i64 = 13;
const BROKEN: i64 = 17;

/// The tables, anew.
pub const TABLES: &str =
    "DROP TABLE IF EXISTS example_weekly; DROP TABLE IF EXISTS example_weekly_team;
    DROP TABLE IF EXISTS example_weekly_mail;
    CREATE TABLE example_weekly (
        week BIGINT PRIMARY KEY, hours BIGINT NOT NULL DEFAULT 0, teams BIGINT NOT NULL DEFAULT 0,
        version BIGINT NOT NULL DEFAULT 1, status VARCHAR(10) NOT NULL DEFAULT 'draft',
        approvals BIGINT NOT NULL DEFAULT 0);
    CREATE TABLE example_weekly_mail (week BIGINT NOT NULL);
    CREATE TABLE example_weekly_team (team BIGINT PRIMARY KEY, hours BIGINT NOT NULL);
    INSERT INTO example_weekly_team VALUES (0, 100), (1, 200), (2, 300), (3, 400)";

/// The reports of all weeks, empty.
pub const DRAFTS: &str = "INSERT INTO example_weekly (week)
    WITH RECURSIVE weeks (week) AS (SELECT 0 UNION ALL SELECT week + 1 FROM weeks WHERE week < 25)
    SELECT week FROM weeks";

/// A report.
#[derive(Clone, Versioned)]
#[versioned(table = "example_weekly")]
pub struct Report {
    /// Of which week.
    #[versioned(key)]
    pub week: i64,
    /// Of all teams together.
    pub hours: i64,
    /// A bit for each team whose hours are in it, since a job may run twice.
    pub teams: i64,
    /// Raised by every change.
    #[versioned(version)]
    pub version: i64,
}

/// What has been asked once, as `rwlock_cache` shows it.
#[derive(Default)]
pub struct Cache {
    answers: RwLock<HashMap<i64, i64>>,
    flights: SingleFlight<i64, Result<i64, Arc<Error>>>,
    queries: AtomicI64,
}

impl Cache {
    /// The answer for a key, by a query that is shared by all who miss the same.
    ///
    /// # Errors
    ///
    /// Those of the query.
    pub async fn get<F>(self: &Arc<Self>, key: i64, query: F) -> Result<i64, Arc<Error>>
    where
        F: Future<Output = Result<i64, Error>> + Send + 'static,
    {
        let cache = Arc::clone(self);
        let miss = move || async move {
            let kept = cache.answers.read().get(&key).copied();
            if let Some(answer) = kept {
                return Ok(answer);
            }
            let answer = query.await.map_err(Arc::new)?;
            // Ordering: Relaxed, for a plain count.
            cache.queries.fetch_add(1, Ordering::Relaxed);
            cache.answers.write().insert(key, answer);
            Ok(answer)
        };
        let panicked = |error| Arc::new(Error::stop(error));
        self.flights.run(key, miss).await.map_err(panicked)?
    }

    /// How many were made.
    #[must_use]
    pub fn queries(&self) -> i64 {
        // Ordering: Relaxed, as above.
        self.queries.load(Ordering::Relaxed)
    }
}

/// What a team has worked beyond its hours in a week, asked in a job's so-manieth attempt.
///
/// # Errors
///
/// One of them is not there at first.
pub async fn extra_hours(part: i64, attempt: u32) -> Result<i64, Arc<Error>> {
    match part {
        SILENT if attempt == 1 => std::future::pending().await,
        BROKEN if attempt == 1 => Err(Arc::new(Error::stop("nobody is there"))),
        _ => Ok(part / TEAMS),
    }
}

/// Waits until all reports have the hours of all teams.
pub async fn all_written(tables: &impl Tables) {
    let left = "SELECT count(*), count(*) FROM example_weekly WHERE teams < 15";
    while tables.two(left).await.map_or(1, |(left, _)| left) > 0 {
        sleep(Duration::from_millis(40)).await;
    }
}

/// Looks at the reports. What the clerks have said are sums: who has planned, jobs that failed, and queries. Their lock was in
/// this place.
///
/// # Errors
///
/// When they are not as they should be.
pub async fn prove_written(
    tables: &impl Tables,
    place: &str,
    [planned, failed, queries]: [i64; 3],
) -> anyhow::Result<()> {
    let jobs = WEEKS * TEAMS;
    println!("{CLERKS} processes, with a lock in {place}: {planned} has planned {jobs} jobs");
    println!(
        "{failed} failed or took too long, and were run again; a cache has made {queries} queries"
    );
    let sums = "SELECT min(teams), CAST(sum(hours) AS BIGINT) FROM example_weekly";
    let (teams, hours) = tables.two(sums).await?;
    let hours_of = |job: i64| 100 * (job % TEAMS + 1) + job / TEAMS;
    let expected = (0..jobs).map(hours_of).sum::<i64>();
    println!("{WEEKS} reports have {hours} hours of {expected}");
    ensure!(planned == 1 && failed >= 2, "what was to happen has not");
    ensure!(
        queries <= TEAMS * CLERKS as i64,
        "what was in the cache was asked for again"
    );
    let all = (1 << TEAMS) - 1;
    ensure!(
        teams == all && hours == expected,
        "hours are lost, or there twice"
    );
    Ok(())
}

/// Hands these out, as long as somebody takes them.
///
/// # Errors
///
/// When nobody does any more.
pub async fn hand_out(weeks: Vec<i64>, sender: Sender<i64>) -> Result<(), Error> {
    for week in weeks {
        sender.send(week).await.map_err(Error::stop)?;
    }
    Ok(())
}

/// Looks at the reports again, of which so many have been called approved.
///
/// # Errors
///
/// When they are not as they should be.
pub async fn prove_mailed(tables: &impl Tables, approved: usize) -> anyhow::Result<()> {
    let mailed = "SELECT count(*), count(DISTINCT week) FROM example_weekly_mail";
    let (mails, weeks) = tables.two(mailed).await?;
    println!(
        "{approved} are approved, each by one of two, and {mails} are mailed, of {weeks} weeks"
    );
    let approvals = "SELECT max(approvals), min(approvals) FROM example_weekly";
    let once = tables.two(approvals).await? == (1, 1);
    ensure!(
        approved as i64 == WEEKS && once,
        "one was approved twice, or not"
    );
    ensure!(
        (mails, weeks) == (WEEKS, WEEKS),
        "one was mailed twice, or not"
    );
    Ok(())
}
