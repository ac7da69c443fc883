//! The claim with a lease.

use std::time::{Duration, Instant};

use lockkit_core::Fence;
use lockkit_db::own_table::{JobTable, LeasedJobs, Leasing, Settlement, States, Times};
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_db::{Error, retry_tx, sqlx};

use crate::scene::{self, on_both};
use crate::table::{
    LEASING, STATES, effect, effects, held, job, leased, leases_end, sql, state, with_tables,
};

on_both! {
    async fn a_claim_is_committed_at_once_and_its_end_as_well(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id, report) VALUES (1, 'week 1'), (2, NULL), (3, 'week 3')");
        let jobs = leased(&scene);
        let before = Instant::now();
        let claimed = jobs.claim::<i64>(&scene.pool, 2).await.unwrap();
        let mut ids: Vec<_> = claimed.iter().map(|job| job.claim.key).collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 2]);
        for job in &claimed {
            assert_eq!((job.claim.fence, job.attempt), (Fence::MIN, Some(1)));
            assert!(job.claim.deadline >= before + LEASING.lasts);
            assert!(job.claim.deadline <= Instant::now() + LEASING.lasts);
            assert_eq!(job!(scene, job.claim.key), state("running", 1, 1));
        }
        assert_eq!(jobs.done(&scene.pool, &claimed[0].claim).await.unwrap(), Settlement::Accepted);
        assert_eq!(jobs.fail(&scene.pool, &claimed[1].claim).await.unwrap(), Settlement::Accepted);
        assert_eq!(job!(scene, claimed[0].claim.key), state("done", 1, 1));
        assert_eq!(job!(scene, claimed[1].claim.key), state("failed", 1, 1));
        assert_eq!(jobs.claim::<i64>(&scene.pool, 10).await.unwrap().len(), 1);
        assert!(jobs.claim::<i64>(&scene.pool, 10).await.unwrap().is_empty());
        scene.is_clean().await;
    }
}

/// Nobody accepts what `claim` says.
macro_rules! all_words_are_stale {
    ($jobs:expr, $scene:expr, $claim:expr) => {{
        let (jobs, pool, mut claim) = (&$jobs, &$scene.pool, $claim.clone());
        assert_eq!(
            jobs.extend(pool, &mut claim).await.unwrap(),
            Settlement::Stale
        );
        assert_eq!(claim, $claim, "the deadline stays");
        assert_eq!(jobs.done(pool, &claim).await.unwrap(), Settlement::Stale);
        assert_eq!(jobs.fail(pool, &claim).await.unwrap(), Settlement::Stale);
        assert_eq!(
            jobs.retry(pool, &claim, Duration::ZERO).await.unwrap(),
            Settlement::Stale
        );
        assert_eq!(jobs.release(pool, &claim).await.unwrap(), Settlement::Stale);
        let told = retry_tx!(pool, |tx| {
            effect!(tx, claim.key);
            jobs.done_in(&mut tx, &claim).await
        });
        assert!(matches!(told, Err(Error::JobLost { .. })), "{told:?}");
        assert!(effects!($scene).is_empty());
    }};
}

// Mutants: T12, T13
on_both! {
    async fn a_late_holder_is_refused_before_and_after_somebody_else_has_claimed(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
        let jobs = leased(&scene);
        let late = jobs.claim::<i64>(&scene.pool, 1).await.unwrap().remove(0).claim;
        leases_end!(scene);
        all_words_are_stale!(jobs, scene, late);
        assert_eq!(job!(scene, 1), state("running", 1, 1));

        let next = jobs.claim::<i64>(&scene.pool, 1).await.unwrap().remove(0);
        assert_eq!((next.claim.fence.get(), next.attempt), (2, Some(2)));
        all_words_are_stale!(jobs, scene, late);
        assert_eq!(job!(scene, 1), state("running", 2, 2));
        assert_eq!(jobs.done(&scene.pool, &next.claim).await.unwrap(), Settlement::Accepted);
        all_words_are_stale!(jobs, scene, late);
        assert_eq!(job!(scene, 1), state("done", 2, 2));
    }
}

// Mutants: T14, T22
on_both! {
    async fn what_was_said_can_be_said_again_and_nothing_else(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1), (2), (3), (4)");
        let jobs = leased(&scene);
        let pool = &scene.pool;
        let mut claimed = jobs.claim::<i64>(pool, 4).await.unwrap();
        claimed.sort_by_key(|job| job.claim.key);
        let [one, two, three, four] = [0, 1, 2, 3].map(|at| claimed[at].claim.clone());
        let hour = Duration::from_hours(1);
        for _ in 0..2 {
            assert_eq!(jobs.done(pool, &one).await.unwrap(), Settlement::Accepted);
            assert_eq!(jobs.fail(pool, &two).await.unwrap(), Settlement::Accepted);
            assert_eq!(jobs.retry(pool, &three, hour).await.unwrap(), Settlement::Accepted);
            assert_eq!(jobs.release(pool, &four).await.unwrap(), Settlement::Accepted);
        }
        assert_eq!(jobs.fail(pool, &one).await.unwrap(), Settlement::Stale);
        assert_eq!(jobs.retry(pool, &two, hour).await.unwrap(), Settlement::Stale);
        assert_eq!(jobs.done(pool, &three).await.unwrap(), Settlement::Stale);
        assert_eq!(jobs.extend(pool, &mut four.clone()).await.unwrap(), Settlement::Stale);
        assert_eq!(job!(scene, 1), state("done", 1, 1));
        assert_eq!(job!(scene, 2), state("failed", 1, 1));
        assert_eq!(job!(scene, 3), state("pending", 1, 1));
        // The attempt is given back, and once.
        assert_eq!(job!(scene, 4), state("pending", 1, 0));
        let next = jobs.claim::<i64>(pool, 9).await.unwrap();
        assert_eq!(next.len(), 1, "the one to retry is not due");
        assert_eq!((next[0].claim.key, next[0].claim.fence.get(), next[0].attempt), (4, 2, Some(1)));
        assert_eq!(jobs.release(pool, &four).await.unwrap(), Settlement::Stale);
    }
}

// Mutants: T15, T25
on_both! {
    async fn jobs_whose_lease_is_over_come_first_and_count(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1), (2), (3), (4), (5)");
        let jobs = leased(&scene);
        let mut lost = jobs.claim::<i64>(&scene.pool, 2).await.unwrap();
        leases_end!(scene);
        // Of these, one is not over after all.
        sql!(scene, "INSERT INTO jobs (id, status, lease_until) VALUES (6, 'running', '2999-01-01 00:00:00'), \
                                                                       (7, 'running', NULL)");
        let next = jobs.claim::<i64>(&scene.pool, 3).await.unwrap();
        let mut told: Vec<_> = next.iter().map(|job| (job.claim.key, job.claim.fence.get())).collect();
        told.sort_unstable();
        lost.sort_by_key(|job| job.claim.key);
        let (a, b) = (lost[0].claim.key, lost[1].claim.key);
        assert_eq!(told, [(a, 2), (b, 2), (3, 1)]);
        assert_eq!(jobs.claim::<i64>(&scene.pool, 9).await.unwrap().len(), 2);
    }
}

on_both! {
    async fn a_lease_can_be_extended_while_it_lasts(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
        let jobs = leased(&scene);
        let mut claim = jobs.claim::<i64>(&scene.pool, 1).await.unwrap().remove(0).claim;
        let first = claim.deadline;
        sql!(scene, "UPDATE jobs SET lease_until = '2999-01-01 00:00:00'");
        assert_eq!(jobs.extend(&scene.pool, &mut claim).await.unwrap(), Settlement::Accepted);
        assert!(claim.deadline > first);
        let left: bool = sqlx::query_scalar("SELECT lease_until < '2998-01-01 00:00:00' FROM jobs")
            .fetch_one(&scene.pool)
            .await
            .unwrap();
        assert!(left, "it lasts as long as at first");
        assert_eq!(jobs.done(&scene.pool, &claim).await.unwrap(), Settlement::Accepted);
    }
}

on_both! {
    async fn effects_of_a_job_are_committed_with_its_end_and_once(scene: 2) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
        let jobs = leased(&scene);
        let claim = jobs.claim::<i64>(&scene.pool, 1).await.unwrap().remove(0).claim;
        let mut dropped = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        effect!(dropped, 1);
        jobs.done_in(&mut dropped, &claim).await.unwrap();
        drop(dropped);
        scene.is_quiet().await;
        assert_eq!(job!(scene, 1).0, "running");
        for again in [false, true] {
            let told = retry_tx!(&scene.pool, |tx| {
                effect!(tx, 1);
                jobs.done_in(&mut tx, &claim).await
            });
            // Mutant: T16
            assert_eq!(told.is_err(), again, "{told:?}");
        }
        assert_eq!(effects!(scene), [1]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_about_to_be_done_is_nobody_elses_though_its_lease_ends() {
    let scene = scene::Postgres::new(3).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
    let lasts = Duration::from_secs(3);
    let jobs = LeasedJobs::new(&held(&scene), Leasing { lasts, ..LEASING }).unwrap();
    let claim = jobs
        .claim::<i64>(&scene.pool, 1)
        .await
        .unwrap()
        .remove(0)
        .claim;
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    jobs.done_in(&mut tx, &claim).await.unwrap();
    let over = "SELECT lease_until <= clock_timestamp() FROM jobs";
    while !sqlx::query_scalar::<_, bool>(over)
        .fetch_one(&scene.pool)
        .await
        .unwrap()
    {}
    assert!(jobs.claim::<i64>(&scene.pool, 1).await.unwrap().is_empty());
    tx.commit().await.unwrap();
    assert!(jobs.claim::<i64>(&scene.pool, 1).await.unwrap().is_empty());
    assert_eq!(job!(scene, 1).0, "done");
}

on_both! {
    async fn a_lease_ends_by_the_clock_of_the_database(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
        let lasts = Duration::from_millis(10);
        let jobs = LeasedJobs::new(&held(&scene), Leasing { lasts, ..LEASING }).unwrap();
        let first = jobs.claim::<i64>(&scene.pool, 1).await.unwrap().remove(0).claim;
        let next = loop {
            if let Some(job) = jobs.claim::<i64>(&scene.pool, 1).await.unwrap().pop() {
                break job;
            }
        };
        assert_eq!(next.claim.fence.get(), 2);
        assert!(first.deadline <= Instant::now(), "the holder stops before others begin");
    }
}

// Mutant: T17
on_both! {
    async fn rows_that_cannot_be_claimed_or_read_are_in_nobodys_way(scene: 1) {
        with_tables!(scene);
        sql!(scene, "DROP TABLE jobs; \
            CREATE TABLE jobs (id BIGINT UNIQUE, status VARCHAR(7) DEFAULT 'pending', scheduled_at {}, \
                rank INTEGER, attempts INTEGER, report TEXT, lease_until {0}, fence BIGINT); \
            INSERT INTO jobs (id, fence) VALUES (1, {}), (2, -5), (NULL, NULL), (NULL, NULL), (3, NULL), (4, 7); \
            UPDATE jobs SET scheduled_at = '2001-01-01 00:00:00'; \
            UPDATE jobs SET report = 'week 3' WHERE id = 3; \
            INSERT INTO jobs (id, status, scheduled_at, lease_until, fence) \
            VALUES (5, 'running', NULL, '2000-01-01 00:00:00', {1})",
            crate::table::time_of(&scene), i64::MAX);
        let jobs = leased(&scene);
        let mut claimed = Vec::new();
        for _ in 0..3 {
            claimed.extend(jobs.claim::<i64>(&scene.pool, 1).await.unwrap());
        }
        let told: Vec<_> = claimed.iter().map(|job| (job.claim.key, job.claim.fence.get())).collect();
        assert_eq!(told, [(3, 1), (4, 8)]);
        // What is not as expected is an error of that job alone.
        let error = claimed[0].row.read::<(i64,)>().unwrap_err();
        assert!(matches!(&error, Error::Table { table, .. } if table == "jobs"), "{error:?}");
        assert_eq!(claimed[1].row.read::<(Option<String>,)>().unwrap(), (None,));
        assert_eq!(jobs.fail(&scene.pool, &claimed[0].claim).await.unwrap(), Settlement::Accepted);
    }
}

on_both! {
    async fn a_table_and_its_columns_may_be_called_as_the_statements_call_their_parts(scene: 1) {
        let time = crate::table::time_of(&scene);
        sql!(scene, "DROP TABLE t");
        for name in ["t", "c", "lost", "due", "jobs", "order"] {
            sql!(scene, "CREATE TABLE \"{name}\" (t BIGINT PRIMARY KEY, c TEXT, \"order\" {time}, \"select\" {time}, \
                n BIGINT, \"limit\" TEXT); INSERT INTO \"{name}\" (t, c, \"order\") VALUES (1, 'pending', '2001-01-01 00:00:00')");
            let jobs = JobTable::describe(name).key("t").status("c", STATES).scheduled_at("order");
            let jobs = jobs.columns(["t", "limit"]).build().unwrap();
            let leasing = Leasing { until: "select", fence: "n", ..LEASING };
            let jobs = LeasedJobs::new(&jobs, leasing).unwrap();
            let claim = jobs.claim::<i64>(&scene.pool, 1).await.unwrap().remove(0).claim;
            assert_eq!(jobs.retry(&scene.pool, &claim, Duration::ZERO).await.unwrap(), Settlement::Accepted, "{name}");
            assert_eq!(jobs.claim::<i64>(&scene.pool, 1).await.unwrap().len(), 1, "{name}");
        }
    }
}

// Mutant: T10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_are_about_to_claim_is_skipped_and_not_waited_for() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO jobs (id) VALUES (1), (2)");
    let jobs = leased(&scene);
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    assert_eq!(
        held(&scene)
            .claim_in::<i64>(&mut tx, 1)
            .await
            .unwrap()
            .len(),
        1
    );
    let claimed = tokio::time::timeout(Duration::from_secs(20), jobs.claim::<i64>(&scene.pool, 2));
    let claimed = claimed.await.expect("it waits").unwrap();
    assert_eq!(
        claimed.iter().map(|job| job.claim.key).collect::<Vec<_>>(),
        [2]
    );
    tx.rollback().await;
}

// Mutant: T27
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_change_while_a_claim_is_under_way_are_claimed_as_they_are_by_then() {
    let scene = scene::Postgres::new(3).await;
    with_tables!(scene);
    // The claim stops at job 1, when it has seen all of them and got no further.
    sql!(
        scene,
        "INSERT INTO jobs (id, status) SELECT n, 'done' FROM generate_series(10, 5000) AS n; \
         INSERT INTO jobs (id) VALUES (1), (2), (3), (4); ANALYZE jobs; \
         CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             PERFORM pg_advisory_xact_lock(7); RETURN NEW; END $$; \
         CREATE TRIGGER stop BEFORE UPDATE ON jobs FOR EACH ROW WHEN (NEW.id = 1 AND NEW.fence = 2) EXECUTE FUNCTION stop()"
    );
    let jobs = leased(&scene);
    assert_eq!(jobs.claim::<i64>(&scene.pool, 4).await.unwrap().len(), 4);
    leases_end!(scene);
    let mut gate = scene.database.connect().await;
    sqlx::raw_sql("SELECT pg_advisory_lock(7)")
        .execute(&mut gate)
        .await
        .unwrap();
    let claim = tokio::spawn({
        let (jobs, pool) = (jobs.clone(), scene.pool.clone());
        async move { jobs.claim::<i64>(&pool, 3).await }
    });
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity \
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while !sqlx::query_scalar::<_, bool>(waits)
        .fetch_one(&mut gate)
        .await
        .unwrap()
    {}
    // Of the others, two change, and one is somebody else's by then.
    sql!(
        scene,
        "UPDATE jobs SET fence = 8, lease_until = '2000-01-01 00:00:00' WHERE id IN (2, 4); \
         UPDATE jobs SET fence = 2, lease_until = '2999-01-01 00:00:00' WHERE id = 3"
    );
    sqlx::raw_sql("SELECT pg_advisory_unlock(7)")
        .execute(&mut gate)
        .await
        .unwrap();
    let claimed = claim.await.unwrap().unwrap();
    let mut told: Vec<_> = (claimed.iter())
        .map(|job| (job.claim.key, job.claim.fence.get()))
        .collect();
    told.sort_unstable();
    assert_eq!(told, [(1, 2), (2, 9), (4, 9)]);
}

// Mutant: T24
/// The kinds of times, with the type of their columns, and with times long past and far ahead.
macro_rules! times {
    ($scene:ident, $($times:ident $column:literal $past:literal $ahead:literal),+ $(,)?) => {$({
        sql!($scene, "DROP TABLE IF EXISTS timed; \
            CREATE TABLE timed (id INTEGER PRIMARY KEY, status INTEGER NOT NULL DEFAULT 0, \
                due {0}, lease {0}, fence BIGINT); \
            INSERT INTO timed (id, due) VALUES (1, {1}), (2, {2})", $column, $past, $ahead);
        let jobs = JobTable::describe("timed")
            .key("id")
            .status("status", States { ready: 0, done: 2, failed: 3 })
            .scheduled_at("due")
            .times(Times::$times)
            .build()
            .unwrap();
        let lasts = Duration::from_mins(10);
        let leasing = Leasing { running: 1, until: "lease", fence: "fence", lasts };
        let jobs = LeasedJobs::new(&jobs, leasing).unwrap();
        let mut first = jobs.claim::<i32>(&$scene.pool, 9).await.unwrap();
        assert_eq!(first.len(), 1, "{}", stringify!($times));
        assert_eq!(first[0].attempt, None);
        assert_eq!(jobs.extend(&$scene.pool, &mut first[0].claim).await.unwrap(), Settlement::Accepted);
        assert!(jobs.claim::<i32>(&$scene.pool, 9).await.unwrap().is_empty(), "{}", stringify!($times));
        sql!($scene, "UPDATE timed SET lease = due WHERE id = 1");
        assert_eq!(jobs.done(&$scene.pool, &first[0].claim).await.unwrap(), Settlement::Stale);
        let next = jobs.claim::<i32>(&$scene.pool, 9).await.unwrap().remove(0).claim;
        assert_eq!((next.key, next.fence.get()), (1, 2));
        let hour = Duration::from_hours(1);
        assert_eq!(jobs.retry(&$scene.pool, &next, hour).await.unwrap(), Settlement::Accepted);
        assert!(jobs.claim::<i32>(&$scene.pool, 9).await.unwrap().is_empty(), "{}", stringify!($times));
        assert_eq!(jobs.retry(&$scene.pool, &next, Duration::ZERO).await.unwrap(), Settlement::Accepted);
        // Rounded up, it may be the next second.
        while jobs.claim::<i32>(&$scene.pool, 9).await.unwrap().is_empty() {}
    })+};
}

#[tokio::test]
async fn times_are_what_a_column_has_on_postgres() {
    let scene = scene::Postgres::new(1).await;
    // A session's own zone is no matter.
    sql!(scene, "SET TIME ZONE 'Asia/Kathmandu'");
    times!(scene,
        Timestamp "TIMESTAMPTZ" "clock_timestamp() - interval '1 second'" "clock_timestamp() + interval '1 hour'",
        Utc "TIMESTAMP" "(clock_timestamp() - interval '1 second') AT TIME ZONE 'UTC'"
            "(clock_timestamp() + interval '1 hour') AT TIME ZONE 'UTC'",
        UnixSeconds "BIGINT" "extract(epoch FROM clock_timestamp())::bigint - 1"
            "extract(epoch FROM clock_timestamp())::bigint + 3600",
        UnixMillis "BIGINT" "extract(epoch FROM clock_timestamp())::bigint * 1000 - 1000"
            "extract(epoch FROM clock_timestamp())::bigint * 1000 + 3600000",
        Timestamp "TIMESTAMPTZ" "'-infinity'" "'infinity'",
    );
}

#[tokio::test]
async fn times_are_what_a_column_has_on_sqlite() {
    let scene = scene::Sqlite::new(1).await;
    times!(scene,
        Timestamp "TEXT" "datetime('now', '-1 second')" "datetime('now', '1 hour')",
        Utc "DATETIME" "datetime('now', '-1 second')" "datetime('now', '1 hour')",
        UnixSeconds "INTEGER" "unixepoch() - 1" "unixepoch() + 3600",
        UnixMillis "INTEGER" "unixepoch() * 1000 - 1000" "unixepoch() * 1000 + 3600000",
    );
}

#[tokio::test]
async fn a_status_may_be_an_enum_and_a_key_a_text_and_a_table_in_a_schema() {
    let scene = scene::Postgres::new(1).await;
    sql!(
        scene,
        "CREATE SCHEMA app; CREATE TYPE app.stage AS ENUM ('it''s time', 'at work', 'over', 'lost'); \
        CREATE DOMAIN app.moment AS timestamptz; \
        CREATE TABLE app.\"Jobs\" (\"Key\" TEXT UNIQUE, stage app.stage NOT NULL, lease app.moment, fence BIGINT); \
        INSERT INTO app.\"Jobs\" VALUES ('a ''b''', 'it''s time')"
    );
    let states = States {
        ready: "it's time",
        done: "over",
        failed: "lost",
    };
    let jobs: JobTable<sqlx::Postgres> = JobTable::describe("app.Jobs")
        .key("Key")
        .status("stage", states)
        .columns(["Key", "stage"])
        .build()
        .unwrap();
    let leasing = Leasing {
        running: "at work",
        until: "lease",
        ..LEASING
    };
    let jobs = LeasedJobs::new(&jobs, leasing).unwrap();
    let claimed = jobs
        .claim::<String>(&scene.pool, 1)
        .await
        .unwrap()
        .remove(0);
    assert_eq!(claimed.claim.key, "a 'b'");
    assert_eq!(
        jobs.done(&scene.pool, &claimed.claim).await.unwrap(),
        Settlement::Accepted
    );
    let stage: String = sqlx::query_scalar("SELECT stage::text FROM app.\"Jobs\"")
        .fetch_one(&scene.pool)
        .await
        .unwrap();
    assert_eq!(stage, "over");
}
