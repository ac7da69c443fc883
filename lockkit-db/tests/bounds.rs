//! What can be sent, shared and moved.

use lockkit_core::Fence;
use lockkit_db::cas::{Loaded, Table, Version};
use lockkit_db::fenced::FencedRows;
use lockkit_db::own_table::{Claim, HeldJob, JobTable, LeasedJob, LeasedJobs, Settlement};
use lockkit_db::sqlx::{PgPool, Pool, Postgres, Sqlite};
use lockkit_db::transaction::{Class, Outcome, Retry, Savepoint, Tx, TxOptions, Watch, outcome};
use lockkit_db::{Blocker, Error, Receipt};

fn is_send<T: Send>() {}
fn is_sync<T: Sync>() {}
fn is_unpin<T: Unpin>() {}

#[test]
fn transactions_can_be_sent_and_moved() {
    is_send::<Tx<'static, Postgres>>();
    is_send::<Tx<'static, Sqlite>>();
    is_send::<Savepoint<'static, 'static, Postgres>>();
    is_send::<Savepoint<'static, 'static, Sqlite>>();
    is_send::<Retry<'static, Postgres>>();
    is_send::<Retry<'static, Sqlite>>();
    is_unpin::<Tx<'static, Postgres>>();
    is_unpin::<Retry<'static, Sqlite>>();
}

#[test]
fn what_is_plain_can_be_shared_as_well() {
    fn all<T: Send + Sync + Unpin + Clone>() {}
    all::<TxOptions>();
    all::<Class>();
    all::<Outcome>();
    all::<Blocker>();
    all::<Receipt>();
    all::<Watch>();
    is_send::<Error>();
    is_sync::<Error>();
}

#[test]
fn the_futures_can_be_sent() {
    fn sent<F: Future + Send>(_: F) {}
    fn calls(pool: &'static PgPool, options: &'static TxOptions, receipt: Receipt) {
        sent(Tx::begin(pool, options));
        sent(outcome(pool, receipt));
        sent(async move {
            let mut tx = Tx::begin(pool, options).await?;
            tx.watch(pool).await?;
            let part = tx.savepoint().await?;
            part.release().await?;
            tx.commit().await
        });
        sent(async move {
            let mut retry = Retry::new(pool, TxOptions::new());
            let tx = retry.begin().await?;
            retry.finish(tx, Ok::<_, Error>(())).await
        });
    }
    let _ = calls;
}

#[test]
fn what_is_done_on_a_held_connection_can_be_spawned() {
    macro_rules! calls {
        ($calls:ident, $database:ty) => {
            async fn $calls(
                pool: Pool<$database>,
                rows: Table<$database>,
                fenced: FencedRows<$database>,
            ) -> Result<(), Error> {
                let (fence, version) = (Fence::MIN, Version::new(1));
                tokio::spawn(async move {
                    let mut held = pool.acquire().await?;
                    let row: Option<Loaded<i64>> = rows.load(&mut *held, 7).await?;
                    let _ = rows.insert(&mut *held, 7, 1).await?;
                    let _ = rows.cas(&mut *held, 7, version, 2).await?;
                    let _ = rows.delete(&mut *held, 7, version).await?;
                    let _: Loaded<i64> = fenced.claim(&mut *held, 7, fence).await?;
                    fenced.write(&mut *held, 7, fence, 3).await?;
                    fenced.write_cas(&mut *held, 7, fence, version, 3).await?;
                    let mut tx = Tx::begin(&pool, &TxOptions::new()).await?;
                    let _ = rows
                        .cas(&mut *tx, 7, version, row.map_or(0, |row| row.value))
                        .await?;
                    tx.commit().await
                })
                .await
                .expect("it does not panic")
            }
            let _ = $calls;
        };
    }
    calls!(on_postgres, Postgres);
    calls!(on_sqlite, Sqlite);
}

#[test]
fn what_is_claimed_can_be_sent_and_its_words_spawned() {
    is_send::<HeldJob<Postgres, i64>>();
    is_sync::<HeldJob<Sqlite, i64>>();
    is_send::<LeasedJob<Postgres, i64>>();
    is_sync::<LeasedJob<Sqlite, i64>>();
    is_unpin::<LeasedJob<Postgres, i64>>();
    is_send::<Claim<String>>();
    macro_rules! calls {
        ($calls:ident, $database:ty) => {
            async fn $calls(
                pool: Pool<$database>,
                table: JobTable<$database>,
                jobs: LeasedJobs<$database>,
            ) -> Result<(), Error> {
                tokio::spawn(async move {
                    table.verify(&pool).await?;
                    let mut tx = Tx::begin(&pool, &TxOptions::new()).await?;
                    for job in table.claim_in::<i64>(&mut tx, 1).await? {
                        let _ = table.done_in(&mut tx, &job).await?;
                    }
                    tx.commit().await?;
                    for mut job in jobs.claim::<i64>(&pool, 1).await? {
                        let _ = jobs.extend(&pool, &mut job.claim).await?;
                        let mut tx = Tx::begin(&pool, &TxOptions::new()).await?;
                        jobs.done_in(&mut tx, &job.claim).await?;
                        tx.commit().await?;
                        let settled = jobs.release(&pool, &job.claim).await?;
                        assert_eq!(settled, Settlement::Stale);
                    }
                    Ok(())
                })
                .await
                .expect("it does not panic")
            }
            let _ = $calls;
        };
    }
    calls!(on_postgres, Postgres);
    calls!(on_sqlite, Sqlite);
}

#[cfg(feature = "lease")]
#[test]
fn stores_of_locks_can_be_shared_and_what_hears_of_them_can_be_sent() {
    use lockkit_db::lease::{
        PostgresLocks, PostgresStore, PostgresWatch, SqliteLocks, SqliteStore, SqliteWatch,
    };
    fn sent<F: Future + Send>(_: F) {}
    fn calls(address: &'static str) {
        sent(PostgresStore::open(address));
        sent(SqliteStore::open(address));
    }
    let _ = calls;
    is_send::<PostgresLocks>();
    is_sync::<PostgresLocks>();
    is_send::<SqliteLocks>();
    is_sync::<SqliteLocks>();
    is_send::<PostgresWatch>();
    is_unpin::<PostgresWatch>();
    is_send::<SqliteWatch>();
    is_unpin::<SqliteWatch>();
}
