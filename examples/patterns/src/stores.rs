//! What an example takes from its database without a line of its own for each.

use lockkit_db::Error;
use lockkit_db::lease::{LeaseStore, PostgresStore as PostgresLeases, SqliteStore as SqliteLeases};
use lockkit_db::queue::{JobDatabase, PostgresStore, SqliteStore, TransactionalStore};
use lockkit_db::sqlx::{Postgres, Sqlite};

/// The stores of a database. A service has one database, and needs no such thing: there `Jobs` is
/// `lockkit_db::queue::PostgresStore`, or `SqliteStore`.
pub trait Stores: JobDatabase {
    /// Of jobs.
    type Jobs: TransactionalStore<Database = Self>;
    /// Of locks, for who has no Redis.
    type Leases: LeaseStore;

    /// Opens the store of jobs.
    fn jobs(url: &str) -> impl Future<Output = Result<Self::Jobs, Error>> + Send;

    /// Opens the store of locks.
    fn leases(url: &str) -> impl Future<Output = Result<Self::Leases, Error>> + Send;
}

impl Stores for Postgres {
    type Jobs = PostgresStore;
    type Leases = PostgresLeases;

    fn jobs(url: &str) -> impl Future<Output = Result<PostgresStore, Error>> + Send {
        PostgresStore::open(url)
    }

    fn leases(url: &str) -> impl Future<Output = Result<PostgresLeases, Error>> + Send {
        PostgresLeases::open(url)
    }
}

impl Stores for Sqlite {
    type Jobs = SqliteStore;
    type Leases = SqliteLeases;

    fn jobs(url: &str) -> impl Future<Output = Result<SqliteStore, Error>> + Send {
        SqliteStore::open(url.to_owned())
    }

    fn leases(url: &str) -> impl Future<Output = Result<SqliteLeases, Error>> + Send {
        SqliteLeases::open(url.to_owned())
    }
}
