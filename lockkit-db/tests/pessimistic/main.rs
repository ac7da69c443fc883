//! Locks of rows: what they promise, on PostgreSQL and on SQLite.

mod both;
mod cancel;
mod deadlock;
mod model;
mod postgres;
#[allow(dead_code, reason = "it is shared with the tests of transactions")]
#[path = "../transaction/scene.rs"]
mod scene;
mod sequences;
mod sqlite;

use std::time::Duration;

use lockkit_db::sqlx::{self, PgConnection};

/// A session of the connection's database waits for a lock: now, or as soon as it has got there.
async fn somebody_waits(look: &mut PgConnection) {
    let waits = async {
        loop {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            .fetch_one(&mut *look)
            .await
            .unwrap();
            if waiting > 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waits)
        .await
        .expect("nobody waits for a lock");
}
