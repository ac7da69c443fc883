//! What is SQLite's own: the file, its locks, the schema, the caller's transaction.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockkit_db::Error;
use lockkit_db::queue::{
    Ack, AckBatch, ClaimSpec, JobStore, NewJob, SessionSpec, Settlement, SqliteOptions, SqliteStore,
};
use lockkit_db::sqlx::{self, Connection as _, SqliteConnection};

async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite://{}", path.display()))
        .await
        .unwrap()
}

fn jobs(n: usize) -> Vec<NewJob> {
    vec![NewJob::new("k", vec![]); n]
}

fn spec(worker: &str) -> SessionSpec {
    SessionSpec {
        worker: worker.into(),
        host: "h".into(),
        lease: Duration::from_mins(1),
    }
}

#[tokio::test]
async fn a_path_that_cannot_work_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = path("text");
    std::fs::write(
        &text,
        "this is not a database, and it is longer than a header",
    )
    .unwrap();
    let short = path("short");
    std::fs::write(&short, "short").unwrap();
    let read_only = path("read_only");
    std::fs::write(&read_only, "").unwrap();
    std::fs::set_permissions(&read_only, std::fs::Permissions::from_mode(0o444)).unwrap();
    let damaged = path("damaged");
    std::fs::write(
        &damaged,
        [b"SQLite format 3\0".as_slice(), &[0xff; 4096]].concat(),
    )
    .unwrap();
    let before: Vec<_> = [&text, &short, &read_only, &damaged]
        .map(|path| std::fs::read(path).unwrap())
        .into();

    for (path, problem) in [
        (folder.path().to_owned(), "is a folder"),
        (path("missing/jobs.db"), "its folder cannot be used"),
        (text.join("jobs.db"), "its folder is not a folder"),
        (text.clone(), "is not a SQLite database"),
        (short.clone(), "is not a SQLite database"),
        (read_only.clone(), "is read-only"),
        (damaged.clone(), "is not a SQLite database"),
        (":memory:".into(), "must be a plain path"),
        ("file:jobs.db?mode=memory".into(), "must be a plain path"),
        ("".into(), "the path is empty"),
        ("a\0b".into(), "contains a NUL"),
        ("/dev/null".into(), "is not a regular file"),
    ] {
        match SqliteStore::open(&path).await.err() {
            Some(Error::File { problem: told, .. }) => {
                assert!(told.contains(problem), "{}: {told}", path.display());
            }
            other => panic!("{} was not refused: {other:?}", path.display()),
        }
    }
    let after: Vec<_> = [&text, &short, &read_only, &damaged]
        .map(|path| std::fs::read(path).unwrap())
        .into();
    assert_eq!(before, after, "no file was touched");
    let names: BTreeSet<_> = folder
        .path()
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 4, "and none was made: {names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_open_a_new_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    let opens: Vec<_> = (0..16)
        .map(|_| tokio::spawn(SqliteStore::open(path.clone())))
        .collect();
    for open in opens {
        open.await.unwrap().unwrap().stats().await.unwrap();
    }
    let row = sqlx::query("SELECT count(*) FROM lockkit_migration")
        .fetch_one(&mut raw(&path).await)
        .await
        .unwrap();
    assert_eq!(sqlx::Row::get::<i64, _>(&row, 0), 1, "each step once");
}

#[tokio::test]
async fn tables_of_a_newer_version_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    drop(SqliteStore::open(&path).await.unwrap());
    let newer = "INSERT INTO lockkit_migration VALUES (999, 'from the future', '')";
    sqlx::raw_sql(newer)
        .execute(&mut raw(&path).await)
        .await
        .unwrap();
    let error = SqliteStore::open(&path).await.err().unwrap();
    assert!(matches!(error, Error::Schema { .. }));
    assert!(
        error
            .to_string()
            .contains("999 (from the future), which is newer"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_file_is_waited_for_within_the_patience() {
    // Mutant Q8: the first "database is locked" is passed on.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    let patience = Duration::from_millis(1500);
    let store = SqliteStore::open_with(SqliteOptions::new(&path).patience(patience))
        .await
        .unwrap();
    let mut other = raw(&path).await;
    sqlx::raw_sql("BEGIN IMMEDIATE")
        .execute(&mut other)
        .await
        .unwrap();
    let begun = Instant::now();
    match store.enqueue("q", &jobs(1)).await {
        Err(error @ Error::Busy { .. }) => assert!(error.is_transient()),
        other => panic!("the file is locked: {other:?}"),
    }
    assert!(
        begun.elapsed() >= patience / 2,
        "it gave up after {:?}",
        begun.elapsed()
    );
    // The reader is not locked out, and the writer goes on once it can.
    assert_eq!(store.stats().await.unwrap().ready, 0);
    let waits = tokio::spawn(async move {
        store.enqueue("q", &jobs(1)).await.unwrap();
        store.stats().await.unwrap().ready
    });
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    assert_eq!(waits.await.unwrap(), 1);
}

#[tokio::test]
async fn held_writes_hold_this_store_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    let (store, other) = (
        SqliteStore::open(&path).await.unwrap(),
        SqliteStore::open(&path).await.unwrap(),
    );
    let session = store.open_session(&spec("w")).await.unwrap();
    let held = store.hold_writes().await;
    let soon = Duration::from_millis(50);
    assert!(
        tokio::time::timeout(soon, store.enqueue("q", &jobs(1)))
            .await
            .is_err()
    );
    assert!(
        tokio::time::timeout(soon, store.renew(&session))
            .await
            .is_err()
    );
    other.enqueue("q", &jobs(1)).await.unwrap();
    drop(held);
    store.enqueue("q", &jobs(1)).await.unwrap();
    assert_eq!(store.stats().await.unwrap().ready, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_writers_take_each_job_once_and_see_no_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let all: BTreeSet<_> = store
        .enqueue("q", &jobs(2000))
        .await
        .unwrap()
        .into_iter()
        .collect();
    let worker = async |name: String, path: std::path::PathBuf| {
        let store = SqliteStore::open(path).await.unwrap();
        let session = store.open_session(&spec(&name)).await.unwrap();
        let (mut batch, mut mine) = (None, Vec::new());
        loop {
            let claim = ClaimSpec::new("q", 7);
            let exchange = store
                .exchange(&session, batch.as_ref(), Some(&claim))
                .await
                .unwrap();
            assert!(
                exchange
                    .settled
                    .iter()
                    .all(|settled| *settled == Settlement::Accepted)
            );
            if exchange.claimed.is_empty() {
                return mine;
            }
            mine.extend(exchange.claimed.iter().map(|job| job.id));
            let seq = batch.map_or(1, |batch: AckBatch| batch.seq + 1);
            batch = Some(AckBatch {
                seq,
                acks: exchange.claimed.iter().map(Ack::done).collect(),
            });
        }
    };
    let workers: Vec<_> = (0..4)
        .map(|n| tokio::spawn(worker(format!("w{n}"), path.clone())))
        .collect();
    let mut taken = Vec::new();
    for worker in workers {
        taken.extend(worker.await.unwrap());
    }
    assert_eq!(taken.len(), 2000);
    assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), all);
    let stats = store.stats().await.unwrap();
    assert_eq!(
        stats.workers.iter().map(|worker| worker.done).sum::<u64>(),
        2000
    );
    let _keep: Arc<SqliteStore> = Arc::new(store);
}

#[tokio::test]
async fn no_statement_walks_or_sorts_what_it_can_look_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    drop(SqliteStore::open(&path).await.unwrap());
    let mut raw = raw(&path).await;
    let job = "lockkit_job";
    macro_rules! plan {
        ($name:literal) => {{
            let explain = concat!(
                "EXPLAIN QUERY PLAN ",
                include_str!(concat!("../sql/sqlite/", $name, ".sql"))
            );
            let rows = sqlx::query(explain).fetch_all(&mut raw).await.unwrap();
            let plan: Vec<String> = rows.iter().map(|row| sqlx::Row::get(row, 3)).collect();
            let plan = plan.join("\n");
            assert!(!plan.contains("B-TREE FOR ORDER"), "{}:\n{plan}", $name);
            for table in [job, "j", "lockkit_done", "lockkit_dead"] {
                // The owner's index holds what workers have in hand, and nothing else.
                let walks = |line: &&str| {
                    line.starts_with(&format!("SCAN {table}"))
                        && !line.ends_with("lockkit_job_owner")
                };
                assert_eq!(plan.lines().find(walks), None, "{}:\n{plan}", $name);
            }
            plan
        }};
    }
    assert!(plan!("claim").contains("lockkit_job_ready"));
    assert!(plan!("claim_again").contains("lockkit_job_owner"));
    for plan in [
        plan!("ack_done"),
        plan!("ack_bury"),
        plan!("ack_bury_done"),
        plan!("ack_keep"),
        plan!("ack_settled"),
        plan!("ack_in"),
        plan!("ack_cancelled"),
        plan!("cancel_queued"),
        plan!("cancel_claimed"),
    ] {
        assert!(
            plan.contains("USING INTEGER PRIMARY KEY (rowid=?)"),
            "{plan}"
        );
    }
    // Mutant Q11: for each entry, all that the session holds is walked.
    let plan = plan!("ack_requeue");
    assert!(!plan.contains("lockkit_job_owner"), "{plan}");
    for plan in [
        plan!("reap_bury"),
        plan!("reap_bury_done"),
        plan!("reap_requeue"),
        plan!("reap_unwanted"),
        plan!("unwanted"),
    ] {
        assert!(plan.contains("lockkit_job_owner"), "{plan}");
        assert!(!plan.contains("TABLE lockkit_dead"), "{plan}");
    }
    assert!(plan!("unique_taken").contains("lockkit_job_unique"));
    for plan in [plan!("reap_settled"), plan!("reap_settled_done")] {
        assert!(plan.contains("lockkit_job_settled"), "{plan}");
    }
    assert!(plan!("promote").contains("lockkit_job_due"));
    assert!(plan!("ready_probe").contains("lockkit_job_ready"));
}

/// Puts a clock into the file that jumps, as it does for a process that is paused between two
/// statements.
async fn jumping_clock(path: &Path, view: &str) {
    let sql = format!("DROP VIEW lockkit_now; CREATE VIEW lockkit_now AS SELECT {view} AS ms");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&mut raw(path).await)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_lease_that_ends_inside_a_transaction_ends_before_or_after_it() {
    // Mutant Q12: whether the session lives is asked in each statement anew.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store.enqueue("q", &jobs(2)).await.unwrap();
    jumping_clock(&path, "1000").await;
    let session = store.open_session(&spec("w")).await.unwrap();
    let claim = ClaimSpec::new("q", 2);
    sqlx::raw_sql("UPDATE lockkit_job SET state = 0")
        .execute(&mut raw(&path).await)
        .await
        .unwrap();
    let held = store
        .exchange(&session, None, Some(&claim))
        .await
        .unwrap()
        .claimed;
    // As soon as a result is filed, the lease is over.
    let view = "CASE WHEN EXISTS (SELECT 1 FROM lockkit_done) THEN 9000000 ELSE 1000 END";
    jumping_clock(&path, view).await;
    let kept = lockkit_db::queue::Verdict::Done {
        result: Some(b"r".to_vec()),
    };
    let acks = held.iter().map(|job| Ack::new(job, kept.clone())).collect();
    let batch = AckBatch { seq: 1, acks };
    let settled = store
        .exchange(&session, Some(&batch), None)
        .await
        .unwrap()
        .settled;
    let stats = store.stats().await.unwrap();
    assert_eq!(settled, [Settlement::Accepted; 2]);
    assert_eq!(
        (stats.kept, stats.claimed, stats.workers[0].done),
        (2, 0, 2)
    );
}

#[tokio::test]
async fn a_clock_that_jumps_while_sessions_are_reaped_loses_no_count_and_no_job() {
    // Mutant Q13: who has ended is asked in each statement anew.
    for (table, jump) in [("lockkit_worker", "9000000"), ("lockkit_dead", "0")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.db");
        let store = SqliteStore::open(&path).await.unwrap();
        jumping_clock(&path, "1000").await;
        store
            .enqueue("q", &[NewJob::new("k", vec![]).max_attempts(1)])
            .await
            .unwrap();
        let session = store.open_session(&spec("a")).await.unwrap();
        let other = store.open_session(&spec("b")).await.unwrap();
        let claim = ClaimSpec::new("q", 1);
        store.exchange(&session, None, Some(&claim)).await.unwrap();
        sqlx::raw_sql(
            "UPDATE lockkit_session SET done = 5, lease_until = 70000 WHERE worker = 'b'",
        )
        .execute(&mut raw(&path).await)
        .await
        .unwrap();
        // Session a is over at 61,000 and b at 70,000; in between, the clock jumps.
        let view = format!("CASE WHEN EXISTS (SELECT 1 FROM {table}) THEN {jump} ELSE 65000 END");
        jumping_clock(&path, &view).await;
        let upkeep = store.upkeep().await.unwrap();
        assert_eq!((upkeep.buried, upkeep.requeued), (1, 0), "{table}");
        store.close_session(&other).await.unwrap();
        store.upkeep().await.unwrap();
        let stats = store.stats().await.unwrap();
        assert_eq!((stats.claimed, stats.dead), (0, 1), "{table}");
        let done: Vec<_> = stats.workers.iter().map(|w| (&*w.worker, w.done)).collect();
        assert_eq!(done, [("a", 0), ("b", 5)], "{table}");
    }
}

#[tokio::test]
async fn a_file_that_is_deleted_does_not_come_back_empty() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    let store = SqliteStore::open(&path).await.unwrap();
    for name in ["jobs.db", "jobs.db-wal", "jobs.db-shm"] {
        let _ = std::fs::remove_file(folder.path().join(name));
    }
    assert!(store.enqueue("q", &jobs(1)).await.is_err());
    assert!(!path.exists());
}

#[tokio::test]
async fn a_patience_of_zero_is_refused() {
    let options = SqliteOptions::new("never.db").patience(Duration::ZERO);
    assert!(
        SqliteStore::open_with(options)
            .await
            .err()
            .unwrap()
            .is_invalid()
    );
}
