use lockkit_db_macros::Versioned;

type Alias = i64;

#[derive(Versioned)]
#[versioned(table = "t")]
struct Small {
    #[versioned(key)]
    id: i64,
    n: i64,
    #[versioned(version)]
    version: i32,
}

#[derive(Versioned)]
#[versioned(table = "t")]
struct Text {
    #[versioned(key)]
    id: i64,
    n: i64,
    #[versioned(timestamp)]
    version: String,
}

#[derive(Versioned)]
#[versioned(table = "t")]
struct Aliased {
    #[versioned(key)]
    id: i64,
    n: i64,
    #[versioned(version)]
    version: Alias,
}

fn main() {}
