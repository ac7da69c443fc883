//! Random histories on every store, and random courses of transactions, against models.
//!
//! Mutants: C3, C4, C6, C8, C9, C15, C16.

#[expect(dead_code, reason = "the driver uses the rest")]
#[path = "../src/transaction/machine.rs"]
mod machine;

use std::time::{Duration, Instant};

use lockkit_core::retry::{Backoff, Policy};
use machine::{End, Event, Machine, Step};

use lockkit_test::queue::{MemoryBench, PostgresBench, SqliteBench, model};
use proptest::prelude::*;

fn run(check: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(check);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_store_agrees_with_the_model(history in model::histories(60)) {
        run(async { model::check(&MemoryBench::new(), &history).await });
    }
}

proptest! {
    // A case makes a file of its own.
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_sqlite_store_agrees_with_the_model(history in model::histories(60)) {
        run(async { model::check(&SqliteBench::new().await, &history).await });
    }
}

proptest! {
    // A case makes a database of its own.
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_postgres_store_agrees_with_the_model(history in model::histories(60)) {
        run(async { model::check(&PostgresBench::strict().await, &history).await });
    }

    #[test]
    fn the_postgres_store_agrees_with_the_model_when_it_does_not_look_from_the_start(
        history in model::histories(60),
    ) {
        run(async { model::check(&PostgresBench::new().await, &history).await });
    }
}

/// What a database and a body may do to a transaction.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It goes well.
    Well,
    Fails {
        mendable: bool,
    },
    /// The reply to the commit is lost; whether it can be asked for, and what is then told.
    Lost {
        askable: bool,
        told: Option<bool>,
    },
    /// The future is dropped here, and the next attempt begun.
    Dropped,
}

fn fates() -> impl Strategy<Value = Vec<(Fate, u64)>> {
    let fate = prop_oneof![
        6 => Just(Fate::Well),
        4 => any::<bool>().prop_map(|mendable| Fate::Fails { mendable }),
        2 => (any::<bool>(), any::<Option<bool>>())
            .prop_map(|(askable, told)| Fate::Lost { askable, told }),
        1 => Just(Fate::Dropped),
    ];
    prop::collection::vec((fate, 0..40_u64), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    // Mutants: A6 another attempt after an unknown commit, A12a one attempt more than asked for
    // Mutant: T7 a failure after a commit in doubt is told as one
    #[test]
    fn a_transaction_commits_at_most_once_and_ends(
        fates in fates(),
        attempts in 1..6_u32,
        deadline in prop::option::of(1..200_u64),
        idempotent in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let start = Instant::now();
        let mut now = start;
        let policy = Policy::builder()
            .attempts(attempts)
            .backoff(Backoff::exponential(Duration::from_millis(2), Duration::from_millis(50)))
            .seed(seed);
        let policy = match deadline {
            Some(deadline) => policy.deadline(Duration::from_millis(deadline)),
            None => policy.no_deadline(),
        };
        let mut machine = Machine::new(policy.build().unwrap(), idempotent, now);
        let mut fates = fates.into_iter();
        // Commits that may have landed, and those of which the server has said that they have.
        let (mut begins, mut open, mut perhaps, mut surely) = (0, false, 0, 0);
        let mut dropped = 0;
        // When it was last said how an attempt went, which is when the pause is chosen.
        let mut chosen = now;
        let mut step = machine.begin();
        let end = loop {
            // When nothing else is to happen, everything goes well.
            let (fate, takes) = fates.next().unwrap_or((Fate::Well, 0));
            now += Duration::from_millis(takes);
            if let (Fate::Dropped, false) = (fate, matches!(step, Step::End(_))) {
                if step == Step::Commit || step == Step::Ask {
                    perhaps += u32::from(step == Step::Commit);
                    prop_assert_eq!(machine.begin(), Step::End(End::Unknown));
                    break End::Unknown;
                }
                // A driver that is dropped before it has begun, has not.
                dropped += u32::from(step != Step::Begin);
                open = false;
                step = machine.begin();
                continue;
            }
            if !matches!(step, Step::Undo | Step::Pause(_)) {
                chosen = now;
            }
            step = match step {
                Step::Begin => {
                    prop_assert!(!open, "begun twice");
                    begins += 1;
                    if let Fate::Fails { mendable } = fate {
                        machine.on(Event::Failed { mendable }, now)
                    } else {
                        open = true;
                        machine.on(Event::Begun, now)
                    }
                }
                Step::Body => match fate {
                    Fate::Fails { mendable } => machine.on(Event::Failed { mendable }, now),
                    _ => machine.on(Event::Done, now),
                },
                Step::Commit => {
                    prop_assert!(open, "a commit without a begin");
                    open = false;
                    prop_assert!(surely == 0, "a commit after one that has landed");
                    prop_assert!(perhaps == 0 || idempotent, "a commit after one that may have landed");
                    match fate {
                        Fate::Fails { mendable } => machine.on(Event::Failed { mendable }, now),
                        Fate::Lost { askable, .. } => {
                            perhaps += 1;
                            machine.on(Event::Unanswered { askable }, now)
                        }
                        _ => {
                            surely += 1;
                            machine.on(Event::Committed, now)
                        }
                    }
                }
                Step::Ask => {
                    let committed = match fate {
                        Fate::Lost { told, .. } => told,
                        Fate::Fails { .. } => Some(false),
                        _ => Some(true),
                    };
                    match committed {
                        Some(true) => (perhaps, surely) = (perhaps - 1, surely + 1),
                        Some(false) => perhaps -= 1,
                        None => {}
                    }
                    machine.on(Event::Told { committed }, now)
                }
                Step::Undo => {
                    open = false;
                    machine.on(Event::Undone, now)
                }
                Step::Pause(pause) => {
                    now += pause;
                    if let Some(deadline) = deadline {
                        prop_assert!(chosen + pause < start + Duration::from_millis(deadline), "paused too long");
                    }
                    prop_assert_eq!(machine.on(Event::Paused, now), Step::Begin);
                    machine.begin()
                }
                Step::End(end) => break end,
            };
        };
        prop_assert!(begins <= attempts + dropped, "{begins} attempts");
        match end {
            End::Committed => prop_assert!(surely == 1 && (perhaps == 0 || idempotent)),
            End::Failed(_) => prop_assert!(surely == 0 && perhaps == 0),
            End::Unknown => prop_assert!(surely == 0 && perhaps >= 1),
        }
        // For good.
        prop_assert_eq!(machine.begin(), Step::End(end));
    }
}
