//! Bad input is refused with a clear line and a plain exit code.

use std::fs;
use std::net::TcpListener;

use lockkit_db::sqlx::ConnectOptions as _;
use lockkit_db::sqlx::{self, Executor as _};
use lockkit_test::postgres::{Cluster, Settings};

use crate::process::{lab, refusal};

fn refused(args: &[&str], code: i32) -> String {
    refusal(&lab(args).output().unwrap(), code)
}

#[test]
fn bad_options_are_refused_and_named() {
    for (args, named) in [
        (&["nothing"][..], "'nothing'"),
        (&["sqlite", "surplus"], "'surplus'"),
        (&["sqlite", "--no-such-option"], "'--no-such-option'"),
        (&["all", "--processes", "0"], "'--processes <PROCESSES>'"),
        (&["all", "--processes", "17"], "'--processes <PROCESSES>'"),
        (
            &["compare", "--processes", "many"],
            "'--processes <PROCESSES>'",
        ),
        (&["sqlite", "--db", "x"], "'--db'"),
        (&["postgres", "--db"], "'--db <URL>'"),
        (&["serve", "--db", "x"], "required arguments"),
        (&["serve", "--way", "none"], "'--way <WAY>'"),
        (
            &["serve", "--way", "locked", "--pool", "0"],
            "'--pool <POOL>'",
        ),
        (
            &["serve", "--way", "locked", "--listen", "here"],
            "'--listen <LISTEN>'",
        ),
        (
            &["serve", "--way", "locked", "--journal", "none"],
            "'--journal <JOURNAL>'",
        ),
    ] {
        let line = refused(args, 2);
        assert!(line.contains(named), "{args:?}: {line}");
    }
}

#[test]
fn results_that_cannot_be_written_are_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "").unwrap();
    let (html, nowhere, below_a_file) = (path("lab.html"), path("no/lab.html"), path("file/x"));
    for args in [
        &["--html", &nowhere][..],
        &["--html", &html, "--json", &nowhere],
        &["--html", &html, "--folder", &below_a_file],
        &["--html", &html, "--svg", &nowhere],
    ] {
        let line = refused(&[&["sqlite", "--quick"], args].concat(), 1);
        assert!(line.contains(args[args.len() - 1]), "{args:?}: {line}");
    }
}

#[test]
fn a_port_that_is_in_use_is_refused_by_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("lab.db");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = [
        "serve",
        "--way",
        "locked",
        "--listen",
        &address,
        "--db",
        db.to_str().unwrap(),
    ];
    let line = refused(&args, 1);
    assert!(
        line.contains(&format!("cannot listen at {address}")),
        "{line}"
    );
}

#[test]
fn an_app_process_tells_why_it_cannot_use_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("text"), "this is no database, however long it may be").unwrap();
    for (db, problem) in [
        (path("text"), "not a database"),
        (path("missing/lab.db"), "unable to open"),
        (path(""), "unable to open"),
        (":memory:".to_owned(), "cannot be shared"),
    ] {
        let line = refused(&["serve", "--way", "locked", "--db", &db], 1);
        assert!(line.contains(problem) && line.contains(&db), "{line}");
    }
    assert_eq!(fs::read_to_string(path("text")).unwrap().len(), 43);
    let line = refused(&["serve", "--way", "locked"], 1);
    assert!(line.contains("DATABASE_URL"), "{line}");
}

/// The password is in no message.
#[tokio::test]
async fn a_server_that_is_not_there_or_refuses_the_password_is_told_in_a_line() {
    let cluster = Cluster::start(&Settings::new()).unwrap();
    let database = cluster.database().await;
    let rules = cluster.folder().unwrap().join("data/pg_hba.conf");
    let old = fs::read_to_string(&rules).unwrap();
    fs::write(&rules, format!("local all stranger scram-sha-256\n{old}")).unwrap();
    let mut admin = database.connect().await;
    admin
        .execute("CREATE ROLE stranger LOGIN PASSWORD 'another'")
        .await
        .unwrap();
    sqlx::query("SELECT pg_reload_conf()")
        .execute(&mut admin)
        .await
        .unwrap();
    let stranger = database
        .options()
        .username("stranger")
        .password("very-secret")
        .to_url_lossy();

    let folder = tempfile::tempdir().unwrap();
    let html = folder.path().join("lab.html").to_str().unwrap().to_owned();
    for (url, problem) in [
        (stranger.as_str(), "password authentication failed"),
        ("postgres://user:very-secret@127.0.0.1:1/lab", "refused"),
        (
            "postgres://user:very-secret@127.0.0.1:none/lab",
            "not the address",
        ),
        ("very-secret", "not the address"),
    ] {
        for command in ["postgres", "compare", "all"] {
            let args = [command, "--quick", "--html", &html, "--db", url];
            let line = refused(&args, 1);
            assert!(line.contains(problem), "{url}: {line}");
            assert!(!line.contains("very-secret"), "{line}");
        }
    }
}
