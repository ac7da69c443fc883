//! Several processes on one SQLite file.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use lockkit_db::sqlx;

use super::{WAYS, name};
use crate::app::{Journal, Way};
use crate::crew::Crew;
use crate::lab::{Lab, counter, look_into};
use crate::load::{Shot, Tally};
use crate::report::{Cell, Chart, Column, Lines, Section, Unit, cells};

/// All of them.
pub(crate) async fn run(lab: &mut Lab) -> anyhow::Result<()> {
    busy(lab).await?;
    lost_updates(lab).await?;
    increments(lab).await?;
    long_transaction(lab).await?;
    journals(lab).await?;
    killed(lab).await?;
    loads(lab).await?;
    processes(lab).await?;
    retries(lab).await?;
    inventory(lab).await?;
    payments(lab).await?;
    terminated(lab).await
}

/// Many increments of one counter at once.
fn increments_of(key: &str, n: usize) -> Vec<Shot> {
    vec![Shot::increment(key); n]
}

/// How many of the increments that were answered well are not in the counter.
fn lost(tally: &Tally, value: i64) -> i64 {
    tally.ok().cast_signed() - value
}

/// Mean, 99th percentile and longest wait, in milliseconds.
pub(crate) fn waits(tally: &Tally) -> anyhow::Result<[f64; 3]> {
    let waits = tally.waits()?;
    let [p99, longest] = [waits.value_at_quantile(0.99), waits.max()];
    Ok([
        waits.mean() / 1000.0,
        p99 as f64 / 1000.0,
        longest as f64 / 1000.0,
    ])
}

async fn busy(lab: &mut Lab) -> anyhow::Result<()> {
    let (n, processes) = (lab.scale.burst, lab.processes);
    let mut section = Section::new(
        "busy",
        "SQLITE_BUSY",
        format!("{n} increments of one counter at once, over {processes} processes"),
        [
            ("way", Unit::Text),
            ("done", Unit::Count),
            ("failed", Unit::Count),
            ("errors", Unit::Percent),
            ("theirs", Unit::Text),
        ],
    );
    for way in WAYS {
        lab.doing(format!("SQLite, busy: {}", name(way)));
        let (mut crew, _) = lab.on_file(processes, way, Journal::Wal).await?;
        let tally = crew.volley(increments_of("hits", n)).await?;
        crew.end().await?;
        section.row(cells![
            name(way),
            tally.ok(),
            tally.failed(),
            tally.error_rate(),
            theirs(way, "over 30 of 100 fail"),
        ]);
        if !way.is_naive() {
            let (ok, way) = (tally.ok(), name(way));
            lab.demand(
                ok == n as u64,
                format!("SQLite, {way}: {ok} of {n} increments at once are done"),
            );
        }
    }
    lab.add(section);
    Ok(())
}

/// The old figure, where it is about a way like this.
fn theirs(way: Way, text: &str) -> Cell {
    Cell::from(if way.is_naive() { text } else { "" })
}

async fn lost_updates(lab: &mut Lab) -> anyhow::Result<()> {
    let (each, processes) = (lab.scale.each, lab.processes);
    let mut section = Section::new(
        "lost-updates",
        "Lost updates",
        format!("{processes} processes, each with {each} increments one after the other"),
        [
            ("way", Unit::Text),
            ("sent", Unit::Count),
            ("answered as done", Unit::Count),
            ("in the file", Unit::Count),
            ("lost", Unit::Count),
            ("theirs", Unit::Text),
        ],
    );
    for way in WAYS {
        lab.doing(format!("SQLite, lost updates: {}", name(way)));
        let (mut crew, file) = lab.on_file(processes, way, Journal::Wal).await?;
        let tally = crew.in_rows(each, &Shot::increment("hits")).await?;
        crew.end().await?;
        let value = counter(&file, "hits").await?;
        let lost = lost(&tally, value);
        section.row(cells![
            name(way),
            tally.sent(),
            tally.ok(),
            value,
            lost,
            theirs(way, "50 to 100 of 4 x 25 are in the file"),
        ]);
        if !way.is_naive() {
            let (sent, way) = (tally.sent(), name(way));
            lab.demand(
                lost == 0 && tally.ok() == sent,
                format!("SQLite, {way}: of {sent} increments one after the other {value} are in the file"),
            );
        }
    }
    lab.add(section);
    Ok(())
}

/// Upper ends of the classes of waits, in milliseconds.
const CLASSES: [u64; 11] = [
    10, 30, 100, 300, 1000, 2000, 5000, 10_000, 20_000, 60_000, 240_000,
];

async fn increments(lab: &mut Lab) -> anyhow::Result<()> {
    let (n, processes) = (lab.scale.increments, lab.processes);
    let mut section = Section::new(
        "increments",
        "The same load for all",
        format!(
            "{n} increments of one counter at once, over {processes} processes; 10 ms between the read and the write"
        ),
        [
            ("way", Unit::Text),
            ("done", Unit::Count),
            ("errors", Unit::Percent),
            ("in the file", Unit::Count),
            ("lost", Unit::Count),
            ("mean wait", Unit::Milliseconds),
            ("p99 wait", Unit::Milliseconds),
            ("longest", Unit::Milliseconds),
            ("done a second", Unit::PerSecond),
        ],
    );
    let mut histograms = Vec::new();
    for way in WAYS {
        lab.doing(format!("SQLite, {n} increments: {}", name(way)));
        let (mut crew, file) = lab.on_file(processes, way, Journal::Wal).await?;
        let tally = crew.volley(increments_of("hits", n)).await?;
        crew.end().await?;
        let value = counter(&file, "hits").await?;
        let [mean, p99, longest] = waits(&tally)?;
        section.row(cells![
            name(way),
            tally.ok(),
            tally.error_rate(),
            value,
            lost(&tally, value),
            mean,
            p99,
            longest,
            tally.per_second(),
        ]);
        histograms.push(tally.waits()?);
        if !way.is_naive() {
            let (ok, way) = (tally.ok(), name(way));
            lab.demand(
                ok == n as u64 && value == n as i64,
                format!(
                    "SQLite, {way}: {ok} of {n} increments are done, and the counter is {value}"
                ),
            );
        }
    }
    lab.add(section);
    lab.add(histogram(&histograms, n));
    Ok(())
}

/// The waits in classes, of each way.
fn histogram(waits: &[Histogram<u64>], n: usize) -> Section {
    let mut section = Section::new(
        "wait-histogram",
        "How long callers waited",
        format!("the same {n} increments, good or bad, by the time until their answer"),
        [("up to", Unit::Text)],
    );
    let ways = WAYS.map(|way| (name(way), Unit::Count));
    section.columns.extend(ways.map(Column::from));
    let mut from = 0;
    for class in CLASSES {
        let to = class * 1000;
        let counts = waits
            .iter()
            .map(|waits| waits.count_between(from, to).into());
        let class = Unit::Milliseconds.show(class as f64);
        section.row([Cell::from(class)].into_iter().chain(counts));
        // Of values that the histogram takes for one, the class has all.
        from = Histogram::next_non_equivalent(&waits[0], to);
    }
    let lines = Lines::Columns((1..=WAYS.len()).collect());
    let bars = Chart::bars("Answers by how long they took", 0, 0, 0);
    section.chart(Chart { lines, ..bars });
    section
}

async fn long_transaction(lab: &mut Lab) -> anyhow::Result<()> {
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
async fn journals(lab: &mut Lab) -> anyhow::Result<()> {
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

async fn killed(lab: &mut Lab) -> anyhow::Result<()> {
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

async fn integrity(file: &Path) -> anyhow::Result<String> {
    let check = sqlx::query_scalar("PRAGMA integrity_check");
    Ok(check.fetch_one(&mut look_into(file).await?).await?)
}

async fn loads(lab: &mut Lab) -> anyhow::Result<()> {
    let processes = lab.processes;
    let mut section = Section::new(
        "load",
        "Errors and waits against the load",
        format!("so many increments of one counter at once, over {processes} processes"),
        [
            ("way", Unit::Text),
            ("at once", Unit::Count),
            ("errors", Unit::Percent),
            ("lost", Unit::Count),
            ("mean wait", Unit::Milliseconds),
            ("p99 wait", Unit::Milliseconds),
            ("theirs", Unit::Text),
        ],
    );
    for way in WAYS {
        for &n in lab.scale.loads {
            lab.doing(format!("SQLite, {n} at once: {}", name(way)));
            let (mut crew, file) = lab.on_file(processes, way, Journal::Wal).await?;
            let tally = crew.volley(increments_of("hits", n)).await?;
            crew.end().await?;
            let value = counter(&file, "hits").await?;
            let [mean, p99, _] = waits(&tally)?;
            let old = match n {
                10 => "5 %, 100 ms",
                50 => "25 %, 500 ms",
                100 => "45 %, 2000 ms",
                200 => "70 %, 5000 ms",
                500 => "85 %, time-outs",
                _ => "",
            };
            section.row(cells![
                name(way),
                n,
                tally.error_rate(),
                lost(&tally, value),
                mean,
                p99,
                theirs(way, old),
            ]);
            if !way.is_naive() {
                demand_all(lab, way, &tally, value, &format!("{n} at once"));
            }
        }
    }
    section.chart(Chart::lines("Errors, %", 1, 0, 2));
    section.chart(Chart::lines("Mean wait, ms", 1, 0, 4).logarithmic());
    section.chart(Chart::lines("p99 wait, ms", 1, 0, 5).logarithmic());
    lab.add(section);
    Ok(())
}

fn demand_all(lab: &mut Lab, way: Way, tally: &Tally, value: i64, what: &str) {
    let (sent, way) = (tally.sent(), name(way));
    lab.demand(
        tally.failed() == 0 && value == sent.cast_signed(),
        format!(
            "SQLite, {way}, {what}: {} of {sent} done, the counter is {value}",
            tally.ok()
        ),
    );
}

async fn processes(lab: &mut Lab) -> anyhow::Result<()> {
    let n = lab.scale.work;
    let mut section = Section::new(
        "processes",
        "More processes",
        format!("{n} increments of one counter at once"),
        [
            ("way", Unit::Text),
            ("processes", Unit::Count),
            ("done a second", Unit::PerSecond),
            ("errors", Unit::Percent),
            ("lost", Unit::Count),
            ("mean wait", Unit::Milliseconds),
            ("p99 wait", Unit::Milliseconds),
            ("theirs", Unit::Text),
        ],
    );
    for way in WAYS {
        for &processes in lab.scale.processes {
            lab.doing(format!("SQLite, {processes} processes: {}", name(way)));
            let (mut crew, file) = lab.on_file(processes, way, Journal::Wal).await?;
            let tally = crew.volley(increments_of("hits", n)).await?;
            crew.end().await?;
            let value = counter(&file, "hits").await?;
            let [mean, p99, _] = waits(&tally)?;
            section.row(cells![
                name(way),
                processes,
                tally.per_second(),
                tally.error_rate(),
                lost(&tally, value),
                mean,
                p99,
                theirs(way, "no gain, or harm"),
            ]);
            if !way.is_naive() {
                demand_all(lab, way, &tally, value, &format!("{processes} processes"));
            }
        }
    }
    section.chart(Chart::lines("Increments done a second", 1, 0, 2));
    section.chart(Chart::lines("Errors, %", 1, 0, 3));
    lab.add(section);
    Ok(())
}

async fn retries(lab: &mut Lab) -> anyhow::Result<()> {
    let (n, processes) = (lab.scale.burst, lab.processes);
    let mut section = Section::new(
        "retries",
        "Retries by the clients",
        format!(
            "{n} increments at once; a client that is refused waits for 50 ms, then twice that, and sends it again"
        ),
        [
            ("way", Unit::Text),
            ("retries", Unit::Count),
            ("errors", Unit::Percent),
            ("requests sent", Unit::Count),
            ("mean response", Unit::Milliseconds),
            ("p99 response", Unit::Milliseconds),
            ("theirs", Unit::Text),
        ],
    );
    let old = ["50 ms", "200 ms", "800 ms", "3200 ms"];
    let naive = (0..)
        .zip(old)
        .map(|(retries, old)| (Way::Autocommit, retries, old));
    for (way, retries, old) in naive.chain([(Way::Locked, 0, ""), (Way::Optimistic, 0, "")]) {
        lab.doing(format!("SQLite, {retries} retries: {}", name(way)));
        let (mut crew, _) = lab.on_file(processes, way, Journal::Wal).await?;
        let tally = crew
            .stubborn_volley(increments_of("hits", n), retries)
            .await?;
        crew.end().await?;
        let sent: u64 = tally
            .answers
            .iter()
            .map(|answer| u64::from(answer.sent))
            .sum();
        let [mean, p99, _] = waits(&tally)?;
        let retries = u64::from(retries);
        section.row(cells![
            name(way),
            retries,
            tally.error_rate(),
            sent,
            mean,
            p99,
            old
        ]);
    }
    lab.add(section);
    Ok(())
}

async fn inventory(lab: &mut Lab) -> anyhow::Result<()> {
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

async fn payments(lab: &mut Lab) -> anyhow::Result<()> {
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
async fn terminated(lab: &mut Lab) -> anyhow::Result<()> {
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

/// Tells a process to end while a write is in its middle: whether that was answered well, and how long it took.
pub(crate) async fn end_in_the_middle(crew: Crew) -> anyhow::Result<(bool, Duration)> {
    let (http, url) = (crew.http.clone(), crew.members[0].url.clone());
    let begun = tokio::spawn(async move { Shot::write("last", 300).fire(&http, &url, 0).await });
    crew.until_thinking(0).await?;
    let told = Instant::now();
    crew.end()
        .await
        .context("told to end in the middle of a write")?;
    let took = told.elapsed();
    Ok((
        begun.await?.is_ok_and(|answer| answer.refused.is_none()),
        took,
    ))
}
