//! Step 1: the lock is relied on. `refute` expects that a schedule breaks it; write `check` in its place to see which.
#![cfg(lockkit_loom)]

mod scene;

use lockkit_core::model::refute;
use scene::{Office, two_clerks};

fn add_an_hour(office: &Office) -> bool {
    let Some(_grant) = office.locks.try_lock("sheet") else {
        return false;
    };
    let (hours, _) = office.sheet.read();
    // A pause here, the lease ends, the other clerk reads and writes.
    office.sheet.write(hours + 1);
    true
}

#[test]
fn hours_are_lost() {
    let found = refute("step 1: the lock alone", 3, || two_clerks(add_an_hour));
    assert!(found.contains("hours are lost"), "{found}");
}
