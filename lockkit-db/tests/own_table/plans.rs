//! The claim looks up what it needs in the user's own partial indexes, and sorts nothing.

use lockkit_db::sqlx::{self, AssertSqlSafe, Connection as _};

use crate::scene;
use crate::table::{held, leased, sql, with_tables};

#[tokio::test]
async fn a_claim_walks_the_partial_indexes_on_postgres() {
    let scene = scene::Postgres::new(1).await;
    with_tables!(scene);
    sql!(
        scene,
        "INSERT INTO jobs (id, status, lease_until) \
        SELECT n, CASE WHEN n % 100 = 0 THEN 'running' WHEN n % 10 = 0 THEN 'pending' ELSE 'done' END, \
            CASE WHEN n % 100 = 0 THEN clock_timestamp() + interval '1 hour' END \
        FROM generate_series(1, 20000) AS n; \
        ANALYZE jobs"
    );
    let mut look = scene.database.connect().await;
    let mut explain = async |text: &str, kinds: &str, values: &str| {
        let prepare = format!("PREPARE claim ({kinds}) AS {text}");
        sqlx::raw_sql(AssertSqlSafe(prepare))
            .execute(&mut look)
            .await
            .unwrap();
        // Often enough for the server to think about a plan for any number of jobs.
        let execute = format!("BEGIN; EXECUTE claim ({values}); ROLLBACK");
        for _ in 0..10 {
            sqlx::raw_sql(AssertSqlSafe(execute.as_str()))
                .execute(&mut look)
                .await
                .unwrap();
        }
        let explain = format!("EXPLAIN (COSTS OFF) EXECUTE claim ({values})");
        let lines: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain))
            .persistent(false)
            .fetch_all(&mut look)
            .await
            .unwrap();
        sqlx::raw_sql("DEALLOCATE claim")
            .execute(&mut look)
            .await
            .unwrap();
        lines.join("\n")
    };
    let claim_in = explain(held(&scene).statement(), "bigint", "10").await;
    let claim = explain(leased(&scene).statement(), "bigint, bigint", "10, 1000").await;
    look.close().await.unwrap();
    for plan in [&claim_in, &claim] {
        // Mutant: T21
        assert!(
            plan.contains("Index Scan using jobs_ready on jobs"),
            "{plan}"
        );
        assert!(
            !plan.contains("Seq Scan on jobs") && !plan.contains("Sort"),
            "{plan}"
        );
    }
    assert!(
        claim.contains("Index Scan using jobs_running on jobs"),
        "{claim}"
    );
    assert!(
        claim.contains("Index Scan using jobs_pkey on jobs"),
        "{claim}"
    );
}

#[tokio::test]
async fn a_claim_walks_the_partial_indexes_on_sqlite() {
    let scene = scene::Sqlite::new(1).await;
    with_tables!(scene);
    let plan = async |text: &str| {
        let explain = format!("EXPLAIN QUERY PLAN {text}");
        let lines: Vec<(i64, i64, i64, String)> = sqlx::query_as(AssertSqlSafe(explain))
            .bind(10)
            .bind(1000)
            .fetch_all(&scene.pool)
            .await
            .unwrap();
        let lines: Vec<_> = lines.into_iter().map(|line| line.3).collect();
        lines.join("\n")
    };
    let claim_in = plan(held(&scene).statement()).await;
    let claim = plan(leased(&scene).statement()).await;
    for plan in [&claim_in, &claim] {
        // Mutant: T21
        assert!(
            plan.contains("USING INDEX jobs_ready")
                || plan.contains("USING COVERING INDEX jobs_ready"),
            "{plan}"
        );
        assert!(
            !plan.contains("SCAN t\n") && !plan.contains("TEMP B-TREE"),
            "{plan}"
        );
    }
    assert!(claim.contains("jobs_running (lease_until<?)"), "{claim}");
}
