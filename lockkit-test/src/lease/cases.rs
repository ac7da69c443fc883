//! What every store that keeps locks has to do, a case each.
#![allow(
    missing_docs,
    clippy::missing_panics_doc,
    reason = "the names of the cases are their claims, and each panics where its claim fails"
)]

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::time::Duration;

use lockkit_core::Fence;
use lockkit_core::lease::{
    AcquireSpec, Acquired, ExtendSpec, Extended, Key, LeaseStore, MemoryStore, Owner, Released,
    Token, Ttl, Watch,
};
use tokio::time::timeout;

use super::Bench;
use crate::cancel;

/// A message takes less than this to arrive.
const PATIENCE: Duration = Duration::from_secs(20);

/// One who asks for the lock of one key.
struct Hand<'a, B: Bench> {
    bench: &'a B,
    key: Key,
    token: Token,
    owner: Owner,
}

impl<'a, B: Bench> Hand<'a, B> {
    fn new(bench: &'a B, key: &str) -> Self {
        Self {
            bench,
            key: Key::new(key).unwrap(),
            token: Token::new(),
            owner: Owner::default(),
        }
    }

    fn named(bench: &'a B, key: &str, owner: &str) -> Self {
        let owner = Owner::new(owner).unwrap();
        Self {
            owner,
            ..Self::new(bench, key)
        }
    }

    fn spec(&self, units: u32) -> AcquireSpec {
        let mut spec = AcquireSpec::new(self.key.clone(), self.token, ttl(self.bench, units));
        spec.owner = self.owner.clone();
        spec
    }

    async fn acquire(&self, units: u32) -> Acquired {
        self.bench.store().acquire(&self.spec(units)).await.unwrap()
    }

    /// Takes a lock that is to be had.
    #[track_caller]
    fn take(&self, units: u32) -> impl Future<Output = Fence> {
        let at = std::panic::Location::caller();
        async move {
            match self.acquire(units).await {
                Acquired::Granted { fence } => fence,
                busy => panic!("at {at}: {busy:?}"),
            }
        }
    }

    /// Asks with a place in line that lasts for `place` units.
    async fn line_up(&self, units: u32, place: u32) -> Acquired {
        let mut spec = self.spec(units);
        spec.line = Some(ttl(self.bench, place));
        self.bench.store().acquire(&spec).await.unwrap()
    }

    async fn is_refused(&self, units: u32) -> bool {
        matches!(self.acquire(units).await, Acquired::Busy { .. })
    }

    async fn extend(&self, units: u32) -> Extended {
        let spec = [self.extension(units)];
        self.bench.store().extend(&spec).await.unwrap()[0]
    }

    fn extension(&self, units: u32) -> ExtendSpec {
        ExtendSpec::new(self.key.clone(), self.token, ttl(self.bench, units))
    }

    async fn release(&self) -> Released {
        self.bench
            .store()
            .release(&self.key, &self.token)
            .await
            .unwrap()
    }

    /// How long the lock is held; nothing if it is free.
    async fn remaining(&self) -> Duration {
        let status = self.bench.store().inspect(&self.key).await.unwrap();
        status.map_or(Duration::ZERO, |status| status.remaining)
    }

    /// That the lock is held for so many units, those that have passed by themselves left out.
    #[track_caller]
    fn remains(&self, units: u32) -> impl Future<Output = ()> {
        let at = std::panic::Location::caller();
        async move {
            let (remaining, all) = (self.remaining().await, self.bench.unit() * units);
            let spent = if self.bench.is_exact() {
                Duration::ZERO
            } else {
                self.bench.unit()
            };
            let least = all.saturating_sub(spent);
            assert!(
                remaining >= least && remaining <= all,
                "at {at}: {remaining:?} of {all:?}"
            );
        }
    }
}

fn ttl(bench: &impl Bench, units: u32) -> Ttl {
    Ttl::new(bench.unit() * units).unwrap()
}

async fn pass(bench: &impl Bench, units: u32) {
    bench.advance(bench.unit() * units).await;
}

pub async fn a_free_lock_is_granted_and_then_busy<B: Bench>(bench: B) {
    let [one, other] = ["one", "other"].map(|owner| Hand::named(&bench, "k", owner));
    let fence = one.take(10).await;
    let second = bench.second().await;
    let Acquired::Busy { remaining, holder } = second.acquire(&other.spec(10)).await.unwrap()
    else {
        panic!("granted twice");
    };
    assert_eq!((holder.owner.as_str(), holder.fence), ("one", fence));
    assert!(
        remaining <= bench.unit() * 10 && !remaining.is_zero(),
        "{remaining:?}"
    );
    // Another key is another lock.
    Hand::new(&bench, "l").take(10).await;
}

// Mutant: D70
pub async fn of_many_who_ask_at_once_one_is_granted<B: Bench>(bench: B) {
    for round in 0..10 {
        let mut asking = Vec::new();
        for _ in 0..16 {
            let spec = Hand::new(&bench, &format!("k{round}")).spec(20);
            let store = bench.second().await;
            asking.push(tokio::spawn(async move {
                matches!(
                    store.acquire(&spec).await.unwrap(),
                    Acquired::Granted { .. }
                )
            }));
        }
        let mut granted = 0;
        for asked in asking {
            granted += u32::from(asked.await.unwrap());
        }
        assert_eq!(granted, 1);
    }
}

/// So a lost reply costs nothing but the time to ask again.
pub async fn a_repeated_acquire_is_the_same_grant<B: Bench>(bench: B) {
    let one = Hand::named(&bench, "k", "one");
    let fence = one.take(10).await;
    pass(&bench, 4).await;
    let mut renamed = Hand::named(&bench, "k", "renamed");
    renamed.token = one.token;
    assert_eq!(renamed.take(10).await, fence);
    one.remains(10).await;
    let status = bench.store().inspect(&one.key).await.unwrap().unwrap();
    assert_eq!(
        (status.holder.owner.as_str(), status.holder.fence),
        ("one", fence)
    );
    // One release is enough for however many there were.
    assert_eq!(one.release().await, Released::Released);
    Hand::new(&bench, "k").take(10).await;
}

pub async fn a_lock_is_free_at_the_instant_its_time_is_over<B: Bench>(bench: B) {
    let [one, other] = [(); 2].map(|()| Hand::new(&bench, "k"));
    let first = one.take(10).await;
    if bench.is_exact() {
        let millisecond = Duration::from_millis(1);
        bench
            .advance((bench.unit() * 10).saturating_sub(millisecond))
            .await;
        assert!(other.is_refused(10).await);
        assert_eq!(one.extend(1).await, Extended::Extended);
        pass(&bench, 1).await;
    } else {
        pass(&bench, 7).await;
        assert!(other.is_refused(10).await);
        pass(&bench, 4).await;
    }
    assert_eq!(one.extend(10).await, Extended::Absent);
    assert_eq!(one.remaining().await, Duration::ZERO);
    let second = other.take(10).await;
    assert!(second > first);
    assert!(one.is_refused(10).await);
}

/// Else a message that comes late could take from a holder what he was told that he has.
// Mutants: D43, D72
pub async fn nothing_shortens_what_a_lock_has_left<B: Bench>(bench: B) {
    let one = Hand::new(&bench, "k");
    let fence = one.take(20).await;
    assert_eq!(one.take(5).await, fence);
    one.remains(20).await;
    assert_eq!(one.extend(5).await, Extended::Extended);
    one.remains(20).await;
}

// Mutant: D15
pub async fn an_extension_counts_from_now<B: Bench>(bench: B) {
    let one = Hand::new(&bench, "k");
    one.take(10).await;
    for _ in 0..3 {
        pass(&bench, 7).await;
        assert_eq!(one.extend(10).await, Extended::Extended);
        one.remains(10).await;
    }
    assert_eq!(one.extend(30).await, Extended::Extended);
    one.remains(30).await;
}

/// To make it again would hide that there was a gap, in which another may have had it.
// Mutant: D4
// Mutants: D47, D48, D73, D84
pub async fn what_is_gone_is_not_extended<B: Bench>(bench: B) {
    let [one, other] = [(); 2].map(|()| Hand::new(&bench, "k"));
    assert_eq!(one.extend(10).await, Extended::Absent);
    assert_eq!(one.remaining().await, Duration::ZERO);
    one.take(10).await;
    assert_eq!(other.extend(10).await, Extended::HeldByOther);
    pass(&bench, 11).await;
    assert_eq!(one.extend(10).await, Extended::Absent);
    assert_eq!(one.remaining().await, Duration::ZERO);
    other.take(10).await;
    assert_eq!(one.extend(40).await, Extended::HeldByOther);
    other.remains(10).await;
    assert_eq!(other.release().await, Released::Released);
    assert_eq!(other.extend(10).await, Extended::Absent);
    assert_eq!(one.remaining().await, Duration::ZERO);
}

// Mutant: D3
pub async fn a_batch_is_answered_entry_by_entry<B: Bench>(bench: B) {
    let mut batch = Vec::new();
    let mut expected = Vec::new();
    let mut held = Vec::new();
    // Of a store that takes thousands the first would have expired before the last is there.
    for number in 0..B::Store::MAX_BATCH.min(100) - 1 {
        let one = Hand::new(&bench, &format!("k{number}"));
        let entry = one.extension(20);
        match number % 3 {
            0 => {
                one.take(10).await;
                held.push(one);
                expected.push(Extended::Extended);
            }
            1 => expected.push(Extended::Absent),
            _ => {
                Hand::new(&bench, &format!("k{number}")).take(10).await;
                expected.push(Extended::HeldByOther);
            }
        }
        batch.push(entry);
    }
    // One key may be in it twice.
    batch.push(batch[0].clone());
    expected.push(Extended::Extended);
    assert_eq!(bench.store().extend(&batch).await.unwrap(), expected);
    for one in held {
        one.remains(20).await;
    }
}

// Mutants: D1, D46, D113, D71
pub async fn a_release_takes_the_lock_from_its_token_only<B: Bench>(bench: B) {
    let [one, other] = [(); 2].map(|()| Hand::new(&bench, "k"));
    assert_eq!(one.release().await, Released::Absent);
    one.take(10).await;
    assert_eq!(other.release().await, Released::HeldByOther);
    one.remains(10).await;
    assert_eq!(one.release().await, Released::Released);
    assert_eq!(one.release().await, Released::Absent);
    one.take(10).await;
    pass(&bench, 11).await;
    assert_eq!(one.release().await, Released::Absent);
    other.take(10).await;
    assert_eq!(one.release().await, Released::HeldByOther);
    other.remains(10).await;
}

// Mutants: D74, D76
pub async fn fences_grow_with_every_grant_and_stay_while_it_lasts<B: Bench>(bench: B) {
    let mut last = None;
    for round in 0..20 {
        let one = Hand::new(&bench, "k");
        let fence = one.take(5).await;
        assert!(Some(fence) > last, "round {round}: {fence} after {last:?}");
        assert_eq!(one.extend(10).await, Extended::Extended);
        assert_eq!(one.take(10).await, fence);
        last = Some(fence);
        if round % 10 == 0 {
            // A lock that expires, and one that nobody looks at for long, are no reason to begin anew.
            pass(&bench, 25).await;
        } else {
            assert_eq!(one.release().await, Released::Released);
        }
    }
}

// Mutant: D17
pub async fn fences_go_forward_over_a_restart<B: Bench>(bench: B) {
    let mut last = None;
    for _ in 0..3 {
        let one = Hand::new(&bench, "k");
        let fence = one.take(5).await;
        assert!(Some(fence) > last, "{fence} after {last:?}");
        last = Some(fence);
        if !bench.restart().await {
            assert_eq!(one.release().await, Released::Released);
        }
        // What was not lost in the restart is over.
        pass(&bench, 6).await;
    }
}

pub async fn a_look_changes_nothing<B: Bench>(bench: B) {
    let one = Hand::named(&bench, "k", "one");
    assert_eq!(bench.store().inspect(&one.key).await.unwrap(), None);
    let fence = one.take(10).await;
    pass(&bench, 4).await;
    for _ in 0..3 {
        let status = bench
            .second()
            .await
            .inspect(&one.key)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (status.holder.owner.as_str(), status.holder.fence),
            ("one", fence)
        );
        let expected = bench.store().is_fair().then_some(0);
        assert_eq!(status.waiting, expected);
        one.remains(6).await;
    }
}

/// Also where a key is part of another one, of a pattern, of a path or of a statement.
pub async fn a_key_is_any_text_and_no_other_key<B: Bench>(bench: B) {
    let long = "x".repeat(Key::MAX_BYTES);
    let wide = "👍".repeat(Key::MAX_BYTES / 4);
    let keys = [
        "k",
        "K",
        " k",
        "k ",
        "k:",
        ":k",
        "k:fence",
        "k:line",
        "k:owner",
        "{k}",
        "{}",
        "{k}:fence",
        "{a}b",
        "{b}a",
        "*",
        "k*",
        "%",
        "_",
        "k\n",
        "k\r\n",
        "\t",
        "'",
        "\"",
        "';--",
        "\\",
        "\u{7f}",
        "ä",
        "a\u{308}",
        "ﬀ",
        "0",
        "1e3",
        "null",
        "../k",
        "$1",
        "?",
        "EVAL",
        &long,
        &wide,
    ];
    let mut hands = Vec::new();
    for key in keys {
        let one = Hand::new(&bench, key);
        one.take(60).await;
        hands.push(one);
    }
    for one in &hands {
        assert!(
            Hand::new(&bench, one.key.as_str()).is_refused(60).await,
            "{:?}",
            one.key
        );
        assert_eq!(one.extend(60).await, Extended::Extended, "{:?}", one.key);
    }
    for one in &hands {
        assert_eq!(one.release().await, Released::Released, "{:?}", one.key);
    }
}

pub async fn an_owner_is_any_text<B: Bench>(bench: B) {
    let long = "x".repeat(Owner::MAX_BYTES);
    let wide = "👍".repeat(Owner::MAX_BYTES / 4);
    let owners = [
        "",
        " ",
        "a:b:c",
        "host 7\r\npid 8",
        "7",
        "-1",
        "'\"\\",
        "nil",
        "{\"a\":[1,2]}",
        "\u{1}\u{7f}",
        &long,
        &wide,
    ];
    for (number, owner) in owners.into_iter().enumerate() {
        let key = format!("k{number}");
        let fence = Hand::named(&bench, &key, owner).take(20).await;
        let other = Hand::named(&bench, &key, "other");
        let Acquired::Busy { holder, .. } = other.acquire(20).await else {
            panic!("granted twice");
        };
        assert_eq!((holder.owner.as_str(), holder.fence), (owner, fence));
        let status = bench.store().inspect(&other.key).await.unwrap().unwrap();
        assert_eq!(status.holder, holder);
    }
}

pub async fn the_shortest_and_the_longest_time_are_kept<B: Bench>(bench: B) {
    let [short, long, other] = [(); 3].map(|()| Hand::new(&bench, "k"));
    let ask = |hand: &Hand<'_, B>, ttl| AcquireSpec::new(hand.key.clone(), hand.token, ttl);
    let granted = bench.store().acquire(&ask(&short, Ttl::MIN)).await.unwrap();
    assert!(matches!(granted, Acquired::Granted { .. }));
    bench.advance(Ttl::MIN.get()).await;
    assert_eq!(short.remaining().await, Duration::ZERO);
    let granted = bench.store().acquire(&ask(&long, Ttl::MAX)).await.unwrap();
    assert!(matches!(granted, Acquired::Granted { .. }));
    let remaining = long.remaining().await;
    assert!(remaining <= Ttl::MAX.get());
    assert!(
        remaining > Ttl::MAX.get().saturating_sub(PATIENCE),
        "{remaining:?}"
    );
    assert!(other.is_refused(10).await);
}

/// Whether something is heard; at once where there is nothing to wait for.
async fn hears(watch: &mut impl Watch) -> bool {
    timeout(PATIENCE, watch.heard()).await.is_ok()
}

// Mutants: D77, D86
pub async fn a_watch_hears_of_a_release<B: Bench>(bench: B) {
    let [one, other] = [(); 2].map(|()| Hand::new(&bench, "k"));
    one.take(600).await;
    let second = bench.second().await;
    let Some(mut watch) = second.watch(&other.key, &other.token).await.unwrap() else {
        return;
    };
    for _ in 0..3 {
        assert_eq!(one.release().await, Released::Released);
        assert!(hears(&mut watch).await);
        one.take(600).await;
    }
    drop(watch);
    // One that is gone is in nobody's way, and the next one begins anew.
    assert_eq!(one.release().await, Released::Released);
    one.take(600).await;
    let mut watch = second
        .watch(&other.key, &other.token)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(one.release().await, Released::Released);
    assert!(hears(&mut watch).await);
}

/// A waiter is not always listening: he asks in between.
pub async fn what_a_watch_has_heard_is_kept<B: Bench>(bench: B) {
    let [one, other] = [(); 2].map(|()| Hand::new(&bench, "k"));
    one.take(600).await;
    let Some(mut watch) = bench.store().watch(&other.key, &other.token).await.unwrap() else {
        return;
    };
    {
        // It may hear of nothing for a moment, and is then dropped while it waits.
        let mut heard = pin!(watch.heard());
        let _ = timeout(Duration::from_millis(20), heard.as_mut()).await;
    }
    assert_eq!(one.release().await, Released::Released);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(hears(&mut watch).await);
}

pub async fn a_step_that_was_dropped_can_be_repeated<B: Bench>(bench: B) {
    let one = std::cell::RefCell::new(Hand::new(&bench, "k"));
    let _ = cancel::at_every_poll_async(
        || {
            let (bench, spec) = (&bench, one.borrow().spec(600));
            async move { drop(bench.store().acquire(&spec).await.unwrap()) }
        },
        async |cut| {
            let hand = one.replace(Hand::new(&bench, "k"));
            assert!(!hand.is_refused(600).await, "{cut}");
            let _ = cancel::CancelAfter::pending(hand.release(), 1).await;
            let _ = cancel::CancelAfter::pending(hand.extend(600), 1).await;
            // What was dropped may still be on its way, and can do no more than this.
            let mut tries = 0;
            while hand.release().await == Released::Released
                || hand.remaining().await > Duration::ZERO
            {
                tries += 1;
                assert!(tries < 3, "{cut}");
            }
        },
    )
    .await;
}

pub async fn those_in_line_are_served_in_order<B: Bench>(bench: B) {
    if !bench.store().is_fair() {
        return;
    }
    let first = Hand::new(&bench, "k");
    let mut last = first.take(600).await;
    let waiters = [(); 5].map(|()| Hand::new(&bench, "k"));
    for waiter in &waiters {
        assert!(matches!(
            waiter.line_up(600, 300).await,
            Acquired::Busy { .. }
        ));
    }
    let status = bench.store().inspect(&first.key).await.unwrap().unwrap();
    assert_eq!(status.waiting, Some(5));
    let mut holder = &first;
    for (place, waiter) in waiters.iter().enumerate() {
        let watch = bench
            .store()
            .watch(&waiter.key, &waiter.token)
            .await
            .unwrap();
        assert_eq!(holder.release().await, Released::Released);
        // Whoever is not next is told no before, and also after, the one who is next has asked.
        for other in &waiters[place + 1..] {
            assert!(matches!(
                other.line_up(600, 300).await,
                Acquired::Busy { .. }
            ));
        }
        if let Some(mut watch) = watch {
            assert!(hears(&mut watch).await);
        }
        let Acquired::Granted { fence } = waiter.line_up(600, 300).await else {
            panic!("number {place} was not next");
        };
        assert!(fence > last);
        waiter.remains(600).await;
        (holder, last) = (waiter, fence);
    }
    assert_eq!(holder.release().await, Released::Released);
    assert_eq!(holder.remaining().await, Duration::ZERO);
}

// Mutant: D59
pub async fn a_place_that_nobody_speaks_for_is_over<B: Bench>(bench: B) {
    if !bench.store().is_fair() {
        return;
    }
    let [one, dead, living] = [(); 3].map(|()| Hand::new(&bench, "k"));
    one.take(60).await;
    dead.line_up(60, 3).await;
    living.line_up(60, 30).await;
    pass(&bench, 4).await;
    let status = bench.store().inspect(&one.key).await.unwrap().unwrap();
    assert_eq!(status.waiting, Some(1));
    assert_eq!(one.release().await, Released::Released);
    assert!(matches!(
        living.line_up(60, 30).await,
        Acquired::Granted { .. }
    ));
    assert!(dead.is_refused(60).await);
}

// Mutant: D100
pub async fn a_place_is_kept_by_asking_again<B: Bench>(bench: B) {
    if !bench.store().is_fair() {
        return;
    }
    let [one, early, late] = [(); 3].map(|()| Hand::new(&bench, "k"));
    one.take(60).await;
    early.line_up(60, 5).await;
    late.line_up(60, 40).await;
    for _ in 0..3 {
        pass(&bench, 3).await;
        early.line_up(60, 5).await;
    }
    let status = bench.store().inspect(&one.key).await.unwrap().unwrap();
    assert_eq!(status.waiting, Some(2));
    assert_eq!(one.release().await, Released::Released);
    assert!(matches!(late.line_up(60, 40).await, Acquired::Busy { .. }));
    assert!(matches!(
        early.line_up(60, 5).await,
        Acquired::Granted { .. }
    ));
}

pub async fn a_release_leaves_the_line<B: Bench>(bench: B) {
    if !bench.store().is_fair() {
        return;
    }
    let [one, leaves, stays] = [(); 3].map(|()| Hand::new(&bench, "k"));
    one.take(60).await;
    leaves.line_up(60, 40).await;
    stays.line_up(60, 40).await;
    assert_eq!(leaves.release().await, Released::HeldByOther);
    let status = bench.store().inspect(&one.key).await.unwrap().unwrap();
    assert_eq!(status.waiting, Some(1));
    assert_eq!(one.release().await, Released::Released);
    assert!(matches!(
        stays.line_up(60, 40).await,
        Acquired::Granted { .. }
    ));
}

// Mutant: D58
pub async fn nobody_overtakes_the_line<B: Bench>(bench: B) {
    if !bench.store().is_fair() {
        return;
    }
    let [one, waits, comes] = [(); 3].map(|()| Hand::new(&bench, "k"));
    one.take(60).await;
    waits.line_up(60, 40).await;
    assert_eq!(one.release().await, Released::Released);
    for _ in 0..3 {
        assert!(comes.is_refused(60).await);
    }
    // What was granted while nobody looked is the waiter's, who asks for it with or without his place.
    waits.take(60).await;
    waits.remains(60).await;
}

// Mutants: D111, D114
pub async fn a_grant_in_line_that_nobody_takes_goes_on<B: Bench>(bench: B) {
    if !bench.store().is_fair() {
        return;
    }
    let [one, silent, next, comes] = [(); 4].map(|()| Hand::new(&bench, "k"));
    one.take(60).await;
    silent.line_up(60, 5).await;
    next.line_up(60, 40).await;
    assert_eq!(one.release().await, Released::Released);
    silent.remains(5).await;
    pass(&bench, 6).await;
    assert!(comes.is_refused(60).await);
    assert!(matches!(
        next.line_up(60, 40).await,
        Acquired::Granted { .. }
    ));
    assert_eq!(silent.extend(60).await, Extended::HeldByOther);
}

/// Whether his turn comes or not.
// Mutant: D92
pub async fn who_dies_in_line_is_missed_no_longer_than_his_place_lasts<B: Bench>(bench: B) {
    if !bench.store().is_fair() {
        return;
    }
    let [one, dead, next] = [(); 3].map(|()| Hand::new(&bench, "k"));
    one.take(60).await;
    dead.line_up(60, 10).await;
    next.line_up(60, 40).await;
    pass(&bench, 6).await;
    assert_eq!(one.release().await, Released::Released);
    dead.remains(4).await;
    pass(&bench, 5).await;
    assert!(matches!(
        next.line_up(60, 40).await,
        Acquired::Granted { .. }
    ));
}

pub async fn the_first_in_line_gets_what_has_expired<B: Bench>(bench: B) {
    if !bench.store().is_fair() {
        return;
    }
    let [dead, first, second] = [(); 3].map(|()| Hand::new(&bench, "k"));
    dead.take(5).await;
    first.line_up(60, 40).await;
    second.line_up(60, 40).await;
    pass(&bench, 6).await;
    assert!(matches!(
        second.line_up(60, 40).await,
        Acquired::Busy { .. }
    ));
    assert!(matches!(
        first.line_up(60, 40).await,
        Acquired::Granted { .. }
    ));
}

pub async fn random_steps_are_answered_as_in_memory<B: Bench>(bench: B) {
    random_steps(&bench, 1).await;
}

/// Whoever has no answer says it again: the store goes on as if each had been said once.
// Mutant: D137
pub async fn random_steps_that_are_said_again_change_nothing_more<B: Bench>(bench: B) {
    random_steps(&bench, 4).await;
}

/// Steps of three on two keys, with the clock turned in between, on both stores, and up to `most` times on the one under
/// test. Fences need not be equal, but are the same, or grow, where they do in memory. A clock that is turned and goes on
/// by itself has not gone on by a whole unit.
async fn random_steps<B: Bench>(bench: &B, most: usize) {
    if !bench.is_turned() {
        return;
    }
    let (store, memory) = (bench.store(), MemoryStore::new());
    for seed in 0..20 {
        let mut random = Random(seed);
        let tokens = [(); 3].map(|()| Token::new());
        let mut fences = HashMap::new();
        let mut trace = Vec::new();
        for _ in 0..60 {
            let key = Key::new(format!("{seed}/{}", random.below(2))).unwrap();
            let token = tokens[random.below(3)];
            let time = ttl(bench, 1 + random.below(12) as u32);
            let step = random.below(10);
            let more = random.below(most);
            trace.push((step, key.clone(), time));
            match step {
                0..4 => {
                    let mut spec = AcquireSpec::new(key, token, time);
                    let fair = store.is_fair() && random.below(2) == 0;
                    spec.line = fair.then(|| ttl(bench, 4));
                    let answers = (store.acquire(&spec).await, memory.acquire(&spec).await);
                    let (mut here, there) = (answers.0.unwrap(), answers.1.unwrap());
                    for _ in 0..more {
                        let again = store.acquire(&spec).await.unwrap();
                        assert_eq!(number(&again), number(&here), "seed {seed}, {trace:?}");
                    }
                    let mut stands = |fence, other| {
                        translate(fences.entry(spec.key.clone()).or_default(), fence, other)
                    };
                    match (&mut here, &there) {
                        (Acquired::Granted { fence }, Acquired::Granted { fence: other }) => {
                            *fence = stands(*fence, *other);
                        }
                        (
                            Acquired::Busy { holder, remaining },
                            Acquired::Busy { holder: other, .. },
                        ) => {
                            let units = remaining.as_millis().div_ceil(bench.unit().as_millis());
                            *remaining = bench.unit() * units as u32;
                            holder.fence = stands(holder.fence, other.fence);
                        }
                        _ => {}
                    }
                    assert_eq!(here, there, "seed {seed}, last of {trace:?}");
                }
                4..6 => {
                    let spec = [ExtendSpec::new(key, token, time)];
                    let answers = (store.extend(&spec).await, memory.extend(&spec).await);
                    for _ in 0..more {
                        store.extend(&spec).await.unwrap();
                    }
                    let (here, there) = (answers.0.unwrap(), answers.1.unwrap());
                    assert_eq!(here, there, "seed {seed}, last of {trace:?}");
                }
                6..8 => {
                    let (here, there) = (store.release(&key, &token), memory.release(&key, &token));
                    let (here, there) = (here.await.unwrap(), there.await.unwrap());
                    for _ in 0..more {
                        let _ = store.release(&key, &token).await.unwrap();
                    }
                    assert_eq!(here, there, "seed {seed}, last of {trace:?}");
                }
                _ => {
                    let by = bench.unit() * random.below(5) as u32;
                    bench.advance(by).await;
                    memory.advance(by);
                }
            }
        }
    }
}

/// The fence in memory that has stood for this one so far, or stands for it from now on. Those of a key are in the same
/// order on both sides, and no two stand for one.
fn translate(fences: &mut BTreeMap<Fence, Fence>, fence: Fence, memory: Fence) -> Fence {
    let stands = *fences.entry(fence).or_insert(memory);
    let grows = fences.values().is_sorted_by(|one, next| one < next);
    assert!(grows, "here, and in memory: {fences:?}");
    stands
}

/// Whether it is a grant, and of which grant it tells.
fn number(acquired: &Acquired) -> (bool, Fence) {
    match acquired {
        Acquired::Granted { fence } => (true, *fence),
        Acquired::Busy { holder, .. } => (false, holder.fence),
        other => panic!("no answer of a store: {other:?}"),
    }
}

/// A few numbers without order, the same for a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}
