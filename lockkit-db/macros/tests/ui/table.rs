use lockkit_db_macros::Versioned;

macro_rules! row {
    ($name:ident, $(#[$said:meta])*) => {
        #[derive(Versioned)]
        $(#[$said])*
        struct $name {
            #[versioned(key)]
            id: i64,
            n: i64,
            #[versioned(version)]
            version: i64,
        }
    };
}

row!(Missing,);
row!(Bare, #[versioned]);
row!(Empty, #[versioned(table = "")]);
row!(NoText, #[versioned(table = 5)]);
row!(NoName, #[versioned(table)]);
row!(Twice, #[versioned(table = "a", table = "b")]);
row!(TwiceApart, #[versioned(table = "a")] #[versioned(table = "b")]);
row!(Unknown, #[versioned(table = "a", schema = "b")]);
row!(Hostile, #[versioned(table = "a; DROP TABLE b")]);
row!(Quoted, #[versioned(table = "\"a\"")]);
row!(TwoDots, #[versioned(table = "a.b.c")]);
row!(NoSchema, #[versioned(table = ".a")]);
row!(Long, #[versioned(table = "a234567890123456789012345678901234567890123456789012345678901234")]);

fn main() {}
