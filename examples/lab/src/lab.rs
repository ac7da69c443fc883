//! What all experiments share: their scale, their files, the progress, and the report that they write.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lockkit_db::sqlx::sqlite::SqliteConnectOptions;
use lockkit_db::sqlx::{self, ConnectOptions as _, SqliteConnection};

use crate::app::{Journal, Options, Way};
use crate::crew::Crew;
use crate::report::{Demand, Machine, Report, Section};

/// How many requests use the database at once, in each process.
pub(crate) const POOL: u32 = 5;

/// How large the experiments are.
pub(crate) struct Scale {
    /// Increments at once, for those that must not lose any.
    pub(crate) increments: usize,
    /// Increments at once, to see how many fail.
    pub(crate) burst: usize,
    /// Increments one after the other, in each process.
    pub(crate) each: usize,
    /// How long the long transaction is open, on a file and on a server.
    pub(crate) long: [Duration; 2],
    /// How many work beside it.
    pub(crate) beside: usize,
    pub(crate) loads: &'static [usize],
    pub(crate) processes: &'static [usize],
    /// Increments for each number of processes.
    pub(crate) work: usize,
    /// How often the journals are compared.
    pub(crate) rounds: usize,
    pub(crate) pools: &'static [u32],
    /// Queries for each size of a pool.
    pub(crate) queries: usize,
    /// Rows in one statement.
    pub(crate) rows: u32,
}

const WHOLE: Scale = Scale {
    increments: 1000,
    burst: 100,
    each: 25,
    long: [Duration::from_secs(5); 2],
    beside: 100,
    loads: &[10, 50, 100, 200, 500],
    processes: &[1, 2, 4, 8],
    work: 200,
    rounds: 7,
    pools: &[1, 5, 10, 20, 50],
    queries: 200,
    rows: 1000,
};

const QUICK: Scale = Scale {
    increments: 60,
    burst: 20,
    each: 5,
    long: [Duration::from_secs(1), Duration::from_secs(3)],
    beside: 10,
    loads: &[5, 20],
    processes: &[1, 2],
    work: 20,
    rounds: 1,
    pools: &[1, 5],
    queries: 20,
    rows: 50,
};

/// The experiments' surroundings.
pub(crate) struct Lab {
    pub(crate) scale: Scale,
    /// How many app processes, where that is not what an experiment is about.
    pub(crate) processes: usize,
    quick: bool,
    folder: PathBuf,
    files: usize,
    progress: ProgressBar,
    began: Instant,
    load: f64,
    demands: Vec<Demand>,
    sections: Vec<Section>,
}

impl Lab {
    /// Makes its files in this folder.
    pub(crate) fn new(folder: &Path, processes: usize, quick: bool) -> anyhow::Result<Self> {
        let progress = ProgressBar::new_spinner();
        progress.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
        if std::io::stderr().is_terminal() {
            progress.enable_steady_tick(Duration::from_millis(100));
        } else {
            progress.set_draw_target(ProgressDrawTarget::hidden());
        }
        Ok(Self {
            scale: if quick { QUICK } else { WHOLE },
            processes,
            quick,
            folder: folder.to_owned(),
            files: 0,
            progress,
            began: Instant::now(),
            load: load_average(),
            demands: Vec::new(),
            sections: Vec::new(),
        })
    }

    /// Says what is being done, where somebody can see it.
    pub(crate) fn doing(&self, what: impl Into<String>) {
        self.progress.set_message(what.into());
    }

    /// Notes that something had to be so, and whether it was.
    pub(crate) fn demand(&mut self, ok: bool, what: impl Into<String>) {
        let what = what.into();
        self.demands.push(Demand { ok, what });
    }

    pub(crate) fn add(&mut self, section: Section) {
        self.sections.push(section);
    }

    /// Processes on a SQLite file that nobody has used before.
    pub(crate) async fn on_file(
        &mut self,
        processes: usize,
        way: Way,
        journal: Journal,
    ) -> anyhow::Result<(Crew, PathBuf)> {
        self.files += 1;
        let file = self.folder.join(format!("lab-{}.db", self.files));
        let options = options(file.display().to_string(), way, journal);
        let crew = Crew::start(processes, &options).await?;
        Ok((crew, file))
    }

    /// Processes on a server's database.
    pub(crate) async fn on_server(
        &self,
        url: &str,
        processes: usize,
        way: Way,
        pool: u32,
    ) -> anyhow::Result<Crew> {
        let options = Options {
            pool,
            ..options(url.to_owned(), way, Journal::Wal)
        };
        Crew::start(processes, &options).await
    }

    pub(crate) fn report(self) -> Report {
        self.progress.finish_and_clear();
        Report {
            ok: self.demands.iter().all(|demand| demand.ok),
            demands: self.demands,
            machine: Machine {
                processors: std::thread::available_parallelism().map_or(1, usize::from),
                load: [self.load, load_average()],
            },
            quick: self.quick,
            seconds: self.began.elapsed().as_secs_f64(),
            sections: self.sections,
        }
    }
}

fn options(db: String, way: Way, journal: Journal) -> Options {
    Options {
        db: Some(db),
        way,
        pool: POOL,
        journal,
        // Not the least of what is measured here, and the machine is busy.
        connect: 30_000,
        listen: ([127, 0, 0, 1], 0).into(),
    }
}

/// A connection of the lab's own to a file.
pub(crate) async fn look_into(file: &Path) -> anyhow::Result<SqliteConnection> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .busy_timeout(Duration::from_mins(1));
    options
        .connect()
        .await
        .with_context(|| file.display().to_string())
}

/// The value of a counter in a file.
pub(crate) async fn counter(file: &Path, key: &str) -> anyhow::Result<i64> {
    let value = sqlx::query_scalar("SELECT value FROM counter WHERE key = ?").bind(key);
    let value = value.fetch_optional(&mut look_into(file).await?).await?;
    Ok(value.unwrap_or(0))
}

/// How many would run if they could, on average over a minute; as the kernel says.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().and_then(|first| first.parse().ok());
    first.unwrap_or(0.0)
}
