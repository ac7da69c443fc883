//! `cargo xtask docs`: the documentation builds without a warning, and each crate tells its story.

use std::fs;

use anyhow::Result;

use crate::metadata::Workspace;
use crate::{Outcome, run};

pub(crate) fn run() -> Result<Outcome> {
    let workspace = Workspace::load()?;
    let mut problems = Vec::new();
    let mut command = run::cargo(&workspace.root);
    command.env("RUSTDOCFLAGS", "-D warnings").args([
        "doc",
        "--workspace",
        "--all-features",
        "--no-deps",
    ]);
    if !run::status(&mut command)? {
        problems.push("rustdoc has warnings; put them right, they are printed above".to_owned());
    }
    for package in workspace.packages.iter().filter(|package| package.has_lib) {
        let lib = package.dir.join("src/lib.rs");
        let starts_well =
            fs::read_to_string(workspace.root.join(&lib)).is_ok_and(|text| text.starts_with("//!"));
        if !starts_well {
            problems.push(format!(
                "{}: start it with a `//!` story of the crate",
                lib.display()
            ));
        }
    }
    let pages = workspace.target.join("doc");
    Ok(Outcome::of(
        "docs",
        &problems,
        &format!("the pages are in {}", pages.display()),
    ))
}
