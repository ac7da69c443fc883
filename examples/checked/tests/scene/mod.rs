//! The scene of every step: two clerks, and a lease that may end at any point.

use lockkit_core::model::{ModelLease, ModelRow};
use lockkit_core::sync::{Arc, thread};

/// What is shared.
pub struct Office {
    /// The locks.
    pub locks: ModelLease,
    /// The hours.
    pub sheet: ModelRow<u32>,
}

/// Two clerks add an hour each. What they say has been added must be in the sheet.
pub fn two_clerks(add_an_hour: fn(&Office) -> bool) {
    let office = Arc::new(Office {
        locks: ModelLease::new(),
        sheet: ModelRow::new(0),
    });
    let other = thread::spawn({
        let office = Arc::clone(&office);
        move || add_an_hour(&office)
    });
    // The schedules put this between any two steps of the clerks.
    let environment = thread::spawn({
        let office = Arc::clone(&office);
        move || office.locks.expire("sheet")
    });
    let added = u32::from(add_an_hour(&office)) + u32::from(other.join().unwrap());
    environment.join().unwrap();
    assert_eq!(office.sheet.read().0, added, "hours are lost");
}
