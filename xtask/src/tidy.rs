//! `cargo xtask tidy`: the house rules as code. Each finding says what to do about it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::metadata::{Package, Workspace};
use crate::{Outcome, ci, needs, patch, run, verification};

/// The arrows between published crates; what is not here is not allowed.
const ARROWS: [(&str, &[&str]); 5] = [
    ("lockkit-core", &[]),
    ("lockkit-pool", &["lockkit-core"]),
    ("lockkit-redis", &["lockkit-core"]),
    (
        "lockkit-db",
        &["lockkit-core", "lockkit-pool", "lockkit-db-macros"],
    ),
    ("lockkit-db-macros", &[]),
];

/// A contents page is shorter than this, and so is a pattern that people are to read and copy.
const PAGE_LINES: usize = 120;
const ARCHITECTURE_LINES: usize = 160;

/// The cfg of the models.
const CFG: &str = "lockkit_loom";

/// Where the cfg is at home. Elsewhere in Rust code it may only choose a constant.
const CFG_HOMES: [&str; 5] = [
    "lockkit-core/src/sync.rs",
    "lockkit-core/src/model/",
    "/tests/loom/",
    "examples/checked/tests/",
    "xtask/",
];

/// What is not left lying around in Rust code.
const LEFTOVERS: [(&str, &str); 5] = [
    ("#[ignore", "let the test run, or remove it"),
    ("todo!(", "do it, or return a typed error"),
    ("unimplemented!(", "do it, or return a typed error"),
    ("dbg!(", "remove it"),
    (
        "```ignore",
        "let the example run, or use `no_run` or `text`",
    ),
];

/// Folders that only one machine has.
const MACHINE_PATHS: [&str; 4] = ["/home/", "/root/", "/work/", "/Users/"];

/// Words in the name of a host through which one place gets its crates.
const PRIVATE_HOSTS: [&str; 6] = [
    "registry",
    "artifactory",
    "nexus",
    "mirror",
    "proxy",
    ".internal",
];

/// The one source of crates that a lock file may name.
const CRATES: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// This file, which has to name what it forbids.
const OWN: &str = "xtask/src/tidy.rs";

pub(crate) fn run() -> Result<Outcome> {
    needs::programs("tidy", false)?;
    let workspace = Workspace::load()?;
    let files = files(&workspace.root)?;
    let mut problems = Vec::new();
    for package in &workspace.packages {
        arrows(package, &workspace, &mut problems);
        manifest(package, &workspace, &mut problems);
    }
    for file in &files {
        names(&file.name, &mut problems);
        lengths(file, &mut problems);
        places(file, &mut problems);
        scripts(file, &mut problems);
        if file.is("rs") && file.name != OWN {
            leftovers(file, &mut problems);
            cfg(file, &mut problems);
        }
    }
    mutants(&workspace.root, &files, &mut problems)?;
    verification::check(&workspace.root, &mut problems)?;
    papers(&files, &mut problems);
    Ok(Outcome::of(
        "tidy",
        &problems,
        &format!("{} files are in order", files.len()),
    ))
}

/// A text file that is tracked, or not ignored.
struct Text {
    /// From the workspace's root.
    name: String,
    content: String,
}

impl Text {
    fn is(&self, extension: &str) -> bool {
        Path::new(&self.name)
            .extension()
            .is_some_and(|own| own == extension)
    }
}

fn files(root: &Path) -> Result<Vec<Text>> {
    let listed = run::stdout_of(run::git(root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let read = |name: &str| {
        // Neither a deleted file nor a binary one is a text.
        let content = String::from_utf8(fs::read(root.join(name)).ok()?).ok()?;
        Some(Text {
            name: name.to_owned(),
            content,
        })
    };
    let names: BTreeSet<_> = listed.split_terminator('\0').collect();
    Ok(names.into_iter().filter_map(read).collect())
}

/// Dependencies between crates go one way, and nobody who uses a published crate gets test tools.
fn arrows(package: &Package, workspace: &Workspace, problems: &mut Vec<String>) {
    let name = &package.name;
    for dependency in package
        .dependencies
        .iter()
        .filter(|dependency| dependency.local)
    {
        let to = &dependency.name;
        let test_only = workspace.package(to).is_none_or(|target| !target.public);
        if dependency.dev {
            if package.public && test_only && dependency.version != "*" {
                problems.push(format!(
                    "{name}: drop the version of {to}, which is never published"
                ));
            }
            continue;
        }
        if !package.public {
            continue;
        }
        let allowed = ARROWS
            .iter()
            .find(|(from, _)| from == name)
            .map(|(_, to)| *to);
        match allowed {
            None => {
                problems.push(format!(
                    "{name}: a new published crate; give it a line in ARROWS of {OWN}"
                ));
                break;
            }
            Some(allowed) if !allowed.contains(&to.as_str()) => {
                problems.push(format!(
                    "{name}: depends on {to}, against the arrows; move what they share into lockkit-core"
                ));
            }
            Some(_) => {}
        }
    }
}

/// Shared settings come from the root, and features start at none.
fn manifest(package: &Package, workspace: &Workspace, problems: &mut Vec<String>) {
    let file = package.dir.join("Cargo.toml");
    let text = fs::read_to_string(workspace.root.join(&file)).unwrap_or_default();
    let file = file.display();
    for line in [
        "license.workspace = true",
        "rust-version.workspace = true",
        "edition.workspace = true",
    ] {
        if !text.lines().any(|has| has == line) {
            problems.push(format!("{file}: write `{line}`"));
        }
    }
    if !text.contains("[lints]\nworkspace = true\n") {
        problems.push(format!("{file}: write `[lints]` with `workspace = true`"));
    }
    if package.public && !package.default_features.is_empty() {
        let on = package.default_features.join(", ");
        problems.push(format!(
            "{file}: default turns on {on}; features of published crates start at none"
        ));
    }
}

fn names(name: &str, problems: &mut Vec<String>) {
    let file = name.rsplit('/').next().unwrap_or(name);
    if ["common.rs", "utils.rs", "util.rs", "helpers.rs"].contains(&file) {
        problems.push(format!("{name}: name it after the idea in it"));
    }
}

fn lengths(file: &Text, problems: &mut Vec<String>) {
    let limit = match file.name.as_str() {
        "ARCHITECTURE.md" => ARCHITECTURE_LINES,
        name if name.ends_with("src/lib.rs") => PAGE_LINES,
        name if name.starts_with("examples/patterns/src/bin/") => PAGE_LINES,
        _ => return,
    };
    let lines = file.content.lines().count();
    if lines >= limit {
        problems.push(format!(
            "{}: {lines} lines; keep it under {limit}, what is more has a better place",
            file.name
        ));
    }
}

/// No text tells about the machine or the network on which it was written.
fn places(file: &Text, problems: &mut Vec<String>) {
    if file.name == OWN {
        return;
    }
    if file.name.ends_with("Cargo.lock") {
        let sources = file
            .content
            .lines()
            .filter_map(|line| line.strip_prefix("source = "));
        for source in sources.filter(|source| source.trim_matches('"') != CRATES) {
            problems.push(format!(
                "{}: gets a crate from {source}; crates come from crates.io",
                file.name
            ));
        }
        return;
    }
    for (number, line) in numbered(&file.content) {
        for path in MACHINE_PATHS {
            // With a letter before it, it is a part of some other path.
            let alone = |at: usize| {
                !line[..at].ends_with(|before: char| {
                    before.is_alphanumeric() || matches!(before, '.' | '_' | '-' | '}')
                })
            };
            if line.match_indices(path).any(|(at, _)| alone(at)) {
                problems.push(format!(
                    "{}:{number}: `{path}` is a folder of one machine; use a relative path",
                    file.name
                ));
            }
        }
        for (at, _) in line.match_indices("://") {
            let host = line[at + 3..]
                .split(['/', '"', ')', '>', ' '])
                .next()
                .unwrap_or_default();
            if PRIVATE_HOSTS.iter().any(|word| host.contains(word)) {
                problems.push(format!(
                    "{}:{number}: the host `{host}` is one place's way to crates; remove it",
                    file.name
                ));
            }
        }
    }
}

/// A statement or script says what it takes, what it returns and what it costs.
fn scripts(file: &Text, problems: &mut Vec<String>) {
    if (file.is("sql") || file.is("lua")) && !file.content.starts_with("--") {
        problems.push(format!(
            "{}: start it with a comment: what it takes, returns and costs",
            file.name
        ));
    }
}

fn leftovers(file: &Text, problems: &mut Vec<String>) {
    for (number, line) in numbered(&file.content) {
        for (leftover, advice) in LEFTOVERS {
            // In a comment they are only spoken of, but for the fence, which stands in comments.
            let spoken_of = is_comment(line) && !leftover.starts_with('`');
            if line.contains(leftover) && !spoken_of {
                problems.push(format!("{}:{number}: `{leftover}`: {advice}", file.name));
            }
        }
    }
}

/// Code that differs under the model checker is code that was not checked.
fn cfg(file: &Text, problems: &mut Vec<String>) {
    if CFG_HOMES.iter().any(|home| file.name.contains(home)) {
        return;
    }
    let lines: Vec<_> = file.content.lines().map(str::trim).collect();
    for (index, line) in lines.iter().enumerate() {
        if !line.contains(CFG) || is_comment(line) {
            continue;
        }
        let next = lines.get(index + 1).copied().unwrap_or_default();
        let constant =
            line.contains("const ") || (line.starts_with("#[cfg(") && next.contains("const "));
        // The module of the models is itself only there under the cfg.
        let model = file.name == "lockkit-core/src/lib.rs" && next.ends_with("mod model;");
        if !constant && !model {
            problems.push(format!(
                "{}:{}: `{CFG}` may only choose a constant here; what differs goes into lockkit-core/src/sync.rs",
                file.name,
                index + 1
            ));
        }
    }
}

/// Every mutant can be read, applies, and is named where it is caught.
fn mutants(root: &Path, files: &[Text], problems: &mut Vec<String>) -> Result<()> {
    let mut ids = BTreeSet::new();
    for patch in patch::all(root)? {
        let patch = match patch {
            Ok(patch) => patch,
            Err(error) => {
                problems.push(format!("{error:#}"));
                continue;
            }
        };
        let (id, name) = (&patch.id, patch.file.display());
        if !ids.insert(id.clone()) {
            problems.push(format!("{name}: {id} is taken; give it another ID"));
        }
        let mut apply = run::git(root);
        apply
            .args(["apply", "--check", "--whitespace=nowarn"])
            .arg(&patch.file);
        if !apply.status().is_ok_and(|status| status.success()) {
            problems.push(format!(
                "{name}: does not apply; make it anew from the code as it is"
            ));
        }
        let sources = files
            .iter()
            .filter(|file| file.is("rs") && !file.name.starts_with("xtask/"));
        if !sources
            .flat_map(|file| file.content.lines())
            .any(|line| names_mutant(line, id))
        {
            problems.push(format!(
                "{name}: write `Mutant: {id}` in a comment at the test that catches it"
            ));
        }
    }
    Ok(())
}

/// Whether a comment names a mutant: `Mutant: E1`, `Mutants: E1, E2`, or `Mutant E1: what it breaks`.
fn names_mutant(line: &str, id: &str) -> bool {
    let apart = |c: char| !(c.is_alphanumeric() || c == '_' || c == '-');
    let mut words = line.split(apart);
    is_comment(line)
        && words.any(|word| matches!(word, "Mutant" | "Mutants"))
        && words.any(|word| word == id)
}

/// The papers of the house are there, and CI runs what we run.
fn papers(files: &[Text], problems: &mut Vec<String>) {
    let find = |name: &str| files.iter().find(|file| file.name == name);
    for paper in [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        ".ci/run",
    ] {
        if find(paper).is_none() {
            problems.push(format!("{paper}: there is none; write it"));
        }
    }
    let workflow = ".github/workflows/ci.yml";
    let text = find(workflow).map_or("", |file| file.content.as_str());
    let jobs = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("verb: "))
        .unwrap_or_default();
    for verb in ci::VERBS.into_iter().chain(["loom"]) {
        if !jobs.split(['[', ']', ',', ' ']).any(|job| job == verb) {
            problems.push(format!("{workflow}: add `{verb}` to the list of verbs"));
        }
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    /// What a check finds in a file with this name and content.
    fn found(check: fn(&Text, &mut Vec<String>), name: &str, content: &str) -> usize {
        let mut problems = Vec::new();
        let file = Text {
            name: name.to_owned(),
            content: content.to_owned(),
        };
        check(&file, &mut problems);
        problems.len()
    }

    #[test]
    fn the_cfg_may_choose_constants_only() {
        let file = "lockkit-pool/src/pool.rs";
        assert_eq!(
            found(
                cfg,
                file,
                "const BATCH: usize = if cfg!(lockkit_loom) { 2 } else { 64 };"
            ),
            0
        );
        assert_eq!(
            found(
                cfg,
                file,
                "#[cfg(lockkit_loom)]\npub(crate) const BATCH: usize = 2;"
            ),
            0
        );
        assert_eq!(found(cfg, file, "// lockkit_loom is for models"), 0);
        assert_eq!(
            found(cfg, file, "#[cfg(not(lockkit_loom))]\nuse tokio::spawn;"),
            1
        );
        assert_eq!(found(cfg, file, "if cfg!(lockkit_loom) {"), 1);
        assert_eq!(
            found(
                cfg,
                "lockkit-core/src/sync.rs",
                "#[cfg(lockkit_loom)]\nuse loom;"
            ),
            0
        );
        assert_eq!(
            found(
                cfg,
                "lockkit-pool/tests/loom/main.rs",
                "#![cfg(lockkit_loom)]"
            ),
            0
        );
        assert_eq!(
            found(
                cfg,
                "lockkit-core/src/lib.rs",
                "#[cfg(lockkit_loom)]\npub mod model;"
            ),
            0
        );
        assert_eq!(
            found(
                cfg,
                "lockkit-core/src/lib.rs",
                "#[cfg(lockkit_loom)]\npub mod other;"
            ),
            1
        );
    }

    #[test]
    fn leftovers_are_found_in_code_and_not_in_prose() {
        assert_eq!(
            found(leftovers, "x.rs", "    todo!()\n    // todo!() was here\n"),
            1
        );
        assert_eq!(
            found(leftovers, "x.rs", "#[ignore]\n#[ignore = \"slow\"]\n"),
            2
        );
        assert_eq!(found(leftovers, "x.rs", "/// ```ignore\n"), 1);
    }

    #[test]
    fn machine_paths_and_private_hosts_are_found() {
        assert_eq!(found(places, "x.md", "see /work/x and (/home/me)"), 2);
        assert_eq!(
            found(
                places,
                "x.md",
                "examples/work/x, https://host/home/x, ~/root/"
            ),
            1
        );
        assert_eq!(
            found(
                places,
                "x.toml",
                "index = \"https://registry.example.org/x\""
            ),
            1
        );
        assert_eq!(
            found(places, "x.md", "[redis](https://docs.rs/redis/registry)"),
            0
        );
        assert_eq!(
            found(places, "Cargo.lock", &format!("source = \"{CRATES}\"\n")),
            0
        );
        assert_eq!(
            found(
                places,
                "Cargo.lock",
                "source = \"registry+https://crates.example.org\"\n"
            ),
            1
        );
    }

    #[test]
    fn a_script_starts_with_a_comment() {
        assert_eq!(found(scripts, "a.sql", "-- Takes nothing.\nSELECT 1;"), 0);
        assert_eq!(found(scripts, "a.lua", "return 1"), 1);
    }

    #[test]
    fn a_contents_page_and_a_pattern_stay_short() {
        assert_eq!(found(lengths, "a/src/lib.rs", &"x\n".repeat(119)), 0);
        assert_eq!(found(lengths, "a/src/lib.rs", &"x\n".repeat(120)), 1);
        assert_eq!(found(lengths, "a/src/other.rs", &"x\n".repeat(500)), 0);
        let pattern = "examples/patterns/src/bin/one.rs";
        assert_eq!(found(lengths, pattern, &"x\n".repeat(120)), 1);
    }

    #[test]
    fn a_mutant_is_named_by_a_comment_with_the_whole_id() {
        assert!(names_mutant("    // Mutant: E1 (permit lost)", "E1"));
        assert!(names_mutant("/// Mutants: E1, E2", "E2"));
        assert!(names_mutant("// Mutant Q1: a batch is forgotten.", "Q1"));
        assert!(!names_mutant("// Mutant: E11", "E1"));
        assert!(!names_mutant("// E1 is no Mutant", "E1"));
        assert!(!names_mutant("let x = \"Mutant: E1\";", "E1"));
    }

    #[test]
    fn arrows_go_one_way() {
        let package = |name: &str, public| Package {
            name: name.to_owned(),
            dir: name.into(),
            public,
            dependencies: Vec::new(),
            features: Vec::new(),
            default_features: Vec::new(),
            has_lib: true,
            loom: None,
        };
        let workspace = Workspace {
            root: "r".into(),
            target: "t".into(),
            packages: vec![
                package("lockkit-core", true),
                package("lockkit-test", false),
            ],
        };
        let problems = |from: &str, to: &str, dev, version: &str| {
            let mut package = package(from, true);
            package.dependencies.push(Dependency {
                name: to.to_owned(),
                dev,
                local: true,
                version: version.to_owned(),
            });
            let mut problems = Vec::new();
            arrows(&package, &workspace, &mut problems);
            problems.len()
        };
        assert_eq!(problems("lockkit-pool", "lockkit-core", false, "^0.1"), 0);
        assert_eq!(problems("lockkit-core", "lockkit-pool", false, "^0.1"), 1);
        assert_eq!(problems("lockkit-redis", "lockkit-db", false, "^0.1"), 1);
        assert_eq!(problems("lockkit-pool", "lockkit-test", false, "*"), 1);
        assert_eq!(problems("lockkit-pool", "lockkit-test", true, "*"), 0);
        assert_eq!(problems("lockkit-pool", "lockkit-test", true, "^0.1"), 1);
        assert_eq!(problems("lockkit-new", "lockkit-core", false, "^0.1"), 1);
    }
}
