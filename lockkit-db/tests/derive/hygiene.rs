//! What is derived stands by itself, whatever is in the scope around it.

#![allow(dead_code)]

/// Without a prelude, without imports, and with everything named as badly as can be.
mod hostile {
    #![no_implicit_prelude]
    #![deny(warnings)]
    #![allow(non_camel_case_types, non_upper_case_globals, dead_code)]

    struct Result;
    struct Option;
    struct Ok;
    struct Some;
    struct Err;
    struct String;
    struct usize;
    struct i64;
    struct From;
    struct Send;
    struct row;
    struct values;
    const version: bool = true;
    static TABLES: bool = true;
    mod core {}
    mod std {}
    mod lockkit_db {}
    mod sqlx {}

    #[derive(::lockkit_db::Versioned)]
    #[versioned(table = "Vec")]
    pub(crate) struct Bind<Self_, DB> {
        #[versioned(key)]
        pub(crate) row: ::core::primitive::i64,
        #[versioned(key)]
        pub(crate) r#type: ::std::string::String,
        pub(crate) values: Self_,
        pub(crate) r#fn: DB,
        #[versioned(version)]
        pub(crate) version: ::lockkit_db::cas::Version,
    }
}

/// What is deprecated warns its users, and not whoever has declared it.
mod deprecated {
    #![deny(warnings)]

    use lockkit_db::Versioned;

    #[derive(Versioned)]
    #[versioned(table = "old")]
    pub(crate) struct Old {
        #[versioned(key)]
        #[deprecated]
        pub(crate) id: i64,
        #[deprecated]
        pub(crate) value: i64,
        #[versioned(version)]
        #[deprecated]
        pub(crate) version: i64,
    }
}

/// A public struct of private types, with attributes of its own, made by a macro.
mod from_a_macro {
    #![deny(warnings)]
    #![allow(unreachable_pub)]

    use lockkit_db::Versioned;
    use lockkit_db::sqlx;

    struct Cents(i64);

    impl<DB: sqlx::Database> sqlx::Type<DB> for Cents
    where
        i64: sqlx::Type<DB>,
    {
        fn type_info() -> DB::TypeInfo {
            <i64 as sqlx::Type<DB>>::type_info()
        }
    }

    impl<'q, DB: sqlx::Database> sqlx::Encode<'q, DB> for Cents
    where
        i64: sqlx::Encode<'q, DB>,
    {
        fn encode_by_ref(
            &self,
            buffer: &mut DB::ArgumentBuffer,
        ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
            self.0.encode_by_ref(buffer)
        }
    }

    impl<'r, DB: sqlx::Database> sqlx::Decode<'r, DB> for Cents
    where
        i64: sqlx::Decode<'r, DB>,
    {
        fn decode(value: DB::ValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
            i64::decode(value).map(Self)
        }
    }

    macro_rules! row {
        ($name:ident, $kind:ty, $count:ty, $table:literal) => {
            /// A row.
            #[derive(Versioned)]
            #[versioned(table = $table)]
            pub struct $name {
                /// Its key.
                #[versioned(key)]
                pub id: i64,
                #[allow(private_interfaces)]
                pub amount: $kind,
                amounts: Option<$kind>,
                #[versioned(version)]
                version: $count,
            }
        };
    }

    row!(Row, Cents, i64, "billing.rows");
}

use lockkit_db::Versioned;
use lockkit_db::cas::Table;
use lockkit_db::sqlx::{Postgres, Sqlite};

// Mutant: A178
#[test]
fn a_raw_name_is_the_plain_column() {
    let table: &Table<Sqlite> = hostile::Bind::<i64, String>::table();
    assert_eq!(
        table.statements().load,
        "SELECT [values], [fn], [version], [row], [type] FROM [Vec] WHERE [row] = $1 AND [type] = $2"
    );
}

#[test]
fn a_table_may_have_its_schema() {
    let table: &Table<Postgres> = from_a_macro::Row::table();
    assert_eq!(table.name(), "billing.rows");
    assert_eq!(
        table.statements().load,
        r#"SELECT "amount", "amounts", "version"::bigint, "id" FROM "billing"."rows" WHERE "id" = $1"#
    );
}

/// A type that only one of the databases has is no matter until the other one is asked.
mod one_database {
    use lockkit_db::Versioned;
    use lockkit_db::sqlx::Postgres;

    #[derive(Versioned)]
    #[versioned(table = "t")]
    pub(crate) struct Tagged {
        #[versioned(key)]
        id: i64,
        tags: Vec<String>,
        #[versioned(version)]
        version: i64,
    }

    fn is_a_row<R: Versioned<Postgres>>() {}

    #[test]
    fn arrays_are_for_postgres() {
        is_a_row::<Tagged>();
    }
}
