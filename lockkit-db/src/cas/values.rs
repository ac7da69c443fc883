//! What is bound to a statement, and what is read from a row.

use std::fmt;
use std::hash::{DefaultHasher, Hasher as _};

use sqlx::{Arguments as _, Decode, Encode, Type, TypeInfo as _};

use super::Version;
use crate::Error;
use crate::backend::Backend;

/// The arguments of a statement, in the order of its columns.
pub struct Values<DB: Backend> {
    arguments: DB::Arguments,
    /// The names of their types, each with a comma after it, where a statement is prepared for those.
    types: String,
}

/// What can be bound: the value columns of a [`Table`](super::Table), or its key.
///
/// It is there for tuples of up to twelve parts, each anything that sqlx can encode, and for the commonest types by
/// themselves; anything else makes a tuple of one: `(uuid,)`.
pub trait Bind<DB: Backend> {
    /// Pushes one value for each column.
    ///
    /// # Errors
    ///
    /// What [`Values::push`] returns.
    fn bind(&self, values: &mut Values<DB>) -> Result<(), Error>;
}

/// What can be read from the value columns of a [`Table`](super::Table), and written to them.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # mod example {
/// use lockkit_db::cas::{Bind, Record, Values};
/// use lockkit_db::sqlx::{self, Row, Sqlite, sqlite::SqliteRow};
///
/// struct Note {
///     title: String,
///     stars: i64,
/// }
///
/// impl Bind<Sqlite> for Note {
///     fn bind(&self, values: &mut Values<Sqlite>) -> Result<(), lockkit_db::Error> {
///         values.push(&self.title)?;
///         values.push(self.stars)
///     }
/// }
///
/// impl Record<Sqlite> for Note {
///     fn read(row: &SqliteRow) -> Result<Self, sqlx::Error> {
///         Ok(Self { title: row.try_get(0)?, stars: row.try_get(1)? })
///     }
/// }
/// # }
/// ```
pub trait Record<DB: Backend>: Bind<DB> + Sized {
    /// Reads the columns, which stand at the front of the row in the order of their description. After them
    /// stand the version, as a 64-bit number, and the columns of the key.
    ///
    /// A NULL that is no [`Option`] is an error in the records that are there; on SQLite, sqlx's `try_get` reads it as 0
    /// or as an empty text.
    ///
    /// # Errors
    ///
    /// sqlx's, for a column of another type.
    fn read(row: &DB::Row) -> Result<Self, sqlx::Error>;

    /// Told the version that it was written under, by what has written it: for a record that keeps its version.
    fn written(&mut self, version: Version) {
        let _ = version;
    }
}

/// What can be bound for many rows at once: everything that can be bound for one, and on PostgreSQL has a type for
/// arrays of it.
pub trait BindMany<DB: Backend>: Bind<DB> + Sized {
    /// Pushes one array for each column.
    #[doc(hidden)]
    fn bind_many(rows: &[&Self], values: &mut Values<DB>) -> Result<(), Error>;
}

impl<DB: Backend> Values<DB> {
    pub(crate) fn new() -> Self {
        Self {
            arguments: DB::Arguments::default(),
            types: String::new(),
        }
    }

    /// Adds the next one.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when it cannot be encoded.
    pub fn push<'t, T>(&mut self, value: T) -> Result<(), Error>
    where
        T: Encode<'t, DB> + Type<DB>,
    {
        let at = self.len();
        if DB::TYPED {
            let kind = value.produces().unwrap_or_else(T::type_info);
            // It ends up in a comment, which nothing in it may end.
            let plain = |c: &char| c.is_alphanumeric() || "_[]. ".contains(*c);
            self.types.extend(kind.name().chars().filter(plain));
            self.types.push(',');
        }
        self.arguments.add(value).map_err(|error| {
            Error::invalid("values", format!("number {at} cannot be encoded: {error}"))
        })
    }

    /// Tells these values from others, almost always.
    pub(crate) fn fingerprint(&self) -> u64 {
        struct Hashed(DefaultHasher);

        impl fmt::Write for Hashed {
            fn write_str(&mut self, part: &str) -> fmt::Result {
                self.0.write(part.as_bytes());
                Ok(())
            }
        }

        // What databases can do with all arguments alike is to show them, which is not kept.
        let mut hashed = Hashed(DefaultHasher::new());
        let _ = DB::show(&self.arguments, &mut hashed);
        hashed.0.finish()
    }

    pub(crate) fn push_text(&mut self, text: &str) -> Result<(), Error> {
        DB::add_text(&mut self.arguments, text)
            .map_err(|error| Error::invalid("resource", format!("cannot be encoded: {error}")))
    }

    pub(crate) fn push_numbers(&mut self, numbers: &[i64]) -> Result<(), Error> {
        DB::add_numbers(&mut self.arguments, numbers)
            .map_err(|error| Error::invalid("version", format!("cannot be encoded: {error}")))
    }

    pub(crate) fn push_number(&mut self, number: i64) -> Result<(), Error> {
        DB::add_number(&mut self.arguments, number).map_err(|error| {
            Error::invalid("version", format!("{number} cannot be encoded: {error}"))
        })
    }

    pub(super) fn len(&self) -> usize {
        self.arguments.len()
    }

    pub(crate) fn types(&self) -> &str {
        &self.types
    }

    pub(crate) fn into_inner(self) -> DB::Arguments {
        self.arguments
    }
}

impl<DB: Backend> std::fmt::Debug for Values<DB> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the values: they may be secret.
        f.debug_struct("Values")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl<DB: Backend, T: Bind<DB> + ?Sized> Bind<DB> for &T {
    fn bind(&self, values: &mut Values<DB>) -> Result<(), Error> {
        (**self).bind(values)
    }
}

macro_rules! by_reference {
    ($($type:ty),+) => {$(
        impl<DB: Backend> Bind<DB> for $type
        where
            for<'a, 'q> &'a $type: Encode<'q, DB> + Type<DB>,
        {
            fn bind(&self, values: &mut Values<DB>) -> Result<(), Error> {
                values.push(self)
            }
        }
    )+};
}

#[cfg(feature = "sqlite")]
impl<T: Bind<sqlx::Sqlite>> BindMany<sqlx::Sqlite> for T {
    fn bind_many(rows: &[&Self], values: &mut Values<sqlx::Sqlite>) -> Result<(), Error> {
        // There are no arrays; each row goes by itself.
        rows.iter().try_for_each(|row| row.bind(values))
    }
}

macro_rules! many {
    ($($type:ty),+) => {$(
        #[cfg(feature = "postgres")]
        impl BindMany<sqlx::Postgres> for $type {
            fn bind_many(rows: &[&Self], values: &mut Values<sqlx::Postgres>) -> Result<(), Error> {
                values.push(rows)
            }
        }
    )+};
}

many!(bool, i16, i32, i64, f32, f64, String, Vec<u8>);

#[cfg(feature = "postgres")]
impl BindMany<sqlx::Postgres> for &str {
    fn bind_many(rows: &[&Self], values: &mut Values<sqlx::Postgres>) -> Result<(), Error> {
        values.push(rows)
    }
}

macro_rules! by_itself {
    ($($type:ty),+) => {
        by_reference!($($type),+);
        $(
            impl<DB: Backend> Record<DB> for $type
            where
                for<'a, 'q> &'a $type: Encode<'q, DB> + Type<DB>,
                $type: for<'q> Encode<'q, DB> + for<'r> Decode<'r, DB> + Type<DB>,
            {
                fn read(row: &DB::Row) -> Result<Self, sqlx::Error> {
                    DB::column(row, 0)
                }
            }
        )+
    };
}

by_reference!(str, [u8]);
by_itself!(bool, i16, i32, i64, f32, f64, String, Vec<u8>);

macro_rules! tuples {
    ($($part:ident $at:tt),+) => {
        impl<DB: Backend, $($part),+> Bind<DB> for ($($part,)+)
        where
            $($part: for<'q> Encode<'q, DB> + Type<DB>,)+
        {
            fn bind(&self, values: &mut Values<DB>) -> Result<(), Error> {
                $(values.push(&self.$at)?;)+
                Ok(())
            }
        }

        #[cfg(feature = "postgres")]
        impl<$($part),+> BindMany<sqlx::Postgres> for ($($part,)+)
        where
            $($part: for<'q> Encode<'q, sqlx::Postgres>
                + Type<sqlx::Postgres>
                + sqlx::postgres::PgHasArrayType,)+
        {
            fn bind_many(rows: &[&Self], values: &mut Values<sqlx::Postgres>) -> Result<(), Error> {
                $(
                    let column: Vec<&$part> = rows.iter().map(|row| &row.$at).collect();
                    values.push(column)?;
                )+
                Ok(())
            }
        }

        impl<DB: Backend, $($part),+> Record<DB> for ($($part,)+)
        where
            $($part: for<'q> Encode<'q, DB> + for<'r> Decode<'r, DB> + Type<DB>,)+
        {
            fn read(row: &DB::Row) -> Result<Self, sqlx::Error> {
                Ok(($(DB::column::<$part>(row, $at)?,)+))
            }
        }
    };
}

tuples!(A 0);
tuples!(A 0, B 1);
tuples!(A 0, B 1, C 2);
tuples!(A 0, B 1, C 2, D 3);
tuples!(A 0, B 1, C 2, D 3, E 4);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11);
