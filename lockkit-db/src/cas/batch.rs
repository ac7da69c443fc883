//! Many changes at once.

use std::collections::HashMap;
use std::hash::Hash;

use sqlx::Pool;
use sqlx_core::transaction::TransactionManager as _;

use super::table::Writes;
use super::{BindMany, Outcome, Table, Values, Version};
use crate::Error;
use crate::backend::Backend;
use crate::transaction::{Tx, TxOptions};

/// The most rows of a batch.
const MOST_ROWS: usize = 10_000;

/// How each change of a batch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "some may be in conflict"]
pub struct BatchOutcome {
    outcomes: Vec<Outcome>,
}

impl BatchOutcome {
    /// All of them, in the caller's order.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// Whether every row was changed.
    #[must_use]
    pub fn all_updated(&self) -> bool {
        self.updated() == self.outcomes.len()
    }

    /// How many were changed.
    #[must_use]
    pub fn updated(&self) -> usize {
        let updated = |outcome: &&Outcome| matches!(outcome, Outcome::Updated { .. });
        self.outcomes.iter().filter(updated).count()
    }

    /// The losers: their places in the caller's list, from 0, and their versions by now.
    pub fn conflicts(&self) -> impl Iterator<Item = (usize, Version)> {
        let all = self.outcomes.iter().enumerate();
        all.filter_map(|(at, outcome)| match outcome {
            Outcome::Conflict { current } => Some((at, *current)),
            _ => None,
        })
    }

    /// The places of those that are not there.
    pub fn missing(&self) -> impl Iterator<Item = usize> {
        let all = self.outcomes.iter().enumerate();
        all.filter_map(|(at, outcome)| matches!(outcome, Outcome::NotFound).then_some(at))
    }
}

impl<DB: Backend> Table<DB> {
    /// Changes up to 10,000 rows, each by a [`cas`](Self::cas) of its own: the key, the version expected, the
    /// values. Those in conflict are left as they are and named; the others are changed all together, or
    /// none of them.
    ///
    /// On PostgreSQL one statement and one round trip, and another one if a conflict came up while it waited;
    /// rows are locked in the order of their keys, so two batches do not deadlock. On SQLite one
    /// transaction with a statement for each row, which costs no round trip there.
    ///
    /// # Errors
    ///
    /// - [`Error::Invalid`] for no rows, for over 10,000, and for a key that is there twice.
    /// - [`Error::Unknown`], or on SQLite [`Error::UnknownCommit`], when the reply is lost: all of it has happened, or nothing.
    ///   Sent again, a conflict may be with the first of the two.
    /// - As [`cas`](Self::cas) otherwise.
    ///
    /// # Cancel safety
    ///
    /// Dropped, all of it has happened or nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[cfg(feature = "postgres")]
    /// # async fn f(pool: lockkit_db::sqlx::PgPool, notes: lockkit_db::cas::Table<lockkit_db::sqlx::Postgres>)
    /// #     -> Result<(), lockkit_db::Error> {
    /// use lockkit_db::cas::Version;
    ///
    /// let read = Version::new(3);
    /// let rows = [(7, read, ("groceries", 5)), (8, read, ("errands", 1))];
    /// let done = notes.batch_cas(&pool, &rows).await?;
    /// for (at, current) in done.conflicts() {
    ///     println!("note {} is at version {current} by now", rows[at].0);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn batch_cas<K, V>(
        &self,
        pool: &Pool<DB>,
        rows: &[(K, Version, V)],
    ) -> Result<BatchOutcome, Error>
    where
        K: BindMany<DB> + Eq + Hash,
        V: BindMany<DB>,
    {
        let batch = self.batch(rows)?;
        if DB::ARRAYS {
            let mut connection = pool.acquire().await?;
            return batch.run(self, &mut connection).await;
        }
        let mut tx = Tx::begin(pool, &TxOptions::new()).await?;
        match batch.run(self, &mut tx).await {
            Ok(done) => {
                tx.commit().await?;
                Ok(done)
            }
            Err(error) => {
                tx.rollback().await;
                Err(error)
            }
        }
    }

    /// The same as a part of a transaction.
    ///
    /// # Errors
    ///
    /// As [`batch_cas`](Self::batch_cas), and none about lost replies: those are the transaction's.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has happened or not, or on SQLite in parts: roll the transaction back.
    pub async fn batch_cas_in<K, V>(
        &self,
        tx: &mut Tx<'_, DB>,
        rows: &[(K, Version, V)],
    ) -> Result<BatchOutcome, Error>
    where
        K: BindMany<DB> + Eq + Hash,
        V: BindMany<DB>,
    {
        let batch = self.batch(rows)?;
        batch.run(self, tx).await
    }

    /// Everything bound, so that nothing of the caller's is held while it waits.
    fn batch<K, V>(&self, rows: &[(K, Version, V)]) -> Result<Batch<DB>, Error>
    where
        K: BindMany<DB> + Eq + Hash,
        V: BindMany<DB>,
    {
        if rows.is_empty() || rows.len() > MOST_ROWS {
            let problem = format!("are {}, and may be 1 to {MOST_ROWS}", rows.len());
            return Err(Error::invalid("rows", problem));
        }
        let mut seen = HashMap::with_capacity(rows.len());
        for (at, (key, version, _)) in rows.iter().enumerate() {
            if let Some(before) = seen.insert(key, at) {
                let problem = format!("name the same key at {before} and at {at}");
                return Err(Error::invalid("rows", problem));
            }
            self.has_next(*version)?;
        }
        let expected: Vec<_> = rows.iter().map(|(_, version, _)| version.get()).collect();
        if !DB::ARRAYS {
            let one_by_one = rows.iter().map(|(key, version, values)| {
                let mut arguments = self.expecting(key, *version)?;
                self.add_columns(&mut arguments, values)?;
                Ok((self.arguments(key)?, arguments))
            });
            return Ok(Batch {
                expected,
                bound: Bound::Rows(one_by_one.collect::<Result<_, Error>>()?),
            });
        }
        let many = |with: bool| -> Result<Values<DB>, Error> {
            let mut values = Values::new();
            let keys: Vec<_> = rows.iter().map(|(key, ..)| key).collect();
            K::bind_many(&keys, &mut values)?;
            self.count_keys(values.len())?;
            if with {
                values.push_numbers(&expected)?;
                let before = values.len();
                let columns: Vec<_> = rows.iter().map(|(.., columns)| columns).collect();
                V::bind_many(&columns, &mut values)?;
                self.count_columns(values.len() - before)?;
            }
            Ok(values)
        };
        Ok(Batch {
            bound: Bound::Arrays {
                all: many(true)?,
                keys: many(false)?,
            },
            expected,
        })
    }
}

struct Batch<DB: Backend> {
    expected: Vec<i64>,
    bound: Bound<DB>,
}

enum Bound<DB: Backend> {
    Arrays {
        all: Values<DB>,
        keys: Values<DB>,
    },
    /// For each row its key, and all of it.
    Rows(Vec<(Values<DB>, Values<DB>)>),
}

impl<DB: Backend> Batch<DB> {
    async fn run(
        self,
        table: &Table<DB>,
        connection: &mut DB::Connection,
    ) -> Result<BatchOutcome, Error> {
        let Self { expected, bound } = self;
        let (all, keys) = match bound {
            Bound::Arrays { all, keys } => (all, keys),
            Bound::Rows(rows) => {
                debug_assert!(DB::TransactionManager::get_transaction_depth(connection) > 0);
                let mut outcomes = Vec::with_capacity(rows.len());
                for ((key, arguments), expected) in rows.into_iter().zip(expected) {
                    let expected = Version::new(expected);
                    outcomes.push(table.update(connection, key, expected, arguments).await?);
                }
                return Ok(BatchOutcome { outcomes });
            }
        };
        let (text, versions) = table.batch_texts();
        let rows = table.fetch(connection, text, all, Writes::Yes).await?;
        let mut outcomes = vec![None; expected.len()];
        let mut in_doubt = false;
        for row in &rows {
            let (at, outcome) = told(table, row)?;
            // As in a single one: what stood in its way came after what the statement saw.
            in_doubt |=
                matches!(outcome, Outcome::Conflict { current } if current.get() == expected[at]);
            if outcomes[at].replace(outcome).is_some() {
                return Err(table.misfit("the key is not unique", None));
            }
        }
        if in_doubt {
            let changed = |outcome: &_| matches!(outcome, Some(Outcome::Updated { .. }));
            // By itself the first statement is committed, whatever comes of this one.
            let committed = outcomes.iter().any(changed)
                && DB::TransactionManager::get_transaction_depth(connection) == 0;
            let rows = table
                .fetch(connection, versions, keys, Writes::No)
                .await
                .map_err(|error| match error {
                    error if committed => Error::Unknown {
                        source: error.into(),
                    },
                    error => error,
                })?;
            for row in &rows {
                let (at, outcome) = told(table, row)?;
                if !changed(&outcomes[at]) {
                    outcomes[at] = Some(outcome);
                }
            }
        }
        let outcomes = outcomes.into_iter().collect::<Option<Vec<_>>>();
        let outcomes =
            outcomes.ok_or_else(|| table.misfit("an answer did not name every row", None))?;
        Ok(BatchOutcome { outcomes })
    }
}

/// A row of the answer: the place in the caller's list, and what became of it.
fn told<DB: Backend>(table: &Table<DB>, row: &DB::Row) -> Result<(usize, Outcome), Error> {
    let number = |at| DB::number(row, at).map_err(|error| table.unreadable(error));
    let at = number(0)?.unwrap_or_default() as usize - 1;
    let outcome = match number(1)? {
        Some(1) => Outcome::Updated {
            version: table.version(row, 2)?,
        },
        Some(0) => Outcome::Conflict {
            current: table.version(row, 2)?,
        },
        _ => Outcome::NotFound,
    };
    Ok((at, outcome))
}
