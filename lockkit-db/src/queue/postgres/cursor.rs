//! Where in a queue a claim begins to look.
//!
//! PostgreSQL keeps what an index said before as long as anybody may still be reading it: behind one old
//! snapshot, the entries of all jobs that were claimed since then lie in front of the first ready one, and each claim
//! would walk over them. So a claim begins after the last job that one before it has got. What appears before
//! that, because it is more urgent, or came back, or was committed late, is found when there is nothing
//! else to claim, or after a while, when a claim looks from the start again.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// A job's place in its queue: priority, time, id.
pub(super) type Place = (i16, i64, i64);

/// Before every job.
pub(super) const START: Place = (i16::MIN, i64::MIN, i64::MIN);

/// The marks of all queues that this process claims from.
///
/// | a queue has | which means | who changes it |
/// |---|---|---|
/// | no mark | a claim looks from the start | a claim that got all it asked for sets one |
/// | a mark | all before it was claimed when somebody looked last | a claim moves it on; one that got less than it asked for, or a job from before it, or a more urgent one that comes, or `reset`, removes it; it is void when it is old |
pub(super) struct Cursor {
    rescan: Duration,
    marks: HashMap<String, Mark>,
    /// Counts the resets: what a claim has found out that began before one is not news any more.
    resets: u64,
}

struct Mark {
    place: Place,
    /// When somebody last looked from the start.
    looked: Instant,
}

/// Where a claim has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Begun {
    /// After this place.
    pub(super) after: Place,
    looked: Instant,
    resets: u64,
}

impl Cursor {
    /// Marks that are void after a time; with none, each claim looks from the start.
    pub(super) fn new(rescan: Duration) -> Self {
        Self {
            rescan,
            marks: HashMap::new(),
            resets: 0,
        }
    }

    /// Where to begin now.
    pub(super) fn begin(&self, queue: &str, now: Instant) -> Begun {
        let mark = self.marks.get(queue);
        let mark = mark.filter(|mark| now.duration_since(mark.looked) < self.rescan);
        Begun {
            after: mark.map_or(START, |mark| mark.place),
            looked: mark.map_or(now, |mark| mark.looked),
            resets: self.resets,
        }
    }

    /// What came of a claim: whether it got all it asked for, and the places of its first job and its last.
    pub(super) fn end(
        &mut self,
        queue: &str,
        begun: Begun,
        full: bool,
        got: Option<(Place, Place)>,
    ) {
        if begun.resets != self.resets {
            return;
        }
        match got {
            Some((first, last)) if full && first > begun.after => {
                let mark = Mark {
                    place: last,
                    looked: begun.looked,
                };
                self.marks.insert(queue.to_owned(), mark);
            }
            _ => {
                self.marks.remove(queue);
            }
        }
    }

    /// Jobs have come, or come back, and where is not known.
    pub(super) fn reset(&mut self) {
        self.marks.clear();
        self.resets += 1;
    }

    /// Jobs have come whose time is now, the most urgent of this priority. Where the mark is at one that is no less
    /// urgent, they are after it, but for what was committed late.
    pub(super) fn came(&mut self, queue: &str, priority: i16) {
        let mark = self.marks.get(queue);
        if mark.is_none_or(|mark| priority < mark.place.0) {
            self.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESCAN: Duration = Duration::from_millis(250);

    fn place(id: i64) -> Place {
        (0, 0, id)
    }

    /// A cursor whose first claim has got the jobs up to `id`.
    fn claimed(id: i64, now: Instant) -> Cursor {
        let mut cursor = Cursor::new(RESCAN);
        let begun = cursor.begin("q", now);
        assert_eq!(begun.after, START);
        cursor.end("q", begun, true, Some((place(1), place(id))));
        cursor
    }

    #[test]
    fn a_claim_begins_where_the_last_full_one_ended_and_queues_have_marks_of_their_own() {
        let now = Instant::now();
        let cursor = claimed(7, now);
        assert_eq!(cursor.begin("q", now).after, place(7));
        assert_eq!(cursor.begin("other", now).after, START);
    }

    #[test]
    fn a_mark_is_void_when_it_is_old_however_often_it_was_moved_on() {
        let now = Instant::now();
        let mut cursor = claimed(7, now);
        for step in 1..=4 {
            let later = now + RESCAN / 5 * step;
            let begun = cursor.begin("q", later);
            let next = begun.after.2 + 1;
            cursor.end("q", begun, true, Some((place(next), place(next))));
        }
        assert_eq!(cursor.begin("q", now + RESCAN / 5 * 4).after, place(11));
        // Mutant: C20
        assert_eq!(cursor.begin("q", now + RESCAN).after, START);
    }

    #[test]
    fn who_did_not_get_enough_or_got_something_from_before_makes_the_next_one_look_from_the_start()
    {
        let now = Instant::now();
        for (full, got) in [
            (false, None),
            (false, Some((place(8), place(9)))),
            (true, Some((place(3), place(9)))),
        ] {
            let mut cursor = claimed(7, now);
            let begun = cursor.begin("q", now);
            cursor.end("q", begun, full, got);
            assert_eq!(cursor.begin("q", now).after, START, "{full} {got:?}");
        }
    }

    #[test]
    fn a_reset_is_not_undone_by_a_claim_that_began_before_it() {
        let now = Instant::now();
        let mut cursor = claimed(7, now);
        let begun = cursor.begin("q", now);
        cursor.reset();
        // Mutant: C21
        cursor.end("q", begun, true, Some((place(8), place(9))));
        assert_eq!(cursor.begin("q", now).after, START);
    }

    #[test]
    fn only_a_job_that_is_more_urgent_than_the_mark_undoes_it_when_it_comes() {
        let now = Instant::now();
        let mut cursor = claimed(7, now);
        for later in [0, 1] {
            cursor.came("q", later);
            // Mutant: C96
            assert_eq!(cursor.begin("q", now).after, place(7));
        }
        let begun = cursor.begin("q", now);
        cursor.came("q", -1);
        // Mutant: C97
        cursor.end("q", begun, true, Some((place(8), place(9))));
        assert_eq!(cursor.begin("q", now).after, START);
    }

    #[test]
    fn what_comes_while_there_is_no_mark_is_before_one_that_is_made_meanwhile() {
        let now = Instant::now();
        let mut cursor = Cursor::new(RESCAN);
        let begun = cursor.begin("q", now);
        cursor.came("q", 0);
        cursor.end("q", begun, true, Some((place(1), place(2))));
        assert_eq!(cursor.begin("q", now).after, START);
    }

    #[test]
    fn without_a_time_there_are_no_marks() {
        let now = Instant::now();
        let mut cursor = Cursor::new(Duration::ZERO);
        let begun = cursor.begin("q", now);
        cursor.end("q", begun, true, Some((place(1), place(2))));
        assert_eq!(cursor.begin("q", now).after, START);
    }
}
