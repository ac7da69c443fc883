//! Increments of one counter, in each of the ways.

use hdrhistogram::Histogram;

use super::{demand_all, increments_of, lost, theirs};
use crate::app::{Journal, Way};
use crate::lab::{Lab, counter};
use crate::load::Shot;
use crate::report::{Cell, Chart, Column, Lines, Section, Unit, cells};
use crate::trial::{WAYS, name, waits};

pub(super) async fn busy(lab: &mut Lab) -> anyhow::Result<()> {
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

pub(super) async fn lost_updates(lab: &mut Lab) -> anyhow::Result<()> {
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

pub(super) async fn increments(lab: &mut Lab) -> anyhow::Result<()> {
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

pub(super) async fn loads(lab: &mut Lab) -> anyhow::Result<()> {
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
    section.chart(Chart::lines("Lost updates", 1, 0, 3));
    section.chart(Chart::lines("Mean wait, ms", 1, 0, 4).logarithmic());
    section.chart(Chart::lines("p99 wait, ms", 1, 0, 5).logarithmic());
    lab.add(section);
    Ok(())
}

pub(super) async fn processes(lab: &mut Lab) -> anyhow::Result<()> {
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

pub(super) async fn retries(lab: &mut Lab) -> anyhow::Result<()> {
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
