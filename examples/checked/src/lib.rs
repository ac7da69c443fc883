//! Hours that several clerks add to the same sheet, under a lock that can be lost.
//!
//! [`add_hours`] is what you would write: a lock is taken, the sheet is read, and written. It is generic over what keeps
//! the locks and over what keeps the sheet, so that the program gives it a server and a database, and the tests a
//! model of each. `tests/` has the four steps in which it came to be as it is; three of them lose hours:
//!
//! | step | the writer | two clerks, and a lease that may end at any point |
//! |---|---|---|
//! | 1 | relies on the lock | hours are lost |
//! | 2 | asks whether it has the lock still, and then writes | hours are lost |
//! | 3 | shows its fence as it writes | hours are lost |
//! | 4 | claims its fence as it reads, and shows it as it writes | nothing is lost, whatever the schedule |
//!
//! `RUSTFLAGS="--cfg lockkit_loom" cargo test --profile loom` runs them.

use lockkit_core::Fence;
use lockkit_core::lease::{AcquireSpec, Acquired, Key, LeaseStore, Token, Ttl};

/// What keeps the sheet. In the program it is a table, through `lockkit_db::fenced`.
pub trait Sheet {
    /// Reads the hours, and shuts out all fences below this one. `None` if a higher one was here.
    fn claim(&self, fence: Fence) -> impl Future<Output = Option<u32>> + Send;

    /// Writes the hours if this fence was the last to claim them. `false` if it was not.
    fn write(&self, fence: Fence, hours: u32) -> impl Future<Output = bool> + Send;
}

/// How an addition has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The hours are in the sheet.
    Yes,
    /// They are not: somebody else is at it, or has come in between.
    No,
}

/// Adds hours to a sheet.
pub async fn add_hours(locks: &impl LeaseStore, sheet: &impl Sheet, hours: u32) -> Added {
    let (Ok(key), token) = (Key::new("sheet"), Token::new()) else {
        unreachable!("this is a name");
    };
    let spec = AcquireSpec::new(key.clone(), token, Ttl::MAX);
    let Ok(Acquired::Granted { fence }) = locks.acquire(&spec).await else {
        return Added::No;
    };
    let added = match sheet.claim(fence).await {
        Some(before) if sheet.write(fence, before + hours).await => Added::Yes,
        _ => Added::No,
    };
    // Whether it was ours until now is of no interest: the sheet has decided.
    let _ = locks.release(&key, &token).await;
    added
}
