//! `VERIFICATION.md`: what proves what, and which known ways to break the code were seen caught.
//!
//! It is made of files in `lockkit-test/verification`, and is never written by hand. `verdicts.tsv` holds the last verdict
//! on each mutant, so that a run of them all can be done in parts; `models.tsv` what the models explored; the others say
//! in words what there is to prove.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::patch::{self, Patch};
use crate::report::Model;
use crate::run;
use crate::tallies::{Tallies, grouped};

/// The page, from the workspace's root.
pub(crate) const PAGE: &str = "VERIFICATION.md";
/// What it begins with.
const HEAD: &str = "lockkit-test/verification/head.md";
/// A line each: pattern, property, check, and how much that explores where no model says so.
const PROPERTIES: &str = "lockkit-test/verification/properties.txt";
/// A line each: the mutants that are known of and wait for a part that is not there: ID, words, why.
const WAITING: &str = "lockkit-test/verification/waiting.txt";
/// A line each: ID, the patch's hash, the tree it was tried on, verdict, date.
const VERDICTS: &str = "lockkit-test/verification/verdicts.tsv";
/// A line each: crate, model, executions.
const MODELS: &str = "lockkit-test/verification/models.tsv";
/// A line each: measure, the goal of a CI run, the goal of a soak, and what of the tallies is added up for it.
const GOALS: &str = "lockkit-test/verification/goals.txt";
/// What a run of all tests did.
pub(crate) const CI: &str = "lockkit-test/verification/ci.tsv";
/// What a soak did.
pub(crate) const SOAK: &str = "lockkit-test/verification/soak.tsv";

/// The verdict on a mutant, and on which patch it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    patch: String,
    tree: String,
    words: String,
    date: String,
}

/// The verdicts that are known, by ID.
pub(crate) struct Verdicts(BTreeMap<String, Verdict>);

impl Verdicts {
    /// Reads those that were recorded.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut verdicts = BTreeMap::new();
        for line in lines(root, VERDICTS)? {
            let cells: Vec<_> = line.split('\t').collect();
            let [id, patch, tree, words, date] = cells[..] else {
                anyhow::bail!("{VERDICTS}: `{line}` has not five cells");
            };
            let verdict = Verdict {
                patch: patch.to_owned(),
                tree: tree.to_owned(),
                words: words.to_owned(),
                date: date.to_owned(),
            };
            let twice = verdicts.insert(id.to_owned(), verdict);
            ensure!(twice.is_none(), "{VERDICTS}: {id} is there twice");
        }
        Ok(Self(verdicts))
    }

    /// Whether a patch was caught as it is now.
    pub(crate) fn is_killed(&self, id: &str, hash: &str) -> bool {
        let verdict = self.0.get(id);
        verdict.is_some_and(|verdict| verdict.patch == hash && verdict.words.starts_with("killed"))
    }

    /// Takes a verdict down, at once, so that a run that is cut short has not been for nothing.
    pub(crate) fn record(&mut self, root: &Path, id: &str, hash: &str, words: &str) -> Result<()> {
        let said = |program: &str, args: &[&str]| -> Result<String> {
            let text = run::stdout_of(Command::new(program).args(args).current_dir(root))?;
            Ok(text.trim().to_owned())
        };
        let verdict = Verdict {
            patch: hash.to_owned(),
            tree: said("git", &["rev-parse", "--short=12", "HEAD^{tree}"])?,
            words: words.to_owned(),
            date: said("date", &["-u", "+%F"])?,
        };
        // What others have recorded meanwhile stays.
        self.0 = Self::read(root)?.0;
        self.0.insert(id.to_owned(), verdict);
        let mut ids: Vec<_> = self.0.keys().collect();
        ids.sort_by_key(|id| place(id));
        let mut text = String::new();
        for id in ids {
            let Verdict {
                patch,
                tree,
                words,
                date,
            } = &self.0[id];
            // Infallible: it writes to a string.
            let _ = writeln!(text, "{id}\t{patch}\t{tree}\t{words}\t{date}");
        }
        write(root, VERDICTS, &text)
    }
}

/// The hashes of the patches, by ID: git's, of their files.
pub(crate) fn hashes(root: &Path, patches: &[Patch]) -> Result<BTreeMap<String, String>> {
    let mut git = run::git(root);
    git.arg("hash-object")
        .args(patches.iter().map(|patch| &patch.file));
    let hashes = run::stdout_of(&mut git)?;
    let short = |hash: &str| hash[..hash.len().min(12)].to_owned();
    let ids = patches.iter().map(|patch| patch.id.clone());
    Ok(ids.zip(hashes.lines().map(short)).collect())
}

/// Takes down what all models have explored.
pub(crate) fn record_models(root: &Path, models: &[(String, Model)]) -> Result<()> {
    let mut text = String::new();
    for (krate, model) in models {
        let _ = writeln!(text, "{krate}\t{}\t{}", model.name, model.executions);
    }
    write(root, MODELS, &text)
}

/// Takes down what the tests of a run have told in this file.
pub(crate) fn record_run(root: &Path, file: &str, told: &Path, about: &str) -> Result<()> {
    let said = |program: &str, args: &[&str]| -> Result<String> {
        let text = run::stdout_of(Command::new(program).args(args).current_dir(root))?;
        Ok(text.trim().to_owned())
    };
    let commit = said("git", &["rev-parse", "--short=12", "HEAD"])?;
    let date = said("date", &["-u", "+%F"])?;
    let about = format!("{about}, {date}, commit {commit}");
    Tallies::told(told)?.record(root, file, &about)?;
    write_page(root)
}

/// Writes the page anew.
pub(crate) fn write_page(root: &Path) -> Result<()> {
    write(root, PAGE, &page(root)?)
}

/// Whether the page says what the files do.
pub(crate) fn check(root: &Path, problems: &mut Vec<String>) -> Result<()> {
    // A patch that cannot be read is told elsewhere.
    if patch::all(root)?.iter().any(Result::is_err) {
        return Ok(());
    }
    if fs::read_to_string(root.join(PAGE)).ok().as_deref() != Some(&page(root)?) {
        problems.push(format!(
            "{PAGE}: says something else than the patches and {VERDICTS}; type `cargo xtask mutants --table`"
        ));
    }
    Ok(())
}

fn page(root: &Path) -> Result<String> {
    let patches = patch::all(root)?.into_iter().collect::<Result<Vec<_>>>()?;
    let mut page =
        fs::read_to_string(root.join(HEAD)).with_context(|| format!("cannot read {HEAD}"))?;
    page.push_str("\n## What is proved, and by what\n\n");
    page.push_str("| pattern | property | check | explored |\n|---|---|---|---|\n");
    let models = models(root)?;
    for line in lines(root, PROPERTIES)? {
        let [pattern, property, check, explored] = cells(PROPERTIES, &line)?;
        let explored = if explored.is_empty() {
            explored_by(&models, &check)?
        } else {
            explored
        };
        let _ = writeln!(page, "| {pattern} | {property} | `{check}` | {explored} |");
    }
    runs(root, &patches, &models, &mut page)?;
    mutants(root, &patches, &mut page)?;
    Ok(page)
}

/// What the recorded runs did, held against the goals.
fn runs(
    root: &Path,
    patches: &[Patch],
    models: &[(String, String, u64)],
    page: &mut String,
) -> Result<()> {
    let (ci, soak) = (Tallies::recorded(root, CI)?, Tallies::recorded(root, SOAK)?);
    let about = |run: &Option<(String, Tallies)>| match run {
        Some((about, _)) => about.clone(),
        None => "not recorded yet".to_owned(),
    };
    let executions: u64 = models.iter().map(|(.., executions)| executions).sum();
    let (verdicts, hashes) = (Verdicts::read(root)?, hashes(root, patches)?);
    let killed = patches
        .iter()
        .filter(|patch| verdicts.is_killed(&patch.id, &hashes[&patch.id]))
        .count();
    // What is recorded elsewhere is the same for both.
    let counted = |run: &Option<(String, Tallies)>, of: &str| match of {
        "models" if models.is_empty() => None,
        "models" => Some(format!("{} in {}", grouped(executions), models.len())),
        "mutants" => Some(format!("{killed} of {}", patches.len())),
        of => run.as_ref().and_then(|(_, run)| run.sum(of)).map(grouped),
    };
    let _ = write!(
        page,
        "\n## What runs do\n\nCI: {}.\nSoak: {}.\n\n\
         | measure | goal of a CI run | CI | goal of a soak of 8 hours | soak |\n|---|---|---|---|---|\n",
        about(&ci),
        about(&soak)
    );
    for line in lines(root, GOALS)? {
        let [measure, each, long, of] = cells(GOALS, &line)?;
        let [in_ci, in_soak] =
            [&ci, &soak].map(|run| counted(run, &of).unwrap_or_else(|| "–".to_owned()));
        let _ = writeln!(
            page,
            "| {measure} | {each} | {in_ci} | {long} | {in_soak} |"
        );
    }
    if let Some((_, soak)) = soak {
        let _ = write!(page, "\nThe soak, pattern by pattern:\n\n{}", soak.table());
    }
    Ok(())
}

fn mutants(root: &Path, patches: &[Patch], page: &mut String) -> Result<()> {
    let (verdicts, hashes) = (Verdicts::read(root)?, hashes(root, patches)?);
    let mut patches: Vec<_> = patches.iter().collect();
    patches.sort_by_key(|patch| place(&patch.id));
    let mut rows = String::new();
    let (mut killed, mut open) = (0, 0);
    for patch in &patches {
        let (id, hash) = (&patch.id, &hashes[&patch.id]);
        let verdict = match verdicts.0.get(id) {
            Some(verdict) if verdict.patch == *hash => {
                format!(
                    "{} | {}, tree {}",
                    verdict.words, verdict.date, verdict.tree
                )
            }
            Some(_) => "not tried since it was changed | ".to_owned(),
            None => "not tried yet | ".to_owned(),
        };
        *(if verdicts.is_killed(id, hash) {
            &mut killed
        } else {
            &mut open
        }) += 1;
        let checks: Vec<_> = patch
            .checks
            .iter()
            .map(|check| format!("`{check}`"))
            .collect();
        let _ = writeln!(
            rows,
            "| {id} | {} | {} | {verdict} |",
            cell(&patch.what),
            cell(&checks.join(", "))
        );
    }
    let waiting = lines(root, WAITING)?;
    let _ = write!(
        page,
        "\n## Mutants\n\n{} patches: {killed} seen caught as they are, {open} not. {} known ones wait.\n\n\
         | ID | what is broken | must be caught by | verdict | when |\n|---|---|---|---|---|\n{rows}",
        patches.len(),
        waiting.len()
    );
    page.push_str(
        "\n## Mutants that wait\n\n| ID | what is broken | why it waits |\n|---|---|---|\n",
    );
    let ids: BTreeSet<_> = patches.iter().map(|patch| &*patch.id).collect();
    for line in waiting {
        let [id, what, why] = cells(WAITING, &line)?;
        ensure!(
            !ids.contains(&*id),
            "{WAITING}: {id} has a patch now, so it waits no more; remove its line"
        );
        let _ = writeln!(page, "| {id} | {what} | {why} |");
    }
    Ok(())
}

/// Models by crate and name.
fn models(root: &Path) -> Result<Vec<(String, String, u64)>> {
    let read = |line: &String| -> Option<(String, String, u64)> {
        let mut cells = line.split('\t');
        let (krate, name, executions) = (cells.next()?, cells.next()?, cells.next()?);
        Some((krate.to_owned(), name.to_owned(), executions.parse().ok()?))
    };
    let lines = lines(root, MODELS)?;
    let models = lines
        .iter()
        .map(|line| read(line).with_context(|| format!("{MODELS}: `{line}`")));
    models.collect()
}

/// What the models of a check, `loom -p CRATE the beginning of their names`, have explored together.
fn explored_by(models: &[(String, String, u64)], check: &str) -> Result<String> {
    let of = check
        .strip_prefix("loom -p ")
        .and_then(|of| of.split_once(' '));
    let (krate, begins) = of.with_context(|| {
        format!("{PROPERTIES}: `{check}` is no model, so its line has to say how much it explores")
    })?;
    let mine: Vec<_> = models
        .iter()
        .filter(|(own, name, _)| own == krate && name.starts_with(begins))
        .map(|(_, _, executions)| executions)
        .collect();
    if mine.is_empty() {
        return Ok("not recorded yet".to_owned());
    }
    let sum: u64 = mine.iter().copied().sum();
    Ok(format!(
        "{sum} executions of {} models, complete",
        mine.len()
    ))
}

/// The lines of a file that say something; none if there is no file.
fn lines(root: &Path, file: &str) -> Result<Vec<String>> {
    let path = root.join(file);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
    let says = |line: &&str| !line.trim().is_empty() && !line.starts_with('#');
    Ok(text.lines().filter(says).map(str::to_owned).collect())
}

fn cells<const N: usize>(file: &str, line: &str) -> Result<[String; N]> {
    let cells: Vec<_> = line
        .split(" | ")
        .map(|cell| cell.trim().to_owned())
        .collect();
    let count = cells.len();
    let cells = cells.try_into().ok();
    cells.with_context(|| format!("{file}: `{line}` has {count} cells, and {N} are due"))
}

/// As a cell of a table has it.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Where an ID is in order: A2 before A10, A9a before A9b.
fn place(id: &str) -> (String, u64, String) {
    let digits = id.find(|c: char| c.is_ascii_digit()).unwrap_or(id.len());
    let (letters, rest) = id.split_at(digits);
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    (
        letters.to_owned(),
        number.parse().unwrap_or(0),
        suffix.to_owned(),
    )
}

fn write(root: &Path, file: &str, text: &str) -> Result<()> {
    fs::write(root.join(file), text).with_context(|| format!("cannot write {file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_the_order_of_their_numbers() {
        let mut ids = ["B1", "A10", "A9b", "A9", "A9a", "A2"];
        ids.sort_by_key(|id| place(id));
        assert_eq!(ids, ["A2", "A9", "A9a", "A9b", "A10", "B1"]);
    }

    #[test]
    fn models_are_summed_by_what_their_names_begin_with() {
        let model =
            |krate: &str, name: &str, executions| (krate.to_owned(), name.to_owned(), executions);
        let models = [
            model("a", "s: one", 7),
            model("a", "s: two", 8),
            model("b", "s: one", 9),
        ];
        let of = |check| explored_by(&models, check).unwrap();
        assert_eq!(of("loom -p a s:"), "15 executions of 2 models, complete");
        assert_eq!(of("loom -p a t:"), "not recorded yet");
        assert!(explored_by(&models, "test -p a").is_err());
    }

    #[test]
    fn a_verdict_is_of_the_patch_as_it_was() {
        let verdict = |words: &str| Verdict {
            patch: "1".to_owned(),
            tree: "2".to_owned(),
            words: words.to_owned(),
            date: "2000-01-01".to_owned(),
        };
        let verdicts = [
            ("A1", "killed"),
            ("A2", "killed (hang)"),
            ("A3", "SURVIVED"),
        ];
        let verdicts = Verdicts(
            verdicts
                .map(|(id, words)| (id.to_owned(), verdict(words)))
                .into(),
        );
        assert!(verdicts.is_killed("A1", "1") && verdicts.is_killed("A2", "1"));
        assert!(
            !verdicts.is_killed("A1", "3")
                && !verdicts.is_killed("A3", "1")
                && !verdicts.is_killed("A4", "1")
        );
    }
}
