//! Structs that are rows with a version.

use sqlx::Acquire;

use crate::Error;
use crate::backend::Backend;
use crate::cas::{Bind, Deleted, Outcome, Record, Table, Values, Version};

/// A struct that is a row: its fields are the key, the version and the other columns of a table.
///
/// `#[derive(Versioned)]` implements it, and what it is made of, for each database that has all the types of the fields.
/// It adds nothing to a [`Table`] but the names: the statements are those, and all that is said there about outcomes, cost
/// and cancellation holds here.
///
/// # Attributes
///
/// | attribute | of | says |
/// |---|---|---|
/// | `#[versioned(table = "...")]` | the struct | the table, `"name"` or `"schema.name"` |
/// | `#[versioned(key)]` | a field | a column of the key; several are a key of several columns, in their order |
/// | `#[versioned(version)]` | one field | the version, which is a count |
/// | `#[versioned(timestamp)]` | or that one | the version, which is the server's time |
/// | `#[versioned(column = "...")]` | a field | the column, if it has another name than the field |
///
/// The field of the version is an `i64` or a [`Version`], written by that name. What is said wrongly is an error of the
/// compiler at the place where it stands, and so is a name that [`Table::describe`] would refuse.
///
/// A column that may be NULL is an [`Option`]. Without, a NULL is an error.
///
/// Types may be generic. A struct cannot borrow what it has read, so it has no lifetimes, and each of its fields is a
/// column. Where some are not, put the row into a field of the struct that you want.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use lockkit_db::Versioned;
/// use lockkit_db::cas::Outcome;
/// # use lockkit_db::sqlx;
///
/// #[derive(Versioned)]
/// #[versioned(table = "accounts")]
/// struct Account {
///     #[versioned(key)]
///     id: i64,
///     owner: String,
///     #[versioned(column = "cents")]
///     balance: i64,
///     #[versioned(version)]
///     version: i64,
/// }
///
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("bank.db");
/// # let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).create_if_missing(true);
/// # let pool = sqlx::SqlitePool::connect_with(options).await?;
/// sqlx::raw_sql("CREATE TABLE accounts (id INTEGER PRIMARY KEY, owner TEXT NOT NULL,
///                                       cents INTEGER NOT NULL, version INTEGER NOT NULL)")
///     .execute(&pool)
///     .await?;
/// let mut ada = Account { id: 7, owner: "Ada".to_owned(), balance: 100, version: 0 };
/// ada.insert(&pool).await?.expect("there is no account 7 yet");
///
/// let mut other = Account::load(&pool, 7).await?.expect("it is there");
/// other.balance -= 30;
/// assert!(matches!(other.update(&pool).await?, Outcome::Updated { .. }));
///
/// // Whoever has read it before comes too late: load it again, and decide anew.
/// ada.balance -= 30;
/// assert!(matches!(ada.update(&pool).await?, Outcome::Conflict { .. }));
///
/// // Or hand the decision over, and it is made as often as it takes.
/// let done = lockkit_db::optimistic(&pool, Account::table(), 7)
///     .apply(|account: &Account| Account { balance: account.balance - 30, owner: account.owner.clone(), ..*account })
///     .run()
///     .await?;
/// assert_eq!((done.value.balance, done.value.version), (40, 3));
/// # Ok(()) }
/// # #[cfg(not(feature = "sqlite"))]
/// # fn main() {}
/// ```
///
/// # Statements
///
/// For this struct they are, on PostgreSQL (with a comment at the end, which names the types of the arguments):
///
/// ```
/// # use lockkit_db::Versioned;
/// # #[derive(Versioned)]
/// # #[versioned(table = "accounts")]
/// # struct Account {
/// #     #[versioned(key)]
/// #     id: i64,
/// #     owner: String,
/// #     #[versioned(column = "cents")]
/// #     balance: i64,
/// #     #[versioned(version)]
/// #     version: i64,
/// # }
/// # #[cfg(feature = "postgres")] {
/// # use lockkit_db::{cas::Table, sqlx::Postgres};
/// # let table: &Table<Postgres> = Account::table();
/// # let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
/// let sql = table.statements();
/// assert_eq!(plain(sql.load), plain(r#"
///     SELECT "owner", "cents", "version"::bigint, "id" FROM "accounts" WHERE "id" = $1
/// "#));
/// assert_eq!(plain(sql.insert), plain(r#"
///     INSERT INTO "accounts" ("id", "owner", "cents", "version") VALUES ($1, $2, $3, 1)
///     ON CONFLICT ("id") DO NOTHING RETURNING "version"::bigint
/// "#));
/// assert_eq!(plain(sql.update), plain(r#"
///     WITH done$ AS (UPDATE "accounts" SET "owner" = $3, "cents" = $4, "version" = "version" + 1
///         WHERE "id" = $1 AND "version" = $2 RETURNING "version"::bigint AS told)
///     SELECT 1::bigint, told FROM done$
///     UNION ALL
///     SELECT 0, "version"::bigint FROM "accounts" WHERE "id" = $1
///         AND NOT EXISTS (SELECT FROM done$)
/// "#));
/// assert_eq!(plain(sql.delete), plain(r#"
///     WITH done$ AS (DELETE FROM "accounts" WHERE "id" = $1 AND "version" = $2
///         RETURNING "version"::bigint AS told)
///     SELECT 1::bigint, told FROM done$
///     UNION ALL
///     SELECT 0, "version"::bigint FROM "accounts" WHERE "id" = $1
///         AND NOT EXISTS (SELECT FROM done$)
/// "#));
/// # }
/// ```
///
/// and on SQLite:
///
/// ```
/// # use lockkit_db::Versioned;
/// # #[derive(Versioned)]
/// # #[versioned(table = "accounts")]
/// # struct Account {
/// #     #[versioned(key)]
/// #     id: i64,
/// #     owner: String,
/// #     #[versioned(column = "cents")]
/// #     balance: i64,
/// #     #[versioned(version)]
/// #     version: i64,
/// # }
/// # #[cfg(feature = "sqlite")] {
/// # use lockkit_db::{cas::Table, sqlx::Sqlite};
/// # let table: &Table<Sqlite> = Account::table();
/// # let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
/// let sql = table.statements();
/// assert_eq!(plain(sql.load), plain(r#"
///     SELECT [owner], [cents], [version], [id] FROM [accounts] WHERE [id] = $1
/// "#));
/// assert_eq!(plain(sql.insert), plain(r#"
///     INSERT INTO [accounts] ([id], [owner], [cents], [version]) VALUES ($1, $2, $3, 1)
///     ON CONFLICT ([id]) DO NOTHING RETURNING [version]
/// "#));
/// assert_eq!(plain(sql.update), plain(r#"
///     UPDATE [accounts] SET [owner] = $3, [cents] = $4, [version] = [version] + 1
///     WHERE [id] = $1 AND [version] = $2 RETURNING 1, [version]
/// "#));
/// assert_eq!(plain(sql.delete), plain(r#"
///     DELETE FROM [accounts] WHERE [id] = $1 AND [version] = $2 RETURNING 1, [version]
/// "#));
/// # }
/// ```
///
/// Where this one finds nothing, `SELECT [version] FROM [accounts] WHERE [id] = $1` tells a conflict from a missing row.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a row of the database `{DB}`",
    note = "`#[derive(Versioned)]` makes it one, if the database has all the types of its fields"
)]
pub trait Versioned<DB: Backend>: Record<DB> + Send + Sync {
    /// The description of the table, the same one each time. It is what [`optimistic`](crate::optimistic()) and
    /// [`FencedRows`](crate::fenced::FencedRows) want.
    fn table() -> &'static Table<DB>;

    /// Pushes the fields of the key, one for each column.
    ///
    /// # Errors
    ///
    /// What [`Values::push`] returns.
    fn bind_key(&self, values: &mut Values<DB>) -> Result<(), Error>;

    /// The version in the struct: the one that the row is expected to have.
    fn expected(&self) -> Version;

    /// Reads the row of that key: a value, or for a key of several columns a tuple. See [`Table::load`].
    ///
    /// # Errors
    ///
    /// As [`Table::load`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    fn load<'c, A>(
        on: A,
        key: impl Bind<DB> + Send,
    ) -> impl Future<Output = Result<Option<Self>, Error>> + Send
    where
        A: Acquire<'c, Database = DB> + Send,
    {
        async move {
            let found = Self::table().load(on, key).await?;
            Ok(found.map(|row| row.value))
        }
    }

    /// Inserts the struct as a row, and takes over the version that the row was given; the one in the struct
    /// before is of no account. `None` if there is a row of that key already: nothing is changed then, in the
    /// table or here. See [`Table::insert`].
    ///
    /// # Errors
    ///
    /// As [`Table::insert`]. The struct stays as it is.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has happened or not, and the struct is as it was.
    fn insert<'c, A>(
        &mut self,
        on: A,
    ) -> impl Future<Output = Result<Option<Version>, Error>> + Send
    where
        A: Acquire<'c, Database = DB> + Send,
    {
        async move {
            let inserted = Self::table().insert(on, Key(&*self), &*self).await?;
            if let Some(version) = inserted {
                self.written(version);
            }
            Ok(inserted)
        }
    }

    /// Writes all fields to the row, if its version is that of the struct, and takes over its new version. After
    /// a conflict the struct is as it was. See [`Table::cas`].
    ///
    /// In a transaction the new version is in the struct before it is committed: if it is not, load again.
    ///
    /// # Errors
    ///
    /// As [`Table::cas`]. The struct keeps its version, so to call it again is to send the same again: safe
    /// after [`Error::Unknown`].
    ///
    /// # Cancel safety
    ///
    /// Dropped, it is as if the reply was lost.
    fn update<'c, A>(&mut self, on: A) -> impl Future<Output = Result<Outcome, Error>> + Send
    where
        A: Acquire<'c, Database = DB> + Send,
    {
        async move {
            let table = Self::table();
            let outcome = table.cas(on, Key(&*self), self.expected(), &*self).await?;
            if let Outcome::Updated { version } = outcome {
                self.written(version);
            }
            Ok(outcome)
        }
    }

    /// Deletes the row, if its version is that of the struct. See [`Table::delete`].
    ///
    /// # Errors
    ///
    /// As [`Table::delete`].
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has happened or not.
    fn delete<'c, A>(&self, on: A) -> impl Future<Output = Result<Deleted, Error>> + Send
    where
        A: Acquire<'c, Database = DB> + Send,
    {
        async move { Self::table().delete(on, Key(self), self.expected()).await }
    }
}

/// The key of a row.
struct Key<'r, R>(&'r R);

impl<DB: Backend, R: Versioned<DB>> Bind<DB> for Key<'_, R> {
    fn bind(&self, values: &mut Values<DB>) -> Result<(), Error> {
        self.0.bind_key(values)
    }
}

/// What the derived implementations call, and nobody else.
pub mod made {
    use std::sync::OnceLock;

    use crate::backend::Backend;
    use crate::cas::{Table, Version};

    /// The descriptions of a struct's table, one a database, each written when it is asked for first.
    #[derive(Debug, Default)]
    pub struct Tables {
        #[cfg(feature = "postgres")]
        pub(crate) postgres: OnceLock<Table<sqlx::Postgres>>,
        #[cfg(feature = "sqlite")]
        pub(crate) sqlite: OnceLock<Table<sqlx::Sqlite>>,
    }

    impl Tables {
        /// None yet.
        #[must_use]
        pub const fn new() -> Self {
            Self {
                #[cfg(feature = "postgres")]
                postgres: OnceLock::new(),
                #[cfg(feature = "sqlite")]
                sqlite: OnceLock::new(),
            }
        }

        /// The description of this database.
        ///
        /// # Panics
        ///
        /// When the derive has let a name pass that a table refuses.
        pub fn table<DB: Backend>(
            &self,
            name: &str,
            keys: &[&str],
            columns: &[&str],
            version: &str,
            timestamp: bool,
        ) -> &Table<DB> {
            DB::described(self).get_or_init(|| {
                let mut table = Table::describe(name).columns(columns.iter().copied());
                for key in keys {
                    table = table.key(key);
                }
                let table = if timestamp {
                    table.timestamp(version)
                } else {
                    table.version(version)
                };
                table.build().expect("the derive has checked the names")
            })
        }
    }

    /// A column of a row.
    pub fn column<'r, DB: Backend, T>(row: &'r DB::Row, at: usize) -> Result<T, sqlx::Error>
    where
        T: sqlx::Decode<'r, DB> + for<'q> sqlx::Encode<'q, DB> + sqlx::Type<DB>,
    {
        DB::column(row, at)
    }

    /// The version in a row.
    pub fn version<DB: Backend>(row: &DB::Row, at: usize) -> Result<Version, sqlx::Error> {
        let number = DB::number(row, at)?;
        let missing = || sqlx::Error::Decode("a row's version is NULL".into());
        number.map(Version::new).ok_or_else(missing)
    }
}
