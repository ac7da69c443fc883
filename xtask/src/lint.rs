//! `cargo xtask lint`: clippy, with every warning an error.
//!
//! Feature unions hide what a feature lacks when it is alone, so each published crate is also
//! built without features and with each one by itself.

use anyhow::Result;

use crate::metadata::Workspace;
use crate::{Outcome, needs, run};

pub(crate) fn run() -> Result<Outcome> {
    needs::component("clippy", "clippy")?;
    let workspace = Workspace::load()?;
    let mut problems = Vec::new();
    let mut runs = 0;
    let mut clippy = |words: &str, models: bool| -> Result<()> {
        let mut command = run::cargo(&workspace.root);
        command.arg("clippy").args(words.split_whitespace());
        if models {
            // Other flags would rebuild every dependency in the usual folder, back and forth.
            command
                .env("RUSTFLAGS", run::loom_rustflags())
                .arg("--target-dir")
                .arg(workspace.target.join("loom"));
        }
        command.args(["--", "-D", "warnings"]);
        runs += 1;
        if !run::status(&mut command)? {
            problems.push(format!(
                "clippy is not content; put it right, then type `{}`",
                run::shown(&command)
            ));
        }
        Ok(())
    };

    clippy("--workspace --all-targets", false)?;
    clippy("--workspace --all-targets --all-features", false)?;
    for package in workspace.packages.iter().filter(|package| package.public) {
        let name = &package.name;
        // Without features of its own, the workspace's run has already seen all there is.
        if package.features.is_empty() {
            continue;
        }
        clippy(&format!("-p {name} --no-default-features"), false)?;
        for feature in package
            .features
            .iter()
            .filter(|feature| *feature != "default")
        {
            clippy(
                &format!("-p {name} --no-default-features --features {feature}"),
                false,
            )?;
        }
    }
    for package in workspace.with_models() {
        clippy(
            &format!("{} --lib --test loom", package.loom_args().join(" ")),
            true,
        )?;
    }
    clippy(
        "--manifest-path examples/checked/Cargo.toml --all-targets",
        true,
    )?;
    Ok(Outcome::of(
        "lint",
        &problems,
        &format!("{runs} clippy runs without a warning"),
    ))
}
