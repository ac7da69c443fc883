//! A look at the server, and at what the queue has on it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::plan::problems;
use super::statements::sql;
use super::{MIGRATIONS, count};
use crate::Error;
use crate::backend::postgres::connections::Connections;
use crate::queue::JobId;
use crate::queue::checkup::{
    Check, Checkup, ClockOffset, Figures, HeldClaim, Holder, OverLease, PausedQueue, Plan, Setting,
    TableFigures, Unchecked, Who, Why,
};

/// How long each question may take, if the store's patience is not shorter.
const LIMIT: Duration = Duration::from_secs(5);

/// The statements whose plans are looked at, and how many parameters each has.
const STATEMENTS: [(&str, &str, usize); 5] = [
    ("claim", sql!("claim"), 8),
    ("exchange", sql!("exchange"), 12),
    ("settle", sql!("settle"), 9),
    ("reap", sql!("reap"), 1),
    ("promote", sql!("promote"), 1),
];

/// The planner may read all jobs where there are none, or so few.
const FEW: u64 = 1000;

/// Of those who hold something, so many are told of.
const HOLDERS: usize = 20;

/// The clocks are compared until an answer was this quick, or so often.
const QUICK_MS: u64 = 20;
const COMPARISONS: u32 = 3;

/// What a user lacks who is not shown all.
const NO_PRIVILEGE: &str = "42501";

/// One look: a connection of its own, and what it has found so far.
pub(super) struct Doctor {
    connections: Connections,
    figures: Figures,
    unchecked: Vec<Unchecked>,
}

impl Doctor {
    pub(super) fn new(lanes: &Connections) -> Self {
        Self {
            connections: lanes.onlooker(LIMIT),
            figures: Figures::default(),
            unchecked: Vec::new(),
        }
    }

    pub(super) async fn look(mut self) -> Result<Checkup, Error> {
        // With this one it shows whether there is a server at all.
        let version = sqlx::query("SELECT current_setting('server_version'), pg_is_in_recovery()");
        let row = &self.connections.read(version).await?[0];
        self.figures.version = Some(format!("PostgreSQL {}", row.get::<String, _>(0)));
        self.figures.standby = row.get(1);

        let settings = self.settings().await;
        self.note(Check::Settings, settings)?;
        let clock = self.clock().await;
        self.note(Check::Clock, clock)?;
        let holders = self.holders().await;
        self.note(Check::Snapshots, holders)?;
        let notifications = self.notifications().await;
        self.note(Check::Notifications, notifications)?;
        let tables = self.tables().await;
        self.note(Check::Tables, tables)?;
        let leases = self.leases().await;
        self.note(Check::Leases, leases)?;
        let paused = self.paused().await;
        self.note(Check::Queues, paused)?;
        let plans = self.plans().await;
        self.note(Check::Plans, plans)?;
        let why = Why::NotApplicable("the server's own affair");
        self.leave_out(Check::File, why);
        Ok(Checkup::new(self.figures, self.unchecked))
    }

    /// What cannot be seen, or not in time, is no reason not to look at the rest.
    fn note(&mut self, check: Check, looked: Result<(), Error>) -> Result<(), Error> {
        let why = match looked {
            Ok(()) => return Ok(()),
            Err(Error::Busy { .. }) => Why::NoAnswer,
            Err(Error::Database { source }) if is_forbidden(&source) => {
                Why::NotVisible("the database refuses it to this user".to_owned())
            }
            Err(error) => return Err(error),
        };
        self.leave_out(check, why);
        Ok(())
    }

    fn leave_out(&mut self, check: Check, why: Why) {
        self.unchecked.push(Unchecked { check, why });
    }

    async fn rows(&self, sql: &'static str) -> Result<Vec<PgRow>, Error> {
        self.connections.read(sqlx::query(sql)).await
    }

    async fn settings(&mut self) -> Result<(), Error> {
        let rows = self.rows(sql!("doctor_settings")).await?;
        let setting = |row: &PgRow| Setting {
            name: row.get(0),
            value: row.get(1),
        };
        self.figures.settings = rows.iter().map(setting).collect();
        let rows = self.rows(sql!("doctor_schema")).await?;
        let newest = MIGRATIONS.last().map_or(0, |step| step.version.into());
        self.figures.schema = Some((rows[0].get(0), newest));
        Ok(())
    }

    /// Asks for the time until the answer is quick, so that the way of the answer is not taken for a difference.
    async fn clock(&mut self) -> Result<(), Error> {
        for _ in 0..COMPARISONS {
            let sent = now_us();
            let rows = self.rows("SELECT ms FROM lockkit_now").await?;
            let offset = ClockOffset::measured(sent, rows[0].get(0), now_us());
            let best = self.figures.clock.get_or_insert(offset);
            if offset.width_ms() < best.width_ms() {
                *best = offset;
            }
            if best.width_ms() <= QUICK_MS {
                break;
            }
        }
        Ok(())
    }

    async fn holders(&mut self) -> Result<(), Error> {
        let rows = self.rows(sql!("doctor_holders")).await?;
        let hidden = rows.iter().filter(|row| row.get(7)).count();
        if hidden > 0 {
            let what = format!(
                "since when {hidden} sessions of other users are in a transaction; grant this user pg_read_all_stats"
            );
            self.leave_out(Check::Snapshots, Why::NotVisible(what));
        }
        let time = |row: &PgRow, at: usize| {
            let ms: Option<i64> = row.get(at);
            ms.map(|ms| Duration::from_millis(ms.max(0) as u64))
        };
        let holder = |row: &PgRow| {
            let (pid, name) = (row.get(1), row.get(2));
            let who = match row.get(0) {
                0 => Who::Session {
                    pid,
                    application: name,
                    user: row.get(3),
                },
                1 => Who::Standby {
                    pid,
                    application: name,
                },
                2 => Who::Prepared { name },
                what => Who::Slot {
                    name,
                    active: what == 3,
                },
            };
            let behind: Option<i64> = row.get(6);
            Holder {
                who,
                since: time(row, 4),
                idle: time(row, 5),
                behind: behind.map(|behind| behind.max(0) as u64),
            }
        };
        let holders = rows.iter().map(holder);
        // Of a session without a snapshot, whose times are hidden, there is nothing to tell.
        let told = holders.filter(|one| one.behind.is_some() || one.idle.is_some());
        self.figures.holders = told.take(HOLDERS).collect();
        Ok(())
    }

    async fn notifications(&mut self) -> Result<(), Error> {
        let rows = self.rows("SELECT pg_notification_queue_usage()").await?;
        self.figures.notifications = Some(rows[0].get(0));
        Ok(())
    }

    async fn tables(&mut self) -> Result<(), Error> {
        let rows = self.rows(sql!("doctor_tables")).await?;
        let table = |row: &PgRow| TableFigures {
            name: row.get(0),
            bytes: count(row, 1),
            index_bytes: count(row, 2),
            live: count(row, 3),
            dead: count(row, 4),
            vacuumed: row
                .get::<Option<i64>, _>(5)
                .map(|_| Duration::from_millis(count(row, 5))),
            autovacuum: row.get(6),
        };
        self.figures.tables = rows.iter().map(table).collect();
        Ok(())
    }

    async fn leases(&mut self) -> Result<(), Error> {
        let ms = |row: &PgRow, at| Duration::from_millis(count(row, at));
        let orphans = self.rows(sql!("doctor_orphans")).await?;
        let over = self.rows(sql!("doctor_over")).await?;
        let claims = self.rows(sql!("doctor_claims")).await?;
        let leases = &mut self.figures.leases;
        leases.live = count(&orphans[0], 0);
        leases.orphans = count(&orphans[0], 1);
        leases.oldest_orphan = (leases.orphans > 0).then(|| ms(&orphans[0], 2));
        let session = |row: &PgRow| OverLease {
            session: row.get(0),
            worker: row.get(1),
            lease: ms(row, 2),
            over: ms(row, 3),
            jobs: count(row, 4),
        };
        leases.over = over.iter().map(session).collect();
        let claim = |row: &PgRow| HeldClaim {
            job: JobId(row.get(0)),
            queue: row.get(1),
            kind: row.get(2),
            attempt: row.get::<i32, _>(3) as u32,
            worker: row.get(4),
            lease: ms(row, 5),
            since: ms(row, 6),
        };
        leases.longest = claims.iter().map(claim).collect();
        Ok(())
    }

    async fn paused(&mut self) -> Result<(), Error> {
        let rows = self.rows(sql!("doctor_paused")).await?;
        let queue = |row: &PgRow| PausedQueue {
            queue: row.get(0),
            ready: count(row, 1),
        };
        self.figures.paused = rows.iter().map(queue).collect();
        Ok(())
    }

    /// Plans the statements as the store's connections do, whatever their parameters are, and carries none of them out.
    async fn plans(&mut self) -> Result<(), Error> {
        let jobs = self.figures.tables.first();
        let few = jobs.is_some_and(|jobs| jobs.live < FEW);
        for (statement, sql, parameters) in STATEMENTS {
            let lines = self.plan(sql, parameters).await?;
            self.figures.plans.push(Plan {
                statement,
                problems: problems(&lines, few),
                text: lines.join("\n"),
            });
        }
        Ok(())
    }

    async fn plan(&self, sql: &str, parameters: usize) -> Result<Vec<String>, Error> {
        // One connection for all three; what it has locked is let go of at the end.
        let mut transaction = self.connections.begin().await?;
        let prepare = format!("PREPARE lockkit_plan AS\n{sql}");
        let nulls = vec!["NULL"; parameters].join(", ");
        let explain = format!("EXPLAIN (COSTS OFF) EXECUTE lockkit_plan ({nulls})");
        let once = |text: String| sqlx::query(AssertSqlSafe(text)).persistent(false);
        transaction.rows(once(prepare)).await?;
        let rows = transaction.rows(once(explain)).await?;
        transaction
            .rows(once("DEALLOCATE lockkit_plan".to_owned()))
            .await?;
        transaction.commit().await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
}

fn is_forbidden(source: &crate::Cause) -> bool {
    let error: Option<&sqlx::Error> = source.downcast_ref();
    let code = error
        .and_then(sqlx::Error::as_database_error)
        .and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code == NO_PRIVILEGE)
}
