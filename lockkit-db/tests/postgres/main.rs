//! What is the PostgreSQL store's own: its tables, its plans, its connections, lost replies, the caller's
//! transaction.

mod cancel;
mod claims;
mod plans;
mod replies;
mod schema;
mod transaction;
mod trouble;
mod wake;

use std::time::Duration;

use lockkit_db::Error;
use lockkit_db::queue::{
    Ack, AckBatch, ClaimSpec, ClaimedJob, Exchange, JobStore, NewJob, PostgresOptions,
    PostgresStore, Session, SessionSpec,
};
use lockkit_db::sqlx::postgres::PgConnectOptions;
use lockkit_db::sqlx::{self, AssertSqlSafe, PgConnection};
use lockkit_test::postgres::{Cluster, Database};

const LEASE: Duration = Duration::from_hours(1);

/// A store in a database of its own.
struct Scene {
    database: Database,
    store: PostgresStore,
}

impl Scene {
    async fn new() -> Self {
        Self::with(|options| options).await
    }

    async fn with(change: impl FnOnce(PostgresOptions) -> PostgresOptions) -> Self {
        let database = Cluster::shared().database().await;
        let store = open(change(PostgresOptions::new(database.options()))).await;
        Self { database, store }
    }

    /// Runs statements as somebody else.
    async fn run(&self, sql: &str) {
        run(&mut self.database.connect().await, sql).await;
    }

    async fn session(&self) -> Session {
        self.store.open_session(&spec("w")).await.unwrap()
    }

    async fn jobs(&self, n: usize) {
        self.store.enqueue("q", &jobs(n)).await.unwrap();
    }
}

async fn open(options: PostgresOptions) -> PostgresStore {
    PostgresStore::open_with(options).await.unwrap()
}

async fn at(options: PgConnectOptions) -> PostgresStore {
    open(PostgresOptions::new(options)).await
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await
        .unwrap();
}

async fn claim<S: JobStore>(store: &S, session: &Session, n: usize) -> Vec<ClaimedJob> {
    let spec = ClaimSpec::new("q", n);
    let exchange = store.exchange(session, None, Some(&spec)).await;
    exchange.unwrap().claimed
}

async fn settle<S: JobStore>(
    store: &S,
    session: &Session,
    seq: u64,
    acks: Vec<Ack>,
) -> Result<Exchange, Error> {
    let batch = AckBatch { seq, acks };
    store.exchange(session, Some(&batch), None).await
}

fn jobs(n: usize) -> Vec<NewJob> {
    vec![NewJob::new("k", vec![]).max_attempts(1000); n]
}

fn spec(worker: &str) -> SessionSpec {
    SessionSpec {
        worker: worker.into(),
        host: "h".into(),
        lease: LEASE,
    }
}
