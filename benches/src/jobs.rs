//! `jobs`: the job queue on PostgreSQL, against pgbench with the same tables and against other queues.
//!
//! All sides are on one server, with durable commits, in a database each; lockkit and pgbench share one. A side's
//! processes begin when they are told to. A job counts when the database says that it is done, not when its handler
//! has run. Sides take turns, round by round.
//!
//! What is quick is measured in more rounds than what takes a minute.

pub(crate) mod child;

mod claims;
mod engine;
mod floor;
mod side;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use lockkit_db::sqlx::{self, AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use lockkit_test::child::Command;
use lockkit_test::postgres::{Cluster, Database, Settings};
use serde::Serialize;
use serde_json::json;

use crate::Measured;
use crate::machine::all_cpu_time;
use crate::race::{ends, median};
use crate::server::{family_cpu_time, postmaster};
use child::Report;
use side::Side;

const QUEUE: &str = "bench";
const TASK: &str = "nothing";
const PAYLOAD: usize = 128;

/// How long a child may take for anything.
const PATIENCE: Duration = Duration::from_mins(5);

/// Jobs of a drain.
const JOBS: u64 = 200_000;
/// Of a queue that takes a millisecond for each.
const FEW_JOBS: u64 = 10_000;
/// Jobs that are drained to see how fast that goes, before half of it is asked for; and how long it is.
const LOAD: (u64, u64) = (100_000, 4);

/// What is measured in one row of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Drain,
    Enqueue(u64),
    Load,
    Both,
    Same,
    Snapshot,
    Backlog,
}

const ROWS: [(&str, What); 8] = [
    ("drain", What::Drain),
    ("enqueue-1000", What::Enqueue(1000)),
    ("enqueue-1", What::Enqueue(1)),
    ("start-at-half-load", What::Load),
    ("start-at-half-of-both", What::Both),
    ("start-at-5000", What::Same),
    ("claim-old-snapshot", What::Snapshot),
    ("claim-large-table", What::Backlog),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many times each row is measured; those that take a minute a fifth of that.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only this row, by its name in the table; may be given several times.
    #[arg(long = "row")]
    rows: Vec<String>,
    /// Only this side, and lockkit's; may be given several times.
    #[arg(long = "side")]
    sides: Vec<String>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            rounds: 5,
            rows: Vec::new(),
            sides: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Of {
    PerSecond,
    ServerUs,
    WalBytes,
    ClientUs,
    P50Us,
    P99Us,
}

/// What one turn of a side has shown.
type Figures = BTreeMap<Of, f64>;

struct Row {
    name: &'static str,
    what: What,
    sides: Vec<(String, Vec<Figures>)>,
    bars: Vec<Bar>,
}

/// What lockkit has to reach of what the best of the named sides does.
struct Bar {
    of: Of,
    against: Vec<&'static str>,
    /// The least of what grows with speed, the most of the rest.
    limit: f64,
    /// A goal is printed, and missing it is no failure.
    goal: bool,
}

/// The server, and what was made in it so far.
struct Bench {
    cluster: Cluster,
    postmaster: u32,
    databases: BTreeMap<&'static str, Database>,
}

pub(crate) async fn run(args: &Args) -> Result<Measured> {
    let mut rows: Vec<Row> = ROWS
        .iter()
        .map(|&(name, what)| Row::new(name, what))
        .collect();
    for asked in &args.rows {
        let known = rows.iter().map(|row| row.name).collect::<Vec<_>>();
        ensure!(known.contains(&&**asked), "no row {asked}; rows: {known:?}");
    }
    if !args.rows.is_empty() {
        rows.retain(|row| args.rows.iter().any(|asked| asked == row.name));
    }
    if !args.sides.is_empty() {
        for row in &mut rows {
            let asked = |name: &str| args.sides.iter().any(|asked| asked == name);
            row.sides
                .retain(|(name, _)| name.starts_with("lockkit") || asked(name));
            for bar in &mut row.bars {
                bar.against
                    .retain(|name| asked(name) || name.starts_with("lockkit"));
            }
            row.bars.retain(|bar| !bar.against.is_empty());
        }
    }
    let mut bench = Bench::start()?;
    let (own, all) = (ours(&bench)?, all_cpu_time()?);
    let began = std::time::Instant::now();
    for round in 0..args.rounds {
        eprintln!("jobs: round {} of {}", round + 1, args.rounds);
        for row in &mut rows {
            if row.what == What::Snapshot && round % 5 != 0 {
                continue;
            }
            for at in order(round, row.sides.len()) {
                let name = row.sides[at].0.clone();
                let figures = bench
                    .turn(row.what, &name)
                    .await
                    .with_context(|| format!("{}, {name}", row.name))?;
                eprintln!("  {} {name}: {figures:?}", row.name);
                row.sides[at].1.push(figures);
            }
        }
    }
    let own = ours(&bench)?.saturating_sub(own);
    let others = all_cpu_time()?.saturating_sub(all).saturating_sub(own);
    let others = others.as_secs_f64() / began.elapsed().as_secs_f64();
    let missed = rows.iter().flat_map(Row::missed);
    Ok(Measured {
        name: "jobs",
        missed: missed.map(|one| format!("jobs {one}")).collect(),
        table: format!(
            "jobs on PostgreSQL (Unix socket), durable, medians of {} rounds; others and the clients took {others:.2} of \
             the cores meanwhile\n{}",
            args.rounds,
            table(&rows)
        ),
        json: rows.iter().map(Row::json).collect(),
    })
}

fn ours(bench: &Bench) -> Result<Duration> {
    Ok(crate::machine::cpu_time() + family_cpu_time(bench.postmaster)?)
}

/// Each round in another order: else each side would always follow the same one.
fn order(round: u32, sides: usize) -> Vec<usize> {
    let mut order = (0..sides).collect::<Vec<_>>();
    order.rotate_left(round as usize % sides);
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

// === a turn ===

impl Bench {
    fn start() -> Result<Self> {
        let settings = Settings::new()
            .fsync(true)
            .parameter("shared_buffers", "1GB")
            // No checkpoint but those that are asked for.
            .parameter("max_wal_size", "16GB")
            .parameter("checkpoint_timeout", "1h")
            // Of the peers one has a connection for each job that runs.
            .parameter("max_connections", "200");
        let cluster = Cluster::start(&settings)?;
        Ok(Self {
            postmaster: postmaster(&cluster)?,
            cluster,
            databases: BTreeMap::new(),
        })
    }

    async fn turn(&mut self, what: What, side: &str) -> Result<Figures> {
        let known = [Side::Lockkit, Side::Pgbench, Side::Graphile, Side::Apalis];
        let named = known.into_iter().find(|known| known.name() == side);
        match (what, named) {
            (What::Drain, Some(side)) => self.drain(side).await,
            (What::Load, Some(side)) => self.load(side, "load").await,
            (What::Both, Some(side)) => self.load(side, "both").await,
            (What::Same, Some(side)) => self.load(side, "same").await,
            (What::Load | What::Both | What::Same, None) => {
                let url = self.database(Side::Lockkit).await?;
                floor::commits(&url).await
            }
            (What::Enqueue(n), named) => {
                let url = self.database(Side::Lockkit).await?;
                floor::enqueue(&url, n, named.is_some()).await
            }
            (What::Snapshot, named) => {
                let url = self.database(Side::Lockkit).await?;
                claims::snapshot(&url, named.is_some()).await
            }
            (What::Backlog, Some(_)) => {
                let url = self.large().await?;
                claims::few(&url).await
            }
            (What::Backlog, None) => {
                let url = self.database(Side::Lockkit).await?;
                claims::refilled(&url).await
            }
            (What::Drain, None) => anyhow::bail!("no such side"),
        }
    }

    /// Where a side's tables are.
    async fn database(&mut self, side: Side) -> Result<String> {
        let name = if side == Side::Pgbench {
            Side::Lockkit.word()
        } else {
            side.word()
        };
        if let Some(database) = self.databases.get(name) {
            return Ok(database.url());
        }
        let database = self.cluster.database().await;
        let url = database.url();
        let program = std::env::current_exe()?;
        let mut child = Command::new(program)
            .args(["jobs-child", name, "prepare", &url, "0"])
            .spawn()?;
        child.next_line::<()>(PATIENCE).await?;
        ensure!(child.wait(PATIENCE).await?.success(), "no tables of {name}");
        self.databases.insert(name, database);
        Ok(url)
    }

    /// The database with millions of jobs.
    async fn large(&mut self) -> Result<String> {
        const NAME: &str = "large";
        if let Some(database) = self.databases.get(NAME) {
            return Ok(database.url());
        }
        let database = self.cluster.database().await;
        let url = database.url();
        claims::fill_large(&url).await?;
        self.databases.insert(NAME, database);
        Ok(url)
    }

    async fn drain(&mut self, side: Side) -> Result<Figures> {
        let jobs = if side == Side::Apalis { FEW_JOBS } else { JOBS };
        let url = self.database(side).await?;
        let mut connection = PgConnection::connect(&url).await?;
        for statement in side.fill(jobs) {
            connection.execute(AssertSqlSafe(statement)).await?;
        }
        let work = async {
            if side == Side::Pgbench {
                return floor::drain(&url, jobs).await;
            }
            let report = work(side, "drain", &url, jobs, 0).await?;
            Ok(Figures::from([
                (Of::PerSecond, jobs as f64 / report.time.as_secs_f64()),
                (Of::ClientUs, report.cpu.as_secs_f64() * 1e6 / jobs as f64),
            ]))
        };
        let figures = self.metered(&url, jobs, work).await?;
        let empty: bool = sqlx::query_scalar(side.empty())
            .fetch_one(&mut connection)
            .await?;
        ensure!(empty, "some jobs were left");
        Ok(figures)
    }

    async fn load(&mut self, side: Side, load: &str) -> Result<Figures> {
        let (jobs, seconds) = LOAD;
        let jobs = if side == Side::Apalis { FEW_JOBS } else { jobs };
        let url = self.database(side).await?;
        let mut connection = PgConnection::connect(&url).await?;
        for statement in side.fill(jobs) {
            connection.execute(AssertSqlSafe(statement)).await?;
        }
        let report = work(side, load, &url, jobs, seconds).await?;
        let waits = &report.waits_us;
        ensure!(!waits.is_empty(), "no job has begun");
        Ok(Figures::from([
            (Of::PerSecond, report.per_second),
            (Of::P50Us, f64::from(waits[waits.len() / 2])),
            (Of::P99Us, f64::from(waits[waits.len() * 99 / 100])),
        ]))
    }

    /// Adds what the server took for each of the jobs.
    async fn metered(
        &self,
        url: &str,
        jobs: u64,
        work: impl Future<Output = Result<Figures>>,
    ) -> Result<Figures> {
        let mut connection = PgConnection::connect(url).await?;
        let wal = "SELECT pg_current_wal_insert_lsn()::text";
        let before: String = sqlx::query_scalar(wal).fetch_one(&mut connection).await?;
        let cpu = family_cpu_time(self.postmaster)?;
        let mut figures = work.await?;
        let cpu = family_cpu_time(self.postmaster)?.saturating_sub(cpu);
        let bytes: f64 =
            sqlx::query_scalar("SELECT (pg_current_wal_insert_lsn() - $1::pg_lsn)::float8")
                .bind(before)
                .fetch_one(&mut connection)
                .await?;
        figures.insert(Of::ServerUs, cpu.as_secs_f64() * 1e6 / jobs as f64);
        figures.insert(Of::WalBytes, bytes / jobs as f64);
        Ok(figures)
    }
}

/// Has a child do its work.
async fn work(side: Side, work: &str, url: &str, jobs: u64, seconds: u64) -> Result<Report> {
    let program = std::env::current_exe()?;
    let (jobs, seconds) = (jobs.to_string(), seconds.to_string());
    let mut child = Command::new(program)
        .args(["jobs-child", side.word(), work, url, &jobs, &seconds])
        .spawn()?;
    child.next_line::<()>(PATIENCE).await?;
    child.send(&(), PATIENCE).await?;
    let report = child.next_line(PATIENCE).await?;
    child.close_stdin();
    ensure!(child.wait(PATIENCE).await?.success(), "the child failed");
    Ok(report)
}

// === the table ===

/// The floors' names.
const BY_HAND: &str = "INSERT by hand";
const COMMITS: &str = "two commits + 3 ms";
const WITHOUT: &str = "lockkit, without";

impl Row {
    fn new(name: &'static str, what: What) -> Self {
        let peers = [Side::Graphile.name(), Side::Apalis.name()];
        let floor = Side::Pgbench.name();
        let bar = |of, against: &[&'static str], limit, goal| Bar {
            of,
            against: against.to_vec(),
            limit,
            goal,
        };
        let (others, bars): (Vec<&str>, _) = match what {
            What::Drain => (
                vec![floor, peers[0], peers[1]],
                vec![
                    bar(Of::PerSecond, &[floor], 0.7, false),
                    bar(Of::PerSecond, &[floor], 0.9, true),
                    bar(Of::PerSecond, &peers, 1.1, false),
                    bar(Of::PerSecond, &peers, 1.5, true),
                    bar(Of::ServerUs, &[floor], 1.3, false),
                    bar(Of::ServerUs, &[floor], 1.0, true),
                    bar(Of::WalBytes, &[floor], 1.3, false),
                    bar(Of::WalBytes, &[floor], 1.0, true),
                ],
            ),
            What::Enqueue(n) => {
                let least = if n == 1 { 0.9 } else { 0.8 };
                (
                    vec![BY_HAND],
                    vec![bar(Of::PerSecond, &[BY_HAND], least, false)],
                )
            }
            What::Load | What::Both | What::Same => (
                vec![COMMITS, peers[0], peers[1]],
                vec![
                    bar(Of::P50Us, &[COMMITS], 1.0, false),
                    bar(Of::P50Us, &peers, 1.0, false),
                ],
            ),
            What::Snapshot | What::Backlog => (
                vec![WITHOUT],
                vec![
                    bar(Of::P50Us, &[WITHOUT], 1.3, false),
                    bar(Of::P50Us, &[WITHOUT], 1.1, true),
                ],
            ),
        };
        let sides = [Side::Lockkit.name()].into_iter().chain(others);
        Self {
            name,
            what,
            sides: sides.map(|side| (side.to_owned(), Vec::new())).collect(),
            bars,
        }
    }

    fn figures(&self, side: &str, of: Of) -> Vec<f64> {
        let known = self.sides.iter().find(|(name, _)| name == side);
        let figures = known.map(|(_, figures)| &figures[..]).unwrap_or_default();
        figures
            .iter()
            .filter_map(|turn| turn.get(&of).copied())
            .collect()
    }

    /// The best of the named sides, and lockkit's figure as a part of its.
    fn ratio(&self, bar: &Bar) -> (&'static str, f64) {
        let median_of = |side: &&'static str| median(&self.figures(side, bar.of));
        let sides = bar.against.iter().copied();
        let best = if bar.of.grows() {
            sides.max_by(|a, b| median_of(a).total_cmp(&median_of(b)))
        } else {
            sides.min_by(|a, b| median_of(a).total_cmp(&median_of(b)))
        };
        let best = best.expect("a bar names a side");
        (best, median_of(&Side::Lockkit.name()) / median_of(&best))
    }

    fn met(&self, bar: &Bar) -> bool {
        let (_, ratio) = self.ratio(bar);
        // What is no number has not met the bar.
        if bar.of.grows() {
            ratio >= bar.limit
        } else {
            ratio <= bar.limit
        }
    }

    fn missed(&self) -> impl Iterator<Item = String> {
        let missed = self.bars.iter().filter(|bar| !bar.goal && !self.met(bar));
        missed.map(|bar| {
            let (side, ratio) = self.ratio(bar);
            let (of, limit) = (bar.of.name(), bar.limit);
            format!(
                "{}: {ratio:.3} of the {of} of {side}, not {limit}",
                self.name
            )
        })
    }

    fn verdict(&self) -> String {
        let verdict = |bar: &Bar| {
            let (side, ratio) = self.ratio(bar);
            let kind = if bar.goal { "goal" } else { "bar" };
            let met = match (self.met(bar), bar.goal) {
                (true, _) => "met",
                (false, true) => "not met",
                (false, false) => "MISSED",
            };
            let of = bar.of.name();
            format!(
                "{kind} {:.1} x {of} of {side} {met} ({ratio:.2})",
                bar.limit
            )
        };
        self.bars.iter().map(verdict).collect::<Vec<_>>().join("\n")
    }

    fn json(&self) -> serde_json::Value {
        let bars = self.bars.iter().map(|bar| {
            let (against, ratio) = self.ratio(bar);
            json!({
                "kind": if bar.goal { "goal" } else { "bar" },
                "of": bar.of,
                "against": against,
                "limit": bar.limit,
                "ratio": ratio,
                "met": self.met(bar),
            })
        });
        json!({
            "row": self.name,
            "sides": self.sides.iter().cloned().collect::<BTreeMap<_, _>>(),
            "bars": bars.collect::<Vec<_>>(),
        })
    }
}

impl Of {
    const ALL: [Self; 6] = [
        Self::PerSecond,
        Self::ServerUs,
        Self::WalBytes,
        Self::ClientUs,
        Self::P50Us,
        Self::P99Us,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "jobs/s",
            Self::ServerUs => "server CPU us/job",
            Self::WalBytes => "WAL B/job",
            Self::ClientUs => "client CPU us/job",
            Self::P50Us => "p50 us",
            Self::P99Us => "p99 us",
        }
    }

    /// Whether more of it is better.
    fn grows(self) -> bool {
        self == Self::PerSecond
    }
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    let header = ["row", "side"].into_iter();
    let header = header.chain(Of::ALL.map(Of::name)).chain([""]);
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_header(header);
    for row in rows {
        for (at, (side, _)) in row.sides.iter().enumerate() {
            let first = |text: String| if at == 0 { text } else { String::new() };
            let mut cells = vec![first(row.name.to_owned()), side.clone()];
            for of in Of::ALL {
                let figures = row.figures(side, of);
                cells.push(if figures.is_empty() {
                    String::new()
                } else {
                    let (min, max) = ends(&figures);
                    let digits = usize::from(max < 100.0);
                    let middle = median(&figures);
                    format!("{middle:.digits$} ({min:.digits$}..{max:.digits$})")
                });
            }
            cells.push(first(row.verdict()));
            table.add_row(cells);
        }
    }
    for column in table.column_iter_mut().skip(2).take(Of::ALL.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(own: f64, floor: f64, peers: [f64; 2]) -> Row {
        let mut row = Row::new("drain", What::Drain);
        for (at, per_second) in [own, floor, peers[0], peers[1]].into_iter().enumerate() {
            let turn = [
                (Of::PerSecond, per_second),
                (Of::ServerUs, 1.0),
                (Of::WalBytes, 1.0),
            ];
            row.sides[at].1.push(Figures::from(turn));
        }
        row
    }

    #[test]
    fn a_bar_is_held_against_the_best_of_its_sides() {
        assert_eq!(row(70.0, 100.0, [60.0, 1.0]).missed().count(), 0);
        assert_eq!(row(69.0, 100.0, [60.0, 1.0]).missed().count(), 1);
        assert_eq!(row(70.0, 100.0, [1.0, 66.0]).missed().count(), 1);
        let none = Row::new("drain", What::Drain);
        assert_eq!(none.missed().count(), 4, "no figure, no success");
    }

    #[test]
    fn all_take_their_turns() {
        for round in 0..8 {
            let mut order = order(round, 4);
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3]);
        }
    }
}
