//! The statements, from parts that are checked: no I/O, no driver.

use std::fmt::Write as _;

/// What a statement is made of. Names are quoted.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) table: String,
    pub(crate) key: String,
    /// Nothing: all of them.
    pub(crate) columns: Vec<String>,
}

/// The columns of a row, and after them the place of its key in the caller's list.
fn answer(parts: &Parts) -> String {
    let columns = if parts.columns.is_empty() {
        "t.*".to_owned()
    } else {
        let columns: Vec<_> = parts.columns.iter().map(|it| format!("t.{it}")).collect();
        columns.join(", ")
    };
    format!("{columns}, k.lockkit_place")
}

/// Reads rows and locks them in the order of their keys, whatever the order of the list: the clause works on
/// what has been sorted. The order is the database's, so that all of its clients share it.
///
/// Takes the list as `keys`, a table expression of the name k with `lockkit_key` and `lockkit_place`.
pub(crate) fn select(parts: &Parts, keys: &str, clause: &str) -> String {
    let Parts { table, key, .. } = parts;
    let answer = answer(parts);
    format!(
        "SELECT {answer} FROM {keys} \
         JOIN {table} AS t ON t.{key} = k.lockkit_key ORDER BY t.{key}{clause}"
    )
}

/// Which places of the list have a row, locked by whomever.
pub(crate) fn present(parts: &Parts, keys: &str) -> String {
    let Parts { table, key, .. } = parts;
    format!(
        "SELECT k.lockkit_place FROM {keys} \
         JOIN {table} AS t ON t.{key} = k.lockkit_key"
    )
}

/// Names the types of the parameters, for a driver that keeps prepared statements by their text alone: sent
/// again with another type of integer, one would be given bytes that it misreads.
pub(crate) fn kinds<'a>(kinds: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = String::from(" /*");
    for kind in kinds {
        text.push(' ');
        text.extend(
            kind.chars()
                .filter(|it| it.is_alphanumeric() || matches!(it, '_' | '[' | ']')),
        );
    }
    text.push_str(" */");
    text
}

/// Inserts a row unless there is one with its key. Takes the key, then a value for each of `names`.
pub(crate) fn insert(parts: &Parts, names: &[String]) -> String {
    let Parts {
        table,
        key,
        columns,
    } = parts;
    let mut into = key.clone();
    let mut values = "$1".to_owned();
    for (at, name) in names.iter().enumerate() {
        into.push_str(", ");
        into.push_str(name);
        let _ = write!(values, ", ${}", at + 2);
    }
    let answer = if columns.is_empty() {
        "*".to_owned()
    } else {
        columns.join(", ")
    };
    format!(
        "INSERT INTO {table} ({into}) VALUES ({values}) \
         ON CONFLICT ({key}) DO NOTHING RETURNING {answer}"
    )
}
