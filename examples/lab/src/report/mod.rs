//! What was measured: sections, each a table, some with charts drawn from it; and what was demanded of it.

mod chart;
pub(crate) mod page;
pub(crate) mod picture;
pub(crate) mod terminal;

use serde::Serialize;

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) ok: bool,
    /// What had to be so.
    pub(crate) demands: Vec<Demand>,
    pub(crate) machine: Machine,
    pub(crate) quick: bool,
    pub(crate) seconds: f64,
    pub(crate) sections: Vec<Section>,
}

/// Where the figures come from.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processors: usize,
    /// The load average of a minute when the lab began, and when it ended.
    pub(crate) load: [f64; 2],
}

/// Something that has to be so, whatever the machine.
#[derive(Debug, Serialize)]
pub(crate) struct Demand {
    pub(crate) ok: bool,
    pub(crate) what: String,
}

/// One experiment.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// What was done.
    pub(crate) about: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Vec<Cell>>,
    pub(crate) charts: Vec<Chart>,
}

/// A column's name, and what is in it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) unit: Unit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    Text,
    Count,
    Percent,
    Milliseconds,
    PerSecond,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    Text(String),
    Number(f64),
}

/// A chart of a table, by its columns.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Chart {
    pub(crate) title: &'static str,
    pub(crate) kind: Kind,
    pub(crate) x: usize,
    pub(crate) lines: Lines,
    /// Whether equal steps upwards are equal factors.
    pub(crate) logarithmic: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Lines,
    Bars,
}

/// What the lines of a chart are, or the colours of its bars.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Lines {
    /// One for each text in a column, with the numbers of another.
    By { name: usize, y: usize },
    /// One for each of these columns.
    Columns(Vec<usize>),
}

impl Section {
    pub(crate) fn new<const N: usize>(
        id: &'static str,
        title: &'static str,
        about: impl Into<String>,
        columns: [(&str, Unit); N],
    ) -> Self {
        Self {
            id,
            title,
            about: about.into(),
            columns: columns.into_iter().map(Column::from).collect(),
            rows: Vec::new(),
            charts: Vec::new(),
        }
    }

    /// Adds a row, which has a cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let row: Vec<_> = cells.into_iter().collect();
        debug_assert_eq!(row.len(), self.columns.len(), "{}", self.id);
        self.rows.push(row);
    }

    /// Adds a chart.
    pub(crate) fn chart(&mut self, chart: Chart) {
        self.charts.push(chart);
    }
}

impl Chart {
    /// Lines over `x`, one for each text in `name`.
    pub(crate) fn lines(title: &'static str, x: usize, name: usize, y: usize) -> Self {
        let lines = Lines::By { name, y };
        Self {
            title,
            kind: Kind::Lines,
            x,
            lines,
            logarithmic: false,
        }
    }

    /// Bars over `x`, one for each text in `name`.
    pub(crate) fn bars(title: &'static str, x: usize, name: usize, y: usize) -> Self {
        Self {
            kind: Kind::Bars,
            ..Self::lines(title, x, name, y)
        }
    }

    pub(crate) fn logarithmic(self) -> Self {
        Self {
            logarithmic: true,
            ..self
        }
    }
}

impl Unit {
    /// A number of this unit, for people.
    pub(crate) fn show(self, number: f64) -> String {
        match self {
            Self::Text | Self::Count => format!("{number:.0}"),
            Self::Percent => format!("{number:.1} %"),
            Self::Milliseconds if number < 10.0 => format!("{number:.1} ms"),
            Self::Milliseconds if number < 10_000.0 => format!("{number:.0} ms"),
            Self::Milliseconds => format!("{:.1} s", number / 1000.0),
            Self::PerSecond => format!("{number:.0} /s"),
        }
    }
}

impl Cell {
    pub(crate) fn show(&self, unit: Unit) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => unit.show(*number),
        }
    }
}

impl From<(&str, Unit)> for Column {
    fn from((name, unit): (&str, Unit)) -> Self {
        let name = name.to_owned();
        Self { name, unit }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Number(number as f64)
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Number(number as f64)
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Self::Number(number as f64)
    }
}

impl From<std::time::Duration> for Cell {
    fn from(time: std::time::Duration) -> Self {
        Self::Number(time.as_secs_f64() * 1000.0)
    }
}

/// The cells of a row, of whatever they are made.
macro_rules! cells {
    ($($cell:expr),* $(,)?) => { [$($crate::report::Cell::from($cell)),*] };
}
pub(crate) use cells;
