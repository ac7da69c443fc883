//! Step 4: the function of this crate itself, which claims its fence as it reads. Also with a store that loses answers.
#![cfg(lockkit_loom)]

mod scene;

use checked::{Added, Sheet, add_hours};
use lockkit_core::Fence;
use lockkit_core::model::{ModelLease, ModelRow, block_on, check};
use lockkit_core::sync::{Arc, thread};
use scene::{Office, two_clerks};

/// The sheet of the model; the program's is a table.
struct ModelSheet<'a>(&'a ModelRow<u32>);

impl Sheet for ModelSheet<'_> {
    async fn claim(&self, fence: Fence) -> Option<u32> {
        self.0.claim(fence).ok()
    }

    async fn write(&self, fence: Fence, hours: u32) -> bool {
        self.0.write_fenced(fence, hours).is_ok()
    }
}

fn add_an_hour(office: &Office) -> bool {
    let sheet = ModelSheet(&office.sheet);
    block_on(add_hours(&office.locks, &sheet, 1)) == Added::Yes
}

#[test]
fn nothing_is_lost_in_any_schedule() {
    check("step 4: the fence claimed", 3, || two_clerks(add_an_hour));
}

#[test]
fn nothing_is_lost_with_the_answers_of_the_store() {
    check("step 4: lost answers", 3, || {
        let office = Arc::new(Office {
            locks: ModelLease::unsure(),
            sheet: ModelRow::new(0),
        });
        let other = thread::spawn({
            let office = Arc::clone(&office);
            move || add_an_hour(&office)
        });
        let network = thread::spawn({
            let office = Arc::clone(&office);
            move || office.locks.deliver()
        });
        let added = u32::from(add_an_hour(&office)) + u32::from(other.join().unwrap());
        network.join().unwrap();
        assert_eq!(office.sheet.read().0, added, "hours are lost");
    });
}
