//! Writes that only the holder of a lock can make: by the [`Fence`] of his grant, in the database itself.
//!
//! A lock that expires may be held by two: one who was granted it, and one who has slept through its end and
//! does not know. A fence is a number that grows with each grant, so the database can tell the two apart. There are
//! two verbs, because a check of the write alone comes too late: what the sleeper has *read* before
//! would have been overwritten by nobody, and he would write over what the new holder has made of it.
//!
//! 1. **claim** raises the mark to the fence, in the statement or the transaction that reads. From then on all
//!    lower fences are over.
//! 2. **write** demands that the mark *is* the fence. One that was never claimed is refused, also if it is
//!    higher: its holder has read before others were shut out.
//!
//! | the mark is | use |
//! |---|---|
//! | a column of the row that is protected | [`FencedRows`] |
//! | kept by the name of a resource, for whatever a transaction writes | [`Fences`] |
//!
//! # Not promised
//!
//! That it holds against writes which do not ask for it: each statement that changes what is protected has to go
//! through here.

use std::fmt;
use std::marker::PhantomData;

use lockkit_core::Fence;
use sqlx::{Acquire, AssertSqlSafe, Pool, SqlSafeStr as _, SqlStr};

use crate::Error;
use crate::backend::{Backend, Class, classify_sqlx, plain_name};
use crate::cas::dialect::Fault;
use crate::cas::table::{Text, Writes};
use crate::cas::{Bind, Loaded, Record, Table, Values, Version};
use crate::transaction::Tx;

/// The rows of a [`Table`], each with a mark of its own in a further column: an integer of 64 bits, in which NULL
/// stands for "never claimed".
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use lockkit_core::Fence;
/// use lockkit_db::Error;
/// use lockkit_db::cas::Table;
/// use lockkit_db::fenced::FencedRows;
/// # use lockkit_db::sqlx;
/// # use lockkit_db::sqlx::Sqlite;
///
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("report.db");
/// # let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).create_if_missing(true);
/// # let pool = sqlx::SqlitePool::connect_with(options).await?;
/// sqlx::raw_sql("CREATE TABLE report (id INTEGER PRIMARY KEY, body TEXT, version INTEGER NOT NULL, mark INTEGER);
///                INSERT INTO report VALUES (7, '', 1, NULL)")
///     .execute(&pool)
///     .await?;
/// let reports: Table<Sqlite> = Table::describe("report").key("id").columns(["body"]).version("version").build()?;
/// let reports = FencedRows::new(&reports, "mark")?;
///
/// // The fences come with the grants of a lock.
/// let (sleeper, next) = (Fence::new(1)?, Fence::new(2)?);
/// let old = reports.claim::<String, _>(&pool, 7, sleeper).await?;
/// reports.claim::<String, _>(&pool, 7, next).await?;
/// reports.write(&pool, 7, next, "by the new holder").await?;
///
/// let late = reports.write(&pool, 7, sleeper, old.value + "by the sleeper").await;
/// assert!(matches!(late, Err(Error::Stale { .. })));
/// # Ok(()) }
/// # #[cfg(not(feature = "sqlite"))]
/// # fn main() {}
/// ```
pub struct FencedRows<DB: Backend> {
    table: Table<DB>,
    claim: Text,
    write: Text,
    write_cas: Text,
    look: Text,
}

/// The marks of resources by name, in the table `lockkit_fence`.
///
/// Both verbs are steps of a transaction: what is read and written after them is what they protect.
///
/// # Examples
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # async fn f(pool: lockkit_db::sqlx::PgPool, fence: lockkit_core::Fence) -> Result<(), lockkit_db::Error> {
/// use lockkit_db::fenced::Fences;
/// use lockkit_db::{retry_tx, sqlx};
///
/// let fences = Fences::new();
/// fences.migrate(&pool).await?;
/// let total: i64 = retry_tx!(&pool, |tx| {
///     fences.claim(&mut tx, "week 7", fence).await?;
///     Ok::<_, lockkit_db::Error>(sqlx::query_scalar("SELECT sum(hours)::bigint FROM work").fetch_one(&mut *tx).await?)
/// })?;
/// // Whatever takes long.
/// retry_tx!(&pool, |tx| {
///     fences.write(&mut tx, "week 7", fence).await?;
///     sqlx::query("UPDATE report SET total = $1").bind(total).execute(&mut *tx).await?;
///     Ok::<_, lockkit_db::Error>(())
/// })?;
/// # Ok(()) }
/// ```
pub struct Fences<DB: Backend> {
    claim: SqlStr,
    look: SqlStr,
    hold: SqlStr,
    database: PhantomData<fn() -> DB>,
}

/// The longest name of a resource.
const LONGEST_RESOURCE: usize = 512;

impl<DB: Backend> FencedRows<DB> {
    /// The same table, with its column for the mark.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the column's name is not plain, or is that of another column of the description.
    pub fn new(table: &Table<DB>, mark: &str) -> Result<Self, Error> {
        plain_name("mark", mark)?;
        let mark = DB::quote("mark", mark)?;
        let parts = table.parts();
        let known = parts
            .keys
            .iter()
            .chain(&parts.columns)
            .chain([&parts.version]);
        if known.clone().any(|name| name.eq_ignore_ascii_case(&mark)) {
            let problem = format!("{mark} is another column of {}", table.name());
            return Err(Error::invalid("mark", problem));
        }
        let name = &parts.table;
        let of_key = parts.of_key();
        let fence = parts.keys.len() + 1;
        let read = DB::read(&parts.version, parts.kind);
        let found = parts.of_row(&read);
        let set = parts.set::<DB>(fence + 1);
        // The version comes last there.
        let version = fence + 1 + parts.columns.len();
        let expected = DB::given(&format!("${version}"), parts.kind);
        // Neither NULL nor the last one, which SQLite would turn into a fraction.
        let raised = format!("{read} < {}", i64::MAX);
        Ok(Self {
            claim: Text::new(format!(
                "UPDATE {name} SET {mark} = ${fence} \
                 WHERE {of_key} AND coalesce({mark}, 0) <= ${fence} RETURNING {found}"
            )),
            write: Text::new(format!(
                "UPDATE {name} SET {set} WHERE {of_key} AND {mark} = ${fence} AND {raised} RETURNING {read}"
            )),
            write_cas: Text::new(format!(
                "UPDATE {name} SET {set}, {mark} = ${fence} WHERE {of_key} \
                 AND coalesce({mark}, 0) <= ${fence} AND {} = {expected} RETURNING {read}",
                parts.version,
            )),
            look: Text::new(format!("SELECT {mark}, {read} FROM {name} WHERE {of_key}")),
            table: table.clone(),
        })
    }

    /// Raises the mark of a row to the fence, and reads the row, in one statement. From here on no lower
    /// fence can write. Claiming again with the same fence reads again.
    ///
    /// One round trip; another one when it is refused.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] when a higher fence has claimed the row, [`Error::NotFound`], [`Error::Unknown`] when
    /// the reply is lost (claim again), and what [`Table::load`] returns.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has happened or not; claim again.
    pub fn claim<'c, R, A>(
        &self,
        on: A,
        key: impl Bind<DB>,
        fence: Fence,
    ) -> impl Future<Output = Result<Loaded<R>, Error>> + Send
    where
        R: Record<DB>,
        A: Acquire<'c, Database = DB> + Send,
    {
        let bound = || {
            let arguments = self.showing(&key, fence)?;
            let key = self.table.arguments(&key)?;
            Ok::<_, Error>((arguments, key))
        };
        let bound = bound();
        async move {
            let (arguments, key) = bound?;
            let mut connection = on.acquire().await?;
            let rows = self.change(&mut connection, &self.claim, arguments).await?;
            match rows.first() {
                Some(row) => self.table.row(row),
                None => Err(self.refused(&mut connection, key, fence, None).await),
            }
        }
    }

    /// Writes the value columns of a row, and raises its version, if its mark is this fence.
    ///
    /// One round trip; another one when it is refused.
    ///
    /// # Errors
    ///
    /// - [`Error::Stale`] when a higher fence has claimed the row, [`Error::Unclaimed`] when this one never has.
    /// - [`Error::Unknown`] when the reply is lost. Nobody but the holder can have written, so he may
    ///   send it again.
    /// - [`Error::NotFound`], and what [`Table::cas`] returns.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has happened or not.
    pub fn write<'c, A>(
        &self,
        on: A,
        key: impl Bind<DB>,
        fence: Fence,
        values: impl Bind<DB>,
    ) -> impl Future<Output = Result<Version, Error>> + Send
    where
        A: Acquire<'c, Database = DB> + Send,
    {
        let bound = || {
            let mut arguments = self.showing(&key, fence)?;
            self.table.add_columns(&mut arguments, &values)?;
            let key = self.table.arguments(&key)?;
            Ok::<_, Error>((arguments, key))
        };
        let bound = bound();
        async move {
            let (arguments, key) = bound?;
            let mut connection = on.acquire().await?;
            let rows = self.change(&mut connection, &self.write, arguments).await?;
            match rows.first() {
                Some(row) => self.table.version(row, 0),
                None => Err(self.refused(&mut connection, key, fence, None).await),
            }
        }
    }

    /// Writes the value columns of a row if its version is the one expected and no higher fence has claimed
    /// it; raises version and mark. For holders who have read without a claim: the version says that
    /// nobody has written since.
    ///
    /// One round trip; another one when it is refused.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`], [`Error::Conflict`], [`Error::NotFound`], and what [`Table::cas`] returns.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has happened or not.
    pub fn write_cas<'c, A>(
        &self,
        on: A,
        key: impl Bind<DB>,
        fence: Fence,
        expected: Version,
        values: impl Bind<DB>,
    ) -> impl Future<Output = Result<Version, Error>> + Send
    where
        A: Acquire<'c, Database = DB> + Send,
    {
        let bound = || {
            self.table.has_next(expected)?;
            let mut arguments = self.showing(&key, fence)?;
            self.table.add_columns(&mut arguments, &values)?;
            arguments.push_number(expected.get())?;
            let key = self.table.arguments(&key)?;
            Ok::<_, Error>((arguments, key))
        };
        let bound = bound();
        async move {
            let (arguments, key) = bound?;
            let mut connection = on.acquire().await?;
            let text = &self.write_cas;
            let rows = self.change(&mut connection, text, arguments).await?;
            match rows.first() {
                Some(row) => self.table.version(row, 0),
                None => Err(self
                    .refused(&mut connection, key, fence, Some(expected))
                    .await),
            }
        }
    }

    fn showing(&self, key: &impl Bind<DB>, fence: Fence) -> Result<Values<DB>, Error> {
        let mut arguments = self.table.arguments(key)?;
        arguments.push_number(fence.as_i64())?;
        Ok(arguments)
    }

    async fn change(
        &self,
        connection: &mut DB::Connection,
        text: &Text,
        arguments: Values<DB>,
    ) -> Result<Vec<DB::Row>, Error> {
        let rows = self
            .table
            .fetch(connection, text, arguments, Writes::Yes)
            .await?;
        self.table.at_most_one(&rows)?;
        Ok(rows)
    }

    /// Why nothing was changed.
    async fn refused(
        &self,
        connection: &mut DB::Connection,
        key: Values<DB>,
        fence: Fence,
        expected: Option<Version>,
    ) -> Error {
        let table = &self.table;
        let look = table.fetch(connection, &self.look, key, Writes::No).await;
        let rows = match look {
            Ok(rows) => rows,
            Err(error) => return error,
        };
        let name = || table.name().to_owned();
        let Some(row) = rows.first() else {
            return Error::NotFound { table: name() };
        };
        let mark = match DB::number(row, 0) {
            Ok(mark) => mark.and_then(|mark| Fence::try_from(mark).ok()),
            Err(error) => return table.misfit("a row's mark is not a number", Some(error)),
        };
        if let Some(mark) = mark.filter(|mark| *mark > fence) {
            return Error::Stale {
                resource: name(),
                fence,
                mark,
            };
        }
        let version = match table.version(row, 1) {
            Ok(version) => version,
            Err(error) => return error,
        };
        match expected {
            Some(expected) => Error::Conflict {
                table: name(),
                expected: expected.get(),
            },
            None if mark == Some(fence) && version.get() == i64::MAX => {
                table.misfit("a row's version is the last one there is", None)
            }
            None => Error::Unclaimed {
                resource: name(),
                fence,
            },
        }
    }
}

impl<DB: Backend> Fences<DB> {
    /// Nothing is sent.
    #[must_use]
    pub fn new() -> Self {
        let look = "SELECT mark FROM lockkit_fence WHERE resource = $1";
        Self {
            claim: text(
                "INSERT INTO lockkit_fence (resource, mark) VALUES ($1, $2) \
                 ON CONFLICT (resource) DO UPDATE SET mark = excluded.mark \
                 WHERE lockkit_fence.mark <= excluded.mark RETURNING mark"
                    .to_owned(),
            ),
            hold: text(format!("{look}{}", DB::LOCKED)),
            look: text(look.to_owned()),
            database: PhantomData,
        }
    }

    /// Makes the table `lockkit_fence`, if it is not there.
    ///
    /// # Errors
    ///
    /// The database's.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it is made or not.
    pub async fn migrate(&self, pool: &Pool<DB>) -> Result<(), Error> {
        let mut connection = pool.acquire().await?;
        let make = || text(DB::FENCES.to_owned());
        match DB::answer(&mut connection, make(), DB::Arguments::default()).await {
            // Of two that make it at once, PostgreSQL lets one fail.
            Err(error) if classify_sqlx(&error) == Class::Duplicate => {
                DB::answer(&mut connection, make(), DB::Arguments::default()).await?;
            }
            answer => drop(answer?),
        }
        Ok(())
    }

    /// Raises the mark of a resource to the fence, until it is raised again. To be the first statement of the
    /// transaction that reads what is protected.
    ///
    /// One round trip; another one when it is refused.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] when a higher fence has claimed it. [`Error::Invalid`] for a name that is empty, over
    /// 512 bytes, or has a NUL in it. [`Error::Table`] before [`migrate`](Self::migrate). The database's.
    ///
    /// # Cancel safety
    ///
    /// As any statement of the transaction: roll it back.
    pub async fn claim(
        &self,
        tx: &mut Tx<'_, DB>,
        resource: &str,
        fence: Fence,
    ) -> Result<(), Error> {
        let mut arguments = named::<DB>(resource)?;
        arguments.push_number(fence.as_i64())?;
        let arguments = arguments.into_inner();
        let rows = ask(tx, self.claim.clone(), arguments).await?;
        if !rows.is_empty() {
            return Ok(());
        }
        match self.mark(tx, &self.look, resource).await? {
            Some(mark) if mark > fence => Err(stale(resource, fence, mark)),
            // It was raised and is gone again, which takes somebody who deletes from the table.
            _ => Err(unclaimed(resource, fence)),
        }
    }

    /// Demands that the mark of a resource is this fence, and keeps it so until the transaction ends: what is
    /// written in it is written by the holder.
    ///
    /// One round trip.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] when a higher fence has claimed it, [`Error::Unclaimed`] when this one never has: roll
    /// the transaction back, as `?` in [`retry_tx!`](crate::retry_tx) does. Others as [`claim`](Self::claim).
    ///
    /// # Cancel safety
    ///
    /// As any statement of the transaction: roll it back.
    pub async fn write(
        &self,
        tx: &mut Tx<'_, DB>,
        resource: &str,
        fence: Fence,
    ) -> Result<(), Error> {
        match self.mark(tx, &self.hold, resource).await? {
            Some(mark) if mark == fence => Ok(()),
            Some(mark) if mark > fence => Err(stale(resource, fence, mark)),
            _ => Err(unclaimed(resource, fence)),
        }
    }

    async fn mark(
        &self,
        tx: &mut Tx<'_, DB>,
        text: &SqlStr,
        resource: &str,
    ) -> Result<Option<Fence>, Error> {
        let arguments = named::<DB>(resource)?.into_inner();
        let rows = ask(tx, text.clone(), arguments).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let mark = DB::number(row, 0)?;
        Ok(mark.and_then(|mark| Fence::try_from(mark).ok()))
    }
}

impl<DB: Backend> Default for Fences<DB> {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs a statement over the table of marks.
async fn ask<DB: Backend>(
    tx: &mut Tx<'_, DB>,
    text: SqlStr,
    arguments: DB::Arguments,
) -> Result<Vec<DB::Row>, Error> {
    let answer = DB::answer(tx, text, arguments).await;
    answer.map_err(|error| match DB::fault(&error) {
        Fault::Description(problem) => Error::Table {
            table: "lockkit_fence".to_owned(),
            problem,
            source: Some(error.into()),
        },
        _ => tx.explain(error),
    })
}

/// No names and no values are in it.
fn text(text: String) -> SqlStr {
    AssertSqlSafe(std::sync::Arc::<str>::from(text)).into_sql_str()
}

fn named<DB: Backend>(resource: &str) -> Result<Values<DB>, Error> {
    let problem = match resource.len() {
        0 => "is empty".to_owned(),
        _ if resource.contains('\0') => "has a NUL in it".to_owned(),
        length if length > LONGEST_RESOURCE => {
            format!("is {length} bytes long, and {LONGEST_RESOURCE} is the limit")
        }
        _ => {
            let mut values = Values::new();
            values.push_text(resource)?;
            return Ok(values);
        }
    };
    Err(Error::invalid("resource", problem))
}

fn stale(resource: &str, fence: Fence, mark: Fence) -> Error {
    Error::Stale {
        resource: resource.to_owned(),
        fence,
        mark,
    }
}

fn unclaimed(resource: &str, fence: Fence) -> Error {
    Error::Unclaimed {
        resource: resource.to_owned(),
        fence,
    }
}

impl<DB: Backend> fmt::Debug for FencedRows<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FencedRows")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl<DB: Backend> fmt::Debug for Fences<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fences").finish_non_exhaustive()
    }
}
