//! `cargo xtask ci`: what `.ci/run` runs.

use anyhow::Result;

use crate::{Outcome, consumers, docs, fmt, lint, needs, test, tidy};

/// The verbs in their order: the quick ones that fail most often come first.
pub(crate) const VERBS: [&str; 6] = ["fmt", "lint", "consumers", "test", "docs", "tidy"];

pub(crate) fn run(args: &test::Args) -> Result<Outcome> {
    // What is missing is said now, not after a quarter of an hour.
    needs::component("fmt", "rustfmt")?;
    needs::component("clippy", "clippy")?;
    needs::programs("ci", args.install)?;

    let mut failed = Vec::new();
    for verb in VERBS {
        println!("\n== cargo xtask {verb}");
        let outcome = match verb {
            "fmt" => fmt::run(&fmt::Args::default()),
            "lint" => lint::run(),
            "consumers" => consumers::run(),
            "test" => test::run(args),
            "docs" => docs::run(),
            _ => tidy::run(),
        };
        // The verbs after a failed one still run: one CI run shall tell everything.
        let ok = match outcome {
            Ok(outcome) => {
                println!("{}", outcome.last_line);
                outcome.ok
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                false
            }
        };
        if !ok {
            failed.push(verb);
        }
    }
    println!();
    Ok(Outcome {
        ok: failed.is_empty(),
        last_line: if failed.is_empty() {
            format!("ci: ok, {}", VERBS.join(", "))
        } else {
            format!(
                "ci: FAILED in {}; each can be run alone: cargo xtask {}",
                failed.join(", "),
                failed[0]
            )
        },
    })
}
