//! Bad input is refused with a clear line, a plain exit code and no trace in the file system.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

fn workshop(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_workshop"))
        .args(args)
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

/// The first line of standard error, which is the only one unless it is about the options.
fn refusal(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty(), "{stderr}");
    for unwanted in ["panicked", "backtrace"] {
        assert!(!stderr.contains(unwanted), "{stderr}");
    }
    let first = stderr.lines().next().unwrap_or_default();
    assert!(first.starts_with("error: "), "{stderr}");
    assert!(code == 2 || stderr.lines().count() == 1, "{stderr}");
    first.to_owned()
}

#[test]
fn bad_options_are_refused_and_named() {
    for (args, named) in [
        (&["--workers", "0"][..], "'--workers <WORKERS>'"),
        (&["--workers", "65"], "'--workers <WORKERS>'"),
        (&["--workers", "many"], "'--workers <WORKERS>'"),
        (&["--tasks", "0"], "'--tasks <TASKS>'"),
        (&["--tasks", "-1"], "'-1'"),
        (&["--tasks", "1000001"], "'--tasks <TASKS>'"),
        (&["--seed", "x"], "'--seed <SEED>'"),
        (&["--durability", "none"], "'--durability <DURABILITY>'"),
        (&["--db"], "'--db <PATH>'"),
        (&["--db", ""], "'--db <PATH>'"),
        (&["--no-such-option"], "'--no-such-option'"),
        (&["surplus"], "'surplus'"),
        (&["--workers", "2"], "at least 3, or --no-nemesis"),
        (&["--tasks", "159"], "at least 160, or --no-nemesis"),
    ] {
        let refusal = refusal(&workshop(args), 2);
        assert!(refusal.contains(named), "{args:?}: {refusal}");
    }
}

/// All that is in a folder: names, contents, and when they were changed.
fn snapshot(folder: &Path) -> Vec<(String, Vec<u8>, std::time::SystemTime)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let content = fs::read(&path).unwrap_or_default();
            let changed = path.metadata().unwrap().modified().unwrap();
            (path.display().to_string(), content, changed)
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_bad_database_is_refused_and_left_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("folder")).unwrap();
    fs::write(path("text"), "this is no database, however long it may be").unwrap();
    fs::write(
        path("torn"),
        b"SQLite format 3\0 and then nothing that makes sense",
    )
    .unwrap();
    fs::write(path("read-only"), "").unwrap();
    fs::set_permissions(path("read-only"), Permissions::from_mode(0o444)).unwrap();

    for (db, problem) in [
        (path("folder"), "is a folder"),
        (path("text"), "is not a SQLite database"),
        (path("torn"), "is not a SQLite database"),
        (path("read-only"), "is read-only"),
        (path("missing/workshop.db"), "its folder cannot be used"),
        (path("text/workshop.db"), "its folder is not a folder"),
        (":memory:".to_owned(), "cannot be shared between processes"),
        (
            "file:x?mode=memory".to_owned(),
            "cannot be shared between processes",
        ),
    ] {
        let before = snapshot(folder.path());
        let refusal = refusal(&workshop(&["--db", &db]), 1);
        assert!(refusal.contains(problem), "{db}: {refusal}");
        assert!(refusal.contains(&db), "{db}: {refusal}");
        assert_eq!(snapshot(folder.path()), before, "{db}");
    }
}

#[cfg(not(feature = "postgres"))]
#[test]
fn a_server_is_refused_by_a_workshop_that_knows_only_files() {
    let refusal = refusal(&workshop(&["--db", "postgres://user@localhost/shop"]), 1);
    assert!(refusal.contains("--features postgres"), "{refusal}");
}

#[cfg(feature = "postgres")]
#[test]
fn a_bad_server_is_refused_without_its_password() {
    for (args, problem) in [
        (
            &["--db", "postgres://user:secret@localhost:none/shop"][..],
            "not the address",
        ),
        (
            &["--db", "postgres://user:secret@localhost:1/shop"],
            "database",
        ),
        (
            &[
                "--durability",
                "normal",
                "--db",
                "postgres://user:secret@localhost:1/shop",
            ],
            "--durability normal",
        ),
    ] {
        let refusal = refusal(&workshop(args), 1);
        assert!(refusal.contains(problem), "{refusal}");
        assert!(!refusal.contains("secret"), "{refusal}");
    }
}

#[test]
fn a_worker_process_tells_why_it_cannot_begin() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().to_str().unwrap();
    let rest = ["--name", "w", "--slots", "1", "--durability", "full"];
    let args = [&["worker", "--db", db, "--queue", "q"][..], &rest].concat();
    let refusal = refusal(&workshop(&args), 1);
    assert!(refusal.contains("is a folder"), "{refusal}");
}
