//! A lease that is renewed, given back, lost and waited for at once; and the agenda of a background task
//! against those who fill and close it.
//!
//! The sources are taken in by path, for they are private to the crate: what is checked here is what ships.

#[path = "../../src/lease/agenda.rs"]
mod agenda;
#[expect(unreachable_pub, reason = "public in the crate itself")]
#[path = "../../src/lease/cell.rs"]
mod cell;

mod keeper {
    pub(super) use lockkit_core::lease::{Action, Event, Keeper, Loss, State};
}
mod store {
    pub(super) use lockkit_core::lease::Released;
}

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use lockkit_core::lease::{Action, Event, Keeper, Loss, ReleaseOutcome, Terms, Ttl};
use lockkit_core::model::{block_on, check};
use lockkit_core::sync::Arc;
use lockkit_core::sync::thread::{self, JoinHandle};
use lockkit_test::wake::CountingWaker;

use self::agenda::{Agenda, Look};
use self::cell::{Cell, Ended};
use self::keeper::State;

const TTL: Duration = Duration::from_secs(30);

/// A lease that is due to be renewed at the second time, which is long before its deadline.
fn lease() -> (Arc<Cell>, Instant) {
    let sent = Instant::now();
    let keeper = Keeper::granted(Terms::new(ttl()), sent, sent);
    (Arc::new(Cell::new(keeper)), sent + TTL / 3)
}

fn ttl() -> Ttl {
    Ttl::new(TTL).unwrap()
}

fn with<T: Send + 'static>(
    cell: &Arc<Cell>,
    act: impl FnOnce(&Cell) -> T + Send + 'static,
) -> JoinHandle<T> {
    let cell = Arc::clone(cell);
    thread::spawn(move || act(&cell))
}

fn ended(cell: &Cell, now: Instant) -> Ended {
    let mut listener = None;
    let ended = block_on(poll_fn(|cx| {
        cell.poll_ended(&mut listener, now, cx.waker())
    }));
    if let Some(listener) = listener {
        cell.forget(listener);
    }
    ended
}

/// Whatever a renewal that was under way answers, it neither brings the lease back nor says that it is lost.
// Mutants: D5, D34
#[test]
fn lease_that_is_released_is_not_renewed() {
    let answers: [fn(Instant) -> Event; 3] = [
        |sent| Event::Extended { sent, ttl: ttl() },
        |sent| Event::Failed { sent },
        |_| Event::Refused(Loss::Gone),
    ];
    for answer in answers {
        check("lease: renewal vs release", 2, move || {
            let (cell, now) = lease();
            let given_up = std::sync::Arc::new(AtomicBool::new(false));
            let renews = {
                let given_up = std::sync::Arc::clone(&given_up);
                with(&cell, move |cell| {
                    for now in [now, now + TTL / 3] {
                        let over = given_up.load(Ordering::SeqCst);
                        let action = cell.on(Event::Tick, now);
                        assert!(!over || action == Action::Stop, "renewed after the release");
                        if let Action::Extend(_) = action {
                            cell.on(answer(now), now);
                        }
                    }
                })
            };
            let action = cell.on(Event::Release, now);
            given_up.store(true, Ordering::SeqCst);
            renews.join().unwrap();
            let state = cell.look(now);
            match action {
                Action::Release => assert_eq!(state, State::Releasing),
                // The refusal came first.
                action => assert_eq!((action, state), (Action::Stop, State::Lost(Loss::Gone))),
            }
            assert!(!cell.is_valid(now) && cell.tick_at().is_none());
        });
    }
}

/// No wake-up is lost, whichever comes first, and nobody is told another end than the others.
// Mutant: D35
#[test]
fn lease_that_is_lost_is_told_to_all_who_listen() {
    check("lease: two listeners vs a loss", 3, || {
        let (cell, now) = lease();
        let listens = with(&cell, move |cell| ended(cell, now));
        let loses = with(&cell, move |cell| {
            cell.on(Event::Refused(Loss::TakenOver), now)
        });
        let lost = Ended::Lost(Loss::TakenOver);
        assert_eq!(ended(&cell, now), lost);
        assert_eq!(listens.join().unwrap(), lost);
        assert_eq!(loses.join().unwrap(), Action::Stop);
        assert_eq!(ended(&cell, now), lost);
    });
}

/// Whichever is first is what has happened, to all.
// Mutant: D99
#[test]
fn lease_that_is_lost_and_released_has_ended_once() {
    check("lease: loss vs release, one listens", 3, || {
        let (cell, now) = lease();
        let loses = with(&cell, move |cell| cell.on(Event::Refused(Loss::Gone), now));
        let listens = with(&cell, move |cell| ended(cell, now));
        let released = cell.on(Event::Release, now) == Action::Release;
        loses.join().unwrap();
        let expected = if released {
            Ended::Released
        } else {
            Ended::Lost(Loss::Gone)
        };
        assert_eq!(listens.join().unwrap(), expected);
        assert_eq!(ended(&cell, now), expected);
    });
}

/// A listener who goes away takes no wake-up along.
// Mutant: D36
#[test]
fn lease_tells_who_listens_beside_one_who_leaves() {
    check("lease: a listener leaves, one stays", 3, || {
        let (cell, now) = lease();
        let leaves = with(&cell, move |cell| {
            let mut listener = None;
            let waker = std::task::Waker::noop();
            let _ = cell.poll_ended(&mut listener, now, waker);
            if let Some(listener) = listener {
                cell.forget(listener);
            }
        });
        let loses = with(&cell, move |cell| cell.on(Event::Refused(Loss::Gone), now));
        assert_eq!(ended(&cell, now), Ended::Lost(Loss::Gone));
        leaves.join().unwrap();
        loses.join().unwrap();
    });
}

/// Not even by a success that comes in late.
// Mutants: D13, D5
#[test]
fn lease_that_is_over_is_never_valid_again() {
    check("lease: a loss, an extension, and one who looks", 3, || {
        let (cell, now) = lease();
        let loses = with(&cell, move |cell| cell.on(Event::Refused(Loss::Gone), now));
        let extends = with(&cell, move |cell| {
            cell.on(
                Event::Extended {
                    sent: now,
                    ttl: ttl(),
                },
                now,
            )
        });
        let seen = [(); 3].map(|()| cell.is_valid(now));
        assert!(
            seen.is_sorted_by(|before, after| before >= after),
            "{seen:?}"
        );
        loses.join().unwrap();
        extends.join().unwrap();
        assert_eq!(cell.look(now), State::Lost(Loss::Gone));
        assert!(!cell.is_valid(now));
    });
}

// Mutant: D98
#[test]
fn lease_is_released_by_one() {
    check("lease: release vs release, with an answer", 2, || {
        let (cell, now) = lease();
        let release = move |cell: &Cell| match cell.on(Event::Release, now) {
            Action::Release => {
                let outcome = cell.release_answered(Some(store::Released::Released), now);
                assert_eq!(outcome, ReleaseOutcome::Released);
                1
            }
            _ => 0,
        };
        let other = with(&cell, release);
        assert_eq!(release(&cell) + other.join().unwrap(), 1);
        assert_eq!(cell.look(now), State::Released);
        assert!(cell.valid_until().is_none() && cell.gone_by() > now && cell.ttl() == ttl());
    });
}

/// What a background task does until it ends; how much it has done.
fn work(agenda: &Agenda<u8>, now: Instant) -> usize {
    let mut done = 0;
    loop {
        let due = block_on(poll_fn(|cx| match agenda.look(now, 1, cx.waker()) {
            Look::Due(due) => Poll::Ready(due),
            Look::Sleep(_) => Poll::Pending,
            Look::End => Poll::Ready(Vec::new()),
        }));
        if due.is_empty() {
            return done;
        }
        done += due.len();
    }
}

/// Puts something on it, and is the task that does it if there is none.
fn put(agenda: &Agenda<u8>, now: Instant) -> usize {
    let entry = agenda.put(now, 7).unwrap();
    if entry.start { work(agenda, now) } else { 0 }
}

/// Else something would be left to a task that has just ended.
// Mutants: D37, D38
#[test]
fn agenda_leaves_nothing_undone() {
    check("agenda: put vs work and end", 3, || {
        let agenda = Arc::new(Agenda::new(9));
        let now = Instant::now();
        let puts = {
            let agenda = Arc::clone(&agenda);
            thread::spawn(move || {
                let entry = agenda.put(now, 7).unwrap();
                agenda.close();
                entry.start
            })
        };
        let other = {
            let agenda = Arc::clone(&agenda);
            thread::spawn(move || agenda.put(now, 8).unwrap().start)
        };
        // Two put something on it, and each may have to make the task; here it is made after both.
        let starts = [puts.join().unwrap(), other.join().unwrap()];
        assert_eq!(starts.iter().filter(|start| **start).count(), 1);
        assert_eq!(work(&agenda, now), 2);
        assert_eq!(agenda.len(), 0);
    });
}

/// Locks are taken and given back long before they are due, again and again: the task is not woken for each.
// Mutant: D110
#[test]
fn agenda_lets_its_worker_sleep_through_what_comes_and_goes() {
    fn come_and_go(agenda: &Agenda<u8>, at: Instant) {
        let entry = agenda.put(at, 7).unwrap();
        assert_eq!(agenda.remove(entry.id), Some(7));
    }
    check("agenda: put and taken off vs the same", 2, || {
        let agenda = Arc::new(Agenda::new(9));
        let now = Instant::now();
        let far = now + TTL;
        let woken = CountingWaker::new();
        let waker = woken.waker();
        come_and_go(&agenda, far);
        let Look::Sleep(Some(soon)) = agenda.look(now, 1, &waker) else {
            panic!("something has come and gone");
        };
        assert!(soon < far);
        let other = {
            let agenda = Arc::clone(&agenda);
            thread::spawn(move || come_and_go(&agenda, far))
        };
        come_and_go(&agenda, far);
        other.join().unwrap();
        assert_eq!(woken.take(), 0);
        come_and_go(&agenda, now);
        assert_eq!(woken.take(), 1, "that is due");
        // It has come since the last look, and nothing has since this one.
        let Look::Sleep(Some(later)) = agenda.look(soon, 1, &waker) else {
            panic!("something has come and gone");
        };
        assert_eq!(agenda.look(later, 1, &waker), Look::Sleep(None));
        come_and_go(&agenda, far);
        assert_eq!(woken.take(), 1);
    });
}

/// The task may end between two things that are put on a closed agenda: then there is another one.
// Mutants: D37, D38
#[test]
fn agenda_has_a_worker_whenever_there_is_work() {
    check("agenda: put vs put on a closed agenda", 2, || {
        let agenda = Arc::new(Agenda::new(9));
        let now = Instant::now();
        agenda.close();
        let done = std::sync::Arc::new(AtomicUsize::new(0));
        let other = {
            let (agenda, done) = (Arc::clone(&agenda), std::sync::Arc::clone(&done));
            thread::spawn(move || done.fetch_add(put(&agenda, now), Ordering::SeqCst))
        };
        done.fetch_add(put(&agenda, now), Ordering::SeqCst);
        other.join().unwrap();
        assert_eq!((done.load(Ordering::SeqCst), agenda.len()), (2, 0));
    });
}

/// The task sleeps, or is about to.
// Mutant: D38
#[test]
fn agenda_wakes_its_worker() {
    check("agenda: work vs put and close", 2, || {
        let agenda = Arc::new(Agenda::new(9));
        let now = Instant::now();
        assert!(agenda.put(now, 7).unwrap().start);
        let works = {
            let agenda = Arc::clone(&agenda);
            thread::spawn(move || work(&agenda, now))
        };
        assert!(!agenda.put(now, 8).unwrap().start);
        let later = agenda.put(now + TTL, 9).unwrap();
        agenda.bring_forward(later.id, now);
        agenda.close();
        assert_eq!(works.join().unwrap(), 3);
    });
}

/// Of a lease that is released while the task has it in its hands, nothing stays on the agenda.
// Mutant: D39
#[test]
fn agenda_does_not_keep_what_is_released() {
    check("agenda: renewal vs release", 2, || {
        let agenda = Arc::new(Agenda::new(9));
        let (cell, now) = lease();
        let id = agenda.put(now, Arc::clone(&cell)).unwrap().id;
        let renews = {
            let agenda = Arc::clone(&agenda);
            thread::spawn(move || {
                let Look::Due(due) = agenda.look(now, 1, std::task::Waker::noop()) else {
                    return;
                };
                for (id, cell) in due {
                    cell.on(Event::Tick, now);
                    if let Some(at) = cell.tick_at() {
                        agenda.put_back(id, at, cell, |cell| cell.tick_at().is_some());
                    }
                }
            })
        };
        cell.on(Event::Release, now);
        drop(agenda.remove(id));
        renews.join().unwrap();
        assert_eq!(agenda.len(), 0);
    });
}

/// A runtime that is shut down drops the task; the next one who has something to do makes it anew.
// Mutant: D97
#[test]
fn agenda_that_is_abandoned_gets_another_worker() {
    check("agenda: abandon vs put", 2, || {
        let agenda = Arc::new(Agenda::new(2));
        let now = Instant::now();
        assert!(agenda.put(now, 7).unwrap().start);
        let drops = {
            let agenda = Arc::clone(&agenda);
            thread::spawn(move || agenda.abandon())
        };
        let started = agenda.put(now, 8).unwrap().start;
        drops.join().unwrap();
        // There is room for two.
        assert_eq!(agenda.put(now, 9), Err(9));
        agenda.close();
        assert_eq!(agenda.remove(0), Some(7));
        if !started {
            // It came before the drop: nobody does it until there is more to do.
            assert!(agenda.put(now, 9).unwrap().start);
        }
        assert_eq!(work(&agenda, now), if started { 1 } else { 2 });
    });
}
