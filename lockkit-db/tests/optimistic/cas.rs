//! One change of one row.

use std::time::Duration;

use lockkit_core::Fence;
use lockkit_db::cas::{Deleted, Loaded, Outcome, Table, Version};
use lockkit_db::fenced::FencedRows;
use lockkit_db::sqlx::{self, Postgres, Sqlite};
use lockkit_db::transaction::{Backend, Tx, TxOptions};
use lockkit_db::{Error, optimistic, retry_tx};

use crate::scene::{self, on_both};
use crate::table::{notes, sql, stars, timed, with_tables};

type Note = (String, i64);

fn version(number: i64) -> Version {
    Version::new(number)
}

on_both! {
    // Mutants: A1, A2
    async fn a_row_is_changed_only_by_who_knows_its_version(scene: 1) {
        with_tables!(scene);
        let notes = notes();
        let first = notes.insert(&scene.pool, 7, ("a", 1)).await.unwrap().unwrap();
        assert_eq!(first, version(1));
        let changed = notes.cas(&scene.pool, 7, first, ("b", 2)).await.unwrap();
        assert_eq!(changed, Outcome::Updated { version: version(2) });

        let late = notes.cas(&scene.pool, 7, first, ("c", 3)).await.unwrap();
        assert_eq!(late, Outcome::Conflict { current: version(2) });
        let early = notes.cas(&scene.pool, 7, version(3), ("c", 3)).await.unwrap();
        assert_eq!(early, Outcome::Conflict { current: version(2) });

        let note: Loaded<Note> = notes.load(&scene.pool, 7).await.unwrap().unwrap();
        assert_eq!((note.value, note.version), (("b".to_owned(), 2), version(2)));
    }
}

on_both! {
    // Mutant: O20
    async fn a_table_may_be_called_as_parts_of_the_statements_are(scene: 1) {
        for name in ["done", "want", "held", "t", "w", "told", "select"] {
            let create = format!("DROP TABLE IF EXISTS t; \
                 CREATE TABLE \"{name}\" (id BIGINT PRIMARY KEY, i BIGINT, told BIGINT NOT NULL)");
            sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&scene.pool).await.unwrap();
            let described = Table::describe(name).key("id").columns(["i"]);
            let table = described.version("told").build().unwrap();
            let first = table.insert(&scene.pool, 7_i64, 1_i64).await.unwrap().unwrap();
            let changed = table.cas(&scene.pool, 7_i64, first, 2_i64).await.unwrap();
            assert_eq!(changed, Outcome::Updated { version: version(2) }, "{name}");
            let late = table.cas(&scene.pool, 7_i64, first, 3_i64).await.unwrap();
            assert_eq!(late, Outcome::Conflict { current: version(2) }, "{name}");
            let rows = [(7_i64, version(2), 3_i64), (8, version(1), 3)];
            let batch = table.batch_cas(&scene.pool, &rows).await.unwrap();
            assert_eq!(batch.outcomes(), [Outcome::Updated { version: version(3) }, Outcome::NotFound], "{name}");
            let gone = table.delete(&scene.pool, 7_i64, version(3)).await.unwrap();
            assert_eq!(gone, Deleted::Deleted, "{name}");
        }
    }
}

on_both! {
    // Mutant: A10
    async fn a_missing_row_is_no_conflict(scene: 1) {
        with_tables!(scene);
        let notes = notes();
        let nobody = notes.cas(&scene.pool, 7, version(1), ("a", 1)).await.unwrap();
        assert_eq!(nobody, Outcome::NotFound);
        let nobody = notes.delete(&scene.pool, 7, version(1)).await.unwrap();
        assert_eq!(nobody, Deleted::NotFound);
        assert_eq!(notes.load::<Note, _>(&scene.pool, 7).await.unwrap(), None);
    }
}

on_both! {
    async fn a_row_is_deleted_only_by_who_knows_its_version(scene: 1) {
        with_tables!(scene);
        let notes = notes();
        notes.insert(&scene.pool, 7, ("a", 1)).await.unwrap().unwrap();
        let _ = notes.cas(&scene.pool, 7, version(1), ("b", 2)).await.unwrap();
        let late = notes.delete(&scene.pool, 7, version(1)).await.unwrap();
        assert_eq!(late, Deleted::Conflict { current: version(2) });
        let gone = notes.delete(&scene.pool, 7, version(2)).await.unwrap();
        assert_eq!(gone, Deleted::Deleted);
        assert_eq!(notes.load::<Note, _>(&scene.pool, 7).await.unwrap(), None);
    }
}

on_both! {
    async fn an_insert_leaves_the_row_that_is_there(scene: 1) {
        with_tables!(scene);
        let notes = notes();
        notes.insert(&scene.pool, 7, ("a", 1)).await.unwrap().unwrap();
        assert_eq!(notes.insert(&scene.pool, 7, ("b", 2)).await.unwrap(), None);
        let note: Loaded<Note> = notes.load(&scene.pool, 7).await.unwrap().unwrap();
        assert_eq!(note.value.0, "a");
    }
}

on_both! {
    async fn a_key_may_have_several_columns(scene: 1) {
        with_tables!(scene);
        let pairs = Table::describe("pair").key("a").key("b").columns(["n"]);
        let pairs = pairs.version("version").build().unwrap();
        for key in [(1, "x"), (1, "y"), (2, "x")] {
            pairs.insert(&scene.pool, key, 0).await.unwrap().unwrap();
        }
        let _ = pairs.cas(&scene.pool, (1, "y"), version(1), 5).await.unwrap();
        let all: Vec<(i64, String, i64)> = sqlx::query_as("SELECT a, b, n FROM pair ORDER BY a, b")
            .fetch_all(&scene.pool)
            .await
            .unwrap();
        let n: Vec<_> = all.iter().map(|row| row.2).collect();
        assert_eq!(n, [0, 5, 0]);
    }
}

on_both! {
    async fn a_time_grows_even_if_the_clock_stands_still_or_is_behind(scene: 1) {
        with_tables!(scene);
        let timed = timed();
        let mut last = timed.insert(&scene.pool, 7, 0).await.unwrap().unwrap();
        // 2020 and 2100: it is the server's clock, in microseconds.
        assert!((1_577_836_800_000_000..4_102_444_800_000_000).contains(&last.get()), "{last}");
        // In one transaction, and faster than a millisecond.
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        for n in 0..20 {
            let changed = timed.cas(&mut *tx, 7, last, n).await.unwrap();
            let Outcome::Updated { version } = changed else { panic!("{changed:?}") };
            assert!(version > last);
            last = version;
        }
        tx.commit().await.unwrap();
        let read = timed.load::<i64, _>(&scene.pool, 7).await.unwrap().unwrap();
        assert_eq!((read.value, read.version), (19, last));

        // As if the clock had been set back by a century.
        scene.set_time(4_600_000_000_123_457).await;
        let ahead = version(4_600_000_000_123_457);
        let changed = timed.cas(&scene.pool, 7, ahead, 20).await.unwrap();
        assert_eq!(changed, Outcome::Updated { version: version(ahead.get() + 1) });
        let late = timed.cas(&scene.pool, 7, ahead, 21).await.unwrap();
        assert_eq!(late, Outcome::Conflict { current: version(ahead.get() + 1) });
    }
}

impl scene::Postgres {
    async fn set_time(&self, micros: i64) {
        sqlx::query(
            "UPDATE note SET changed = timestamptz 'epoch' + $1 * interval '1 microsecond'",
        )
        .bind(micros)
        .execute(&self.pool)
        .await
        .unwrap();
    }
}

impl scene::Sqlite {
    async fn set_time(&self, micros: i64) {
        sqlx::query("UPDATE note SET changed = $1")
            .bind(micros)
            .execute(&self.pool)
            .await
            .unwrap();
    }
}

on_both! {
    // A statement is prepared for the types it is first given. Mutant: O2
    async fn values_of_several_types_go_through_one_description(scene: 1) {
        with_tables!(scene);
        let stars = stars();
        let first = stars.insert(&scene.pool, 7, 5_i32).await.unwrap().unwrap();
        let _ = stars.cas(&scene.pool, 7, first, 6_i32).await.unwrap();
        let _ = stars.cas(&scene.pool, 7_i64, version(2), 7_i64).await.unwrap();
        let _ = stars.cas(&scene.pool, 7_i16, version(3), 8_i16).await.unwrap();
        // The bytes of this one would be a large number.
        let _ = stars.cas(&scene.pool, 7_i64, version(4), 2.0_f64).await.unwrap();
        let row = stars.load::<i64, _>(&scene.pool, 7_i64).await.unwrap().unwrap();
        assert_eq!((row.value, row.version), (2, version(5)));
    }
}

on_both! {
    async fn it_is_undone_with_its_transaction(scene: 2) {
        with_tables!(scene);
        let notes = notes();
        notes.insert(&scene.pool, 7, ("a", 1)).await.unwrap().unwrap();
        let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
        let changed = notes.cas(&mut *tx, 7, version(1), ("b", 2)).await.unwrap();
        assert_eq!(changed, Outcome::Updated { version: version(2) });
        tx.rollback().await;
        let note: Loaded<Note> = notes.load(&scene.pool, 7).await.unwrap().unwrap();
        assert_eq!(note.version, version(1));
        let done = retry_tx!(&scene.pool, |tx| {
            let note: Loaded<Note> = notes.load(&mut *tx, 7).await?.expect("it is there");
            notes.cas(&mut *tx, 7, note.version, ("c", 3)).await
        });
        assert_eq!(done.unwrap(), Outcome::Updated { version: version(2) });
        scene.is_clean().await;
    }
}

// === bad input ===

fn refused<DB: Backend>(field: &str, error: Result<Table<DB>, Error>) {
    match error {
        Err(Error::Invalid { field: named, .. }) => assert_eq!(named, field),
        other => panic!("{field}: {other:?}"),
    }
}

fn names_are_checked<DB: Backend>() {
    let good = || {
        Table::<DB>::describe("note")
            .key("id")
            .columns(["stars"])
            .version("version")
    };
    good().build().unwrap();
    let hostile = [
        "",
        "a b",
        "a\"b",
        "a;DROP TABLE note",
        "a--",
        "1a",
        "ä",
        "a\0b",
        "a'b",
        "$1",
        &"x".repeat(64),
    ];
    for name in hostile {
        let described = Table::<DB>::describe(name)
            .key("id")
            .columns(["n"])
            .version("v");
        refused("table", described.build());
        refused("key", good().key(name).build());
        refused("columns", good().columns([name]).build());
        refused("version", good().version(name).build());
    }
    for name in ["a.b.c", ".b"] {
        let described = Table::<DB>::describe(name)
            .key("id")
            .columns(["n"])
            .version("v");
        assert!(described.build().unwrap_err().is_invalid());
    }
    let bare = Table::<DB>::describe("note");
    refused("version", bare.key("id").columns(["n"]).build());
    let bare = Table::<DB>::describe("note");
    refused("key", bare.columns(["n"]).version("v").build());
    let bare = Table::<DB>::describe("note");
    refused("columns", bare.key("id").version("v").build());
    // Who sets the version by himself, or moves the key, has none.
    refused("version", good().columns(["VERSION"]).build());
    refused("columns", good().columns(["id"]).build());
    refused("columns", good().columns(["stars"]).build());
    let names: Vec<_> = (0..501).map(|n| format!("c{n}")).collect();
    refused(
        "columns",
        good().columns(names.iter().map(String::as_str)).build(),
    );
}

#[test]
fn a_name_that_is_not_plain_is_refused_with_its_field() {
    names_are_checked::<Postgres>();
    names_are_checked::<Sqlite>();
}

on_both! {
    async fn a_table_that_is_not_as_described_is_named(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO note (id) VALUES (7); ALTER TABLE note DROP COLUMN version");
        let missing = Table::describe("nothing").key("id").columns(["n"]).version("v");
        let missing = missing.build().unwrap();
        let error = missing.load::<i64, _>(&scene.pool, 7).await.unwrap_err();
        assert!(matches!(&error, Error::Table { table, source: Some(_), .. } if table == "nothing"), "{error:?}");

        let notes = stars();
        let error = notes.cas(&scene.pool, 7, version(1), 1).await.unwrap_err();
        assert!(matches!(&error, Error::Table { table, .. } if table == "note"), "{error:?}");
        assert!(!error.is_transient() && !error.is_unknown());
        let error = notes.load::<i64, _>(&scene.pool, 7).await.unwrap_err();
        assert!(matches!(&error, Error::Table { table, .. } if table == "note"), "{error:?}");
    }
}

on_both! {
    // SQLite takes a name in double quotes that it does not know for a text.
    // Mutant: A153
    async fn each_column_that_is_not_there_is_an_error_whichever_it_is(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO note (id, title) VALUES (7, 'a')");
        let wrong = [
            Table::describe("note").key("ident").columns(["title"]).version("version"),
            Table::describe("note").key("id").columns(["titel"]).version("version"),
            Table::describe("note").key("id").columns(["title"]).version("vers"),
        ];
        for described in wrong {
            let notes = described.build().unwrap();
            let new = || "b".to_owned();
            let results = [
                notes.load::<String, _>(&scene.pool, 7).await.map(drop),
                notes.cas(&scene.pool, 7, version(1), new()).await.map(drop),
                notes.insert(&scene.pool, 8, new()).await.map(drop),
                notes.batch_cas(&scene.pool, &[(7_i64, version(1), new())]).await.map(drop),
                optimistic(&scene.pool, &notes, 7).apply(|_: &String| new()).run().await.map(drop),
            ];
            for (call, result) in results.into_iter().enumerate() {
                let error = result.unwrap_err();
                assert!(
                    matches!(&error, Error::Table { table, source: Some(_), .. } if table == "note"),
                    "{notes:?}, call {call}: {error:?}"
                );
            }
        }
        // The name of a column that is not there, as the key: it is not equal to itself.
        let by_text = Table::describe("note").key("ident").columns(["title"]).version("version");
        let deleted = by_text.build().unwrap().delete(&scene.pool, "ident", version(1)).await;
        assert!(matches!(deleted, Err(Error::Table { .. })), "{deleted:?}");
        let row: Loaded<String> = Table::describe("note").key("id").columns(["title"]).version("version")
            .build().unwrap().load(&scene.pool, 7).await.unwrap().unwrap();
        assert_eq!((row.value.as_str(), row.version), ("a", version(1)));
        scene.is_clean().await;
    }
}

on_both! {
    async fn a_version_that_is_null_is_an_error_and_not_a_conflict(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO note (id, version) VALUES (7, NULL)");
        let notes = stars();
        let read = notes.load::<i64, _>(&scene.pool, 7).await;
        let written = notes.cas(&scene.pool, 7, version(1), 1).await;
        let deleted = notes.delete(&scene.pool, 7, version(1)).await;
        for error in [read.unwrap_err(), written.unwrap_err(), deleted.unwrap_err()] {
            assert!(
                matches!(&error, Error::Table { table, problem, .. }
                    if table == "note" && problem.contains("NULL")),
                "{error:?}"
            );
        }
    }
}

on_both! {
    // Mutant: A190
    async fn a_value_that_is_null_is_read_only_as_what_can_be(scene: 1) {
        with_tables!(scene);
        sql!(scene, "ALTER TABLE note ADD COLUMN rank BIGINT; INSERT INTO note (id) VALUES (7)");
        let ranks = Table::describe("note").key("id").columns(["rank", "stars"]).version("version");
        let ranks = ranks.build().unwrap();
        let row: Loaded<(Option<i64>, i64)> = ranks.load(&scene.pool, 7).await.unwrap().unwrap();
        assert_eq!(row.value, (None, 0));
        let one = Table::describe("note").key("id").columns(["rank"]).version("version").build().unwrap();
        for error in [
            ranks.load::<(i64, i64), _>(&scene.pool, 7).await.unwrap_err(),
            ranks.load::<(String, i64), _>(&scene.pool, 7).await.unwrap_err(),
            one.load::<i64, _>(&scene.pool, 7).await.unwrap_err(),
            optimistic(&scene.pool, &one, 7).apply(|rank: &i64| rank + 1).run().await.unwrap_err(),
        ] {
            assert!(
                matches!(&error, Error::Table { table, problem, .. }
                    if table == "note" && problem.contains("NULL")),
                "{error:?}"
            );
        }
    }
}

on_both! {
    // Mutant: A11
    async fn the_last_version_has_no_successor(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO note (id, version) VALUES (7, 9223372036854775806)");
        let notes = stars();
        let last = notes.cas(&scene.pool, 7, version(i64::MAX - 1), 1).await.unwrap();
        assert_eq!(last, Outcome::Updated { version: version(i64::MAX) });
        for result in [
            notes.cas(&scene.pool, 7, version(i64::MAX), 2).await.map(|_| ()),
            notes.delete(&scene.pool, 7, version(i64::MAX)).await.map(|_| ()),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Invalid { field: "version", .. }), "{error:?}");
        }
        let note: Loaded<i64> = notes.load(&scene.pool, 7).await.unwrap().unwrap();
        assert_eq!((note.value, note.version), (1, version(i64::MAX)));
    }
}

on_both! {
    async fn values_of_another_number_are_refused_before_anything_is_sent(scene: 1) {
        with_tables!(scene);
        let notes = notes();
        let error = notes.cas(&scene.pool, 7, version(1), 5).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "values", .. }), "{error:?}");
        let error = notes.cas(&scene.pool, (7, 8), version(1), ("a", 5)).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "key", .. }), "{error:?}");
        let error = notes.load::<Note, _>(&scene.pool, ("a", 5)).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { field: "key", .. }), "{error:?}");
    }
}

on_both! {
    async fn a_key_that_is_not_unique_is_an_error(scene: 1) {
        with_tables!(scene);
        sql!(scene, "INSERT INTO many VALUES (7, 0, 1), (7, 0, 1)");
        let many = Table::describe("many").key("id").columns(["n"]).version("version");
        let many = many.build().unwrap();
        for error in [
            many.load::<i64, _>(&scene.pool, 7).await.unwrap_err(),
            many.insert(&scene.pool, 8, 1).await.unwrap_err(),
            many.cas(&scene.pool, 7, version(1), 1).await.unwrap_err(),
        ] {
            assert!(matches!(&error, Error::Table { table, .. } if table == "many"), "{error:?}");
        }
    }
}

on_both! {
    async fn a_value_of_another_type_is_an_error_that_names_the_table(scene: 1) {
        with_tables!(scene);
        let notes = notes();
        notes.insert(&scene.pool, 7, ("a", 1)).await.unwrap().unwrap();
        let error = notes.load::<(i64, i64), _>(&scene.pool, 7).await.unwrap_err();
        assert!(matches!(&error, Error::Table { table, .. } if table == "note"), "{error:?}");
    }
}

on_both! {
    async fn a_closed_pool_is_an_error_of_its_own(scene: 1) {
        let notes = notes();
        scene.pool.close().await;
        assert!(matches!(notes.load::<Note, _>(&scene.pool, 7).await, Err(Error::Closed)));
        let changed = notes.cas(&scene.pool, 7, version(1), ("a", 1)).await;
        assert!(matches!(changed, Err(Error::Closed)));
        let inserted = notes.insert(&scene.pool, 7, ("a", 1)).await;
        assert!(matches!(inserted, Err(Error::Closed)));
        let deleted = notes.delete(&scene.pool, 7, version(1)).await;
        assert!(matches!(deleted, Err(Error::Closed)));
    }
}

// === one engine only ===

/// Returns when a session of the database waits for a lock.
pub(crate) async fn somebody_waits(scene: &scene::Postgres) {
    let mut look = scene.database.connect().await;
    let waits = async {
        loop {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            .fetch_one(&mut look)
            .await
            .unwrap();
            if waiting > 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waits)
        .await
        .expect("nobody waits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
// Mutant: O3
async fn a_conflict_that_came_up_while_it_waited_tells_the_version_by_then() {
    let scene = scene::Postgres::new(2).await;
    with_tables!(scene);
    let notes = stars();
    notes.insert(&scene.pool, 7, 0).await.unwrap().unwrap();
    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let _ = notes.cas(&mut *tx, 7, version(1), 1).await.unwrap();
    let waiting = tokio::spawn({
        let (pool, notes) = (scene.pool.clone(), notes.clone());
        async move { notes.cas(&pool, 7, version(1), 2).await.unwrap() }
    });
    somebody_waits(&scene).await;
    tx.commit().await.unwrap();
    let late = waiting.await.unwrap();
    assert_eq!(
        late,
        Outcome::Conflict {
            current: version(2)
        }
    );

    let mut tx = Tx::begin(&scene.pool, &TxOptions::new()).await.unwrap();
    let _ = notes.delete(&mut *tx, 7, version(2)).await.unwrap();
    let waiting = tokio::spawn({
        let (pool, notes) = (scene.pool.clone(), notes.clone());
        async move { notes.cas(&pool, 7, version(2), 2).await.unwrap() }
    });
    somebody_waits(&scene).await;
    tx.commit().await.unwrap();
    assert_eq!(waiting.await.unwrap(), Outcome::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_cannot_be_is_an_error_that_names_the_table() {
    let scene = scene::Postgres::new(1).await;
    with_tables!(scene);
    sql!(
        scene,
        "ALTER TABLE note ALTER title TYPE VARCHAR(3); INSERT INTO note (id) VALUES (7)"
    );
    let notes = notes();
    for title in ["a\0b", "four"] {
        let row = (title, 1_i64);
        for result in [
            notes.cas(&scene.pool, 7, version(1), row).await.map(drop),
            notes.insert(&scene.pool, 8, row).await.map(drop),
            notes
                .batch_cas(&scene.pool, &[(7, version(1), row)])
                .await
                .map(drop),
        ] {
            let error = result.unwrap_err();
            assert!(
                matches!(&error, Error::Table { table, problem, .. }
                    if table == "note" && problem.contains("text")),
                "{error:?}"
            );
        }
    }
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_outgrows_its_column_is_an_error_that_names_the_table() {
    let scene = scene::Postgres::new(2).await;
    sql!(
        scene,
        "CREATE SCHEMA app;
         CREATE TABLE app.small (id INT PRIMARY KEY, n INT, version SMALLINT NOT NULL, mark BIGINT);
         CREATE TABLE app.medium (id INT PRIMARY KEY, n INT, version INT NOT NULL, mark BIGINT);
         INSERT INTO app.small VALUES (1, 0, 32767, 1);
         INSERT INTO app.medium VALUES (1, 0, 2147483647, 1)"
    );
    for (name, last) in [
        ("app.small", i64::from(i16::MAX)),
        ("app.medium", i64::from(i32::MAX)),
    ] {
        let table = Table::describe(name).key("id").columns(["n"]);
        let table = table.version("version").build().unwrap();
        let fenced = FencedRows::new(&table, "mark").unwrap();
        let fence = Fence::new(1).unwrap();
        let last = version(last);
        let update = optimistic(&scene.pool, &table, 1).apply(|n: &i32| n + 1);
        let batch = [(1_i32, last, 1_i32)];
        for result in [
            table.cas(&scene.pool, 1, last, 1).await.map(drop),
            table.batch_cas(&scene.pool, &batch).await.map(drop),
            update.run().await.map(drop),
            fenced.write(&scene.pool, 1, fence, 1).await.map(drop),
            fenced
                .write_cas(&scene.pool, 1, fence, last, 1)
                .await
                .map(drop),
        ] {
            let error = result.unwrap_err();
            assert!(
                matches!(&error, Error::Table { table, .. } if table == name),
                "{error:?}"
            );
        }
        // An expected version that no column of that type can hold is no error.
        let late = table
            .cas(&scene.pool, 1, version(1 << 40), 1)
            .await
            .unwrap();
        assert_eq!(late, Outcome::Conflict { current: last });
        let row: Loaded<i32> = table.load(&scene.pool, 1).await.unwrap().unwrap();
        assert_eq!((row.value, row.version), (0, last));
    }
    scene.is_clean().await;
}
