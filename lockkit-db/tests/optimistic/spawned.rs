//! In tasks of their own, with borrows: the shapes in which programs use it.

use futures::future::BoxFuture;
use lockkit_core::Fence;
use lockkit_db::cas::{Loaded, Outcome, Table, Version};
use lockkit_db::fenced::{FencedRows, Fences};
use lockkit_db::transaction::Tx;
use lockkit_db::{Error, retry_tx, sqlx};

use crate::scene::on_both;
use crate::table::{sql, stars, with_tables};

on_both! {
    async fn rows_are_changed_in_transactions_of_spawned_tasks(scene: 1) {
        with_tables!(scene);
        sql!(scene, "ALTER TABLE note ADD COLUMN mark BIGINT; INSERT INTO note (id) VALUES (7)");
        let pool = scene.pool.clone();
        let task = tokio::spawn(async move {
            let table = stars();
            let rows = FencedRows::new(&table, "mark")?;
            let fences = Fences::new();
            fences.migrate(&pool).await?;
            let fence = Fence::new(1).unwrap();
            let mut attempts = Vec::new();
            let name = String::from("week 7");
            let stars = retry_tx!(&pool, |tx| {
                attempts.push(tx.attempt());
                fences.claim(&mut tx, &name, fence).await?;
                fences.write(&mut tx, &name, fence).await?;
                let row: Loaded<i64> = rows.claim(&mut *tx, 7, fence).await?;
                let version = rows.write(&mut *tx, 7, fence, row.value + 1).await?;
                let version = rows.write_cas(&mut *tx, 7, fence, version, &row.value).await?;
                let changed = table.cas(&mut *tx, &7, version, row.value + 2).await?;
                let Outcome::Updated { version } = changed else {
                    return Err(Error::again("somebody else was there"));
                };
                let _ = table.insert(&mut *tx, 8, 1).await?;
                let _ = table.delete(&mut *tx, 8, Version::new(1)).await?;
                let batch = [(7_i64, version, 5_i64)];
                assert!(table.batch_cas_in(&mut tx, &batch).await?.all_updated());
                Ok::<_, Error>(table.load::<i64, _>(&mut *tx, 7).await?.unwrap().value)
            })?;
            // And on a connection that was had otherwise.
            let mut connection = pool.acquire().await?;
            let row: Loaded<i64> = table.load(&mut *connection, 7).await?.unwrap();
            let changed = table.cas(&mut connection, 7, row.version, row.value).await?;
            assert!(matches!(changed, Outcome::Updated { .. }));
            let mut owner = sqlx::Connection::begin(&mut *connection).await?;
            table.load::<i64, _>(&mut *owner, 7).await?;
            table.load::<i64, _>(&mut owner, 7).await?;
            owner.commit().await?;
            Ok::<_, Error>((stars, attempts))
        });
        assert_eq!(task.await.unwrap().unwrap(), (5, vec![1]));
        scene.is_clean().await;
    }
}

/// A step of somebody's transaction, in a function of its own.
async fn one_more(
    table: &Table<sqlx::Postgres>,
    tx: &mut Tx<'_, sqlx::Postgres>,
    id: i64,
) -> Result<Outcome, Error> {
    let row: Loaded<i64> = table.load(&mut **tx, id).await?.unwrap();
    table.cas(&mut **tx, id, row.version, row.value + 1).await
}

/// The same boxed, as traits with async methods do.
fn boxed<'a>(
    table: &'a Table<sqlx::Postgres>,
    tx: &'a mut Tx<'_, sqlx::Postgres>,
) -> BoxFuture<'a, Result<Outcome, Error>> {
    Box::pin(async move {
        let row: Loaded<i64> = table.load(&mut **tx, 7).await?.unwrap();
        table.cas(&mut **tx, 7, row.version, row.value + 1).await
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_in_functions_of_their_own_are_spawned_as_well() {
    let scene = crate::scene::Postgres::new(1).await;
    with_tables!(scene);
    sql!(scene, "INSERT INTO note (id) VALUES (7)");
    let pool = scene.pool.clone();
    let task = tokio::spawn(async move {
        let table = stars();
        retry_tx!(&pool, |tx| { one_more(&table, &mut tx, 7).await })
    });
    assert!(matches!(
        task.await.unwrap().unwrap(),
        Outcome::Updated { .. }
    ));

    let table = stars();
    let changed = retry_tx!(&scene.pool, |tx| { boxed(&table, &mut tx).await }).unwrap();
    assert!(matches!(changed, Outcome::Updated { .. }));
}
