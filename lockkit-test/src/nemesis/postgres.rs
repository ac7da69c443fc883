//! What can happen to a PostgreSQL server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use sqlx::{Connection as _, PgConnection};
use tokio::time::sleep;

use super::{Stage, Stroke};
use crate::history::Time;
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
                let ends = async {
                    let mut connection = database.connect().await;
                    let ended = end_sessions(&mut connection, which, most, false).await;
                    let _ = connection.close().await;
                    ended
                };
                stage.stroke(stroke, ends).await;
            }
        }
    }
}

/// Ends a session at work for each so many that are counted: an idle one may be nobody's.
pub(super) async fn follow(database: &Database, count: &AtomicU64, each: u64, stage: &Stage) {
    let mut connection = database.connect().await;
    let mut all = 0;
    while !stage.over.load(Ordering::Relaxed) {
        // Ordering: Relaxed, for a look.
        if count.load(Ordering::Relaxed) < all * each {
            sleep(Duration::from_millis(1)).await;
            continue;
        }
        // Nobody may be at work just now.
        let from = Time::now();
        let ended = end_sessions(&mut connection, "%", 1, true).await;
        if ended > 0 {
            all += ended as u64;
            stage.happened(Stroke::EndSessions, from, ended);
        }
    }
}

/// Ends sessions whose last statement looks so, those at work first or only; how many.
async fn end_sessions(
    connection: &mut PgConnection,
    which: &str,
    most: i64,
    at_work: bool,
) -> usize {
    let ended: Result<Vec<bool>, _> = sqlx::query_scalar(
        "SELECT pg_terminate_backend(pid) FROM (
             SELECT pid FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE $1
                   AND (coalesce(state, 'idle') <> 'idle' OR NOT $3)
             ORDER BY state = 'idle', random() LIMIT $2) AS victim",
    )
    .bind(which)
    .bind(most)
    .bind(at_work)
    .fetch_all(connection)
    .await;
    let ended = ended.unwrap_or_else(|error| panic!("sessions cannot be ended: {error}"));
    // One that has just gone by itself was not ended.
    ended.iter().filter(|ended| **ended).count()
}
