//! Writers, and what others do beside them.

use std::path::Path;
use std::time::Duration;

use lockkit_db::sqlx;

use super::{increments_of, theirs};
use crate::app::{Journal, Way};
use crate::lab::{Lab, counter, look_into};
use crate::load::Shot;
use crate::report::{Cell, Chart, Section, Unit, cells};
use crate::trial::{WAYS, end_in_the_middle, name, waits};

pub(super) async fn long_transaction(lab: &mut Lab) -> anyhow::Result<()> {
    let (long, n, processes) = (lab.scale.long[0], lab.scale.beside, lab.processes);
    let mut section = Section::new(
        "long-transaction",
        "One long transaction",
        format!("one process writes and commits {long:?} later; meanwhile {n} others write"),
        [
            ("way", Unit::Text),
            ("done", Unit::Count),
            ("errors", Unit::Percent),
            ("mean wait", Unit::Milliseconds),
            ("p99 wait", Unit::Milliseconds),
            ("longest", Unit::Milliseconds),
            ("theirs", Unit::Text),
        ],
    );
    for way in WAYS {
        lab.doing(format!("SQLite, a long transaction: {}", name(way)));
        let (mut crew, _) = lab.on_file(processes, way, Journal::Wal).await?;
        let (http, url) = (crew.http.clone(), crew.members[0].url.clone());
        let long = Shot::write("long", long.as_millis() as u64);
        let long = tokio::spawn(async move { long.fire(&http, &url, 0).await });
        crew.until_thinking(0).await?;
        let shots = (0..n).map(|number| Shot::write(&format!("short-{number}"), 0));
        let tally = crew.volley(shots.collect()).await?;
        long.await??;
        crew.end().await?;
        let [mean, p99, longest] = waits(&tally)?;
        section.row(cells![
            name(way),
            tally.ok(),
            tally.error_rate(),
            mean,
            p99,
            longest,
            theirs(way, "mean over 2 s, longest over 5 s"),
        ]);
        if !way.is_naive() {
            let (ok, way) = (tally.ok(), name(way));
            lab.demand(
                ok == n as u64,
                format!("SQLite, {way}: {ok} of {n} writes beside a long transaction are done"),
            );
        }
    }
    lab.add(section);
    Ok(())
}

/// Many writes at once, several times.
pub(super) async fn journals(lab: &mut Lab) -> anyhow::Result<()> {
    const WRITES: usize = 50;
    let (rounds, processes) = (lab.scale.rounds, lab.processes);
    let mut section = Section::new(
        "journals",
        "WAL against DELETE",
        format!("{WRITES} writes at once, over {processes} processes; medians of {rounds} rounds"),
        [
            ("way", Unit::Text),
            ("journal", Unit::Text),
            ("time", Unit::Milliseconds),
            ("WAL / DELETE", Unit::Percent),
            ("done", Unit::Count),
            ("failed", Unit::Count),
            ("theirs", Unit::Text),
        ],
    );
    for way in [Way::Autocommit, Way::Patient, Way::Locked] {
        lab.doing(format!("SQLite, journals: {}", name(way)));
        let mut delete = Duration::ZERO;
        for (journal, word) in [(Journal::Delete, "DELETE"), (Journal::Wal, "WAL")] {
            let (mut crew, _) = lab.on_file(processes, way, journal).await?;
            let (mut times, mut failed) = (Vec::new(), Vec::new());
            for round in 0..rounds {
                let shots = (0..WRITES).map(|number| Shot::write(&format!("{round}-{number}"), 0));
                let tally = crew.volley(shots.collect()).await?;
                times.push(tally.took);
                failed.push(tally.failed());
            }
            crew.end().await?;
            times.sort();
            failed.sort_unstable();
            let (time, failed) = (times[rounds / 2], failed[rounds / 2]);
            let (share, said) = if journal == Journal::Wal {
                let share = 100.0 * time.as_secs_f64() / delete.as_secs_f64();
                (
                    Cell::from(share),
                    "under 80 %, more are done, over 5 still fail",
                )
            } else {
                delete = time;
                (Cell::from(""), "")
            };
            section.row(cells![
                name(way),
                word,
                time,
                share,
                WRITES as u64 - failed,
                failed,
                theirs(way, said),
            ]);
        }
    }
    section.chart(Chart::bars("Time for 50 writes, ms", 1, 0, 2));
    lab.add(section);
    Ok(())
}

pub(super) async fn killed(lab: &mut Lab) -> anyhow::Result<()> {
    let processes = lab.processes.max(2);
    let mut section = Section::new(
        "killed",
        "Killed in the middle of a write",
        "one process is killed between its write and its commit",
        [
            ("what", Unit::Text),
            ("seen", Unit::Text),
            ("theirs", Unit::Text),
        ],
    );
    lab.doing("SQLite, a process is killed");
    let (mut crew, file) = lab.on_file(processes, Way::Locked, Journal::Wal).await?;
    let (http, url) = (crew.http.clone(), crew.members[0].url.clone());
    let torn = Shot::write("torn", 20_000);
    let torn = tokio::spawn(async move { torn.fire(&http, &url, 0).await });
    crew.until_thinking(0).await?;
    crew.kill(0).await?;
    let answered = torn.await?.is_ok();
    let found = integrity(&file).await?;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM note WHERE key = 'torn'")
        .fetch_one(&mut look_into(&file).await?)
        .await?;
    let n = lab.scale.burst;
    let tally = crew.volley(increments_of("hits", n)).await?;
    let value = counter(&file, "hits").await?;
    crew.end().await?;
    section.row(cells!["integrity check", found.as_str(), "ok"]);
    section.row(cells![
        "rows of the killed transaction",
        left.to_string(),
        ""
    ]);
    let done = format!("{} of {n} done, the counter is {value}", tally.ok());
    section.row(cells!["increments of the others afterwards", done, ""]);
    lab.demand(
        found == "ok" && left == 0 && !answered,
        format!("SQLite: after a kill in the middle of a write the integrity check says {found}, and nothing of it is left"),
    );
    lab.demand(
        tally.failed() == 0 && value == n as i64,
        "SQLite: after a kill the others go on at once",
    );
    lab.add(section);
    Ok(())
}

pub(super) async fn inventory(lab: &mut Lab) -> anyhow::Result<()> {
    let mut section = Section::new(
        "inventory",
        "An inventory",
        "50 pieces; two processes sell 10 and 5 at the same time, and who is refused tries again, 5 times at most",
        [
            ("way", Unit::Text),
            ("sold", Unit::Count),
            ("refused first", Unit::Count),
            ("left", Unit::Count),
            ("right", Unit::Text),
            ("theirs", Unit::Text),
        ],
    );
    for way in WAYS {
        lab.doing(format!("SQLite, inventory: {}", name(way)));
        let (mut crew, file) = lab.on_file(2, way, Journal::Wal).await?;
        crew.volley(vec![Shot::add("stock", 50, 0)]).await?;
        let shots = vec![Shot::add("stock", -10, 50), Shot::add("stock", -5, 50)];
        let tally = crew.stubborn_volley(shots, 5).await?;
        crew.end().await?;
        let refused: u64 = tally
            .answers
            .iter()
            .map(|answer| u64::from(answer.sent) - 1)
            .sum();
        let left = counter(&file, "stock").await?;
        let sold = 50 - left;
        let right = if left == 35 { "yes" } else { "no" };
        section.row(cells![
            name(way),
            sold,
            refused,
            left,
            right,
            theirs(way, "35 left, after one retry")
        ]);
        if !way.is_naive() {
            lab.demand(
                left == 35,
                format!("SQLite, {}: of 50 pieces {left} are left", name(way)),
            );
        }
    }
    lab.add(section);
    Ok(())
}

pub(super) async fn payments(lab: &mut Lab) -> anyhow::Result<()> {
    let mut section = Section::new(
        "payments",
        "Two payments",
        "each takes from two tables, in opposite order, and both have read before either writes",
        [
            ("way", Unit::Text),
            ("done", Unit::Count),
            ("failed", Unit::Count),
            ("longest", Unit::Milliseconds),
            ("paid in both tables", Unit::Text),
            ("theirs", Unit::Text),
        ],
    );
    for way in WAYS {
        lab.doing(format!("SQLite, payments: {}", name(way)));
        let (mut crew, file) = lab.on_file(2, way, Journal::Wal).await?;
        let tally = crew
            .volley(vec![Shot::pay(false, 300), Shot::pay(true, 300)])
            .await?;
        crew.end().await?;
        let (account, reserve): (i64, i64) =
            sqlx::query_as("SELECT account.cents, reserve.cents FROM account, reserve")
                .fetch_one(&mut look_into(&file).await?)
                .await?;
        let paid = format!("{} and {}", 100 - account, 100 - reserve);
        let longest = waits(&tally)?[2];
        section.row(cells![
            name(way),
            tally.ok(),
            tally.failed(),
            longest,
            paid.as_str(),
            theirs(way, "both time out"),
        ]);
        if !way.is_naive() {
            let ok = tally.ok() == 2 && (account, reserve) == (98, 98);
            lab.demand(
                ok,
                format!(
                    "SQLite, {}: both payments are done, in both tables: {paid}",
                    name(way)
                ),
            );
        }
    }
    lab.add(section);
    Ok(())
}

/// What has been begun is answered; then the process is gone.
pub(super) async fn terminated(lab: &mut Lab) -> anyhow::Result<()> {
    lab.doing("SQLite, SIGTERM");
    let (crew, file) = lab.on_file(1, Way::Locked, Journal::Wal).await?;
    let (ok, took) = end_in_the_middle(crew).await?;
    let found = integrity(&file).await?;
    let mut section = Section::new(
        "sigterm",
        "SIGTERM",
        "a process is told to end in the middle of a write of 300 ms",
        [
            ("what", Unit::Text),
            ("seen", Unit::Text),
            ("theirs", Unit::Text),
        ],
    );
    section.row(cells![
        "the write",
        if ok { "answered, and done" } else { "not done" },
        "graceful"
    ]);
    section.row(cells![
        "until the process had ended",
        Unit::Milliseconds.show(took.as_secs_f64() * 1000.0),
        ""
    ]);
    section.row(cells!["integrity check", found.as_str(), ""]);
    lab.demand(
        ok && found == "ok",
        "SQLite: a process that is told to end answers what it has begun",
    );
    lab.add(section);
    Ok(())
}

async fn integrity(file: &Path) -> anyhow::Result<String> {
    let check = sqlx::query_scalar("PRAGMA integrity_check");
    Ok(check.fetch_one(&mut look_into(file).await?).await?)
}
