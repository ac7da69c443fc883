//! Small runs of each command: nothing that has to be so is otherwise, and the page shows the figures of the JSON.

use std::fs;
use std::sync::LazyLock;

use lockkit_test::postgres::Cluster;
use serde_json::Value;

use crate::process::{lab, results};

/// The figures and the page of a run, which has to find that all is well.
fn run(args: &[&str]) -> (Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let results = results(folder.path());
    let output = lab(args).arg("--quick").args(&results).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}{error}");
    assert_eq!(
        error, "",
        "there is no terminal, so there is no progress to be seen"
    );
    let figures: Value = serde_json::from_slice(&fs::read(&results[3]).unwrap()).unwrap();
    let page = fs::read_to_string(&results[1]).unwrap();
    assert_eq!(figures["ok"], true);
    assert!(!figures["demands"].as_array().unwrap().is_empty());
    for demand in figures["demands"].as_array().unwrap() {
        assert!(
            told.contains(&format!("ok: {}", demand["what"].as_str().unwrap())),
            "{told}"
        );
    }
    (figures, page)
}

/// The run over SQLite files, of which there is one for all tests.
pub(crate) fn on_files() -> &'static (Value, String) {
    static RUN: LazyLock<(Value, String)> = LazyLock::new(|| run(&["sqlite", "--processes", "2"]));
    &RUN
}

fn sections(figures: &Value) -> Vec<&str> {
    let all = figures["sections"].as_array().unwrap();
    all.iter()
        .map(|section| section["id"].as_str().unwrap())
        .collect()
}

/// Each number of the JSON is in the page's table, at its place.
fn same(figures: &Value, page: &str) {
    for section in figures["sections"].as_array().unwrap() {
        let id = section["id"].as_str().unwrap();
        let begin = format!("<section id=\"{id}\">");
        let text = page
            .split(&begin)
            .nth(1)
            .unwrap_or_else(|| panic!("{id} is not in the page"));
        let text = text.split("</section>").next().unwrap();
        let body = text.split("<tbody>").nth(1).unwrap();
        let rows: Vec<Vec<&str>> = body
            .split("</tr>")
            .filter(|row| row.contains("<td"))
            .map(|row| row.split("<td").skip(1).collect())
            .collect();
        let expected = section["rows"].as_array().unwrap();
        assert_eq!(rows.len(), expected.len(), "{id}");
        assert!(!rows.is_empty(), "{id}");
        for (row, expected) in rows.iter().zip(expected) {
            let expected = expected.as_array().unwrap();
            assert_eq!(row.len(), expected.len(), "{id}: {row:?}");
            for (cell, expected) in row.iter().zip(expected) {
                let value = cell
                    .split("data-value=\"")
                    .nth(1)
                    .and_then(|rest| rest.split('"').next());
                match expected {
                    Value::Number(number) => {
                        let value: f64 = value
                            .unwrap_or_else(|| panic!("{id}: {cell}"))
                            .parse()
                            .unwrap();
                        assert!(
                            (value - number.as_f64().unwrap()).abs() < 1e-9,
                            "{id}: {cell}"
                        );
                    }
                    Value::String(text) => {
                        let shown = cell.split('>').nth(1).unwrap().split('<').next().unwrap();
                        let shown = shown
                            .replace("&gt;", ">")
                            .replace("&lt;", "<")
                            .replace("&quot;", "\"");
                        assert_eq!(shown.replace("&amp;", "&"), *text, "{id}");
                    }
                    other => panic!("{id}: {other}"),
                }
            }
        }
    }
    for unwanted in ["<script", "http://", "https://", "<link", "<img", "@import"] {
        // The one address is the name of a language.
        let page = page.replace("http://www.w3.org/2000/svg", "");
        assert!(
            !page.contains(unwanted),
            "the page needs nothing else: {unwanted}"
        );
    }
}

// Mutants: T45, T46
#[test]
fn one_file_shared_by_processes_loses_nothing_where_it_must_not() {
    let (figures, page) = on_files();
    same(figures, page);
    assert_eq!(
        sections(figures),
        [
            "busy",
            "lost-updates",
            "increments",
            "wait-histogram",
            "long-transaction",
            "journals",
            "killed",
            "load",
            "processes",
            "retries",
            "inventory",
            "payments",
            "sigterm",
        ]
    );
}

/// On a database of somebody else's, which is left as it was.
#[tokio::test]
async fn one_server_shared_by_processes_loses_nothing_and_is_left_as_it_was() {
    let database = Cluster::shared().database().await;
    let url = database.url();
    let run = move || run(&["postgres", "--processes", "2", "--db", &url]);
    let (figures, page) = tokio::task::spawn_blocking(run).await.unwrap();
    same(&figures, &page);
    assert_eq!(
        sections(&figures),
        [
            "postgres-increments",
            "isolation",
            "postgres-long-transaction",
            "pools",
            "pool-stats",
            "deadlock",
            "bulk-insert",
            "duplicates",
            "postgres-processes",
            "watching",
            "outage",
            "postgres-sigterm",
        ]
    );
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'lockkit%'";
    let left: i64 = lockkit_db::sqlx::query_scalar(schemas)
        .fetch_one(&mut database.connect().await)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[test]
fn both_databases_are_compared_on_a_throwaway_server() {
    let (figures, page) = run(&["compare", "--processes", "2"]);
    same(&figures, &page);
    assert_eq!(sections(&figures), ["compare"]);
    assert_eq!(figures["sections"][0]["rows"].as_array().unwrap().len(), 10);
}
