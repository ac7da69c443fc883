//! What can happen to a PostgreSQL server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::time::sleep;

use super::{Stage, Stroke};
use crate::history::Time;
use crate::postgres::{Cluster, Database};

/// How long it leaves the server in peace at most, in milliseconds.
const PEACE: u64 = 800;

/// The most sessions that are ended at once.
const MOST_SESSIONS: i64 = 3;

/// The clock of a database, read through a view, which is off by what a table says.
pub(super) struct Clock<'a> {
    database: &'a Database,
    /// It has one row.
    table: String,
    /// In milliseconds.
    most: i64,
}

pub(super) async fn strike(
    cluster: &Arc<Cluster>,
    database: &Database,
    clock: Option<&Clock<'_>>,
    mut rng: Rng,
    stage: &Stage,
) {
    while stage.goes_on(&mut rng, PEACE).await {
        // Here, as the server is up.
        if let Some(clock) = clock
            && rng.bool()
        {
            let off = rng.i64(-clock.most..=clock.most);
            stage.stroke(Stroke::TurnClock, clock.turn(off)).await;
        }
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

impl<'a> Clock<'a> {
    /// Puts it in the place of the one that the view shows, unless that was done before.
    ///
    /// How far it is off is what it was when a statement began, also for one that then waits.
    pub(super) async fn put(database: &'a Database, view: &str, most: Duration) -> Self {
        let put = format!(
            "DO $do$ BEGIN
                 IF to_regclass('nemesis_{view}') IS NULL THEN
                     CREATE TABLE nemesis_{view} (off bigint NOT NULL);
                     INSERT INTO nemesis_{view} VALUES (0);
                     EXECUTE 'CREATE OR REPLACE VIEW {view} AS
                         SELECT ms + (SELECT off FROM nemesis_{view}) AS ms FROM ('
                         || rtrim(pg_get_viewdef('{view}'::regclass), ';') || ') AS right_clock';
                 END IF;
             END $do$"
        );
        let clock = Self {
            database,
            table: format!("nemesis_{view}"),
            most: most.as_millis().try_into().unwrap_or(i64::MAX),
        };
        clock.run(put).await;
        clock
    }

    /// So many milliseconds from the right time; how many clocks that is.
    pub(super) async fn turn(&self, off: i64) -> usize {
        let turned = self.run(format!("UPDATE {} SET off = {off}", self.table));
        let turned = turned.await;
        assert_eq!(turned, 1, "there is one clock");
        turned as usize
    }

    async fn run(&self, statement: String) -> u64 {
        let mut connection = self.database.connect().await;
        let run = connection.execute(AssertSqlSafe(statement)).await;
        let run = run.unwrap_or_else(|error| panic!("the clock cannot be set: {error}"));
        let _ = connection.close().await;
        run.rows_affected()
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
