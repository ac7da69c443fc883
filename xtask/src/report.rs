//! What test runs print, read back into numbers, and the table made of them.

use std::fmt::Write;

/// One test binary's part, or one crate's documentation tests, of what `cargo test` prints.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Section {
    pub(crate) origin: Origin,
    /// How many tests it said that it would run.
    pub(crate) announced: u64,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    pub(crate) seconds: f64,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) enum Origin {
    /// The file name of a test binary, with cargo's hash.
    Binary(String),
    /// The name of a library, as rustc spells it.
    Doc(String),
    #[default]
    Unknown,
}

/// One line of the model runner.
#[derive(Debug, PartialEq)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) executions: u64,
    /// Whether every execution within the bound was explored.
    pub(crate) complete: bool,
}

/// A line of the summary.
pub(crate) struct Row {
    pub(crate) suite: String,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) seconds: f64,
}

/// The sections of a `cargo test` run, in its order. A section may hold several runs, since
/// rustdoc makes more than one binary: they are added up.
pub(crate) fn sections(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines() {
        if let Some(origin) = header(line) {
            sections.push(Section {
                origin,
                ..Section::default()
            });
        } else if let Some(announced) = announcement(line) {
            if sections.is_empty() {
                sections.push(Section::default());
            }
            if let Some(section) = sections.last_mut() {
                section.announced += announced;
            }
        } else if let Some(section) = sections.last_mut() {
            result(line, section);
        }
    }
    sections
}

/// The model runner's lines. They may stand behind other words, as the test harness writes the
/// name of a test without ending the line.
pub(crate) fn models(text: &str) -> Vec<Model> {
    text.lines().filter_map(model).collect()
}

/// A table whose first column is text and whose other columns are numbers.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    let head = head.iter().map(|&cell| cell.to_owned()).collect();
    for row in [&head].into_iter().chain(rows) {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            let numeric = cell.starts_with(|first: char| first.is_ascii_digit());
            // Infallible: it writes to a string.
            let _ = if numeric {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// The summary of a test run.
pub(crate) fn summary(rows: &[Row]) -> String {
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            vec![
                row.suite.clone(),
                (row.passed + row.failed).to_string(),
                row.passed.to_string(),
                row.failed.to_string(),
                format!("{:.2}", row.seconds),
            ]
        })
        .collect();
    table(&["suite", "run", "passed", "failed", "seconds"], &cells)
}

/// `     Running tests/x.rs (target/debug/deps/x-0123)` or `   Doc-tests x`. Cargo indents them;
/// a test that prints the like at the start of a line is not taken in.
fn header(line: &str) -> Option<Origin> {
    let words = line.strip_prefix("   ")?.trim_start();
    if let Some(library) = words.strip_prefix("Doc-tests ") {
        return Some(Origin::Doc(library.trim().to_owned()));
    }
    let (_, path) = words
        .strip_prefix("Running ")?
        .strip_suffix(')')?
        .rsplit_once('(')?;
    let file = path.rsplit('/').next()?;
    Some(Origin::Binary(file.to_owned()))
}

/// `running 3 tests`.
fn announcement(line: &str) -> Option<u64> {
    let (count, noun) = line.strip_prefix("running ")?.split_once(' ')?;
    matches!(noun, "test" | "tests").then(|| count.parse().ok())?
}

/// `test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
fn result(line: &str, section: &mut Section) {
    let Some((_, counts)) = line
        .strip_prefix("test result: ")
        .and_then(|rest| rest.split_once(". "))
    else {
        return;
    };
    for part in counts.split("; ") {
        if let Some(seconds) = part
            .strip_prefix("finished in ")
            .and_then(|rest| rest.strip_suffix('s'))
        {
            section.seconds += seconds.parse::<f64>().unwrap_or(0.0);
        } else if let Some((count, what)) = part.split_once(' ') {
            let count = count.parse().unwrap_or(0);
            match what {
                "passed" => section.passed += count,
                "failed" => section.failed += count,
                "ignored" => section.ignored += count,
                _ => {}
            }
        }
    }
}

/// `model NAME: N executions, bound B, complete`; a name may hold anything but a line's end. With
/// another ending, the run left schedules out.
fn model(line: &str) -> Option<Model> {
    let (start, end) = line.split_once(" executions")?;
    let (start, executions) = start.rsplit_once(": ")?;
    let (_, name) = start.split_once("model ")?;
    let bound = end
        .strip_prefix(", bound ")
        .and_then(|end| end.trim_end().strip_suffix(", complete"));
    Some(Model {
        name: name.to_owned(),
        executions: executions.parse().ok()?,
        complete: bound.is_some_and(|bound| bound.parse::<u32>().is_ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
   Compiling lockkit-core v0.1.0 (lockkit-core)
    Finished `test` profile [unoptimized + debuginfo] target(s) in 1.00s
     Running unittests src/lib.rs (target/debug/deps/lockkit_core-0123)

running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

     Running tests/semaphore.rs (target/debug/deps/semaphore-4567)

running 3 tests
test a ... ok
test b ... FAILED
Running (a test says so)
test c ... ignored

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 4 filtered out; finished in 1.25s

     Running tests/crash.rs (target/debug/deps/crash-89ab)

running 1 test
error: test failed, to rerun pass `-p lockkit-core --test crash`

   Doc-tests lockkit_core

running 2 tests
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.50s

running 1 test
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.25s
";

    #[test]
    fn a_run_is_read_section_by_section() {
        let sections = sections(RUN);
        let origins: Vec<_> = sections.iter().map(|section| &section.origin).collect();
        let binary = |name: &str| Origin::Binary(name.to_owned());
        assert_eq!(
            origins,
            [
                &binary("lockkit_core-0123"),
                &binary("semaphore-4567"),
                &binary("crash-89ab"),
                &Origin::Doc("lockkit_core".to_owned())
            ]
        );
        let counts = |section: &Section| {
            (
                section.announced,
                section.passed,
                section.failed,
                section.ignored,
            )
        };
        assert_eq!(counts(&sections[0]), (0, 0, 0, 0));
        assert_eq!(counts(&sections[1]), (3, 1, 1, 1));
        assert!((sections[1].seconds - 1.25).abs() < 1e-9);
    }

    #[test]
    fn a_binary_that_died_announced_more_than_it_ended() {
        let crashed = &sections(RUN)[2];
        assert_eq!((crashed.announced, crashed.passed + crashed.failed), (1, 0));
    }

    #[test]
    fn the_runs_of_one_crates_documentation_are_added_up() {
        let doc = &sections(RUN)[3];
        assert_eq!((doc.announced, doc.passed), (3, 3));
        assert!((doc.seconds - 0.75).abs() < 1e-9);
    }

    #[test]
    fn model_lines_are_found_whatever_their_names_hold() {
        let text = "model a: b, c: 469 executions, bound 2, complete\n\
                    test cancel ... model the model: 5918 executions, bound 3, complete\n\
                    model cut: 7 executions, bound 2, cut short\n\
                    model replayed: 1 executions from checkpoint x.json on, bound 2\n\
                    model broken: failed in execution 3, bound 2. To replay that execution:\n";
        let found: Vec<_> = models(text)
            .into_iter()
            .map(|model| (model.name, model.executions, model.complete))
            .collect();
        let expected = [
            ("a: b, c", 469, true),
            ("the model", 5918, true),
            ("cut", 7, false),
            ("replayed", 1, false),
        ];
        assert_eq!(
            found,
            expected.map(|(name, count, complete)| (name.to_owned(), count, complete))
        );
    }

    #[test]
    fn a_table_lines_up_numbers_to_the_right() {
        let rows = [
            vec!["a".to_owned(), "5".to_owned()],
            vec!["long".to_owned(), "1234".to_owned()],
        ];
        assert_eq!(
            table(&["x", "runs"], &rows),
            "x     runs\na        5\nlong  1234\n"
        );
    }
}
