//! What the clients have asked for, been told and seen, and whether a database agrees. No I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// A message by its id, a session by its own.
type Id = String;

/// What became of a message, as far as its client knows.
#[derive(Clone, Debug)]
struct Sent {
    session: Id,
    acknowledged: Option<Acknowledged>,
}

/// When, and whether the client was told that a person is going to answer.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    at: Instant,
    manual: bool,
}

/// All that was asked for, told and seen.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    sent: BTreeMap<Id, Sent>,
    /// The first message that anybody was shown at each place.
    shown: BTreeMap<Id, Vec<Option<Id>>>,
    /// Messages that were shown at the place of another.
    pub(crate) shown_otherwise: u64,
    /// Answers older than what their client had seen.
    pub(crate) older: u64,
    /// Answers without a message whose keeping their client had been told of.
    pub(crate) own_missing: u64,
}

/// What a database has.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// The messages of each session, in their order.
    pub(crate) sessions: BTreeMap<Id, Vec<Id>>,
    /// The messages that wait for a person, and their sessions.
    pub(crate) queue: Vec<(Id, Id)>,
}

/// What is wrong with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Acknowledged, and not there.
    pub(crate) lost: Vec<Id>,
    pub(crate) twice: Vec<Id>,
    /// There, and nobody asked for it, or not in this session.
    pub(crate) unasked: Vec<Id>,
    pub(crate) queue_lost: Vec<Id>,
    pub(crate) queue_twice: Vec<Id>,
    pub(crate) queue_unasked: Vec<Id>,
    /// In the queue, and not in its session.
    pub(crate) queue_alone: Vec<Id>,
    /// Shown to somebody at a place where it is not.
    pub(crate) unkept: Vec<Id>,
    /// Messages that are there although their clients were never told, and others that are not.
    pub(crate) unknown: (usize, usize),
}

impl Ledger {
    pub(crate) fn ask(&mut self, message: &str, session: &str) {
        let sent = Sent {
            session: session.to_owned(),
            acknowledged: None,
        };
        self.sent.insert(message.to_owned(), sent);
    }

    pub(crate) fn acknowledge(&mut self, message: &str, at: Instant, manual: bool) {
        if let Some(sent) = self.sent.get_mut(message) {
            sent.acknowledged = Some(Acknowledged { at, manual });
        }
    }

    /// A client was shown these messages from that place on.
    pub(crate) fn show<'a>(
        &mut self,
        session: &str,
        from: usize,
        messages: impl Iterator<Item = &'a str>,
    ) {
        let shown = self.shown.entry(session.to_owned()).or_default();
        for (place, message) in (from..).zip(messages) {
            if shown.len() <= place {
                shown.resize(place + 1, None);
            }
            match &shown[place] {
                None => shown[place] = Some(message.to_owned()),
                Some(first) => self.shown_otherwise += u64::from(first != message),
            }
        }
    }

    pub(crate) fn asked(&self) -> usize {
        self.sent.len()
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.sent
            .values()
            .filter(|sent| sent.acknowledged.is_some())
            .count()
    }

    /// Judges a database: the one at the end, or one restored from a backup that began `before` some instant. What was
    /// acknowledged later need not be there, but it may.
    pub(crate) fn judge(&self, contents: &Contents, before: Option<Instant>) -> Verdict {
        let mut verdict = Verdict::default();
        let mut kept = BTreeMap::<&str, &str>::new();
        for (session, messages) in &contents.sessions {
            for message in messages {
                if kept.insert(message, session).is_some() {
                    verdict.twice.push(message.clone());
                }
                if self
                    .sent
                    .get(message)
                    .is_none_or(|sent| sent.session != *session)
                {
                    verdict.unasked.push(message.clone());
                }
            }
        }
        let mut queue = BTreeSet::new();
        for (message, session) in &contents.queue {
            if !queue.insert(message.as_str()) {
                verdict.queue_twice.push(message.clone());
            }
            if self
                .sent
                .get(message)
                .is_none_or(|sent| sent.session != *session)
            {
                verdict.queue_unasked.push(message.clone());
            }
            if kept.get(message.as_str()) != Some(&session.as_str()) {
                verdict.queue_alone.push(message.clone());
            }
        }
        for (message, sent) in &self.sent {
            let is_kept = kept.contains_key(message.as_str());
            let due = |told: &Acknowledged| before.is_none_or(|before| told.at < before);
            match sent.acknowledged.filter(due) {
                Some(told) => {
                    if !is_kept {
                        verdict.lost.push(message.clone());
                    }
                    if told.manual && !queue.contains(message.as_str()) {
                        verdict.queue_lost.push(message.clone());
                    }
                }
                None if sent.acknowledged.is_some() => {}
                None if is_kept => verdict.unknown.0 += 1,
                None => verdict.unknown.1 += 1,
            }
        }
        if before.is_none() {
            for (session, shown) in &self.shown {
                let messages = contents
                    .sessions
                    .get(session)
                    .map_or(&[][..], Vec::as_slice);
                let is_there = |place: usize, message: &Id| messages.get(place) == Some(message);
                let unkept = (shown.iter().enumerate())
                    .filter_map(|(place, message)| Some((place, message.as_ref()?)))
                    .filter(|(place, message)| !is_there(*place, message));
                verdict
                    .unkept
                    .extend(unkept.map(|(_, message)| message.clone()));
            }
        }
        verdict
    }
}

impl Contents {
    /// The sessions that do not begin with what they were `before`.
    pub(crate) fn do_not_continue(&self, before: &Self) -> Vec<Id> {
        let differs = |(session, messages): &(&Id, &Vec<Id>)| {
            let now = self.sessions.get(*session);
            !now.is_some_and(|now| now.starts_with(messages))
        };
        before
            .sessions
            .iter()
            .filter(differs)
            .map(|(session, _)| session.clone())
            .collect()
    }

    pub(crate) fn messages(&self) -> usize {
        self.sessions.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn contents(sessions: &[(&str, &[&str])], queue: &[(&str, &str)]) -> Contents {
        let ids = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect();
        Contents {
            sessions: sessions
                .iter()
                .map(|&(id, messages)| (id.to_owned(), ids(messages)))
                .collect(),
            queue: queue
                .iter()
                .map(|&(m, s)| (m.to_owned(), s.to_owned()))
                .collect(),
        }
    }

    /// Three messages were kept, of which the last is to be answered by a person; of a fourth nothing is known.
    fn ledger() -> (Ledger, Instant) {
        let mut ledger = Ledger::default();
        let now = Instant::now();
        for (second, (message, session)) in (0..).zip([("a", "s"), ("b", "s"), ("c", "t")]) {
            ledger.ask(message, session);
            ledger.acknowledge(message, now + Duration::from_secs(second), message == "c");
        }
        ledger.ask("d", "t");
        ledger.show("s", 0, ["a", "b"].into_iter());
        (ledger, now)
    }

    #[test]
    fn what_is_as_it_was_told_is_well() {
        let (ledger, _) = ledger();
        for (t, unknown) in [(&["c"][..], (0, 1)), (&["c", "d"], (1, 0))] {
            let verdict = ledger.judge(
                &contents(&[("s", &["a", "b"]), ("t", t)], &[("c", "t")]),
                None,
            );
            assert_eq!(
                verdict,
                Verdict {
                    unknown,
                    ..Verdict::default()
                }
            );
        }
        assert_eq!((ledger.asked(), ledger.acknowledged()), (4, 3));
    }

    #[test]
    fn each_fault_is_found() {
        let (ledger, _) = ledger();
        let queue = &[("c", "t")][..];
        let found = |sessions: &[(&str, &[&str])], queue: &[(&str, &str)]| {
            let mut verdict = ledger.judge(&contents(sessions, queue), None);
            verdict.unknown = (0, 0);
            verdict
        };
        let none = Verdict::default;
        let id = |id: &str| vec![id.to_owned()];
        assert_eq!(
            found(&[("s", &["a"]), ("t", &["c"])], queue),
            Verdict {
                lost: id("b"),
                unkept: id("b"),
                ..none()
            }
        );
        assert_eq!(
            found(&[("s", &["a", "b", "a"]), ("t", &["c"])], queue),
            Verdict {
                twice: id("a"),
                ..none()
            }
        );
        assert_eq!(
            found(&[("s", &["a", "b", "x"]), ("t", &["c"])], queue),
            Verdict {
                unasked: id("x"),
                ..none()
            }
        );
        assert_eq!(
            found(&[("s", &["a", "b", "d"]), ("t", &["c"])], queue),
            Verdict {
                unasked: id("d"),
                ..none()
            }
        );
        let s_and_t = &[("s", &["a", "b"][..]), ("t", &["c"])];
        assert_eq!(
            found(s_and_t, &[]),
            Verdict {
                queue_lost: id("c"),
                ..none()
            }
        );
        assert_eq!(
            found(s_and_t, &[("c", "t"), ("c", "t")]),
            Verdict {
                queue_twice: id("c"),
                ..none()
            }
        );
        assert_eq!(
            found(s_and_t, &[("c", "t"), ("x", "t")]),
            Verdict {
                queue_unasked: id("x"),
                queue_alone: id("x"),
                ..none()
            }
        );
        assert_eq!(
            found(s_and_t, &[("c", "t"), ("d", "t")]),
            Verdict {
                queue_alone: id("d"),
                ..none()
            }
        );
        assert_eq!(
            found(&[("s", &["a", "c", "b"]), ("t", &["c"])], queue),
            Verdict {
                twice: id("c"),
                unasked: id("c"),
                unkept: id("b"),
                ..none()
            }
        );
    }

    #[test]
    fn a_backup_has_what_was_acknowledged_before_it_began() {
        let (ledger, now) = ledger();
        let began = Some(now + Duration::from_millis(1500));
        let whole = contents(&[("s", &["a", "b"]), ("t", &[])], &[]);
        assert_eq!(ledger.judge(&whole, began).lost, Vec::<Id>::new());
        let torn = contents(&[("s", &["a"]), ("t", &[])], &[]);
        assert_eq!(ledger.judge(&torn, began).lost, ["b"]);
        // Read later than the sessions.
        let mixed = contents(&[("s", &["a", "b"]), ("t", &[])], &[("c", "t")]);
        assert_eq!(ledger.judge(&mixed, began).queue_alone, ["c"]);
    }

    #[test]
    fn a_session_only_grows() {
        let before = contents(&[("s", &["a", "b"])], &[]);
        let now = contents(&[("s", &["a", "b", "c"]), ("t", &["d"])], &[]);
        assert_eq!(now.do_not_continue(&before), Vec::<Id>::new());
        assert_eq!(before.do_not_continue(&now), ["s", "t"]);
        let other = contents(&[("s", &["b", "a", "c"])], &[]);
        assert_eq!(other.do_not_continue(&before), ["s"]);
    }

    #[test]
    fn two_who_are_shown_different_messages_at_one_place_are_noticed() {
        let (mut ledger, _) = ledger();
        ledger.show("s", 1, ["b", "e"].into_iter());
        assert_eq!(ledger.shown_otherwise, 0);
        ledger.show("s", 1, std::iter::once("f"));
        assert_eq!(ledger.shown_otherwise, 1);
    }
}
