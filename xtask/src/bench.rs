//! `cargo xtask bench`: the benchmarks, which live in a workspace of their own since the peers
//! that they measure against are heavy.

use anyhow::{Result, bail};

use crate::metadata::Workspace;
use crate::{Outcome, run};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed on to the benchmarks.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let workspace = Workspace::load()?;
    let manifest = "benches/Cargo.toml";
    if !workspace.root.join(manifest).exists() {
        bail!("there is no {manifest}, so there is nothing to measure; is this a whole checkout?");
    }
    let mut command = run::cargo(&workspace.root);
    command
        .args(["run", "--release", "--manifest-path", manifest, "--"])
        .args(&args.args);
    let mut problems = Vec::new();
    if !run::status(&mut command)? {
        problems.push("the benchmarks failed; what they said is printed above".to_owned());
    }
    Ok(Outcome::of("bench", &problems, "measured"))
}
