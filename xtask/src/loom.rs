//! `cargo xtask loom`: the models, and that they really ran.
//!
//! `cargo test` passes on an empty suite, and loom passes on a run that was cut short. Hence the
//! counting: every crate with a `tests/loom/main.rs` has to run tests and to print models, each of
//! them complete. So has `examples/checked`, which uses the model checker as a user of lockkit does.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::metadata::{Package, Workspace};
use crate::report::{self, Model, Row};
use crate::run::{self, Show};
use crate::{Outcome, needs, verification};

/// Longer than this, and a crate's models have got out of hand.
const LIMIT: Duration = Duration::from_mins(20);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the models whose test's name contains this.
    filter: Option<String>,
    /// Explore with a preemption bound of 4.
    #[arg(long)]
    deep: bool,
    /// Take down what each model has explored, for VERIFICATION.md.
    #[arg(long, conflicts_with_all = ["filter", "deep"])]
    record: bool,
}

/// What came out of all crates.
#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) rows: Vec<Row>,
    pub(crate) problems: Vec<String>,
    models: Vec<(String, Model)>,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    needs::programs("loom", false)?;
    let workspace = Workspace::load()?;
    let verdict = all(&workspace, args.filter.as_deref(), args.deep)?;
    print!("\n{}", report::summary(&verdict.rows));
    let executions: u64 = verdict
        .models
        .iter()
        .map(|(_, model)| model.executions)
        .sum();
    let summary = format!(
        "{} models, {executions} executions, all complete",
        verdict.models.len()
    );
    if args.record && verdict.problems.is_empty() {
        verification::record_models(&workspace.root, &verdict.models)?;
        verification::write_page(&workspace.root)?;
    }
    Ok(Outcome::of("loom", &verdict.problems, &summary))
}

/// Runs the models of every crate that has some.
pub(crate) fn all(workspace: &Workspace, filter: Option<&str>, deep: bool) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    for package in workspace.with_models() {
        let build = || command(&workspace.root, &workspace.target.join("loom"), package);
        one(&package.name, &build, filter, deep, &mut verdict)?;
    }
    one(
        "checked",
        &|| consumer(workspace),
        filter,
        deep,
        &mut verdict,
    )?;
    if filter.is_some() && verdict.models.is_empty() && verdict.problems.is_empty() {
        verdict
            .problems
            .push("no model has this in its name; `cargo xtask loom` runs them all".to_owned());
    }
    Ok(verdict)
}

/// The command that runs a crate's models; the caller adds `--no-run`, or a filter.
pub(crate) fn command(root: &Path, target: &Path, package: &Package) -> Command {
    let mut command = run::cargo(root);
    command
        .env("RUSTFLAGS", run::loom_rustflags())
        .args(["test", "--profile", "loom", "--target-dir"])
        .arg(target)
        .args(package.loom_args())
        .args(["--test", "loom"]);
    command
}

/// The same for the crate that uses lockkit from outside the workspace.
fn consumer(workspace: &Workspace) -> Command {
    let mut command = run::cargo(&workspace.root);
    command
        .env("RUSTFLAGS", run::loom_rustflags())
        .args(["test", "--profile", "loom", "--target-dir"])
        .arg(workspace.target.join("loom"))
        .args(["--manifest-path", "examples/checked/Cargo.toml", "--tests"]);
    command
}

fn one(
    name: &str,
    command: &dyn Fn() -> Command,
    filter: Option<&str>,
    deep: bool,
    out: &mut Verdict,
) -> Result<()> {
    let again = format!("cargo xtask loom{}", if deep { " --deep" } else { "" });
    // Built apart, so that the limit is on the models alone.
    if !run::status(command().arg("--no-run"))? {
        out.problems.push(format!(
            "{name}: the models do not compile; put it right, then type `{again}`"
        ));
        return Ok(());
    }
    let mut command = command();
    command.args(filter).args(["--", "--show-output"]);
    if deep {
        command.env("LOCKKIT_LOOM_BOUND", "4");
    }
    let ended = run::capture(command, Show::Live, LIMIT)?;
    let sections = report::sections(&ended.text);
    let models = report::models(&ended.text);
    let sum = |count: fn(&report::Section) -> u64| sections.iter().map(count).sum::<u64>();
    let (announced, passed, failed) = (sum(|s| s.announced), sum(|s| s.passed), sum(|s| s.failed));

    let mut problem = |what: String| out.problems.push(format!("{name}: {what}"));
    if ended.timed_out {
        problem(format!(
            "the models ran longer than {} minutes; make them smaller, or lower their bound",
            LIMIT.as_secs() / 60
        ));
    } else if !ended.ok {
        problem(format!(
            "a model failed; what it says about its replay is above, and `{again} NAME` runs it alone"
        ));
    }
    if filter.is_none() && announced == 0 {
        problem("its models ran no test; write one, or remove their file".to_owned());
    } else if announced > 0 && models.is_empty() && ended.ok {
        problem(
            "no test printed a model's line; run the models through `lockkit_core::model`"
                .to_owned(),
        );
    }
    for model in models
        .iter()
        .filter(|model| !model.complete || model.executions == 0)
    {
        problem(format!(
            "the model `{}` was cut short; set no limit on duration or permutations",
            model.name
        ));
    }
    let executions: u64 = models.iter().map(|model| model.executions).sum();
    let died = announced.saturating_sub(passed + failed);
    if announced > 0 {
        out.rows.push(Row {
            suite: format!(
                "{name} loom ({} models, {executions} executions)",
                models.len()
            ),
            passed,
            failed: failed + died,
            seconds: ended.seconds,
        });
    }
    let named = |model| (name.to_owned(), model);
    out.models.extend(models.into_iter().map(named));
    Ok(())
}
