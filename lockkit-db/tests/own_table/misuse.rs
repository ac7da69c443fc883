//! Descriptions that cannot be, and tables that are not as described.

use std::error::Error as _;
use std::time::Duration;

use lockkit_db::own_table::{
    First, JobTable, JobTableBuilder, LeasedJobs, Leasing, States, StatusValue,
};
use lockkit_db::sqlx::Sqlite;
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_db::{Error, sqlx};

use crate::scene::{self, on_both};
use crate::table::{LEASING, STATES, held, leased, sql, with_tables};

fn field<T: std::fmt::Debug>(result: Result<T, Error>) -> (&'static str, String) {
    match result {
        Err(Error::Invalid { field, problem }) => (field, problem),
        other => panic!("it was not refused: {other:?}"),
    }
}

fn described(name: &str) -> JobTableBuilder<Sqlite> {
    JobTable::describe(name).key("id").status("status", STATES)
}

#[test]
fn names_that_are_not_plain_are_refused() {
    for name in ["", "a-b", "a b", "1st", "a\"b", "a;b", "ä", &"a".repeat(64)] {
        assert_eq!(field(described(name).build()).0, "table", "{name}");
        let of_key = JobTable::<Sqlite>::describe("jobs").key(name);
        assert_eq!(field(of_key.status("status", STATES).build()).0, "key");
        let of_status = JobTable::<Sqlite>::describe("jobs").key("id");
        assert_eq!(field(of_status.status(name, STATES).build()).0, "status");
        let jobs = || described("jobs");
        assert_eq!(field(jobs().scheduled_at(name).build()).0, "scheduled_at");
        assert_eq!(
            field(jobs().priority(name, First::Lowest).build()).0,
            "priority"
        );
        assert_eq!(field(jobs().attempts(name).build()).0, "attempts");
        assert_eq!(field(jobs().columns(["a", name]).build()).0, "columns");
        let table = jobs().build().unwrap();
        let leasing = Leasing {
            until: name,
            ..LEASING
        };
        assert_eq!(field(LeasedJobs::new(&table, leasing)).0, "until");
        let leasing = Leasing {
            fence: name,
            ..LEASING
        };
        assert_eq!(field(LeasedJobs::new(&table, leasing)).0, "fence");
    }
    assert_eq!(field(described("a.b.c").build()).0, "table");
    assert_eq!(field(described("a-b.c").build()).0, "schema");
}

#[test]
fn what_is_missing_or_there_twice_is_refused() {
    let bare = || JobTable::<Sqlite>::describe("jobs");
    assert_eq!(field(bare().key("id").build()).0, "status");
    assert_eq!(field(bare().status("status", STATES).build()).0, "key");
    assert_eq!(
        field(described("jobs").scheduled_at("Status").build()).0,
        "scheduled_at"
    );
    assert_eq!(
        field(described("jobs").columns(["a", "A"]).build()).0,
        "columns"
    );
    let many: Vec<_> = (0..501).map(|n| format!("c{n}")).collect();
    let many = described("jobs").columns(many.iter().map(String::as_str));
    assert_eq!(field(many.build()).0, "columns");
    let table = described("jobs").columns(["status", "id"]).build().unwrap();
    for taken in ["id", "STATUS"] {
        let leasing = Leasing {
            until: taken,
            ..LEASING
        };
        assert_eq!(field(LeasedJobs::new(&table, leasing)).0, "until");
    }
    let leasing = Leasing {
        until: "fence",
        ..LEASING
    };
    assert_eq!(field(LeasedJobs::new(&table, leasing)).0, "fence");
}

// Mutant: T18
#[test]
fn states_that_cannot_be_told_apart_are_refused() {
    let states = |ready: &str| States {
        ready: ready.to_owned(),
        done: "done".into(),
        failed: "failed".into(),
    };
    let bare = || JobTable::<Sqlite>::describe("jobs").key("id");
    for ready in [
        "done",
        "Done",
        " done ",
        "",
        "  ",
        "a\\b",
        "a\nb",
        "a\0b",
        &"a".repeat(64),
    ] {
        let (field, problem) = field(bare().status("status", states(ready)).build());
        assert!(field == "status" && problem.contains("ready"), "{problem}");
    }
    let numbers = States {
        ready: 0,
        done: 1,
        failed: 1,
    };
    assert_eq!(field(bare().status("status", numbers).build()).0, "status");
    let mixed = States {
        ready: StatusValue::from(0),
        done: "done".into(),
        failed: "failed".into(),
    };
    assert_eq!(field(bare().status("status", mixed).build()).0, "status");
    let table = described("jobs").build().unwrap();
    for running in ["pending", "FAILED", "", &"a".repeat(64)] {
        let leasing = Leasing { running, ..LEASING };
        let (field, problem) = field(LeasedJobs::new(&table, leasing));
        assert!(
            field == "status" && problem.contains("running"),
            "{problem}"
        );
    }
    let leasing = Leasing {
        running: 7,
        until: "lease_until",
        fence: "fence",
        lasts: LEASING.lasts,
    };
    assert_eq!(field(LeasedJobs::new(&table, leasing)).0, "status");
}

#[test]
fn leases_that_are_too_short_or_too_long_are_refused() {
    let table = described("jobs").build().unwrap();
    let of = |lasts| LeasedJobs::new(&table, Leasing { lasts, ..LEASING });
    let day = Duration::from_hours(24);
    for lasts in [
        Duration::ZERO,
        Duration::from_micros(9_999),
        day + Duration::from_nanos(1),
        Duration::MAX,
    ] {
        let (field, problem) = field(of(lasts));
        assert!(
            field == "lasts" && problem.contains("24") | problem.contains("86400"),
            "{problem}"
        );
    }
    assert!(of(Duration::from_millis(10)).is_ok() && of(day).is_ok());
}

on_both! {
    async fn batches_and_delays_have_limits(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
        let (held, leased) = (held(&scene), leased(&scene));
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        for n in [0, 10_001, usize::MAX] {
            assert_eq!(field(held.claim_in::<i64>(&mut tx, n).await).0, "n");
        }
        tx.rollback().await;
        for n in [0, 10_001, usize::MAX] {
            assert_eq!(field(leased.claim::<i64>(&scene.pool, n).await).0, "n");
        }
        let claim = leased.claim::<i64>(&scene.pool, 10_000).await.unwrap().remove(0).claim;
        for delay in [Duration::from_hours(11 * 366 * 24), Duration::MAX] {
            assert_eq!(field(leased.retry(&scene.pool, &claim, delay).await).0, "delay");
        }
        let delay = Duration::from_hours(10 * 366 * 24);
        let _ = leased.retry(&scene.pool, &claim, delay).await.unwrap();
    }
}

/// What is told of a table, and of which field and column.
fn misfit<T: std::fmt::Debug>(result: Result<T, Error>) -> (&'static str, String) {
    match result {
        Err(error @ Error::Table { problem, .. }) => {
            assert!(error.to_string().contains("jobs"), "{error}");
            let source = error.source().map(ToString::to_string);
            (problem, source.unwrap_or_default())
        }
        other => panic!("it fits: {other:?}"),
    }
}

// Mutant: T19
on_both! {
    async fn a_table_that_is_not_as_described_is_told_before_anything_is_claimed(scene: 1) {
        let told = |told: (&'static str, String), problem: &str, source: &str| {
            assert!(told.0.contains(problem) && told.1.contains(source), "{told:?}");
        };
        let (table, jobs) = (held(&scene), leased(&scene));
        told(misfit(table.verify(&scene.pool).await), "no such table", "");
        let claimed = jobs.claim::<i64>(&scene.pool, 1).await;
        told(misfit(claimed), "no such table", "");
        with_tables!(scene);
        sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
        table.verify(&scene.pool).await.unwrap();
        jobs.verify(&scene.pool).await.unwrap();

        let missing = JobTable::describe("jobs").key("id").status("status", STATES).scheduled_at("due");
        let missing = missing.build().unwrap();
        told(misfit(missing.verify(&scene.pool).await), "is not there", "scheduled_at is described as the column due");
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        told(misfit(missing.claim_in::<i64>(&mut tx, 1).await), "is not there", "due");
        tx.rollback().await;
        let read = JobTable::describe("jobs").key("id").status("status", STATES).columns(["body"]);
        told(misfit(read.build().unwrap().verify(&scene.pool).await), "is not there", "body");
        let fence = Leasing { fence: "epoch", ..LEASING };
        let fence = LeasedJobs::new(&table, fence).unwrap();
        told(misfit(fence.claim::<i64>(&scene.pool, 1).await), "is not there", "epoch");

        let unlike = "of another type";
        let time = JobTable::describe("jobs").key("id").status("status", STATES).scheduled_at("rank");
        told(misfit(time.build().unwrap().verify(&scene.pool).await), unlike, "rank");
        let status = JobTable::describe("jobs").key("id").status("rank", STATES);
        told(misfit(status.build().unwrap().verify(&scene.pool).await), unlike, "rank");
        let number = States { ready: 0, done: 1, failed: 2 };
        let number = JobTable::describe("jobs").key("id").status("status", number);
        told(misfit(number.build().unwrap().verify(&scene.pool).await), unlike, "status");
        let priority = JobTable::describe("jobs").key("id").status("status", STATES).priority("report", First::Highest);
        told(misfit(priority.build().unwrap().verify(&scene.pool).await), unlike, "report");
        let fence = Leasing { fence: "report", ..LEASING };
        let fence = LeasedJobs::new(&JobTable::describe("jobs").key("id").status("status", STATES).build().unwrap(), fence);
        told(misfit(fence.unwrap().claim::<i64>(&scene.pool, 1).await), unlike, "report");

        let key = JobTable::describe("jobs").key("rank").status("status", STATES);
        told(misfit(key.build().unwrap().verify(&scene.pool).await), "unique", "rank");
        sql!(scene, "CREATE UNIQUE INDEX a_part ON jobs (rank) WHERE status = 'pending'; \
                     CREATE UNIQUE INDEX both_of_them ON jobs (rank, report)");
        let key = JobTable::describe("jobs").key("rank").status("status", STATES);
        told(misfit(key.build().unwrap().verify(&scene.pool).await), "unique", "rank");

        let untouched: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE status = 'pending' AND fence IS NULL")
            .fetch_one(&scene.pool)
            .await
            .unwrap();
        assert_eq!(untouched, 1);
    }
}

#[tokio::test]
async fn a_key_of_another_type_is_told() {
    let scene = scene::Postgres::new(1).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO jobs (id) VALUES (1)");
    let jobs = held(&scene);
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let told = misfit(jobs.claim_in::<i32>(&mut tx, 1).await);
    assert!(told.0.contains("key"), "{told:?}");
    // It is the caller's to say, and the transaction goes on.
    assert_eq!(jobs.claim_in::<i64>(&mut tx, 1).await.unwrap().len(), 1);
    tx.rollback().await;
}

// Mutant: T20
#[tokio::test]
async fn a_status_that_its_column_cannot_take_is_told_before_anything_is_claimed() {
    let scene = scene::Postgres::new(1).await;
    with_tables!(scene);
    sql!(
        scene,
        "INSERT INTO jobs (id) VALUES (1); CREATE TYPE stage AS ENUM ('pending', 'done', 'failed'); \
        CREATE TABLE staged_jobs (id BIGINT PRIMARY KEY, stage stage, lease_until TIMESTAMPTZ, fence BIGINT, small SMALLINT)"
    );
    let leasing = Leasing {
        running: "being done",
        ..LEASING
    };
    let jobs = LeasedJobs::new(&held(&scene), leasing).unwrap();
    let told = misfit(jobs.claim::<i64>(&scene.pool, 1).await);
    assert!(
        told.0.contains("longer") && told.1.contains("status"),
        "{told:?}"
    );

    let staged = JobTable::describe("staged_jobs")
        .key("id")
        .status("stage", STATES)
        .build()
        .unwrap();
    staged.verify(&scene.pool).await.unwrap();
    let jobs = LeasedJobs::new(&staged, LEASING).unwrap();
    let told = misfit(jobs.claim::<i64>(&scene.pool, 1).await);
    assert!(
        told.0.contains("none of its column's type")
            && told.1.contains("running") | told.1.contains("returned error"),
        "{told:?}"
    );
    // One that would be full before long.
    let jobs = LeasedJobs::new(
        &staged,
        Leasing {
            fence: "small",
            ..LEASING
        },
    )
    .unwrap();
    let told = misfit(jobs.verify(&scene.pool).await);
    assert!(told.1.contains("small"), "{told:?}");
}
