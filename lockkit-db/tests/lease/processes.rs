//! Processes that share locks, and one that is killed while it holds one.

use std::env;
use std::time::Duration;

use lockkit_db::lease::{
    LeaseStore, Locker, PostgresOptions, PostgresStore, SqliteOptions, SqliteStore,
};
use lockkit_db::sqlx::{self, AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};
use lockkit_test::child::{Child, Command};
use tokio::time::timeout;

use crate::scene::{Ground, ask, busy, granted, key, on_both};

/// The variable that tells a process which database it is to use; it is a worker then.
const DATABASE: &str = "LOCKKIT_TEST_LEASE_DATABASE";

/// How many times it is to count; with none it takes a lock, and keeps it.
const TIMES: &str = "LOCKKIT_TEST_LEASE_TIMES";

/// For a busy machine.
const SOON: Duration = Duration::from_mins(3);

/// The same, of one call.
const PATIENCE: Duration = Duration::from_secs(30);

/// The TTL of the one who is killed.
const TTL: Duration = Duration::from_secs(5);

on_both! {
    processes_under_one_lock_lose_no_count_and_get_no_fence_twice
    the_lock_of_a_process_that_was_killed_is_had_when_its_time_is_over
}

fn spawn(ground: &impl Ground, times: u32) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "processes::a_worker", "--nocapture"])
        .env(DATABASE, ground.address())
        .env(TIMES, times.to_string())
        .spawn()
        .unwrap()
}

async fn processes_under_one_lock_lose_no_count_and_get_no_fence_twice<G: Ground>() {
    let ground = G::new().await;
    drop(ground.store().await);
    ground
        .run(
            "CREATE TABLE counter (n bigint); INSERT INTO counter VALUES (0);
             CREATE TABLE grants (fence bigint PRIMARY KEY, n bigint)",
        )
        .await;
    let mut workers = [spawn(&ground, 20), spawn(&ground, 20)];
    for worker in &mut workers {
        assert!(worker.wait(SOON).await.unwrap().success());
    }
    // Fails if the counts, in the order of the fences, are not 1, 2, 3 and so on to the end.
    ground
        .run(
            "CREATE TABLE wrong (n bigint CHECK (n = 0));
             INSERT INTO wrong SELECT 40 - n FROM counter;
             INSERT INTO wrong SELECT 40 - count(*) FROM grants;
             INSERT INTO wrong SELECT n - row_number() OVER (ORDER BY fence) FROM grants",
        )
        .await;
}

async fn the_lock_of_a_process_that_was_killed_is_had_when_its_time_is_over<G: Ground>() {
    let ground = G::new().await;
    let store = ground.store().await;
    let mut worker = spawn(&ground, 0);
    let wait = async {
        loop {
            if let Some(held) = store.inspect(&key("kept")).await.unwrap() {
                return held.holder;
            }
        }
    };
    let holder = timeout(SOON, wait).await.expect("it takes the lock");
    worker.kill().await.unwrap();
    // Another store, as after a restart, finds it held; unless the machine was held up for longer than the lease.
    if let Some(left) = ground.store().await.inspect(&key("kept")).await.unwrap() {
        assert_eq!(left.holder, holder);
        assert!(left.remaining <= TTL);
    }
    let locker = Locker::builder(store)
        .wait(SOON)
        .ttl(SOON)
        .call_timeout(PATIENCE)
        .build()
        .unwrap();
    let guard = locker.lock("kept").acquire().await.unwrap();
    assert!(guard.fence() > holder.fence);
    let other = ground.store().await;
    assert_eq!(busy(other.acquire(&ask("kept")).await), guard.fence());
    drop(guard);
    granted(other.acquire(&ask("another")).await);
}

/// What a process is that was told to be one; nothing, in the tests' own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker() {
    let (Ok(address), Ok(times)) = (env::var(DATABASE), env::var(TIMES)) else {
        return;
    };
    let times: u32 = times.parse().unwrap();
    if address.starts_with("postgres:") || address.starts_with("postgresql:") {
        let mut raw = PgConnection::connect(&address).await.unwrap();
        let options = PostgresOptions::new(address.parse().unwrap()).patience(PATIENCE);
        let store = PostgresStore::open_with(options).await.unwrap();
        work(store, times, async |text| {
            let answer = sqlx::query_scalar(AssertSqlSafe(text));
            answer.fetch_optional(&mut raw).await.unwrap()
        })
        .await;
    } else {
        let url = format!("sqlite://{address}");
        let mut raw = SqliteConnection::connect(&url).await.unwrap();
        sqlx::raw_sql("PRAGMA busy_timeout = 60000")
            .execute(&mut raw)
            .await
            .unwrap();
        let options = SqliteOptions::new(address).patience(PATIENCE);
        let store = SqliteStore::open_with(options).await.unwrap();
        work(store, times, async |text| {
            let answer = sqlx::query_scalar(AssertSqlSafe(text));
            answer.fetch_optional(&mut raw).await.unwrap()
        })
        .await;
    }
}

/// Counts under the lock, reading and writing by statements of their own, so that whoever is there at the same time is seen.
async fn work<S: LeaseStore>(
    store: S,
    times: u32,
    mut ask: impl AsyncFnMut(String) -> Option<i64>,
) {
    let locker = Locker::builder(store)
        .wait(SOON)
        .ttl(if times == 0 { TTL } else { SOON })
        .call_timeout(PATIENCE)
        .owner("a worker")
        .build()
        .unwrap();
    if times == 0 {
        let _guard = locker.lock("kept").acquire().await.unwrap();
        std::future::pending::<()>().await;
    }
    for _ in 0..times {
        let guard = locker.lock("counter").acquire().await.unwrap();
        let fence = guard.fence();
        let n = ask("SELECT n FROM counter".into()).await.unwrap() + 1;
        ask(format!("UPDATE counter SET n = {n}")).await;
        ask(format!("INSERT INTO grants VALUES ({fence}, {n})")).await;
        assert!(guard.is_valid());
        let _ = guard.release().await;
    }
}
