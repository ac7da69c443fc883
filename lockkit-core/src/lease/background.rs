//! What the handles of one locker share, and the two tasks that work for them: one renews, one cleans up.
//!
//! Each task is made when there is something for it to do. The renewing one ends with the last handle; the
//! other one when nothing is left to release after that, which is at the latest when all of it has expired.
//! Neither keeps a handle: what they share does not know how many there are.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::agenda::{Agenda, Look};
use super::cell::Cell;
use super::keeper::{Action, Event, Loss, State};
use super::orphan::Orphan;
use super::store::{ExtendSpec, Extended, LeaseStore, Released, StoreError};
use super::{Key, Token, Ttl};
use crate::panics::contain;
use crate::{KeyedSemaphore, lease};

/// So many locks wait to be cleaned up at most. Those beyond are left to their TTL.
const MOST_ORPHANS: usize = 10_000;
/// So many are released at once.
const AT_ONCE: usize = 32;

/// tokio's time, so that a paused clock governs all.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// All that is shared by a locker, its clones, their guards and the tasks.
pub(crate) struct Shared<S> {
    pub(crate) store: S,
    pub(crate) call_timeout: Duration,
    /// One of this process asks the store for a key, the others wait for him; one of those who stand in line at the
    /// store, and one of those who do not.
    pub(crate) gate: KeyedSemaphore<(Key, bool)>,
    /// Renewals fall on multiples of a step since then.
    pub(crate) epoch: Instant,
    renewals: Agenda<Renewed>,
    orphans: Agenda<Orphan>,
    runtime: Handle,
}

/// What lockers and guards have, and tasks have not: when the last one goes, the tasks may end.
pub(crate) struct Home<S> {
    pub(crate) shared: Arc<Shared<S>>,
}

/// A lease on the renewing task's agenda.
pub(crate) struct Renewed {
    pub(crate) key: Key,
    pub(crate) token: Token,
    pub(crate) cell: Arc<Cell>,
}

/// That a task is there. However it ends, somebody hears of it.
struct Working<S, T>(Arc<Shared<S>>, fn(&Shared<S>) -> &Agenda<T>);

impl<S> Drop for Home<S> {
    fn drop(&mut self) {
        self.shared.renewals.close();
        self.shared.orphans.close();
    }
}

impl<S, T> Drop for Working<S, T> {
    fn drop(&mut self) {
        self.1(&self.0).abandon();
    }
}

impl<S> Shared<S> {
    /// One call of the store: it ends in time, and does not panic.
    pub(crate) async fn call<T>(
        &self,
        limit: Duration,
        step: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let limit = limit.min(self.call_timeout);
        let mut step = pin!(step);
        let contained = poll_fn(|cx: &mut Context<'_>| {
            match contain(|| step.as_mut().poll(cx)) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(answer)) => Poll::Ready(answer),
                // It is not polled again.
                Err(panic) => {
                    Poll::Ready(Err(StoreError::unknown(format!("it panicked: {panic}"))))
                }
            }
        });
        match timeout(limit, contained).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::unknown(format!("no answer within {limit:?}"))),
        }
    }
}

impl<S: LeaseStore> Shared<S> {
    pub(crate) fn new(store: S, call_timeout: Duration, runtime: Handle) -> Self {
        Self {
            store,
            call_timeout,
            gate: KeyedSemaphore::new(1).expect("one is a limit"),
            epoch: now(),
            renewals: Agenda::new(usize::MAX),
            orphans: Agenda::new(MOST_ORPHANS),
            runtime,
        }
    }

    /// The lease is renewed from now on. Its number is for [`Shared::let_go`].
    pub(crate) fn renew(self: &Arc<Self>, lease: Renewed) -> Option<u64> {
        let at = lease.cell.tick_at()?;
        let entry = self.renewals.put(at, lease).ok()?;
        if entry.start {
            let working = Working(Arc::clone(self), |shared| &shared.renewals);
            self.runtime.spawn(renewing(working));
        }
        Some(entry.id)
    }

    /// The lease is not renewed any more. Its cell knows that already.
    pub(crate) fn let_go(&self, id: u64) {
        drop(self.renewals.remove(id));
    }

    /// Releases in the background what nobody needs any more, at once or at a later time.
    pub(crate) fn clean_up(self: &Arc<Self>, at: Instant, orphan: Orphan) {
        match self.orphans.put(at, orphan) {
            Ok(lease::agenda::Entry { start: true, .. }) => {
                let working = Working(Arc::clone(self), |shared| &shared.orphans);
                self.runtime.spawn(cleaning(working));
            }
            Ok(_) => {}
            Err(orphan) => report_left(&orphan.key),
        }
    }

    /// How many leases are renewed.
    pub(crate) fn renewed(&self) -> usize {
        self.renewals.len()
    }

    /// How many locks wait to be released in the background.
    pub(crate) fn left_over(&self) -> usize {
        self.orphans.len()
    }
}

/// What is due on an agenda; `None` when the task is to end.
async fn next<T>(agenda: &Agenda<T>, most: usize) -> Option<Vec<(u64, T)>> {
    let mut timer = None;
    poll_fn(|cx| {
        loop {
            match agenda.look(now(), most, cx.waker()) {
                Look::Due(due) => return Poll::Ready(Some(due)),
                Look::End => return Poll::Ready(None),
                Look::Sleep(None) => return Poll::Pending,
                Look::Sleep(Some(at)) => {
                    let timer = timer.insert(Box::pin(sleep_until(at.into())));
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    })
    .await
}

async fn renewing<S: LeaseStore>(working: Working<S, Renewed>) {
    let shared = &working.0;
    while let Some(due) = next(&shared.renewals, usize::MAX).await {
        let sent = now();
        let mut batch = Vec::new();
        for (id, lease) in due {
            if let Action::Extend(ttl) = lease.cell.on(Event::Tick, sent) {
                batch.push((id, Arc::clone(&lease.cell), lease.spec(ttl)));
            }
            match lease.cell.tick_at() {
                Some(at) => {
                    let wanted = |lease: &Renewed| lease.cell.tick_at().is_some();
                    shared.renewals.put_back(id, at, lease, wanted);
                }
                None => report_lost(&lease.cell, &lease.key, sent),
            }
        }
        while !batch.is_empty() {
            let rest = batch.split_off(batch.len().min(S::MAX_BATCH));
            let batch = std::mem::replace(&mut batch, rest);
            // By themselves, as an answer may be long in coming, and others are due before that.
            shared
                .runtime
                .spawn(extend(Arc::clone(shared), batch, sent));
        }
    }
}

async fn extend<S: LeaseStore>(
    shared: Arc<Shared<S>>,
    batch: Vec<(u64, Arc<Cell>, ExtendSpec)>,
    sent: Instant,
) {
    let specs: Vec<_> = batch.iter().map(|(.., spec)| spec.clone()).collect();
    let limit = shared.call_timeout;
    let answers = shared.call(limit, shared.store.extend(&specs)).await;
    #[cfg(feature = "tracing")]
    if let Err(error) = &answers {
        tracing::debug!(leases = specs.len(), %error, "an extension has failed");
    }
    let answers = answers.unwrap_or_default();
    let now = now();
    for (at, (id, cell, spec)) in batch.into_iter().enumerate() {
        let event = extended(answers.get(at).copied(), sent, spec.ttl);
        cell.on(event, now);
        match cell.tick_at() {
            Some(at) => shared.renewals.bring_forward(id, at),
            None => report_lost(&cell, &spec.key, now),
        }
    }
}

#[cfg_attr(not(feature = "tracing"), expect(unused_variables))]
fn report_left(key: &Key) {
    #[cfg(feature = "tracing")]
    tracing::warn!(%key, "too many locks to clean up: this one is left to its ttl");
}

#[cfg_attr(not(feature = "tracing"), expect(unused_variables))]
fn report_lost(cell: &Cell, key: &Key, now: Instant) {
    if let State::Lost(loss) = cell.look(now) {
        #[cfg(feature = "tracing")]
        tracing::warn!(%key, %loss, "a lock is lost");
    }
}

/// What an answer to an extension means to a keeper.
pub(crate) fn extended(answer: Option<Extended>, sent: Instant, ttl: Ttl) -> Event {
    match answer {
        Some(Extended::Extended) => Event::Extended { sent, ttl },
        Some(Extended::Absent) => Event::Refused(Loss::Gone),
        Some(Extended::HeldByOther) => Event::Refused(Loss::TakenOver),
        Some(Extended::Unknown) | None => Event::Failed { sent },
    }
}

async fn cleaning<S: LeaseStore>(working: Working<S, Orphan>) {
    let shared = &working.0;
    while let Some(due) = next(&shared.orphans, AT_ONCE).await {
        let mut set = JoinSet::new();
        for (id, orphan) in due {
            let shared = Arc::clone(shared);
            set.spawn_on(
                async move {
                    let release = shared.store.release(&orphan.key, &orphan.token);
                    let answer: Result<Released, _> =
                        shared.call(shared.call_timeout, release).await;
                    (id, orphan, answer)
                },
                &working.0.runtime,
            );
        }
        while let Some(ended) = set.join_next().await {
            let Ok((id, mut orphan, answer)) = ended else {
                continue;
            };
            if let Some(at) = orphan.answered(&answer, now(), fastrand::u64(..)) {
                shared.orphans.put_back(id, at, orphan, |_| true);
            }
        }
    }
}

impl Renewed {
    fn spec(&self, ttl: Ttl) -> ExtendSpec {
        ExtendSpec::new(self.key.clone(), self.token, ttl)
    }
}
