//! One module a database: how to connect, take turns, begin, tell errors apart.

pub(crate) mod sqlite;
