//! What the tests of a run tell that they did, added up, recorded, and held against the goals.
//!
//! A test tells by a line of JSON in a file that [`FILE`] names. What a run is told is kept in a file of
//! `lockkit-test/verification`, a number a line, from which VERIFICATION.md has it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// The variable that the tests read.
pub(crate) const FILE: &str = "LOCKKIT_TEST_TALLIES";

/// What is added up by name, beside faults and other counts.
const RUNS: &str = "runs";
const OPERATIONS: &str = "operations";
const REFUSED: &str = "stale writes refused";
const VIOLATIONS: &str = "violations";
const LEAKS: &str = "leaks";
/// Of which the longest is kept.
const RECOVERY: &str = "longest recovery in ms";
/// How many histories were explained.
pub(crate) const HISTORIES: &str = "histories explained";

/// By pattern, and by what was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tallies(BTreeMap<String, BTreeMap<String, u64>>);

/// An empty file for tests to tell in.
pub(crate) fn file(target: &Path, verb: &str) -> Result<PathBuf> {
    let path = target.join(format!("tallies-{verb}"));
    fs::create_dir_all(target)
        .and_then(|()| fs::write(&path, ""))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

impl Tallies {
    /// What the tests have told in this file.
    pub(crate) fn told(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut tallies = Self::default();
        for line in text.lines() {
            let told = serde_json::from_str(line)
                .with_context(|| format!("{}: `{line}` is no tally", path.display()))?;
            tallies.add(&told);
        }
        Ok(tallies)
    }

    fn add(&mut self, told: &Value) {
        let pattern = told["pattern"].as_str().unwrap_or("?");
        let sum = self.0.entry(pattern.to_owned()).or_default();
        let number = |field: &str| told[field].as_u64().unwrap_or(0);
        let mut add = |what: &str, count| *sum.entry(what.to_owned()).or_default() += count;
        add(RUNS, 1);
        add(OPERATIONS, number("operations"));
        add(REFUSED, number("refused"));
        add(VIOLATIONS, number("violations"));
        add(LEAKS, number("leaks"));
        for counts in [&told["faults"], &told["counts"]] {
            for (what, count) in counts.as_object().into_iter().flatten() {
                add(what, count.as_u64().unwrap_or(0));
            }
        }
        let longest = sum.entry(RECOVERY.to_owned()).or_default();
        *longest = number("recovery_ms").max(*longest);
    }

    /// Reads what was recorded: what is said of the run, and its numbers.
    pub(crate) fn recorded(root: &Path, file: &str) -> Result<Option<(String, Self)>> {
        let path = root.join(file);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
        let (mut about, mut tallies) = (String::new(), Self::default());
        for line in text.lines() {
            if let Some(says) = line.strip_prefix("# ") {
                says.clone_into(&mut about);
                continue;
            }
            let cells: Vec<_> = line.split('\t').collect();
            let number = match cells[..] {
                [pattern, what, count] => count.parse().ok().map(|count| (pattern, what, count)),
                _ => None,
            };
            let (pattern, what, count) =
                number.with_context(|| format!("{file}: `{line}` is no number of a pattern"))?;
            let sum = tallies.0.entry(pattern.to_owned()).or_default();
            sum.insert(what.to_owned(), count);
        }
        Ok(Some((about, tallies)))
    }

    /// Takes them down.
    pub(crate) fn record(&self, root: &Path, file: &str, about: &str) -> Result<()> {
        let mut text = format!("# {about}\n");
        for (pattern, sum) in &self.0 {
            for (what, count) in sum {
                // Infallible: it writes to a string.
                let _ = writeln!(text, "{pattern}\t{what}\t{count}");
            }
        }
        fs::write(root.join(file), text).with_context(|| format!("cannot write {file}"))
    }

    /// `WHAT`, or `WHAT of PATTERN, PATTERN`: the sum of it, or what was longest; `None` if nobody has told of it.
    pub(crate) fn sum(&self, of: &str) -> Option<u64> {
        let (what, patterns) = of.split_once(" of ").unwrap_or((of, ""));
        let patterns: Vec<_> = patterns
            .split(", ")
            .filter(|name| !name.is_empty())
            .collect();
        let wanted = |pattern: &str| patterns.is_empty() || patterns.contains(&pattern);
        let counts = self.0.iter().filter(|(pattern, _)| wanted(pattern));
        let counts = counts.filter_map(|(_, sum)| sum.get(what).copied());
        counts.reduce(|all, one| {
            if what == RECOVERY {
                all.max(one)
            } else {
                all + one
            }
        })
    }

    /// What went wrong: violations and leaks, and recoveries that took longer than this.
    pub(crate) fn problems(&self, recovery: u64) -> Vec<String> {
        let mut problems = Vec::new();
        for (pattern, sum) in &self.0 {
            let of = |what| sum.get(what).copied().unwrap_or(0);
            let (broken, left, longest) = (of(VIOLATIONS), of(LEAKS), of(RECOVERY));
            if broken + left > 0 {
                problems.push(format!("{pattern}: {broken} violations, and {left} leaks"));
            }
            if longest > recovery {
                problems.push(format!(
                    "{pattern}: it took {longest} ms to go on in peace, where {recovery} are the most"
                ));
            }
        }
        problems
    }

    /// A line for each pattern.
    pub(crate) fn table(&self) -> String {
        const OWN: [&str; 6] = [RUNS, OPERATIONS, REFUSED, VIOLATIONS, LEAKS, RECOVERY];
        let mut text = format!(
            "| pattern | runs | operations | what befell them, and what else there was | {REFUSED} | {VIOLATIONS} | \
             {LEAKS} | {RECOVERY} |\n|---|---|---|---|---|---|---|---|\n"
        );
        for (pattern, sum) in &self.0 {
            let others = sum.iter().filter(|(what, _)| !OWN.contains(&&***what));
            let others: Vec<_> = others
                .map(|(what, count)| format!("{} {what}", grouped(*count)))
                .collect();
            let [runs, operations, refused, violations, leaks, recovery] =
                OWN.map(|what| grouped(sum.get(what).copied().unwrap_or(0)));
            let others = others.join(", ");
            let _ = writeln!(
                text,
                "| {pattern} | {runs} | {operations} | {others} | {refused} | {violations} | {leaks} | {recovery} |"
            );
        }
        text
    }
}

/// With a comma after each three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Tallies {
        let lines = [
            r#"{"pattern":"p","operations":5,"faults":{"cut":2},"refused":1,"recovery_ms":7}"#,
            r#"{"pattern":"p","operations":1006,"faults":{"cut":1},"counts":{"read":4},"leaks":1,"recovery_ms":5}"#,
            r#"{"pattern":"q","operations":3,"faults":{"cut":9},"recovery_ms":8}"#,
        ];
        let mut tallies = Tallies::default();
        for line in lines {
            tallies.add(&serde_json::from_str(line).unwrap());
        }
        tallies
    }

    #[test]
    fn what_several_runs_tell_is_added_up() {
        let tallies = told();
        let row = "| p | 2 | 1,011 | 3 cut, 4 read | 1 | 0 | 1 | 7 |\n";
        assert!(tallies.table().contains(row), "{}", tallies.table());
        assert_eq!(tallies.sum("cut"), Some(12));
        assert_eq!(tallies.sum("cut of q, r"), Some(9));
        assert_eq!(tallies.sum("longest recovery in ms"), Some(8));
        assert_eq!(tallies.sum("killed"), None);
    }

    #[test]
    fn what_is_wrong_is_said_of_each_pattern() {
        let problems = told().problems(7);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("p: 0 violations, and 1 leaks"));
        assert!(problems[1].starts_with("q: it took 8 ms"));
    }

    #[test]
    fn what_is_recorded_is_read_again() {
        let root = std::env::temp_dir();
        let file = format!("lockkit-tallies-{}", std::process::id());
        told().record(&root, &file, "some words").unwrap();
        let read = Tallies::recorded(&root, &file).unwrap();
        fs::remove_file(root.join(&file)).unwrap();
        assert_eq!(read, Some(("some words".to_owned(), told())));
        assert_eq!(Tallies::recorded(&root, &file).unwrap(), None);
    }
}
