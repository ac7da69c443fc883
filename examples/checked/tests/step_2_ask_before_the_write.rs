//! Step 2: whoever writes asks before whether the lock is his still. The pause comes after the answer.
#![cfg(lockkit_loom)]

mod scene;

use lockkit_core::model::refute;
use scene::{Office, two_clerks};

fn add_an_hour(office: &Office) -> bool {
    let Some(grant) = office.locks.try_lock("sheet") else {
        return false;
    };
    let (hours, _) = office.sheet.read();
    if !office.locks.is_held(&grant) {
        return false;
    }
    // The same pause.
    office.sheet.write(hours + 1);
    true
}

#[test]
fn hours_are_lost_all_the_same() {
    let found = refute("step 2: a question before the write", 3, || {
        two_clerks(add_an_hour);
    });
    assert!(found.contains("hours are lost"), "{found}");
}
