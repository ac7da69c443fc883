//! The tables of these tests.

use std::time::Duration;

use lockkit_db::own_table::{First, JobTable, LeasedJobs, Leasing, States};
use lockkit_db::sqlx;
use lockkit_db::transaction::Backend;

use crate::scene;

pub(crate) const STATES: States<&str> = States {
    ready: "pending",
    done: "done",
    failed: "failed",
};

pub(crate) const LEASING: Leasing<'_, &str> = Leasing {
    running: "running",
    until: "lease_until",
    fence: "fence",
    lasts: Duration::from_mins(10),
};

/// What the engines call the type of a time.
pub(crate) trait Engine {
    type DB: Backend;
    const TIME: &str;
}

impl Engine for scene::Postgres {
    type DB = sqlx::Postgres;
    const TIME: &str = "TIMESTAMPTZ";
}

impl Engine for scene::Sqlite {
    type DB = sqlx::Sqlite;
    const TIME: &str = "TEXT";
}

/// `jobs`, and `effect (job)` for what is written with the end of a job.
pub(crate) fn create<S: Engine>(_: &S) -> String {
    let time = S::TIME;
    format!(
        "CREATE TABLE jobs (id BIGINT PRIMARY KEY, status VARCHAR(7) DEFAULT 'pending', \
             scheduled_at {time} DEFAULT CURRENT_TIMESTAMP, rank INTEGER NOT NULL DEFAULT 0, \
             attempts INTEGER, report TEXT, lease_until {time}, fence BIGINT); \
         CREATE INDEX jobs_ready ON jobs (rank, scheduled_at, id) WHERE status = 'pending'; \
         CREATE INDEX jobs_running ON jobs (lease_until, id) WHERE status = 'running'; \
         CREATE TABLE effect (job BIGINT NOT NULL)"
    )
}

/// The type of a time.
pub(crate) fn time_of<S: Engine>(_: &S) -> &'static str {
    S::TIME
}

pub(crate) fn held<S: Engine>(_: &S) -> JobTable<S::DB> {
    JobTable::describe("jobs")
        .key("id")
        .status("status", STATES)
        .scheduled_at("scheduled_at")
        .priority("rank", First::Lowest)
        .attempts("attempts")
        .columns(["report"])
        .build()
        .unwrap()
}

pub(crate) fn leased<S: Engine>(scene: &S) -> LeasedJobs<S::DB> {
    LeasedJobs::new(&held(scene), LEASING).unwrap()
}

macro_rules! sql {
    ($scene:expr, $($text:tt)*) => {
        lockkit_db::sqlx::raw_sql(lockkit_db::sqlx::AssertSqlSafe(format!($($text)*)))
            .execute(&$scene.pool)
            .await
            .unwrap()
    };
}
pub(crate) use sql;

macro_rules! with_tables {
    ($scene:expr) => {
        crate::table::sql!($scene, "{}", crate::table::create(&$scene))
    };
}
pub(crate) use with_tables;

/// The leases of those that run are over.
macro_rules! leases_end {
    ($scene:expr) => {
        crate::table::sql!(
            $scene,
            "UPDATE jobs SET lease_until = '2000-01-01 00:00:00' WHERE status = 'running'"
        )
    };
}
pub(crate) use leases_end;

/// Status, fence and attempts of a job.
macro_rules! job {
    ($scene:expr, $id:expr) => {
        lockkit_db::sqlx::query_as::<_, (String, Option<i64>, Option<i64>)>(
            "SELECT status, fence, CAST(attempts AS bigint) FROM jobs WHERE id = $1",
        )
        .bind::<i64>($id)
        .fetch_one(&$scene.pool)
        .await
        .unwrap()
    };
}
pub(crate) use job;

/// The jobs with effects, sorted.
macro_rules! effects {
    ($scene:expr) => {
        lockkit_db::sqlx::query_scalar::<_, i64>("SELECT job FROM effect ORDER BY job")
            .fetch_all(&$scene.pool)
            .await
            .unwrap()
    };
}
pub(crate) use effects;

/// Commits an effect of a job.
macro_rules! effect {
    ($tx:expr, $id:expr) => {
        lockkit_db::sqlx::query("INSERT INTO effect VALUES ($1)")
            .bind::<i64>($id)
            .execute(&mut *$tx)
            .await
            .unwrap()
    };
}
pub(crate) use effect;

pub(crate) fn state(status: &str, fence: i64, attempts: i64) -> (String, Option<i64>, Option<i64>) {
    (status.to_owned(), Some(fence), Some(attempts))
}
