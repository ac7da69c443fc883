//! PostgreSQL under load.

use std::time::Duration;

use lockkit_db::sqlx;
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;

use super::{WAYS, counter, done, name};
use crate::app::Way;
use crate::lab::{Lab, POOL};
use crate::load::{Answer, Shot};
use crate::report::{Chart, Lines, Section, Unit, cells};
use crate::server::Server;
use crate::trial::waits;

pub(super) async fn increments(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
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

pub(super) async fn long_transaction(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
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
    let unharmed = |answer: &&Answer| answer.refused.is_none() && answer.ended < ended;
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

pub(super) async fn pools(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
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
        lines: Lines::Columns(vec![1]),
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

pub(super) async fn pool_stats(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
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

pub(super) async fn bulk(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
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

/// Increments of so many counters that hardly two meet.
pub(crate) fn spread(n: usize, prefix: &str) -> Vec<Shot> {
    (0..n)
        .map(|number| Shot::increment(&format!("{prefix}-{}", number % 64)))
        .collect()
}

pub(super) async fn processes(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
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
