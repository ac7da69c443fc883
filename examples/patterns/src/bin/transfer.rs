//! Two rows at once: money is moved between accounts. Rows are locked in one agreed order, so that nobody waits in
//! a circle; or they are not locked while somebody thinks, and whoever was overtaken begins anew.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::ensure;
use lockkit_core::retry::Policy;
use lockkit_db::cas::Outcome;
use lockkit_db::pessimistic::RowLock;
use lockkit_db::transaction::TxOptions;
use lockkit_db::{Error, Versioned, retry_tx, sqlx};
use tokio::task::JoinSet;

#[derive(Versioned)]
#[versioned(table = "example_bank")]
struct Account {
    #[versioned(key)]
    id: i64,
    cents: i64,
    #[versioned(version)]
    version: i64,
}

const ACCOUNTS: i64 = 8;
const ALL: i64 = ACCOUNTS * 100;
/// Whoever writes without the version raises it, so that those who go by it see that somebody was there.
const ADD: &str = "UPDATE example_bank SET cents = cents + $1, version = version + 1 WHERE id = $2";

patterns::on_either_database! {
    async fn prove(pool: Pool) -> anyhow::Result<()> {
        sqlx::raw_sql(
            "DROP TABLE IF EXISTS example_bank;
             CREATE TABLE example_bank (id BIGINT PRIMARY KEY, cents BIGINT NOT NULL, version BIGINT NOT NULL)",
        )
        .execute(&pool)
        .await?;
        for id in 0..ACCOUNTS {
            Account { id, cents: ALL / ACCOUNTS, version: 0 }.insert(&pool).await?;
        }
        for optimistic in [false, true] {
            let mut clerks = JoinSet::new();
            for (from, to) in (0..256).map(|n| (n % ACCOUNTS, (n + 1 + n / ACCOUNTS % 7) % ACCOUNTS)) {
                let pool = pool.clone();
                clerks.spawn(async move {
                    if optimistic {
                        return transfer_optimistic(&pool, from, to, 60).await;
                    }
                    transfer(&pool, from, to, 60).await
                });
            }
            let told = clerks.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
            let (done, (sum, least)) = (told.iter().filter(|done| **done).count(), sum_and_least(&pool).await?);
            let how = if optimistic { "not locked, but checked" } else { "locked in one order" };
            println!("{how}: 256 transfers, {done} with money enough; of {ALL} cents {sum} are there");
            ensure!(sum == ALL && least >= 0 && done > 0, "money was made, lost, or spent twice");
        }
        let attempts = AtomicU32::new(0);
        tokio::try_join!(transfer_crosswise(&pool, 1, 2, &attempts), transfer_crosswise(&pool, 2, 1, &attempts))?;
        println!("locked crosswise: 2 transfers, done in {} attempts", attempts.into_inner());
        ensure!(sum_and_least(&pool).await?.0 == ALL, "money was made or lost");
        Ok(())
    }

    /// Both rows are locked by one statement, in the order of their keys, whichever of them is `from`. Whether
    /// there was enough money.
    async fn transfer(pool: &Pool, from: i64, to: i64, cents: i64) -> Result<bool, Error> {
        let accounts = RowLock::on("example_bank", "id").columns(["cents"]);
        retry_tx!(pool, |tx| {
            let rows = accounts.lock::<_, _, (i64,)>(&mut tx, &[from, to]).await?.all()?;
            if rows[0].0 < cents {
                return Ok(false);
            }
            sqlx::query(ADD).bind(-cents).bind(from).execute(&mut *tx).await?;
            sqlx::query(ADD).bind(cents).bind(to).execute(&mut *tx).await?;
            Ok::<_, Error>(true)
        })
    }

    /// Nothing is locked before it is written, and each write shows the version that was read.
    async fn transfer_optimistic(pool: &Pool, from: i64, to: i64, cents: i64) -> Result<bool, Error> {
        let policy = Policy::builder().attempts(100).build().map_err(Error::stop)?;
        retry_tx!(pool, TxOptions::new().policy(policy), |tx| {
            let both = (Account::load(&mut *tx, from).await?, Account::load(&mut *tx, to).await?);
            let (Some(mut from), Some(mut to)) = both else { return Err(Error::stop("no such account")) };
            if from.cents < cents {
                return Ok(false);
            }
            from.cents -= cents;
            to.cents += cents;
            // A write locks as well, so these have one order too.
            let mut both = [from, to];
            both.sort_by_key(|account| account.id);
            for account in &mut both {
                if !matches!(account.update(&mut *tx).await?, Outcome::Updated { .. }) {
                    return Err(Error::again("somebody else was here"));
                }
            }
            Ok::<_, Error>(true)
        })
    }

    /// One row after the other: two of these wait for each other for ever. PostgreSQL ends one of them after a
    /// second, and it is run again; SQLite lets one writer in at a time, and nobody waits in a circle.
    async fn transfer_crosswise(pool: &Pool, from: i64, to: i64, attempts: &AtomicU32) -> Result<(), Error> {
        retry_tx!(pool, |tx| {
            attempts.fetch_add(1, Ordering::Relaxed);
            sqlx::query(ADD).bind(-1_i64).bind(from).execute(&mut *tx).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            sqlx::query(ADD).bind(1_i64).bind(to).execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
    }

    async fn sum_and_least(pool: &Pool) -> Result<(i64, i64), Error> {
        let both = sqlx::query_as("SELECT CAST(sum(cents) AS BIGINT), min(cents) FROM example_bank");
        Ok(both.fetch_one(pool).await?)
    }
}
