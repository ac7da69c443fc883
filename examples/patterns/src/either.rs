//! One text for two databases.

/// The items of an example, once for each database, with `Db` for it and `Pool` for the pool of connections to it; and `main`,
/// which gives a pool to `async fn prove(pool: Pool) -> anyhow::Result<()>` among them.
///
/// A service has one database, and needs no such thing: there `Pool` is `sqlx::PgPool`, or `sqlx::SqlitePool`.
#[macro_export]
macro_rules! on_either_database {
    ($($item:item)*) => {
        #[$crate::tokio::main]
        async fn main() -> $crate::anyhow::Result<()> {
            $crate::run(async |database| match database {
                $crate::Database::Postgres(pool) => on_postgres::start(pool).await,
                $crate::Database::Sqlite(pool) => on_sqlite::start(pool).await,
            })
            .await
        }

        mod on_postgres {
            use super::*;
            type Pool = $crate::lockkit_db::sqlx::PgPool;
            #[allow(dead_code, reason = "few have a name for it")]
            type Db = $crate::lockkit_db::sqlx::Postgres;
            pub(super) async fn start(pool: Pool) -> $crate::anyhow::Result<()> {
                prove(pool).await
            }
            $($item)*
        }

        mod on_sqlite {
            use super::*;
            type Pool = $crate::lockkit_db::sqlx::SqlitePool;
            #[allow(dead_code, reason = "few have a name for it")]
            type Db = $crate::lockkit_db::sqlx::Sqlite;
            pub(super) async fn start(pool: Pool) -> $crate::anyhow::Result<()> {
                prove(pool).await
            }
            $($item)*
        }
    };
}
