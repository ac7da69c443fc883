//! What differs between databases where rows with versions are concerned.

use std::fmt;

#[cfg(feature = "postgres")]
use sqlx::Postgres;
use sqlx::error::BoxDynError;
#[cfg(feature = "sqlite")]
use sqlx::sqlite::{Sqlite, SqliteArgumentsBuffer};
use sqlx::{Arguments as _, Database, Decode, Encode, Row as _, SqlStr, Type};
#[cfg(feature = "sqlite")]
use sqlx::{ValueRef as _, error::UnexpectedNullError};

/// What a version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number that is raised by one.
    Count,
    /// The server's clock in microseconds.
    Time,
}

/// What an error of a statement over a described table means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The table is not as described.
    Description(&'static str),
    /// The answer is lost.
    Lost,
    /// Refused, and not done.
    Refused,
}

/// What rows with versions need of a database. Public in name only: the module is private.
pub trait Rows: Database {
    /// Whether a guarded change that was not made tells in the same answer what stood in its way.
    const TELLS: bool;

    /// Whether a statement is prepared for the types of its arguments: given others, it would take their bytes
    /// for something else.
    const TYPED: bool;

    /// Whether many rows go into one statement, as arrays. If not, a statement costs no round trip.
    const ARRAYS: bool;

    /// The statement that makes the table of fences by resource.
    const FENCES: &'static str;

    /// At the end of a SELECT, locks the row until the transaction ends. Empty where a transaction that
    /// writes is alone anyway.
    const LOCKED: &'static str;

    /// The version in a column, as a 64-bit number.
    fn read(column: &str, kind: Kind) -> String;

    /// A version that is given as a 64-bit number, as the column has it.
    fn given(number: &str, kind: Kind) -> String;

    /// The version after the one in a column.
    fn next(column: &str, kind: Kind) -> String;

    /// The version of a new row.
    fn first(kind: Kind) -> &'static str;

    /// A change that yields (1, the number `told`) for the row it has changed. Where the database can, it
    /// yields for a row that it has not changed what `look`, of the form `SELECT 0, ... WHERE ...`, finds.
    fn guarded(change: &str, told: &str, look: &str) -> String;

    /// Runs a statement and reads its answer to the very end: only there does it say that it is committed.
    fn answer(
        connection: &mut Self::Connection,
        text: SqlStr,
        arguments: Self::Arguments,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

    /// Numbers as an argument, where there are arrays.
    fn add_numbers(arguments: &mut Self::Arguments, numbers: &[i64]) -> Result<(), BoxDynError>;

    /// A text as an argument.
    fn add_text(arguments: &mut Self::Arguments, text: &str) -> Result<(), BoxDynError>;

    /// A number as an argument.
    fn add_number(arguments: &mut Self::Arguments, number: i64) -> Result<(), BoxDynError>;

    /// A number from a row.
    fn number(row: &Self::Row, at: usize) -> Result<Option<i64>, sqlx::Error>;

    /// A value from a row. A NULL only as what is written as NULL: SQLite's driver by itself makes a 0 or an empty text
    /// of one, and whoever writes that back has changed what he has never seen.
    fn column<'r, T>(row: &'r Self::Row, at: usize) -> Result<T, sqlx::Error>
    where
        T: Decode<'r, Self> + for<'q> Encode<'q, Self> + Type<Self>;

    /// The place for the description of a table of this database.
    #[cfg(feature = "derive")]
    fn described(
        tables: &crate::versioned::made::Tables,
    ) -> &std::sync::OnceLock<super::Table<Self>>
    where
        Self: crate::backend::Backend;

    /// How many of one process may be at the lock of a row at once. With two the next one waits at the server, which
    /// hands the lock on without a round trip; where waiting is to ask again and again, one is best.
    const AT_LOCK: usize;

    /// Shows arguments, values and all.
    fn show(arguments: &Self::Arguments, to: &mut impl fmt::Write) -> fmt::Result;

    /// What an error of a statement by itself means. Never looks at a message's text.
    fn fault(error: &sqlx::Error) -> Fault;
}

#[cfg(feature = "postgres")]
impl Rows for Postgres {
    const TELLS: bool = true;

    const AT_LOCK: usize = 2;

    const TYPED: bool = true;

    const ARRAYS: bool = true;

    const FENCES: &'static str = include_str!("../../migrations/postgres/0001_fences.sql");

    /// The key is never changed, so rows that refer to this one may be inserted meanwhile.
    const LOCKED: &'static str = " FOR NO KEY UPDATE";

    fn read(column: &str, kind: Kind) -> String {
        match kind {
            Kind::Count => format!("{column}::bigint"),
            // In PostgreSQL 13 `extract` is a float, which has the microseconds up to the year 2255 only if
            // rounded.
            Kind::Time => format!("round(extract(epoch FROM {column}) * 1000000)::bigint"),
        }
    }

    fn given(number: &str, kind: Kind) -> String {
        match kind {
            Kind::Count => number.to_owned(),
            Kind::Time => format!("(timestamptz 'epoch' + {number} * interval '1 microsecond')"),
        }
    }

    /// Not `now()`, which stands still in a transaction.
    fn next(column: &str, kind: Kind) -> String {
        match kind {
            Kind::Count => format!("{column} + 1"),
            Kind::Time => {
                format!("greatest({column} + interval '1 microsecond', clock_timestamp())")
            }
        }
    }

    fn first(kind: Kind) -> &'static str {
        match kind {
            Kind::Count => "1",
            Kind::Time => "clock_timestamp()",
        }
    }

    /// `done$`, as a table that is called `done` would be hidden by it; a plain name has no `$`.
    fn guarded(change: &str, told: &str, look: &str) -> String {
        format!(
            "WITH done$ AS ({change} RETURNING {told} AS told) \
             SELECT 1::bigint, told FROM done$ \
             UNION ALL {look} AND NOT EXISTS (SELECT FROM done$)"
        )
    }

    async fn answer(
        connection: &mut Self::Connection,
        text: SqlStr,
        arguments: Self::Arguments,
    ) -> Result<Vec<Self::Row>, sqlx::Error> {
        sqlx::query_with(text, arguments)
            .fetch_all(connection)
            .await
    }

    fn add_numbers(arguments: &mut Self::Arguments, numbers: &[i64]) -> Result<(), BoxDynError> {
        arguments.add(numbers)
    }

    fn add_text(arguments: &mut Self::Arguments, text: &str) -> Result<(), BoxDynError> {
        arguments.add(text)
    }

    fn add_number(arguments: &mut Self::Arguments, number: i64) -> Result<(), BoxDynError> {
        arguments.add(number)
    }

    fn number(row: &Self::Row, at: usize) -> Result<Option<i64>, sqlx::Error> {
        row.try_get(at)
    }

    fn column<'r, T>(row: &'r Self::Row, at: usize) -> Result<T, sqlx::Error>
    where
        T: Decode<'r, Self> + for<'q> Encode<'q, Self> + Type<Self>,
    {
        row.try_get(at)
    }

    #[cfg(feature = "derive")]
    fn described(
        tables: &crate::versioned::made::Tables,
    ) -> &std::sync::OnceLock<super::Table<Self>> {
        &tables.postgres
    }

    fn show(arguments: &Self::Arguments, to: &mut impl fmt::Write) -> fmt::Result {
        write!(to, "{arguments:?}")
    }

    fn fault(error: &sqlx::Error) -> Fault {
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code);
        match code.as_deref() {
            Some("42P01") => Fault::Description("there is no such table"),
            Some("42703") => Fault::Description("a column of the description is not there"),
            Some("42P10") => Fault::Description("no unique constraint is on the key"),
            Some("42804" | "42883" | "42846") => {
                Fault::Description("a column is of another type than its value")
            }
            Some("22003" | "22008") => Fault::Description("a number does not fit its column"),
            Some("22001") => Fault::Description("a text is too long for its column"),
            Some("22021") => Fault::Description("a text has a NUL in it"),
            _ if crate::backend::classify_sqlx(error) == crate::backend::Class::ConnectionLost => {
                Fault::Lost
            }
            _ => Fault::Refused,
        }
    }
}

#[cfg(feature = "sqlite")]
impl Rows for Sqlite {
    const TELLS: bool = false;

    const AT_LOCK: usize = 1;

    const TYPED: bool = false;

    const ARRAYS: bool = false;

    const FENCES: &'static str = include_str!("../../migrations/sqlite/0002_fences.sql");

    const LOCKED: &'static str = "";

    fn read(column: &str, _kind: Kind) -> String {
        column.to_owned()
    }

    fn given(number: &str, _kind: Kind) -> String {
        number.to_owned()
    }

    fn next(column: &str, kind: Kind) -> String {
        match kind {
            Kind::Count => format!("{column} + 1"),
            Kind::Time => format!("max({column} + 1, {})", Self::first(kind)),
        }
    }

    /// The clock has milliseconds.
    fn first(kind: Kind) -> &'static str {
        match kind {
            Kind::Count => "1",
            Kind::Time => "CAST(round(unixepoch('subsec') * 1000) AS INTEGER) * 1000",
        }
    }

    fn guarded(change: &str, told: &str, _look: &str) -> String {
        format!("{change} RETURNING 1, {told}")
    }

    async fn answer(
        connection: &mut Self::Connection,
        text: SqlStr,
        arguments: Self::Arguments,
    ) -> Result<Vec<Self::Row>, sqlx::Error> {
        sqlx::query_with(text, arguments)
            .fetch_all(connection)
            .await
    }

    fn add_numbers(arguments: &mut Self::Arguments, numbers: &[i64]) -> Result<(), BoxDynError> {
        numbers.iter().try_for_each(|number| arguments.add(*number))
    }

    fn add_text(arguments: &mut Self::Arguments, text: &str) -> Result<(), BoxDynError> {
        arguments.add(text)
    }

    fn add_number(arguments: &mut Self::Arguments, number: i64) -> Result<(), BoxDynError> {
        arguments.add(number)
    }

    fn number(row: &Self::Row, at: usize) -> Result<Option<i64>, sqlx::Error> {
        row.try_get(at)
    }

    fn column<'r, T>(row: &'r Self::Row, at: usize) -> Result<T, sqlx::Error>
    where
        T: Decode<'r, Self> + for<'q> Encode<'q, Self> + Type<Self>,
    {
        let value: T = row.try_get(at)?;
        if row.try_get_raw(at)?.is_null() {
            let mut written = SqliteArgumentsBuffer::default();
            let again = value.encode_by_ref(&mut written);
            if !again.is_ok_and(|again| again.is_null()) {
                return Err(sqlx::Error::ColumnDecode {
                    index: at.to_string(),
                    source: Box::new(UnexpectedNullError),
                });
            }
        }
        Ok(value)
    }

    #[cfg(feature = "derive")]
    fn described(
        tables: &crate::versioned::made::Tables,
    ) -> &std::sync::OnceLock<super::Table<Self>> {
        &tables.sqlite
    }

    fn show(arguments: &Self::Arguments, to: &mut impl fmt::Write) -> fmt::Result {
        write!(to, "{arguments:?}")
    }

    fn fault(error: &sqlx::Error) -> Fault {
        match crate::backend::sqlite::primary_code(error) {
            Some(1) => Fault::Description(
                "it, a column of the description, or a unique constraint on the key is not there",
            ),
            Some(20) => Fault::Description("a column is of another type than its value"),
            // The disk may have it or not.
            Some(10) => Fault::Lost,
            _ if crate::backend::classify_sqlx(error) == crate::backend::Class::ConnectionLost => {
                Fault::Lost
            }
            _ => Fault::Refused,
        }
    }
}
