//! Random operations, against a map.

use std::collections::BTreeMap;

use lockkit_db::cas::{Deleted, Loaded, Outcome, Version};
use lockkit_db::optimistic::three_way;
use proptest::prelude::*;

use crate::scene;
use crate::table::{stars, with_tables};

#[derive(Clone, Debug)]
enum Op {
    Insert {
        id: i64,
        n: i64,
    },
    Load {
        id: i64,
    },
    /// `off`: how far the expected version is from the true one.
    Cas {
        id: i64,
        off: i64,
        n: i64,
    },
    Delete {
        id: i64,
        off: i64,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let id = 1..4_i64;
    let off = prop_oneof![4 => Just(0), 1 => -2..3_i64];
    let op = prop_oneof![
        2 => (id.clone(), any::<i64>()).prop_map(|(id, n)| Op::Insert { id, n }),
        1 => id.clone().prop_map(|id| Op::Load { id }),
        6 => (id.clone(), off.clone(), any::<i64>()).prop_map(|(id, off, n)| Op::Cas { id, off, n }),
        1 => (id, off).prop_map(|(id, off)| Op::Delete { id, off }),
    ];
    prop::collection::vec(op, 0..30)
}

/// The rows: value and version.
type Model = BTreeMap<i64, (i64, i64)>;

macro_rules! check {
    ($scene:expr, $history:expr) => {{
        let scene = $scene;
        with_tables!(scene);
        let table = stars();
        let mut model = Model::new();
        for op in $history {
            match op {
                Op::Insert { id, n } => {
                    let inserted = table.insert(&scene.pool, id, n).await.unwrap();
                    let fresh = !model.contains_key(&id);
                    prop_assert_eq!(inserted, fresh.then_some(Version::new(1)));
                    if fresh {
                        model.insert(id, (n, 1));
                    }
                }
                Op::Load { id } => {
                    let row = table.load(&scene.pool, id).await.unwrap();
                    let row = row.map(|Loaded { value, version, .. }| (value, version.get()));
                    prop_assert_eq!(row, model.get(&id).copied());
                }
                Op::Cas { id, off, n } => {
                    let known = model.get(&id).copied();
                    let expected = known.map_or(1, |(_, version)| version) + off;
                    let outcome = table.cas(&scene.pool, id, Version::new(expected), n).await;
                    let should = match known {
                        None => Outcome::NotFound,
                        Some((_, version)) if version == expected => {
                            model.insert(id, (n, version + 1));
                            Outcome::Updated {
                                version: Version::new(version + 1),
                            }
                        }
                        Some((_, version)) => Outcome::Conflict {
                            current: Version::new(version),
                        },
                    };
                    prop_assert_eq!(outcome.unwrap(), should);
                }
                Op::Delete { id, off } => {
                    let known = model.get(&id).copied();
                    let expected = known.map_or(1, |(_, version)| version) + off;
                    let outcome = table.delete(&scene.pool, id, Version::new(expected)).await;
                    let should = match known {
                        None => Deleted::NotFound,
                        Some((_, version)) if version == expected => {
                            model.remove(&id);
                            Deleted::Deleted
                        }
                        Some((_, version)) => Deleted::Conflict {
                            current: Version::new(version),
                        },
                    };
                    prop_assert_eq!(outcome.unwrap(), should);
                }
            }
        }
        Ok(())
    }};
}

fn run<T>(check: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(check)
}

// Mutant: A1
proptest! {
    // A case makes a database of its own.
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_agrees_with_the_map(history in ops()) {
        run(async { check!(scene::Sqlite::new(1).await, history) })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn postgres_agrees_with_the_map(history in ops()) {
        run(async { check!(scene::Postgres::new(1).await, history) })?;
    }
}

proptest! {
    #[test]
    fn a_merge_takes_what_one_side_has_changed(base in 0..4_u8, mine in 0..4_u8, theirs in 0..4_u8) {
        prop_assert_eq!(three_way(&base, &base, &theirs), Some(theirs));
        prop_assert_eq!(three_way(&base, &mine, &base), Some(mine));
        prop_assert_eq!(three_way(&base, &mine, &mine), Some(mine));
        prop_assert_eq!(three_way(&base, &mine, &theirs), three_way(&base, &theirs, &mine));
        if let Some(merged) = three_way(&base, &mine, &theirs) {
            prop_assert!(merged == mine || merged == theirs);
        }
    }
}
