use lockkit_db_macros::Versioned;

#[derive(Versioned)]
#[versioned(table = "t")]
struct NoKey {
    id: i64,
    #[versioned(version)]
    version: i64,
}

#[derive(Versioned)]
#[versioned(table = "t")]
struct NoVersion {
    #[versioned(key)]
    id: i64,
    version: i64,
}

#[derive(Versioned)]
#[versioned(table = "t")]
struct NoValue {
    #[versioned(key)]
    id: i64,
    #[versioned(version)]
    version: i64,
}

#[derive(Versioned)]
#[versioned(table = "t")]
struct Nothing {}

#[derive(Versioned)]
#[versioned(table = "t")]
struct TwoVersions {
    #[versioned(key)]
    id: i64,
    n: i64,
    #[versioned(version)]
    version: i64,
    #[versioned(timestamp)]
    changed: i64,
}

#[derive(Versioned)]
#[versioned(table = "t")]
struct TwoRoles {
    #[versioned(key, version)]
    id: i64,
    n: i64,
    #[versioned(version)]
    #[versioned(timestamp)]
    version: i64,
}

#[derive(Versioned)]
#[versioned(table = "t")]
struct Misspelt {
    #[versioned(primary)]
    id: i64,
    #[versioned(key = "yes")]
    key: i64,
    #[versioned(table = "t")]
    n: i64,
    #[versioned = "x"]
    m: i64,
    #[versioned(version)]
    version: i64,
}

#[derive(Versioned)]
#[versioned(table = "t")]
struct LongKey {
    #[versioned(key)]
    a: i64,
    #[versioned(key)]
    b: i64,
    #[versioned(key)]
    c: i64,
    #[versioned(key)]
    d: i64,
    #[versioned(key)]
    e: i64,
    #[versioned(key)]
    f: i64,
    #[versioned(key)]
    g: i64,
    #[versioned(key)]
    h: i64,
    #[versioned(key)]
    i: i64,
    #[versioned(key)]
    j: i64,
    #[versioned(key)]
    k: i64,
    #[versioned(key)]
    l: i64,
    #[versioned(key)]
    m: i64,
    #[versioned(key)]
    n: i64,
    #[versioned(key)]
    o: i64,
    #[versioned(key)]
    p: i64,
    #[versioned(key)]
    q: i64,
    #[versioned(key)]
    r: i64,
    x: i64,
    #[versioned(version)]
    version: i64,
}

fn main() {}
