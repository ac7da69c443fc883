//! Advisory locks: in transactions, and with connections of their own.

#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "it is shared with the tests of transactions"
)]
#[path = "../transaction/scene.rs"]
mod scene;
mod sessions;
mod transactions;

use std::time::Duration;

use lockkit_db::advisory::{Advisory, AdvisoryKey};
use lockkit_db::sqlx::{self, PgConnection};

fn advisory(name: &str) -> Advisory {
    Advisory::new(AdvisoryKey::new("test", name).unwrap())
}

/// How many sessions of the database have an advisory lock, and how many wait for one.
async fn seen(view: &mut PgConnection) -> (i64, i64) {
    sqlx::query_as(
        "SELECT count(*) FILTER (WHERE granted), count(*) FILTER (WHERE NOT granted) \
         FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
         WHERE d.datname = current_database() AND locktype = 'advisory'",
    )
    .fetch_one(view)
    .await
    .unwrap()
}

/// Waits until so many have one, and so many wait.
async fn locks(view: &mut PgConnection, held: i64, waiting: i64) {
    let settled = async {
        while seen(view).await != (held, waiting) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled)
        .await
        .unwrap_or_else(|_| panic!("not {held} that hold and {waiting} that wait"));
}
