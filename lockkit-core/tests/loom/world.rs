//! What others keep, as models have it: each does what it stands for, and what is built on it wrongly is found.

use std::collections::BTreeSet;
use std::sync::Mutex as Notes;
use std::time::Duration;

use lockkit_core::Fence;
use lockkit_core::lease::{
    AcquireSpec, Acquired, ExtendSpec, Extended, Key, LeaseStore, Released, StoreError, Token, Ttl,
};
use lockkit_core::model::{
    ModelClock, ModelLease, ModelQueue, ModelRow, ModelTable, Refused, TableError, block_on, check,
    choose, refute,
};
use lockkit_core::sync::thread::{self, JoinHandle};
use lockkit_core::sync::{Arc, Mutex};

/// What was seen in any of the executions: the checker does not know of it.
fn seen<T: Ord + Send + 'static>() -> std::sync::Arc<Notes<BTreeSet<T>>> {
    std::sync::Arc::default()
}

fn with<S: Send + Sync + 'static, T: 'static>(
    shared: &Arc<S>,
    act: impl FnOnce(&S) -> T + Send + 'static,
) -> JoinHandle<T> {
    let shared = Arc::clone(shared);
    thread::spawn(move || act(&shared))
}

/// Also the questions that only some schedules ask, and those that have more answers in one than in another.
// Mutant: E170
#[test]
fn each_list_of_answers_meets_each_schedule() {
    let lists = seen();
    let notes = std::sync::Arc::clone(&lists);
    check("choices of two threads", 2, move || {
        let order = Arc::new(Mutex::new(Vec::new()));
        let ask = |order: &Mutex<Vec<(char, usize)>>, who, n| {
            // One step, so that the order of the questions is that of the notes.
            let mut order = order.lock();
            let answer = choose(n);
            order.push((who, answer));
            answer
        };
        let other = with(&order, move |order| ask(order, 'b', 3));
        if ask(&order, 'a', 2) == 1 {
            ask(&order, 'a', 2);
        }
        other.join().unwrap();
        notes.lock().unwrap().insert(order.lock().clone());
    });
    let lists = lists.lock().unwrap();
    // Of `a`: 0, or 1 and then either; of `b` three answers; and each place of `b` among those of `a`.
    assert_eq!(lists.len(), 3 * (2 + 2 * 3), "{lists:?}");
}

#[test]
fn a_question_without_answers_and_one_outside_of_a_model_are_refused() {
    for refused in [
        std::panic::catch_unwind(|| choose(0)),
        std::panic::catch_unwind(|| choose(1)),
    ] {
        refused.unwrap_err();
    }
}

#[test]
fn what_holds_cannot_be_refuted() {
    let refused = std::panic::catch_unwind(|| {
        refute("nothing to find", 2, || {
            let sum = Arc::new(Mutex::new(0));
            let other = with(&sum, |sum| *sum.lock() += 1);
            *sum.lock() += 1;
            other.join().unwrap();
        })
    });
    let message = *refused.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("nothing found"), "{message}");
}

/// Adds 1 to the row, and says whether it is done.
type AddOne = fn(&ModelLease, &ModelRow<u32>) -> bool;

/// Two who add 1 under a lock that may expire at any step: what they say is done is in the row.
fn two_holders(add_one: AddOne) {
    let locks = Arc::new(ModelLease::new());
    let row = Arc::new(ModelRow::new(0));
    let other = {
        let row = Arc::clone(&row);
        with(&locks, move |locks| add_one(locks, &row))
    };
    let environment = with(&locks, |locks| locks.expire("row"));
    let done = u32::from(add_one(&locks, &row)) + u32::from(other.join().unwrap());
    environment.join().unwrap();
    assert_eq!(row.read().0, done, "an update is lost");
}

// Mutants: D170, D171
#[test]
fn a_fence_that_is_claimed_as_one_reads_loses_nothing() {
    check("lease: a fence claimed and shown", 3, || {
        two_holders(|locks, row| {
            let Some(grant) = locks.try_lock("row") else {
                return false;
            };
            let Ok(value) = row.claim(grant.fence()) else {
                return false;
            };
            let done = row.write_fenced(grant.fence(), value + 1).is_ok();
            let _ = locks.unlock(&grant);
            done
        });
    });
}

/// Without a fence, with a look at the lock before the write, and with the fence on the write alone.
#[test]
fn whatever_is_less_than_that_loses_an_update() {
    let less: [(&str, AddOne); 3] = [
        ("no fence", |locks, row| {
            let Some(_grant) = locks.try_lock("row") else {
                return false;
            };
            row.write(row.read().0 + 1);
            true
        }),
        ("a look before the write", |locks, row| {
            let Some(grant) = locks.try_lock("row") else {
                return false;
            };
            let value = row.read().0;
            let held = locks.is_held(&grant);
            if held {
                row.write(value + 1);
            }
            held
        }),
        ("the fence on the write alone", |locks, row| {
            let Some(grant) = locks.try_lock("row") else {
                return false;
            };
            let value = row.read().0;
            row.write_unless_older(grant.fence(), value + 1).is_ok()
        }),
    ];
    for (name, add_one) in less {
        let found = refute(name, 3, move || two_holders(add_one));
        assert!(found.contains("an update is lost"), "{name}: {found}");
    }
}

#[test]
fn a_write_that_was_never_claimed_is_refused_also_if_it_is_the_highest() {
    let [low, high] = [1, 2].map(|number| Fence::new(number).unwrap());
    check("row: marks", 2, move || {
        let row = Arc::new(ModelRow::new('a'));
        let claims = with(&row, move |row| row.claim(low));
        assert_eq!(row.write_fenced(high, 'b'), Err(Refused::Unclaimed));
        claims.join().unwrap().unwrap();
        row.write_fenced(low, 'c').unwrap();
        row.claim(high).unwrap();
        assert_eq!(
            row.write_fenced(low, 'd'),
            Err(Refused::Stale { mark: high })
        );
        assert_eq!(
            row.write_unless_older(low, 'd'),
            Err(Refused::Stale { mark: high })
        );
        assert_eq!(row.read(), ('c', 1));
    });
}

/// Both end, as each looks again at what it has lost against.
#[test]
fn a_version_that_is_compared_loses_nothing_and_one_that_is_not_does() {
    fn both(add_one: fn(&ModelRow<u32>)) {
        let row = Arc::new(ModelRow::new(0));
        let other = with(&row, add_one);
        add_one(&row);
        other.join().unwrap();
        assert_eq!(row.read(), (2, 2));
    }
    check("row: compare and set", 2, || {
        both(|row| {
            let (mut value, mut version) = row.read();
            // Of two, one at most can lose, and once.
            if row.compare_and_set(version, value + 1).is_err() {
                (value, version) = row.read();
                row.compare_and_set(version, value + 1).unwrap();
            }
        });
    });
    refute("row: a blind write", 2, || {
        both(|row| row.write(row.read().0 + 1));
    });
}

/// What was sent is done, or done without an answer, or done late, or never; and a token's own acquire, sent again,
/// finds its grant.
// Mutant: D172
#[test]
fn answers_of_a_store_get_lost_in_each_way() {
    let ends = seen();
    let notes = std::sync::Arc::clone(&ends);
    check("lease: lost answers", 2, move || {
        let locks = Arc::new(ModelLease::unsure());
        let (key, token) = (Key::new("key").unwrap(), Token::new());
        let spec = AcquireSpec::new(key.clone(), token, Ttl::MAX);
        let network = with(&locks, ModelLease::deliver);
        let first = block_on(locks.acquire(&spec));
        let again = block_on(locks.acquire(&spec));
        network.join().unwrap();
        let one = Fence::MIN;
        for answer in [&first, &again] {
            match answer {
                Ok(Acquired::Granted { fence }) => assert_eq!(*fence, one),
                Err(StoreError::Unknown { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        let held = block_on(locks.inspect(&key)).unwrap().is_some();
        notes
            .lock()
            .unwrap()
            .insert((first.is_ok(), again.is_ok(), held));
    });
    let ends = ends.lock().unwrap();
    assert_eq!(ends.len(), 5, "{ends:?}");
    assert!(ends.contains(&(false, false, true)) && ends.contains(&(false, false, false)));
}

#[test]
fn a_lock_of_the_model_keeps_the_contract() {
    check("lease: contract", 2, || {
        let locks = Arc::new(ModelLease::new());
        let key = Key::new("key").unwrap();
        let [own, others] = [Token::new(), Token::new()];
        let spec = |token| {
            AcquireSpec::new(
                key.clone(),
                token,
                Ttl::new(Duration::from_secs(1)).unwrap(),
            )
        };
        let granted = |fence| Acquired::Granted {
            fence: Fence::new(fence).unwrap(),
        };
        let other = {
            let spec = spec(others);
            with(&locks, move |locks| block_on(locks.acquire(&spec)).unwrap())
        };
        let first = block_on(locks.acquire(&spec(own))).unwrap();
        let second = other.join().unwrap();
        // Whoever was first is asked for once more, and has the same.
        let (holder, loser) = if first == granted(1) {
            (own, others)
        } else {
            (others, own)
        };
        assert!(matches!(
            (&first, &second),
            (Acquired::Granted { .. }, Acquired::Busy { .. })
                | (Acquired::Busy { .. }, Acquired::Granted { .. })
        ));
        assert_eq!(block_on(locks.acquire(&spec(holder))).unwrap(), granted(1));
        let extend = |token| {
            let batch = [ExtendSpec::new(key.clone(), token, Ttl::MAX)];
            block_on(locks.extend(&batch)).unwrap()
        };
        assert_eq!(extend(holder), [Extended::Extended]);
        assert_eq!(extend(loser), [Extended::HeldByOther]);
        let release = |token| block_on(locks.release(&key, &token)).unwrap();
        assert_eq!(release(loser), Released::HeldByOther);
        assert!(locks.expire("key") && !locks.expire("key"));
        assert_eq!(extend(holder), [Extended::Absent]);
        assert_eq!(release(holder), Released::Absent);
        assert_eq!(block_on(locks.acquire(&spec(loser))).unwrap(), granted(2));
        assert_eq!(release(loser), Released::Released);
        assert!(block_on(locks.watch(&key, &loser)).unwrap().is_none());
    });
}

/// Adds 1 to the row with key 1.
type AddOneToRow = fn(&ModelTable<u8, u32>) -> Result<(), TableError>;

fn two_transactions(there: Option<u32>, add_one: AddOneToRow) {
    let table = Arc::new(ModelTable::new());
    if let Some(value) = there {
        let mut tx = table.begin();
        tx.insert(&1, value).unwrap();
        tx.commit();
    }
    let other = with(&table, add_one);
    let ends = [add_one(&table), other.join().unwrap()];
    let done: u32 = ends.iter().map(|end| u32::from(end.is_ok())).sum();
    assert_eq!(table.get(&1), Some(there.unwrap_or(0) + done));
}

/// The first insert of a key races too: whoever loses it adds to the row that has won.
// Mutants: B170, B171
#[test]
fn a_row_that_is_locked_before_it_is_read_loses_nothing() {
    check("table: lock, or insert and lock", 2, || {
        two_transactions(None, |table| {
            let mut tx = table.begin();
            if tx.get_for_update(&1)?.is_none() {
                match tx.insert(&1, 0) {
                    // It is there by now.
                    Ok(()) | Err(TableError::Duplicate) => {}
                    other => other?,
                }
            }
            let value = tx.get_for_update(&1)?.expect("just made");
            tx.update(&1, value + 1)?;
            tx.commit();
            Ok(())
        });
    });
    check("table: a locking read", 2, || {
        two_transactions(Some(7), |table| {
            let mut tx = table.begin();
            let value = tx.get_for_update(&1)?.expect("made before");
            tx.update(&1, value + 1)?;
            tx.commit();
            Ok(())
        });
    });
    refute("table: read without a lock", 2, || {
        two_transactions(Some(7), |table| {
            let mut tx = table.begin();
            let value = tx.get(&1).expect("made before");
            tx.update(&1, value + 1)?;
            tx.commit();
            Ok(())
        });
    });
}

/// One of two that lock in opposite orders is told, and the other one goes on.
// Mutant: B172
#[test]
fn a_cycle_of_transactions_has_one_victim() {
    let victims = seen();
    let notes = std::sync::Arc::clone(&victims);
    check("table: opposite orders", 2, move || {
        let table = Arc::new(ModelTable::new());
        let mut tx = table.begin();
        for key in [1, 2] {
            tx.insert(&key, 0).unwrap();
        }
        tx.commit();
        let both = |table: &ModelTable<u8, u32>, order: [u8; 2]| {
            let mut tx = table.begin();
            for key in order {
                let value = tx.get_for_update(&key)?.expect("made above");
                tx.update(&key, value + 1)?;
            }
            tx.commit();
            Ok::<_, TableError>(())
        };
        let other = with(&table, move |table| both(table, [2, 1]));
        let ends = [both(&table, [1, 2]), other.join().unwrap()];
        let done = ends.iter().filter(|end| end.is_ok()).count();
        assert!(done > 0, "{ends:?}");
        let done = u32::try_from(done).unwrap();
        assert_eq!((table.get(&1), table.get(&2)), (Some(done), Some(done)));
        notes.lock().unwrap().insert(ends.map(|end| end.is_ok()));
    });
    assert_eq!(victims.lock().unwrap().len(), 3);
}

// Mutant: B173
#[test]
fn nobody_sees_what_is_not_committed_and_a_dropped_transaction_was_never_there() {
    check("table: dirty reads", 2, || {
        let table = Arc::new(ModelTable::new());
        let writes = with(&table, |table: &ModelTable<u8, u32>| {
            let mut tx = table.begin();
            if tx.insert(&1, 7).is_err() {
                // The other one was first, and has committed.
                return assert_eq!(tx.get(&1), Some(1));
            }
            assert_eq!(tx.get(&1), Some(7));
            assert_eq!(tx.insert(&1, 8), Err(TableError::Duplicate));
            assert_eq!(tx.delete(&1), Ok(true));
            assert_eq!((tx.get(&1), tx.delete(&1)), (None, Ok(false)));
            tx.insert(&1, 9).unwrap();
        });
        assert_eq!(table.get(&1), None, "a dirty read");
        let mut tx = table.begin();
        // A key without a row locks nothing.
        assert_eq!(tx.get_for_update(&1), Ok(None));
        tx.insert(&1, 1).unwrap();
        tx.commit();
        writes.join().unwrap();
        assert_eq!(table.get(&1), Some(1));
    });
}

/// A handler that has made its effect, and whose job comes again.
#[test]
fn a_job_that_is_delivered_again_is_done_once_where_its_effect_asks_for_the_epoch() {
    fn two_workers(effect: fn(&ModelRow<u32>, Fence) -> bool) {
        let queue = Arc::new(ModelQueue::new());
        let row = Arc::new(ModelRow::new(0));
        queue.push("job");
        let work = move |queue: &ModelQueue<&str>, row: &ModelRow<u32>| {
            let Some(claimed) = queue.claim() else {
                return false;
            };
            effect(row, claimed.epoch) && queue.ack(&claimed).is_ok()
        };
        let other = {
            let row = Arc::clone(&row);
            with(&queue, move |queue| work(queue, &row))
        };
        let environment = with(&queue, ModelQueue::redeliver);
        let own = work(&queue, &row);
        let done = usize::from(own) + usize::from(other.join().unwrap());
        environment.join().unwrap();
        assert_eq!(queue.left(), 1 - done, "acknowledged twice, or lost");
        assert!(row.read().0 <= 1, "an effect twice");
    }
    check("queue: effects under the epoch of the first", 3, || {
        two_workers(|row, epoch| {
            // What was done under any epoch is not done again.
            row.claim(epoch) == Ok(0) && row.write_fenced(epoch, 1).is_ok() || row.read().0 == 1
        });
    });
    let found = refute("queue: effects without a look", 3, || {
        two_workers(|row, _| {
            row.write(row.read().0 + 1);
            true
        });
    });
    assert!(found.contains("an effect twice"), "{found}");
}

// Mutants: C170, C171
#[test]
fn a_job_leaves_the_queue_by_its_last_claim_alone() {
    check("queue: claims", 2, || {
        let queue = Arc::new(ModelQueue::new());
        let first = queue.push('a');
        let second = with(&queue, |queue: &ModelQueue<char>| queue.push('b'));
        let claimed = queue.claim().unwrap();
        assert_eq!((claimed.id, claimed.payload), (first, 'a'));
        queue.redeliver();
        assert_eq!(queue.ack(&claimed).unwrap_err().id, first);
        let anew = queue.claim().unwrap();
        assert!(anew.id == first && anew.epoch > claimed.epoch);
        assert!(queue.give_back(&claimed).is_err());
        queue.give_back(&anew).unwrap();
        assert!(queue.ack(&anew).is_err());
        let last = queue.claim().unwrap();
        queue.ack(&last).unwrap();
        assert!(queue.ack(&last).is_err());
        let second = second.join().unwrap();
        assert_eq!(queue.claim().unwrap().id, second);
        assert_eq!((queue.left(), queue.claim().is_none()), (1, true));
    });
}

/// Nobody's time goes back, and two who do not hear of each other may read different ones.
// Mutant: E171
#[test]
fn clocks_differ_and_do_not_go_back() {
    const TICK: Duration = Duration::from_secs(1);
    let readings = seen();
    let notes = std::sync::Arc::clone(&readings);
    check("clock: two readers", 3, move || {
        let clock = Arc::new(ModelClock::new(TICK));
        let environment = with(&clock, |clock| {
            clock.advance();
            clock.advance();
        });
        let other = with(&clock, |clock| [clock.elapsed(), clock.elapsed()]);
        let own = [clock.elapsed(), clock.elapsed()];
        let other = other.join().unwrap();
        for [before, after] in [own, other] {
            assert!(before <= after && after <= 2 * TICK);
        }
        environment.join().unwrap();
        assert_eq!(clock.elapsed(), 2 * TICK);
        notes.lock().unwrap().insert((own, other));
    });
    let readings = readings.lock().unwrap();
    // Of three times there are six pairs that do not go back.
    assert_eq!(readings.len(), 6 * 6, "{readings:?}");
}
