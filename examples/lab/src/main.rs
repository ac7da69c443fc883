//! A lab: several app processes on one SQLite file, or on one PostgreSQL server, under load. What naive code does
//! there, and what lockkit does, measured side by side.
//!
//! | file | holds |
//! |---|---|
//! | `main.rs` | the options |
//! | `app/` | an app process: this is the part to copy |
//! | `crew.rs` | the app processes as seen by the lab |
//! | `load.rs` | the requests, and what became of them |
//! | `lab.rs` | what all experiments share |
//! | `server.rs` | the PostgreSQL server of theirs, and a bridge to it that can be closed |
//! | `trial/` | the experiments |
//! | `report/` | the figures, as tables, as JSON and as a page |

mod app;
mod crew;
mod lab;
mod load;
mod report;
mod server;
mod trial;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand};
use rustix::process::{Resource, getrlimit, setrlimit};

use app::Signals;
use lab::Lab;
use report::Report;
use server::Server;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Several processes on one SQLite file
    Sqlite(Options),
    /// Several processes on one PostgreSQL server
    Postgres(OnServer),
    /// The same load on both
    Compare(OnServer),
    /// All of that
    All(OnServer),
    /// One app process, as the lab starts them: to be run alone, and asked by hand
    Serve(app::Options),
}

/// A group of experiments.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trial {
    Sqlite,
    Postgres,
    Compare,
}

#[derive(Args)]
struct Options {
    /// How many app processes, where that is not what is measured
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=16))]
    processes: u64,
    /// With small loads, to see that it works: the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Where the SQLite files are made, and kept [default: a temporary folder, removed at the end]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// The page with all figures and charts
    #[arg(long, value_name = "FILE", default_value = "lab.html")]
    html: PathBuf,
    /// Write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the main charts into this file, as SVG; they are of SQLite
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Args)]
struct OnServer {
    #[command(flatten)]
    options: Options,
    /// A PostgreSQL server, in whose database a schema is made for the run [default: a throwaway one, if PostgreSQL is
    /// installed]
    #[arg(long, value_name = "URL")]
    db: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().what {
        What::Serve(options) => app::serve(options).await.map(|()| true),
        What::Sqlite(options) => experiment(&options, None, &[Trial::Sqlite]).await,
        What::Postgres(on) => experiment(&on.options, on.db, &[Trial::Postgres]).await,
        What::Compare(on) => experiment(&on.options, on.db, &[Trial::Compare]).await,
        What::All(on) => {
            let all = [Trial::Sqlite, Trial::Postgres, Trial::Compare];
            experiment(&on.options, on.db, &all).await
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // In one line.
            let causes = lockkit_db::chain_of_causes(error.as_ref(), usize::MAX);
            eprintln!("error: {}", causes.replace("\ncaused by: ", ": "));
            ExitCode::FAILURE
        }
    }
}

/// Runs experiments and reports; whether all was as it had to be.
async fn experiment(
    options: &Options,
    db: Option<String>,
    trials: &[Trial],
) -> anyhow::Result<bool> {
    let mut signals = Signals::new()?;
    // Found out now, and not when all is done.
    let mut page = writable(&options.html)?;
    let json = options.json.as_deref().map(writable).transpose()?;
    ensure!(
        options.svg.is_none() || trials.contains(&Trial::Sqlite),
        "--svg: the main charts are of SQLite, and of `sqlite` and `all` only"
    );
    let svg = options.svg.as_deref().map(writable).transpose()?;
    raise_the_limit_of_open_files();
    let stopped = async {
        let signal = signals.any().await;
        anyhow::anyhow!("stopped by {signal}")
    };
    let report = run(options, db.as_deref(), trials, stopped).await?;
    println!("{}", report::terminal::text(&report));
    page.write_all(report::page::html(&report)?.as_bytes())
        .context("the page cannot be written")?;
    println!("the page: {}", options.html.display());
    if let Some(file) = json {
        serde_json::to_writer_pretty(file, &report).context("the figures cannot be written")?;
    }
    if let Some(mut file) = svg {
        let picture = report::picture::svg(&report)?;
        file.write_all(picture.as_bytes())
            .context("the charts cannot be written")?;
    }
    Ok(report.ok)
}

/// Runs experiments until all are done, or until it is `stopped`: then, as after an error, the app processes end, and
/// what was made for them is taken away.
async fn run(
    options: &Options,
    db: Option<&str>,
    trials: &[Trial],
    stopped: impl Future<Output = anyhow::Error>,
) -> anyhow::Result<Report> {
    let mut stopped = pin!(stopped);
    // Taken away when this function ends.
    let temporary;
    let folder = if let Some(folder) = &options.folder {
        fs::create_dir_all(folder).with_context(|| format!("--folder {}", folder.display()))?;
        folder
    } else {
        temporary = tempfile::tempdir().context("a temporary folder cannot be made")?;
        temporary.path()
    };
    let mut lab = Lab::new(folder, options.processes as usize, options.quick)?;
    // Before anything else: without a server it need not begin.
    let needed = trials.iter().any(|trial| *trial != Trial::Sqlite);
    let server = if needed {
        Some(tokio::select! {
            server = Server::new(db) => server?,
            stopped = &mut stopped => return Err(stopped),
        })
    } else {
        None
    };
    let ended = tokio::select! {
        ended = experiments(&mut lab, trials, server.as_ref()) => ended,
        stopped = &mut stopped => Err(stopped),
    };
    let cleared = match &server {
        Some(server) => server.clear().await,
        None => Ok(()),
    };
    ended.and(cleared)?;
    Ok(lab.report())
}

async fn experiments(
    lab: &mut Lab,
    trials: &[Trial],
    server: Option<&Server>,
) -> anyhow::Result<()> {
    for trial in trials {
        match (trial, server) {
            (Trial::Postgres, Some(server)) => trial::postgres::run(lab, server).await?,
            (Trial::Compare, Some(server)) => trial::compare::run(lab, server).await?,
            _ => trial::sqlite::run(lab).await?,
        }
    }
    Ok(())
}

fn writable(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("{} cannot be written", path.display()))
}

/// A thousand requests at once are as many connections. The app processes inherit it.
fn raise_the_limit_of_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What is too few will show as an error of its own.
    let _ = setrlimit(Resource::Nofile, limit);
}
