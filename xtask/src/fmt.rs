//! `cargo xtask fmt`: is everything formatted?

use anyhow::Result;

use crate::metadata::Workspace;
use crate::{Outcome, needs, run};

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Write the formatted files instead of only checking.
    #[arg(long)]
    fix: bool,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    needs::component("fmt", "rustfmt")?;
    let workspace = Workspace::load()?;
    let mut problems = Vec::new();
    // `--all` follows paths, so for the others it would tell everything twice.
    for (manifest, which) in [
        ("Cargo.toml", Some("--all")),
        ("benches/Cargo.toml", None),
        ("examples/checked/Cargo.toml", None),
    ] {
        if !workspace.root.join(manifest).exists() {
            continue;
        }
        let mut command = run::cargo(&workspace.root);
        command
            .args(["fmt", "--manifest-path", manifest])
            .args(which);
        if !args.fix {
            command.arg("--check");
        }
        if !run::status(&mut command)? {
            problems.push(format!(
                "{manifest}: not formatted; type `cargo xtask fmt --fix`"
            ));
        }
    }
    Ok(Outcome::of("fmt", &problems, "everything is formatted"))
}
