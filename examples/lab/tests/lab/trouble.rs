//! The lab is stopped, or what it needs is taken from it, in the middle: it ends with a line that says why, its
//! processes end, and its files stay sound.

use std::path::Path;
use std::process::Command;

use lockkit_db::sqlx::sqlite::SqliteConnectOptions;
use lockkit_db::sqlx::{self, ConnectOptions as _};
use lockkit_test::postgres::{Cluster, Settings};
use rustix::process::Signal;

use crate::process::{Run, below, lab, lives, refusal, results, signal, until};

/// A run over SQLite files in a folder that stays.
fn on_files(folder: &Path) -> Run {
    let results = results(folder);
    let args = [
        "sqlite",
        "--quick",
        "--folder",
        folder.to_str().unwrap(),
        &results[0],
        &results[1],
    ];
    Run::start(&args)
}

fn all_gone(pids: &[u32]) {
    until("its processes are gone", || {
        !pids.iter().any(|pid| lives(*pid))
    });
}

/// Every file in the folder that has become a database.
async fn sound(folder: &Path) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "db") {
            continue;
        }
        let mut file = SqliteConnectOptions::new()
            .filename(&path)
            .connect()
            .await
            .unwrap();
        let found: String = sqlx::query_scalar("PRAGMA integrity_check")
            .fetch_one(&mut file)
            .await
            .unwrap();
        assert_eq!(found, "ok", "{}", path.display());
        files += 1;
    }
    files
}

#[tokio::test]
async fn ctrl_c_at_any_moment_ends_the_processes_and_leaves_the_files_sound() {
    for moment in [1, 2, 5, 9] {
        let folder = tempfile::tempdir().unwrap();
        let run = on_files(folder.path());
        let file = folder.path().join(format!("lab-{moment}.db"));
        until("that many files", || file.exists());
        let processes = below(run.pid());
        signal(run.pid(), Signal::INT);
        let line = refusal(&run.output(), 1);
        assert_eq!(line, "error: stopped by Ctrl-C");
        all_gone(&processes);
        assert!(sound(folder.path()).await >= moment, "{moment}");
    }
}

#[tokio::test]
async fn a_killed_lab_takes_its_processes_along_and_leaves_the_files_sound() {
    let folder = tempfile::tempdir().unwrap();
    let run = on_files(folder.path());
    // That of the second crew: its processes have begun.
    until("a second file", || folder.path().join("lab-2.db").exists());
    let processes = below(run.pid());
    signal(run.pid(), Signal::KILL);
    assert_eq!(run.output().status.code(), None);
    all_gone(&processes);
    assert!(sound(folder.path()).await >= 2);
}

#[test]
fn ctrl_c_ends_the_throwaway_server_too() {
    let folder = tempfile::tempdir().unwrap();
    let results = results(folder.path());
    let run = Run::start(&["postgres", "--quick", &results[0], &results[1]]);
    // A warden, the server and its own processes, and the apps.
    until("a server and apps", || below(run.pid()).len() > 8);
    let processes = below(run.pid());
    signal(run.pid(), Signal::INT);
    let line = refusal(&run.output(), 1);
    assert_eq!(line, "error: stopped by Ctrl-C");
    all_gone(&processes);
}

#[tokio::test]
async fn ctrl_c_leaves_the_database_of_somebody_else_as_it_was() {
    let database = Cluster::shared().database().await;
    let folder = tempfile::tempdir().unwrap();
    let results = results(folder.path());
    let url = database.url();
    let args = [
        "postgres",
        "--quick",
        "--db",
        &url,
        &results[0],
        &results[1],
    ];
    let run = Run::start(&args);
    let mut watcher = database.connect().await;
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname LIKE 'lockkit_lab%'";
    while sqlx::query_scalar::<_, i64>(tables)
        .fetch_one(&mut watcher)
        .await
        .unwrap()
        == 0
    {
        tokio::task::yield_now().await;
    }
    signal(run.pid(), Signal::INT);
    let ended = tokio::task::spawn_blocking(move || refusal(&run.output(), 1));
    assert_eq!(ended.await.unwrap(), "error: stopped by Ctrl-C");
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'lockkit%'";
    let left: i64 = sqlx::query_scalar(left)
        .fetch_one(&mut watcher)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_is_told_in_a_line() {
    let cluster = Cluster::start(&Settings::new()).unwrap();
    let database = cluster.database().await;
    let folder = tempfile::tempdir().unwrap();
    let results = results(folder.path());
    let url = database.url();
    let run = Run::start(&[
        "postgres",
        "--quick",
        "--db",
        &url,
        &results[0],
        &results[1],
    ]);
    let mut watcher = database.connect().await;
    let apps = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lockkit lab'";
    while sqlx::query_scalar::<_, i64>(apps)
        .fetch_one(&mut watcher)
        .await
        .unwrap()
        == 0
    {
        tokio::task::yield_now().await;
    }
    drop(watcher);
    drop(cluster);
    let line = tokio::task::spawn_blocking(move || refusal(&run.output(), 1))
        .await
        .unwrap();
    assert!(!line.is_empty());
}

#[test]
fn an_app_process_that_dies_in_the_middle_is_told_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = on_files(folder.path());
    until("a file", || folder.path().join("lab-1.db").exists());
    // Some of them may be at their end already, so that nobody misses them.
    until("the lab has given up", || {
        for pid in below(run.pid()) {
            signal(pid, Signal::KILL);
        }
        run.ended()
    });
    let line = refusal(&run.output(), 1);
    assert!(line.contains("app process"), "{line}");
}

/// A limit on the size of files, which the system enforces like a disk that is full.
#[tokio::test]
async fn a_full_disk_is_told_in_a_line_and_leaves_the_files_sound() {
    let folder = tempfile::tempdir().unwrap();
    let results = results(folder.path());
    let program = lab(&[]).get_program().to_owned();
    let output = Command::new("sh")
        // Ignored, the signal becomes an error of the write. 128 blocks are 64 KiB.
        .args(["-c", "trap '' XFSZ; ulimit -f 128; exec \"$0\" \"$@\""])
        .arg(program)
        .args([
            "sqlite",
            "--quick",
            "--folder",
            folder.path().to_str().unwrap(),
        ])
        .args([&results[0], &results[1]])
        .output()
        .unwrap();
    let line = refusal(&output, 1);
    assert!(line.contains("disk") || line.contains("full"), "{line}");
    assert!(sound(folder.path()).await >= 1);
}
