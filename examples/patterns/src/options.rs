//! What the patterns are told on the command line.

use clap::Parser;

const ABOUT: &str =
    "Runs a pattern with many tasks at once, and fails unless it keeps what it promises.";

#[derive(Parser)]
#[command(about = ABOUT)]
pub(crate) struct Options {
    /// A PostgreSQL URL, or the path of a SQLite file [default: one in a temporary folder]. Tables whose names
    /// begin with `example_` are made anew in it
    #[arg(long, value_name = "URL")]
    pub(crate) db: Option<String>,
    /// A Redis URL, for the patterns that have a lock there [default: a server of their own, which is stopped at the
    /// end]. Keys whose names begin with `example` are used in it
    #[arg(long, value_name = "URL")]
    pub(crate) redis: Option<String>,
}

#[derive(Parser)]
#[command(about = ABOUT)]
struct NoOptions;

/// Refuses options, for what has none.
pub fn no_options() {
    NoOptions::parse();
}
