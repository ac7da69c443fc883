//! Rows of sides that do the same work in one process, and the bars that their figures are held to.
//!
//! Sides take turns, round by round and over all rows, and each round in another order: whatever
//! else the machine does meets all of them alike. A figure is a median over the rounds. The first
//! turn of each side warms it up and counts for nothing.
//!
//! Where a row needs two cores and others take one of them, its sides hardly meet, and the figures
//! are of another situation than the row's name says: the processor time is then no more than the
//! time. So what others took is printed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, ColumnConstraint, Table, presets};
use serde::Serialize;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use crate::Measured;
use crate::machine::{all_cpu_time, cpu_time};

#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    /// How many times each row is measured.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only this row, by its name in the table; may be given several times.
    #[arg(long = "row")]
    rows: Vec<String>,
}

impl Args {
    /// Whether no row was chosen.
    pub(crate) fn are_all(&self) -> bool {
        self.rows.is_empty()
    }
}

impl Default for Args {
    fn default() -> Self {
        Self {
            rounds: 15,
            rows: Vec::new(),
        }
    }
}

/// The same work, done by several sides. The first of them is lockkit's.
pub(crate) struct Row {
    name: String,
    /// Operations in a turn, the same for each side; none where they are as many as it has waited.
    operations: Option<usize>,
    sides: Vec<Side>,
    bars: Vec<Bar>,
}

struct Side {
    name: &'static str,
    turn: Box<dyn FnMut() -> Result<Waits>>,
    figures: Figures,
}

/// How long some of a turn's operations took, of those rows where it matters.
pub(crate) type Waits = Vec<Duration>;

/// What was measured of one side, a figure a round.
#[derive(Default, Serialize)]
struct Figures {
    /// Time per operation.
    ns: Vec<f64>,
    /// Processor time per operation, of all threads. Other programs on the machine disturb it less.
    cpu_ns: Vec<f64>,
    /// The wait that every other one exceeds.
    p50_us: Vec<f64>,
    /// The wait that only one in a hundred exceeds.
    p99_us: Vec<f64>,
}

#[derive(Clone, Copy)]
enum Of {
    Time,
    P50,
    P99,
}

/// The most that lockkit may take of what the best of the named sides takes.
struct Bar {
    of: Of,
    against: &'static [&'static str],
    most: f64,
    /// A goal is printed, and missing it is no failure.
    goal: bool,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, operations: usize) -> Self {
        Self {
            name: name.into(),
            operations: Some(operations),
            sides: Vec::new(),
            bars: Vec::new(),
        }
    }

    /// Of sides that do what they can in a turn, with a wait for each operation.
    pub(crate) fn timed(name: impl Into<String>) -> Self {
        Self {
            operations: None,
            ..Self::new(name, 0)
        }
    }

    /// Adds a side, whose turn does all of the row's operations.
    pub(crate) fn side(
        mut self,
        name: &'static str,
        turn: impl FnMut() -> Result<Waits> + 'static,
    ) -> Self {
        self.sides.push(Side {
            name,
            turn: Box::new(turn),
            figures: Figures::default(),
        });
        self
    }

    pub(crate) fn bar(self, against: &'static [&'static str], most: f64) -> Self {
        self.held_to(Of::Time, against, most, false)
    }

    pub(crate) fn goal(self, against: &'static [&'static str], most: f64) -> Self {
        self.held_to(Of::Time, against, most, true)
    }

    pub(crate) fn bar_p50(self, against: &'static [&'static str], most: f64) -> Self {
        self.held_to(Of::P50, against, most, false)
    }

    pub(crate) fn goal_p50(self, against: &'static [&'static str], most: f64) -> Self {
        self.held_to(Of::P50, against, most, true)
    }

    pub(crate) fn bar_p99(self, against: &'static [&'static str], most: f64) -> Self {
        self.held_to(Of::P99, against, most, false)
    }

    pub(crate) fn goal_p99(self, against: &'static [&'static str], most: f64) -> Self {
        self.held_to(Of::P99, against, most, true)
    }

    fn held_to(mut self, of: Of, against: &'static [&'static str], most: f64, goal: bool) -> Self {
        self.bars.push(Bar {
            of,
            against,
            most,
            goal,
        });
        self
    }

    fn take_turns(&mut self, round: u32) -> Result<()> {
        let sides = self.sides.len();
        let mut order = (0..sides).collect::<Vec<_>>();
        order.rotate_left(round as usize % sides);
        // Else each side would always follow the same one.
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let side = &mut self.sides[at];
            let (began, cpu) = (Instant::now(), cpu_time());
            let mut waits =
                (side.turn)().with_context(|| format!("{}, {}", self.name, side.name))?;
            let (time, cpu) = (began.elapsed(), cpu_time().saturating_sub(cpu));
            if round == 0 {
                continue;
            }
            let operations = self.operations.unwrap_or(waits.len());
            let each = |time: Duration| time.as_secs_f64() * 1e9 / operations as f64;
            side.figures.ns.push(each(time));
            side.figures.cpu_ns.push(each(cpu));
            waits.sort_unstable();
            side.figures.p50_us.extend(percentile(&waits, 50));
            side.figures.p99_us.extend(percentile(&waits, 99));
        }
        Ok(())
    }

    // === what came out ===

    fn figures(&self, side: &str, of: Of) -> &[f64] {
        let figures = self.sides.iter().find(|known| known.name == side);
        let figures = &figures.expect("bars name sides of their row").figures;
        match of {
            Of::Time => &figures.ns,
            Of::P50 => &figures.p50_us,
            Of::P99 => &figures.p99_us,
        }
    }

    /// The best of the named sides, and what lockkit takes of its figure.
    fn ratio(&self, bar: &Bar) -> (&'static str, f64) {
        let median_of = |side: &&'static str| median(self.figures(side, bar.of));
        let best = bar
            .against
            .iter()
            .copied()
            .min_by(|a, b| median_of(a).total_cmp(&median_of(b)))
            .expect("a bar names a side");
        let own = median(self.figures(self.sides[0].name, bar.of));
        (best, own / median_of(&best))
    }

    fn missed(&self) -> impl Iterator<Item = String> {
        self.bars
            .iter()
            .filter(|bar| !bar.goal && !self.met(bar))
            .map(|bar| {
                let (side, ratio) = self.ratio(bar);
                let of = bar.of.name();
                let Bar { most, .. } = bar;
                format!(
                    "{}: {ratio:.3} of the {of} of {side}, not {most}",
                    self.name
                )
            })
    }

    fn met(&self, bar: &Bar) -> bool {
        // What is no number has not met the bar.
        self.ratio(bar).1 <= bar.most
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
            format!("{kind} {:.2} x {side} {of} {met} ({ratio:.2})", bar.most)
        };
        let verdicts = self.bars.iter().map(verdict).collect::<Vec<_>>();
        verdicts.join("\n")
    }

    fn json(&self) -> serde_json::Value {
        let sides = self.sides.iter().map(|side| (side.name, &side.figures));
        let bars = self.bars.iter().map(|bar| {
            let (against, ratio) = self.ratio(bar);
            json!({
                "kind": if bar.goal { "goal" } else { "bar" },
                "of": bar.of.name(),
                "against": against,
                "most": bar.most,
                "ratio": ratio,
                "met": self.met(bar),
            })
        });
        json!({
            "row": self.name,
            "operations": self.operations,
            "sides": sides.collect::<std::collections::BTreeMap<_, _>>(),
            "bars": bars.collect::<Vec<_>>(),
        })
    }
}

impl Of {
    fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::P50 => "p50 wait",
            Self::P99 => "p99 wait",
        }
    }
}

/// A runtime with so many threads. It has no drivers, as nothing here reads the clock's ticks or a
/// socket: a poll of the kernel between tasks would blur every figure alike.
pub(crate) fn runtime(threads: usize) -> Result<Runtime> {
    Ok(Builder::new_multi_thread()
        .worker_threads(threads)
        .build()?)
}

/// Measures the rows; `notes` are printed below their table.
pub(crate) fn run(
    name: &'static str,
    title: &str,
    rows: Vec<Row>,
    args: &Args,
    notes: impl FnOnce() -> Result<Vec<Note>>,
) -> Result<Measured> {
    run_beside(name, title, rows, args, || Ok(Duration::ZERO), notes)
}

/// As [`run`], beside a server that does a part of the work: what that has taken of the processors so far is not
/// what others took.
///
/// # Errors
///
/// As there.
pub(crate) fn run_beside(
    name: &'static str,
    title: &str,
    mut rows: Vec<Row>,
    args: &Args,
    server: impl Fn() -> Result<Duration>,
    notes: impl FnOnce() -> Result<Vec<Note>>,
) -> Result<Measured> {
    for asked in &args.rows {
        let known = rows.iter().map(|row| &row.name).collect::<Vec<_>>();
        ensure!(known.contains(&asked), "no row {asked}; rows: {known:?}");
    }
    if !args.rows.is_empty() {
        rows.retain(|row| args.rows.contains(&row.name));
    }
    let ours = || anyhow::Ok(cpu_time() + server()?);
    let (began, own, all) = (Instant::now(), ours()?, all_cpu_time()?);
    for round in 0..=args.rounds {
        if round > 0 {
            eprintln!("{name}: round {round} of {}", args.rounds);
        }
        for row in &mut rows {
            row.take_turns(round)?;
        }
    }
    let own = ours()?.saturating_sub(own);
    let others = all_cpu_time()?.saturating_sub(all).saturating_sub(own);
    let others = others.as_secs_f64() / began.elapsed().as_secs_f64();
    let notes = notes()?;
    let lines = notes.iter().map(|note| format!("\n{}", note.line));
    let mut missed = rows.iter().flat_map(Row::missed).collect::<Vec<_>>();
    missed.extend(notes.iter().filter_map(|note| note.missed.clone()));
    Ok(Measured {
        name,
        table: format!(
            "{title}, medians of {} rounds; others took {others:.2} of the cores meanwhile\n{}{}",
            args.rounds,
            table(&rows),
            lines.collect::<String>()
        ),
        json: json!({
            "cores_of_others": others,
            "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
            "notes": notes.iter().map(|note| &note.json).collect::<Vec<_>>(),
        }),
        missed: missed.iter().map(|one| format!("{name} {one}")).collect(),
    })
}

/// Something that is measured once, and is no row.
pub(crate) struct Note {
    pub(crate) line: String,
    pub(crate) json: serde_json::Value,
    /// The bar that was missed.
    pub(crate) missed: Option<String>,
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header([
        "row",
        "side",
        "ns (min..max)",
        "CPU ns",
        "p50 wait us",
        "p99 wait us",
        "lockkit : side (min..max of rounds)",
        "CPU",
        "",
    ]);
    for row in rows {
        let own = &row.sides[0].figures;
        for (at, side) in row.sides.iter().enumerate() {
            let figures = &side.figures;
            let (min, max) = ends(&figures.ns);
            let (mut ratio, mut cpu_ratio) = (String::new(), String::new());
            if at > 0 {
                let (least, most) = ends(&ratios(&own.ns, &figures.ns));
                let (own_ns, own_cpu) = (median(&own.ns), median(&own.cpu_ns));
                let middle = own_ns / median(&figures.ns);
                ratio = format!("{middle:.2} ({least:.2}..{most:.2})");
                cpu_ratio = format!("{:.2}", own_cpu / median(&figures.cpu_ns));
            }
            let wait = |us: &[f64]| match median(us) {
                none if none.is_nan() => String::new(),
                us => format!("{us:.0}"),
            };
            let first = |text: String| if at == 0 { text } else { String::new() };
            table.add_row([
                first(row.name.clone()),
                side.name.to_owned(),
                format!("{:.0} ({min:.0}..{max:.0})", median(&figures.ns)),
                format!("{:.0}", median(&figures.cpu_ns)),
                wait(&figures.p50_us),
                wait(&figures.p99_us),
                ratio,
                cpu_ratio,
                first(row.verdict()),
            ]);
        }
    }
    for column in table.column_iter_mut().skip(2).take(6) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut sides = rows.iter().flat_map(|row| &row.sides);
    if sides.all(|side| side.figures.p99_us.is_empty()) {
        for at in [4, 5] {
            let waits = table.column_mut(at).expect("it is in the header");
            waits.set_constraint(ColumnConstraint::Hidden);
        }
    }
    table.to_string()
}

/// The ratio of each round by itself: how far the ratio of the medians can be trusted.
fn ratios(own: &[f64], other: &[f64]) -> Vec<f64> {
    let pairs = own.iter().zip(other);
    pairs.map(|(own, other)| own / other).collect()
}

/// Of sorted waits, the one that so many in a hundred do not exceed.
fn percentile(waits: &[Duration], percent: usize) -> Option<f64> {
    let at = (waits.len() * percent).div_ceil(100).checked_sub(1)?;
    Some(waits[at].as_secs_f64() * 1e6)
}

/// The middle of the figures; not a number if there are none.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The smallest and the largest.
pub(crate) fn ends(figures: &[f64]) -> (f64, f64) {
    let min = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let max = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (min, max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(own: &[f64], peers: [&[f64]; 2]) -> Row {
        let idle = || Ok(Waits::new());
        let mut row = Row::new("row", 1)
            .side("lockkit", idle)
            .side("one", idle)
            .side("two", idle)
            .bar(&["one", "two"], 0.5)
            .goal(&["one"], 0.1);
        for (side, ns) in row.sides.iter_mut().zip([own, peers[0], peers[1]]) {
            side.figures.ns = ns.to_vec();
        }
        row
    }

    #[test]
    fn a_bar_is_held_against_the_best_of_its_sides() {
        let missed = |row: &Row| row.missed().count();
        let slow: &[f64] = &[90.0, 100.0, 900.0];
        assert_eq!(missed(&row(&[50.0], [slow, slow])), 0);
        assert_eq!(missed(&row(&[51.0], [slow, slow])), 1);
        assert_eq!(missed(&row(&[50.0], [slow, &[99.0]])), 1);
        assert_eq!(missed(&row(&[], [slow, slow])), 1, "no figure, no success");
    }

    #[test]
    fn the_warm_up_counts_for_nothing_and_all_take_their_turns() {
        let mut row = row(&[], [&[], &[]]);
        for round in 0..=3 {
            row.take_turns(round).unwrap();
        }
        assert!(row.sides.iter().all(|side| side.figures.ns.len() == 3));
    }

    #[test]
    fn one_wait_in_a_hundred_is_above_p99_and_every_other_above_p50() {
        let ms = |n: u64| Duration::from_millis(n);
        let of = |n, percent| percentile(&(1..=n).map(ms).collect::<Vec<_>>(), percent);
        assert_eq!(of(100, 99), Some(99e3));
        assert_eq!(of(100, 50), Some(50e3));
        assert_eq!(of(1, 99), Some(1e3));
        assert_eq!(of(0, 99), None);
    }
}
