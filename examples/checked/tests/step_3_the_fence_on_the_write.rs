//! Step 3: the sheet refuses a fence that is lower than one it has seen. The one that it has *not seen yet* is the
//! trouble: who comes late has read, the next one reads the same, the late one writes, and then the next one does.
#![cfg(lockkit_loom)]

mod scene;

use lockkit_core::model::refute;
use scene::{Office, two_clerks};

fn add_an_hour(office: &Office) -> bool {
    let Some(grant) = office.locks.try_lock("sheet") else {
        return false;
    };
    let (hours, _) = office.sheet.read();
    let written = office.sheet.write_unless_older(grant.fence(), hours + 1);
    written.is_ok()
}

#[test]
fn hours_are_lost_even_so() {
    let found = refute("step 3: the fence on the write", 3, || {
        two_clerks(add_an_hour);
    });
    assert!(found.contains("hours are lost"), "{found}");
}
