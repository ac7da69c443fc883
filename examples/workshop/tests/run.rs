//! Small runs of the whole thing, and one worker alone.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lockkit_db::queue::{JobId, JobStore as _, NewJob, SqliteStore};
use lockkit_test::child;
use serde_json::{Value, json};

/// Only waited for when something is broken.
const SOON: Duration = Duration::from_mins(1);

/// Runs the workshop, which has to find that all is well.
fn figures(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_workshop"))
        .arg("--json")
        .args(args)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures["ok"], true, "{stderr}");
    figures
}

/// Runs all of it, alone.
fn nothing_is_lost(args: &[&str]) -> Value {
    let figures = figures(&[&["--tasks", "600"], args].concat());
    assert_eq!(figures["tasks"], 5 + 10 + 600 + 5);
    assert_eq!(figures["done"], figures["tasks"]);
    assert_eq!(figures["lock_errors"], 0);
    assert_eq!(figures["shared"], false);
    let nemesis = &figures["nemesis"];
    for at_least_one in [
        &nemesis["killed"]["running"],
        &nemesis["killed"]["unsettled"],
        &nemesis["paused"]["running"],
        &nemesis["stale_refused_after_pause"],
        &nemesis["done_after_pause"],
    ] {
        assert!(at_least_one.as_u64().unwrap() > 0, "{nemesis}");
    }
    figures
}

#[test]
fn nothing_is_lost_while_workers_are_killed_and_paused() {
    let figures = nothing_is_lost(&["--seed", "7"]);
    assert_eq!(figures["integrity"], "ok");
}

/// Each of them locks the file for all of them.
#[test]
fn runs_beside_each_other_bear_what_is_done_to_all() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("workshop.db");
    let db = db.to_str().unwrap();
    std::thread::scope(|scope| {
        for seed in ["1", "2", "3"] {
            scope.spawn(move || {
                let figures = figures(&["--tasks", "600", "--seed", seed, "--db", db]);
                assert_eq!(figures["done"], 5 + 10 + 600 + 5);
                assert_eq!(figures["shared"], true);
            });
        }
    });
}

#[cfg(feature = "postgres")]
mod on_a_server {
    use lockkit_test::postgres::Cluster;

    use super::*;

    #[tokio::test]
    async fn nothing_is_lost_while_workers_are_killed_and_cut_off() {
        let database = Cluster::shared().database().await;
        let url = database.url();
        let run = move || nothing_is_lost(&["--seed", "7", "--db", &url]);
        let figures = tokio::task::spawn_blocking(run).await.unwrap();
        // Each of three workers has one to write, one for its heartbeat and one that listens, at least.
        let cut = figures["nemesis"]["cut"].as_u64().unwrap();
        assert!(cut >= 9, "{cut}");
    }

    #[tokio::test]
    async fn runs_beside_each_other_and_after_each_other_count_their_own() {
        let database = Cluster::shared().database().await;
        let url = database.url();
        let args = ["--tasks", "30", "--no-nemesis", "--workers", "1", "--db"];
        let args = [&args[..], &[url.as_str()]].concat();
        let run = || {
            let figures = figures(&args);
            assert_eq!(figures["done"], 5 + 10 + 30);
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(run);
            }
        });
        run();
    }
}

#[test]
fn a_file_with_earlier_runs_is_as_good_as_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("workshop.db");
    let args = ["--tasks", "50", "--no-nemesis", "--workers", "2", "--db"];
    for _ in 0..2 {
        let figures = figures(&[&args[..], &[db.to_str().unwrap()]].concat());
        assert_eq!(figures["done"], 5 + 10 + 50);
        assert_eq!(figures["nemesis"], Value::Null);
    }
}

/// Six programs and their six children race to make the new file's tables, too.
#[test]
fn runs_beside_each_other_on_one_file_count_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("workshop.db");
    let args = ["--tasks", "30", "--no-nemesis", "--workers", "1", "--db"];
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let figures = figures(&[&args[..], &[db.to_str().unwrap()]].concat());
                assert_eq!(
                    (&figures["done"], &figures["active"]),
                    (&json!(5 + 10 + 30), &json!(0))
                );
            });
        }
    });
}

#[test]
fn one_task_for_one_worker_is_enough() {
    let figures = figures(&["--tasks", "1", "--workers", "1", "--no-nemesis"]);
    assert_eq!(figures["done"], 5 + 10 + 1);
}

/// Which `kill` to use is left to the shell, where it is built in.
fn terminate(pid: u32) {
    let kill = format!("kill -TERM {pid}");
    let status = Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert!(status.success());
}

fn worker(db: &Path) -> child::Child {
    child::Command::new(env!("CARGO_BIN_EXE_workshop"))
        .args(["worker", "--queue", "q", "--name", "w", "--slots", "2"])
        .args(["--durability", "full", "--db", db.to_str().unwrap()])
        .spawn()
        .unwrap()
}

/// Puts in more than a worker runs at once, and starts one on it.
async fn store_and_worker(db: &Path) -> (SqliteStore, child::Child) {
    let store = SqliteStore::open(db).await.unwrap();
    let jobs: Vec<_> = (1..=8)
        .map(|number| json!({"number": number, "ms": 200, "asked": 0}))
        .map(|task| NewJob::new("task", task.to_string()))
        .collect();
    store.enqueue("q", &jobs).await.unwrap();
    let mut worker = worker(db);
    let line: Value = worker.next_line(SOON).await.unwrap();
    assert!(line["started"].is_object(), "{line}");
    (store, worker)
}

/// What it has begun is done, the rest is given back, and it ends well.
async fn has_drained(store: &SqliteStore, worker: &mut child::Child) {
    let mut begun = 1;
    let goodbye = loop {
        let line: Value = worker.next_line(SOON).await.unwrap();
        begun += usize::from(line["started"].is_object());
        if line["goodbye"].is_object() {
            break line;
        }
    };
    assert!(worker.wait(SOON).await.unwrap().success());
    assert_eq!(goodbye["goodbye"]["done"], begun);
    assert_eq!(store.completed(JobId(0), 100).await.unwrap().len(), begun);
    assert_eq!(store.active(JobId(0), 100).await.unwrap(), []);
    assert_eq!(store.stats().await.unwrap().ready, 8 - begun as u64);
}

#[tokio::test]
async fn a_worker_that_gets_sigterm_finishes_what_it_has_begun() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut worker) = store_and_worker(&folder.path().join("db")).await;
    terminate(worker.id().unwrap());
    has_drained(&store, &mut worker).await;
}

#[tokio::test]
async fn a_worker_whose_parent_is_gone_finishes_too() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut worker) = store_and_worker(&folder.path().join("db")).await;
    worker.close_stdin();
    has_drained(&store, &mut worker).await;
}
