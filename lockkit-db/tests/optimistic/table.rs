//! The table of these tests.

use lockkit_db::cas::Table;
use lockkit_db::transaction::Backend;

use crate::scene;

/// What the engines call the types of its columns.
pub(crate) trait Types {
    const TIME: &str;
}

impl Types for scene::Postgres {
    const TIME: &str = "TIMESTAMPTZ";
}

impl Types for scene::Sqlite {
    const TIME: &str = "INTEGER";
}

/// `note (id, title, stars, version, changed)`, without rows. `changed` is the same version as a time.
pub(crate) fn create<S: Types>(_: &S) -> String {
    let time = S::TIME;
    format!(
        "CREATE TABLE note (id BIGINT PRIMARY KEY, title TEXT NOT NULL DEFAULT '', \
             stars BIGINT NOT NULL DEFAULT 0, version BIGINT DEFAULT 1, changed {time}); \
         CREATE TABLE pair (a BIGINT, b TEXT, n BIGINT, version BIGINT NOT NULL, PRIMARY KEY (a, b)); \
         CREATE TABLE many (id BIGINT, n BIGINT, version BIGINT NOT NULL)"
    )
}

pub(crate) fn stars<DB: Backend>() -> Table<DB> {
    let table = Table::describe("note").key("id").columns(["stars"]);
    table.version("version").build().unwrap()
}

pub(crate) fn notes<DB: Backend>() -> Table<DB> {
    let table = Table::describe("note")
        .key("id")
        .columns(["title", "stars"]);
    table.version("version").build().unwrap()
}

pub(crate) fn timed<DB: Backend>() -> Table<DB> {
    let table = Table::describe("note").key("id").columns(["stars"]);
    table.timestamp("changed").build().unwrap()
}

/// Makes the tables.
macro_rules! with_tables {
    ($scene:expr) => {
        lockkit_db::sqlx::raw_sql(lockkit_db::sqlx::AssertSqlSafe(crate::table::create(
            &$scene,
        )))
        .execute(&$scene.pool)
        .await
        .unwrap()
    };
}
pub(crate) use with_tables;

macro_rules! sql {
    ($scene:expr, $text:literal) => {
        lockkit_db::sqlx::raw_sql($text)
            .execute(&$scene.pool)
            .await
            .unwrap()
    };
}
pub(crate) use sql;
