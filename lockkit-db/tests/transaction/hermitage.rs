//! Which anomalies each isolation level lets through, as the servers have it today: what the transactions'
//! documentation and the choice of idioms rest on. A server that changes its mind fails a test here.
//!
//! The scenes are those of the Hermitage collection, told anew. Two rows: (1, 10) and (2, 20).

use lockkit_db::sqlx::{self, ConnectOptions as _, Connection as _, Executor as _};
use lockkit_test::postgres::Cluster;
use lockkit_test::steps;

const TABLE: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
     INSERT INTO t VALUES (1, 10), (2, 20)";

/// A scene with what is to come of it at READ COMMITTED, REPEATABLE READ and SERIALIZABLE: in the script,
/// `{x|y|z}` stands for one of the three. What follows an error of the second session is left out there.
async fn on_postgres(scene: &str) {
    let levels = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];
    for (at, level) in levels.into_iter().enumerate() {
        let database = Cluster::shared().database().await;
        database.connect().await.execute(TABLE).await.unwrap();
        let mut script = scene.replace("BEGIN", &format!("BEGIN ISOLATION LEVEL {level}"));
        while let Some(open) = script.find('{') {
            let close = open + script[open..].find('}').expect("each { has its }");
            let chosen = script[open + 1..close]
                .split('|')
                .nth(at)
                .expect("three choices");
            let chosen = chosen.to_owned();
            script.replace_range(open..=close, &chosen);
        }
        steps::on_postgres(&database, &script).await;
    }
}

macro_rules! scenes {
    ($($name:ident: $scene:literal)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                on_postgres($scene).await;
            }
        )*
    };
}

scenes! {
    g0_writes_are_not_mixed: "
        a: BEGIN
        b: BEGIN
        a: UPDATE t SET n = 11 WHERE id = 1
        b: UPDATE t SET n = 12 WHERE id = 1     => blocked
        a: UPDATE t SET n = 21 WHERE id = 2
        a: COMMIT
        b                                       => {ok|!40001|!40001}
        c: SELECT n FROM t ORDER BY id          => 11; 21
        b: UPDATE t SET n = 22 WHERE id = 2     => {ok|!25P02|!25P02}
        b: COMMIT
        c: SELECT n FROM t ORDER BY id          => {12; 22|11; 21|11; 21}
    "
    g1a_what_is_rolled_back_is_not_read: "
        a: BEGIN
        b: BEGIN
        a: UPDATE t SET n = 101 WHERE id = 1
        b: SELECT n FROM t ORDER BY id          => 10; 20
        a: ROLLBACK
        b: SELECT n FROM t ORDER BY id          => 10; 20
        b: COMMIT
    "
    g1b_what_is_half_way_is_not_read: "
        a: BEGIN
        b: BEGIN
        a: UPDATE t SET n = 101 WHERE id = 1
        b: SELECT n FROM t WHERE id = 1         => 10
        a: UPDATE t SET n = 11 WHERE id = 1
        a: COMMIT
        b: SELECT n FROM t WHERE id = 1         => {11|10|10}
        b: COMMIT
    "
    g1c_information_does_not_flow_in_a_circle: "
        a: BEGIN
        b: BEGIN
        a: UPDATE t SET n = 11 WHERE id = 1
        b: UPDATE t SET n = 22 WHERE id = 2
        a: SELECT n FROM t WHERE id = 2         => 20
        b: SELECT n FROM t WHERE id = 1         => 10
        a: COMMIT
        b: COMMIT                               => {ok|ok|!40001}
    "
    otv_a_transaction_that_was_seen_does_not_vanish: "
        a: BEGIN
        b: BEGIN
        c: BEGIN
        a: UPDATE t SET n = 11 WHERE id = 1
        a: UPDATE t SET n = 19 WHERE id = 2
        b: UPDATE t SET n = 12 WHERE id = 1     => blocked
        a: COMMIT
        b                                       => {ok|!40001|!40001}
        c: SELECT n FROM t WHERE id = 1         => 11
        b: UPDATE t SET n = 18 WHERE id = 2     => {ok|!25P02|!25P02}
        c: SELECT n FROM t WHERE id = 2         => 19
        b: COMMIT
        c: SELECT n FROM t ORDER BY id          => {12; 18|11; 19|11; 19}
        c: COMMIT
    "
    pmp_a_predicate_is_read_twice: "
        a: BEGIN
        b: BEGIN
        a: SELECT id FROM t WHERE n = 30        => none
        b: INSERT INTO t VALUES (3, 30)
        b: COMMIT
        a: SELECT id FROM t WHERE n % 3 = 0     => {3|none|none}
        a: COMMIT
    "
    pmp_a_predicate_is_written_by: "
        a: BEGIN
        b: BEGIN
        a: UPDATE t SET n = n + 10
        b: DELETE FROM t WHERE n = 20           => blocked
        a: COMMIT
        b                                       => {ok|!40001|!40001}
        b: SELECT id FROM t WHERE n = 20        => {1|!25P02|!25P02}
        b: COMMIT
    "
    p4_an_update_is_lost: "
        a: BEGIN
        b: BEGIN
        a: SELECT n FROM t WHERE id = 1         => 10
        b: SELECT n FROM t WHERE id = 1         => 10
        a: UPDATE t SET n = 11 WHERE id = 1
        b: UPDATE t SET n = 11 WHERE id = 1     => blocked
        a: COMMIT
        b                                       => {ok|!40001|!40001}
        b: COMMIT
    "
    g_single_a_read_is_skewed: "
        a: BEGIN
        b: BEGIN
        a: SELECT n FROM t WHERE id = 1         => 10
        b: UPDATE t SET n = 12 WHERE id = 1
        b: UPDATE t SET n = 18 WHERE id = 2
        b: COMMIT
        a: SELECT n FROM t WHERE id = 2         => {18|20|20}
        a: COMMIT
    "
    g_single_a_write_is_skewed: "
        a: BEGIN
        b: BEGIN
        a: SELECT n FROM t WHERE id = 1         => 10
        b: UPDATE t SET n = 12 WHERE id = 1
        b: UPDATE t SET n = 18 WHERE id = 2
        b: COMMIT
        a: DELETE FROM t WHERE n = 20           => {none|!40001|!40001}
        a: COMMIT
    "
    g2_item_two_rows_are_written_apart: "
        a: BEGIN
        b: BEGIN
        a: SELECT n FROM t ORDER BY id          => 10; 20
        b: SELECT n FROM t ORDER BY id          => 10; 20
        a: UPDATE t SET n = 11 WHERE id = 1
        b: UPDATE t SET n = 21 WHERE id = 2
        a: COMMIT
        b: COMMIT                               => {ok|ok|!40001}
    "
    g2_two_inserts_pass_each_other: "
        a: BEGIN
        b: BEGIN
        a: SELECT id FROM t WHERE n % 3 = 0     => none
        b: SELECT id FROM t WHERE n % 3 = 0     => none
        a: INSERT INTO t VALUES (3, 30)
        b: INSERT INTO t VALUES (4, 42)
        a: COMMIT
        b: COMMIT                               => {ok|ok|!40001}
    "
    g2_a_reader_closes_the_circle: "
        a: BEGIN
        b: BEGIN
        a: SELECT n FROM t ORDER BY id          => 10; 20
        b: UPDATE t SET n = n + 5 WHERE id = 2
        b: COMMIT
        c: BEGIN
        c: SELECT n FROM t ORDER BY id          => 10; 25
        c: COMMIT
        a: UPDATE t SET n = 0 WHERE id = 1      => {ok|ok|!40001}
        a: COMMIT
    "
    deadlocks_are_ended_by_a_victim: "
        a: BEGIN
        b: BEGIN
        b: SET LOCAL deadlock_timeout = '10s'
        a: UPDATE t SET n = 1 WHERE id = 1
        b: UPDATE t SET n = 2 WHERE id = 2
        b: UPDATE t SET n = 2 WHERE id = 1      => blocked
        a: UPDATE t SET n = 1 WHERE id = 2      => blocked
        a                                       => !40P01
        b                                       => ok
        a: ROLLBACK
        b: COMMIT
    "
    a_savepoint_recovers_from_a_deadlock: "
        a: BEGIN
        b: BEGIN
        b: SET LOCAL deadlock_timeout = '10s'
        b: UPDATE t SET n = 2 WHERE id = 2
        a: SAVEPOINT s
        a: UPDATE t SET n = 1 WHERE id = 1
        b: UPDATE t SET n = 2 WHERE id = 1      => blocked
        a: UPDATE t SET n = 1 WHERE id = 2      => blocked
        a                                       => !40P01
        a: ROLLBACK TO SAVEPOINT s
        b                                       => ok
        a: SELECT 1                             => 1
        b: COMMIT
        a: COMMIT                               => {ok|ok|!40001}
    "
    a_locked_row_is_looked_at_again_and_a_row_that_moved_in_is_not_found: "
        a: BEGIN
        b: BEGIN
        a: UPDATE t SET n = n + 10
        b: SELECT id FROM t WHERE n = 20 FOR UPDATE => blocked
        a: COMMIT
        b                                       => {none|!40001|!40001}
        b: COMMIT
    "
    an_insert_that_steps_aside: "
        a: BEGIN
        b: BEGIN
        b: SELECT 1                             => 1
        a: INSERT INTO t VALUES (3, 30)
        b: INSERT INTO t VALUES (3, 31) ON CONFLICT DO NOTHING => blocked
        a: COMMIT
        b                                       => {none|!40001|!40001}
        b: COMMIT
    "
    two_look_and_insert_what_they_did_not_find: "
        a: BEGIN
        b: BEGIN
        a: SELECT id FROM t WHERE id = 3        => none
        b: SELECT id FROM t WHERE id = 3        => none
        a: INSERT INTO t VALUES (3, 30)
        b: INSERT INTO t VALUES (3, 31)         => blocked
        a: COMMIT
        b                                       => {!23505|!23505|!40001}
        b: COMMIT
    "
    a_change_by_version_is_tried_again_in_one_transaction: "
        a: BEGIN
        a: SELECT n FROM t WHERE id = 1         => 10
        b: UPDATE t SET n = 11 WHERE id = 1
        a: UPDATE t SET n = 12 WHERE id = 1 AND n = 10 RETURNING n => {none|!40001|!40001}
        a: SELECT n FROM t WHERE id = 1         => {11|!25P02|!25P02}
        a: UPDATE t SET n = 12 WHERE id = 1 AND n = 11 RETURNING n => {12|!25P02|!25P02}
        a: COMMIT
    "
    a_row_is_locked_and_then_written: "
        a: BEGIN
        b: BEGIN
        b: SELECT 1                             => 1
        a: SELECT n FROM t WHERE id = 1 FOR NO KEY UPDATE => 10
        a: UPDATE t SET n = 11 WHERE id = 1
        b: SELECT n FROM t WHERE id = 1 FOR NO KEY UPDATE => blocked
        a: COMMIT
        b                                       => {11|!40001|!40001}
        b: UPDATE t SET n = 12 WHERE id = 1 RETURNING n => {12|!25P02|!25P02}
        b: COMMIT
    "
    a_row_that_guards_others_is_locked: "
        a: BEGIN
        b: BEGIN
        b: SELECT 1                             => 1
        a: SELECT id FROM t WHERE id = 2 FOR NO KEY UPDATE => 2
        b: SELECT id FROM t WHERE id = 2 FOR NO KEY UPDATE => blocked
        a: UPDATE t SET n = 0 WHERE id = 1
        a: COMMIT
        b                                       => 2
        b: SELECT n FROM t WHERE id = 1         => {0|10|10}
        b: COMMIT
    "
    an_advisory_lock_does_not_renew_a_snapshot: "
        a: BEGIN
        b: BEGIN
        b: SELECT 1                             => 1
        a: SELECT 1 FROM pg_advisory_xact_lock(7) => 1
        b: SELECT 1 FROM pg_advisory_xact_lock(7) => blocked
        a: UPDATE t SET n = 11 WHERE id = 1
        a: COMMIT
        b                                       => 1
        b: SELECT n FROM t WHERE id = 1         => {11|10|10}
        b: COMMIT
    "
}

/// One file, with its sessions in WAL mode.
async fn on_sqlite(script: &str) {
    on_sqlite_with(sqlx::sqlite::SqliteJournalMode::Wal, script).await;
}

async fn on_sqlite_with(journal: sqlx::sqlite::SqliteJournalMode, script: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&file)
        .create_if_missing(true)
        .journal_mode(journal);
    let mut maker = options.connect().await.unwrap();
    maker.execute(TABLE).await.unwrap();
    // Closed for certain: the last one to leave locks the file for a moment, and nobody waits here.
    maker.close().await.unwrap();
    steps::on_sqlite(&file, script).await;
}

#[tokio::test]
async fn on_sqlite_a_deferred_transaction_reads_a_snapshot_and_fails_to_write_late() {
    for (write, name) in [
        ("UPDATE t SET n = 11 WHERE id = 1", "p4"),
        ("UPDATE t SET n = 21 WHERE id = 2", "g2"),
    ] {
        eprintln!("{name}");
        on_sqlite(&format!(
            "
            a: BEGIN
            b: BEGIN
            a: SELECT n FROM t ORDER BY id      => 10; 20
            b: SELECT n FROM t ORDER BY id      => 10; 20
            a: UPDATE t SET n = 11 WHERE id = 1
            b: SELECT n FROM t WHERE id = 1     => 10
            b: {write}                          => !5
            a: COMMIT
            b: {write}                          => !517
            b: SELECT n FROM t ORDER BY id      => 10; 20
            b: COMMIT
            b: SELECT n FROM t ORDER BY id      => 11; 20
            "
        ))
        .await;
    }
}

#[tokio::test]
async fn on_sqlite_a_reader_sees_what_was_committed_when_it_began_to_read() {
    for (name, script) in [
        (
            "g1a, g1b",
            "
            a: BEGIN IMMEDIATE
            b: BEGIN
            a: UPDATE t SET n = 101 WHERE id = 1
            b: SELECT n FROM t WHERE id = 1     => 10
            a: UPDATE t SET n = 11 WHERE id = 1
            b: SELECT n FROM t WHERE id = 1     => 10
            a: COMMIT
            b: SELECT n FROM t WHERE id = 1     => 10
            b: COMMIT
            b: SELECT n FROM t WHERE id = 1     => 11
            a: BEGIN IMMEDIATE
            a: UPDATE t SET n = 101 WHERE id = 1
            a: ROLLBACK
            b: SELECT n FROM t WHERE id = 1     => 11
            ",
        ),
        (
            "g_single",
            "
            a: BEGIN
            a: SELECT n FROM t WHERE id = 1     => 10
            b: UPDATE t SET n = 12 WHERE id = 1
            b: UPDATE t SET n = 18 WHERE id = 2
            a: SELECT n FROM t WHERE id = 2     => 20
            a: DELETE FROM t WHERE n = 20       => !517
            a: COMMIT
            ",
        ),
        (
            "pmp",
            "
            a: BEGIN
            a: SELECT id FROM t WHERE n = 30    => none
            b: INSERT INTO t VALUES (3, 30)
            a: SELECT id FROM t WHERE n % 3 = 0 => none
            a: COMMIT
            a: SELECT id FROM t WHERE n % 3 = 0 => 3
            ",
        ),
        (
            "otv, g1c",
            "
            a: BEGIN IMMEDIATE
            b: BEGIN
            c: BEGIN
            a: UPDATE t SET n = 11 WHERE id = 1
            b: UPDATE t SET n = 22 WHERE id = 2 => !5
            a: UPDATE t SET n = 19 WHERE id = 2
            a: COMMIT
            c: SELECT n FROM t WHERE id = 1     => 11
            d: UPDATE t SET n = 18 WHERE id = 2
            c: SELECT n FROM t WHERE id = 2     => 19
            c: COMMIT
            ",
        ),
    ] {
        eprintln!("{name}");
        on_sqlite(script).await;
    }
}

#[tokio::test]
async fn on_sqlite_with_a_rollback_journal_a_reader_holds_up_the_commit() {
    on_sqlite_with(
        sqlx::sqlite::SqliteJournalMode::Delete,
        "
        a: BEGIN
        a: SELECT n FROM t ORDER BY id          => 10; 20
        b: BEGIN IMMEDIATE
        b: UPDATE t SET n = 11 WHERE id = 1
        b: COMMIT                               => !5
        a: SELECT n FROM t WHERE id = 1         => 10
        a: COMMIT
        b: COMMIT
        a: SELECT n FROM t WHERE id = 1         => 11
        ",
    )
    .await;
}

#[tokio::test]
async fn on_sqlite_writers_take_turns() {
    on_sqlite(
        "
        a: BEGIN IMMEDIATE
        b: BEGIN IMMEDIATE                      => !5
        c: BEGIN
        a: UPDATE t SET n = 11 WHERE id = 1
        c: SELECT n FROM t WHERE id = 1         => 10
        a: COMMIT
        b: BEGIN IMMEDIATE
        b: SELECT n FROM t WHERE id = 1         => 11
        c: SELECT n FROM t WHERE id = 1         => 10
        b: UPDATE t SET n = n + 1 WHERE id = 1
        b: COMMIT
        c: COMMIT
        c: SELECT n FROM t WHERE id = 1         => 12
        ",
    )
    .await;
}

#[tokio::test]
#[should_panic(expected = "line 2")]
async fn a_script_that_is_wrong_fails() {
    on_sqlite("a: BEGIN\n a: SELECT n FROM t WHERE id = 1 => 11").await;
}
