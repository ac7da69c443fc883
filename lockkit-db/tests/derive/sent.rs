//! The futures in tasks of their own, and behind generic functions.

use lockkit_db::cas::Outcome;
use lockkit_db::sqlx::Pool;
use lockkit_db::transaction::Backend;
use lockkit_db::{Error, Versioned, retry_tx, sqlx};

use crate::scene::on_both;
use crate::structs::{Note, with_tables};

on_both! {
    async fn all_of_it_runs_in_a_task(scene: 2) {
        with_tables!(scene);
        let pool = scene.pool.clone();
        let task = tokio::spawn(async move {
            let mut note = Note::new(7, "a", 1);
            note.insert(&pool).await?;
            note.rating = 2;
            let _ = note.update(&pool).await?;
            let rating = retry_tx!(&pool, |tx| {
                let mut note = Note::load(&mut *tx, 7_i64).await?.expect("it was inserted");
                note.rating += 1;
                let _ = note.update(&mut *tx).await?;
                Ok::<_, Error>(note.rating)
            })?;
            let note = Note::load(&pool, 7_i64).await?.expect("it was inserted");
            let _ = note.delete(&pool).await?;
            Ok::<_, Error>(rating)
        });
        assert_eq!(task.await.unwrap().unwrap(), 3);
    }
}

/// What is written over any row of any database.
async fn touch<DB: Backend, R: Versioned<DB>>(pool: &Pool<DB>, row: &mut R) -> bool
where
    for<'p> &'p Pool<DB>: sqlx::Acquire<'p, Database = DB>,
{
    matches!(row.update(pool).await, Ok(Outcome::Updated { .. }))
}

on_both! {
    async fn code_can_be_generic_over_rows_and_databases(scene: 1) {
        with_tables!(scene);
        let mut note = Note::new(7, "a", 1);
        assert!(!touch(&scene.pool, &mut note).await);
        note.insert(&scene.pool).await.unwrap();
        assert!(touch(&scene.pool, &mut note).await);
        assert_eq!(note.version, 2);
    }
}
