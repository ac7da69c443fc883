//! Several holders of structs and random operations, against a map.

use std::collections::BTreeMap;

use lockkit_db::Versioned;
use lockkit_db::cas::{Deleted, Outcome, Version};
use proptest::prelude::*;

use crate::scene;
use crate::structs::{Note, with_tables};

/// What a holder does with the struct that it has; the key is the struct's.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// Takes up another row.
    Load {
        id: i64,
    },
    Insert {
        rating: i64,
    },
    Update {
        rating: i64,
    },
    Delete,
}

const HOLDERS: usize = 3;

fn ops() -> impl Strategy<Value = Vec<(usize, Op)>> {
    let op = prop_oneof![
        3 => (1..3_i64).prop_map(|id| Op::Load { id }),
        2 => any::<i64>().prop_map(|rating| Op::Insert { rating }),
        6 => any::<i64>().prop_map(|rating| Op::Update { rating }),
        1 => Just(Op::Delete),
    ];
    prop::collection::vec((0..HOLDERS, op), 0..40)
}

/// The rows.
type Model = BTreeMap<i64, Note>;

macro_rules! check {
    ($scene:expr, $history:expr) => {{
        let scene = $scene;
        with_tables!(scene);
        let pool = &scene.pool;
        let mut model = Model::new();
        let mut held = [(); HOLDERS].map(|()| Note::new(1, "a", 0));
        for (holder, op) in $history {
            let note = &mut held[holder];
            let row = model.get(&note.id).cloned();
            let mut expected = note.clone();
            match op {
                Op::Load { id } => {
                    let loaded = Note::load(pool, id).await.unwrap();
                    prop_assert_eq!(loaded.as_ref(), model.get(&id));
                    *note = loaded.unwrap_or_else(|| Note::new(id, "b", 0));
                    continue;
                }
                Op::Insert { rating } => {
                    note.rating = rating;
                    expected.rating = rating;
                    let inserted = note.insert(pool).await.unwrap();
                    if row.is_none() {
                        expected.version = 1;
                        model.insert(expected.id, expected.clone());
                    }
                    prop_assert_eq!(inserted.is_some(), row.is_none());
                }
                Op::Update { rating } => {
                    note.rating = rating;
                    expected.rating = rating;
                    let outcome = note.update(pool).await.unwrap();
                    let should = match row {
                        None => Outcome::NotFound,
                        Some(row) if row.version == expected.version => {
                            expected.version += 1;
                            model.insert(expected.id, expected.clone());
                            Outcome::Updated {
                                version: Version::new(expected.version),
                            }
                        }
                        Some(row) => Outcome::Conflict {
                            current: Version::new(row.version),
                        },
                    };
                    prop_assert_eq!(outcome, should);
                }
                Op::Delete => {
                    let outcome = note.delete(pool).await.unwrap();
                    let should = match row {
                        None => Deleted::NotFound,
                        Some(row) if row.version == expected.version => {
                            model.remove(&expected.id);
                            Deleted::Deleted
                        }
                        Some(row) => Deleted::Conflict {
                            current: Version::new(row.version),
                        },
                    };
                    prop_assert_eq!(outcome, should);
                }
            }
            prop_assert_eq!(&*note, &expected);
        }
        for (id, row) in &model {
            let loaded = Note::load(pool, *id).await.unwrap();
            prop_assert_eq!(loaded.as_ref(), Some(row));
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

// Mutants: A170, A173
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
