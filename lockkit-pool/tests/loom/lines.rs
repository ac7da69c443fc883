//! What the books keep for runners is used again, so that a pool's memory does not grow with the number of them.

use std::sync::Arc;
use std::time::Instant;

use lockkit_core::model::check;
use lockkit_core::sync::{Mutex, thread};

use crate::engine::Found;
use crate::grant::Grant;
use crate::ledger::{Ending, Ledger};
use crate::stop::Stop;
use crate::{Job, Scene, Seat, THREAD};

/// Mutant: E159 (the line of a driver that has left is not used again).
#[test]
fn a_driver_takes_the_line_of_one_that_has_left() {
    fn come_and_go(ledger: &Mutex<Ledger>) -> usize {
        let stop = Arc::new(Stop::new());
        let line = ledger.lock().add_driver(&stop);
        let left = ledger.lock().remove_driver(line);
        drop(left);
        line
    }

    check("two drivers and a third", 2, || {
        let ledger = Arc::new(Mutex::new(Ledger::new()));
        let other = thread::spawn({
            let ledger = ledger.clone();
            move || come_and_go(&ledger)
        });
        let lines = [
            come_and_go(&ledger),
            other.join().unwrap(),
            come_and_go(&ledger),
        ];
        assert!(lines.iter().all(|line| *line < 2), "{lines:?}");
    });
}

impl Scene {
    /// A task on this runtime, and its runner from the first look to the last. Tells the runner's lane.
    fn run_on(&self, runtime: u8) -> usize {
        let permit = self.permits.try_acquire_owned().unwrap();
        let job = || Job {
            act: Box::new(|_| Ending::Done),
            published: Arc::default(),
        };
        let grant = Grant::new(permit, None);
        let call = self
            .engine
            .submit((runtime, THREAD), grant, None, job)
            .unwrap();
        assert_eq!(call.runners, 1);
        let mut seat = Seat::new(self.engine.clone(), call);
        let now = Instant::now();
        assert!(matches!(seat.look(THREAD, now, false), Found::Task(_)));
        seat.end(Ending::Done, now);
        while !matches!(seat.look(THREAD, now, false), Found::Leave) {}
        call.lane
    }
}

/// Mutant: E160 (the lane of a runtime without runners is kept for it).
#[test]
fn a_runtime_takes_the_lane_of_one_without_runners() {
    check("two runtimes and a third", 2, || {
        let scene = Scene::of(2);
        let other = thread::spawn({
            let scene = scene.clone();
            move || scene.run_on(2)
        });
        let lanes = [scene.run_on(1), other.join().unwrap(), scene.run_on(3)];
        assert!(lanes.iter().all(|lane| *lane < 2), "{lanes:?}");
        scene.assert_ended(3, 0, 0);
    });
}
