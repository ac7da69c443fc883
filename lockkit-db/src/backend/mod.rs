//! One module a database: how to connect, take turns, begin, tell errors apart.

#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;
