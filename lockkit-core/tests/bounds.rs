//! What may cross threads, and what may be moved while it waits.

use lockkit_core::retry::{Budget, Policy, Retry};
use lockkit_core::sync::{Mutex, MutexGuard};
use lockkit_core::{
    Acquire, AcquireError, AcquireOwned, Fence, FlightError, OwnedPermit, Permit, Run, Semaphore,
    SingleFlight,
};

fn send<T: Send>() {}
fn sync<T: Sync>() {}
fn unpin<T: Unpin>() {}
fn task<T: Send + 'static>() {}
fn error<T: std::error::Error + Send + Sync + 'static>() {}

#[test]
fn everything_crosses_threads() {
    send::<Semaphore>();
    sync::<Semaphore>();
    send::<Permit<'_>>();
    sync::<Permit<'_>>();
    send::<Acquire<'_>>();
    sync::<Acquire<'_>>();
    task::<OwnedPermit>();
    sync::<OwnedPermit>();
    task::<AcquireOwned>();
    task::<Fence>();
    task::<SingleFlight<u8, u8>>();
    sync::<SingleFlight<u8, u8>>();
    send::<Run<'_, u8, u8, fn()>>();
    sync::<Run<'_, u8, u8, fn()>>();
    task::<Policy>();
    sync::<Policy>();
    task::<Retry>();
    task::<Budget>();
    sync::<Budget>();
    task::<Mutex<u8>>();
    sync::<Mutex<u8>>();
    sync::<MutexGuard<'_, u8>>();
}

#[test]
fn futures_can_be_polled_where_they_lie() {
    unpin::<Acquire<'_>>();
    unpin::<AcquireOwned>();
    unpin::<Permit<'_>>();
    unpin::<OwnedPermit>();
    unpin::<Run<'_, u8, u8, std::marker::PhantomPinned>>();
}

#[test]
fn errors_travel() {
    error::<AcquireError>();
    error::<lockkit_core::TryAcquireError>();
    error::<lockkit_core::SemaphoreError>();
    error::<lockkit_core::FenceError>();
    error::<FlightError>();
    error::<lockkit_core::retry::PolicyError>();
    error::<lockkit_core::retry::BudgetError>();
    error::<lockkit_core::KeyBusy<u8>>();
    error::<lockkit_core::KeyedSemaphoreError>();
}

/// With a key that is `Send` and nothing else.
mod keyed {
    use std::cell::Cell;
    use std::marker::PhantomPinned;

    use lockkit_core::{
        AcquireKey, AcquireKeyOwned, KeyedGuard, KeyedGuards, KeyedMutex, KeyedPermit,
        KeyedSemaphore, LockKey, LockKeyOwned, LockKeys, LockKeysOwned, OwnedKeyedGuard,
        OwnedKeyedGuards, OwnedKeyedPermit, order,
    };

    use super::*;

    type Key = (Cell<u8>, PhantomPinned);

    #[test]
    fn keyed_locks_cross_threads() {
        task::<KeyedMutex<Key>>();
        sync::<KeyedMutex<Key>>();
        task::<KeyedSemaphore<Key>>();
        sync::<KeyedSemaphore<Key>>();
        send::<KeyedGuard<'_, Key>>();
        send::<KeyedGuards<'_, Key>>();
        send::<KeyedPermit<'_, Key>>();
        task::<OwnedKeyedGuard<Key>>();
        task::<OwnedKeyedGuards<Key>>();
        task::<OwnedKeyedPermit<Key>>();
        sync::<OwnedKeyedGuard<Key>>();
        send::<LockKey<'_, Key>>();
        send::<LockKeys<'_, Key>>();
        send::<AcquireKey<'_, Key>>();
        task::<LockKeyOwned<Key>>();
        task::<LockKeysOwned<Key>>();
        task::<AcquireKeyOwned<Key>>();
        task::<order::Violation>();
        sync::<order::Violation>();
    }

    #[test]
    fn their_futures_can_be_polled_where_they_lie() {
        unpin::<LockKey<'_, Key>>();
        unpin::<LockKeyOwned<Key>>();
        unpin::<LockKeys<'_, Key>>();
        unpin::<LockKeysOwned<Key>>();
        unpin::<AcquireKey<'_, Key>>();
        unpin::<AcquireKeyOwned<Key>>();
    }
}

#[cfg(feature = "tokio")]
#[test]
fn waits_with_a_time_out_can_be_spawned() {
    use std::time::Duration;

    fn spawnable<T: Send + 'static>(_: &T) {}
    fn sendable<T: Send>(_: &T) {}

    let semaphore = std::sync::Arc::new(Semaphore::new(1).unwrap());
    spawnable(&semaphore.acquire_timeout_owned(1, Duration::ZERO));
    sendable(&semaphore.acquire_timeout(1, Duration::ZERO));
    let mutex = std::sync::Arc::new(lockkit_core::KeyedMutex::new());
    spawnable(&mutex.lock_timeout_owned(1, Duration::ZERO));
    sendable(&mutex.lock_timeout(1, Duration::ZERO));
}

#[cfg(feature = "tokio")]
mod lease {
    use std::time::Duration;

    use lockkit_core::lease::{
        AcquireError, AttachError, Attempt, ExtendError, Guard, InputError, InspectError, Key,
        LockRequest, Locker, LockerBuilder, LockerError, Loss, Lost, MemoryStore, MemoryWatch, Ran,
        StoreError, Ticket, Token, View, WaitEnded,
    };

    use super::*;

    #[test]
    fn locks_of_a_store_cross_threads() {
        task::<Locker<MemoryStore>>();
        sync::<Locker<MemoryStore>>();
        task::<LockerBuilder<MemoryStore>>();
        send::<LockRequest<'_, MemoryStore>>();
        task::<Attempt<MemoryStore>>();
        task::<Guard<MemoryStore>>();
        sync::<Guard<MemoryStore>>();
        task::<View>();
        sync::<View>();
        task::<WaitEnded>();
        send::<Lost<'_>>();
        task::<Ticket>();
        sync::<Ticket>();
        task::<Token>();
        sync::<Key>();
        task::<MemoryWatch>();
        sync::<MemoryStore>();
    }

    #[test]
    fn who_waits_for_the_end_can_be_polled_where_he_lies() {
        unpin::<WaitEnded>();
        unpin::<Lost<'_>>();
        unpin::<Guard<MemoryStore>>();
    }

    #[test]
    fn errors_of_locks_travel() {
        error::<AcquireError>();
        error::<AttachError>();
        error::<ExtendError>();
        error::<InputError>();
        error::<InspectError>();
        error::<LockerError>();
        error::<Loss>();
        error::<StoreError>();
    }

    fn spawnable<T: Send + 'static>(_: T) {}
    fn sendable<T: Send>(_: T) {}

    #[tokio::test]
    async fn what_waits_for_a_store_can_be_spawned() {
        let locker = Locker::new(MemoryStore::new()).unwrap();
        sendable(locker.lock("k").acquire());
        sendable(locker.lock("k").try_acquire());
        sendable(locker.lock("k").run(|_| async {}));
        sendable(locker.inspect("k"));
        let guard = locker.lock("k").acquire().await.unwrap();
        sendable(guard.extend(Duration::from_secs(1)));
        spawnable(guard.release());
        let owned = locker.clone();
        spawnable(async move {
            let ran = owned.lock("k").run(|_| async {}).await;
            matches!(ran, Ok(Ran::Finished { .. }))
        });
    }
}
