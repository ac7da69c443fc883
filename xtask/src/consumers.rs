//! `cargo xtask consumers`: each pattern is used as its users use it, by a crate with nothing but the dependency, and brings
//! no more than it says.
//!
//! The crates are written into the target folder: a workspace of their own, with the versions of `Cargo.lock`. Each of them is
//! checked by itself, since features of neighbours would add up.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::metadata::Workspace;
use crate::{Outcome, run};

/// A user of one pattern.
struct Consumer {
    name: &'static str,
    /// His only dependency, which is the name of its folder too.
    package: &'static str,
    /// What the pattern needs of it.
    features: &'static [&'static str],
    /// What he gets by it, lest the next list be empty talk.
    gets: &'static [&'static str],
    /// What he must not get: nobody pays for a database or a runtime that he does not use.
    spared: &'static [&'static str],
    /// The body of an async function.
    body: &'static str,
}

const CONSUMERS: [Consumer; 9] = [
    Consumer {
        name: "semaphore",
        package: "lockkit-core",
        features: &[],
        gets: &["parking_lot"],
        spared: &["tokio", "tracing", "sqlx-core", "redis", "loom"],
        body: "let slots = lockkit_core::Semaphore::new(2)?;
    let slot = slots.acquire().await?;
    drop(slot);",
    },
    Consumer {
        name: "single-flight",
        package: "lockkit-core",
        features: &[],
        gets: &["hashbrown"],
        spared: &["tokio", "tracing", "sqlx-core", "redis", "loom"],
        body: r#"let flights = lockkit_core::SingleFlight::new();
    let answer: u32 = flights.run("key", || async { 42 }).await?;
    println!("{answer}");"#,
    },
    Consumer {
        name: "retry",
        package: "lockkit-core",
        features: &["tokio"],
        gets: &["tokio"],
        spared: &["mio", "tracing", "sqlx-core", "redis", "loom"],
        body: "use lockkit_core::retry::{Policy, Verdict, retry};
    let fetch = || async { Err::<(), _>(Verdict::Again(std::fmt::Error)) };
    retry(Policy::default(), fetch).await?;",
    },
    Consumer {
        name: "worker-pool",
        package: "lockkit-pool",
        features: &[],
        gets: &["tokio"],
        spared: &["mio", "tracing", "sqlx-core", "redis", "loom"],
        body: r#"let pool = lockkit_pool::WorkerPool::new(4)?;
    let task = pool.spawn(async { 6 * 7 }).await.map_err(|full| full.reason)?;
    println!("{:?}", task.await.done());
    pool.drain(std::time::Duration::from_secs(30)).await?;"#,
    },
    Consumer {
        name: "optimistic-sqlite",
        package: "lockkit-db",
        features: &["derive", "sqlite"],
        gets: &["sqlx-sqlite", "lockkit-db-macros"],
        spared: &["sqlx-postgres", "redis", "lockkit-pool", "loom"],
        body: r#"use lockkit_db::Versioned;
    #[derive(Clone, Versioned)]
    #[versioned(table = "report")]
    struct Report {
        #[versioned(key)]
        week: i64,
        entries: i64,
        #[versioned(version)]
        version: i64,
    }
    let pool = lockkit_db::sqlx::SqlitePool::connect("reports.db").await?;
    let add = |report: &Report| Report { entries: report.entries + 1, ..report.clone() };
    lockkit_db::optimistic(&pool, Report::table(), 7).apply(add).run().await?;"#,
    },
    Consumer {
        name: "pessimistic-postgres",
        package: "lockkit-db",
        features: &["postgres"],
        gets: &["sqlx-postgres"],
        spared: &[
            "sqlx-sqlite",
            "libsqlite3-sys",
            "redis",
            "lockkit-pool",
            "loom",
        ],
        body: r#"let pool = lockkit_db::sqlx::PgPool::connect("postgres://localhost/reports").await?;
    let reports = lockkit_db::pessimistic::RowLock::on("report", "week").columns(["status"]);
    let status = lockkit_db::retry_tx!(&pool, |tx| {
        let rows = reports.lock::<_, _, (String,)>(&mut tx, &[7_i64]).await?.all()?;
        Ok::<_, lockkit_db::Error>(rows[0].0.clone())
    })?;
    println!("{status}");"#,
    },
    Consumer {
        name: "queue-sqlite",
        package: "lockkit-db",
        features: &["queue", "sqlite"],
        gets: &["sqlx-sqlite", "lockkit-pool"],
        spared: &["sqlx-postgres", "redis", "metrics", "loom"],
        body: r#"use lockkit_db::queue::{Completion, Job, JobStore, NewJob, SqliteStore, Worker};
    let store = std::sync::Arc::new(SqliteStore::open("jobs.db").await?);
    store.enqueue("mail", &[NewJob::new("welcome", b"ada".to_vec())]).await?;
    let worker = Worker::builder(store, async |job: Job| {
        println!("{}", job.payload.len());
        Ok(Completion::Done)
    });
    let worker = worker.queue("mail").slots(16).build()?;
    worker.run(std::future::pending::<()>()).await;"#,
    },
    Consumer {
        name: "lease-postgres",
        package: "lockkit-db",
        features: &["lease", "postgres"],
        gets: &["sqlx-postgres"],
        spared: &[
            "sqlx-sqlite",
            "libsqlite3-sys",
            "redis",
            "lockkit-pool",
            "loom",
        ],
        body: r#"use lockkit_db::lease::{PostgresLocks, PostgresStore};
    let store = PostgresStore::open("postgres://localhost/locks").await?;
    let guard = PostgresLocks::new(store)?.lock("invoice/7").acquire().await?;
    println!("{}", guard.fence());
    let _ = guard.release().await;"#,
    },
    Consumer {
        name: "redis-lock",
        package: "lockkit-redis",
        features: &[],
        gets: &["redis", "tokio"],
        spared: &["sqlx-core", "lockkit-db", "lockkit-pool", "loom"],
        body: r#"use lockkit_redis::{RedisLocks, RedisStore, redis};
    let client = redis::Client::open("redis://127.0.0.1/")?;
    let locks = RedisLocks::new(RedisStore::new(client))?;
    let guard = locks.lock("invoice/7").acquire().await?;
    println!("{}", guard.fence());
    let _ = guard.release().await;"#,
    },
];

pub(crate) fn run() -> Result<Outcome> {
    let workspace = Workspace::load()?;
    let folder = workspace.target.join("consumers");
    write(&workspace.root, &folder).context("the crates of users cannot be written")?;
    let lock = fs::read_to_string(workspace.root.join("Cargo.lock"))?;

    let mut problems = Vec::new();
    for consumer in &CONSUMERS {
        let mut check = run::cargo(&folder);
        check.args(["check", "-p", consumer.name]);
        // What is built for the workspace with the same features is built for it.
        check.arg("--target-dir").arg(&workspace.target);
        if !run::status(&mut check)? {
            problems.push(format!(
                "{}: a user's crate does not compile; look at it in {}",
                consumer.name,
                folder.join(consumer.name).display()
            ));
        }
        let mut tree = run::cargo(&folder);
        tree.args(["tree", "--edges=normal", "--prefix=none", "-p"]);
        let tree = run::stdout_of(tree.arg(consumer.name))?;
        judge(consumer, &tree, &lock, &mut problems);
    }
    Ok(Outcome::of(
        "consumers",
        &problems,
        &format!("{} users have what they need, and no more", CONSUMERS.len()),
    ))
}

/// What is wrong with what a user gets.
fn judge(consumer: &Consumer, tree: &str, lock: &str, problems: &mut Vec<String>) {
    let name = consumer.name;
    let has = |of: &str| tree.lines().any(|line| line.split(' ').next() == Some(of));
    for of in consumer.gets.iter().filter(|of| !has(of)) {
        problems.push(format!(
            "{name}: `{of}` is not in its tree; correct the list"
        ));
    }
    for of in consumer.spared {
        if has(of) {
            let (package, features) = (consumer.package, consumer.features);
            problems.push(format!(
                "{name}: `{package}` with {features:?} brings `{of}`; make it optional there, \
                 `cargo tree -i {of}` tells by which way it comes"
            ));
        } else if !lock.contains(&format!("\nname = \"{of}\"\n")) {
            problems.push(format!(
                "{name}: no crate here is named `{of}`, so that sparing it says nothing; correct the list"
            ));
        }
    }
}

/// The crates, as a workspace.
fn write(root: &Path, folder: &Path) -> Result<()> {
    let mut members = Vec::new();
    for consumer in &CONSUMERS {
        let source = folder.join(consumer.name).join("src");
        fs::create_dir_all(&source)?;
        let (package, features) = (consumer.package, consumer.features);
        let manifest = format!(
            "[package]\nname = \"{}\"\nedition = \"2024\"\npublish = false\n\n[dependencies]\n\
             {package} = {{ path = '{}', features = {features:?} }}\n",
            consumer.name,
            root.join(package).display(),
        );
        // Their tasks need a runtime to run, but none to compile.
        let main = format!(
            "async fn pattern() -> Result<(), Box<dyn std::error::Error>> {{\n    {}\n    Ok(())\n}}\n\n\
             fn main() {{\n    drop(pattern());\n}}\n",
            consumer.body
        );
        refresh(&folder.join(consumer.name).join("Cargo.toml"), &manifest)?;
        refresh(&source.join("main.rs"), &main)?;
        members.push(format!("{:?}", consumer.name));
    }
    let workspace = format!(
        "[workspace]\nresolver = \"3\"\nmembers = [{}]\n",
        members.join(", ")
    );
    refresh(&folder.join("Cargo.toml"), &workspace)?;
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    Ok(())
}

/// Writes a file, unless it is there as it is to be: or it would be compiled again.
fn refresh(file: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(file).is_ok_and(|there| there == text) {
        return Ok(());
    }
    Ok(fs::write(file, text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "semaphore v0.0.0 (/t)\nlockkit-core v0.1.0 (/w)\nparking_lot v0.12.5\n";
    const LOCK: &str = "\nname = \"tokio\"\n\nname = \"tracing\"\n\nname = \"sqlx-core\"\n\nname = \"redis\"\n\nname = \"loom\"\n";

    fn judged(tree: &str, lock: &str) -> Vec<String> {
        let mut problems = Vec::new();
        judge(&CONSUMERS[0], tree, lock, &mut problems);
        problems
    }

    #[test]
    fn who_gets_what_he_needs_and_no_more_is_content() {
        assert_eq!(judged(TREE, LOCK), [""; 0]);
    }

    #[test]
    fn a_crate_that_was_to_be_spared_is_a_problem() {
        let problems = judged(&format!("{TREE}tokio v1.54.1\n"), LOCK);
        assert!(
            problems.len() == 1 && problems[0].contains("brings `tokio`"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_name_that_only_begins_alike_is_another_crate() {
        assert_eq!(judged(&format!("{TREE}tokio-util v0.7.0\n"), LOCK), [""; 0]);
    }

    #[test]
    fn a_list_that_says_nothing_is_a_problem() {
        let problems = judged("semaphore v0.0.0\n", "");
        assert_eq!(problems.len(), 6, "{problems:?}");
    }
}
