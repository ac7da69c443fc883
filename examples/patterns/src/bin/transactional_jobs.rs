//! An order and the job to mail about it, in one transaction; and the mail and the end of that job, in another one. So a
//! worker that is killed after it has written the mail, and before it could say so, does not write it twice.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lockkit_db::queue::{
    Completion, HandlerResult, Job, JobStore as _, NewJob, TransactionalStore as _, Worker,
};
use lockkit_db::transaction::{Tx, TxOptions};
use lockkit_db::{Error, sqlx};
use patterns::{Stores, Tables as _, shop};

const CUSTOMERS: i64 = 60;
/// How many mails the worker writes that is killed.
const KILLED: usize = 3;

patterns::on_either_database! {
    async fn prove(pool: Pool) -> anyhow::Result<()> {
        let jobs = Arc::new(<Db as Stores>::jobs(patterns::url()).await?);
        if let Some(role) = patterns::role() {
            let mut words = role.split(' ');
            let mut word = || words.next().context("a role is three words");
            return work(&pool, jobs, word()? == "killed", word()? == "together", word()?).await;
        }
        for (together, how) in [(false, "each by itself"), (true, "together")] {
            let tables = "DROP TABLE IF EXISTS example_order; DROP TABLE IF EXISTS example_mail;
                CREATE TABLE example_order (id BIGINT PRIMARY KEY);
                CREATE TABLE example_mail (id BIGINT NOT NULL)";
            pool.create(tables).await?;
            // The database may have been used before.
            let (queue, before) = (shop::fresh("mail"), jobs.stats().await?.ready);
            for id in 1..=CUSTOMERS {
                order(&pool, &jobs, together, &queue, id).await?;
            }
            let (orders, _) = pool.two("SELECT count(*), count(*) FROM example_order").await?;
            let mails = i64::try_from(jobs.stats().await?.ready - before)?;
            println!("{how}: {orders} orders are placed, of {CUSTOMERS}, and {mails} mails are to be written");

            let role = |is: &str| format!("{is} {} {queue}", if together { "together" } else { "apart" });
            let mut killed = patterns::process(&role("killed"))?;
            let mut says = patterns::says(&mut killed);
            for _ in 0..KILLED {
                says.line().await?;
            }
            killed.kill().await?;
            let workers = [patterns::process(&role("lives"))?, patterns::process(&role("lives"))?];
            for worker in workers {
                ensure!(worker.wait_with_output().await?.status.success(), "a worker failed");
            }
            let (written, to) = pool.two("SELECT count(*), count(DISTINCT id) FROM example_mail").await?;
            println!("{how}: a worker is killed that has written {KILLED}; {written} are written, to {to} customers");
            if together {
                ensure!(mails == orders && written == orders && to == orders, "they were not one");
            } else {
                ensure!(mails > orders && written > to, "nothing went wrong, so this shows nothing");
            }
        }
        Ok(())
    }

    /// Places an order, but for every fifth, of which the customer thinks better.
    async fn order(pool: &Pool, jobs: &<Db as Stores>::Jobs, together: bool, queue: &str, id: i64) -> Result<(), Error> {
        let mail = [NewJob::json("confirm", &id)?];
        let mut tx = Tx::begin(pool, &TxOptions::new()).await?;
        sqlx::query("INSERT INTO example_order (id) VALUES ($1)").bind(id).execute(&mut *tx).await?;
        if together {
            jobs.enqueue_in(&mut tx, queue, &mail).await?;
        }
        if id % 5 == 0 {
            tx.rollback().await;
        } else {
            tx.commit().await?;
        }
        // Too early, it would be there without the order; here, it may never come. This one is too eager.
        if !together {
            jobs.enqueue(queue, &mail).await?;
        }
        Ok(())
    }

    /// A worker, until nothing is left; or one that is killed when it has written, and before the queue hears of it.
    async fn work(pool: &Pool, jobs: Arc<<Db as Stores>::Jobs>, killed: bool, together: bool, queue: &str) -> anyhow::Result<()> {
        let handler = {
            let pool = pool.clone();
            move |job| mail(pool.clone(), job, killed, together)
        };
        let worker = Worker::builder(jobs.clone(), handler)
            .queue(queue)
            .slots(KILLED)
            // Short, since somebody is going to wait for its end.
            .lease(Duration::from_millis(1500))
            .build()?;
        worker.run(shop::all_done(&*jobs)).await;
        Ok(())
    }

    async fn mail(pool: Pool, job: Job, killed: bool, together: bool) -> HandlerResult {
        let to: i64 = job.json()?;
        let mut tx = Tx::begin(&pool, &TxOptions::new()).await?;
        sqlx::query("INSERT INTO example_mail (id) VALUES ($1)").bind(to).execute(&mut *tx).await?;
        if together {
            job.ack_in(&mut tx).await?;
        }
        tx.commit().await?;
        if killed {
            println!("{to}");
            std::future::pending::<()>().await;
        }
        Ok(Completion::Done)
    }
}
