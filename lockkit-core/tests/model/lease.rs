//! Leases: one against a naive model of it; several holders over a network that loses, doubles and delays, with
//! clocks that run apart; and whole lockers whose calls go wrong at random.

use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use lockkit_core::lease::{
    Action, Event, Keeper, LeaseStore, Loss, MemoryStore, ReleaseOutcome, Released, State, Terms,
    Token, Ttl,
};
use lockkit_test::wake::poll_once;
use proptest::prelude::*;
use proptest::sample::Index;

use super::config;

/// For what only the crate itself begins: what is checked here is what ships.
#[expect(dead_code, unreachable_pub, reason = "it is used and public there")]
#[path = "../../src/lease/keeper.rs"]
mod shipped;

/// Where it looks for this, of which from outside of the crate there may be more.
mod store {
    #[derive(Clone, Copy)]
    #[expect(dead_code, clippy::enum_variant_names, reason = "as the crate has it")]
    pub(super) enum Released {
        Released,
        Absent,
        HeldByOther,
    }
}

const MS: Duration = Duration::from_millis(1);

/// For how long a holder may trust in a TTL: all of it, but 1 % and 2 ms.
fn trusted(ttl: Ttl) -> Duration {
    Duration::from_micros(u64::from(ttl.as_millis()) * 990).saturating_sub(MS * 2)
}

fn ready<T>(future: impl Future<Output = T>) -> T {
    match poll_once(pin!(future)) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the store in memory waits for nothing"),
    }
}

mod keeper {
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Pass(u64),
        Tick,
        Extend(u64),
        /// The answer to one of the extensions that were sent, or to none: they may be answered twice.
        Answer(Index),
        Fail(Index),
        Refuse,
        Release,
        ReleaseAnswered(Option<Released>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let answer = prop_oneof![
            Just(None),
            Just(Some(Released::Released)),
            Just(Some(Released::Absent)),
            Just(Some(Released::HeldByOther)),
        ];
        prop_oneof![
            20 => (0..60_u64).prop_map(Step::Pass),
            20 => Just(Step::Tick),
            4 => (10..400_u64).prop_map(Step::Extend),
            16 => any::<Index>().prop_map(Step::Answer),
            6 => any::<Index>().prop_map(Step::Fail),
            1 => Just(Step::Refuse),
            1 => Just(Step::Release),
            3 => answer.prop_map(Step::ReleaseAnswered),
        ]
    }

    /// What is known of a lease, as one would write it down.
    struct Naive {
        until: Instant,
        hold_until: Option<Instant>,
        /// What ended it.
        over: Option<State>,
        sent: Vec<(Instant, Ttl)>,
        gone_by: Instant,
        release_open: bool,
    }

    impl Naive {
        fn deadline(&self) -> Instant {
            self.hold_until
                .map_or(self.until, |most| most.min(self.until))
        }

        fn is_valid(&self, now: Instant) -> bool {
            self.over.is_none() && now < self.deadline()
        }

        fn sending(&mut self, now: Instant, ttl: Ttl, settle: Duration) {
            let all = now + settle + ttl.get() + ttl.get().saturating_sub(trusted(ttl));
            self.gone_by = self.gone_by.max(all);
        }
    }

    proptest! {
        #![proptest_config(config())]

        // Mutants: D7, D8, D13, D25, D34, D40, D41
        #[test]
        fn a_lease_is_what_was_written_down(
            ttl in 10..400_u64,
            reply in 0..500_u64,
            renew in any::<bool>(),
            max_hold in proptest::option::of(1..1_000_u64),
            grid in any::<bool>(),
            steps in proptest::collection::vec(step(), 1..80),
        ) {
            let ttl = Ttl::new(MS * ttl as u32).unwrap();
            let sent = Instant::now();
            let mut now = sent + MS * reply as u32;
            let mut terms = Terms::new(ttl);
            terms.renew = renew;
            terms.max_hold = max_hold.map(|most| MS * most as u32);
            terms.settle = MS * 50;
            terms.epoch = grid.then_some(sent).map(|sent| sent.checked_sub(MS * 7).unwrap());
            let mut keeper = Keeper::granted(terms, sent, now);
            let mut naive = Naive {
                until: sent + trusted(ttl),
                hold_until: terms.max_hold.map(|most| sent + most),
                over: None,
                sent: Vec::new(),
                gone_by: sent,
                release_open: false,
            };
            naive.sending(sent, ttl, terms.settle);
            let mut current = ttl;
            for step in steps {
                let was_valid = naive.is_valid(now);
                if !was_valid && naive.over.is_none() {
                    let most = naive.hold_until.is_some_and(|most| most <= naive.until);
                    naive.over = Some(State::Lost(if most { Loss::MaxHold } else { Loss::Expired }));
                }
                match step {
                    Step::Pass(ms) => now += MS * ms as u32,
                    Step::Tick => {
                        match keeper.on(Event::Tick, now) {
                            Action::Extend(ttl) => {
                                prop_assert!(was_valid && renew, "extended without need");
                                prop_assert_eq!(ttl, current);
                                naive.sent.push((now, ttl));
                                naive.sending(now, ttl, terms.settle);
                            }
                            Action::Sleep(at) => {
                                prop_assert!(was_valid);
                                prop_assert!(at > now && at <= naive.deadline());
                            }
                            Action::Stop => prop_assert!(!was_valid),
                            Action::Release => prop_assert!(false, "nobody asked for that"),
                        }
                    }
                    Step::Extend(ms) => {
                        let ttl = Ttl::new(MS * ms as u32).unwrap();
                        let action = keeper.on(Event::Extend(ttl), now);
                        if was_valid {
                            prop_assert_eq!(action, Action::Extend(ttl));
                            naive.sent.push((now, ttl));
                            naive.sending(now, ttl, terms.settle);
                            current = ttl;
                        } else {
                            prop_assert_eq!(action, Action::Stop);
                        }
                    }
                    Step::Answer(which) if !naive.sent.is_empty() => {
                        let (sent, ttl) = *which.get(&naive.sent);
                        keeper.on(Event::Extended { sent, ttl }, now);
                        if was_valid {
                            naive.until = naive.until.max(sent + trusted(ttl));
                        }
                    }
                    Step::Fail(which) if !naive.sent.is_empty() => {
                        let (sent, _) = *which.get(&naive.sent);
                        keeper.on(Event::Failed { sent }, now);
                    }
                    Step::Answer(_) | Step::Fail(_) => {}
                    Step::Refuse => {
                        let action = keeper.on(Event::Refused(Loss::Gone), now);
                        prop_assert_eq!(action, Action::Stop);
                        if was_valid {
                            naive.over = Some(State::Lost(Loss::Gone));
                        }
                    }
                    Step::Release => {
                        let action = keeper.on(Event::Release, now);
                        let left = match naive.over {
                            None => true,
                            Some(State::Lost(Loss::Expired | Loss::MaxHold)) => now < naive.gone_by,
                            Some(_) => false,
                        };
                        prop_assert_eq!(action == Action::Release, left);
                        if naive.over.is_none() {
                            naive.over = Some(State::Releasing);
                        }
                    }
                    Step::ReleaseAnswered(answer) => {
                        // Only who has released is answered.
                        if naive.over.is_none_or(|over| over == State::Released) {
                            continue;
                        }
                        let outcome = keeper.release_answered(answer, now);
                        let gone_by = naive.gone_by;
                        let expected = match answer {
                            None if now < gone_by => ReleaseOutcome::Unknown { gone_by },
                            Some(Released::Released) => ReleaseOutcome::Released,
                            Some(_) if naive.release_open && now < naive.until => ReleaseOutcome::Released,
                            None | Some(Released::Absent) => ReleaseOutcome::AlreadyExpired,
                            Some(_) => ReleaseOutcome::HeldByOther,
                        };
                        prop_assert_eq!(outcome, expected);
                        let unknown = matches!(outcome, ReleaseOutcome::Unknown { .. });
                        naive.release_open |= unknown;
                        if !unknown && naive.over == Some(State::Releasing) {
                            naive.over = Some(State::Released);
                        }
                    }
                }
                let valid = naive.is_valid(now);
                prop_assert_eq!(keeper.is_valid(now), valid);
                prop_assert_eq!(keeper.gone_by(), naive.gone_by);
                if valid {
                    prop_assert_eq!(keeper.valid_until(), Some(naive.deadline()));
                    // It is looked at before it is too late, or it cannot be renewed in time.
                    let tick = keeper.tick_at().unwrap();
                    prop_assert!(tick <= naive.deadline());
                    // The store keeps it for at least as long as its holder believes in it.
                    prop_assert!(naive.deadline() < naive.gone_by);
                } else if let Some(over) = naive.over {
                    prop_assert_eq!(keeper.look(now), over);
                    prop_assert_eq!(keeper.tick_at(), None);
                }
            }
        }

        /// The store loses two renewals of three, and a lease that is looked at when it asks for it lives on.
        // Mutant: D42
        #[test]
        fn a_lease_outlives_two_lost_renewals(ttl in 100..100_000_u64, round_trip in 0..5_u64) {
            let ttl = Ttl::new(MS * ttl as u32).unwrap();
            let mut now = Instant::now();
            let mut keeper = Keeper::granted(Terms::new(ttl), now, now);
            let mut sent = 0;
            for _ in 0..100 {
                let at = keeper.tick_at();
                prop_assert!(at.is_some(), "lost after {} renewals", sent);
                now = now.max(at.unwrap());
                if let Action::Extend(ttl) = keeper.on(Event::Tick, now) {
                    sent += 1;
                    if sent % 3 == 0 {
                        let answered = now + MS * round_trip as u32;
                        keeper.on(Event::Extended { sent: now, ttl }, answered);
                        now = answered;
                    }
                }
            }
            prop_assert!(sent > 30);
        }

        /// The same from the beginning, for one who was told of his grant when up to half of his place was over, whether he
        /// hears that a renewal has failed or hears nothing.
        // Mutant: D153
        #[test]
        fn a_lease_of_a_place_outlives_two_lost_renewals(
            ttl in 100..100_000_u64,
            over in 0..=50_u32,
            round_trip in 0..5_u64,
            hears in any::<bool>(),
        ) {
            use shipped::{Action, Event, Keeper, Terms};

            let ttl = Ttl::new(MS * ttl as u32).unwrap();
            let place = ttl.min(Ttl::new(MS * 3_000).unwrap());
            let placed = Instant::now();
            let mut now = placed + place.get() / 100 * over;
            let mut keeper = Keeper::told(Terms::new(ttl), place, placed, now);
            prop_assert_eq!(keeper.valid_until(), Some(placed + trusted(place)));
            let mut sent = 0;
            while sent < 30 {
                let at = keeper.tick_at();
                prop_assert!(at.is_some(), "lost after {} renewals", sent);
                now = now.max(at.unwrap());
                if let Action::Extend(ttl) = keeper.on(Event::Tick, now) {
                    sent += 1;
                    let answered = now + MS * round_trip as u32;
                    if sent % 3 == 0 {
                        keeper.on(Event::Extended { sent: now, ttl }, answered);
                        now = answered;
                    } else if hears {
                        keeper.on(Event::Failed { sent: now }, answered);
                        now = answered;
                    }
                }
            }
            // It is a lease like others by then.
            prop_assert!(keeper.valid_until().unwrap() > now + ttl.get() / 2);
        }
    }
}

/// Everything that can happen to messages between holders and a store, in any order.
mod protocol {
    use std::collections::VecDeque;

    use lockkit_core::Fence;
    use lockkit_core::lease::{AcquireSpec, Acquired, ExtendSpec, Extended, Key};

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Pass(u64),
        Acquire {
            who: usize,
            ttl: u64,
        },
        /// The same message with the same token, sent anew.
        Again {
            who: usize,
        },
        Tick {
            who: usize,
        },
        Extend {
            who: usize,
            ttl: u64,
        },
        Release {
            who: usize,
        },
        /// A message arrives; it may arrive once more.
        Deliver {
            which: Index,
            keep: bool,
        },
        Lose {
            which: Index,
        },
        /// A reply arrives.
        Hear {
            which: Index,
        },
        LoseReply {
            which: Index,
        },
    }

    const PARTIES: usize = 3;

    fn step() -> impl Strategy<Value = Step> {
        let who = 0..PARTIES;
        let ttl = 20..200_u64;
        prop_oneof![
            14 => (0..40_u64).prop_map(Step::Pass),
            10 => (who.clone(), ttl.clone()).prop_map(|(who, ttl)| Step::Acquire { who, ttl }),
            3 => who.clone().prop_map(|who| Step::Again { who }),
            8 => who.clone().prop_map(|who| Step::Tick { who }),
            3 => (who.clone(), ttl).prop_map(|(who, ttl)| Step::Extend { who, ttl }),
            4 => who.prop_map(|who| Step::Release { who }),
            30 => (any::<Index>(), proptest::bool::weighted(0.2))
                .prop_map(|(which, keep)| Step::Deliver { which, keep }),
            3 => any::<Index>().prop_map(|which| Step::Lose { which }),
            30 => any::<Index>().prop_map(|which| Step::Hear { which }),
            3 => any::<Index>().prop_map(|which| Step::LoseReply { which }),
        ]
    }

    #[derive(Clone)]
    enum Message {
        Acquire(AcquireSpec),
        Extend(ExtendSpec),
        Release(Token),
    }

    enum Reply {
        Acquired(Token, Ttl, Acquired),
        Extended(Token, Ttl, Extended),
    }

    /// One who wants the lock, with a clock of his own.
    struct Party {
        start: Instant,
        /// In a thousandth of true time.
        rate: u64,
        /// What he asks for, until he is granted it.
        asks: Option<AcquireSpec>,
        holds: Option<(Token, Fence, Keeper)>,
    }

    impl Party {
        fn now(&self, micros: u64) -> Instant {
            self.start + Duration::from_micros(micros * self.rate / 1_000)
        }
    }

    struct World {
        store: MemoryStore,
        key: Key,
        parties: Vec<Party>,
        micros: u64,
        /// With their senders, and when by their clocks they were sent.
        messages: VecDeque<(usize, Instant, Message)>,
        replies: VecDeque<(usize, Instant, Reply)>,
    }

    impl World {
        fn send(&mut self, who: usize, message: Message) {
            let sent = self.parties[who].now(self.micros);
            self.messages.push_back((who, sent, message));
        }

        fn deliver(&mut self, who: usize, sent: Instant, message: Message) {
            let reply = match message {
                Message::Acquire(spec) => {
                    let acquired = ready(self.store.acquire(&spec)).unwrap();
                    Reply::Acquired(spec.token, spec.ttl, acquired)
                }
                Message::Extend(spec) => {
                    let extended =
                        ready(self.store.extend(std::slice::from_ref(&spec))).unwrap()[0];
                    Reply::Extended(spec.token, spec.ttl, extended)
                }
                Message::Release(token) => {
                    // Its answer is of no use to anybody: who has released believes in nothing.
                    ready(self.store.release(&self.key, &token)).unwrap();
                    return;
                }
            };
            self.replies.push_back((who, sent, reply));
        }

        fn hear(&mut self, who: usize, sent: Instant, reply: Reply) {
            let party = &mut self.parties[who];
            let now = party.now(self.micros);
            match reply {
                Reply::Acquired(token, ttl, acquired) => {
                    let Acquired::Granted { fence } = acquired else {
                        return;
                    };
                    if party.asks.as_ref().is_some_and(|asks| asks.token == token) {
                        party.asks = None;
                        let keeper = Keeper::granted(Terms::new(ttl), sent, now);
                        party.holds = Some((token, fence, keeper));
                    }
                }
                Reply::Extended(token, ttl, extended) => {
                    let Some((holds, _, keeper)) = &mut party.holds else {
                        return;
                    };
                    if *holds == token {
                        let event = match extended {
                            Extended::Extended => Event::Extended { sent, ttl },
                            Extended::HeldByOther => Event::Refused(Loss::TakenOver),
                            _ => Event::Refused(Loss::Gone),
                        };
                        keeper.on(event, now);
                    }
                }
            }
        }

        fn act(&mut self, who: usize, event: Event) {
            let party = &mut self.parties[who];
            let now = party.now(self.micros);
            let Some((token, _, keeper)) = &mut party.holds else {
                return;
            };
            let token = *token;
            match keeper.on(event, now) {
                Action::Extend(ttl) => {
                    let spec = ExtendSpec::new(self.key.clone(), token, ttl);
                    self.send(who, Message::Extend(spec));
                }
                Action::Release => self.send(who, Message::Release(token)),
                Action::Sleep(_) | Action::Stop => {}
            }
        }

        /// Who believes in the lock, and for how much longer in true time.
        fn valid(&self) -> Vec<(Fence, Duration)> {
            let valid = |party: &Party| {
                let (_, fence, keeper) = party.holds.as_ref()?;
                let now = party.now(self.micros);
                let left = keeper.valid_until()?.checked_duration_since(now)?;
                let left = left * 1_000 / party.rate as u32;
                keeper.is_valid(now).then_some((*fence, left))
            };
            self.parties.iter().filter_map(valid).collect()
        }
    }

    proptest! {
        // A step here is a call of a store, and some dozens of them a history.
        #![proptest_config(ProptestConfig { cases: 800, ..config() })]

        /// No clock runs apart from the store's by 1 %.
        // Mutants: D7, D25, D43, D46
        #[test]
        fn no_two_believe_in_the_lock_and_the_store_agrees_with_the_one(
            rates in proptest::array::uniform::<_, PARTIES>(995..=1_005_u64),
            server in 997..=1_003_u64,
            steps in proptest::collection::vec(step(), 1..120),
        ) {
            let start = Instant::now();
            let party = |rate| Party { start, rate, asks: None, holds: None };
            let mut world = World {
                store: MemoryStore::new(),
                key: Key::new("k").unwrap(),
                parties: rates.map(party).into(),
                micros: 0,
                messages: VecDeque::new(),
                replies: VecDeque::new(),
            };
            for step in steps {
                match step {
                    Step::Pass(ms) => {
                        world.micros += ms * 1_000;
                        world.store.advance(Duration::from_micros(ms * server));
                    }
                    Step::Acquire { who, ttl } => {
                        let ttl = Ttl::new(MS * ttl as u32).unwrap();
                        let party = &mut world.parties[who];
                        let now = party.now(world.micros);
                        let idle = party.holds.as_ref().is_none_or(|(_, _, keeper)| !keeper.is_valid(now));
                        if idle {
                            let spec = AcquireSpec::new(world.key.clone(), Token::new(), ttl);
                            party.asks = Some(spec.clone());
                            world.send(who, Message::Acquire(spec));
                        }
                    }
                    Step::Again { who } => {
                        if let Some(spec) = world.parties[who].asks.clone() {
                            world.send(who, Message::Acquire(spec));
                        }
                    }
                    Step::Tick { who } => world.act(who, Event::Tick),
                    Step::Extend { who, ttl } => {
                        let ttl = Ttl::new(MS * ttl as u32).unwrap();
                        world.act(who, Event::Extend(ttl));
                    }
                    Step::Release { who } => world.act(who, Event::Release),
                    Step::Deliver { which, keep } if !world.messages.is_empty() => {
                        let at = which.index(world.messages.len());
                        let (who, sent, message) = if keep {
                            world.messages[at].clone()
                        } else {
                            world.messages.remove(at).unwrap()
                        };
                        world.deliver(who, sent, message);
                    }
                    Step::Lose { which } if !world.messages.is_empty() => {
                        world.messages.remove(which.index(world.messages.len()));
                    }
                    Step::Hear { which } if !world.replies.is_empty() => {
                        let at = which.index(world.replies.len());
                        let (who, sent, reply) = world.replies.remove(at).unwrap();
                        world.hear(who, sent, reply);
                    }
                    Step::LoseReply { which } if !world.replies.is_empty() => {
                        world.replies.remove(which.index(world.replies.len()));
                    }
                    Step::Deliver { .. } | Step::Lose { .. } | Step::Hear { .. } | Step::LoseReply { .. } => {}
                }
                let valid = world.valid();
                prop_assert!(valid.len() <= 1, "{:?} are valid", valid);
                if let [(fence, left)] = valid[..] {
                    let status = ready(world.store.inspect(&world.key)).unwrap();
                    prop_assert_eq!(status.as_ref().map(|status| status.holder.fence), Some(fence));
                    // In true time: he stops to believe in it before the store does.
                    let remaining = status.unwrap().remaining * 1_000 / server as u32;
                    prop_assert!(left < remaining, "{:?} of {:?}", left, remaining);
                }
            }
        }
    }
}

/// Whole lockers, of several processes, on one store to which everything happens.
mod lockers {
    use std::sync::{Arc, Mutex};

    use lockkit_core::lease::{Fault, Key, Locker, Op, View};
    use tokio::runtime::Builder;
    use tokio::time::sleep;

    use super::*;

    const TTL: Duration = Duration::from_millis(300);

    /// What one does with a lock, and how it ends.
    #[derive(Clone, Debug)]
    struct Turn {
        after: u64,
        fair: bool,
        hold: u64,
        end: End,
    }

    #[derive(Clone, Copy, Debug)]
    enum End {
        Release,
        Drop,
        Forget,
        /// Whatever it is at when this time is over.
        Abort(u64),
    }

    fn turn() -> impl Strategy<Value = Turn> {
        let end = prop_oneof![
            4 => Just(End::Release),
            4 => Just(End::Drop),
            1 => Just(End::Forget),
            4 => (0..400_u64).prop_map(End::Abort),
        ];
        (0..300_u64, any::<bool>(), 0..900_u64, end).prop_map(|(after, fair, hold, end)| Turn {
            after,
            fair,
            hold,
            end,
        })
    }

    fn fault() -> impl Strategy<Value = (Op, Fault)> {
        let op = prop_oneof![
            3 => Just(Op::Acquire),
            3 => Just(Op::Extend),
            2 => Just(Op::Release),
            1 => Just(Op::Watch),
        ];
        let late = (1..1_000_u64).prop_map(|by| MS * by as u32);
        let fault = prop_oneof![
            Just(Fault::Refuse),
            Just(Fault::LoseRequest),
            Just(Fault::LoseReply),
            Just(Fault::Hang),
            late.clone().prop_map(Fault::LateRequest),
            late.clone().prop_map(Fault::LateReply),
            late.prop_map(Fault::Twice),
        ];
        (op, fault)
    }

    /// All who were ever granted the lock.
    #[derive(Default)]
    struct Grants(Mutex<Vec<View>>);

    impl Grants {
        fn add(&self, view: View) {
            let mut views = self.0.lock().unwrap();
            if let Some(last) = views.last() {
                assert!(last.fence() < view.fence(), "{last:?} before {view:?}");
            }
            views.push(view);
        }

        fn check(&self) {
            let views = self.0.lock().unwrap();
            let valid: Vec<_> = views.iter().filter(|view| view.is_valid()).collect();
            assert!(valid.len() <= 1, "{valid:?} are valid");
        }
    }

    async fn take(locker: Locker<MemoryStore>, turn: Turn, grants: Arc<Grants>) {
        let asked = locker
            .lock("k")
            .fair(turn.fair)
            .wait(TTL * 4)
            .acquire()
            .await;
        let Ok(guard) = asked else { return };
        // The store knows of no other; but of this one it may not know any more.
        grants.check();
        grants.add(guard.view());
        sleep(MS * turn.hold as u32).await;
        grants.check();
        match turn.end {
            End::Release => drop(guard.release().await),
            End::Drop | End::Abort(_) => drop(guard),
            // As a process that dies: nobody renews it.
            End::Forget => std::mem::forget(guard.detach()),
        }
    }

    async fn play(turns: Vec<Vec<Turn>>, faults: Vec<(Op, Fault)>) {
        let store = MemoryStore::on_tokio_clock();
        for (op, fault) in faults {
            store.inject(op, fault);
        }
        let grants = Arc::new(Grants::default());
        let mut processes = Vec::new();
        for turns in turns {
            let store = store.clone();
            let locker = Locker::builder(store)
                .ttl(TTL)
                .call_timeout(MS * 200)
                .build()
                .unwrap();
            for turn in turns {
                let grants = Arc::clone(&grants);
                let locker = locker.clone();
                processes.push(tokio::spawn(async move {
                    sleep(MS * turn.after as u32).await;
                    let end = turn.end;
                    let takes = take(locker, turn, grants);
                    if let End::Abort(after) = end {
                        let _ = tokio::time::timeout(MS * after as u32, takes).await;
                    } else {
                        takes.await;
                    }
                }));
            }
        }
        for _ in 0..300 {
            sleep(MS * 9).await;
            grants.check();
        }
        for process in processes {
            process.await.unwrap();
        }
        // What settles latest, and the TTL of a ghost that nobody knows of.
        sleep(Duration::from_secs(7)).await;
        let status = store.inspect(&Key::new("k").unwrap()).await.unwrap();
        assert_eq!(status, None, "the lock is held by nobody");
        let tasks = tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks();
        assert_eq!(tasks, 0, "a task is left");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..config() })]

        // Mutant: D44
        #[test]
        fn whatever_happens_one_holds_and_nothing_is_left(
            turns in proptest::collection::vec(proptest::collection::vec(turn(), 1..4), 1..4),
            faults in proptest::collection::vec(fault(), 0..14),
        ) {
            let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(play(turns, faults));
        }
    }
}

/// Those who stand in line, some of whom die there, or with the lock in their hands.
mod line {
    use std::mem::forget;
    use std::sync::{Arc, Mutex};

    use lockkit_core::lease::{Key, Locker};
    use tokio::runtime::Builder;
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    /// What becomes of one who comes, in milliseconds.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        /// He gets the lock, and gives it back after so long.
        Holds(u64),
        /// He dies after so long, or as soon as he has the lock.
        Dies(u64),
    }

    /// One who was served: since when he waited, since when he had the lock, and until when.
    #[derive(Clone, Copy, Debug)]
    struct Served {
        number: usize,
        came: Instant,
        got: Instant,
        gave: Instant,
    }

    #[derive(Default)]
    struct Books {
        served: Vec<Served>,
        deaths: Vec<Instant>,
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            (0..600_u64).prop_map(Fate::Holds),
            (0..900_u64).prop_map(Fate::Dies),
        ]
    }

    async fn comes(locker: Locker<MemoryStore>, number: usize, fate: Fate, books: &Mutex<Books>) {
        let came = Instant::now();
        match fate {
            Fate::Holds(long) => {
                let guard = locker.lock("k").acquire().await.unwrap();
                let got = Instant::now();
                sleep(MS * long as u32).await;
                assert!(guard.is_valid());
                let gave = Instant::now();
                assert_eq!(guard.release().await, ReleaseOutcome::Released);
                books.lock().unwrap().served.push(Served {
                    number,
                    came,
                    got,
                    gave,
                });
            }
            Fate::Dies(after) => {
                // What the dead had is neither polled nor dropped any more.
                let locker = Box::leak(Box::new(locker));
                let mut waits = Box::pin(locker.lock("k").renew(false).acquire());
                match timeout(MS * after as u32, waits.as_mut()).await {
                    Ok(guard) => forget(guard.unwrap()),
                    Err(_) => forget(waits),
                }
                books.lock().unwrap().deaths.push(Instant::now());
            }
        }
    }

    async fn play(ttl: Duration, comers: Vec<(u64, Fate)>) {
        let store = MemoryStore::on_tokio_clock();
        let books = Arc::new(Mutex::new(Books::default()));
        let mut processes = Vec::new();
        for (number, (after, fate)) in comers.into_iter().enumerate() {
            sleep(MS * after as u32).await;
            let locker = Locker::builder(store.clone()).ttl(ttl).fair(true);
            let locker = locker.wait(Duration::from_hours(1)).build().unwrap();
            let books = Arc::clone(&books);
            processes.push(tokio::spawn(async move {
                comes(locker, number, fate, &books).await;
            }));
        }
        for process in processes {
            process.await.unwrap();
        }
        let Books { mut served, deaths } = std::mem::take(&mut *books.lock().unwrap());
        served.sort_by_key(|one| one.got);
        let place = ttl.clamp(MS * 300, MS * 3_000);
        for (at, one) in served.iter().enumerate() {
            let before = served[..at].last();
            assert!(
                before.is_none_or(|before| before.number < one.number),
                "out of turn: {one:?} after {before:?}"
            );
            // Since then nobody who lives had it, and nobody has died.
            let free = deaths.iter().copied().filter(|death| *death <= one.got);
            let free = free
                .chain([one.came])
                .chain(before.map(|before| before.gave));
            let waited = one.got - free.max().unwrap();
            assert!(
                waited <= ttl.max(place) + place / 3,
                "{waited:?} for nobody: {one:?}"
            );
        }
        sleep(ttl.max(place)).await;
        let status = store.inspect(&Key::new("k").unwrap()).await.unwrap();
        assert_eq!(status, None, "the lock is held by nobody");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..config() })]

        // Mutant: D93
        #[test]
        fn who_lives_is_served_in_turn_and_soon_after_the_last_death(
            ttl in prop_oneof![10..500_u64, 500..5_000_u64],
            comers in proptest::collection::vec((1..400_u64, fate()), 1..9),
        ) {
            let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(play(MS * ttl as u32, comers));
        }
    }
}
