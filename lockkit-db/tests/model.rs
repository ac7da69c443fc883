//! Random histories on every store, and random courses of transactions, against models.
//!
//! Mutants: C3, C4, C6, C8, C9, C15, C16.

#[expect(dead_code, reason = "the driver uses the rest")]
#[path = "../src/transaction/machine.rs"]
mod machine;
#[expect(dead_code, reason = "the worker uses the rest")]
#[path = "../src/queue/prefetch.rs"]
mod prefetch;
#[expect(dead_code, reason = "the worker uses the rest")]
#[path = "../src/queue/turns.rs"]
mod turns;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use lockkit_core::retry::{Backoff, Policy};
use machine::{End, Event, Machine, Step};
use prefetch::Pace;
use turns::Turns;

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
    fn a_process_that_is_alone_overlooks_nothing_though_it_does_not_look_from_the_start(
        history in model::histories(60),
    ) {
        run(async { model::check(&PostgresBench::alone().await, &history).await });
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

/// What a history of claims and beginnings may be, of a session with several queues.
#[derive(Debug, Clone)]
enum Turn {
    /// The lane claims, if it wants to; of its queue there are so many jobs at most.
    Claim { there: usize },
    /// The same, and the reply is lost.
    Lost,
    /// A slot begins a job.
    Take,
    /// Of a dry queue work is seen.
    Wet { queue: usize, seen: bool },
    /// What waits in front goes back.
    Back { queue: usize },
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        4 => (0_usize..12).prop_map(|there| Turn::Claim { there }),
        1 => Just(Turn::Lost),
        8 => Just(Turn::Take),
        2 => (0_usize..4, any::<bool>()).prop_map(|(queue, seen)| Turn::Wet { queue, seen }),
        1 => (0_usize..4).prop_map(|queue| Turn::Back { queue }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn queues_with_enough_jobs_are_begun_by_weight(
        weights in prop::collection::vec(1_u32..20, 2..6),
        slots in 1_usize..20,
        ahead in 0_usize..40,
        // A queue that has none for a while, at times.
        idle in prop::collection::vec((0_usize..6, 1_usize..100), 0..10),
    ) {
        let all: u32 = weights.iter().sum();
        let mut turns = Turns::new(weights.clone());
        let mut begun = vec![0_u64; weights.len()];
        // As many as there are idle times, and then one without an end, in which all have jobs.
        let mut spans: Vec<_> = idle.iter().map(|(queue, jobs)| (Some(queue % weights.len()), *jobs)).collect();
        spans.push((None, 1000));
        for (idle, jobs) in spans {
            for queue in 0..weights.len() {
                turns.wet(queue, true);
            }
            begun.fill(0);
            let mut first = turns.waiting();
            for _ in 0..jobs {
                // Slots are had one by one, as jobs end.
                while turns.waiting() < slots.min(2) + ahead && turns.hungry(ahead / 2) {
                    let room = slots.min(2) + ahead - turns.waiting();
                    let Some(ask) = turns.ask(room) else { break };
                    prop_assert!(ask.n >= 1 && ask.n <= room);
                    let got = if idle == Some(ask.queue) { 0 } else { ask.n };
                    turns.answered(ask, got);
                    turns.push(ask.queue, vec![(); got]);
                }
                let (queue, ()) = turns.take().expect("the others have jobs, which is no reason to stand still");
                // What had been claimed before all of them had jobs comes first.
                if first > 0 {
                    first -= 1;
                    continue;
                }
                begun[queue] += 1;
            }
        }
        let one_claim = (slots.min(2) + ahead) as f64 / f64::from(all);
        for (a, of_a) in weights.iter().zip(&begun) {
            for (b, of_b) in weights.iter().zip(&begun) {
                let apart = *of_a as f64 / f64::from(*a) - *of_b as f64 / f64::from(*b);
                let bound = 2.0 * one_claim + 1.0 / f64::from(*a) + 2.0 / f64::from(*b);
                prop_assert!(apart <= bound, "{begun:?} for {weights:?}: {apart} of {bound}");
            }
        }
    }

    #[test]
    fn every_job_that_was_claimed_is_taken_once_and_a_lost_claim_is_made_good(
        weights in prop::collection::vec(1_u32..5, 1..5),
        turns_taken in prop::collection::vec(turn(), 1..200),
    ) {
        let mut turns = Turns::new(weights.clone());
        // The jobs of each queue that wait here, in their order; the numbers go on.
        let mut waiting: Vec<VecDeque<u32>> = vec![VecDeque::new(); weights.len()];
        let mut dry = vec![None; weights.len()];
        let (mut next, mut seq, mut lost) = (0, 0, None);
        for turn in turns_taken {
            match turn {
                Turn::Claim { .. } | Turn::Lost => {
                    let Some(ask) = turns.ask(8) else {
                        prop_assert!(lost.is_none() && dry.iter().all(Option::is_some));
                        continue;
                    };
                    if let Some(first) = lost {
                        prop_assert_eq!((ask.queue, ask.n, ask.seq, ask.again), first);
                    } else {
                        prop_assert_eq!((ask.seq, ask.again), (seq + 1, false));
                        prop_assert!(dry[ask.queue].is_none() && ask.n <= 8);
                    }
                    seq = ask.seq;
                    let Turn::Claim { there } = turn else {
                        turns.lost(ask);
                        lost = Some((ask.queue, ask.n, ask.seq, true));
                        continue;
                    };
                    lost = None;
                    let got = there.min(ask.n);
                    let is_dry = turns.answered(ask, got);
                    if got < ask.n || dry[ask.queue].is_some() {
                        dry[ask.queue] = Some(());
                    }
                    prop_assert_eq!(is_dry, dry[ask.queue].is_some());
                    let jobs: Vec<_> = (next..).take(got).collect();
                    next += got as u32;
                    waiting[ask.queue].extend(&jobs);
                    turns.push(ask.queue, jobs);
                }
                Turn::Take => match turns.take() {
                    Some((queue, job)) => prop_assert_eq!(waiting[queue].pop_front(), Some(job)),
                    None => prop_assert!(waiting.iter().all(VecDeque::is_empty)),
                },
                Turn::Wet { queue, seen } => {
                    let queue = queue % weights.len();
                    turns.wet(queue, seen);
                    dry[queue] = None;
                    prop_assert!(turns.dry(queue).is_none());
                }
                Turn::Back { queue } => {
                    let front = waiting[queue % weights.len()].pop_front();
                    let back = turns.remove(|job| Some(*job) == front);
                    prop_assert_eq!(back, front);
                }
            }
            prop_assert_eq!(turns.waiting(), waiting.iter().map(VecDeque::len).sum::<usize>());
            prop_assert_eq!(turns.is_lost(), lost.is_some());
        }
        let mut rest = turns.drain();
        rest.sort_unstable();
        let mut left: Vec<_> = waiting.into_iter().flatten().collect();
        left.sort_unstable();
        prop_assert_eq!(rest, left);
    }

    #[test]
    fn as_much_is_claimed_ahead_as_is_begun_in_two_exchanges_and_in_the_time_there_is(
        slots in 1_usize..100,
        most in 0_usize..5000,
        patience in 1_u64..20_000,
        run in 0_u64..100_000_000,
        exchange in 0_u64..2_000_000,
        others in prop::collection::vec(0_u64..100_000_000, 0..5),
    ) {
        let patience = Duration::from_millis(patience);
        let mut pace = Pace::new(slots, most, patience);
        prop_assert_eq!(pace.ahead(), 0, "nothing is known");
        pace.exchanged(Duration::from_micros(exchange));
        for other in others {
            pace.ran(Duration::from_micros(other));
        }
        // What was long ago does not count.
        for _ in 0..400 {
            pace.ran(Duration::from_micros(run));
        }
        let span = (2.0 * Duration::from_micros(exchange.max(1000)).as_secs_f64()).min(patience.as_secs_f64());
        let each = Duration::from_micros(run).as_secs_f64().max(1e-9);
        let naive = (slots as f64 * span / each).min(most as f64);
        let (was, ahead) = (pace.ahead(), pace.ahead() as f64);
        prop_assert!((ahead - naive).abs() <= 1.0 + naive / 50.0, "{ahead}, and not {naive}");
        pace.gave_back();
        prop_assert_eq!(pace.ahead(), 0);
        pace.exchanged(Duration::from_micros(exchange));
        prop_assert_eq!(pace.ahead(), 0, "until one has ended");
        pace.ran(Duration::from_micros(run));
        prop_assert_eq!(pace.ahead(), was);
    }
}
