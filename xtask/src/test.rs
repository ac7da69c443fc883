//! `cargo xtask test`: the one test command.
//!
//! What `cargo test` prints is read back, since it is content with a test binary that holds no
//! test. Cargo tells first which binaries there are; each of them has to turn up.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::metadata::Workspace;
use crate::report::{self, Origin, Row, Section};
use crate::run::{self, Show};
use crate::tallies::{self, Tallies};
use crate::{Outcome, loom, needs, verification};

/// Longer than this, and something hangs.
const LIMIT: Duration = Duration::from_mins(30);

/// So many histories are explained in a run, at the least.
const HISTORIES: u64 = 2_000;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Install the programs that tests need and that are missing, by apt-get.
    #[arg(long)]
    pub(crate) install: bool,
    /// Take down what the tests did, for VERIFICATION.md.
    #[arg(long)]
    record: bool,
}

/// A test binary.
#[derive(Debug, PartialEq)]
struct Binary {
    package: String,
    target: String,
    /// Whether it is an integration test, that is, a file that exists for its tests alone.
    integration: bool,
}

/// Test binaries by their file name.
type Binaries = BTreeMap<String, Binary>;

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    needs::programs("test", args.install)?;
    let workspace = Workspace::load()?;

    let mut build = run::cargo(&workspace.root);
    build.args(["test", "--workspace", "--all-features", "--no-run"]);
    println!("$ {}", run::shown(&build));
    let messages = run::stdout_of(build.arg("--message-format=json-render-diagnostics"))
        .context("the tests do not compile; the compiler's words are above")?;
    let binaries = binaries(&messages);

    let mut tests = run::cargo(&workspace.root);
    let told = tallies::file(&workspace.target, "test")?;
    tests.env(tallies::FILE, &told);
    tests.args(["test", "--workspace", "--all-features", "--no-fail-fast"]);
    let ended = run::capture(tests, Show::Live, LIMIT)?;
    let (mut rows, mut problems) = judge(&report::sections(&ended.text), &binaries, &workspace);
    if ended.timed_out {
        problems.push(format!(
            "the tests ran longer than {} minutes: one of them hangs",
            LIMIT.as_secs() / 60
        ));
    } else if !ended.ok && problems.is_empty() {
        problems.push("`cargo test` failed; why is printed above".to_owned());
    }

    let tallies = Tallies::told(&told)?;
    let histories = tallies.sum(tallies::HISTORIES).unwrap_or(0);
    if histories < HISTORIES {
        problems.push(format!(
            "{histories} histories were explained, where {HISTORIES} are due: which suite has lost some?"
        ));
    }

    let models = loom::all(&workspace, None, false)?;
    rows.extend(models.rows);
    problems.extend(models.problems);

    print!("\n{}\n{}\n", report::summary(&rows), tallies.table());
    if args.record {
        verification::record_run(
            &workspace.root,
            verification::CI,
            &told,
            "one run of the tests",
        )?;
    }
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    let passed: u64 = rows.iter().map(|row| row.passed).sum();
    let failed: u64 = rows.iter().map(|row| row.failed).sum();
    Ok(Outcome {
        ok: problems.is_empty() && failed == 0,
        last_line: format!("{passed} passed, {failed} failed"),
    })
}

/// The test binaries that a build with JSON messages tells of.
fn binaries(messages: &str) -> Binaries {
    let parsed = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let tests = parsed.filter(|message| message["profile"]["test"] == true);
    tests
        .filter_map(|message| {
            let file = message["executable"].as_str()?.rsplit('/').next()?;
            let folder = message["manifest_path"].as_str()?.rsplit('/').nth(1)?;
            // `path+file:///x/y#0.1.0`, or `path+file:///x/y#name@0.1.0` when the folder has another name.
            let id = message["package_id"].as_str()?.rsplit('#').next()?;
            let package = id.split_once('@').map_or(folder, |(name, _)| name);
            let kind = message["target"]["kind"][0].as_str()?;
            let binary = Binary {
                package: package.to_owned(),
                target: message["target"]["name"].as_str()?.to_owned(),
                integration: kind == "test",
            };
            Some((file.to_owned(), binary))
        })
        .collect()
}

/// The summary's rows, and what is wrong.
fn judge(
    sections: &[Section],
    binaries: &Binaries,
    workspace: &Workspace,
) -> (Vec<Row>, Vec<String>) {
    let mut rows = Vec::new();
    let mut problems = Vec::new();
    let mut missing: BTreeMap<_, _> = binaries.iter().collect();
    for section in sections {
        let (suite, again) = match &section.origin {
            Origin::Binary(file) => {
                missing.remove(file);
                let Some(Binary {
                    package,
                    target,
                    integration,
                }) = binaries.get(file)
                else {
                    problems.push(format!(
                        "a test binary `{file}` ran that the build did not name; run it again"
                    ));
                    continue;
                };
                // The models are empty without their cfg; `loom` counts them by itself.
                if *integration && target != "loom" && section.announced == 0 {
                    problems.push(format!(
                        "{package}: tests/{target} ran no test; write one, or remove the file"
                    ));
                }
                if *integration {
                    (
                        format!("{package} tests/{target}"),
                        format!("-p {package} --test {target}"),
                    )
                } else {
                    (format!("{package} unit"), format!("-p {package}"))
                }
            }
            Origin::Doc(library) => {
                let named = |name: &str| name.replace('-', "_") == *library;
                let package = workspace
                    .packages
                    .iter()
                    .find(|package| named(&package.name));
                let package = package.map_or(library.as_str(), |package| package.name.as_str());
                (format!("{package} doc"), format!("-p {package} --doc"))
            }
            Origin::Unknown => continue,
        };
        let ended = section.passed + section.failed + section.ignored;
        let died = section.announced.saturating_sub(ended);
        if died > 0 {
            problems.push(format!(
                "{suite}: ended before {died} of its tests did; look at `cargo test {again}`"
            ));
        } else if section.failed > 0 {
            problems.push(format!(
                "{suite}: {} failed; look at `cargo test {again}`",
                section.failed
            ));
        }
        if section.ignored > 0 {
            problems.push(format!(
                "{suite}: {} ignored; a test runs or goes",
                section.ignored
            ));
        }
        if section.announced > 0 {
            rows.push(Row {
                suite,
                passed: section.passed,
                failed: section.failed + died,
                seconds: section.seconds,
            });
        }
    }
    for Binary {
        package, target, ..
    } in missing.into_values()
    {
        problems.push(format!(
            "{package}: the test binary `{target}` did not run; is its harness turned off?"
        ));
    }
    (rows, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: &str = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/lockkit-core#0.1.0","manifest_path":"/w/lockkit-core/Cargo.toml","target":{"kind":["lib"],"name":"lockkit_core"},"profile":{"test":true},"executable":"/w/target/debug/deps/lockkit_core-01"}
{"reason":"compiler-artifact","package_id":"path+file:///w/lockkit-db/macros#lockkit-db-macros@0.1.0","manifest_path":"/w/lockkit-db/macros/Cargo.toml","target":{"kind":["test"],"name":"derive"},"profile":{"test":true},"executable":"/w/target/debug/deps/derive-02"}
{"reason":"compiler-artifact","package_id":"x","manifest_path":"/w/x/Cargo.toml","target":{"kind":["bin"],"name":"x"},"profile":{"test":false},"executable":"/w/target/debug/x"}
{"reason":"build-finished","success":true}"#;

    fn judged(sections: &[Section]) -> (Vec<Row>, Vec<String>) {
        let workspace = Workspace {
            root: "w".into(),
            target: "t".into(),
            packages: Vec::new(),
        };
        judge(sections, &binaries(BUILD), &workspace)
    }

    fn section(file: &str, announced: u64, passed: u64, failed: u64, ignored: u64) -> Section {
        Section {
            origin: Origin::Binary(file.to_owned()),
            announced,
            passed,
            failed,
            ignored,
            seconds: 0.0,
        }
    }

    #[test]
    fn the_build_names_test_binaries_only_and_their_packages() {
        let binaries = binaries(BUILD);
        let names: Vec<_> = binaries
            .values()
            .map(|b| (b.package.as_str(), b.target.as_str(), b.integration))
            .collect();
        assert_eq!(
            names,
            [
                ("lockkit-db-macros", "derive", true),
                ("lockkit-core", "lockkit_core", false)
            ]
        );
    }

    #[test]
    fn a_good_run_has_rows_and_no_problems() {
        let (rows, problems) = judged(&[
            section("lockkit_core-01", 0, 0, 0, 0),
            section("derive-02", 2, 2, 0, 0),
        ]);
        assert_eq!(problems, [""; 0]);
        assert_eq!(rows.len(), 1);
        assert_eq!(
            (rows[0].suite.as_str(), rows[0].passed),
            ("lockkit-db-macros tests/derive", 2)
        );
    }

    #[test]
    fn an_integration_test_without_tests_is_a_problem() {
        let (_, problems) = judged(&[
            section("lockkit_core-01", 1, 1, 0, 0),
            section("derive-02", 0, 0, 0, 0),
        ]);
        assert!(
            problems.len() == 1 && problems[0].contains("ran no test"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_binary_that_never_ran_is_a_problem() {
        let (_, problems) = judged(&[section("lockkit_core-01", 1, 1, 0, 0)]);
        assert!(
            problems.len() == 1 && problems[0].contains("did not run"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_crash_counts_its_unfinished_tests_as_failed() {
        let (rows, problems) = judged(&[
            section("lockkit_core-01", 3, 0, 0, 0),
            section("derive-02", 2, 1, 1, 0),
        ]);
        assert_eq!(
            rows.iter().map(|row| row.failed).collect::<Vec<_>>(),
            [3, 1]
        );
        assert_eq!(problems.len(), 2);
    }

    #[test]
    fn an_ignored_test_is_a_problem() {
        let (_, problems) = judged(&[
            section("lockkit_core-01", 1, 0, 0, 1),
            section("derive-02", 1, 1, 0, 0),
        ]);
        assert!(
            problems.len() == 1 && problems[0].contains("ignored"),
            "{problems:?}"
        );
    }
}
