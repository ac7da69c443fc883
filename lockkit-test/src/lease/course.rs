//! Several at once who ask for one lock of a store, and give it back, and what they are answered.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use lockkit_core::lease::{
    AcquireSpec, Acquired, ExtendSpec, Extended, Key, LeaseStore, Released, StoreError, Token, Ttl,
};
use tokio::task::JoinSet;

use crate::history::{Operation, Outcome, ProcessId, Recorder};
use crate::linearizability::{LeasedAnswer, LeasedOp};

/// Longer than any course, so that a lock is over only when somebody turns the clock.
const TTL: Duration = Duration::from_hours(1);

type Answer = Outcome<LeasedAnswer>;
type Record = Recorder<LeasedOp, LeasedAnswer>;

/// Lets each of these have so many turns with the lock of this name, all at once, and tells what they asked and what
/// came of it. What they ask is drawn from the seed; which of them comes first is the machine's affair.
///
/// `expires` is to see that all locks are over; it is called now and then, if there is one.
///
/// # Panics
///
/// When a step is refused, or answered in a way that the contract does not have.
///
/// # Cancel safety
///
/// Those who were begun are dropped where they are.
pub async fn course<S: LeaseStore>(
    stores: &[Arc<S>],
    name: &str,
    turns: u32,
    seed: u64,
    expires: Option<fn(&S)>,
) -> Vec<Operation<LeasedOp, LeasedAnswer>> {
    let record = Arc::new(Record::new());
    let key = Key::new(name).expect("a plain name");
    let mut all = JoinSet::new();
    for (worker, store) in stores.iter().enumerate() {
        let one = One {
            record: Arc::clone(&record),
            store: Arc::clone(store),
            key: key.clone(),
            me: ProcessId::worker(worker as u32),
        };
        let rng = Rng::with_seed(seed * 1000 + worker as u64);
        // Numbers that nobody else has.
        let first = worker as u64 * u64::from(turns);
        all.spawn(one.goes_on(first..first + u64::from(turns), rng, expires));
    }
    while let Some(ended) = all.join_next().await {
        ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    }
    let history = record.history().operations();
    history.expect("it is recorded in order")
}

/// One of them.
struct One<S> {
    record: Arc<Record>,
    store: Arc<S>,
    key: Key,
    me: ProcessId,
}

impl<S: LeaseStore> One<S> {
    async fn goes_on(mut self, turns: std::ops::Range<u64>, mut rng: Rng, expires: Option<fn(&S)>) {
        for who in turns {
            let token = Token::new();
            tokio::task::yield_now().await;
            let mut outcome = self.acquires(who, token).await;
            // Who was refused may ask after what he has not, as well.
            for _ in 0..rng.u8(..3) {
                match rng.u8(..4) {
                    0 if outcome == Outcome::Busy => outcome = self.acquires(who, token).await,
                    // It is his, or may be, whatever comes of that.
                    0 => drop(self.acquires(who, token).await),
                    1 => self.extends(who, token).await,
                    2 => self.looks().await,
                    _ => tokio::task::yield_now().await,
                }
            }
            if let (Some(expires), 0) = (expires, rng.u8(..8)) {
                let id = self.record.invoke(self.me, LeasedOp::Expire);
                expires(&self.store);
                self.record
                    .complete(id, Outcome::Done(LeasedAnswer::Nobodys));
            }
            // Who has nothing may give it back as well. What is unknown is said again, not for ever.
            if outcome != Outcome::Busy || rng.bool() {
                for _ in 0..3 {
                    if let Outcome::Done(_) = self.releases(who, token).await {
                        break;
                    }
                }
            }
        }
    }

    async fn acquires(&mut self, who: u64, token: Token) -> Answer {
        let spec = AcquireSpec::new(self.key.clone(), token, ttl());
        let id = self.record.invoke(self.me, LeasedOp::Acquire(who));
        let outcome = match self.store.acquire(&spec).await {
            Ok(Acquired::Granted { fence }) => Outcome::Done(LeasedAnswer::Granted(fence.get())),
            Ok(Acquired::Busy { .. }) => Outcome::Busy,
            Ok(other) => panic!("{other:?} is nothing that we know"),
            Err(error) => failed(&error),
        };
        self.me = self.record.complete(id, outcome);
        outcome
    }

    async fn extends(&mut self, who: u64, token: Token) {
        let spec = ExtendSpec::new(self.key.clone(), token, ttl());
        let id = self.record.invoke(self.me, LeasedOp::Extend(who));
        let outcome = match self.store.extend(&[spec]).await.as_deref() {
            Ok([Extended::Extended]) => Outcome::Done(LeasedAnswer::His),
            Ok([Extended::Absent]) => Outcome::Done(LeasedAnswer::Nobodys),
            Ok([Extended::HeldByOther]) => Outcome::Done(LeasedAnswer::Anothers),
            Ok([Extended::Unknown]) => Outcome::Unknown,
            Ok(other) => panic!("{other:?} to one question"),
            Err(error) => failed(error),
        };
        self.me = self.record.complete(id, outcome);
    }

    async fn releases(&mut self, who: u64, token: Token) -> Answer {
        let id = self.record.invoke(self.me, LeasedOp::Release(who));
        let outcome = match self.store.release(&self.key, &token).await {
            Ok(Released::Released) => Outcome::Done(LeasedAnswer::His),
            Ok(Released::Absent) => Outcome::Done(LeasedAnswer::Nobodys),
            Ok(Released::HeldByOther) => Outcome::Done(LeasedAnswer::Anothers),
            Ok(other) => panic!("{other:?} is nothing that we know"),
            Err(error) => failed(&error),
        };
        self.me = self.record.complete(id, outcome);
        outcome
    }

    async fn looks(&mut self) {
        let id = self.record.invoke(self.me, LeasedOp::Look);
        let outcome = match self.store.inspect(&self.key).await {
            Ok(Some(status)) => Outcome::Done(LeasedAnswer::Held(status.holder.fence.get())),
            Ok(None) => Outcome::Done(LeasedAnswer::Nobodys),
            Err(error) => failed(&error),
        };
        self.me = self.record.complete(id, outcome);
    }
}

fn ttl() -> Ttl {
    Ttl::new(TTL).expect("an hour is not too long")
}

fn failed(error: &StoreError) -> Answer {
    match error {
        StoreError::Unreachable { .. } => Outcome::NotDone,
        StoreError::Unknown { .. } => Outcome::Unknown,
        other => panic!("nothing was wrong with it: {other:?}"),
    }
}
