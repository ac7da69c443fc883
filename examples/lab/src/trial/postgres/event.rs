//! What happens to transactions on PostgreSQL.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lockkit_db::sqlx::{self, PgConnection};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::{done, name};
use crate::app::Way;
use crate::app::isolation::{Anomalies, Level};
use crate::lab::{Lab, POOL};
use crate::load::Shot;
use crate::report::{Section, Unit, cells};
use crate::server::Server;
use crate::trial::{end_in_the_middle, waits};

/// For what takes milliseconds when nothing is broken.
const SOON: Duration = Duration::from_mins(1);

pub(super) async fn isolation(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    lab.doing("PostgreSQL, isolation levels");
    let crew = lab.on_server(&server.url(), 1, Way::Locked, POOL).await?;
    let url = format!("{}/api/test-isolation", crew.members[0].url);
    let (status, text) = crew.http.post(&url, &json!({})).await?;
    crew.end().await?;
    let seen: BTreeMap<String, Anomalies> =
        serde_json::from_str(&text).with_context(|| format!("{status}: {text}"))?;
    let mut section = Section::new(
        "isolation",
        "PostgreSQL: isolation levels",
        "what a transaction saw of another one, and what the standard would allow it to see",
        [
            ("level", Unit::Text),
            ("dirty read", Unit::Text),
            ("non-repeatable read", Unit::Text),
            ("phantom", Unit::Text),
            ("the standard allows", Unit::Text),
        ],
    );
    let word = |seen| if seen { "seen" } else { "-" };
    for level in Level::ALL {
        let Anomalies {
            dirty_read,
            non_repeatable_read,
            phantom,
        } = *seen.get(level.name()).context("a level is missing")?;
        let (allows, wrong) = match level {
            Level::ReadUncommitted => ("all three", false),
            Level::ReadCommitted => ("the last two", dirty_read),
            Level::RepeatableRead => ("phantoms", dirty_read || non_repeatable_read),
            Level::Serializable => ("none", dirty_read || non_repeatable_read || phantom),
        };
        section.row(cells![
            level.name(),
            word(dirty_read),
            word(non_repeatable_read),
            word(phantom),
            allows,
        ]);
        lab.demand(
            !wrong,
            format!("PostgreSQL: {} shows no more than it may", level.name()),
        );
    }
    lab.add(section);
    Ok(())
}

pub(super) async fn deadlock(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    let mut section = Section::new(
        "deadlock",
        "PostgreSQL: a deadlock made on purpose",
        "two payments take from two tables, in opposite order",
        [
            ("way", Unit::Text),
            ("done", Unit::Count),
            ("refused", Unit::Text),
            ("attempts", Unit::Count),
            ("longest", Unit::Milliseconds),
            ("paid in both tables", Unit::Text),
            ("theirs", Unit::Text),
        ],
    );
    for way in [Way::Deferred, Way::Locked] {
        lab.doing(format!("PostgreSQL, a deadlock: {}", name(way)));
        let mut crew = lab.on_server(&server.url(), 2, way, POOL).await?;
        let mut connection = server.connect().await?;
        let before = cents(&mut connection).await?;
        let tally = crew
            .volley(vec![Shot::pay(false, 500), Shot::pay(true, 500)])
            .await?;
        crew.end().await?;
        let after = cents(&mut connection).await?;
        let paid = (before.0 - after.0, before.1 - after.1);
        let refused: Vec<_> = tally.refusals().into_keys().collect();
        let attempts: u32 = tally.answers.iter().map(|answer| answer.attempts).sum();
        section.row(cells![
            name(way),
            tally.ok(),
            refused.join(", "),
            u64::from(attempts),
            waits(&tally)?[2],
            format!("{} and {}", paid.0, paid.1),
            if way == Way::Locked {
                "both succeed"
            } else {
                "a victim, 40P01"
            },
        ]);
        if way == Way::Locked {
            let ok = tally.ok() == 2 && paid == (2, 2);
            lab.demand(ok, format!("PostgreSQL: of two payments that deadlock both are done, in {attempts} attempts"));
        }
    }
    lab.add(section);
    Ok(())
}

async fn cents(connection: &mut PgConnection) -> anyhow::Result<(i64, i64)> {
    let both = "SELECT account.cents, reserve.cents FROM account, reserve";
    Ok(sqlx::query_as(both).fetch_one(connection).await?)
}

pub(super) async fn duplicates(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    lab.doing("PostgreSQL, the same row twice");
    let mut crew = lab.on_server(&server.url(), 2, Way::Locked, POOL).await?;
    let tally = crew.volley(vec![Shot::write("once", 0); 2]).await?;
    crew.end().await?;
    let duplicates = tally.refusals().get("duplicate").copied().unwrap_or(0);
    let mut section = Section::new(
        "duplicates",
        "PostgreSQL: the same row twice",
        "two processes insert a row of one key at once",
        [
            ("done", Unit::Count),
            ("told that there is one (409)", Unit::Count),
            ("theirs", Unit::Text),
        ],
    );
    section.row(cells![tally.ok(), duplicates, "23505 is a case of its own"]);
    lab.demand(
        (tally.ok(), duplicates) == (1, 1),
        "PostgreSQL: of two rows of one key one is inserted, and the other told so",
    );
    lab.add(section);
    Ok(())
}

/// A session of the apps', and whom it waits for.
type Session = (i32, String, f64, Vec<i32>, String);

pub(super) async fn watching(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    lab.doing("PostgreSQL, who waits for whom");
    let crew = lab.on_server(&server.url(), 2, Way::Locked, POOL).await?;
    let (http, url) = (crew.http.clone(), crew.members[0].url.clone());
    let first =
        tokio::spawn(async move { Shot::add("watched", 1, 1000).fire(&http, &url, 0).await });
    crew.until_thinking(0).await?;
    let (http, url) = (crew.http.clone(), crew.members[1].url.clone());
    let second = tokio::spawn(async move { Shot::add("watched", 1, 0).fire(&http, &url, 0).await });
    let sessions = "SELECT pid, coalesce(state, ''),
            (1000 * extract(epoch FROM clock_timestamp() - xact_start))::float8,
            pg_blocking_pids(pid), regexp_replace(query, '\\s+', ' ', 'g')
        FROM pg_stat_activity
        WHERE application_name = 'lockkit lab' AND datname = current_database() AND xact_start IS NOT NULL
        ORDER BY xact_start";
    let mut connection = server.connect().await?;
    let seen = async {
        loop {
            let seen: Vec<Session> = sqlx::query_as(sessions).fetch_all(&mut connection).await?;
            // Or both are done already, on a machine that is busy with something else.
            if seen.iter().any(|session| !session.3.is_empty()) || second.is_finished() {
                return anyhow::Ok(seen);
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = timeout(SOON, seen).await.context("nobody waits")??;
    let locks = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    let waiting: i64 = sqlx::query_scalar(locks).fetch_one(&mut connection).await?;
    first.await??;
    second.await??;
    crew.end().await?;
    let mut section = Section::new(
        "watching",
        "PostgreSQL: who waits for whom",
        format!(
            "two transactions on one row, as pg_stat_activity and pg_blocking_pids show them; pg_locks has {waiting} not granted"
        ),
        [
            ("session", Unit::Text),
            ("state", Unit::Text),
            ("open for", Unit::Milliseconds),
            ("waits for", Unit::Text),
            ("statement", Unit::Text),
        ],
    );
    for (pid, state, open, blockers, statement) in seen {
        let blockers: Vec<_> = blockers.iter().map(ToString::to_string).collect();
        let statement: String = statement.chars().take(60).collect();
        section.row(cells![
            pid.to_string(),
            state,
            open,
            blockers.join(", "),
            statement
        ]);
    }
    lab.add(section);
    Ok(())
}

pub(super) async fn outage(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    lab.doing("PostgreSQL, the database is gone for a while");
    let mut bridge = server.bridge()?;
    let url = server.url_over(&bridge);
    let mut crew = lab.on_server(&url, 1, Way::Locked, POOL).await?;
    let health = format!("{}/health", crew.members[0].url);
    let mut section = Section::new(
        "outage",
        "PostgreSQL: the database is gone for a while",
        "the connections of a process to its server are cut, and nobody gets a new one; then the way is open again",
        [
            ("when", Unit::Text),
            ("/health", Unit::Count),
            ("answered after", Unit::Milliseconds),
            ("theirs", Unit::Text),
        ],
    );
    for (when, expected) in [("before", 200), ("without a database", 503), ("again", 200)] {
        match expected {
            503 => bridge.close().await?,
            _ if when == "again" => bridge.open()?,
            _ => {}
        }
        let began = Instant::now();
        let (status, _) = crew.http.get(&health).await?;
        let status = u64::from(status.as_u16());
        section.row(cells![
            when,
            status,
            began.elapsed(),
            if expected == 503 { "503" } else { "" }
        ]);
        lab.demand(
            status == expected,
            format!("PostgreSQL, {when}: /health answers {status}"),
        );
    }
    let tally = crew
        .volley(vec![Shot::increment("after the outage"); 10])
        .await?;
    crew.end().await?;
    done(lab, &tally, "after an outage");
    lab.add(section);
    Ok(())
}

pub(super) async fn terminated(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    lab.doing("PostgreSQL, SIGTERM");
    let crew = lab.on_server(&server.url(), 1, Way::Locked, POOL).await?;
    let (ok, took) = end_in_the_middle(crew).await?;
    let mut section = Section::new(
        "postgres-sigterm",
        "PostgreSQL: SIGTERM",
        "a process is told to end in the middle of a write of 300 ms",
        [
            ("the write", Unit::Text),
            ("until the process had ended", Unit::Milliseconds),
            ("theirs", Unit::Text),
        ],
    );
    section.row(cells![
        if ok { "answered, and done" } else { "not done" },
        took,
        "graceful"
    ]);
    lab.demand(
        ok,
        "PostgreSQL: a process that is told to end answers what it has begun",
    );
    lab.add(section);
    Ok(())
}
