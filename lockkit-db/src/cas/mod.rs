//! Changing a row only if nobody has changed it since it was read.
//!
//! | you want | use |
//! |---|---|
//! | one change, and to hear of a conflict | [`Table::cas`], [`Table::delete`] |
//! | many changes at once, and to hear whose was in conflict | [`Table::batch_cas`] |
//! | the change made, whoever else is at the row | [`optimistic`](crate::optimistic()) |
//! | the row as it is, and its version | [`Table::load`] |
//! | a new row | [`Table::insert`] |
//! | all of this by the fields of a struct | `#[derive(Versioned)]`, in the feature `derive` |
//!
//! A table is described once, by the names of its key, its value columns and its version; the statements are
//! written then. The predicate is in the statement that changes the row, and the server makes the new
//! version, so neither a transaction nor an isolation level is needed for it to hold.
//!
//! # Versions
//!
//! | kind | column | next one |
//! |---|---|---|
//! | [`version`](TableBuilder::version) | an integer | one more |
//! | [`timestamp`](TableBuilder::timestamp) | PostgreSQL `timestamptz`; SQLite `INTEGER`, microseconds since 1970 | the server's clock, but at least one microsecond more |
//!
//! The column is to be `NOT NULL`. Nothing but these statements may set it, and what others write to the row
//! has to raise it as well, or it is not seen.
//!
//! # Not promised
//!
//! - That a row which was deleted and inserted anew is told from the old one, with integer versions: both
//!   begin at 1. Timestamps tell them apart as long as the server's clock does not go back.
//! - An end to waits on PostgreSQL: a change waits for whoever has locked the row, as long as the session's
//!   `lock_timeout` lets it, which is for ever by default.

mod batch;
pub(crate) mod dialect;
pub(crate) mod table;
mod values;

use std::fmt;

pub use batch::BatchOutcome;
pub use table::{Statements, Table, TableBuilder};
pub use values::{Bind, BindMany, Record, Values};

/// The version of a row, as it was read. What it counts depends on the table; it only ever grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(i64);

/// A row as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loaded<R> {
    /// The value columns.
    pub value: R,
    /// What to show when changing it.
    pub version: Version,
}

/// How a compare-and-set ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a conflict is not an error"]
pub enum Outcome {
    /// The row was as expected, and is changed.
    Updated {
        /// Its new version.
        version: Version,
    },
    /// Somebody else has changed the row. Nothing was changed.
    Conflict {
        /// Its version now.
        current: Version,
    },
    /// There is no such row. Nothing was changed.
    NotFound,
}

/// How a checked delete ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a conflict is not an error"]
pub enum Deleted {
    /// The row was as expected, and is gone.
    Deleted,
    /// Somebody else has changed the row. It is still there.
    Conflict {
        /// Its version now.
        current: Version,
    },
    /// There was no such row.
    NotFound,
}

impl Version {
    /// A version that left the program: in a form, in an entity tag.
    #[must_use]
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number: a count, or microseconds since 1970.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl From<i64> for Version {
    fn from(number: i64) -> Self {
        Self::new(number)
    }
}

impl From<Version> for i64 {
    fn from(version: Version) -> Self {
        version.get()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
