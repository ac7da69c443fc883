//! Where in a queue a claim begins to look.
//!
//! PostgreSQL keeps what an index said before as long as anybody may still be reading it, and until a vacuum has been
//! there: the entries of all jobs that were claimed since then lie in front of the first ready one, and whoever looks
//! from the start walks over them. So each process has a mark in each queue, and claims and looks begin there.
//!
//! **The mark's promise**: a ready job before it is one of which this process has not heard. Whoever makes jobs ready says
//! where the first of them is, after his commit: in this process at once, in others by a notification. That sets the
//! mark back, if it is after that place. So a job of which this process has heard is never overlooked. One of
//! which it has not heard (its notification was lost, or nobody sent one: the caller's own transaction, a claim
//! that the server undid, a process that died) is overlooked until somebody looks from the start, which is done once in
//! a while ([`PostgresOptions::rescan`](super::PostgresOptions::rescan)), whatever is known.
//!
//! Such a look may take longer than that while, where there is much to walk over. So there is one at a time in each
//! queue, and after it there is none for that while, or for as long as it took, if that is longer. Meanwhile the
//! others go on from the mark.
//! Of a job that comes unheard, the look under way may not know; the next one does.
//!
//! What is found out by a walk, which is a claim or a look, holds for the time when it began. So a walk moves the mark no
//! further than the first place of which the process has heard since.

use std::collections::HashMap;
use std::time::Duration;

use lockkit_core::sync::Mutex;
use tokio::time::Instant;

/// A job's place in its queue: priority, time, id.
pub(super) type Place = (i16, i64, i64);

/// Before every job.
pub(super) const START: Place = (i16::MIN, i64::MIN, i64::MIN);

/// After every job.
pub(super) const END: Place = (i16::MAX, i64::MAX, i64::MAX);

/// A job's time is that of the statement that put it in, and its commit comes later, in milliseconds: so long, and its
/// notification is on its way. Who has seen all jobs that there are goes back by this much, which spares most of those
/// that others put in the wait for their notification.
const LATE: i64 = 20;

/// The marks of all queues that this process claims from, or waits for.
///
/// | a mark is | which means | who moves it |
/// |---|---|---|
/// | at the start | nothing is known | a walk that has found something, on |
/// | at a place | what is ready before it, is not known of | a walk that began there, on, over what it has got or found gone; back: who says that jobs have come before it, a claim that failed, to where the mark was when that began, a walk from the start that did not see all |
///
/// | a look from the start is | which means | who ends that |
/// |---|---|---|
/// | due | the next walk begins at the start, unless it is a claim that is sent again | that walk, by its beginning |
/// | under way | no other walk does, unless the mark is there | its end, or failure |
/// | done | all that was ready when it began and is before the mark was heard of, or got | time: [`Cursor::rescan`], or as long as it took, if that is longer |
/// | failed | nothing new | time: as long as it took. At once, if nobody waited for what it says: a worker leaves off looking each time that it claims |
pub(super) struct Cursor {
    rescan: Duration,
    marks: HashMap<String, Mark>,
    /// How many walks have begun.
    walks: u64,
}

struct Mark {
    place: Place,
    /// When somebody is to look from the start; at once, if there is no time.
    due: Option<Instant>,
    /// The number of the walk that does.
    looking: Option<u64>,
    heard: Heard,
    /// Those under way: their numbers, and the first place of which was heard since they began.
    walks: Vec<(u64, Place)>,
}

/// What was heard since the last claim began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Heard {
    Nothing,
    /// There may be work in some queue.
    Somewhere,
    /// There is work in this one.
    Here,
}

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// It takes what it finds.
    Claim,
    /// The same, by one that was sent before, and may have had something locked since.
    ClaimAgain,
    /// It says what is first.
    Look,
}

/// What a walk has found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: it may have been refused.
    Unknown,
    /// Up to this place nothing is left.
    UpTo(Place),
    /// At this place was the last one that there was.
    Last(Place),
    /// There was none.
    None,
}

/// A walk that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Begun {
    number: u64,
    after: Place,
    /// If it fails, others may have passed by what is after this place.
    back: Option<Place>,
    /// So may they if the one fails that was sent before, at a place that nobody knows any more.
    again: bool,
    at: Instant,
}

/// A walk. One that is dropped before it has ended has failed, or nobody waits for it any more.
pub(super) struct Walk<'a> {
    cursor: &'a Mutex<Cursor>,
    queue: &'a str,
    begun: Option<Begun>,
    failed: bool,
    /// It begins after this place.
    pub(super) after: Place,
}

impl Cursor {
    /// Marks that are passed by after a time; with none, each walk begins at the start.
    pub(super) fn new(rescan: Duration) -> Self {
        Self {
            rescan,
            marks: HashMap::new(),
            walks: 0,
        }
    }

    fn mark(&mut self, queue: &str) -> &mut Mark {
        if !self.marks.contains_key(queue) {
            self.marks.insert(queue.to_owned(), Mark::new());
        }
        self.marks.get_mut(queue).expect("it was just put there")
    }

    fn begin(&mut self, queue: &str, aim: Aim, now: Instant) -> Begun {
        self.walks += 1;
        let (number, always) = (self.walks, self.rescan.is_zero());
        let mark = self.mark(queue);
        mark.walks.push((number, END));
        if aim != Aim::Look {
            mark.heard = Heard::Nothing;
        }
        // What comes of one that is sent again is not known, so it is no look.
        let rests = mark.looking.is_some() || mark.due.is_some_and(|due| now < due);
        let looks = !rests && aim != Aim::ClaimAgain;
        if looks {
            mark.looking = Some(number);
        }
        Begun {
            number,
            after: if looks || always { START } else { mark.place },
            back: (aim != Aim::Look).then_some(mark.place),
            again: aim == Aim::ClaimAgain,
            at: now,
        }
    }

    fn end(&mut self, queue: &str, begun: Begun, found: Found, now: Instant) {
        let rescan = self.rescan;
        let mark = self.mark(queue);
        let first = mark.forget(begun, Some(now));
        let from_the_start = begun.after == START;
        if from_the_start && found != Found::Unknown {
            let took = now.duration_since(begun.at);
            mark.due = mark.due.max(Some(now + took.max(rescan)));
        }
        let upto = match found {
            Found::Unknown | Found::None => return,
            Found::UpTo(place) => place.min(first),
            Found::Last(place) => late(place).min(first),
        };
        if from_the_start && matches!(found, Found::UpTo(_)) {
            // Of what is after it, nothing is known.
            mark.back(upto);
        }
        mark.place = mark.place.max(upto);
    }

    /// A walk will not end. What it has claimed is given back, or will be asked for; others may have passed it by. When
    /// it failed, if it did.
    fn fail(&mut self, queue: &str, begun: Begun, failed: Option<Instant>) {
        let mark = self.mark(queue);
        let first = mark.forget(begun, failed);
        if let Some(back) = begun.back {
            mark.back(back.min(first));
        }
        if begun.again {
            mark.due = None;
        }
    }

    /// Jobs have become ready, the first of them after this place. Without a name, that may be in any queue.
    pub(super) fn came(&mut self, queue: &str, after: Place) {
        if queue.is_empty() {
            for mark in self.marks.values_mut() {
                mark.back(after);
                mark.heard = mark.heard.max(Heard::Somewhere);
            }
        } else if let Some(mark) = self.marks.get_mut(queue) {
            mark.back(after);
            mark.heard = Heard::Here;
        }
    }

    /// What was heard of a queue since the last claim of it began, and since somebody asked this.
    pub(super) fn heard(&mut self, queue: &str) -> Heard {
        std::mem::replace(&mut self.mark(queue).heard, Heard::Nothing)
    }
}

impl Mark {
    /// Of a queue of which nothing is known.
    fn new() -> Self {
        Self {
            place: START,
            due: None,
            looking: None,
            heard: Heard::Somewhere,
            walks: Vec::new(),
        }
    }

    fn back(&mut self, to: Place) {
        self.place = self.place.min(to);
        for (_, first) in &mut self.walks {
            *first = (*first).min(to);
        }
    }

    /// Takes a walk off the list; the first place of which was heard since it began. When it ended, if it did.
    fn forget(&mut self, begun: Begun, ended: Option<Instant>) -> Place {
        if self.looking == Some(begun.number) {
            self.looking = None;
            if let Some(now) = ended {
                // If that is all, it has found out nothing. Where one fails for being long, the next one would, too.
                self.due = self.due.max(Some(now + now.duration_since(begun.at)));
            }
        }
        let at = self.walks.iter().position(|(n, _)| *n == begun.number);
        at.map_or(START, |at| self.walks.swap_remove(at).1)
    }
}

impl<'a> Walk<'a> {
    pub(super) fn begin(cursor: &'a Mutex<Cursor>, queue: &'a str, aim: Aim) -> Self {
        let begun = cursor.lock().begin(queue, aim, Instant::now());
        Self {
            cursor,
            queue,
            begun: Some(begun),
            failed: false,
            after: begun.after,
        }
    }

    /// It has ended with an error.
    pub(super) fn failed(&mut self) {
        self.failed = true;
    }

    pub(super) fn end(mut self, found: Found) {
        if let Some(begun) = self.begun.take() {
            let mut cursor = self.cursor.lock();
            cursor.end(self.queue, begun, found, Instant::now());
        }
    }
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        if let Some(begun) = self.begun {
            // A claim is left off only by who waits no longer for one that takes long.
            let failed = self.failed || begun.back.is_some();
            let failed = failed.then(Instant::now);
            self.cursor.lock().fail(self.queue, begun, failed);
        }
    }
}

/// Where to go on after the last job that there was.
fn late((priority, run_at, _): Place) -> Place {
    (priority, run_at.saturating_sub(LATE), i64::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESCAN: Duration = Duration::from_secs(1);

    fn place(id: i64) -> Place {
        (0, 1000, id)
    }

    /// A cursor whose first claim, begun now, has got as many jobs as it wanted, up to `id`.
    fn claimed(id: i64, now: Instant) -> Cursor {
        let mut cursor = Cursor::new(RESCAN);
        assert_eq!(walk(&mut cursor, now, Found::UpTo(place(id))), START);
        cursor
    }

    /// A claim from beginning to end; after which place it began.
    fn walk(cursor: &mut Cursor, now: Instant, found: Found) -> Place {
        let begun = cursor.begin("q", Aim::Claim, now);
        cursor.end("q", begun, found, now);
        begun.after
    }

    /// Where the next walk begins.
    fn next(cursor: &mut Cursor, now: Instant) -> Place {
        let begun = cursor.begin("q", Aim::Look, now);
        cursor.end("q", begun, Found::Unknown, now);
        begun.after
    }

    #[test]
    fn a_claim_begins_where_the_last_one_ended_and_queues_have_marks_of_their_own() {
        let now = Instant::now();
        let mut cursor = claimed(7, now);
        assert_eq!(walk(&mut cursor, now, Found::UpTo(place(9))), place(7));
        assert_eq!(next(&mut cursor, now), place(9));
        let other = cursor.begin("other", Aim::Claim, now);
        assert_eq!(other.after, START);
        // Who has got nothing may not have looked.
        walk(&mut cursor, now, Found::Unknown);
        assert_eq!(next(&mut cursor, now), place(9));
    }

    #[test]
    fn who_has_seen_all_that_there_is_leaves_room_for_what_is_committed_late() {
        let now = Instant::now();
        let mut cursor = claimed(7, now);
        let last = (0, 5000, 9);
        walk(&mut cursor, now, Found::Last(last));
        // Mutant: C119
        assert_eq!(next(&mut cursor, now), (0, 5000 - LATE, i64::MIN));
        // Not where it has been already.
        walk(&mut cursor, now, Found::UpTo(last));
        walk(&mut cursor, now, Found::Last(last));
        assert_eq!(next(&mut cursor, now), last);
    }

    #[test]
    fn somebody_looks_from_the_start_once_in_a_while_however_often_the_mark_was_moved_on() {
        let now = Instant::now();
        let mut cursor = claimed(7, now);
        for step in 1..=4 {
            let found = Found::UpTo(place(7 + step));
            walk(&mut cursor, now + RESCAN / 5 * step as u32, found);
        }
        let just_before = now + RESCAN - Duration::from_nanos(1);
        assert_eq!(next(&mut cursor, just_before), place(11));
        // Mutants: C20, C22
        assert_eq!(next(&mut cursor, now + RESCAN), START);
        // One who was refused, or failed, has not looked.
        walk(&mut cursor, now + RESCAN, Found::Unknown);
        let begun = cursor.begin("q", Aim::Look, now + RESCAN);
        cursor.fail("q", begun, Some(now + RESCAN));
        assert_eq!(next(&mut cursor, now + RESCAN), START);
        let begun = cursor.begin("q", Aim::Look, now + RESCAN);
        cursor.end("q", begun, Found::None, now + RESCAN);
        assert_eq!(next(&mut cursor, now + RESCAN), place(11));
    }

    #[test]
    fn one_at_a_time_looks_from_the_start_and_none_for_as_long_as_that_took() {
        let now = Instant::now();
        for (took, rests) in [(RESCAN / 2, RESCAN), (RESCAN * 5, RESCAN * 5)] {
            let mut cursor = claimed(7, now);
            let due = now + RESCAN;
            let looks = cursor.begin("q", Aim::Look, due);
            assert_eq!(looks.after, START);
            // Mutant: C148
            assert_eq!(walk(&mut cursor, due, Found::UpTo(place(8))), place(7));
            let end = due + took;
            assert_eq!(next(&mut cursor, end), place(8));
            assert_eq!(cursor.begin("other", Aim::Look, end).after, START);
            cursor.end("q", looks, Found::None, end);
            // Mutant: C149
            let just_before = end + rests - Duration::from_nanos(1);
            assert_eq!(next(&mut cursor, just_before), place(8));
            assert_eq!(next(&mut cursor, end + rests), START);
        }
    }

    #[test]
    fn a_look_from_the_start_that_took_too_long_leaves_the_mark_and_is_made_again_after_as_long() {
        let now = Instant::now();
        let mut cursor = claimed(7, now);
        let (due, end) = (now + RESCAN, now + RESCAN * 11);
        let fails = cursor.begin("q", Aim::Claim, due);
        assert_eq!(fails.after, START);
        assert_eq!(walk(&mut cursor, due, Found::UpTo(place(9))), place(7));
        cursor.fail("q", fails, Some(end));
        // From there on, others may have passed by what it had locked. Mutant: C147
        assert_eq!(next(&mut cursor, end), place(7));
        assert_eq!(next(&mut cursor, end + RESCAN * 9), place(7));
        assert_eq!(next(&mut cursor, end + RESCAN * 10), START);
        // And what has come since it began.
        let fails = cursor.begin("q", Aim::Claim, end + RESCAN * 10);
        cursor.came("q", place(3));
        let later = end + RESCAN * 10;
        assert_eq!(walk(&mut cursor, later, Found::UpTo(place(9))), place(3));
        cursor.fail("q", fails, Some(later + RESCAN));
        assert_eq!(next(&mut cursor, later + RESCAN), place(3));
    }

    #[test]
    fn a_look_that_nobody_waits_for_any_more_leaves_it_to_the_next_claim() {
        let long_ago = Instant::now().checked_sub(RESCAN * 2).unwrap();
        let cursor = Mutex::new(claimed(7, long_ago));
        let looks = cursor.lock().begin("q", Aim::Look, long_ago + RESCAN);
        assert_eq!(looks.after, START);
        // As a worker that has looked for as long as it waits between two claims.
        let dropped = Walk {
            cursor: &cursor,
            queue: "q",
            begun: Some(looks),
            failed: false,
            after: START,
        };
        drop(dropped);
        // Mutant: C152
        let claims = cursor.lock().begin("q", Aim::Claim, Instant::now());
        assert_eq!(claims.after, START);
    }

    #[test]
    fn a_claim_that_is_sent_again_begins_at_the_mark_and_if_it_fails_the_next_one_looks() {
        let now = Instant::now();
        let mut cursor = claimed(7, now);
        // It is no look from the start, and keeps none from being made.
        let again = cursor.begin("q", Aim::ClaimAgain, now + RESCAN);
        assert_eq!(again.after, place(7));
        assert_eq!(next(&mut cursor, now + RESCAN), START);
        cursor.end("q", again, Found::Unknown, now + RESCAN);
        let mut cursor = claimed(7, now);
        let again = cursor.begin("q", Aim::ClaimAgain, now);
        walk(&mut cursor, now, Found::UpTo(place(9)));
        // Mutant: C146
        cursor.fail("q", again, Some(now));
        let looks = cursor.begin("q", Aim::Claim, now);
        assert_eq!(looks.after, START);
        // Where that fails, too, the next one is not kept from what can be had.
        cursor.fail("q", looks, Some(now + RESCAN * 10));
        assert_eq!(next(&mut cursor, now + RESCAN * 10), place(7));
    }

    #[test]
    fn a_walk_from_the_start_that_did_not_see_all_sets_the_mark_back() {
        let now = Instant::now();
        let due = now + RESCAN;
        for (found, after) in [
            (Found::UpTo(place(3)), place(3)),
            (Found::UpTo(place(9)), place(9)),
            (Found::Last(place(3)), place(7)),
            (Found::None, place(7)),
        ] {
            let mut cursor = claimed(7, now);
            // Mutant: C117
            assert_eq!(walk(&mut cursor, due, found), START);
            assert_eq!(next(&mut cursor, due), after, "{found:?}");
        }
        // Also under somebody who is on the way.
        let mut cursor = claimed(7, now);
        let on_the_way = cursor.begin("q", Aim::Claim, now);
        walk(&mut cursor, due, Found::UpTo(place(3)));
        cursor.end("q", on_the_way, Found::UpTo(place(9)), now);
        assert_eq!(next(&mut cursor, due), place(3));
    }

    #[test]
    fn what_has_come_is_after_the_mark_wherever_that_was() {
        let now = Instant::now();
        for (came, after) in [
            // More urgent, and of this urgency but committed late.
            ((-1, 2000, 8), (-1, 2000, 8)),
            (place(3), place(3)),
            // After it anyway.
            (place(8), place(7)),
            ((1, 0, 0), place(7)),
            (START, START),
        ] {
            let mut cursor = claimed(7, now);
            cursor.came("q", came);
            // Mutants: C96, C97
            assert_eq!(next(&mut cursor, now), after, "{came:?}");
        }
        let mut cursor = claimed(7, now);
        cursor.came("other", START);
        assert_eq!(next(&mut cursor, now), place(7));
        cursor.came("", START);
        assert_eq!(next(&mut cursor, now), START);
    }

    #[test]
    fn what_has_come_since_a_walk_began_is_not_passed_by_at_its_end() {
        let now = Instant::now();
        for found in [
            Found::UpTo(place(20)),
            Found::Last((0, 9000, 20)),
            Found::None,
        ] {
            for (came, most) in [(place(9), place(9)), ((-1, 5000, 1), (-1, 5000, 1))] {
                let mut cursor = claimed(7, now);
                let begun = cursor.begin("q", Aim::Claim, now);
                // After it there comes more, which is no matter.
                cursor.came("q", came);
                cursor.came("q", place(30));
                // Mutant: C21
                cursor.end("q", begun, found, now);
                assert!(next(&mut cursor, now) <= most, "{found:?} {came:?}");
            }
        }
        // While there is no mark yet, too.
        let mut cursor = Cursor::new(RESCAN);
        let begun = cursor.begin("q", Aim::Claim, now);
        cursor.came("q", (-1, 5000, 1));
        cursor.end("q", begun, Found::UpTo(place(7)), now);
        assert_eq!(next(&mut cursor, now), (-1, 5000, 1));
    }

    #[test]
    fn of_two_claims_at_once_neither_undoes_what_the_other_has_found() {
        let now = Instant::now();
        let mut cursor = claimed(7, now);
        let one = cursor.begin("q", Aim::Claim, now);
        let two = cursor.begin("q", Aim::Claim, now);
        cursor.end("q", two, Found::UpTo(place(12)), now);
        cursor.end("q", one, Found::UpTo(place(9)), now);
        assert_eq!(next(&mut cursor, now), place(12));
    }

    #[test]
    fn a_claim_that_fails_leaves_what_another_one_has_passed_by_after_the_mark() {
        let now = Instant::now();
        let mut cursor = claimed(7, now);
        let fails = cursor.begin("q", Aim::Claim, now);
        let goes_on = cursor.begin("q", Aim::Claim, now);
        cursor.end("q", goes_on, Found::UpTo(place(12)), now);
        let goes_on = cursor.begin("q", Aim::Claim, now);
        // Mutant: C118
        cursor.fail("q", fails, Some(now));
        assert_eq!(next(&mut cursor, now), place(7));
        cursor.end("q", goes_on, Found::UpTo(place(15)), now);
        assert_eq!(next(&mut cursor, now), place(7));
        // A look has taken nothing.
        let looks = cursor.begin("q", Aim::Look, now);
        walk(&mut cursor, now, Found::UpTo(place(12)));
        cursor.fail("q", looks, Some(now));
        assert_eq!(next(&mut cursor, now), place(12));
        assert!(cursor.mark("q").walks.is_empty());
    }

    #[test]
    fn what_was_heard_since_the_last_claim_began_is_told_once() {
        let now = Instant::now();
        let mut cursor = Cursor::new(RESCAN);
        assert_eq!(cursor.heard("q"), Heard::Somewhere);
        assert_eq!(cursor.heard("q"), Heard::Nothing);
        cursor.came("", START);
        assert_eq!(cursor.heard("q"), Heard::Somewhere);
        let begun = cursor.begin("q", Aim::Claim, now);
        // Mutant: C140
        cursor.came("q", place(1));
        cursor.came("", START);
        cursor.end("q", begun, Found::Last(place(1)), now);
        assert_eq!(cursor.heard("q"), Heard::Here);
        assert_eq!(cursor.heard("q"), Heard::Nothing);
        cursor.came("q", place(1));
        walk(&mut cursor, now, Found::Last(place(1)));
        assert_eq!(cursor.heard("q"), Heard::Nothing);
    }

    #[test]
    fn without_a_time_each_walk_begins_at_the_start() {
        let now = Instant::now();
        let mut cursor = Cursor::new(Duration::ZERO);
        walk(&mut cursor, now, Found::UpTo(place(2)));
        assert_eq!(next(&mut cursor, now), START);
    }
}
