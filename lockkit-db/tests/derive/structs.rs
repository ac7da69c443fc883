//! The structs of these tests, and their tables.

use lockkit_db::Versioned;
use lockkit_db::cas::Version;

use crate::scene;

#[derive(Clone, Debug, PartialEq, Versioned)]
#[versioned(table = "note")]
pub(crate) struct Note {
    // Neither first nor last, so that nothing depends on the order of the roles.
    pub(crate) title: Option<String>,
    #[versioned(key)]
    pub(crate) id: i64,
    #[versioned(version)]
    pub(crate) version: i64,
    #[versioned(column = "stars")]
    pub(crate) rating: i64,
}

impl Note {
    pub(crate) fn new(id: i64, title: &str, rating: i64) -> Self {
        Self {
            title: Some(title.to_owned()),
            id,
            version: 0,
            rating,
        }
    }
}

/// A key of two columns of the same type, of which the second is said first.
#[derive(Clone, Debug, PartialEq, Versioned)]
#[versioned(table = "pair")]
pub(crate) struct Pair {
    pub(crate) n: i64,
    #[versioned(key, column = "b")]
    pub(crate) right: i64,
    #[versioned(key)]
    #[versioned(column = "a")]
    pub(crate) left: i64,
    #[versioned(version)]
    pub(crate) version: Version,
}

#[derive(Clone, Debug, PartialEq, Versioned)]
#[versioned(table = "timed")]
pub(crate) struct Timed {
    #[versioned(key)]
    pub(crate) name: String,
    pub(crate) n: i64,
    #[versioned(timestamp)]
    pub(crate) changed: Version,
}

#[derive(Clone, Debug, PartialEq, Versioned)]
#[versioned(table = "slot")]
pub(crate) struct Slot<T, const N: usize = 1> {
    #[versioned(key)]
    pub(crate) id: i64,
    #[versioned(column = "thing")]
    pub(crate) value: T,
    #[versioned(version)]
    pub(crate) version: i64,
}

/// What the engines call the types of the columns.
pub(crate) trait Types {
    const TIME: &str;
}

impl Types for scene::Postgres {
    const TIME: &str = "TIMESTAMPTZ";
}

impl Types for scene::Sqlite {
    const TIME: &str = "INTEGER";
}

/// All of the tables, without rows. `spare` is a column that no struct has.
pub(crate) fn create<S: Types>(_: &S) -> String {
    let time = S::TIME;
    format!(
        "CREATE TABLE note (id BIGINT PRIMARY KEY, title TEXT, stars BIGINT, spare BIGINT DEFAULT 5, \
             version BIGINT); \
         CREATE TABLE pair (a BIGINT, b BIGINT, n BIGINT, version BIGINT NOT NULL, PRIMARY KEY (a, b)); \
         CREATE TABLE timed (name TEXT PRIMARY KEY, n BIGINT, changed {time} NOT NULL); \
         CREATE TABLE slot (id BIGINT PRIMARY KEY, thing TEXT, version BIGINT NOT NULL)"
    )
}

/// Makes the tables.
macro_rules! with_tables {
    ($scene:expr) => {
        lockkit_db::sqlx::raw_sql(lockkit_db::sqlx::AssertSqlSafe(crate::structs::create(
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
