use lockkit_db_macros::Versioned;

#[derive(Versioned)]
#[versioned(table = "t")]
struct Names {
    #[versioned(key, column = "")]
    id: i64,
    #[versioned(column = "a b")]
    blank: i64,
    #[versioned(column = "1a")]
    digit: i64,
    #[versioned(column = "s.a")]
    dotted: i64,
    größe: i64,
    #[versioned(column = "a234567890123456789012345678901234567890123456789012345678901234")]
    long: i64,
    #[versioned(column = a)]
    no_text: i64,
    #[versioned(column = "a", column = "b")]
    twice: i64,
    #[versioned(version, column = "ver\0sion")]
    version: i64,
}

#[derive(Versioned)]
#[versioned(table = "t")]
struct Same {
    #[versioned(key)]
    id: i64,
    #[versioned(column = "ID")]
    other: i64,
    n: i64,
    #[versioned(column = "n")]
    m: i64,
    r#type: i64,
    #[versioned(version, column = "type")]
    version: i64,
}

fn main() {}
