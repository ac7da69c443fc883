//! The histories of locks in a table are explained, one operation after another.

use std::sync::Arc;

use lockkit_test::lease::course;
use lockkit_test::linearizability::{Explained, Leased};
use lockkit_test::soak::seed;

use crate::scene::{Ground, on_both};

/// A lock each.
const HISTORIES: u64 = 80;
const PROCESSES: usize = 5;
const TURNS: u32 = 3;

on_both! {
    locks_in_a_table_are_explained
}

// Mutants: B177, B178
async fn locks_in_a_table_are_explained<G: Ground>() {
    let ground = G::new().await;
    let mut stores = Vec::new();
    for _ in 0..PROCESSES {
        stores.push(Arc::new(ground.store().await));
    }
    let mut all = Explained::of("locks in a table");
    for history in 0..HISTORIES {
        let seed = seed() * HISTORIES + history;
        let operations = course(&stores, &format!("k{history}"), TURNS, seed, None).await;
        all.explain(&Leased::default(), &operations);
    }
    all.tell(HISTORIES);
}
