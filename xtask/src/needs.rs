//! What the checks need beside Rust, and how to get it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::run;

/// A program that tests start or that builds need.
struct Program {
    name: &'static str,
    /// Debian's package with it.
    package: &'static str,
    /// The verbs that need it, and for what.
    verbs: &'static [&'static str],
    why: &'static str,
}

const PROGRAMS: [Program; 6] = [
    Program {
        name: "cc",
        package: "gcc",
        verbs: &["ci", "test", "loom", "mutants", "soak"],
        why: "the linker, and the bundled SQLite",
    },
    Program {
        name: "setpriv",
        package: "util-linux",
        verbs: &["ci", "test", "mutants", "soak"],
        why: "tests with child processes: none of these outlives a killed test",
    },
    Program {
        name: "initdb",
        package: "postgresql",
        verbs: &["ci", "test", "mutants", "soak"],
        why: "tests on a PostgreSQL server of their own",
    },
    Program {
        name: "redis-server",
        package: "redis-server",
        verbs: &["ci", "test", "mutants", "soak"],
        why: "tests on Redis servers of their own",
    },
    Program {
        name: "chromium",
        package: "chromium",
        verbs: &["ci", "test"],
        why: "tests that look at a page of an example",
    },
    Program {
        name: "git",
        package: "git",
        verbs: &["ci", "test", "tidy", "mutants"],
        why: "the list of files, and patches",
    },
];

/// Sees to it that a verb's programs are there: installs them where that needs no question, else says
/// what to type. Never goes on without.
pub(crate) fn programs(verb: &str, install: bool) -> Result<()> {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|program| program.verbs.contains(&verb) && !is_there(program.name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for program in &missing {
        println!("`{}` is missing; it is for {}", program.name, program.why);
    }
    let packages: Vec<_> = missing.iter().map(|program| program.package).collect();
    let root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    let sudo = if root { "" } else { "sudo " };
    let by_hand = format!(
        "{sudo}apt-get update && {sudo}apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    if !(root || ci || install) {
        bail!("type `{by_hand}`, or run `cargo xtask test --install`");
    }
    let apt_get = || {
        let mut command = if root {
            Command::new("apt-get")
        } else {
            let mut sudo = Command::new("sudo");
            // Without a person at the keyboard a question would wait for ever.
            if !install {
                sudo.arg("-n");
            }
            sudo.arg("apt-get");
            sudo
        };
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    let installed = run::status(apt_get().arg("update"))?
        && run::status(
            apt_get()
                .args(["install", "-y", "--no-install-recommends"])
                .args(&packages),
        )?;
    if !installed || missing.iter().any(|program| !is_there(program.name)) {
        bail!(
            "could not install {}; by hand it is `{by_hand}`",
            packages.join(", ")
        );
    }
    Ok(())
}

/// Sees to it that a component of the toolchain is there.
pub(crate) fn component(subcommand: &str, component: &str) -> Result<()> {
    let there = run::cargo(Path::new("."))
        .args([subcommand, "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !there {
        bail!("`cargo {subcommand}` is missing; type `rustup component add {component}`");
    }
    Ok(())
}

/// In `PATH`, or where Debian puts the programs of PostgreSQL's releases.
fn is_there(program: &str) -> bool {
    in_path(program)
        || fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .any(|release| release.path().join("bin").join(program).is_file())
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_the_path_or_not_at_all() {
        assert!(in_path("sh"));
        assert!(!in_path("no-such-program-anywhere"));
    }

    #[test]
    fn a_missing_component_is_an_error_that_says_what_to_type() {
        let error = component("no-such-subcommand", "thing")
            .unwrap_err()
            .to_string();
        assert!(error.contains("rustup component add thing"), "{error}");
    }
}
