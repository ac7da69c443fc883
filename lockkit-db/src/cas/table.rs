//! A table with versions, and the statements over one of its rows.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use lockkit_core::KeyedSemaphore;
use lockkit_core::sync::Mutex;
use sqlx::error::UnexpectedNullError;
use sqlx::{Acquire, AssertSqlSafe, SqlSafeStr as _, SqlStr};
use sqlx_core::transaction::TransactionManager as _;

use super::dialect::{Fault, Kind};
use super::{Bind, Deleted, Loaded, Outcome, Record, Values, Version};
use crate::Error;
use crate::backend::{Backend, plain_name};
use crate::optimistic::adaptive::{Adaptive, ConflictStats};

/// The most columns that a key may have.
const MOST_KEYS: usize = 16;
/// The most value columns: a statement takes two sets of them at most, and SQLite 32,766 values.
const MOST_COLUMNS: usize = 500;

/// The description of a table whose rows carry a version, with the statements made of it.
///
/// Cheap to clone; clones share their [conflict statistics](Self::conflicts), and the lines of
/// [`optimistic()`](crate::optimistic()) updates at their rows. Make one and keep it.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use lockkit_db::cas::{Outcome, Table, Version};
/// # use lockkit_db::sqlx;
/// # use lockkit_db::sqlx::Sqlite;
///
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("notes.db");
/// # let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).create_if_missing(true);
/// # let pool = sqlx::SqlitePool::connect_with(options).await?;
/// sqlx::raw_sql("CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT, stars INTEGER,
///                                   version INTEGER NOT NULL)")
///     .execute(&pool)
///     .await?;
/// let notes: Table<Sqlite> = Table::describe("note")
///     .key("id")
///     .columns(["title", "stars"])
///     .version("version")
///     .build()?;
///
/// let first = notes.insert(&pool, 7, ("groceries", 0)).await?.expect("there is no note 7 yet");
/// let changed = notes.cas(&pool, 7, first, ("groceries", 5)).await?;
/// let Outcome::Updated { version } = changed else { unreachable!("nobody else is here") };
///
/// // Whoever has read it before comes too late.
/// let late = notes.cas(&pool, 7, first, ("errands", 0)).await?;
/// assert_eq!(late, Outcome::Conflict { current: version });
///
/// let note = notes.load::<(String, i64), _>(&pool, 7).await?.expect("it is there");
/// assert_eq!(note.value, ("groceries".to_owned(), 5));
/// # Ok(()) }
/// # #[cfg(not(feature = "sqlite"))]
/// # fn main() {}
/// ```
pub struct Table<DB: Backend> {
    inner: Arc<Inner>,
    database: PhantomData<fn() -> DB>,
}

/// Puts a [`Table`] together.
#[must_use = "a builder does nothing until `build`"]
pub struct TableBuilder<DB: Backend> {
    name: String,
    keys: Vec<String>,
    columns: Vec<String>,
    version: Option<(String, Kind)>,
    database: PhantomData<fn() -> DB>,
}

struct Inner {
    name: String,
    parts: Parts,
    texts: Texts,
    conflicts: Mutex<Adaptive>,
    /// A place or two for each key, by its fingerprint.
    turns: KeyedSemaphore<u64>,
}

/// The key's values come first in each, then the version, then the rest.
struct Texts {
    load: Text,
    lock: Text,
    version: Text,
    insert: Text,
    update: Text,
    delete: Text,
    /// Arrays of keys, of versions, and of each column.
    batch: Text,
    /// Arrays of keys.
    versions: Text,
}

/// See [`Table::statements`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statements<'t> {
    /// That of [`Table::load`].
    pub load: &'t str,
    /// That of [`Table::insert`].
    pub insert: &'t str,
    /// That of [`Table::cas`].
    pub update: &'t str,
    /// That of [`Table::delete`].
    pub delete: &'t str,
}

/// What became of a guarded change.
enum Told {
    Done(Version),
    Conflict(Version),
    Missing,
}

// === impl TableBuilder ===

impl<DB: Backend> TableBuilder<DB> {
    /// A column of the key, under which there is at most one row. Call it for each one in turn, and give the
    /// values as a tuple in the same order.
    pub fn key(mut self, column: &str) -> Self {
        self.keys.push(column.to_owned());
        self
    }

    /// The columns that are read and written, in the order in which a [`Record`] has them. Others stay as
    /// they are; describe the table a second time to change others.
    pub fn columns<'a>(mut self, columns: impl IntoIterator<Item = &'a str>) -> Self {
        self.columns.extend(columns.into_iter().map(str::to_owned));
        self
    }

    /// The column of the version: an integer, `NOT NULL`.
    pub fn version(mut self, column: &str) -> Self {
        self.version = Some((column.to_owned(), Kind::Count));
        self
    }

    /// The column of the version: the server's time of the last change in microseconds, `NOT NULL`. On
    /// PostgreSQL a `timestamptz`, on SQLite an `INTEGER`.
    pub fn timestamp(mut self, column: &str) -> Self {
        self.version = Some((column.to_owned(), Kind::Time));
        self
    }

    /// Checks the names, and writes the statements.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with the field: a name that is not a plain SQL name, one that is there twice, no key
    /// or over 16 columns of it, no value columns or over 500, no version.
    pub fn build(self) -> Result<Table<DB>, Error> {
        let table = match self.name.split_once('.') {
            Some((schema, name)) => {
                plain_name("schema", schema)?;
                format!(
                    "{}.{}",
                    DB::quote("schema", schema)?,
                    DB::quote("table", name)?
                )
            }
            None => DB::quote("table", &self.name)?,
        };
        let (version, kind) = self
            .version
            .as_ref()
            .ok_or_else(|| Error::invalid("version", format!("{} has none", self.name)))?;
        within("key", self.keys.len(), MOST_KEYS)?;
        within("columns", self.columns.len(), MOST_COLUMNS)?;
        let mut names: Vec<&str> = Vec::new();
        let all = (self.keys.iter().map(|name| ("key", name)))
            .chain(self.columns.iter().map(|name| ("columns", name)))
            .chain([("version", version)]);
        for (field, name) in all {
            plain_name(field, name)?;
            // SQLite takes names that differ in case only for the same.
            if names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                return Err(Error::invalid(field, format!("{name} is there twice")));
            }
            names.push(name);
        }
        let quoted = |names: &[String]| {
            let names = names.iter().map(|name| DB::quote("columns", name));
            names.collect::<Result<Vec<_>, _>>()
        };
        let parts = Parts {
            table,
            keys: quoted(&self.keys)?,
            columns: quoted(&self.columns)?,
            version: DB::quote("version", version)?,
            kind: *kind,
        };
        Ok(Table {
            inner: Arc::new(Inner {
                texts: parts.texts::<DB>(),
                parts,
                conflicts: Mutex::new(Adaptive::new()),
                turns: turns::<DB>(),
                name: self.name,
            }),
            database: PhantomData,
        })
    }
}

fn within(field: &'static str, number: usize, most: usize) -> Result<(), Error> {
    match number {
        0 => Err(Error::invalid(field, "names no column")),
        number if number > most => Err(Error::invalid(
            field,
            format!("names {number} columns, and {most} is the limit"),
        )),
        _ => Ok(()),
    }
}

/// Quoted names.
pub(crate) struct Parts {
    pub(crate) table: String,
    pub(crate) keys: Vec<String>,
    pub(crate) columns: Vec<String>,
    pub(crate) version: String,
    pub(crate) kind: Kind,
}

impl Parts {
    fn texts<DB: Backend>(&self) -> Texts {
        let Self {
            table,
            keys,
            columns,
            version,
            kind,
        } = self;
        let of_key = self.of_key();
        let first_free = keys.len() + 1;
        let expected = DB::given(&format!("${first_free}"), *kind);
        let unchanged = format!("{of_key} AND {version} = {expected}");
        let read = DB::read(version, *kind);
        let look = format!("SELECT 0, {read} FROM {table} WHERE {of_key}");

        let load = format!("SELECT {} FROM {table} WHERE {of_key}", self.of_row(&read));
        let update = format!(
            "UPDATE {table} SET {} WHERE {unchanged}",
            self.set::<DB>(first_free + 1),
        );
        let delete = format!("DELETE FROM {table} WHERE {unchanged}");
        let given: Vec<_> = (1..=keys.len() + columns.len())
            .map(|number| format!("${number}"))
            .collect();
        let insert = format!(
            "INSERT INTO {table} ({}, {}, {version}) VALUES ({}, {}) \
             ON CONFLICT ({}) DO NOTHING RETURNING {read}",
            keys.join(", "),
            columns.join(", "),
            given.join(", "),
            DB::first(*kind),
            keys.join(", "),
        );
        Texts {
            lock: Text::new(format!("{load}{}", DB::LOCKED)),
            load: Text::new(load),
            version: Text::new(format!("SELECT {read} FROM {table} WHERE {of_key}")),
            insert: Text::new(insert),
            update: Text::new(DB::guarded(&update, &read, &look)),
            delete: Text::new(DB::guarded(&delete, &read, &look)),
            batch: Text::new(self.batch::<DB>()),
            versions: Text::new(self.versions::<DB>()),
        }
    }

    /// The key in the first arguments.
    pub(crate) fn of_key(&self) -> String {
        let keys: Vec<_> = (self.keys.iter().zip(1..))
            .map(|(key, number)| format!("{key} = ${number}"))
            .collect();
        keys.join(" AND ")
    }

    /// What is read of a row: the value columns, the version, and the key.
    pub(crate) fn of_row(&self, version: &str) -> String {
        let (columns, keys) = (self.columns.join(", "), self.keys.join(", "));
        format!("{columns}, {version}, {keys}")
    }

    /// The columns set from the arguments from `first` on, and the version raised.
    pub(crate) fn set<DB: Backend>(&self, first: usize) -> String {
        let set: Vec<_> = (self.columns.iter().zip(first..))
            .map(|(column, number)| format!("{column} = ${number}"))
            .collect();
        format!(
            "{}, {} = {}",
            set.join(", "),
            self.version,
            DB::next(&self.version, self.kind)
        )
    }

    /// What is wanted: a number `i` from 1, the keys `k0..`, and on request the version `v` and the
    /// columns `c0..`. By `want$`, which hides no table, as a plain name has no `$`.
    fn wanted(&self, all: bool) -> String {
        let mut names: Vec<_> = (0..self.keys.len()).map(|at| format!("k{at}")).collect();
        if all {
            names.push("v".to_owned());
            names.extend((0..self.columns.len()).map(|at| format!("c{at}")));
        }
        let arrays: Vec<_> = (1..=names.len())
            .map(|number| format!("${number}"))
            .collect();
        format!(
            "want$ AS (SELECT * FROM unnest({}) WITH ORDINALITY AS w ({}, i))",
            arrays.join(", "),
            names.join(", "),
        )
    }

    /// The row `t` that is wanted by `w`.
    fn joined(&self) -> String {
        let keys: Vec<_> = (self.keys.iter().enumerate())
            .map(|(at, key)| format!("t.{key} = w.k{at}"))
            .collect();
        keys.join(" AND ")
    }

    /// Yields for each wanted row (i, what, version): 1 when it was changed, 0 when it is there, -1 when
    /// it is not.
    ///
    /// The rows are locked in the order of their keys before the first one is changed, so that two of these
    /// do not lock each other out.
    fn batch<DB: Backend>(&self) -> String {
        let Self { table, version, .. } = self;
        let version = format!("t.{version}");
        let unchanged = format!(
            "{} AND {version} = {}",
            self.joined(),
            DB::given("w.v", self.kind)
        );
        let order: Vec<_> = self.keys.iter().map(|key| format!("t.{key}")).collect();
        let set: Vec<_> = (self.columns.iter().enumerate())
            .map(|(at, column)| format!("{column} = w.c{at}"))
            .collect();
        let read = DB::read(&version, self.kind);
        format!(
            "WITH {wanted}, \
             held$ AS (SELECT w.i FROM want$ w JOIN {table} t ON {unchanged} ORDER BY {order}{lock} OF t), \
             done$ AS (UPDATE {table} AS t SET {set}, {bumped} = {next} \
                      FROM want$ w JOIN held$ h ON h.i = w.i WHERE {unchanged} \
                      RETURNING w.i, {read} AS told) \
             SELECT i, 1::bigint, told FROM done$ \
             UNION ALL {look} WHERE NOT EXISTS (SELECT FROM done$ d WHERE d.i = w.i)",
            wanted = self.wanted(true),
            order = order.join(", "),
            lock = DB::LOCKED,
            set = set.join(", "),
            bumped = self.version,
            next = DB::next(&version, self.kind),
            look = self.look::<DB>(),
        )
    }

    fn versions<DB: Backend>(&self) -> String {
        format!("WITH {} {}", self.wanted(false), self.look::<DB>())
    }

    fn look<DB: Backend>(&self) -> String {
        format!(
            "SELECT w.i, CASE WHEN t.{} IS NULL THEN -1::bigint ELSE 0 END, {} \
             FROM want$ w LEFT JOIN {} t ON {}",
            self.keys[0],
            DB::read(&format!("t.{}", self.version), self.kind),
            self.table,
            self.joined(),
        )
    }
}

/// A statement, and its likes for the types of arguments that it was given.
pub(crate) struct Text {
    plain: SqlStr,
    typed: Mutex<Vec<(String, SqlStr)>>,
}

/// More than this many combinations of types are put together anew each time.
const MOST_TYPED: usize = 32;

impl Text {
    /// The only names in it are quoted plain names, and all values are arguments.
    pub(crate) fn new(text: String) -> Self {
        Self {
            plain: AssertSqlSafe(Arc::<str>::from(text)).into_sql_str(),
            typed: Mutex::new(Vec::new()),
        }
    }

    /// As it is sent, but for the types.
    pub(crate) fn text(&self) -> &str {
        self.plain.as_str()
    }

    /// sqlx keeps prepared statements by their text alone. So that one prepared for an `INT4` is not given
    /// eight bytes, or one for an `INT8` those of a `FLOAT8`, the text names the types in a comment.
    fn typed(&self, types: &str) -> SqlStr {
        if types.is_empty() {
            return self.plain.clone();
        }
        let mut known = self.typed.lock();
        if let Some((_, text)) = known.iter().find(|(these, _)| these == types) {
            return text.clone();
        }
        let text = format!("{} /* {types} */", self.plain.as_str());
        let text = AssertSqlSafe(Arc::<str>::from(text)).into_sql_str();
        if known.len() < MOST_TYPED {
            known.push((types.to_owned(), text.clone()));
        }
        text
    }
}

// === impl Table ===

impl<DB: Backend> Table<DB> {
    /// Starts the description of a table, by its name, or by `schema.name`. Names are taken as they are:
    /// PostgreSQL tells upper from lower case in them, as it does in quoted ones.
    pub fn describe(name: &str) -> TableBuilder<DB> {
        TableBuilder {
            name: name.to_owned(),
            keys: Vec::new(),
            columns: Vec::new(),
            version: None,
            database: PhantomData,
        }
    }

    /// The table's name, as it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The statements over one row, as they are sent: to be read, or to be explained by the database. The
    /// arguments are the key's columns; then the expected version, where there is one; then the values.
    ///
    /// On PostgreSQL a comment with the types of the arguments follows.
    #[must_use]
    pub fn statements(&self) -> Statements<'_> {
        let texts = &self.inner.texts;
        Statements {
            load: texts.load.plain.as_str(),
            insert: texts.insert.plain.as_str(),
            update: texts.update.plain.as_str(),
            delete: texts.delete.plain.as_str(),
        }
    }

    /// What [`optimistic`](crate::optimistic()) has met in this table, through this description and its
    /// clones.
    #[must_use]
    pub fn conflicts(&self) -> ConflictStats {
        self.inner.conflicts.lock().stats()
    }

    // These four are no `async fn`s: that the future of one is `Send`, where it holds a connection that
    // is borrowed, is said here, since rustc cannot find it out in a caller's (rust-lang/rust#110338).

    /// Reads a row and its version. One round trip.
    ///
    /// # Errors
    ///
    /// [`Error::Table`] when table and description do not fit, or the version is NULL. [`Error::Invalid`] for
    /// a key of another number of values. [`Error::Closed`], or the database's.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub fn load<'c, R, A>(
        &self,
        on: A,
        key: impl Bind<DB>,
    ) -> impl Future<Output = Result<Option<Loaded<R>>, Error>> + Send
    where
        R: Record<DB>,
        A: Acquire<'c, Database = DB> + Send,
    {
        let key = self.arguments(&key);
        async move {
            let key = key?;
            let mut connection = on.acquire().await?;
            self.read(&mut *connection, &self.inner.texts.load, key)
                .await
        }
    }

    /// Inserts a row, with its first version. `None` if there is a row of that key already, which is left as
    /// it is. One round trip.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load); [`Error::Unknown`] when the reply is lost. Sent again, it says by `None` that
    /// a row is there, which may be the one that was sent first.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has happened or not.
    pub fn insert<'c, A>(
        &self,
        on: A,
        key: impl Bind<DB>,
        values: impl Bind<DB>,
    ) -> impl Future<Output = Result<Option<Version>, Error>> + Send
    where
        A: Acquire<'c, Database = DB> + Send,
    {
        let bound = || {
            let mut arguments = self.arguments(&key)?;
            self.add_columns(&mut arguments, &values)?;
            Ok::<_, Error>(arguments)
        };
        let bound = bound();
        async move {
            let arguments = bound?;
            let mut connection = on.acquire().await?;
            let rows = self
                .fetch(
                    &mut *connection,
                    &self.inner.texts.insert,
                    arguments,
                    Writes::Yes,
                )
                .await?;
            rows.first().map(|row| self.version(row, 0)).transpose()
        }
    }

    /// Sets all value columns of a row, and raises its version, if its version is the one expected.
    ///
    /// One statement and one round trip, on a pool or in a transaction (`&mut *tx`). A conflict tells the
    /// current version in the same round trip on PostgreSQL, unless it has come up while this statement
    /// waited for another one at the same row; then, and on SQLite, it takes one more.
    ///
    /// # Errors
    ///
    /// - [`Error::Unknown`] when the reply is lost, outside of a transaction: it has happened, is still to
    ///   happen, or has not. To send **the same again, with the same expected version**, is safe: one of the two
    ///   at most can find that version. If the second is [`Outcome::Updated`], it was the one. To look at
    ///   the version instead tells nothing: the first may still be on its way.
    /// - [`Error::Invalid`] for an expected version of `i64::MAX`, which has no successor, and for another number of values than
    ///   the table has columns.
    /// - [`Error::Table`] when table and description do not fit, the version is NULL or does not fit
    ///   its column, or the key is not unique.
    /// - [`Error::Closed`], or the database's: nothing has happened. In a transaction at an isolation level above the
    ///   lowest, PostgreSQL reports a conflict as an error that [`retry_tx!`](crate::retry_tx) mends.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it is as if the reply was lost.
    pub fn cas<'c, A>(
        &self,
        on: A,
        key: impl Bind<DB>,
        expected: Version,
        values: impl Bind<DB>,
    ) -> impl Future<Output = Result<Outcome, Error>> + Send
    where
        A: Acquire<'c, Database = DB> + Send,
    {
        let bound = || {
            let mut arguments = self.expecting(&key, expected)?;
            self.add_columns(&mut arguments, &values)?;
            let key = self.arguments(&key)?;
            Ok::<_, Error>((arguments, key))
        };
        let bound = bound();
        async move {
            let (arguments, key) = bound?;
            let mut connection = on.acquire().await?;
            self.update(&mut *connection, key, expected, arguments)
                .await
        }
    }

    /// Deletes a row if its version is the one expected. Costs what [`cas`](Self::cas) does.
    ///
    /// # Errors
    ///
    /// As [`cas`](Self::cas). Sent again after a lost reply, [`Deleted::NotFound`] may be the work of the
    /// first.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has happened or not.
    pub fn delete<'c, A>(
        &self,
        on: A,
        key: impl Bind<DB>,
        expected: Version,
    ) -> impl Future<Output = Result<Deleted, Error>> + Send
    where
        A: Acquire<'c, Database = DB> + Send,
    {
        let bound = || {
            let arguments = self.expecting(&key, expected)?;
            let key = self.arguments(&key)?;
            Ok::<_, Error>((arguments, key))
        };
        let bound = bound();
        async move {
            let (arguments, key) = bound?;
            let mut connection = on.acquire().await?;
            let text = &self.inner.texts.delete;
            let told = self
                .guarded(&mut *connection, text, key, expected, arguments)
                .await?;
            Ok(match told {
                Told::Done(_) => Deleted::Deleted,
                Told::Conflict(current) => Deleted::Conflict { current },
                Told::Missing => Deleted::NotFound,
            })
        }
    }

    // What `optimistic` is made of.

    pub(crate) async fn load_on<R: Record<DB>>(
        &self,
        connection: &mut DB::Connection,
        key: &impl Bind<DB>,
    ) -> Result<Option<Loaded<R>>, Error> {
        let key = self.arguments(key)?;
        self.read(connection, &self.inner.texts.load, key).await
    }

    /// Reads a row in a transaction, and keeps others from changing it until the end of that.
    pub(crate) async fn load_locked<R: Record<DB>>(
        &self,
        connection: &mut DB::Connection,
        key: &impl Bind<DB>,
    ) -> Result<Option<Loaded<R>>, Error> {
        let key = self.arguments(key)?;
        self.read(connection, &self.inner.texts.lock, key).await
    }

    pub(crate) async fn update(
        &self,
        connection: &mut DB::Connection,
        key: Values<DB>,
        expected: Version,
        arguments: Values<DB>,
    ) -> Result<Outcome, Error> {
        let text = &self.inner.texts.update;
        let told = self
            .guarded(connection, text, key, expected, arguments)
            .await?;
        Ok(match told {
            Told::Done(version) => Outcome::Updated { version },
            Told::Conflict(current) => Outcome::Conflict { current },
            Told::Missing => Outcome::NotFound,
        })
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    pub(super) fn batch_texts(&self) -> (&Text, &Text) {
        (&self.inner.texts.batch, &self.inner.texts.versions)
    }

    pub(crate) fn adaptive(&self) -> &Mutex<Adaptive> {
        &self.inner.conflicts
    }

    /// Where those line up who are about to lock a row.
    pub(crate) fn turns(&self) -> &KeyedSemaphore<u64> {
        &self.inner.turns
    }

    /// The key.
    pub(crate) fn arguments(&self, key: &impl Bind<DB>) -> Result<Values<DB>, Error> {
        let mut values = Values::new();
        key.bind(&mut values)?;
        self.count_keys(values.len())?;
        Ok(values)
    }

    /// The key and the version that is expected.
    pub(crate) fn expecting(
        &self,
        key: &impl Bind<DB>,
        expected: Version,
    ) -> Result<Values<DB>, Error> {
        self.has_next(expected)?;
        let mut values = self.arguments(key)?;
        values.push_number(expected.get())?;
        Ok(values)
    }

    /// A version after which there is another.
    #[expect(clippy::unused_self, reason = "reads well beside the others")]
    pub(crate) fn has_next(&self, version: Version) -> Result<(), Error> {
        if version.get() == i64::MAX {
            let problem = format!("there is none after {version}");
            return Err(Error::invalid("version", problem));
        }
        Ok(())
    }

    pub(super) fn count_keys(&self, given: usize) -> Result<(), Error> {
        self.count("key", self.inner.parts.keys.len(), given)
    }

    pub(super) fn count_columns(&self, given: usize) -> Result<(), Error> {
        self.count("values", self.inner.parts.columns.len(), given)
    }

    /// The value columns.
    pub(crate) fn add_columns(
        &self,
        arguments: &mut Values<DB>,
        values: &impl Bind<DB>,
    ) -> Result<(), Error> {
        let before = arguments.len();
        values.bind(arguments)?;
        self.count_columns(arguments.len() - before)
    }

    fn count(&self, field: &'static str, columns: usize, given: usize) -> Result<(), Error> {
        if given == columns {
            return Ok(());
        }
        let name = self.name();
        Err(Error::invalid(
            field,
            format!("{name} is described with {columns} columns here, got {given} values"),
        ))
    }

    async fn read<R: Record<DB>>(
        &self,
        connection: &mut DB::Connection,
        text: &Text,
        key: Values<DB>,
    ) -> Result<Option<Loaded<R>>, Error> {
        let rows = self.fetch(connection, text, key, Writes::No).await?;
        self.at_most_one(&rows)?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        self.row(row).map(Some)
    }

    /// A row as [`Parts::of_row`] has it.
    pub(crate) fn row<R: Record<DB>>(&self, row: &DB::Row) -> Result<Loaded<R>, Error> {
        let version = self.version(row, self.inner.parts.columns.len())?;
        let value = R::read(row).map_err(|error| {
            let problem = match &error {
                sqlx::Error::ColumnDecode { source, .. } if source.is::<UnexpectedNullError>() => {
                    "a value column is NULL, and is read as what cannot be"
                }
                _ => "a value column is not of the type that it is read as",
            };
            self.misfit(problem, Some(error))
        })?;
        Ok(Loaded { value, version })
    }

    async fn guarded(
        &self,
        connection: &mut DB::Connection,
        text: &Text,
        key: Values<DB>,
        expected: Version,
        arguments: Values<DB>,
    ) -> Result<Told, Error> {
        let rows = self.fetch(connection, text, arguments, Writes::Yes).await?;
        self.at_most_one(&rows)?;
        if let Some(row) = rows.first() {
            let done = DB::number(row, 0).map_err(|error| self.unreadable(error))?;
            let version = self.version(row, 1)?;
            if done == Some(1) {
                return Ok(Told::Done(version));
            }
            // The same version as expected is what the statement saw when it began; the one that it has
            // waited for, and that has changed the row, it did not see.
            if version != expected {
                return Ok(Told::Conflict(version));
            }
        } else if DB::TELLS {
            return Ok(Told::Missing);
        }
        let rows = self
            .fetch(connection, &self.inner.texts.version, key, Writes::No)
            .await?;
        self.at_most_one(&rows)?;
        match rows.first() {
            Some(row) => Ok(Told::Conflict(self.version(row, 0)?)),
            None => Ok(Told::Missing),
        }
    }

    pub(crate) async fn fetch(
        &self,
        connection: &mut DB::Connection,
        text: &Text,
        arguments: Values<DB>,
        writes: Writes,
    ) -> Result<Vec<DB::Row>, Error> {
        answer::<DB>(connection, text, arguments, writes)
            .await
            .map_err(|(fault, error)| match fault {
                Fault::Description(problem) => self.misfit(problem, Some(error)),
                Fault::Lost => Error::Unknown {
                    source: error.into(),
                },
                Fault::Refused => error.into(),
            })
    }

    pub(crate) fn at_most_one(&self, rows: &[DB::Row]) -> Result<(), Error> {
        if rows.len() > 1 {
            return Err(self.misfit("the key is not unique", None));
        }
        Ok(())
    }

    pub(crate) fn version(&self, row: &DB::Row, at: usize) -> Result<Version, Error> {
        match DB::number(row, at) {
            Ok(Some(version)) => Ok(Version::new(version)),
            Ok(None) => Err(self.misfit("a row's version is NULL", None)),
            Err(error) => Err(self.unreadable(error)),
        }
    }

    pub(crate) fn unreadable(&self, error: sqlx::Error) -> Error {
        self.misfit("a row's version is not a number", Some(error))
    }

    pub(crate) fn misfit(&self, problem: &'static str, source: Option<sqlx::Error>) -> Error {
        Error::Table {
            table: self.name().to_owned(),
            problem,
            source: source.map(Into::into),
        }
    }
}

/// Runs a statement, and says what its error means: [`Fault::Lost`] only where nobody else hears of that.
pub(crate) async fn answer<DB: Backend>(
    connection: &mut DB::Connection,
    text: &Text,
    arguments: Values<DB>,
    writes: Writes,
) -> Result<Vec<DB::Row>, (Fault, sqlx::Error)> {
    // Lost within a transaction, all of that is undone, and whoever has begun it hears of it.
    let alone = DB::TransactionManager::get_transaction_depth(connection) == 0;
    let text = text.typed(arguments.types());
    let answer = DB::answer(connection, text, arguments.into_inner()).await;
    answer.map_err(|error| match DB::fault(&error) {
        Fault::Lost if !alone || writes == Writes::No => (Fault::Refused, error),
        fault => (fault, error),
    })
}

fn turns<DB: Backend>() -> KeyedSemaphore<u64> {
    KeyedSemaphore::new(DB::AT_LOCK).expect("it is one at least")
}

/// Whether a statement whose answer is lost may have changed something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writes {
    Yes,
    No,
}

impl<DB: Backend> Clone for Table<DB> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            database: PhantomData,
        }
    }
}

impl<DB: Backend> fmt::Debug for Table<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("name", &self.inner.name)
            .field("update", &self.inner.texts.update.plain.as_str())
            .finish_non_exhaustive()
    }
}

impl<DB: Backend> fmt::Debug for TableBuilder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableBuilder")
            .field("name", &self.name)
            .field("keys", &self.keys)
            .field("columns", &self.columns)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
