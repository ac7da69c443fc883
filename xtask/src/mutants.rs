//! `cargo xtask mutants`: each patch in `lockkit-test/mutants` breaks the code in a known way, and
//! every check that it names has to notice.
//!
//! The work is done on a copy of the tree below the target folder, always the same one, so that a
//! second run compiles little. A check must first pass, with at least one test, on the copy as it
//! is; a broken copy that does not compile proves nothing and is an error. Each verdict is recorded as soon as it is
//! there, and `VERIFICATION.md` is made of all that are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::metadata::Workspace;
use crate::patch::{self, Check, Patch};
use crate::run::{self, Ended, Show};
use crate::verification::{self, Verdicts};
use crate::{Outcome, loom, needs, report};

/// Compiling may take long on a cold machine, but not for ever.
const BUILD_LIMIT: Duration = Duration::from_mins(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The mutants to run, such as `E1`; without any, all of them.
    ids: Vec<String>,
    /// How many seconds a check may take.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Only those that were not yet seen caught as they are now: a run of all can be done in parts.
    #[arg(long)]
    stale: bool,
    /// Run none; only write VERIFICATION.md anew, from what was recorded.
    #[arg(long)]
    table: bool,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    needs::programs("mutants", false)?;
    let workspace = Workspace::load()?;
    let root = workspace.root.clone();
    if args.table {
        verification::write_page(&root)?;
        return Ok(Outcome::of("mutants", &[], verification::PAGE));
    }
    let mut patches = chosen(&root, &args.ids)?;
    let hashes = verification::hashes(&root, &patches)?;
    let mut verdicts = Verdicts::read(&root)?;
    if args.stale {
        patches.retain(|patch| !verdicts.is_killed(&patch.id, &hashes[&patch.id]));
    }
    let bench = Workbench::new(workspace)?;
    let limit = Duration::from_secs(args.timeout);

    let checks: BTreeSet<_> = patches.iter().flat_map(|patch| &patch.checks).collect();
    println!(
        "{} mutants, {} checks; first each check on the code as it is",
        patches.len(),
        checks.len()
    );
    for check in checks {
        bench.baseline(check, limit)?;
    }

    let mut rows = Vec::new();
    let mut problems = Vec::new();
    for patch in &patches {
        println!("\n{}", patch.file.display());
        bench.apply(patch)?;
        let mut worst = Verdict::Killed;
        for check in &patch.checks {
            let (verdict, seconds) = bench.judge(patch, check, limit)?;
            println!("  {check}: {verdict}");
            if verdict > worst {
                worst = verdict;
            }
            if let Some(problem) = verdict.problem(patch, check, args.timeout) {
                problems.push(problem);
            }
            rows.push(vec![
                patch.id.clone(),
                check.to_string(),
                verdict.to_string(),
                format!("{seconds:.1}"),
            ]);
        }
        verdicts.record(&root, &patch.id, &hashes[&patch.id], &worst.to_string())?;
    }
    verification::write_page(&root)?;
    print!(
        "\n{}\n",
        report::table(&["ID", "check", "verdict", "seconds"], &rows)
    );
    Ok(Outcome::of(
        "mutants",
        &problems,
        &format!("{} killed by {} checks", patches.len(), rows.len()),
    ))
}

/// The patches with these IDs; an unknown ID, or a patch that cannot be read, is an error.
fn chosen(root: &Path, ids: &[String]) -> Result<Vec<Patch>> {
    let mut patches = patch::all(root)?.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(
        !patches.is_empty(),
        "there are no patches in {}",
        patch::FOLDER
    );
    let known: Vec<_> = patches.iter().map(|patch| patch.id.clone()).collect();
    for id in ids {
        ensure!(
            known.contains(id),
            "there is no mutant {id}; there are {}",
            known.join(", ")
        );
    }
    patches.retain(|patch| ids.is_empty() || ids.contains(&patch.id));
    Ok(patches)
}

/// From good to bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Killed,
    /// It hung, and that is how it shows.
    KilledByHang,
    Survived,
    /// It hung, and nobody said that it would.
    Hung,
    /// It does not compile, so nothing was tried.
    NoBuild,
}

impl Verdict {
    fn problem(self, patch: &Patch, check: &Check, seconds: u64) -> Option<String> {
        let file = patch.file.display();
        match self {
            Self::Killed | Self::KilledByHang => None,
            Self::Survived => Some(format!(
                "{file}: `{check}` does not notice it; sharpen that test"
            )),
            Self::Hung => Some(format!(
                "{file}: `{check}` ran longer than {seconds} s; where hanging is how it shows, add `Hang: yes`"
            )),
            Self::NoBuild => Some(format!(
                "{file}: with it `{check}` does not compile, see above; mend the patch"
            )),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Killed => "killed",
            Self::KilledByHang => "killed (hang)",
            Self::Survived => "SURVIVED",
            Self::Hung => "TIMED OUT",
            Self::NoBuild => "NO BUILD",
        })
    }
}

/// Files by their path from the workspace's root.
type Snapshot = BTreeMap<PathBuf, Vec<u8>>;

/// The copy of the tree, and where it is built.
struct Workbench {
    workspace: Workspace,
    /// The tree as it was at the start: somebody may work on in it meanwhile.
    snapshot: Snapshot,
    tree: PathBuf,
    build: PathBuf,
    /// Held for as long as the copy is in use.
    _lock: File,
}

impl Workbench {
    fn new(workspace: Workspace) -> Result<Self> {
        let home = workspace.target.join("mutants");
        fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let lock = File::create(home.join("lock")).context("cannot make the lock file")?;
        if lock.try_lock().is_err() {
            bail!(
                "another `cargo xtask mutants` is under way in {}; wait for its end",
                home.display()
            );
        }
        let tree = home.join("tree");
        let snapshot = snapshot(&workspace.root)?;
        restore(&tree, &snapshot)?;
        Ok(Self {
            build: home.join("build"),
            tree,
            snapshot,
            workspace,
            _lock: lock,
        })
    }

    /// Sees a check pass on the code as it is.
    fn baseline(&self, check: &Check, limit: Duration) -> Result<()> {
        let built = self.build(check)?;
        if !built.ok {
            bail!(
                "`{check}` does not compile on the unbroken code:\n{}",
                built.text
            );
        }
        let ended = run::capture(self.command(check, false)?, Show::Live, limit)?;
        let tests: u64 = report::sections(&ended.text)
            .iter()
            .map(|section| section.passed)
            .sum();
        ensure!(
            !ended.timed_out,
            "`{check}` runs longer than the limit on the unbroken code; see --timeout"
        );
        ensure!(
            ended.ok,
            "`{check}` fails on the unbroken code; put that right first"
        );
        ensure!(
            tests > 0,
            "`{check}` runs no test at all; mend the `Check:` line"
        );
        Ok(())
    }

    /// Runs a check on the broken copy.
    fn judge(&self, patch: &Patch, check: &Check, limit: Duration) -> Result<(Verdict, f64)> {
        let built = self.build(check)?;
        if !built.ok {
            println!("{}", built.text);
            return Ok((Verdict::NoBuild, built.seconds));
        }
        let ended = run::capture(self.command(check, false)?, Show::Quiet, limit)?;
        let verdict = match (ended.timed_out, ended.ok) {
            (true, _) if patch.hang => Verdict::KilledByHang,
            (true, _) => Verdict::Hung,
            (false, true) => Verdict::Survived,
            (false, false) => Verdict::Killed,
        };
        Ok((verdict, ended.seconds))
    }

    fn build(&self, check: &Check) -> Result<Ended> {
        run::capture(self.command(check, true)?, Show::Quiet, BUILD_LIMIT)
    }

    fn command(&self, check: &Check, no_run: bool) -> Result<Command> {
        let mut command = match check {
            Check::Loom { package, .. } => {
                let package = self.workspace.package(package);
                let package =
                    package.with_context(|| format!("`{check}`: there is no such crate"))?;
                loom::command(&self.tree, &self.build.join("loom"), package)
            }
            Check::Test(_) => {
                let mut command = run::cargo(&self.tree);
                let build = self.build.join("test");
                command
                    .args(["test", "--target-dir"])
                    .arg(&build)
                    // For tests that call cargo themselves: the folder of this run may be around the copy.
                    .env("CARGO_TARGET_DIR", &build);
                command
            }
        };
        // Nobody looks at a broken build in a debugger, and it is built hundreds of times.
        command
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_LOOM_DEBUG", "0");
        // Before the check's own words, as these may hold a `--`.
        if no_run {
            command.arg("--no-run");
        }
        match check {
            Check::Loom { filter, .. } => command.args(filter),
            Check::Test(args) => command.args(args),
        };
        Ok(command)
    }

    /// Breaks a fresh copy.
    fn apply(&self, patch: &Patch) -> Result<()> {
        // Also of what the check before has left in it, such as the seeds of a property that failed.
        restore(&self.tree, &self.snapshot)?;
        let file = patch.file.display();
        let mut git = run::git(&self.tree);
        // The copy lies inside of a repository: git would look for the files at that one's root.
        git.env(
            "GIT_CEILING_DIRECTORIES",
            self.tree.parent().unwrap_or(&self.tree),
        )
        .args(["apply", "--whitespace=nowarn"])
        .arg(&patch.file);
        run::stdout_of(&mut git).with_context(|| {
            format!("{file} does not apply; make it anew from the code as it is")
        })?;
        for path in &patch.touched {
            if content(&self.tree.join(path))?.as_ref() != self.snapshot.get(path) {
                return Ok(());
            }
        }
        bail!("{file} changes nothing")
    }
}

/// What is tracked, or not ignored.
fn snapshot(root: &Path) -> Result<Snapshot> {
    let listed = run::stdout_of(run::git(root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut snapshot = Snapshot::new();
    for name in listed.split_terminator('\0') {
        // A tracked file that was deleted is listed all the same.
        if let Some(bytes) = content(&root.join(name))? {
            snapshot.insert(PathBuf::from(name), bytes);
        }
    }
    Ok(snapshot)
}

/// Makes a folder hold the snapshot and nothing else. A file that is the same already is left
/// alone, and one that is written gets a new time: by that, cargo compiles what changed, and only
/// that.
fn restore(tree: &Path, snapshot: &Snapshot) -> Result<()> {
    for (path, bytes) in snapshot {
        let path = tree.join(path);
        if content(&path)?.as_ref() != Some(bytes) {
            fs::create_dir_all(path.parent().unwrap_or(tree))
                .and_then(|()| fs::write(&path, bytes))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    prune(tree, tree, snapshot).with_context(|| format!("cannot clear {}", tree.display()))
}

/// Removes the files that are not in the snapshot, and the folders that this empties.
fn prune(tree: &Path, folder: &Path, snapshot: &Snapshot) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            prune(tree, &path, snapshot)?;
            if fs::read_dir(&path)?.next().is_none() {
                fs::remove_dir(&path)?;
            }
        } else if !snapshot.contains_key(path.strip_prefix(tree)?) && !path.ends_with("Cargo.lock")
        {
            // The lock file stays: cargo makes one if the tree has none.
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// A file's bytes, or nothing if there is no such file.
fn content(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_snapshot_holds_what_git_would_add() {
        let root = scratch("snapshot");
        assert!(run::status(run::git(&root).args(["init", "--quiet"])).unwrap());
        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(root.join("a/new"), "1").unwrap();
        fs::write(root.join(".gitignore"), "ignored\n").unwrap();
        fs::write(root.join("ignored"), "2").unwrap();
        fs::write(root.join("deleted"), "3").unwrap();
        assert!(run::status(run::git(&root).args(["add", "deleted"])).unwrap());
        fs::remove_file(root.join("deleted")).unwrap();
        let names: Vec<_> = snapshot(&root).unwrap().into_keys().collect();
        assert_eq!(names, [Path::new(".gitignore"), Path::new("a/new")]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn restoring_undoes_everything_and_leaves_equal_files_alone() {
        let tree = scratch("restore");
        let names = ["a/kept", "a/changed", "removed"].map(PathBuf::from);
        let snapshot: Snapshot = names
            .iter()
            .map(|name| (name.clone(), b"1".to_vec()))
            .collect();
        restore(&tree, &snapshot).unwrap();
        let time = |path: &str| fs::metadata(tree.join(path)).unwrap().modified().unwrap();
        let before = [time("a/kept"), time("a/changed")];

        fs::write(tree.join("a/changed"), "x").unwrap();
        fs::remove_file(tree.join("removed")).unwrap();
        fs::create_dir_all(tree.join("b")).unwrap();
        fs::write(tree.join("b/added"), "x").unwrap();
        restore(&tree, &snapshot).unwrap();

        assert!(
            names
                .iter()
                .all(|name| fs::read(tree.join(name)).unwrap() == b"1")
        );
        assert!(!tree.join("b").exists());
        assert_eq!(time("a/kept"), before[0]);
        assert!(time("a/changed") > before[1]);
        fs::remove_dir_all(tree).unwrap();
    }
}
