//! How jobs get into a queue within a transaction, the store's own or the caller's.

use sqlx::Row as _;
use sqlx::postgres::{PgRow, Postgres};
use tokio::time::Instant;

use super::Put;
use super::cursor::{END, Place};
use super::statements::{self, enqueue, enqueue_unique, unique_free, unique_taken};
use crate::Error;
use crate::backend::postgres::connections::{Statement, Transaction};
use crate::queue::{Enqueued, JobId, NewJob};
use crate::transaction::Tx;

/// How often a key is tried for that others take, and begin to work on, at the same time.
const ROUNDS: u32 = 100;

/// Whose the transaction is.
pub(super) enum Entry<'a, 'c> {
    Own(&'a mut Transaction<'c>),
    Theirs(&'a mut Tx<'c, Postgres>),
}

impl Entry<'_, '_> {
    /// Puts jobs into a queue, which is registered if it is new, and tells what became of each.
    pub(super) async fn put(mut self, queue: &str, jobs: &[NewJob]) -> Result<Put, Error> {
        let all = || jobs.iter().enumerate();
        let (places, plain): (Vec<_>, Vec<_>) =
            all().filter(|(_, job)| job.key().is_none()).unzip();
        let mut put: Vec<_> = jobs.iter().map(|_| None).collect();
        let mut first = END;
        let ids = self.put_plain(queue, &plain, &mut first).await?;
        for (place, id) in places.into_iter().zip(ids) {
            put[place] = Some(Enqueued::New(id));
        }
        let mut unique: Vec<_> = all().filter(|(_, job)| job.key().is_some()).collect();
        // In one order for all, so that two who put jobs in cannot wait for each other.
        unique.sort_by_key(|(_, job)| job.key());
        let (places, unique): (Vec<_>, Vec<_>) = unique.into_iter().unzip();
        for (key, enqueued) in self.put_unique(queue, &unique, &mut first).await? {
            if let Ok(at) = unique.binary_search_by_key(&Some(&*key), |job| job.key()) {
                put[places[at]] = Some(enqueued);
            }
        }
        let problem = format!("queue {queue:?} was registered, and is not there");
        let enqueued: Option<_> = put.into_iter().collect();
        let enqueued = enqueued.ok_or(Error::Schema { problem })?;
        Ok(Put { enqueued, first })
    }

    /// Jobs without keys.
    async fn put_plain(
        &mut self,
        queue: &str,
        jobs: &[&NewJob],
        first: &mut Place,
    ) -> Result<Vec<JobId>, Error> {
        let mut ids = Vec::with_capacity(jobs.len());
        for part in statements::parts(jobs) {
            let mut rows = self.rows(enqueue(queue, part)).await?;
            if rows.is_empty() {
                self.rows(statements::register(queue)).await?;
                rows = self.rows(enqueue(queue, part)).await?;
            }
            *first = statements::first(part, &rows).min(*first);
            ids.extend(statements::ids(&rows));
        }
        Ok(ids)
    }

    /// Jobs with keys, in the order of these; by key, what became of each.
    async fn put_unique(
        &mut self,
        queue: &str,
        jobs: &[&NewJob],
        first: &mut Place,
    ) -> Result<Vec<(String, Enqueued)>, Error> {
        let begun = Instant::now();
        let mut put = Vec::with_capacity(jobs.len());
        let mut rest = jobs.to_vec();
        for _ in 0..ROUNDS {
            let mut known = put.len();
            for part in statements::parts(&rest) {
                let new = self.rows(enqueue_unique(queue, part)).await?;
                *first = statements::first(part, &new).min(*first);
                put.extend(new.iter().map(|row| (row.get(1), Enqueued::New(id(row)))));
            }
            retain_unknown(&mut rest, &put[known..]);
            known = put.len();
            for part in statements::parts(&rest) {
                let taken = self.rows(unique_taken(queue, part)).await?;
                // Whoever claimed meanwhile has passed them by.
                *first = statements::earliest(&taken).min(*first);
                put.extend(taken.iter().map(|row| {
                    let taken = if row.get(2) {
                        Enqueued::Replaced
                    } else {
                        Enqueued::Skipped
                    };
                    (row.get(1), taken(id(row)))
                }));
            }
            retain_unknown(&mut rest, &put[known..]);
            if rest.is_empty() {
                return Ok(put);
            }
            // Their keys are with jobs that somebody is at, or were until now, or the queue is new.
            self.rows(statements::register(queue)).await?;
            self.rows(unique_free(queue, &rest)).await?;
        }
        Err(Error::Busy {
            waited: begun.elapsed(),
            source: "others took the unique keys again and again".into(),
        })
    }

    async fn rows(&mut self, statement: Statement<'_>) -> Result<Vec<PgRow>, Error> {
        match self {
            Self::Own(transaction) => transaction.rows(statement).await,
            Self::Theirs(tx) => {
                let rows = statement.fetch_all(tx.connection()).await;
                rows.map_err(|error| tx.explain(error))
            }
        }
    }
}

fn id(row: &PgRow) -> JobId {
    JobId(row.get(0))
}

fn retain_unknown(jobs: &mut Vec<&NewJob>, known: &[(String, Enqueued)]) {
    let known: std::collections::HashSet<_> = known.iter().map(|(key, _)| &**key).collect();
    jobs.retain(|job| job.key().is_some_and(|key| !known.contains(key)));
}
