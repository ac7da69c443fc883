//! What can be sent, shared and moved.

use lockkit_db::sqlx::{PgPool, Postgres, Sqlite};
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
