//! A server of the test's own: a database a test, gone with the process, back after a crash.

use std::path::Path;
use std::time::Duration;

use lockkit_test::child::Command;
use lockkit_test::postgres::{Cluster, Settings};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};

/// Generous: it is only waited for when something is broken.
const SOON: Duration = Duration::from_mins(1);

/// What a child of these tests is told to be.
const CHILD: &str = "LOCKKIT_TEST_POSTGRES_CHILD";

#[tokio::test]
async fn each_test_has_a_database_of_its_own() {
    let (one, other) = tokio::join!(Cluster::shared().database(), Cluster::shared().database());
    one.pool(1)
        .execute("CREATE TABLE t (id int)")
        .await
        .unwrap();
    let missing = other.connect().await.execute("TABLE t").await.unwrap_err();
    assert_eq!(
        missing.as_database_error().unwrap().code().as_deref(),
        Some("42P01")
    );
    let name: String = sqlx::query_scalar("SELECT current_database()")
        .fetch_one(&mut one.connect().await)
        .await
        .unwrap();
    assert_eq!(name, one.name());
}

#[tokio::test]
async fn what_was_committed_survives_a_crash_and_sessions_do_not() {
    let cluster = Cluster::start(&Settings::new().fsync(true)).unwrap();
    let database = cluster.database().await;
    let mut session = database.connect().await;
    session
        .execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    let mut open = session.begin().await.unwrap();
    open.execute("INSERT INTO t VALUES (2)").await.unwrap();
    cluster.crash().unwrap();
    open.execute("SELECT 1").await.unwrap_err();
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t")
        .fetch_one(&mut database.connect().await)
        .await
        .unwrap();
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn a_restart_ends_sessions_and_keeps_what_was_committed() {
    let cluster = Cluster::start(&Settings::new()).unwrap();
    let database = cluster.database().await;
    let mut session = database.connect().await;
    session.execute("CREATE TABLE t ()").await.unwrap();
    cluster.restart().unwrap();
    session.execute("SELECT 1").await.unwrap_err();
    database.connect().await.execute("TABLE t").await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_halted_is_away_until_it_is_resumed() {
    let cluster = Cluster::start(&Settings::new().fsync(true)).unwrap();
    let database = cluster.database().await;
    let mut session = database.connect().await;
    session.execute("CREATE TABLE t ()").await.unwrap();
    cluster.halt().unwrap();
    session.execute("SELECT 1").await.unwrap_err();
    database.options().connect().await.unwrap_err();
    cluster.resume().unwrap();
    database.connect().await.execute("TABLE t").await.unwrap();
}

#[tokio::test]
async fn parameters_arrive() {
    let cluster = Cluster::start(&Settings::new().parameter("work_mem", "77kB")).unwrap();
    let shown: String = sqlx::query_scalar("SHOW work_mem")
        .fetch_one(&mut cluster.database().await.connect().await)
        .await
        .unwrap();
    assert_eq!(shown, "77kB");
    let on: String = sqlx::query_scalar("SHOW fsync")
        .fetch_one(&mut cluster.database().await.connect().await)
        .await
        .unwrap();
    assert_eq!(on, "off");
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let error = Cluster::start(&Settings::new().parameter("work_mem", "-1")).unwrap_err();
    assert!(error.to_string().contains("work_mem"), "{error}");
}

/// The child of the test below; by itself it has nothing to do.
#[test]
fn a_child_that_starts_a_server_and_waits() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let cluster = Cluster::start(&Settings::new()).unwrap();
    let folder = cluster.folder().unwrap().to_owned();
    let pid = std::fs::read_to_string(folder.join("data/postmaster.pid")).unwrap();
    let pid: u32 = pid.lines().next().unwrap().parse().unwrap();
    println!("\n{}", serde_json::to_string(&(folder, pid)).unwrap());
    // Until it is killed.
    std::thread::park();
}

#[tokio::test]
async fn a_killed_test_leaves_neither_server_nor_folder() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_child_that_starts_a_server_and_waits"])
        .args(["--nocapture", "--quiet"])
        .env(CHILD, "1")
        .spawn()
        .unwrap();
    let (folder, pid) = loop {
        // The harness prints lines of its own.
        match child.next_line::<(String, u32)>(SOON).await {
            Ok(told) => break told,
            Err(lockkit_test::child::ChildError::Line { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    };
    let (folder, server) = (Path::new(&folder), format!("/proc/{pid}"));
    assert!(folder.exists() && Path::new(&server).exists());
    child.kill().await.unwrap();
    let gone = async {
        while folder.exists() || Path::new(&server).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, gone)
        .await
        .expect("the warden has done its work");
}
