//! Small runs of the whole thing.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use lockkit_test::child::Command as Child;
use lockkit_test::postgres::Cluster;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// Only waited for when something is broken.
const SOON: Duration = Duration::from_mins(2);

/// What a run came to.
struct Outcome {
    id: u32,
    ok: bool,
    figures: Value,
    stderr: String,
}

/// Runs it.
async fn run(args: &[&str]) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("figures.json");
    let program = Command::new(env!("CARGO_BIN_EXE_sessions"))
        .arg("--json")
        .arg(&json)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let id = program.id().unwrap();
    let output = program.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let json = std::fs::read(&json).unwrap();
    let figures: Value = serde_json::from_slice(&json).unwrap_or_else(|_| panic!("{stderr}"));
    let ok = output.status.success();
    assert_eq!(figures["ok"], ok, "{stderr}");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(table.contains("FAILED"), !ok, "{table}");
    Outcome {
        id,
        ok,
        figures,
        stderr,
    }
}

/// Runs it, and it has to find that all is well.
async fn all_is_well(args: &[&str]) -> (u32, Value) {
    let Outcome {
        id,
        ok,
        figures,
        stderr,
    } = run(args).await;
    assert!(ok, "{stderr}\n{figures:#}");
    assert_eq!(figures["lost"], 0);
    assert_eq!(figures["unknown_kept"], 0, "{figures:#}");
    assert_eq!(figures["unknown_not_kept"], 0, "{figures:#}");
    (id, figures)
}

// Mutants: T41, T42, T43, T44
#[tokio::test]
async fn nothing_is_lost_though_the_database_crashes_and_an_instance_is_killed() {
    let (_, figures) = all_is_well(&["--clients", "30", "--seconds", "3", "--seed", "7"]).await;
    assert_eq!(figures["outage"]["crash"], true);
    assert_eq!(figures["outage"]["acknowledged"], 0);
    for at_least_one in [
        &figures["outage"]["unavailable"],
        &figures["kill"]["acknowledged_since"],
        &figures["queue"],
        &figures["backup"]["sessions"],
    ] {
        assert!(at_least_one.as_u64().unwrap() > 0, "{figures:#}");
    }
}

#[tokio::test]
async fn on_a_server_that_is_there_nothing_is_lost_and_nothing_is_left() {
    let database = Cluster::shared().database().await;
    let (id, figures) = all_is_well(&[
        "--db",
        &database.url(),
        "--clients",
        "30",
        "--seconds",
        "3",
        "--instances",
        "2",
    ])
    .await;
    assert_eq!(figures["outage"]["crash"], false);
    let left =
        sqlx::query_scalar("SELECT count(*) FROM pg_database WHERE starts_with(datname, $1)");
    let left = left
        .bind(format!("sessions_{id}_"))
        .fetch_one(&database.pool(1))
        .await;
    let left: i64 = left.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn in_peace_every_request_is_answered() {
    let (_, figures) = all_is_well(&[
        "--no-nemesis",
        "--clients",
        "30",
        "--seconds",
        "2",
        "--instances",
        "1",
    ])
    .await;
    assert_eq!(figures["outage"], Value::Null);
    assert_eq!(figures["kill"], Value::Null);
}

/// The checker has to be able to fail.
#[tokio::test]
async fn the_service_as_it_was_loses_messages_and_is_caught() {
    let Outcome {
        ok,
        figures,
        stderr,
        ..
    } = run(&[
        "--naive",
        "--no-nemesis",
        "--clients",
        "200",
        "--seconds",
        "3",
    ])
    .await;
    assert!(!ok, "{stderr}");
    assert!(figures["lost"].as_u64().unwrap() > 0, "{figures:#}");
    assert!(figures["queue_lost"].as_u64().unwrap() > 0, "{figures:#}");
    assert!(
        stderr.contains("NOT OK: no acknowledged append is lost"),
        "{stderr}"
    );
}

/// The arguments of all processes that have that text among them.
fn running(text: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let arguments = processes.map(|process| {
        let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).into_owned()
    });
    arguments
        .filter(|arguments| arguments.contains(text))
        .collect()
}

#[tokio::test]
async fn ctrl_c_ends_instances_and_server() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_sessions"))
        .args(["--clients", "10", "--seconds", "600"])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut says = BufReader::new(program.stderr.take().unwrap()).lines();
    // Then all of them run.
    let line = says.next_line().await.unwrap().unwrap();
    assert!(line.contains("10 clients"), "{line}");
    let id = program.id().unwrap();
    // Instances name their database, and with it the server's folder.
    let folder = running(&format!("sessions_{id}_"))
        .iter()
        .find_map(|arguments| {
            let name = "lockkit-postgres-";
            // In an address, most of what is no letter is encoded.
            let arguments = arguments.replace("%2D", "-");
            let at = arguments.find(name)?;
            Some(arguments[at..at + name.len() + 6].to_owned())
        });
    let folder = folder.unwrap();
    let interrupted = Command::new("sh")
        .args(["-c", &format!("kill -INT {id}")])
        .status();
    assert!(interrupted.await.unwrap().success());
    let status = tokio::time::timeout(SOON, program.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    let last = says.next_line().await.unwrap().unwrap();
    assert_eq!(last, "error: stopped by SIGINT");
    tokio::time::timeout(SOON, async {
        while !running(&folder).is_empty() || Path::new("/tmp").join(&folder).exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
}

/// Which `kill` to use is left to the shell, where it is built in.
#[tokio::test]
async fn an_instance_ends_well_by_sigterm_and_with_its_parent() {
    for terminate in [true, false] {
        let database = Cluster::shared().database().await;
        let mut instance = Child::new(env!("CARGO_BIN_EXE_sessions"))
            .args(["instance", "--child", "--db", &database.url()])
            .spawn()
            .unwrap();
        let line: Value = instance.next_line(SOON).await.unwrap();
        assert!(line["listening"].is_string(), "{line}");
        if terminate {
            let kill = format!("kill -TERM {}", instance.id().unwrap());
            assert!(
                Command::new("sh")
                    .args(["-c", &kill])
                    .status()
                    .await
                    .unwrap()
                    .success()
            );
        } else {
            instance.close_stdin();
        }
        assert!(instance.wait(SOON).await.unwrap().success());
    }
}
