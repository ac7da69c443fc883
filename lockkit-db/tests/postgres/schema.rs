//! The tables, and a server that does not let them be written to.

use lockkit_db::Error;
use lockkit_db::queue::{JobStore, PostgresOptions, PostgresStore};
use lockkit_db::sqlx;
use lockkit_test::postgres::Cluster;

use super::{Scene, at, jobs, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_open_a_new_database_at_once() {
    let database = Cluster::shared().database().await;
    let opens: Vec<_> = (0..16)
        .map(|_| tokio::spawn(at(database.options())))
        .collect();
    for open in opens {
        open.await.unwrap().stats().await.unwrap();
    }
    let steps: i64 = sqlx::query_scalar("SELECT count(*) FROM lockkit_migration")
        .fetch_one(&mut database.connect().await)
        .await
        .unwrap();
    assert_eq!(steps, 1, "each step once");
}

#[tokio::test]
async fn tables_of_another_version_are_refused_with_the_reason() {
    let database = Cluster::shared().database().await;
    let options = || PostgresOptions::new(database.options());
    let refused = async |options| match PostgresStore::open_with(options).await.err() {
        Some(Error::Schema { problem }) => problem,
        other => panic!("it was not refused: {other:?}"),
    };
    let problem = refused(options().migrate(false)).await;
    assert!(problem.contains("step 2 (queue) is missing"), "{problem}");
    let mut raw = database.connect().await;
    let made: bool = sqlx::query_scalar("SELECT to_regclass('lockkit_migration') IS NOT NULL")
        .fetch_one(&mut raw)
        .await
        .unwrap();
    assert!(!made, "it has only looked");

    drop(at(database.options()).await);
    PostgresStore::open_with(options().migrate(false))
        .await
        .unwrap();
    run(
        &mut raw,
        "INSERT INTO lockkit_migration VALUES (999, 'from the future')",
    )
    .await;
    let problem = refused(options()).await;
    assert!(
        problem.contains("999 (from the future), which is newer"),
        "{problem}"
    );
    run(
        &mut raw,
        "DELETE FROM lockkit_migration WHERE version = 999;
         UPDATE lockkit_migration SET name = 'other'",
    )
    .await;
    let problem = refused(options()).await;
    assert!(
        problem.contains("step 2 (other) is where step 2 (queue)"),
        "{problem}"
    );
}

#[tokio::test]
async fn a_step_that_fails_leaves_nothing_behind() {
    let database = Cluster::shared().database().await;
    let mut raw = database.connect().await;
    run(&mut raw, "CREATE TABLE lockkit_dead (mine integer)").await;
    let error = PostgresStore::open_with(PostgresOptions::new(database.options())).await;
    assert!(matches!(error.err(), Some(Error::Database { .. })));
    let made: bool = sqlx::query_scalar("SELECT to_regclass('lockkit_job') IS NOT NULL")
        .fetch_one(&mut raw)
        .await
        .unwrap();
    assert!(!made);
    run(&mut raw, "DROP TABLE lockkit_dead").await;
    drop(at(database.options()).await);
}

#[tokio::test]
async fn a_server_that_goes_read_only_refuses_and_is_used_again_when_it_comes_back() {
    let scene = Scene::new().await;
    scene.jobs(1).await;
    let name = scene.database.name();
    let sessions = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    );
    scene
        .run(&format!(
            "ALTER DATABASE {name} SET default_transaction_read_only = on; {sessions}"
        ))
        .await;
    let store = at(scene.database.options()).await;
    for _ in 0..2 {
        match store.enqueue("q", &jobs(1)).await {
            Err(error @ Error::Database { .. }) => assert!(!error.is_unknown()),
            other => panic!("it is read-only: {other:?}"),
        }
        assert_eq!(store.stats().await.unwrap().ready, 1, "it can be looked at");
    }
    let mut raw = scene.database.connect().await;
    run(&mut raw, "SET default_transaction_read_only = off").await;
    run(&mut raw, &format!("ALTER DATABASE {name} RESET ALL")).await;
    store.enqueue("q", &jobs(1)).await.unwrap();
    assert_eq!(store.stats().await.unwrap().ready, 2);
}

#[tokio::test]
async fn what_cannot_be_an_address_or_an_option_is_refused() {
    let invalid = async |address: &str| {
        let error = PostgresStore::open(address).await.err().unwrap();
        assert!(error.is_invalid(), "{address}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    };
    invalid("").await;
    invalid("jobs.db").await;
    invalid("postgres://me:secret@host:99999/db").await;

    let zero = std::time::Duration::ZERO;
    let long = std::time::Duration::from_hours(2);
    let options = PostgresOptions::new("postgres://nobody@localhost/none".parse().unwrap());
    for options in [
        options.clone().connections(0),
        options.clone().connections(10_001),
        options.clone().patience(zero),
        options.clone().patience(long),
        options.rescan(long),
    ] {
        let error = PostgresStore::open_with(options).await.err().unwrap();
        assert!(error.is_invalid(), "{error}");
    }
}
