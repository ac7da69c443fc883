//! Locks of rows in the order that the statement gives them, and who of a process may ask for an advisory lock,
//! under every schedule.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use lockkit_core::model::{block_on, check};
use lockkit_core::sync::atomic::{AtomicUsize, Ordering};
use lockkit_core::sync::{Arc, Mutex, thread};

use crate::advisory_claims::Claims;
use crate::text::{Parts, select};

/// A server's locks of rows, and its book of them.
#[derive(Default)]
struct Server {
    rows: [Mutex<()>; 3],
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    /// Which transaction has a row.
    owners: [Option<usize>; 3],
    /// Which row a transaction waits for.
    waits: [Option<usize>; 3],
}

impl Book {
    /// Whether a transaction waits for itself, by way of others.
    fn in_a_circle(&self, me: usize) -> bool {
        let mut at = me;
        while let Some(owner) = self.waits[at].and_then(|row| self.owners[row]) {
            if owner == me {
                return true;
            }
            at = owner;
        }
        false
    }
}

/// Locks the rows of the list one by one, in the order of the statement, and ends; whether as a deadlock's victim.
fn run(statement: &str, server: &Server, me: usize, list: &[usize]) -> bool {
    let mut list = list.to_vec();
    if statement.contains(r#"ORDER BY t."id" FOR"#) {
        list.sort_unstable();
    }
    let mut held = Vec::new();
    let mut victim = false;
    for row in list {
        let mut book = server.book.lock();
        book.waits[me] = Some(row);
        // The last one of a circle closes it, and sees it.
        if book.in_a_circle(me) {
            victim = true;
            break;
        }
        drop(book);
        held.push(server.rows[row].lock());
        let mut book = server.book.lock();
        book.owners[row] = Some(me);
        book.waits[me] = None;
    }
    let mut book = server.book.lock();
    book.waits[me] = None;
    for owner in &mut book.owners {
        *owner = owner.filter(|owner| *owner != me);
    }
    victim
}

/// The deadlocks of all schedules of transactions that want the rows of their lists.
fn deadlocks(name: &str, statement: &str, lists: &'static [&[usize]]) -> usize {
    let statement = statement.to_owned();
    // std's: it is to outlive the executions.
    let seen = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&seen);
    check(name, lists.len(), move || {
        let server = Arc::new(Server::default());
        let others: Vec<_> = (1..lists.len())
            .map(|me| {
                let (server, statement) = (Arc::clone(&server), statement.clone());
                thread::spawn(move || run(&statement, &server, me, lists[me]))
            })
            .collect();
        let mut victims = usize::from(run(&statement, &server, 0, lists[0]));
        for other in others {
            victims += usize::from(other.join().unwrap());
        }
        assert_eq!(server.book.lock().owners, [None; 3]);
        count.fetch_add(victims, std::sync::atomic::Ordering::Relaxed);
    });
    seen.load(std::sync::atomic::Ordering::Relaxed)
}

fn statement() -> String {
    let parts = Parts {
        table: r#""t""#.to_owned(),
        key: r#""id""#.to_owned(),
        columns: Vec::new(),
    };
    select(&parts, "unnest($1) AS k", " FOR UPDATE OF t")
}

const UP_AND_DOWN: &[&[usize]] = &[&[0, 1], &[1, 0]];
const IN_A_CIRCLE: &[&[usize]] = &[&[0, 1], &[1, 2], &[2, 0]];

// Mutant: B4
#[test]
fn locks_in_the_statements_order_do_not_deadlock() {
    assert_eq!(deadlocks("rows: up and down", &statement(), UP_AND_DOWN), 0);
    assert_eq!(deadlocks("rows: in a circle", &statement(), IN_A_CIRCLE), 0);
}

// The control: what the model says of a statement without an order.
#[test]
fn locks_in_the_callers_order_deadlock() {
    let unordered = statement().replace(" ORDER BY", " --");
    assert!(deadlocks("rows: up and down, unordered", &unordered, UP_AND_DOWN) > 0);
    assert!(deadlocks("rows: in a circle, unordered", &unordered, IN_A_CIRCLE) > 0);
}

/// The server's side of one lock.
#[derive(Default)]
struct Advisory {
    held: Mutex<()>,
    asking: AtomicUsize,
    inside: AtomicUsize,
}

impl Advisory {
    /// Asks, and has the lock for a moment.
    fn alone(&self) {
        // Ordering: Relaxed, these are counts of the test, which joins before it reads the last ones.
        assert_eq!(self.asking.fetch_add(1, Ordering::Relaxed), 0, "two ask");
        let _held = self.held.lock();
        assert_eq!(self.inside.fetch_add(1, Ordering::Relaxed), 0, "two inside");
        self.inside.fetch_sub(1, Ordering::Relaxed);
        self.asking.fetch_sub(1, Ordering::Relaxed);
    }
}

// Mutant: B16
#[test]
fn advisory_claims_let_one_ask_and_a_waiter_that_goes_leaves_nothing() {
    check("advisory: two ask, one goes", 3, || {
        let (claims, server) = (Claims::default(), Arc::new(Advisory::default()));
        let asks = {
            let (claims, server) = (claims.clone(), Arc::clone(&server));
            thread::spawn(move || {
                let claim = block_on(claims.claim(7));
                server.alone();
                drop(claim.granted(false));
            })
        };
        let goes = {
            let claims = claims.clone();
            thread::spawn(move || {
                let mut waiting = pin!(claims.claim(7));
                let mut cx = Context::from_waker(Waker::noop());
                // With its turn or without.
                matches!(waiting.as_mut().poll(&mut cx), Poll::Ready(_))
            })
        };
        let claim = block_on(claims.claim(7));
        server.alone();
        drop(claim.granted(false));
        asks.join().unwrap();
        let _ = goes.join().unwrap();
        assert!(claims.try_claim(7).is_some(), "a claim is left");
    });
}

// Mutant: B17
#[test]
fn advisory_claims_of_sharers_go_back_when_they_are_granted() {
    check("advisory: sharers", 2, || {
        let claims = Claims::default();
        // Both have the lock at once, and never ask at once.
        let asking = Arc::new(AtomicUsize::new(0));
        let share = |claims: Claims, asking: Arc<AtomicUsize>| {
            let claim = block_on(claims.claim(7));
            // Ordering: Relaxed, as above.
            assert_eq!(asking.fetch_add(1, Ordering::Relaxed), 0, "two ask");
            asking.fetch_sub(1, Ordering::Relaxed);
            claim.granted(true)
        };
        let other = {
            let (claims, asking) = (claims.clone(), Arc::clone(&asking));
            thread::spawn(move || share(claims, asking))
        };
        let mine = share(claims.clone(), asking);
        let his = other.join().unwrap();
        assert!(mine.is_none() && his.is_none());
        assert!(claims.try_claim(7).is_some(), "a claim is left");
    });
}
