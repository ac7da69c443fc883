//! Whoever waits hears of a release, also over a connection that was lost.

use lockkit_core::lease::{LeaseStore as _, StoreError, Token, Watch as _};

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
    assert_eq!(fixture.channels().await.len(), 2 + 3);
    let [one, other, b] = watches;
    drop((one, b));
    // The last of a channel's listeners is awaited, not assumed: the server is told in the background.
    while fixture.channels().await.len() != 2 {
        tokio::task::yield_now().await;
    }
    drop((other, store));
    while fixture.connections().await != 1 {
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
