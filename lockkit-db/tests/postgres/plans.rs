//! The plans of the statements, whatever the statistics say.

use lockkit_db::sqlx::{self, AssertSqlSafe, PgConnection};

use super::{Scene, run};

/// What a plan says, for parameters that are all the same to it.
async fn plan(connection: &mut PgConnection, sql: &str, parameters: &str) -> String {
    let prepare = format!("PREPARE statement AS {sql}");
    run(connection, &prepare).await;
    let explain = format!("EXPLAIN (COSTS OFF) EXECUTE statement {parameters}");
    let lines: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain))
        .persistent(false)
        .fetch_all(&mut *connection)
        .await
        .unwrap();
    run(connection, "DEALLOCATE statement").await;
    lines.join("\n")
}

/// Whether a plan neither walks all jobs nor sorts any.
#[track_caller]
fn looks_up(name: &str, plan: &str) {
    for bad in [
        "Seq Scan on lockkit_job",
        "Bitmap",
        "Hash Join",
        "Merge Join",
    ] {
        assert!(!plan.contains(bad), "{name}:\n{plan}");
    }
    // Mutant: C99
    let mut steps = plan.split("->");
    assert!(
        steps.all(|step| !step.contains("lockkit_job_pkey") || step.contains("Index Cond: ")),
        "{name}:\n{plan}"
    );
    // The places of a batch are sorted, the names of workers, and what was given back; never jobs to find some.
    let sorts = plan.lines().filter(|line| line.contains("Sort Key"));
    for sort in sorts {
        assert!(
            [".place", ".worker", "back."]
                .iter()
                .any(|known| sort.contains(known)),
            "{name}:\n{plan}"
        );
    }
}

#[tokio::test]
async fn no_statement_walks_or_sorts_what_it_can_look_up() {
    let scene = Scene::new().await;
    let mut raw = scene.database.connect().await;
    run(&mut raw, include_str!("../../sql/postgres/settings.sql")).await;
    macro_rules! plan {
        ($name:literal, $parameters:literal) => {{
            let sql = include_str!(concat!("../../sql/postgres/", $name, ".sql"));
            let plan = plan(&mut raw, sql, $parameters).await;
            looks_up($name, &plan);
            plan
        }};
    }
    // Statistics of a table that was empty, and of one in which all jobs were ready.
    let filled = "INSERT INTO lockkit_queue (name) VALUES ('q');
         INSERT INTO lockkit_job (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload)
         SELECT 1, 0, 0, n, 10, 0, 'k', '' FROM generate_series(1, 20000) AS n;
         ANALYZE lockkit_job";
    // And of one that was emptied: it counts as empty however much comes, until it is vacuumed again.
    let emptied = "DELETE FROM lockkit_job WHERE id < (SELECT max(id) FROM lockkit_job);
         VACUUM lockkit_job;
         DELETE FROM lockkit_job;
         VACUUM (TRUNCATE false) lockkit_job;
         INSERT INTO lockkit_job (queue_id, state, priority, run_at, max_attempts, enqueued_at, kind, payload)
         SELECT 1, 0, 0, n, 10, 0, 'k', '' FROM generate_series(1, 20000) AS n";
    // And of one session, and of several.
    let sessions = |n: u32| {
        format!(
            "INSERT INTO lockkit_session (worker, host, lease_ms, lease_until, opened_at)
             SELECT 'w', 'h', 1, 1, 1 FROM generate_series(1, {n});
             INSERT INTO lockkit_tally (session_id) SELECT id FROM lockkit_session ON CONFLICT DO NOTHING;
             ANALYZE lockkit_session; ANALYZE lockkit_tally"
        )
    };
    let (one, eight) = (sessions(1), sessions(7));
    for statistics in ["ANALYZE lockkit_job", filled, emptied, &one, &eight] {
        for statement in statistics.split(';') {
            run(&mut raw, statement).await;
        }
        let ready = "Index Scan using lockkit_job_ready";
        let by_id = "Index Scan using lockkit_job_pkey on lockkit_job j";
        let claim = plan!("claim", "(1, 'q', 10, 0, 0, 0, 0, 0)");
        assert_eq!(claim.matches(ready).count(), 1, "{claim}");
        assert!(
            claim.contains("ROW(priority, run_at, id) > ROW("),
            "{claim}"
        );
        // Mutant: C2
        assert!(claim.contains("CTE picked"), "{claim}");
        assert!(claim.contains(by_id), "{claim}");
        let exchange = plan!(
            "exchange",
            "(1, 1, '{1}', '{1}', '{1}', 'q', 10, 0, 0, 0, 0, 0)"
        );
        assert_eq!(exchange.matches(ready).count(), 1, "{exchange}");
        let settle = plan!(
            "settle",
            "(1, 1, '{1}', '{1}', '{1}', '{0}', '{0}', '{NULL}', '{NULL}')"
        );
        for plan in [&claim, &exchange, &settle] {
            // Mutants: C156, C159
            let from_the_end = "Index Scan Backward using lockkit_tally_pkey";
            assert_eq!(plan.matches(from_the_end).count(), 2, "{plan}");
            assert!(plan.contains("Tid Scan on lockkit_tally"), "{plan}");
            assert!(!plan.contains("Backward using lockkit_session"), "{plan}");
        }
        for plan in [exchange, settle] {
            // Mutant: Q11b
            assert!(!plan.contains("lockkit_job_owner"), "{plan}");
            assert!(plan.contains(by_id), "{plan}");
        }
        let put = plan!("enqueue_alike", "('q', 0, 0, NULL, 1, 'k', '{x}')");
        assert!(put.contains("ProjectSet") && !put.contains("Sort"), "{put}");
        let unique = "Index Scan using lockkit_job_unique";
        let put = plan!(
            "enqueue_unique",
            "('q', '{0}', '{0}', '{0}', '{1}', '{k}', '{x}', '{u}')"
        );
        assert!(
            put.contains("Conflict Arbiter Indexes: lockkit_job_unique"),
            "{put}"
        );
        let taken = plan!(
            "unique_taken",
            "('q', '{0}', '{0}', '{0}', '{1}', '{k}', '{x}', '{u}', '{t}')"
        );
        let free = plan!("unique_free", "('q', '{u}')");
        assert!(
            taken.contains(unique) && free.contains(unique),
            "{taken}\n{free}"
        );
        let cancel = plan!("cancel", "('{1}')");
        assert!(
            cancel.contains(by_id) && !cancel.contains("lockkit_job_owner"),
            "{cancel}"
        );
        assert!(plan!("unwanted", "(1)").contains("lockkit_job_owner"));
        assert!(plan!("ack_in", "(1, 1, 1, NULL, 0)").contains(by_id));
        assert!(plan!("reap", "('{1}')").contains("lockkit_job_settled"));
        assert!(plan!("claim_again", "(1, 1)").contains("lockkit_job_owner"));
        assert!(plan!("reap", "('{1}')").contains("lockkit_job_owner"));
        assert!(plan!("upkeep_probe", "").contains("lockkit_job_owner"));
        assert!(plan!("promote", "(10)").contains("Index Scan using lockkit_job_due"));
        let probe = plan!("ready_probe", "('q', 0, 0, 0)");
        for part in ["lockkit_job_ready", "ROW(priority, run_at, id) > ROW("] {
            assert!(probe.contains(part), "{probe}");
        }
    }
}

/// How many pages a statement reads.
async fn pages(connection: &mut PgConnection, sql: &str, parameters: &str) -> u64 {
    run(connection, &format!("BEGIN; PREPARE statement AS {sql}")).await;
    let explain = format!(
        "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) EXECUTE statement ({parameters})"
    );
    let lines: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain))
        .persistent(false)
        .fetch_all(&mut *connection)
        .await
        .unwrap();
    run(connection, "ROLLBACK; DEALLOCATE statement").await;
    let line = lines.iter().find(|line| line.contains("Buffers: shared"));
    let words = line.expect("the top of the plan tells").split(['=', ' ']);
    words.filter_map(|word| word.parse::<u64>().ok()).sum()
}

#[tokio::test]
async fn behind_an_old_snapshot_who_goes_on_reads_no_more_than_ever() {
    let scene = Scene::new().await;
    let session = scene.session().await;
    scene.jobs(1).await;
    let mut raw = scene.database.connect().await;
    run(&mut raw, include_str!("../../sql/postgres/settings.sql")).await;
    // Of more jobs than there are, so that it looks at all that is after the place.
    let mut claim = async |after: &str| {
        let sql = include_str!("../../sql/postgres/claim.sql");
        pages(&mut raw, sql, &format!("1, 'q', 2, 0, {after}, 0")).await
    };
    let fresh = claim("-1, 0, 0").await;

    let mut old = scene.database.connect().await;
    run(
        &mut old,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM lockkit_job",
    )
    .await;
    let mut last = None;
    for _ in 0..30 {
        scene.jobs(200).await;
        last = super::claim(&scene.store, &session, 200).await.pop();
    }
    scene.jobs(1).await;
    let walks = claim("-1, 0, 0").await;
    let last = last.unwrap();
    let mut look = scene.database.connect().await;
    let run_at: i64 = sqlx::query_scalar("SELECT run_at FROM lockkit_job WHERE id = $1")
        .bind(last.id.0)
        .fetch_one(&mut look)
        .await
        .unwrap();
    let place = format!("0, {run_at}, {}", last.id);
    let goes_on = claim(&place).await;
    let probe = include_str!("../../sql/postgres/ready_probe.sql");
    let looks = pages(&mut raw, probe, &format!("'q', {place}")).await;
    for pages in [goes_on, looks] {
        assert!(
            pages <= 2 * fresh && 5 * pages < walks,
            "fresh {fresh}, from the start {walks}, on {pages}"
        );
    }
}
