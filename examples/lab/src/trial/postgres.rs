//! Several processes on one PostgreSQL server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lockkit_db::sqlx::{self, PgConnection};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::sqlite::{end_in_the_middle, waits};
use crate::app::Way;
use crate::app::isolation::{Anomalies, Level};
use crate::lab::{Lab, POOL};
use crate::load::{Shot, Tally};
use crate::report::{Chart, Section, Unit, cells};
use crate::server::Server;

/// What this database is written in.
const WAYS: [Way; 3] = [Way::Autocommit, Way::Deferred, Way::Locked];

/// For what takes milliseconds when nothing is broken.
const SOON: Duration = Duration::from_mins(1);

fn name(way: Way) -> &'static str {
    match way {
        Way::Autocommit | Way::Patient => "naive: autocommit",
        Way::Deferred => "naive: transaction",
        Way::Locked | Way::Optimistic => "lockkit: locked",
    }
}

/// All of them.
pub(crate) async fn run(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    increments(lab, server).await?;
    isolation(lab, server).await?;
    long_transaction(lab, server).await?;
    pools(lab, server).await?;
    pool_stats(lab, server).await?;
    deadlock(lab, server).await?;
    bulk(lab, server).await?;
    duplicates(lab, server).await?;
    processes(lab, server).await?;
    watching(lab, server).await?;
    outage(lab, server).await?;
    terminated(lab, server).await
}

/// The value of a counter.
pub(crate) async fn counter(server: &Server, key: &str) -> anyhow::Result<i64> {
    let value = sqlx::query_scalar("SELECT value FROM counter WHERE key = $1").bind(key);
    let value = value.fetch_optional(&mut server.connect().await?).await?;
    Ok(value.unwrap_or(0))
}

async fn increments(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    let (n, processes) = (lab.scale.increments, lab.processes);
    let mut section = Section::new(
        "postgres-increments",
        "PostgreSQL: increments",
        format!(
            "{n} increments of one counter that is not there yet, at once, over {processes} processes with {POOL} \
             connections each; 10 ms between the read and the write"
        ),
        [
            ("way", Unit::Text),
            ("done", Unit::Count),
            ("errors", Unit::Percent),
            ("in the database", Unit::Count),
            ("lost", Unit::Count),
            ("mean wait", Unit::Milliseconds),
            ("p99 wait", Unit::Milliseconds),
            ("done a second", Unit::PerSecond),
            ("theirs", Unit::Text),
        ],
    );
    for way in WAYS {
        lab.doing(format!("PostgreSQL, {n} increments: {}", name(way)));
        let mut crew = lab.on_server(&server.url(), processes, way, POOL).await?;
        let key = format!("increments-{}", name(way));
        let tally = crew.volley(vec![Shot::increment(&key); n]).await?;
        crew.end().await?;
        let value = counter(server, &key).await?;
        let [mean, p99, _] = waits(&tally)?;
        section.row(cells![
            name(way),
            tally.ok(),
            tally.error_rate(),
            value,
            tally.ok().cast_signed() - value,
            mean,
            p99,
            tally.per_second(),
            if way == Way::Locked {
                "1000 of 1000"
            } else {
                ""
            },
        ]);
        if way == Way::Locked {
            lab.demand(
                tally.ok() == n as u64 && value == n as i64,
                format!(
                    "PostgreSQL: {} of {n} increments are done, and the counter is {value}",
                    tally.ok()
                ),
            );
        }
    }
    lab.add(section);
    Ok(())
}

async fn isolation(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
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

async fn long_transaction(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    lab.doing("PostgreSQL, a long transaction");
    let (long, n) = (lab.scale.long[1], lab.scale.beside);
    let mut crew = lab
        .on_server(&server.url(), lab.processes, Way::Locked, POOL)
        .await?;
    let (http, url) = (crew.http.clone(), crew.members[0].url.clone());
    let shot = Shot::add("long", 1, long.as_millis() as u64);
    let running = tokio::spawn(async move { shot.fire(&http, &url, 0).await });
    crew.until_thinking(0).await?;
    let shots = (0..n).map(|number| Shot::increment(&format!("short-{number}")));
    let tally = crew.volley(shots.collect()).await?;
    let ended = running.await??.ended;
    crew.end().await?;
    let unharmed = |answer: &&crate::load::Answer| answer.refused.is_none() && answer.ended < ended;
    let unharmed = tally.answers.iter().filter(unharmed).count();
    let share = 100.0 * unharmed as f64 / n as f64;
    let [mean, p99, longest] = waits(&tally)?;
    let mut section = Section::new(
        "postgres-long-transaction",
        "PostgreSQL: one long transaction",
        format!("{n} short ones on other rows while one is open for {long:?}"),
        [
            ("short ones", Unit::Count),
            ("done", Unit::Count),
            ("done before the long one", Unit::Percent),
            ("mean wait", Unit::Milliseconds),
            ("p99 wait", Unit::Milliseconds),
            ("longest", Unit::Milliseconds),
            ("theirs", Unit::Text),
        ],
    );
    section.row(cells![
        n,
        tally.ok(),
        share,
        mean,
        p99,
        longest,
        "over 95 % not held up"
    ]);
    lab.demand(
        tally.failed() == 0 && share > 95.0,
        format!("PostgreSQL: {share:.0} % of {n} short transactions are done before a long one on another row"),
    );
    lab.add(section);
    Ok(())
}

async fn pools(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    let n = lab.scale.queries;
    let mut section = Section::new(
        "pools",
        "PostgreSQL: the size of a pool",
        format!("{n} queries of 10 ms at once, one process"),
        [
            ("connections", Unit::Count),
            ("time", Unit::Milliseconds),
            ("queries a second", Unit::PerSecond),
            ("against one connection", Unit::Text),
            ("p99 wait", Unit::Milliseconds),
            ("theirs", Unit::Text),
        ],
    );
    let mut alone = 0.0;
    for &pool in lab.scale.pools {
        lab.doing(format!("PostgreSQL, a pool of {pool}"));
        let mut crew = lab.on_server(&server.url(), 1, Way::Locked, pool).await?;
        // Connections are opened before it is measured.
        crew.volley(vec![Shot::get("/api/query?ms=50"); pool as usize])
            .await?;
        let tally = crew.volley(vec![Shot::get("/api/query?ms=10"); n]).await?;
        crew.end().await?;
        let time = tally.took.as_secs_f64();
        if alone == 0.0 {
            alone = time;
        }
        section.row(cells![
            u64::from(pool),
            tally.took,
            tally.per_second(),
            format!("{:.1} times as fast", alone / time),
            waits(&tally)?[1],
            "the gain, and where it flattens",
        ]);
    }
    let time = Chart::lines("Time for all queries, ms", 0, 3, 1);
    section.chart(Chart {
        lines: crate::report::Lines::Columns(vec![1]),
        ..time
    });
    lab.add(section);
    Ok(())
}

/// The answer of `/api/pool-stats`.
#[derive(Clone, Copy, Default, Deserialize)]
pub(crate) struct PoolStats {
    pub(crate) total: u64,
    pub(crate) idle: u64,
    pub(crate) waiting: u64,
}

async fn pool_stats(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    lab.doing("PostgreSQL, who waits for a connection");
    let mut crew = lab.on_server(&server.url(), 1, Way::Locked, POOL).await?;
    let (http, url) = (crew.http.clone(), crew.members[0].url.clone());
    let mut most = PoolStats::default();
    let look = async {
        loop {
            let (_, text) = http.get(&format!("{url}/api/pool-stats")).await?;
            let now: PoolStats = serde_json::from_str(&text)?;
            if now.waiting > most.waiting {
                most = now;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    let n = 40;
    let asked: anyhow::Result<()> = tokio::select! {
        answered = crew.volley(vec![Shot::get("/api/query?ms=50"); n]) => answered.map(drop),
        failed = look => failed,
    };
    asked?;
    let PoolStats {
        total,
        idle,
        waiting,
    } = most;
    crew.end().await?;
    let mut section = Section::new(
        "pool-stats",
        "PostgreSQL: who waits for a connection",
        format!(
            "{n} queries at once, one process with a pool of {POOL} and one more for its health: at its fullest"
        ),
        [
            ("open", Unit::Count),
            ("idle", Unit::Count),
            ("waiting", Unit::Count),
            ("theirs", Unit::Text),
        ],
    );
    section.row(cells![total, idle, waiting, "total, idle, waiting"]);
    lab.add(section);
    Ok(())
}

async fn deadlock(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
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

async fn bulk(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    lab.doing("PostgreSQL, many rows in one statement");
    let rows = lab.scale.rows;
    let mut crew = lab.on_server(&server.url(), 1, Way::Locked, POOL).await?;
    let bulk = Shot::post("bulk-insert", json!({ "key": "bulk", "rows": rows }));
    let together = crew.volley(vec![bulk]).await?;
    let shots = (0..rows).map(|row| Shot::write(&format!("single-{row}"), 0));
    let apart = crew.volley(shots.collect()).await?;
    crew.end().await?;
    let count = "SELECT count(*) FROM note WHERE starts_with(key, $1)";
    let mut section = Section::new(
        "bulk-insert",
        "PostgreSQL: many rows at once",
        format!("{rows} rows, in one statement or each in a transaction of its own"),
        [
            ("how", Unit::Text),
            ("requests", Unit::Count),
            ("rows", Unit::Count),
            ("time", Unit::Milliseconds),
            ("theirs", Unit::Text),
        ],
    );
    for (how, prefix, tally, old) in [
        ("one statement", "bulk-", &together, "in one statement"),
        ("one row a request", "single-", &apart, ""),
    ] {
        let mut connection = server.connect().await?;
        let there: i64 = sqlx::query_scalar(count)
            .bind(prefix)
            .fetch_one(&mut connection)
            .await?;
        section.row(cells![how, tally.sent(), there, tally.took, old]);
        let ok = there == i64::from(rows);
        lab.demand(
            ok,
            format!("PostgreSQL: {how}: {there} of {rows} rows are there"),
        );
    }
    lab.add(section);
    Ok(())
}

async fn duplicates(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
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

/// Increments of so many counters that hardly two meet.
pub(crate) fn spread(n: usize, prefix: &str) -> Vec<Shot> {
    (0..n)
        .map(|number| Shot::increment(&format!("{prefix}-{}", number % 64)))
        .collect()
}

async fn processes(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    let n = lab.scale.work * 4;
    let mut section = Section::new(
        "postgres-processes",
        "PostgreSQL: more processes",
        format!("{n} increments of 64 counters at once; each process has {POOL} connections"),
        [
            ("way", Unit::Text),
            ("processes", Unit::Count),
            ("done a second", Unit::PerSecond),
            ("errors", Unit::Percent),
            ("mean wait", Unit::Milliseconds),
            ("p99 wait", Unit::Milliseconds),
            ("theirs", Unit::Text),
        ],
    );
    for &processes in lab.scale.processes {
        lab.doing(format!("PostgreSQL, {processes} processes"));
        let mut crew = lab
            .on_server(&server.url(), processes, Way::Locked, POOL)
            .await?;
        let tally = crew
            .volley(spread(n, &format!("processes-{processes}")))
            .await?;
        crew.end().await?;
        let [mean, p99, _] = waits(&tally)?;
        section.row(cells![
            name(Way::Locked),
            processes,
            tally.per_second(),
            tally.error_rate(),
            mean,
            p99,
            "grows with the processes",
        ]);
        done(lab, &tally, &format!("{processes} processes"));
    }
    section.chart(Chart::lines("Increments done a second", 1, 0, 2));
    lab.add(section);
    Ok(())
}

fn done(lab: &mut Lab, tally: &Tally, what: &str) {
    let (ok, sent) = (tally.ok(), tally.sent());
    lab.demand(
        ok == sent,
        format!("PostgreSQL, {what}: {ok} of {sent} are done"),
    );
}

/// A session of the apps', and whom it waits for.
type Session = (i32, String, f64, Vec<i32>, String);

async fn watching(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
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

async fn outage(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
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

async fn terminated(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
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
