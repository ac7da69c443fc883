//! What the derive lets pass is what a table takes.

use lockkit_db::cas::Table;
use lockkit_db::sqlx::{Postgres, Sqlite};
use proptest::prelude::*;

#[path = "../../macros/src/names.rs"]
mod rules;

fn taken(table: &str, keys: &[&str], columns: &[&str]) -> bool {
    macro_rules! built {
        ($database:ty) => {{
            let mut described =
                Table::<$database>::describe(table).columns(columns.iter().copied());
            for key in keys {
                described = described.key(key);
            }
            described.version("version").build().is_ok()
        }};
    }
    let on_postgres = built!(Postgres);
    assert_eq!(built!(Sqlite), on_postgres);
    on_postgres
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-zA-Z_][a-zA-Z0-9_]{0,8}",
        2 => "[a-z0-9_.\"; \\x00é-]{0,5}",
        1 => "[a-z]{61,66}",
        1 => any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    // Mutants: A179, A179a
    #[test]
    fn a_column_is_judged_alike(name in name(), key: bool) {
        let sound = rules::column(&name).is_ok() && !rules::same(&name, "x") && !rules::same(&name, "version");
        let given = [name.as_str()];
        let (keys, columns) = if key { (&given, &["x"]) } else { (&["x"], &given) };
        prop_assert_eq!(taken("t", keys, columns), sound);
    }

    // Mutant: A179
    #[test]
    fn a_table_is_judged_alike(name in name(), schema in name(), both: bool) {
        let name = if both { format!("{schema}.{name}") } else { name };
        prop_assert_eq!(taken(&name, &["k"], &["x"]), rules::table(&name).is_ok());
    }

    // Mutant: A179b
    #[test]
    fn two_columns_are_the_same_alike(one in "[a-c_]{1,2}|[A-C_]{1,2}", other in "[a-c_]{1,2}|[A-C_]{1,2}") {
        prop_assert_eq!(taken("t", &["k"], &[&one, &other]), !rules::same(&one, &other));
    }
}

#[test]
fn the_limits_are_those_of_a_table() {
    let names: Vec<_> = (0..=rules::MOST_COLUMNS).map(|n| format!("c{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let up_to = |most: usize| (&names[..most], &names[..=most]);
    let (most, more) = up_to(rules::MOST_COLUMNS);
    assert!(taken("t", &["k"], most) && !taken("t", &["k"], more));
    let (most, more) = up_to(rules::MOST_KEYS);
    assert!(taken("t", most, &["k"]) && !taken("t", more, &["k"]));
    let longest = "x".repeat(rules::LONGEST);
    assert!(taken(&longest, &["k"], &["x"]) && rules::table(&longest).is_ok());
}
