//! What an example says to its database before its pattern begins, and asks it when that is over.

use lockkit_db::Error;
use lockkit_db::sqlx::{self, PgPool, SqlitePool};

/// Of a pool of connections to either database.
pub trait Tables {
    /// Runs a script.
    fn create(&self, script: &'static str) -> impl Future<Output = Result<(), Error>> + Send;

    /// The two numbers of the one row that answers this.
    fn two(&self, question: &'static str)
    -> impl Future<Output = Result<(i64, i64), Error>> + Send;
}

macro_rules! tables {
    ($($Pool:ty)+) => {$(
        impl Tables for $Pool {
            async fn create(&self, script: &'static str) -> Result<(), Error> {
                sqlx::raw_sql(script).execute(self).await?;
                Ok(())
            }

            async fn two(&self, question: &'static str) -> Result<(i64, i64), Error> {
                Ok(sqlx::query_as(question).fetch_one(self).await?)
            }
        }
    )+};
}

tables! { PgPool SqlitePool }
