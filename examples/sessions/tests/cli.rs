//! Bad input is refused with a clear line and a plain exit code.

use std::net::TcpListener;
use std::process::{Command, Output};

use lockkit_test::postgres::Cluster;

fn sessions(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sessions"))
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
    for unwanted in ["panicked", "backtrace", "secret"] {
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
        (&["--clients", "0"][..], "'--clients <CLIENTS>'"),
        (&["--clients", "10001"], "'--clients <CLIENTS>'"),
        (&["--instances", "0"], "'--instances <INSTANCES>'"),
        (&["--instances", "17"], "'--instances <INSTANCES>'"),
        (&["--seconds", "0"], "'--seconds <SECONDS>'"),
        (&["--seconds", "-1"], "'-1'"),
        (&["--seed", "x"], "'--seed <SEED>'"),
        (&["--db"], "'--db <ADDRESS>'"),
        (&["--no-such-option"], "'--no-such-option'"),
        (&["surplus"], "'surplus'"),
        (&["--instances", "1"], "at least 2, or --no-nemesis"),
        (&["instance"], "the following required arguments"),
        (
            &["instance", "--db", "x", "--listen", "nowhere"],
            "'--listen <ADDRESS>'",
        ),
        (
            &["instance", "--db", "x", "--idle", "0"],
            "'--idle <SECONDS>'",
        ),
        (&["backup", "--db", "x"], "the following required arguments"),
    ] {
        let refusal = refusal(&sessions(args), 2);
        assert!(refusal.contains(named), "{args:?}: {refusal}");
    }
}

#[test]
fn a_bad_database_is_refused_without_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup");
    let file = file.to_str().unwrap();
    for (args, problem) in [
        (&["--db", "sessions.db"][..], "not the address"),
        (
            &["--db", "postgres://user:secret@localhost:none/app"],
            "not the address",
        ),
        (
            &["--db", "postgres://user:secret@localhost:1/app"],
            "no database can be made",
        ),
        (
            &["instance", "--db", "mysql://user:secret@localhost/app"],
            "not the address",
        ),
        (
            &["instance", "--db", "postgres://user:secret@localhost:1/app"],
            "cannot be used",
        ),
        (
            &[
                "backup",
                "--db",
                "postgres://user:secret@localhost:1/app",
                file,
            ],
            "cannot be used",
        ),
        (
            &[
                "backup",
                "--db",
                "postgres://user:secret@localhost:1/app",
                "/nowhere/file",
            ],
            "cannot be written",
        ),
        (
            &[
                "restore",
                "--db",
                "postgres://user:secret@localhost:1/app",
                "/nowhere/file",
            ],
            "cannot be read",
        ),
        (&["--json", "/nowhere/file"], "cannot be written"),
    ] {
        let refusal = refusal(&sessions(args), 1);
        assert!(refusal.contains(problem), "{args:?}: {refusal}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_port_that_is_in_use_is_refused_and_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = [
        "instance",
        "--db",
        "postgres://user@localhost:1/app",
        "--listen",
        &address,
    ];
    let refusal = refusal(&sessions(&args), 1);
    assert!(
        refusal.contains(&format!("cannot listen on {address}")),
        "{refusal}"
    );
}

#[tokio::test]
async fn a_backup_that_is_none_or_torn_restores_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let whole = concat!(
        r#"{"backup":{"format":1}}"#,
        "\n",
        r#"{"switch":{"name":"auto_reply","is_on":true,"version":1}}"#,
        "\n",
        r#"{"end":{"sessions":0,"manual_replies":0,"switches":1}}"#,
        "\n"
    );
    let lines: Vec<_> = whole.lines().collect();
    for (content, problem) in [
        (String::new(), "is no backup"),
        ("hello\n".to_owned(), "damaged"),
        (lines[2].to_owned(), "is no backup"),
        (
            lines[0].replace("\"format\":1", "\"format\":2"),
            "is no backup",
        ),
        (lines[..2].join("\n"), "ends too early"),
        ([lines[0], lines[2]].join("\n"), "other counts"),
        ([lines[0], lines[0]].join("\n"), "two backups"),
        (whole[..whole.len() - 9].to_owned(), "damaged"),
    ] {
        let database = Cluster::shared().database().await;
        let file = folder.path().join("backup");
        std::fs::write(&file, &content).unwrap();
        let (url, file) = (database.url(), file.to_str().unwrap().to_owned());
        let restore = move || sessions(&["restore", "--db", &url, &file]);
        let refusal = refusal(&tokio::task::spawn_blocking(restore).await.unwrap(), 1);
        assert!(refusal.contains(problem), "{content}: {refusal}");
        let tables = "SELECT count(*) FROM pg_class WHERE relname = 'switches'";
        let tables: i64 = sqlx::query_scalar(tables)
            .fetch_one(&database.pool(1))
            .await
            .unwrap();
        assert_eq!(tables, 0, "{content}");
    }
    let database = Cluster::shared().database().await;
    let file = folder.path().join("backup");
    std::fs::write(&file, whole).unwrap();
    let (url, file) = (database.url(), file.to_str().unwrap().to_owned());
    let restore = move || {
        let restored = sessions(&["restore", "--db", &url, &file]);
        assert!(restored.status.success(), "{restored:?}");
        // Over what is there, nothing is restored.
        let refusal = refusal(&sessions(&["restore", "--db", &url, &file]), 1);
        assert!(refusal.contains("not an empty one"), "{refusal}");
    };
    tokio::task::spawn_blocking(restore).await.unwrap();
}
