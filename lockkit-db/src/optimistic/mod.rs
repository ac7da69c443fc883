//! A row changed by a pure closure, as often as it takes: read, apply, compare and set.
//!
//! See [`optimistic()`].

pub(crate) mod adaptive;
mod machine;

use std::fmt;
use std::time::{Duration, Instant};

use lockkit_core::KeyedPermit;
use lockkit_core::retry::{Backoff, Policy};
use sqlx::Pool;

pub use self::adaptive::ConflictStats;
use self::adaptive::Start;
use self::machine::{End, Event, Machine, Step};
use crate::Error;
use crate::backend::{Backend, Class, classify, spoils_connection};
use crate::cas::{Bind, Loaded, Outcome, Record, Table, Version};
use crate::transaction::{Isolation, Tx, TxOptions};

/// As long as a transaction waits for a lock, unless it is told otherwise.
const LONGEST_LINE: Duration = Duration::from_secs(5);

/// Changes the row of that key, whoever else is at it: `optimistic(&pool, &table, key).apply(closure).run()`.
///
/// The row is read, the closure makes the new value of it, and a compare-and-set writes that. On a conflict
/// it begins anew with the row as it is by then, after a pause. After two conflicts, or when only one try is
/// left, it locks the row first, so **nobody runs out of tries while the row can be had**. In a table where
/// most of the latest updates have met a conflict, updates begin with the lock, but for one in 16 that
/// looks whether that has changed; see [`Table::conflicts`].
///
/// Who is about to lock a row lines up for it with the others of this process, or rather with those who use the same
/// [`Table`], and the lock is asked for by the first in line alone, or by the first two, where one waits at the server. A database keeps no order: who comes when a lock
/// is just let go of gets ahead of those who are asleep at it, again and again. A line costs no connection either.
/// Nobody stands in it for more than 5 s; then it goes on without.
///
/// The closure may run several times, each time on the row as it was just read, and once too often never
/// counts. It cannot wait or do I/O, so there is nothing that would happen twice.
///
/// Cost: two round trips without a conflict (read, compare-and-set); under the lock four on PostgreSQL (BEGIN, read,
/// compare-and-set, COMMIT), and the closure runs while the row is locked.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use lockkit_db::cas::Table;
/// use lockkit_db::optimistic;
/// # use lockkit_db::sqlx;
/// # use lockkit_db::sqlx::Sqlite;
///
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("notes.db");
/// # let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).create_if_missing(true);
/// # let pool = sqlx::SqlitePool::connect_with(options).await?;
/// # sqlx::raw_sql("CREATE TABLE stock (item TEXT PRIMARY KEY, pieces INTEGER NOT NULL, version INTEGER NOT NULL);
/// #                INSERT INTO stock VALUES ('lamp', 50, 1)")
/// #     .execute(&pool)
/// #     .await?;
/// let stock: Table<Sqlite> = Table::describe("stock")
///     .key("item")
///     .columns(["pieces"])
///     .version("version")
///     .build()?;
/// let sold = optimistic(&pool, &stock, "lamp")
///     .apply(|pieces: &i64| pieces - 15)
///     .run()
///     .await?;
/// assert_eq!((sold.value, sold.attempts), (35, 1));
/// # Ok(()) }
/// # #[cfg(not(feature = "sqlite"))]
/// # fn main() {}
/// ```
pub fn optimistic<'p, DB, K>(
    pool: &'p Pool<DB>,
    table: &'p Table<DB>,
    key: K,
) -> Optimistic<'p, DB, K>
where
    DB: Backend,
    K: Bind<DB>,
{
    Optimistic {
        pool,
        table,
        key,
        policy: Policy::default(),
    }
}

/// The policy of 3 tries, with a pause of 100 ms before the second. The third is under a lock, where
/// the line is the pause.
#[must_use]
pub fn three_tries() -> Policy {
    let step = Duration::from_millis(100);
    let pauses = Backoff::linear(step, step * 3);
    let policy = Policy::builder().attempts(3).backoff(pauses).build();
    policy.unwrap_or_default()
}

/// An update without its closure. Made by [`optimistic()`].
#[must_use = "nothing happens until it is given a closure and run"]
pub struct Optimistic<'p, DB: Backend, K> {
    pool: &'p Pool<DB>,
    table: &'p Table<DB>,
    key: K,
    policy: Policy,
}

/// An update with its closure. Made by [`Optimistic::apply`].
#[must_use = "nothing happens until it is run"]
pub struct Update<'p, DB: Backend, K, R> {
    at: Optimistic<'p, DB, K>,
    apply: Apply<'p, R>,
    merge: Option<Merge<'p, R>>,
}

/// `None`: leave the row as it is.
type Apply<'p, R> = Box<dyn Fn(&R) -> Result<Option<R>, Error> + Send + Sync + 'p>;
type Merge<'p, R> = Box<dyn Fn(&R, &R, &R) -> Option<R> + Send + Sync + 'p>;

/// How an update ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied<R> {
    /// What is in the row.
    pub value: R,
    /// Its version.
    pub version: Version,
    /// Whether it was written. Not, if the closure has left it as it was.
    pub changed: bool,
    /// How often it was tried, from 1.
    pub attempts: u32,
    /// Whether the row was locked for the last try.
    pub locked: bool,
}

impl<'p, DB: Backend, K: Bind<DB>> Optimistic<'p, DB, K> {
    /// How often and how long to try, and with which pauses. By default 8 tries within 10 s, with pauses
    /// drawn from up to 2 ms at first and 250 ms at most; [`three_tries`] is another.
    ///
    /// The deadline decides whether another try begins, and cuts short none that runs. With one try alone
    /// there is no lock.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Makes the new value of the row from the one that was read.
    pub fn apply<R>(self, apply: impl Fn(&R) -> R + Send + Sync + 'p) -> Update<'p, DB, K, R>
    where
        R: Record<DB>,
    {
        self.try_apply(move |row| Ok(Some(apply(row))))
    }

    /// As [`apply`](Self::apply), with a way out: `Ok(None)` leaves the row as it is, and an error ends the
    /// update with that error, whatever it is; [`Error::stop`] makes one of yours. Only [`Error::again`] asks for
    /// another try.
    pub fn try_apply<R>(
        self,
        apply: impl Fn(&R) -> Result<Option<R>, Error> + Send + Sync + 'p,
    ) -> Update<'p, DB, K, R>
    where
        R: Record<DB>,
    {
        Update {
            at: self,
            apply: Box::new(apply),
            merge: None,
        }
    }
}

impl<'p, DB: Backend, K: Bind<DB>, R: Record<DB>> Update<'p, DB, K, R> {
    /// On a conflict, makes the new value from three: the row as it was read, what was made of it, and
    /// the row as somebody else has left it. `None` runs the closure of [`apply`](Optimistic::apply) on the
    /// last, which is what happens without this.
    ///
    /// It should keep what only one of the two has changed, or a change gets lost after all:
    /// `merge(base, base, theirs) == theirs` and `merge(base, mine, base) == mine`. [`three_way`] does, for
    /// one field.
    pub fn merge(mut self, merge: impl Fn(&R, &R, &R) -> Option<R> + Send + Sync + 'p) -> Self {
        self.merge = Some(Box::new(merge));
        self
    }

    /// Changes the row.
    ///
    /// # Errors
    ///
    /// - [`Error::NotFound`] when there is no such row, or none any more.
    /// - [`Error::GaveUp`] when the policy is at its end, with [`Error::Conflict`] or the database's error
    ///   inside. Nothing is changed.
    /// - [`Error::Unknown`] when the reply to a compare-and-set is lost and its outcome cannot be told. That is
    ///   tried first: the same one is sent again, with the same expected version. If that one finds the
    ///   version, the lost one has not, and never will; all is well. If not, it was the lost one or
    ///   somebody else, and to apply the closure to the row by now could apply it twice.
    /// - The closure's own; what [`Table::load`] and [`Table::cas`] return.
    ///
    /// # Panics
    ///
    /// When a closure does. Nothing is changed then.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the row is changed once or not at all, and nothing is left open or locked.
    pub async fn run(self) -> Result<Applied<R>, Error> {
        let table = self.at.table;
        // Refused before anything is sent.
        table.arguments(&self.at.key)?;
        let start = table.adaptive().lock().start();
        let mut machine = Machine::new(self.at.policy.clone(), start, now());
        let mut step = machine.first();
        let mut free = start != Start::Locked;
        // What the last try has read and made.
        let mut made = None;
        let mut failed = None;
        let reason = loop {
            let told = match step {
                Step::Try { locked: false } => {
                    let turn = match start {
                        Start::Probe => self.turn().await,
                        _ => None,
                    };
                    let told = self.try_free(&mut made).await;
                    let conflict = match &told {
                        Ok(Told::Written(_)) => Some(false),
                        Ok(Told::Conflict) => Some(true),
                        Err(error) if event_of(error) == Event::Conflict => Some(true),
                        _ => None,
                    };
                    if let Some(conflict) = conflict {
                        let crowded = turn.is_some() && self.crowded();
                        table.adaptive().lock().answered(conflict, crowded);
                    }
                    told
                }
                Step::Try { locked: true } => {
                    if free {
                        free = false;
                        table.adaptive().lock().escalated();
                    }
                    let _turn = self.turn().await;
                    self.try_locked(&mut made).await
                }
                Step::Again => self.write_again(made.as_ref()).await,
                Step::Pause(pause) => {
                    tokio::time::sleep(pause).await;
                    step = machine.on(Event::Paused, now());
                    continue;
                }
                Step::End(End::Failed(reason)) => break reason,
                Step::End(End::Missing) => return Err(self.not_found()),
                Step::End(End::Done | End::Unknown) => break None,
            };
            let event = match told {
                Ok(Told::Written(version)) => {
                    let _: Step = machine.on(Event::Done, now());
                    let Some(Made { mut mine, .. }) = made else {
                        unreachable!("what was written was made");
                    };
                    mine.written(version);
                    return Ok(applied(mine, version, true, &machine));
                }
                Ok(Told::Kept(Loaded { value, version })) => {
                    return Ok(applied(value, version, false, &machine));
                }
                Ok(Told::CalledOff(error)) => {
                    if !matches!(error, Error::Again { .. }) {
                        return Err(error);
                    }
                    failed = Some(error);
                    step = machine.on(Event::Failed { mendable: true }, now());
                    continue;
                }
                Ok(Told::Conflict) => Event::Conflict,
                Ok(Told::Missing) => Event::Missing,
                Err(ref error) => event_of(error),
            };
            // What was lost stays the one to report, whatever comes of sending it again.
            if !failed.as_ref().is_some_and(Error::is_unknown) {
                failed = match told {
                    Err(error) => Some(error),
                    _ => made.as_ref().map(|made| self.conflict(made.expected)),
                };
            }
            step = machine.on(event, now());
        };
        let source = failed.unwrap_or_else(|| self.not_found());
        Err(match reason {
            None => source,
            Some(reason) => Error::GaveUp {
                attempts: machine.attempt(),
                reason,
                source: source.into(),
            },
        })
    }

    async fn try_free(&self, made: &mut Option<Made<R>>) -> Result<Told<R>, Error> {
        // One for both statements: giving it back and taking it again costs the pool a ping.
        let mut connection = self.at.pool.acquire().await?;
        let told = async {
            let row = self.at.table.load_on(&mut connection, &self.at.key).await?;
            self.change(&mut connection, row, made).await
        };
        let told = told.await;
        if is_spoilt(&told) {
            connection.close_on_drop();
        }
        told
    }

    /// This one's turn among those of the process who are about to lock the row. A courtesy, which nothing
    /// but the order depends on: `None` if it does not come, because who has it is stuck.
    async fn turn(&self) -> Option<KeyedPermit<'p, u64>> {
        let Optimistic { table, key, .. } = &self.at;
        let key = table.arguments(key).ok()?.fingerprint();
        let turn = tokio::time::timeout(LONGEST_LINE, table.turns().acquire(key));
        turn.await.ok()
    }

    /// Whether others stand in line for the row.
    fn crowded(&self) -> bool {
        let Optimistic { table, key, .. } = &self.at;
        let key = table.arguments(key).map(|key| key.fingerprint());
        key.is_ok_and(|key| table.turns().waiting_for(&key) > 0)
    }

    /// Whoever is at the row as well waits, so what was read is what is written over.
    async fn try_locked(&self, made: &mut Option<Made<R>>) -> Result<Told<R>, Error> {
        // Whatever is the default there: above it, who has waited for a row is refused for having waited.
        let options = TxOptions::new().isolation(Isolation::ReadCommitted);
        let mut tx = Tx::begin(self.at.pool, &options).await?;
        let told = self.in_transaction(&mut tx, made).await;
        let is_spoilt = is_spoilt(&told);
        match told {
            Ok(Told::Written(_)) => tx.commit().await?,
            _ => tx.undo(is_spoilt).await,
        }
        told
    }

    async fn in_transaction(
        &self,
        tx: &mut Tx<'static, DB>,
        made: &mut Option<Made<R>>,
    ) -> Result<Told<R>, Error> {
        let Optimistic { table, key, .. } = &self.at;
        let row = table.load_locked(tx, key).await?;
        self.change(tx, row, made).await
    }

    async fn change(
        &self,
        connection: &mut DB::Connection,
        row: Option<Loaded<R>>,
        made: &mut Option<Made<R>>,
    ) -> Result<Told<R>, Error> {
        let Some(row) = row else {
            return Ok(Told::Missing);
        };
        match self.make(row, made) {
            Ok(None) => {}
            Ok(Some(kept)) => return Ok(Told::Kept(kept)),
            Err(error) => return Ok(Told::CalledOff(error)),
        }
        self.write(connection, made.as_ref()).await
    }

    /// What was lost, once more as it was.
    async fn write_again(&self, made: Option<&Made<R>>) -> Result<Told<R>, Error> {
        let mut connection = self.at.pool.acquire().await?;
        let told = self.write(&mut connection, made).await;
        if is_spoilt(&told) {
            connection.close_on_drop();
        }
        told
    }

    /// The compare-and-set of what was made last.
    async fn write(
        &self,
        connection: &mut DB::Connection,
        made: Option<&Made<R>>,
    ) -> Result<Told<R>, Error> {
        let Some(Made { mine, expected, .. }) = made else {
            return Ok(Told::Missing);
        };
        let Optimistic { table, key, .. } = &self.at;
        let mut arguments = table.expecting(key, *expected)?;
        table.add_columns(&mut arguments, mine)?;
        let key = table.arguments(key)?;
        let outcome = table.update(connection, key, *expected, arguments).await?;
        Ok(outcome.into())
    }

    /// What is to become of the row. `Some`: it stays as it is. An error is the closure's.
    fn make(&self, row: Loaded<R>, made: &mut Option<Made<R>>) -> Result<Option<Loaded<R>>, Error> {
        let Loaded { value, version } = row;
        let merged = match (&self.merge, &*made) {
            (Some(merge), Some(Made { base, mine, .. })) => merge(base, mine, &value),
            _ => None,
        };
        let mine = match merged {
            Some(merged) => merged,
            None => match (self.apply)(&value)? {
                Some(mine) => mine,
                None => return Ok(Some(Loaded { value, version })),
            },
        };
        *made = Some(Made {
            base: value,
            mine,
            expected: version,
        });
        Ok(None)
    }

    fn conflict(&self, expected: Version) -> Error {
        Error::Conflict {
            table: self.at.table.name().to_owned(),
            expected: expected.get(),
        }
    }

    fn not_found(&self) -> Error {
        Error::NotFound {
            table: self.at.table.name().to_owned(),
        }
    }
}

/// What a try has read, what was made of it, and what it expects to find.
struct Made<R> {
    base: R,
    mine: R,
    expected: Version,
}

/// How a try ended.
enum Told<R> {
    Written(Version),
    /// The closure wants no change.
    Kept(Loaded<R>),
    /// The closure has returned an error.
    CalledOff(Error),
    Conflict,
    Missing,
}

impl<R> From<Outcome> for Told<R> {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Updated { version } => Self::Written(version),
            Outcome::Conflict { .. } => Self::Conflict,
            Outcome::NotFound => Self::Missing,
        }
    }
}

fn applied<R>(value: R, version: Version, changed: bool, machine: &Machine) -> Applied<R> {
    Applied {
        value,
        version,
        changed,
        attempts: machine.attempt(),
        locked: machine.locked(),
    }
}

/// Whether the connection is to be closed after this.
fn is_spoilt<R>(told: &Result<Told<R>, Error>) -> bool {
    matches!(told, Err(error) if spoils_connection(error))
}

/// What an error of a statement or of COMMIT means.
fn event_of(error: &Error) -> Event {
    let mendable = match error {
        Error::Unknown { .. } | Error::UnknownCommit { .. } => return Event::Lost,
        // A verdict, whatever is at the bottom of it.
        Error::Table { .. } => false,
        error => match classify(error) {
            // How it is told where transactions are repeatable by default.
            Class::Serialization => return Event::Conflict,
            class => class.is_retryable() || class == Class::LockNotAvailable,
        },
    };
    Event::Failed { mendable }
}

/// tokio's clock, so that a paused one governs deadline and pauses alike.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Merges one field of three rows: what only one side has changed, and what both have made the same. `None`
/// if they disagree.
///
/// # Examples
///
/// ```
/// use lockkit_db::optimistic::three_way;
///
/// assert_eq!(three_way(&1, &1, &5), Some(5));
/// assert_eq!(three_way(&1, &2, &1), Some(2));
/// assert_eq!(three_way(&1, &2, &2), Some(2));
/// assert_eq!(three_way(&1, &2, &5), None);
/// ```
pub fn three_way<T: PartialEq + Clone>(base: &T, mine: &T, theirs: &T) -> Option<T> {
    if mine == base || mine == theirs {
        Some(theirs.clone())
    } else if theirs == base {
        Some(mine.clone())
    } else {
        None
    }
}

impl<DB: Backend, K> fmt::Debug for Optimistic<'_, DB, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Optimistic")
            .field("table", self.table)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl<DB: Backend, K, R> fmt::Debug for Update<'_, DB, K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Update")
            .field("at", &self.at)
            .field("merges", &self.merge.is_some())
            .finish_non_exhaustive()
    }
}
