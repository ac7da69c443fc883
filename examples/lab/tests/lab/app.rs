//! One app process alone: bad requests, its metrics, its end.

use lockkit_test::child::{Child, Command};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::process::{SOON, signal};

/// An app process on a new file.
struct App {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl App {
    async fn start(way: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let db = folder.path().join("app.db");
        let mut child = Command::new(env!("CARGO_BIN_EXE_lab"))
            .args(["serve", "--way", way, "--db", db.to_str().unwrap()])
            .spawn()
            .unwrap();
        let line: Value = child.next_line(SOON).await.unwrap();
        let address = line["listening"].as_str().unwrap().to_owned();
        Self {
            child,
            address,
            _folder: folder,
        }
    }

    /// The status and the body of an answer to a request as it stands.
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, body.to_owned())
    }

    async fn increment(&self, key: &str) -> (u16, String) {
        let body = json!({ "key": key, "by": 1 });
        self.ask("POST", "/api/increment", &body.to_string()).await
    }
}

#[tokio::test]
async fn bad_requests_are_refused_and_do_no_harm() {
    let app = App::start("locked").await;
    let long = "x".repeat(65);
    for (path, body, expected) in [
        ("/api/increment", "{".to_owned(), 400),
        ("/api/increment", json!({ "key": "k" }).to_string(), 422),
        (
            "/api/increment",
            json!({ "key": "k", "by": "one" }).to_string(),
            422,
        ),
        (
            "/api/increment",
            json!({ "key": "k", "by": 1, "x": 1 }).to_string(),
            422,
        ),
        (
            "/api/increment",
            json!({ "key": "", "by": 1 }).to_string(),
            400,
        ),
        (
            "/api/increment",
            json!({ "key": long, "by": 1 }).to_string(),
            400,
        ),
        (
            "/api/increment",
            json!({ "key": "\0", "by": 1 }).to_string(),
            400,
        ),
        (
            "/api/increment",
            json!({ "key": "k", "by": 1, "think_ms": 30_001 }).to_string(),
            400,
        ),
        (
            "/api/increment",
            json!({ "key": "k", "by": 1, "think_ms": -1 }).to_string(),
            422,
        ),
        (
            "/api/write",
            json!({ "key": "k", "think_ms": u64::MAX }).to_string(),
            400,
        ),
        (
            "/api/bulk-insert",
            json!({ "key": "k", "rows": 1 }).to_string(),
            404,
        ),
        ("/api/nothing", String::new(), 404),
        ("/health", String::new(), 405),
    ] {
        let (status, said) = app.ask("POST", path, &body).await;
        assert_eq!(status, expected, "{path} {body}: {said}");
    }
    assert_eq!(
        app.increment("k").await,
        (200, r#"{"value":1,"attempts":1}"#.to_owned())
    );
}

#[tokio::test]
async fn a_number_that_no_counter_can_hold_is_refused_or_an_error_and_never_an_end() {
    let app = App::start("locked").await;
    let most = json!({ "key": "k", "by": i64::MAX }).to_string();
    assert_eq!(app.ask("POST", "/api/increment", &most).await.0, 200);
    let (status, said) = app.ask("POST", "/api/increment", &most).await;
    assert_eq!(status, 400, "{said}");
    assert_eq!(app.increment("another").await.0, 200);
}

#[tokio::test]
async fn the_same_note_twice_is_a_conflict_in_every_way() {
    for way in ["autocommit", "patient", "deferred", "locked", "optimistic"] {
        let app = App::start(way).await;
        let note = json!({ "key": "once" }).to_string();
        assert_eq!(app.ask("POST", "/api/write", &note).await.0, 200, "{way}");
        let (status, said) = app.ask("POST", "/api/write", &note).await;
        assert_eq!(status, 409, "{way}: {said}");
    }
}

/// Each line is a comment, or a name, perhaps labels, and a number.
#[tokio::test]
async fn the_metrics_are_in_the_format_of_prometheus() {
    let app = App::start("locked").await;
    app.increment("k").await;
    let (status, text) = app.ask("GET", "/metrics", "").await;
    assert_eq!(status, 200);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, number) = line.rsplit_once(' ').unwrap();
        assert!(number.parse::<f64>().is_ok(), "{line}");
        assert!(name.starts_with("lab_"), "{line}");
    }
    let counted = r#"lab_requests_total{path="/api/increment",status="200"} 1"#;
    assert!(text.lines().any(|line| line == counted), "{text}");
    for needed in [
        "# TYPE lab_request_seconds histogram",
        "lab_waiting 0",
        "lab_thinking 0",
    ] {
        assert!(text.lines().any(|line| line == needed), "{needed}: {text}");
    }
    let (_, pool) = app.ask("GET", "/api/pool-stats", "").await;
    let pool: Value = serde_json::from_str(&pool).unwrap();
    assert_eq!(pool["waiting"], 0);
    // The one that was used goes back in its own time.
    assert!(pool["total"].as_u64() >= pool["idle"].as_u64(), "{pool}");
    assert_eq!(app.ask("GET", "/health", "").await, (200, "ok".to_owned()));
}

#[tokio::test]
async fn either_signal_ends_it_well() {
    for asked in [Signal::TERM, Signal::INT] {
        let mut app = App::start("locked").await;
        app.increment("k").await;
        signal(app.child.id().unwrap(), asked);
        assert!(app.child.wait(SOON).await.unwrap().success());
    }
}
