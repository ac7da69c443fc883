//! A lock on Redis and a database that looks at its fences: over a bad line, with holders who sleep through the end of their
//! locks, no write that was let in is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use lockkit_core::Fence;
use lockkit_db::Error;
use lockkit_db::cas::Table;
use lockkit_db::fenced::FencedRows;
use lockkit_db::sqlx::{self, PgPool, Postgres, Sqlite, SqlitePool};
use lockkit_redis::redis::Client;
use lockkit_redis::{RedisLocks, RedisStore};
use lockkit_test::postgres::Cluster;
use lockkit_test::redis::{Fault, Proxy, Server, Settings};
use tokio::task::JoinSet;
use tokio::time::sleep;

const TTL: Duration = Duration::from_millis(300);
const WRITERS: u64 = 6;
/// So many additions are let in at least, and so many holders come too late.
const ENOUGH: (i64, i64) = (100, 8);

const CREATE: &str =
    "CREATE TABLE hours (week BIGINT PRIMARY KEY, hours BIGINT NOT NULL, version BIGINT NOT NULL, mark BIGINT);
     INSERT INTO hours VALUES (7, 0, 1, NULL)";

/// What befalls commands to Redis: five in a hundred.
const FAULTS: [Fault; 4] = [
    Fault::CutBefore,
    Fault::CutAfter,
    Fault::Delay(Duration::from_millis(30)),
    Fault::Twice,
];

/// How many additions were let in, and how many of those who came too late have ended.
#[derive(Default)]
struct Books {
    added: AtomicI64,
    late: AtomicI64,
}

impl Books {
    // Ordering: SeqCst, for plain counters in a test.
    fn counts(&self) -> (i64, i64) {
        let load = |count: &AtomicI64| count.load(Ordering::SeqCst);
        (load(&self.added), load(&self.late))
    }

    fn are_full(&self) -> bool {
        let (added, late) = self.counts();
        added >= ENOUGH.0 && late >= ENOUGH.1
    }
}

/// The items of a test, for a database.
macro_rules! on {
    ($name:ident, $Db:ty, $Pool:ty) => {
        mod $name {
            use super::*;

            /// Many add one each, under a lock that is not renewed, until all have had enough of it. What is there in the
            /// end, and how many additions were let in.
            pub(super) async fn add(pool: $Pool, fenced: bool) -> (i64, i64) {
                sqlx::raw_sql(CREATE).execute(&pool).await.unwrap();
                let server = Server::start(&Settings::new()).unwrap();
                let proxy = Proxy::start(&server).await;
                proxy.at_random(7, 5, &FAULTS);
                let books = Arc::new(Books::default());
                let mut writers = JoinSet::new();
                for seed in 0..WRITERS {
                    let client = Client::open(proxy.url()).unwrap();
                    let locks = RedisLocks::builder(RedisStore::new(client))
                        .ttl(TTL)
                        .renew(false);
                    let locks = locks.wait(Duration::from_mins(1)).build().unwrap();
                    let (pool, books) = (pool.clone(), Arc::clone(&books));
                    writers.spawn(async move {
                        let mut rng = Rng::with_seed(seed);
                        while !books.are_full() {
                            // What befalls a message is not what this is about.
                            let Ok(guard) = locks.lock("k").acquire().await else {
                                continue;
                            };
                            let late = rng.u8(..8) == 0;
                            let Some(hours) = read(&pool, guard.fence(), fenced).await else {
                                continue;
                            };
                            // Without a look at the lock.
                            sleep(if late {
                                TTL * 2
                            } else {
                                Duration::from_millis(1)
                            })
                            .await;
                            if write(&pool, guard.fence(), hours + 1, fenced).await {
                                books.added.fetch_add(1, Ordering::SeqCst);
                            }
                            books.late.fetch_add(i64::from(late), Ordering::SeqCst);
                        }
                    });
                }
                while let Some(ended) = writers.join_next().await {
                    ended.unwrap();
                }
                let hours = sqlx::query_scalar("SELECT hours FROM hours")
                    .fetch_one(&pool)
                    .await;
                (hours.unwrap(), books.counts().0)
            }

            fn rows() -> FencedRows<$Db> {
                let table = Table::describe("hours")
                    .key("week")
                    .columns(["hours"])
                    .version("version");
                FencedRows::new(&table.build().unwrap(), "mark").unwrap()
            }

            /// `None` when the fence is too low.
            async fn read(pool: &$Pool, fence: Fence, fenced: bool) -> Option<i64> {
                if !fenced {
                    let hours = sqlx::query_scalar("SELECT hours FROM hours")
                        .fetch_one(pool)
                        .await;
                    return Some(hours.unwrap());
                }
                match rows().claim::<i64, _>(pool, 7, fence).await {
                    Ok(row) => Some(row.value),
                    Err(Error::Stale { .. }) => None,
                    Err(error) => panic!("{error:?}"),
                }
            }

            /// Whether it was let in.
            async fn write(pool: &$Pool, fence: Fence, hours: i64, fenced: bool) -> bool {
                if !fenced {
                    let write = sqlx::query("UPDATE hours SET hours = $1").bind(hours);
                    write.execute(pool).await.unwrap();
                    return true;
                }
                match rows().write(pool, 7, fence, hours).await {
                    Ok(_) => true,
                    Err(Error::Stale { .. }) => false,
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    };
}

on!(on_sqlite, Sqlite, SqlitePool);
on!(on_postgres, Postgres, PgPool);

fn file() -> (tempfile::TempDir, SqlitePool) {
    let folder = tempfile::tempdir().unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(folder.path().join("hours.db"))
        .create_if_missing(true)
        .busy_timeout(Duration::from_mins(1));
    (folder, SqlitePool::connect_lazy_with(options))
}

// Mutant: D90
#[tokio::test]
async fn no_write_that_was_let_in_is_lost_on_sqlite() {
    let (_folder, pool) = file();
    let (hours, added) = on_sqlite::add(pool, true).await;
    assert_eq!(hours, added);
}

#[tokio::test]
async fn no_write_that_was_let_in_is_lost_on_postgres() {
    let database = Cluster::shared().database().await;
    let (hours, added) = on_postgres::add(database.pool(10), true).await;
    assert_eq!(hours, added);
}

#[tokio::test]
async fn without_a_look_at_the_fence_writes_are_lost_on_sqlite() {
    let (_folder, pool) = file();
    let (hours, added) = on_sqlite::add(pool, false).await;
    assert!(hours < added, "{hours} of {added}");
}

#[tokio::test]
async fn without_a_look_at_the_fence_writes_are_lost_on_postgres() {
    let database = Cluster::shared().database().await;
    let (hours, added) = on_postgres::add(database.pool(10), false).await;
    assert!(hours < added, "{hours} of {added}");
}
