//! The connection of a transaction, and the course of its attempts, under every schedule: against a pool whose
//! next borrower looks at what he gets, and against a row with a version.

use std::time::{Duration, Instant};

use lockkit_core::model::check;
use lockkit_core::retry::{Backoff, Policy};
use lockkit_core::sync::{Arc, Mutex, thread};

use crate::held::{Held, Lent};
use crate::machine::{End, Event, Machine, Step};

/// A pool of one, and what was closed.
#[derive(Default)]
struct Pool {
    idle: Mutex<Vec<Server>>,
    closed: Mutex<usize>,
}

/// What the server knows of a connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct Server {
    open: bool,
    settings: bool,
}

struct Lease {
    pool: Arc<Pool>,
    server: Server,
}

impl Lent for Lease {
    fn give_back(self) {
        self.pool.idle.lock().push(self.server);
    }

    fn close(self) {
        *self.pool.closed.lock() += 1;
        // Another one is opened in its place.
        self.pool.idle.lock().push(Server::default());
    }
}

/// A transaction whose future is dropped after so many of its steps.
fn cut_after(pool: &Arc<Pool>, steps: usize) {
    let Some(server) = pool.idle.lock().pop() else {
        return;
    };
    assert_eq!(
        server,
        Server::default(),
        "somebody has left something behind"
    );
    let pool = Arc::clone(pool);
    let mut held = Held::new(Lease { pool, server });
    let mut left = steps;
    let mut goes_on = || {
        let goes = left > 0;
        left = left.saturating_sub(1);
        goes
    };
    held.soil();
    // BEGIN, with its settings, on the server before it is on its way back.
    held.server = Server {
        open: true,
        settings: true,
    };
    if !goes_on() {
        return;
    }
    // COMMIT.
    held.server.open = false;
    if !goes_on() {
        return;
    }
    // Its settings are put back.
    held.server.settings = false;
    if !goes_on() {
        return;
    }
    held.wash();
}

// Mutant: B7 given back soiled
#[test]
fn a_connection_comes_back_clean_or_not_at_all() {
    for (one, two) in (0..4).flat_map(|one| (0..4).map(move |two| (one, two))) {
        check(
            &format!("transactions cut after {one} and {two} steps"),
            2,
            move || {
                let pool = Arc::new(Pool::default());
                pool.idle.lock().push(Server::default());
                let other = thread::spawn({
                    let pool = Arc::clone(&pool);
                    move || cut_after(&pool, two)
                });
                cut_after(&pool, one);
                other.join().unwrap();
                assert_eq!(*pool.idle.lock(), [Server::default()], "none is lost");
                assert!(*pool.closed.lock() <= 2);
            },
        );
    }
}

/// A row with a version, and the names of those whose change is in it.
#[derive(Default)]
struct Row {
    version: u64,
    changes: Vec<usize>,
}

/// How the reply to a commit fares.
#[derive(Clone, Copy)]
enum Reply {
    Arrives,
    /// The first one is lost, and the server can be asked or not.
    Lost {
        askable: bool,
    },
}

/// Reads, and commits if nobody was faster, as often as the machine says.
fn change(row: &Mutex<Row>, name: usize, reply: Reply) -> End {
    let now = Instant::now();
    let policy = Policy::builder()
        .attempts(3)
        .no_deadline()
        .backoff(Backoff::none())
        .seed(1)
        .build()
        .unwrap();
    let mut machine = Machine::new(policy, false, now);
    let mut lost = false;
    let mut read = 0;
    let mut landed = false;
    let mut step = machine.begin();
    loop {
        step = match step {
            Step::Begin => {
                // A pause has ended, so this is another attempt.
                machine.on(Event::Begun, now)
            }
            Step::Body => {
                read = row.lock().version;
                machine.on(Event::Done, now)
            }
            Step::Commit => {
                let mut row = row.lock();
                landed = row.version == read;
                if landed {
                    row.version += 1;
                    row.changes.push(name);
                }
                drop(row);
                match reply {
                    Reply::Lost { askable } if !lost => {
                        lost = true;
                        machine.on(Event::Unanswered { askable }, now)
                    }
                    _ if landed => machine.on(Event::Committed, now),
                    _ => machine.on(Event::Failed { mendable: true }, now),
                }
            }
            Step::Ask => machine.on(
                Event::Told {
                    committed: Some(landed),
                },
                now,
            ),
            Step::Undo => machine.on(Event::Undone, now),
            Step::Pause(pause) => {
                assert_eq!(pause, Duration::ZERO);
                machine.on(Event::Paused, now);
                machine.begin()
            }
            Step::End(end) => return end,
        };
    }
}

fn three_writers(name: &str, reply: Reply) {
    check(name, 3, move || {
        let row = Arc::new(Mutex::new(Row::default()));
        let others = [1, 2].map(|name| {
            let row = Arc::clone(&row);
            thread::spawn(move || change(&row, name, reply))
        });
        let own = change(&row, 0, reply);
        let others = others.map(|other| other.join().unwrap());
        let row = row.lock();
        assert_eq!(row.version as usize, row.changes.len());
        for (name, end) in [own].into_iter().chain(others).enumerate() {
            let times = row.changes.iter().filter(|change| **change == name).count();
            match end {
                End::Committed => assert_eq!(times, 1, "said to be committed"),
                End::Failed(_) => assert_eq!(times, 0, "said to have failed"),
                End::Unknown => assert!(times <= 1, "made twice"),
            }
            if !matches!(reply, Reply::Lost { askable: false }) {
                // Three of them with three attempts: nobody can be overtaken three times.
                assert_eq!(end, End::Committed);
            }
        }
    });
}

// Mutants: A5a another attempt with what the first one read, A6 another attempt after an unknown commit
#[test]
fn no_change_is_lost_or_made_twice() {
    three_writers("transactions with conflicts", Reply::Arrives);
    three_writers(
        "transactions with lost replies",
        Reply::Lost { askable: false },
    );
    three_writers("transactions that ask", Reply::Lost { askable: true });
}
