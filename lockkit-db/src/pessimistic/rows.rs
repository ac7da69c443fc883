//! A description of locks, and what comes of it.

use std::fmt;
use std::time::Duration;

use sqlx::{Arguments as _, Encode, FromRow, Type};

use super::dialect::{RowKey, RowLocks};
use super::text::{self, Parts};
use crate::Error;
use crate::backend::milliseconds;
use crate::cas::dialect::Fault;
use crate::transaction::Tx;
#[cfg(feature = "postgres")]
use crate::transaction::Watch;

/// The most keys in one call.
const MOST_KEYS: usize = 10_000;

/// How strongly a row is locked. From the weakest of those that keep others from changing it to the strongest,
/// and then the two that can be shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockMode {
    /// To change it, but not its key, nor to delete it. Others may insert rows that refer to it.
    #[default]
    NoKeyUpdate,
    /// To change all of it, or delete it. Holds up those who insert rows that refer to it.
    Update,
    /// To keep it as it is, together with others who want that. Two who share it and then both change it
    /// deadlock.
    Share,
    /// To keep its key as it is and it from being deleted: others may share it, and change the rest of it.
    KeyShare,
}

/// How long to wait for each row that somebody else has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Wait {
    /// For as long as the transaction's bound says.
    #[default]
    Bound,
    /// Not at all: an error at once. A table that is being altered is waited for all the same.
    NoWait,
    /// Not at all: the row is left out and named as [`Found::Skipped`].
    SkipLocked,
    /// For this long; in whole milliseconds, rounded up. Costs two round trips more, one to set the bound and
    /// one to put the transaction's back.
    AtMost(Duration),
}

/// Which rows of a table are locked and how: a description that can be kept and used again.
///
/// Names are taken as they are in the database's catalogue, a table's with its schema before a dot or
/// without. Letters, digits and `_` are all there may be in a name.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use lockkit_db::sqlx;
/// use lockkit_db::pessimistic::RowLock;
/// use lockkit_db::{Error, retry_tx};
///
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("bank.db");
/// # let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).create_if_missing(true);
/// # let pool = sqlx::SqlitePool::connect_with(options).await?;
/// sqlx::raw_sql("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL);
///                INSERT INTO account VALUES (1, 100), (2, 0)")
///     .execute(&pool)
///     .await?;
/// let accounts = RowLock::on("account", "id").columns(["amount"]);
/// let left = retry_tx!(&pool, |tx| {
///     // In either order: nobody deadlocks. A missing account is an error that names it.
///     let both = accounts.lock::<_, _, (i64,)>(&mut tx, &[2, 1]).await?.all()?;
///     let left = both[1].0 - 30;
///     if left < 0 {
///         return Err(Error::stop("not enough"));
///     }
///     sqlx::query("UPDATE account SET amount = amount + CASE id WHEN 1 THEN -30 ELSE 30 END")
///         .execute(&mut *tx)
///         .await?;
///     Ok::<_, Error>(left)
/// })?;
/// assert_eq!(left, 70);
/// # Ok(()) }
/// # #[cfg(not(feature = "sqlite"))]
/// # fn main() {}
/// ```
#[derive(Clone, Debug)]
#[must_use = "a description locks nothing"]
pub struct RowLock {
    table: String,
    key: String,
    columns: Vec<String>,
    mode: LockMode,
    pub(super) wait: Wait,
    #[cfg(feature = "postgres")]
    watch: Option<Watch>,
}

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Found<T> {
    /// Its row is locked, and this is what it holds.
    Locked(T),
    /// It has no row.
    Missing,
    /// Somebody else has its row. Only with [`Wait::SkipLocked`].
    Skipped,
}

/// What became of each key, in the caller's order. A key that was given twice is answered twice.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a key may have no row"]
pub struct LockedRows<'k, K, T> {
    table: String,
    keys: &'k [K],
    rows: Vec<Found<T>>,
}

/// A row to lock, and what to make it of if it is not there; see [`RowLock::get_or_insert`].
#[must_use = "nothing is sent before `run`"]
pub struct FirstInsert<'a, 'c, DB: RowLocks, K> {
    lock: &'a RowLock,
    tx: &'a mut Tx<'c, DB>,
    key: &'a K,
    names: Vec<String>,
    /// The types of the key and the values.
    kinds: Vec<String>,
    /// The values so far, or what is wrong with one.
    values: Result<DB::Arguments, Error>,
}

/// The words that lock the rows of a SELECT of your own, to be appended to it: such as
/// ` FOR NO KEY UPDATE OF account SKIP LOCKED`, with the blank before.
///
/// `of` are the tables, by the names that they have in the statement, of which the rows are locked; none are all
/// of them. In a join of a row with what it refers to, that is rarely what is meant. Order the rows by their
/// keys, and never by what changes.
///
/// Costs nothing: it is text. Run it in a transaction; outside of one the locks are gone before the answer
/// is read.
///
/// # Errors
///
/// [`Error::Invalid`] for a name that is not plain, for [`Wait::AtMost`], which a statement cannot say (it
/// is the transaction's [`wait`](crate::transaction::TxOptions::wait)). [`Error::Unsupported`] on SQLite, which
/// has no such words, and locks everything when a writing transaction begins.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "postgres")] {
/// use lockkit_db::pessimistic::{LockMode, Wait, lock_clause};
///
/// let clause = lock_clause::<sqlx::Postgres>(LockMode::default(), Wait::SkipLocked, &["o"])?;
/// let sql = format!("SELECT o.id FROM orders o JOIN shop s ON s.id = o.shop ORDER BY o.id{clause}");
/// assert!(sql.ends_with(r#"ORDER BY o.id FOR NO KEY UPDATE OF "o" SKIP LOCKED"#));
/// # }
/// # use lockkit_db::sqlx;
/// # Ok::<_, lockkit_db::Error>(())
/// ```
pub fn lock_clause<DB: RowLocks>(mode: LockMode, wait: Wait, of: &[&str]) -> Result<String, Error> {
    if let Wait::AtMost(_) = wait {
        return Err(Error::invalid(
            "wait",
            "a statement cannot say for how long; bound the transaction's waits",
        ));
    }
    let of: Result<Vec<_>, _> = of.iter().map(|table| DB::quote("of", table)).collect();
    DB::clause(mode, wait, &of?)
}

// === impl RowLock ===

impl RowLock {
    /// Rows of `table`, found by the column `key`, which should be unique.
    pub fn on(table: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            table: table.into(),
            key: key.into(),
            columns: Vec::new(),
            mode: LockMode::default(),
            wait: Wait::default(),
            #[cfg(feature = "postgres")]
            watch: None,
        }
    }

    /// The columns to read, in this order; otherwise all of them.
    pub fn columns<C: Into<String>>(mut self, columns: impl IntoIterator<Item = C>) -> Self {
        self.columns = columns.into_iter().map(Into::into).collect();
        self
    }

    /// How strongly.
    pub fn mode(mut self, mode: LockMode) -> Self {
        self.mode = mode;
        self
    }

    /// [`LockMode::NoKeyUpdate`], which is the default.
    pub fn for_no_key_update(self) -> Self {
        self.mode(LockMode::NoKeyUpdate)
    }

    /// [`LockMode::Update`].
    pub fn for_update(self) -> Self {
        self.mode(LockMode::Update)
    }

    /// [`LockMode::Share`].
    pub fn for_share(self) -> Self {
        self.mode(LockMode::Share)
    }

    /// [`LockMode::KeyShare`].
    pub fn for_key_share(self) -> Self {
        self.mode(LockMode::KeyShare)
    }

    /// How long to wait for each row.
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// Names who blocks, in the error of a wait that has ended, by questions over another connection while it
    /// lasts. The watch is the transaction's: [`Tx::watch`].
    #[cfg(feature = "postgres")]
    pub fn watch(mut self, watch: &Watch) -> Self {
        self.watch = Some(watch.clone());
        self
    }

    /// Locks the rows of `keys` in the order of the keys, and answers in yours.
    ///
    /// One round trip, one statement. With [`Wait::AtMost`] three; with [`Wait::SkipLocked`] a second one if
    /// any key is not answered by a locked row, to tell the missing from the skipped. On SQLite one step
    /// more.
    ///
    /// `T` is made from the row's columns, by sqlx, which on SQLite reads a NULL that is no [`Option`] as 0 or as an
    /// empty text; `()` reads none. The keys may be of any type that compares with the
    /// column, and NULL has no row.
    ///
    /// # Errors
    ///
    /// - [`Error::Invalid`] for no keys, for more than 10,000, for a name that is not plain or a wait of
    ///   zero or of more than 24 days; [`Error::Unsupported`] for what the database does not do. Nothing
    ///   was sent then.
    /// - [`Error::LockNotAvailable`] when a row was not to be had in time. PostgreSQL refuses all that follows,
    ///   up to a rollback of the transaction or of a [savepoint](Tx::savepoint).
    /// - [`Error::Table`] when table and description do not fit, or a row is not what `T` reads. It is locked then.
    /// - The database's, deadlocks among them; [`Error::MustRestart`] for those in a joined transaction that a
    ///   new attempt may mend.
    ///
    /// # Cancel safety
    ///
    /// Dropped, some of the rows may be locked, until the transaction ends: the server finishes what it has
    /// begun. With [`Wait::AtMost`] its shorter bound may stay until then.
    pub async fn lock<'k, DB, K, T>(
        &self,
        tx: &mut Tx<'_, DB>,
        keys: &'k [K],
    ) -> Result<LockedRows<'k, K, T>, Error>
    where
        DB: RowLocks,
        K: RowKey<DB>,
        T: for<'r> FromRow<'r, DB::Row>,
    {
        let count = keys.len();
        if count == 0 || count > MOST_KEYS {
            let problem = format!("are {count}, and 1 to {MOST_KEYS} is what one call takes");
            return Err(Error::invalid("keys", problem));
        }
        let ready = self.ready(tx)?;
        let list = DB::list(count, &text::kinds([K::kind().as_str()]));
        let bind = || {
            let mut arguments = DB::Arguments::default();
            match K::bind_all(keys, &mut arguments) {
                Ok(()) => Ok(arguments),
                Err(error) => Err(Error::invalid("keys", error.to_string())),
            }
        };
        let arguments = bind()?;
        DB::arm(tx.connection(), &ready.parts.table)
            .await
            .map_err(|error| self.explain(tx, error.into()))?;
        let before = tx.bound_waits(ready.bound.as_deref()).await?;
        let text = text::select(&ready.parts, &list, &ready.clause);
        let locked = self.fetch(tx, text, arguments).await;
        let locked = tx.bound_again(before.as_deref(), locked).await?;

        let mut rows: Vec<Found<T>> = keys.iter().map(|_| Found::Missing).collect();
        for row in &locked {
            *place::<DB, _>(&mut rows, row)? = Found::Locked(self.read(row)?);
        }
        if self.wait == Wait::SkipLocked && locked.len() < count {
            let text = text::present(&ready.parts, &list);
            for row in &self.fetch(tx, text, bind()?).await? {
                let found = place::<DB, _>(&mut rows, row)?;
                if let Found::Missing = found {
                    *found = Found::Skipped;
                }
            }
        }
        Ok(LockedRows {
            table: self.table.clone(),
            keys,
            rows,
        })
    }

    /// Locks one row. Costs what [`lock`](Self::lock) costs.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock).
    ///
    /// # Cancel safety
    ///
    /// As [`lock`](Self::lock).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[cfg(feature = "postgres")]
    /// # async fn f(pool: sqlx::PgPool) -> Result<(), lockkit_db::Error> {
    /// # use lockkit_db::sqlx;
    /// use lockkit_db::pessimistic::{Found, RowLock, Wait};
    /// use lockkit_db::transaction::{Tx, TxOptions};
    ///
    /// let seats = RowLock::on("seat", "number").columns(["guest"]).wait(Wait::SkipLocked);
    /// let mut tx = Tx::begin(&pool, &TxOptions::new()).await?;
    /// match seats.lock_one::<_, _, (Option<String>,)>(&mut tx, &17).await? {
    ///     Found::Locked((None,)) => println!("yours"),
    ///     Found::Locked((Some(guest),)) => println!("{guest}'s"),
    ///     Found::Skipped => println!("somebody is booking it"),
    ///     _ => println!("there is no such seat"),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn lock_one<DB, K, T>(&self, tx: &mut Tx<'_, DB>, key: &K) -> Result<Found<T>, Error>
    where
        DB: RowLocks,
        K: RowKey<DB>,
        T: for<'r> FromRow<'r, DB::Row>,
    {
        let mut rows = self.lock(tx, std::slice::from_ref(key)).await?.rows;
        Ok(rows.pop().unwrap_or(Found::Missing))
    }

    /// Locks the row of `key`, or makes it: for rows that come to be when they are first used. Of those who race
    /// to be the first, one makes it and the others wait for him and get his row. Give the values of a new row
    /// with [`set`](FirstInsert::set), and [`run`](FirstInsert::run) it.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[cfg(feature = "postgres")]
    /// # async fn f(tx: &mut lockkit_db::transaction::Tx<'_, sqlx::Postgres>) -> Result<(), lockkit_db::Error> {
    /// # use lockkit_db::sqlx;
    /// use lockkit_db::pessimistic::RowLock;
    ///
    /// let counters = RowLock::on("counter", "name").columns(["hits"]);
    /// let first = counters.get_or_insert(tx, &"front page").set("hits", 0_i64);
    /// let ((hits,), new): ((i64,), bool) = first.run().await?;
    /// # let _ = (hits, new);
    /// # Ok(()) }
    /// ```
    pub fn get_or_insert<'a, 'c, DB, K>(
        &'a self,
        tx: &'a mut Tx<'c, DB>,
        key: &'a K,
    ) -> FirstInsert<'a, 'c, DB, K>
    where
        DB: RowLocks,
        K: RowKey<DB>,
    {
        let mut values = DB::Arguments::default();
        let bound = key.bind(&mut values);
        FirstInsert {
            lock: self,
            tx,
            key,
            names: Vec::new(),
            kinds: vec![K::kind()],
            values: bound
                .map(|()| values)
                .map_err(|error| Error::invalid("key", error.to_string())),
        }
    }

    #[cfg(feature = "postgres")]
    pub(super) fn watched(&self) -> Option<Watch> {
        let watch = self.watch.as_ref()?;
        Some(match self.wait {
            Wait::AtMost(bound) => watch.within(bound),
            _ => watch.clone(),
        })
    }

    #[cfg(feature = "sqlite")]
    #[cfg_attr(not(feature = "postgres"), expect(clippy::unused_self))]
    pub(super) fn is_watched(&self) -> bool {
        #[cfg(feature = "postgres")]
        let watched = self.watch.is_some();
        #[cfg(not(feature = "postgres"))]
        let watched = false;
        watched
    }

    /// What is wrong with it, before anything is sent.
    fn ready<DB: RowLocks>(&self, tx: &Tx<'_, DB>) -> Result<Ready, Error> {
        let table: Result<Vec<_>, _> = self
            .table
            .splitn(2, '.')
            .map(|part| DB::quote("table", part))
            .collect();
        let columns: Result<Vec<_>, _> = self
            .columns
            .iter()
            .map(|name| DB::quote("columns", name))
            .collect();
        let parts = Parts {
            table: table?.join("."),
            key: DB::quote("key", &self.key)?,
            columns: columns?,
        };
        let bound = match self.wait {
            Wait::AtMost(time) => Some(milliseconds("wait", time)?.to_string()),
            _ => None,
        };
        DB::check(tx, self)?;
        // Where there are no words for it, the transaction has the lock already, or takes it first.
        let clause = match DB::clause(self.mode, self.wait, &["t".to_owned()]) {
            Ok(clause) => clause,
            Err(Error::Unsupported { .. }) => String::new(),
            Err(error) => return Err(error),
        };
        Ok(Ready {
            parts,
            clause,
            bound,
        })
    }

    /// The row and whether it is new; `None` if others have made it and deleted it since.
    async fn had_or_made<DB, K, T>(
        &self,
        tx: &mut Tx<'_, DB>,
        key: &K,
        insert: String,
        values: DB::Arguments,
    ) -> Result<Option<(T, bool)>, Error>
    where
        DB: RowLocks,
        K: RowKey<DB>,
        T: for<'r> FromRow<'r, DB::Row>,
    {
        if let Found::Locked(row) = self.lock_one(tx, key).await? {
            return Ok(Some((row, false)));
        }
        // An INSERT cannot be told not to wait.
        let shortest = (self.wait == Wait::NoWait).then_some("1");
        let longer = tx.bound_waits(shortest).await?;
        let made = self.fetch(tx, insert, values).await;
        let made = tx.bound_again(longer.as_deref(), made).await?;
        if let Some(row) = made.first() {
            return Ok(Some((self.read(row)?, true)));
        }
        let others = self.lock_one(tx, key).await?;
        Ok(others.locked().map(|row| (row, false)))
    }

    async fn fetch<DB: RowLocks>(
        &self,
        tx: &mut Tx<'_, DB>,
        text: String,
        arguments: DB::Arguments,
    ) -> Result<Vec<DB::Row>, Error> {
        let rows = DB::fetch(tx.connection(), text, arguments, self).await;
        rows.map_err(|error| self.explain(tx, error))
    }

    fn read<'r, R, T: FromRow<'r, R>>(&self, row: &'r R) -> Result<T, Error>
    where
        R: sqlx::Row,
    {
        let problem = "a column is not of the type that it is read as";
        T::from_row(row).map_err(|error| self.misfit(problem, error))
    }

    /// What an error of a statement means: that the table is not as described, or what it means for the
    /// transaction.
    fn explain<DB: RowLocks>(&self, tx: &Tx<'_, DB>, error: Error) -> Error {
        let Error::Database { source } = error else {
            return tx.explain_ours(error);
        };
        match source.downcast::<sqlx::Error>() {
            Ok(error) => match DB::fault(&error) {
                Fault::Description(problem) => self.misfit(problem, *error),
                _ => tx.explain(*error),
            },
            Err(source) => tx.explain_ours(Error::Database { source }),
        }
    }

    fn misfit(&self, problem: &'static str, source: sqlx::Error) -> Error {
        Error::Table {
            table: self.table.clone(),
            problem,
            source: Some(source.into()),
        }
    }
}

/// What a call needs, checked.
struct Ready {
    parts: Parts,
    clause: String,
    bound: Option<String>,
}

/// The answer to the key that a row belongs to.
fn place<'f, DB: RowLocks, T>(
    rows: &'f mut [Found<T>],
    row: &DB::Row,
) -> Result<&'f mut Found<T>, Error> {
    let place = DB::place(row)?;
    usize::try_from(place - 1)
        .ok()
        .and_then(|at| rows.get_mut(at))
        .ok_or_else(|| Error::from(sqlx::Error::Protocol(format!("no key has place {place}"))))
}

// === impl Found ===

impl<T> Found<T> {
    /// The row, if it is locked.
    #[must_use]
    pub fn locked(self) -> Option<T> {
        match self {
            Self::Locked(row) => Some(row),
            Self::Missing | Self::Skipped => None,
        }
    }
}

// === impl LockedRows ===

impl<'k, K, T> LockedRows<'k, K, T> {
    /// The answers, one for each key, in the order of the keys.
    #[must_use]
    pub fn into_vec(self) -> Vec<Found<T>> {
        self.rows
    }

    /// Each key with its answer.
    pub fn iter(&self) -> impl Iterator<Item = (&'k K, &Found<T>)> {
        self.keys.iter().zip(&self.rows)
    }

    /// The keys that have no row.
    pub fn missing(&self) -> impl Iterator<Item = &'k K> {
        self.that(|found| matches!(found, Found::Missing))
    }

    /// The keys whose rows others have.
    pub fn skipped(&self) -> impl Iterator<Item = &'k K> {
        self.that(|found| matches!(found, Found::Skipped))
    }

    /// The rows, if every key has one and all of them are locked.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllLocked`] with the places of those that are not.
    pub fn all(self) -> Result<Vec<T>, Error> {
        let places = |which: fn(&Found<T>) -> bool| {
            let places = self.rows.iter().enumerate();
            places
                .filter(|(_, found)| which(found))
                .map(|(at, _)| at)
                .collect::<Vec<_>>()
        };
        let missing = places(|found| matches!(found, Found::Missing));
        let skipped = places(|found| matches!(found, Found::Skipped));
        if missing.is_empty() && skipped.is_empty() {
            return Ok(self.rows.into_iter().filter_map(Found::locked).collect());
        }
        Err(Error::NotAllLocked {
            table: self.table,
            missing,
            skipped,
        })
    }

    fn that(&self, which: fn(&Found<T>) -> bool) -> impl Iterator<Item = &'k K> {
        self.iter()
            .filter(move |(_, found)| which(found))
            .map(|(key, _)| key)
    }
}

// === impl FirstInsert ===

impl<DB: RowLocks, K: RowKey<DB>> FirstInsert<'_, '_, DB, K> {
    /// A column's value, should the row be made. Columns without one get their defaults.
    pub fn set<V>(mut self, column: impl Into<String>, value: V) -> Self
    where
        V: for<'q> Encode<'q, DB> + Type<DB>,
    {
        let Ok(values) = &mut self.values else {
            return self;
        };
        let kind = value.produces().unwrap_or_else(V::type_info).to_string();
        match values.add(value) {
            Ok(()) => {
                self.names.push(column.into());
                self.kinds.push(kind);
            }
            Err(error) => self.values = Err(Error::invalid("value", error.to_string())),
        }
        self
    }

    /// The row, locked, and whether it is new.
    ///
    /// One round trip if the row is there; two if it is made; three if somebody else makes it meanwhile.
    /// With [`Wait::AtMost`] two more. A new row is locked like one that was changed, whatever the mode. The key
    /// needs a unique index.
    ///
    /// # Errors
    ///
    /// As [`RowLock::lock`], and
    /// - [`Error::Invalid`] with [`Wait::SkipLocked`], for which there would be no answer;
    /// - [`Error::LockNotAvailable`] with [`Wait::NoWait`] also when somebody is just making the row; this is
    ///   found out in a millisecond;
    /// - [`Error::Again`] (joined: [`Error::MustRestart`]) when the row was made and deleted by others
    ///   meanwhile;
    /// - PostgreSQL refuses it with a serialization failure under REPEATABLE READ when somebody else made
    ///   it after the transaction's first statement.
    ///
    /// # Cancel safety
    ///
    /// As [`RowLock::lock`]; the row may have been made, as a part of the transaction.
    pub async fn run<T>(self) -> Result<(T, bool), Error>
    where
        T: for<'r> FromRow<'r, DB::Row>,
    {
        let Self {
            lock,
            tx,
            key,
            names,
            kinds,
            values,
        } = self;
        if lock.wait == Wait::SkipLocked {
            return Err(Error::invalid(
                "wait",
                "a row that is skipped can be neither had nor made",
            ));
        }
        let values = values?;
        let ready = lock.ready(tx)?;
        let names: Result<Vec<_>, _> = names.iter().map(|name| DB::quote("set", name)).collect();
        let names = names?;

        let mut insert = text::insert(&ready.parts, &names);
        insert.push_str(&text::kinds(kinds.iter().map(String::as_str)));

        let before = tx.bound_waits(ready.bound.as_deref()).await?;
        // The bound is set for all of it.
        let mut each = lock.clone();
        if let Wait::AtMost(_) = lock.wait {
            each.wait = Wait::Bound;
        }
        let had = each.had_or_made(tx, key, insert, values).await;
        let had = tx.bound_again(before.as_deref(), had).await?;
        had.ok_or_else(|| {
            let gone = "the row was made and deleted by others";
            if tx.is_joined() {
                Error::MustRestart {
                    source: gone.into(),
                }
            } else {
                Error::again(gone)
            }
        })
    }
}

impl<DB: RowLocks, K> fmt::Debug for FirstInsert<'_, '_, DB, K> {
    /// Without the values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirstInsert")
            .field("lock", &self.lock)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}
