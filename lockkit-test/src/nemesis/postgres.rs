//! What can happen to a PostgreSQL server.

use std::sync::Arc;

use fastrand::Rng;
use sqlx::Connection as _;

use super::{Stage, Stroke};
use crate::postgres::{Cluster, Database};

/// How long it leaves the server in peace at most, in milliseconds.
const PEACE: u64 = 800;

/// The most sessions that are ended at once.
const MOST_SESSIONS: i64 = 3;

pub(super) async fn strike(
    cluster: &Arc<Cluster>,
    database: &Database,
    mut rng: Rng,
    stage: &Stage,
) {
    while stage.goes_on(&mut rng, PEACE).await {
        let stroke = match rng.u8(..10) {
            0 => Stroke::Crash,
            1 => Stroke::Restart,
            2..5 => Stroke::EndListeners,
            _ => Stroke::EndSessions,
        };
        let cluster = Arc::clone(cluster);
        match stroke {
            Stroke::Crash | Stroke::Restart => {
                let down_and_up = move || match stroke {
                    Stroke::Crash => cluster.crash(),
                    _ => cluster.restart(),
                };
                let again = async {
                    let again = tokio::task::spawn_blocking(down_and_up).await;
                    let again = again.expect("nobody panics there");
                    again.unwrap_or_else(|error| panic!("the server does not come back: {error}"));
                    1
                };
                stage.stroke(stroke, again).await;
            }
            _ => {
                let (which, most) = if stroke == Stroke::EndListeners {
                    ("LISTEN%", 1000)
                } else {
                    ("%", rng.i64(1..=MOST_SESSIONS))
                };
                stage
                    .stroke(stroke, end_sessions(database, which, most))
                    .await;
            }
        }
    }
}

/// Ends sessions whose last statement looks so, those at work first; how many.
async fn end_sessions(database: &Database, which: &str, most: i64) -> usize {
    let mut connection = database.connect().await;
    let ended = sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM (
             SELECT pid FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE $1
             ORDER BY state = 'idle', random() LIMIT $2) AS victim",
    )
    .bind(which)
    .bind(most)
    .fetch_all(&mut connection)
    .await;
    let ended = ended.unwrap_or_else(|error| panic!("sessions cannot be ended: {error}"));
    let _ = connection.close().await;
    ended.len()
}
