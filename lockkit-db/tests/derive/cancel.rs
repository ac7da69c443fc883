//! Dropped at every poll: row and struct agree on what a repetition may do.

use std::sync::atomic::{AtomicI64, Ordering};

use lockkit_db::Versioned;
use lockkit_db::cas::Outcome;
use lockkit_test::cancel::{Cut, at_every_poll_async};
use tokio::sync::Mutex;

use crate::scene::on_both;
use crate::structs::{Note, with_tables};

on_both! {
    // Mutant: A173
    async fn an_update_that_was_dropped_can_be_sent_again(scene: 2) {
        with_tables!(scene);
        let mut note = Note::new(7, "a", 0);
        note.insert(&scene.pool).await.unwrap().unwrap();
        let note = Mutex::new(note);
        let round = AtomicI64::new(0);
        at_every_poll_async(
            || {
                let rating = round.fetch_add(1, Ordering::SeqCst) + 1;
                let (note, pool) = (&note, &scene.pool);
                async move {
                    let mut note = note.lock().await;
                    note.rating = rating;
                    note.update(pool).await
                }
            },
            async |cut| {
                scene.is_clean().await;
                let mut note = note.lock().await;
                let row = Note::load(&scene.pool, 7_i64).await.unwrap().unwrap();
                note.rating = round.load(Ordering::SeqCst);
                if cut == Cut::Completed {
                    assert_eq!(row, *note);
                    return;
                }
                let before = note.version;
                match note.update(&scene.pool).await.unwrap() {
                    Outcome::Updated { version } => assert_eq!(note.version, version.get(), "{cut}"),
                    // The first one has come through, and nobody else is here.
                    Outcome::Conflict { current } => {
                        assert_eq!((note.version, current.get()), (before, before + 1), "{cut}");
                        note.version = current.get();
                    }
                    Outcome::NotFound => panic!("{cut}: the row is gone"),
                }
                let row = Note::load(&scene.pool, 7_i64).await.unwrap().unwrap();
                assert_eq!((row.version, &row), (before + 1, &*note), "{cut}");
            },
        )
        .await
        .demand(1);
    }
}

on_both! {
    async fn what_was_dropped_has_left_nothing_open(scene: 2) {
        with_tables!(scene);
        let id = AtomicI64::new(0);
        at_every_poll_async(
            || {
                let id = id.fetch_add(1, Ordering::SeqCst) + 1;
                let pool = &scene.pool;
                async move {
                    let mut note = Note::new(id, "a", 0);
                    note.insert(pool).await.unwrap().unwrap();
                    let note = Note::load(pool, id).await.unwrap().unwrap();
                    let _ = note.delete(pool).await.unwrap();
                }
            },
            async |cut| {
                scene.is_clean().await;
                let row = Note::load(&scene.pool, id.load(Ordering::SeqCst)).await.unwrap();
                assert!(row.is_none() || cut != Cut::Completed);
            },
        )
        .await
        .demand(1);
    }
}
