//! What becomes of the row, and of the struct.

use lockkit_core::Fence;
use lockkit_db::cas::{Deleted, Outcome, Version};
use lockkit_db::fenced::FencedRows;
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_db::{Error, Versioned, optimistic, sqlx};

use crate::scene::on_both;
use crate::structs::{Note, Pair, Slot, Timed, sql, with_tables};

on_both! {
    // Mutants: A170, A171, A172
    async fn a_struct_is_what_was_written(scene: 1) {
        with_tables!(scene);
        let mut note = Note::new(7, "a", 1);
        assert_eq!(note.insert(&scene.pool).await.unwrap(), Some(Version::new(1)));
        assert_eq!(note, Note { version: 1, ..Note::new(7, "a", 1) });

        note.rating = 2;
        note.title = None;
        let changed = note.update(&scene.pool).await.unwrap();
        assert_eq!(changed, Outcome::Updated { version: Version::new(2) });
        let read = Note::load(&scene.pool, 7_i64).await.unwrap().unwrap();
        assert_eq!(read, Note { id: 7, title: None, rating: 2, version: 2 });
        assert_eq!(read, note);
        // A column that the struct does not have stays as it is.
        let spare: i64 = sqlx::query_scalar("SELECT spare FROM note").fetch_one(&scene.pool).await.unwrap();
        assert_eq!(spare, 5);
    }
}

on_both! {
    // Mutants: A170, A173
    async fn a_late_struct_changes_nothing_and_stays_late(scene: 1) {
        with_tables!(scene);
        let mut first = Note::new(7, "a", 1);
        first.insert(&scene.pool).await.unwrap().unwrap();
        let mut late = first.clone();
        let _ = first.update(&scene.pool).await.unwrap();

        late.rating = 9;
        let before = late.clone();
        let conflict = Outcome::Conflict { current: Version::new(2) };
        for _ in 0..2 {
            assert_eq!(late.update(&scene.pool).await.unwrap(), conflict);
            assert_eq!(late, before);
        }
        let conflict = Deleted::Conflict { current: Version::new(2) };
        assert_eq!(late.delete(&scene.pool).await.unwrap(), conflict);
        assert_eq!(late.insert(&scene.pool).await.unwrap(), None);
        assert_eq!(late, before);
        assert_eq!(Note::load(&scene.pool, 7_i64).await.unwrap().unwrap(), first);
    }
}

on_both! {
    async fn a_deleted_row_is_gone(scene: 1) {
        with_tables!(scene);
        let mut note = Note::new(7, "a", 1);
        note.insert(&scene.pool).await.unwrap().unwrap();
        let mut other = Note::new(8, "b", 1);
        other.insert(&scene.pool).await.unwrap().unwrap();
        assert_eq!(note.delete(&scene.pool).await.unwrap(), Deleted::Deleted);
        assert_eq!(note.delete(&scene.pool).await.unwrap(), Deleted::NotFound);
        assert_eq!(note.update(&scene.pool).await.unwrap(), Outcome::NotFound);
        assert_eq!(note.version, 1);
        assert_eq!(Note::load(&scene.pool, 7_i64).await.unwrap(), None);
        assert_eq!(Note::load(&scene.pool, 8_i64).await.unwrap(), Some(other));
    }
}

on_both! {
    // Mutant: A174
    async fn a_key_of_several_columns_is_given_in_the_order_of_the_fields(scene: 1) {
        with_tables!(scene);
        let mut pair = Pair { left: 1, right: 2, n: 3, version: Version::new(0) };
        pair.insert(&scene.pool).await.unwrap().unwrap();
        let columns: (i64, i64, i64) =
            sqlx::query_as("SELECT a, b, n FROM pair").fetch_one(&scene.pool).await.unwrap();
        assert_eq!(columns, (1, 2, 3));
        let read = Pair::load(&scene.pool, (2_i64, 1_i64)).await.unwrap();
        assert_eq!(read, Some(pair.clone()));
        assert_eq!(Pair::load(&scene.pool, (1_i64, 2_i64)).await.unwrap(), None);
        pair.n = 4;
        let _ = pair.update(&scene.pool).await.unwrap();
        let read = Pair::load(&scene.pool, (2_i64, 1_i64)).await.unwrap();
        assert_eq!(read, Some(Pair { n: 4, version: Version::new(2), ..pair }));

        let error = Pair::load(&scene.pool, 2_i64).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "key", .. }), "{error}");
    }
}

on_both! {
    // Mutant: A175
    async fn a_timestamp_is_the_servers(scene: 1) {
        with_tables!(scene);
        let mut timed = Timed { name: "x".to_owned(), n: 1, changed: Version::new(1) };
        let first = timed.insert(&scene.pool).await.unwrap().unwrap();
        assert_eq!(timed.changed, first);
        let year_2020 = 1_577_836_800_000_000;
        assert!(first.get() > year_2020, "{first} are no microseconds since 1970");
        let mut late = timed.clone();
        let outcome = timed.update(&scene.pool).await.unwrap();
        assert_eq!(outcome, Outcome::Updated { version: timed.changed });
        assert!(timed.changed > first);
        let outcome = late.update(&scene.pool).await.unwrap();
        assert_eq!(outcome, Outcome::Conflict { current: timed.changed });
        assert_eq!(Timed::load(&scene.pool, "x").await.unwrap().unwrap(), timed);
    }
}

on_both! {
    async fn a_field_may_be_of_a_type_parameter(scene: 1) {
        with_tables!(scene);
        let mut slot = Slot::<Option<String>, 3> { id: 1, value: None, version: 0 };
        slot.insert(&scene.pool).await.unwrap().unwrap();
        slot.value = Some("x".to_owned());
        let _ = slot.update(&scene.pool).await.unwrap();
        // Another one of its kind has the same description.
        let read = Slot::<String>::load(&scene.pool, 1_i64).await.unwrap();
        let expected = Slot { id: 1, value: "x".to_owned(), version: 2 };
        assert_eq!(read, Some(expected));
    }
}

on_both! {
    // Mutants: A170, A176
    async fn an_update_by_a_closure_has_the_whole_struct_and_leaves_its_version_in_it(scene: 1) {
        with_tables!(scene);
        let mut note = Note::new(7, "a", 1);
        note.insert(&scene.pool).await.unwrap().unwrap();
        for version in 2..5_i64 {
            let done = optimistic(&scene.pool, Note::table(), 7_i64)
                .apply(|note: &Note| {
                    assert_eq!(note.id, 7);
                    Note { rating: note.rating + note.version, ..note.clone() }
                })
                .run()
                .await
                .unwrap();
            assert_eq!(done.value.version, version);
        }
        let read = Note::load(&scene.pool, 7_i64).await.unwrap().unwrap();
        assert_eq!(read, Note { version: 4, ..Note::new(7, "a", 1 + 1 + 2 + 3) });
    }
}

on_both! {
    // Mutant: A177
    async fn a_fenced_claim_reads_the_whole_struct(scene: 1) {
        with_tables!(scene);
        let mut note = Note::new(7, "a", 1);
        note.insert(&scene.pool).await.unwrap().unwrap();
        sql!(scene, "UPDATE note SET spare = 0");
        let fenced = FencedRows::new(Note::table(), "spare").unwrap();
        let fence = Fence::new(3).unwrap();
        let claimed = fenced.claim::<Note, _>(&scene.pool, 7_i64, fence).await.unwrap();
        assert_eq!(claimed.value, note);
    }
}

on_both! {
    async fn a_struct_is_changed_in_a_transaction_or_not(scene: 1) {
        with_tables!(scene);
        let mut note = Note::new(7, "a", 1);
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        note.insert(&mut *tx).await.unwrap().unwrap();
        note.rating = 2;
        let _ = note.update(&mut *tx).await.unwrap();
        assert_eq!(Note::load(&mut *tx, 7_i64).await.unwrap().as_ref(), Some(&note));
        tx.rollback().await;
        assert_eq!(Note::load(&scene.pool, 7_i64).await.unwrap(), None);
        assert_eq!(note.update(&scene.pool).await.unwrap(), Outcome::NotFound);
    }
}

on_both! {
    async fn a_row_that_does_not_fit_the_struct_is_a_typed_error(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO note VALUES (2, 'a', 1, 0, NULL); INSERT INTO slot VALUES (1, 'x', 1)");
        let error = Slot::<i64>::load(&scene.pool, 1_i64).await.unwrap_err();
        assert!(error.to_string().contains("value column"), "{error}");
        let error = Note::load(&scene.pool, 2_i64).await.unwrap_err();
        assert!(error.to_string().contains("version is NULL"), "{error}");
        sql!(scene, "DROP TABLE note");
        let error = Note::new(1, "a", 1).insert(&scene.pool).await.unwrap_err();
        assert!(matches!(error, Error::Table { .. }), "{error}");

        let mut last = Pair { left: 1, right: 1, n: 1, version: Version::new(i64::MAX) };
        let error = last.update(&scene.pool).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "version", .. }), "{error}");
    }
}

on_both! {
    // Mutant: A190
    async fn a_null_in_a_field_that_is_no_option_is_an_error(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO slot VALUES (1, NULL, 1)");
        let none = Slot::<Option<String>>::load(&scene.pool, 1_i64).await.unwrap();
        assert_eq!(none.unwrap().value, None);
        let error = Slot::<String>::load(&scene.pool, 1_i64).await.unwrap_err();
        assert!(matches!(&error, Error::Table { table, .. } if table == "slot"), "{error:?}");
        assert!(error.to_string().contains("NULL"), "{error}");
        // What was never seen is not written over.
        let update = optimistic(&scene.pool, Slot::<String>::table(), 1_i64);
        let error = update.apply(|slot: &Slot<String>| slot.clone()).run().await.unwrap_err();
        assert!(error.to_string().contains("NULL"), "{error}");
        let slot = Slot::<Option<String>>::load(&scene.pool, 1_i64).await.unwrap().unwrap();
        assert_eq!((slot.value, slot.version), (None, 1));
    }
}

#[test]
fn a_struct_has_one_description_a_database() {
    use lockkit_db::cas::Table;
    use lockkit_db::sqlx::{Postgres, Sqlite};
    let one: &Table<Postgres> = Note::table();
    assert!(std::ptr::eq(one, Note::table()));
    let other: &Table<Sqlite> = Note::table();
    assert_eq!(one.name(), other.name());
    assert_ne!(one.statements(), other.statements());
    let slots: &Table<Postgres> = Slot::<String>::table();
    assert!(std::ptr::eq(slots, Slot::<i64, 5>::table()));
}
