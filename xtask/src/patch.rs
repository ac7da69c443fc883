//! The patches that break the code on purpose: `lockkit-test/mutants/<ID>-<slug>.patch`.
//!
//! A patch starts with lines `Mutant: ID words`, one or more `Check: …`, perhaps `Hang: yes`, then
//! a blank line, then a diff as `git diff -U2` makes it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// The folder with the patches, from the workspace's root.
pub(crate) const FOLDER: &str = "lockkit-test/mutants";

#[derive(Debug)]
pub(crate) struct Patch {
    /// From the workspace's root.
    pub(crate) file: PathBuf,
    pub(crate) id: String,
    /// What is broken, in words.
    pub(crate) what: String,
    pub(crate) checks: Vec<Check>,
    /// Whether a hanging check has caught it, too.
    pub(crate) hang: bool,
    /// The files that it changes, adds or removes, from the workspace's root.
    pub(crate) touched: Vec<PathBuf>,
}

/// What has to fail when the code is broken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Check {
    /// `loom -p CRATE FILTER`: a crate's models.
    Loom {
        package: String,
        filter: Option<String>,
    },
    /// `test ARGS`: `cargo test ARGS`.
    Test(Vec<String>),
}

/// Every patch, in the order of names; each that cannot be read is an error of its own.
pub(crate) fn all(root: &Path) -> Result<Vec<Result<Patch>>> {
    let folder = root.join(FOLDER);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {FOLDER}"))? {
        let name = entry?.file_name();
        if Path::new(&name)
            .extension()
            .is_some_and(|extension| extension == "patch")
        {
            files.push(Path::new(FOLDER).join(name));
        }
    }
    files.sort();
    let read = |file: PathBuf| {
        let text = fs::read_to_string(root.join(&file))
            .with_context(|| format!("{}: unreadable", file.display()))?;
        parse(&file, &text).with_context(|| file.display().to_string())
    };
    Ok(files.into_iter().map(read).collect())
}

impl Check {
    fn parse(text: &str) -> Result<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        Ok(match words.as_slice() {
            ["loom", "-p", package, filter @ ..] if filter.len() <= 1 => Self::Loom {
                package: (*package).to_owned(),
                filter: filter.first().map(|&word| word.to_owned()),
            },
            ["test", args @ ..] if !args.is_empty() => {
                Self::Test(args.iter().map(|&word| word.to_owned()).collect())
            }
            _ => bail!("`Check: {text}` is neither `loom -p CRATE [FILTER]` nor `test ARGS`"),
        })
    }
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Loom {
                package,
                filter: None,
            } => write!(f, "loom -p {package}"),
            Self::Loom {
                package,
                filter: Some(filter),
            } => write!(f, "loom -p {package} {filter}"),
            Self::Test(args) => write!(f, "test {}", args.join(" ")),
        }
    }
}

fn parse(file: &Path, text: &str) -> Result<Patch> {
    let (head, diff) = text
        .split_once("\n\n")
        .context("no blank line between the header lines and the diff")?;
    let (mut id, mut what) = (None, String::new());
    let mut checks = Vec::new();
    let mut hang = false;
    for line in head.lines() {
        let (key, value) = line.split_once(": ").with_context(|| {
            format!("`{line}` is no header line; leave a blank line before the diff")
        })?;
        match key {
            "Mutant" => {
                let (own, words) = value.split_once(' ').unwrap_or((value, ""));
                id = Some(own.to_owned()).filter(|own| !own.is_empty());
                words.trim().clone_into(&mut what);
            }
            "Check" => checks.push(Check::parse(value)?),
            "Hang" => hang = value == "yes",
            _ => bail!("`{key}:` is not a header; there are Mutant, Check and Hang"),
        }
    }
    let id = id.context("no line `Mutant: ID what is broken`")?;
    ensure!(!checks.is_empty(), "no line `Check: …`: what catches it?");
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    ensure!(
        name.starts_with(&format!("{id}-")),
        "it says Mutant: {id}, so its name starts with `{id}-`"
    );
    let touched = touched(diff);
    ensure!(
        !touched.is_empty(),
        "there is no diff in it, with lines `--- a/…` and `+++ b/…`"
    );
    Ok(Patch {
        file: file.to_owned(),
        id,
        what,
        checks,
        hang,
        touched,
    })
}

fn touched(diff: &str) -> Vec<PathBuf> {
    let mut touched = Vec::new();
    let mut before = None;
    for line in diff.lines() {
        // Both lines stand together; a removed line that begins with `-- a/` stands alone.
        if let Some(old) = before.take()
            && let Some(new) = line.strip_prefix("+++ ")
        {
            let paths = [path(old, "a/"), path(new, "b/")];
            touched.extend(paths.into_iter().flatten());
        }
        before = line.strip_prefix("--- ");
    }
    touched.sort();
    touched.dedup();
    touched
}

fn path(name: &str, side: &str) -> Option<PathBuf> {
    // `/dev/null` stands for a file that is not there.
    name.trim_end().strip_prefix(side).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
Mutant: E1 permit lost if cancelled between grant and poll
Check: loom -p lockkit-core cancelled_grant
Check: test -p lockkit-core --test model
Hang: yes

diff --git a/lockkit-core/src/semaphore.rs b/lockkit-core/src/semaphore.rs
--- a/lockkit-core/src/semaphore.rs
+++ b/lockkit-core/src/semaphore.rs
@@ -1,2 +1,1 @@
 fn drop() {
--- a/not a path
 }
--- /dev/null
+++ b/new.rs
@@ -0,0 +1 @@
+x
";

    fn parsed(text: &str) -> Result<Patch> {
        parse(Path::new("lockkit-test/mutants/E1-lost.patch"), text)
    }

    #[test]
    fn a_patch_says_its_id_its_checks_and_its_files() {
        let patch = parsed(GOOD).unwrap();
        assert_eq!(patch.id, "E1");
        assert!(patch.hang);
        let checks: Vec<_> = patch.checks.iter().map(ToString::to_string).collect();
        assert_eq!(
            checks,
            [
                "loom -p lockkit-core cancelled_grant",
                "test -p lockkit-core --test model"
            ]
        );
        assert_eq!(
            patch.touched,
            [
                Path::new("lockkit-core/src/semaphore.rs"),
                Path::new("new.rs")
            ]
        );
    }

    #[test]
    fn a_hang_counts_only_where_it_is_said() {
        assert!(!parsed(&GOOD.replace("Hang: yes\n", "")).unwrap().hang);
    }

    #[test]
    fn what_is_missing_or_misspelt_is_named() {
        for (from, to, word) in [
            ("Mutant: E1", "Mutant: E2", "starts with `E2-`"),
            ("Check: loom -p", "Check: loom", "neither"),
            ("Check: test -p", "Check: tset -p", "neither"),
            ("Hang", "Hangs", "not a header"),
            ("yes\n\n", "yes\n", "blank line"),
            ("+++ b/", "++ b/", "no diff"),
        ] {
            let error = parsed(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(word), "{to}: {error}");
        }
        let unchecked = "Mutant: E1 words\n\n--- a/x\n+++ b/x\n";
        assert!(
            parsed(unchecked)
                .unwrap_err()
                .to_string()
                .contains("what catches it")
        );
    }
}
