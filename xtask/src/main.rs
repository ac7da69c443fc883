//! The project's tasks: `cargo xtask <verb>`. Each verb is a file of its own, and the CI job of
//! the same name.
//!
//! A verb prints the commands that it runs, and its last line says how it went. What it finds
//! wrong is printed before that line, each with what to do about it.

mod bench;
mod ci;
mod consumers;
mod docs;
mod fmt;
mod lint;
mod loom;
mod metadata;
mod mutants;
mod needs;
mod patch;
mod report;
mod run;
mod soak;
mod tallies;
mod test;
mod tidy;
mod verification;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's tasks.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Check that everything is formatted.
    Fmt(fmt::Args),
    /// Clippy over the workspace: default features, all features, each feature alone, and the models.
    Lint,
    /// Each pattern used by a crate with nothing but the dependency, which brings no more than it says.
    Consumers,
    /// Every test: unit, integration, property, documentation and model.
    Test(test::Args),
    /// The loom models of every crate that has some.
    Loom(loom::Args),
    /// Build the documentation; a warning is an error.
    Docs,
    /// The house rules that no other tool checks.
    Tidy,
    /// Everything that CI runs, in its order.
    Ci(test::Args),
    /// Build and run the benchmarks, which have a workspace of their own.
    Bench(bench::Args),
    /// Break the code on purpose, and see each break caught by the checks named for it.
    Mutants(mutants::Args),
    /// The tests of faults and of many at once, again and again, from one seed to the next.
    Soak(soak::Args),
}

/// How a verb ended. An `Err` beside it means that the verb could not do its work at all.
struct Outcome {
    ok: bool,
    /// What is printed last.
    last_line: String,
}

impl Outcome {
    /// An outcome that is good unless there are problems; prints them.
    fn of(verb: &str, problems: &[String], when_good: &str) -> Self {
        for problem in problems {
            eprintln!("error: {problem}");
        }
        let ok = problems.is_empty();
        let last_line = if ok {
            format!("{verb}: ok, {when_good}")
        } else {
            format!(
                "{verb}: FAILED, {} to put right (see above)",
                problems.len()
            )
        };
        Self { ok, last_line }
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Fmt(args) => fmt::run(&args),
        Verb::Lint => lint::run(),
        Verb::Consumers => consumers::run(),
        Verb::Test(args) => test::run(&args),
        Verb::Loom(args) => loom::run(&args),
        Verb::Docs => docs::run(),
        Verb::Tidy => tidy::run(),
        Verb::Ci(args) => ci::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Mutants(args) => mutants::run(&args),
        Verb::Soak(args) => soak::run(&args),
    };
    match outcome {
        Ok(Outcome { ok, last_line }) => {
            println!("{last_line}");
            if ok {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
