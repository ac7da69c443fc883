//! Which names may be in a statement, and how many. These are the rules of `lockkit_db::cas::Table`, which writes
//! the statements: a test there holds one against the other.

/// The longest name that PostgreSQL keeps whole.
pub(crate) const LONGEST: usize = 63;
/// The most columns that a key may have.
pub(crate) const MOST_KEYS: usize = 16;
/// The most value columns.
pub(crate) const MOST_COLUMNS: usize = 500;

/// What is wrong with the name of a column.
pub(crate) fn column(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a name is empty".to_owned());
    }
    if name.len() > LONGEST {
        let length = name.len();
        return Err(format!(
            "{name} is {length} bytes long, and {LONGEST} is the limit"
        ));
    }
    let digit_first = name.starts_with(|first: char| first.is_ascii_digit());
    if digit_first || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!(
            "{name:?} is not a plain SQL name (letters, digits and _)"
        ));
    }
    Ok(())
}

/// What is wrong with the name of a table, which may have its schema before a dot.
pub(crate) fn table(name: &str) -> Result<(), String> {
    match name.split_once('.') {
        Some((schema, name)) => column(schema).and_then(|()| column(name)),
        None => column(name),
    }
}

/// Whether two names are one column: SQLite takes names that differ in case only for the same.
pub(crate) fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}
