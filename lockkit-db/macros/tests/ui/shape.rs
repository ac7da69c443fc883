use lockkit_db_macros::Versioned;

#[derive(Versioned)]
#[versioned(table = "t")]
enum Enum {
    A,
}

#[derive(Versioned)]
#[versioned(table = "t")]
union Union {
    a: i64,
}

#[derive(Versioned)]
#[versioned(table = "t")]
struct Tuple(#[versioned(key)] i64, #[versioned(version)] i64, i64);

#[derive(Versioned)]
#[versioned(table = "t")]
struct Unit;

#[derive(Versioned)]
#[versioned(table = "t")]
struct Borrowed<'a> {
    #[versioned(key)]
    id: i64,
    text: &'a str,
    #[versioned(version)]
    version: i64,
}

fn main() {}
