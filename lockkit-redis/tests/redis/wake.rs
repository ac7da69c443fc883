//! Whoever waits hears of a release, also over a connection that was lost.

use lockkit_core::lease::{LeaseStore as _, ReleaseOutcome, StoreError, Token, Watch as _};
use lockkit_redis::{RedisLocks, RedisStore};
use redis::cmd;

use crate::fixture::{Fixture, ask, granted, in_line, is_silent, key};

// Mutant: D55
#[tokio::test]
async fn who_watches_hears_a_release_and_a_grant_of_his_own() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let (one, other) = (ask("k"), in_line(ask("k")));
    granted(store.acquire(&one).await);
    let mut bystander = store.watch(&one.key, &Token::new()).await.unwrap().unwrap();
    store.acquire(&other).await.unwrap();
    let mut first = store
        .watch(&other.key, &other.token)
        .await
        .unwrap()
        .unwrap();
    store.release(&one.key, &one.token).await.unwrap();
    first.heard().await;
    granted(store.acquire(&other).await);
    store.release(&other.key, &other.token).await.unwrap();
    bystander.heard().await;
    first.heard().await;
}

#[tokio::test]
async fn what_is_heard_while_nobody_waits_is_kept_and_several_are_one() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let spec = ask("k");
    let mut watch = store
        .watch(&spec.key, &Token::new())
        .await
        .unwrap()
        .unwrap();
    // A second one, whose hearing shows that the first could have.
    let mut witness = store
        .watch(&spec.key, &Token::new())
        .await
        .unwrap()
        .unwrap();
    for _ in 0..2 {
        granted(store.acquire(&spec).await);
        store.release(&spec.key, &spec.token).await.unwrap();
        witness.heard().await;
    }
    watch.heard().await;
    assert!(is_silent(watch.heard()).await);
}

// Mutant: D56
#[tokio::test]
async fn who_listens_on_a_connection_that_is_lost_is_woken_and_hears_on_the_next_one() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let spec = ask("k");
    let mut watch = store.watch(&spec.key, &spec.token).await.unwrap().unwrap();
    fixture.proxy.cut();
    watch.heard().await;
    granted(fixture.store().acquire(&spec).await);
    fixture
        .store()
        .release(&spec.key, &spec.token)
        .await
        .unwrap();
    watch.heard().await;
}

// Mutant: D57
#[tokio::test]
async fn nobody_is_listened_for_who_has_gone() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    let watches = [
        store.watch(&key("a"), &Token::new()).await.unwrap(),
        store.watch(&key("a"), &Token::new()).await.unwrap(),
        store.watch(&key("b"), &Token::new()).await.unwrap(),
    ];
    assert_eq!(fixture.channels().await.len(), 2);
    let [one, other, b] = watches;
    drop((one, b));
    // The last of a channel's listeners is awaited, not assumed: the server is told in the background.
    while fixture.channels().await.len() != 1 {
        tokio::task::yield_now().await;
    }
    drop((other, store));
    while fixture.connections().await != 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_cannot_listen_is_told() {
    let fixture = Fixture::new().await;
    fixture.proxy.refuse(true);
    let refused = fixture.store().watch(&key("k"), &Token::new()).await;
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, StoreError::Unreachable { .. }),
        "{refused:?}"
    );
}

/// A store that has listened already, so that one place in line more takes no round trip to be heard of.
async fn who_listens(fixture: &Fixture) -> RedisStore {
    let store = fixture.store();
    drop(store.watch(&key("any"), &Token::new()).await.unwrap());
    while !fixture.channels().await.is_empty() {
        tokio::task::yield_now().await;
    }
    store
}

// Mutants: D55, D122
#[tokio::test]
async fn who_stands_in_line_is_told_the_fence_of_his_grant() {
    let fixture = Fixture::new().await;
    let (one, other) = (ask("k"), in_line(ask("k")));
    let store = fixture.store();
    assert!(store.listening(&other.key, &other.token).is_none());
    let store = who_listens(&fixture).await;
    granted(fixture.store().acquire(&one).await);
    let mut place = store.listening(&other.key, &other.token).unwrap();
    let mut bystander = store.listening(&other.key, &Token::new()).unwrap();
    store.acquire(&other).await.unwrap();
    assert_eq!(place.granted(), None);
    fixture.store().release(&one.key, &one.token).await.unwrap();
    place.heard().await;
    assert_eq!(place.granted(), Some(granted(store.acquire(&other).await)));
    assert!(is_silent(bystander.heard()).await);
}

// Mutants: D123, D129
#[tokio::test]
async fn a_place_in_line_is_asked_for_again_after_the_connection_was_lost() {
    let fixture = Fixture::new().await;
    let store = who_listens(&fixture).await;
    let (one, other) = (ask("k"), in_line(ask("k")));
    let mut place = store.listening(&other.key, &other.token).unwrap();
    fixture.proxy.cut();
    place.heard().await;
    assert_eq!(place.granted(), None);
    granted(fixture.store().acquire(&one).await);
    fixture.store().release(&one.key, &one.token).await.unwrap();
    granted(store.acquire(&one).await);
    store.acquire(&other).await.unwrap();
    store.release(&one.key, &one.token).await.unwrap();
    place.heard().await;
    assert!(place.granted().is_some());
}

#[tokio::test]
async fn what_is_no_message_of_ours_grants_nothing() {
    let fixture = Fixture::new().await;
    let store = who_listens(&fixture).await;
    let token = Token::new();
    let mut place = store.listening(&key("k"), &token).unwrap();
    let inboxes = fixture.inboxes().await;
    assert_eq!(inboxes.len(), 1);
    for number in ["", "x", "0", "-1", "1 ", "99999999999999999999"] {
        let message = [token.as_bytes(), number.as_bytes()].concat();
        for message in [&message[..15], &message] {
            fixture
                .ask::<()>(cmd("PUBLISH").arg(&inboxes[0]).arg(message))
                .await;
        }
        place.heard().await;
        assert_eq!(place.granted(), None, "{number}");
    }
}

#[tokio::test]
async fn from_one_process_to_the_next_a_lock_goes_with_its_fence_and_without_a_subscription() {
    let fixture = Fixture::new().await;
    let locks = |store| RedisLocks::builder(store).fair(true).build().unwrap();
    let (one, other) = (locks(fixture.store()), locks(who_listens(&fixture).await));
    let _ = fixture.proxy.take_trips();
    let mut held = one.lock("k").acquire().await.unwrap();
    for _ in 0..3 {
        let (next, ()) = tokio::join!(async { other.lock("k").acquire().await.unwrap() }, async {
            while one.inspect("k").await.unwrap().unwrap().waiting != Some(1) {
                tokio::task::yield_now().await;
            }
            let _ = held.release().await;
        });
        let status = one.inspect("k").await.unwrap().unwrap();
        assert_eq!(next.fence(), status.holder.fence);
        assert_eq!(next.release().await, ReleaseOutcome::Released);
        held = one.lock("k").acquire().await.unwrap();
    }
    let (_, commands) = fixture.proxy.take_trips();
    assert!(!commands.iter().any(|name| name.contains("SUBSCRIBE")));
}

/// A place that says nothing of an inbox is one all the same.
// Mutant: D116
#[tokio::test]
async fn who_stands_in_line_without_an_inbox_gets_the_lock_in_his_turn() {
    let fixture = Fixture::new().await;
    let store = fixture.store();
    for says in ["", "billing", "host 7: billing"] {
        let (one, first, second) = (ask("k"), in_line(ask("k")), in_line(ask("k")));
        granted(store.acquire(&one).await);
        for waits in [&first, &second] {
            store.acquire(waits).await.unwrap();
        }
        let until = u64::MAX >> 12;
        let mut place = cmd("HSET");
        place.arg("lockkit{:k}:places").arg(first.token.as_bytes());
        fixture
            .ask::<()>(place.arg(format!("{until}:{says}")))
            .await;
        store.release(&one.key, &one.token).await.unwrap();
        let held = store.inspect(&one.key).await.unwrap().unwrap();
        assert_eq!(held.holder.owner.as_str(), says);
        granted(store.acquire(&first).await);
        for done in [&first, &second] {
            store.release(&done.key, &done.token).await.unwrap();
        }
    }
}
