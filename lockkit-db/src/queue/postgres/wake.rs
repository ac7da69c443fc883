//! How a process hears that there may be work: its own bell, and what other processes notify it of.
//!
//! All of this is a hint. What it misses is found by looking.

use std::collections::HashMap;
use std::time::Duration;

use lockkit_core::sync::Mutex;
use sqlx::postgres::PgConnectOptions;
use tokio::time::Instant;

use super::cursor::{Place, START};
use crate::backend::postgres::listener::Listening;
use crate::queue::bells::Bells;

/// On which notifications are sent; each carries [`News`], and who has sent it.
pub(super) const CHANNEL: &str = "lockkit_queue";

/// A queue's notifications are at least this far apart, in each process: one takes a lock that all have to
/// take which are committed with one. What comes in between is told when that time is over, so it is also what a job may
/// wait for until another process hears of it.
const APART: Duration = Duration::from_millis(5);

/// Where one takes longer, since the server is slow or many queues' wait for the connection, they are this many times as long
/// apart as the last one took, but not longer than workers are between two looks.
const TIMES_AS_LONG: u32 = 4;
const FARTHEST: Duration = Duration::from_secs(1);

/// The bell of a process, and its listener. When nobody waits for work, what has come is read at each claim and upkeep.
pub(super) struct Wake {
    pub(super) bells: Bells,
    pub(super) listening: Listening,
    told: Mutex<Told>,
    /// Who this is, in what it sends: it has heard that before.
    me: u64,
}

/// That jobs are ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct News<'a> {
    /// Of all queues, if it has no name.
    pub(super) queue: &'a str,
    /// All of them are after this place.
    pub(super) after: Place,
}

/// When other processes are to be notified.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum When {
    /// With this text.
    Now(String),
    /// Of what is kept until then.
    At(Instant),
    /// Somebody waits for that already.
    WithOthers,
}

/// What was told.
#[derive(Default)]
struct Told {
    queues: HashMap<String, Line>,
    /// How long the last notification took.
    took: Duration,
}

#[derive(Default)]
struct Line {
    /// Until when nothing is to be told, since something was.
    rests: Option<Instant>,
    /// The first place of which nothing was told since.
    kept: Option<Place>,
    /// Whether somebody waits until it may be told.
    waits: bool,
}

// === impl Wake ===

impl Wake {
    pub(super) fn new(options: &PgConnectOptions) -> Self {
        Self {
            bells: Bells::default(),
            listening: Listening::new(options, CHANNEL),
            told: Mutex::default(),
            me: fastrand::u64(..),
        }
    }

    /// Wakes those of this process who wait for a queue, or for anything if it has no name.
    pub(super) fn ring(&self, queue: &str) {
        if queue.is_empty() {
            self.bells.ring_all();
        } else {
            self.bells.ring(queue);
        }
    }

    /// When to notify other processes of this. Whoever asks sees to it.
    pub(super) fn when(&self, news: News<'_>) -> When {
        match self.told.lock().when(news, Instant::now()) {
            Ok(after) => When::Now(self.text(news.queue, after)),
            Err(Some(due)) => When::At(due),
            Err(None) => When::WithOthers,
        }
    }

    /// Keeps this for whoever tells something next.
    pub(super) fn keep(&self, news: News<'_>) {
        self.told.lock().line(news.queue).keep(news.after);
    }

    /// What is to be told now of what was kept, if that has not been done.
    pub(super) fn kept(&self, queue: &str) -> Option<String> {
        let after = self.told.lock().kept(queue, Instant::now())?;
        Some(self.text(queue, after))
    }

    /// A notification has taken so long, with the wait for the connection.
    pub(super) fn took(&self, time: Duration) {
        self.told.lock().took = time;
    }

    fn text(&self, queue: &str, (priority, run_at, _): Place) -> String {
        format!("{:016x}:{priority}:{run_at}:{queue}", self.me)
    }

    /// What a notification says, unless this process has sent it. What is not of this form is the name of a queue.
    pub(super) fn read<'a>(&self, text: &'a str) -> Option<News<'a>> {
        let (from, news) = News::read(text).unwrap_or((None, News::of(text)));
        (from != Some(self.me)).then_some(news)
    }
}

impl<'a> News<'a> {
    /// There may be work anywhere in a queue.
    pub(super) fn of(queue: &'a str) -> Self {
        Self::after(queue, START)
    }

    pub(super) fn after(queue: &'a str, after: Place) -> Self {
        Self { queue, after }
    }

    fn read(text: &'a str) -> Option<(Option<u64>, Self)> {
        let mut parts = text.splitn(4, ':');
        let from = parts.next().filter(|from| from.len() == 16)?;
        let from = u64::from_str_radix(from, 16).ok()?;
        let priority = parts.next()?.parse().ok()?;
        let run_at = parts.next()?.parse().ok()?;
        let after = (priority, run_at, i64::MIN);
        Some((Some(from), Self::after(parts.next()?, after)))
    }
}

impl Told {
    /// What is to be told now; or else, when, if nobody waits for that yet.
    fn when(&mut self, news: News<'_>, now: Instant) -> Result<Place, Option<Instant>> {
        let apart = self.apart();
        let line = self.line(news.queue);
        let after = line.keep(news.after);
        if let Some(due) = line.rests(now) {
            let waits = std::mem::replace(&mut line.waits, true);
            return Err((!waits).then_some(due));
        }
        *line = Line::told(now + apart);
        Ok(after)
    }

    fn kept(&mut self, queue: &str, now: Instant) -> Option<Place> {
        let apart = self.apart();
        let line = self.queues.get_mut(queue)?;
        let kept = line.kept.filter(|_| line.rests(now).is_none())?;
        *line = Line::told(now + apart);
        Some(kept)
    }

    /// For how long nothing is told of a queue of which something is told now.
    fn apart(&self) -> Duration {
        APART.max(self.took * TIMES_AS_LONG).min(FARTHEST)
    }

    fn line(&mut self, queue: &str) -> &mut Line {
        if !self.queues.contains_key(queue) {
            self.queues.insert(queue.to_owned(), Line::default());
        }
        self.queues.get_mut(queue).expect("it was just put there")
    }
}

impl Line {
    /// Of which all is told, and nothing more is until then.
    fn told(until: Instant) -> Self {
        Self {
            rests: Some(until),
            ..Self::default()
        }
    }

    /// Until when nothing is to be told.
    fn rests(&self, now: Instant) -> Option<Instant> {
        self.rests.filter(|until| now < *until)
    }

    /// The first place of what is kept now.
    fn keep(&mut self, after: Place) -> Place {
        let first = self.kept.map_or(after, |kept| kept.min(after));
        self.kept = Some(first);
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(id: i64) -> Place {
        (0, 0, id)
    }

    #[test]
    fn notifications_of_one_queue_are_far_apart_and_none_is_left_out() {
        let now = Instant::now();
        let ms = |ms| now + Duration::from_millis(ms);
        let mut told = Told::default();
        let mut when = |queue, id, at| told.when(News::after(queue, place(id)), ms(at));
        assert_eq!(when("q", 5, 0), Ok(place(5)));
        assert_eq!(when("other", 6, 1), Ok(place(6)));
        // Mutant: C24
        assert_eq!(when("q", 9, 1), Err(Some(ms(5))));
        assert_eq!(when("q", 7, 2), Err(None));
        assert_eq!(when("q", 8, 4), Err(None));
        // Mutant: C116
        assert_eq!(told.kept("q", ms(5)), Some(place(7)));
        assert_eq!(told.kept("q", ms(9)), None);
        assert_eq!(told.kept("none", ms(9)), None);
        let mut when = |id, at| told.when(News::after("q", place(id)), ms(at));
        assert_eq!(when(1, 9), Err(Some(ms(10))));
        // Nobody has come at that time.
        assert_eq!(when(2, 10), Ok(place(1)));
        assert_eq!(when(3, 11), Err(Some(ms(15))));
        // Who was to come then comes late.
        assert_eq!(told.kept("q", ms(12)), None);
        assert_eq!(told.kept("q", ms(15)), Some(place(3)));
    }

    #[test]
    fn notifications_that_take_long_are_farther_apart() {
        let now = Instant::now();
        let ms = |ms| now + Duration::from_millis(ms);
        let mut told = Told::default();
        let mut at = 0;
        // Mutant: C160
        for (took, apart) in [(0, 5), (1, 5), (10, 40), (5000, 1000), (0, 5)] {
            told.took = Duration::from_millis(took);
            assert_eq!(told.when(News::of("q"), ms(at)), Ok(START));
            let next = told.when(News::of("q"), ms(at));
            assert_eq!(next, Err(Some(ms(at + apart))));
            // Whoever comes then tells it, though by now they are farther apart.
            told.took = Duration::from_millis(took + 100);
            assert_eq!(told.kept("q", ms(at + apart)), Some(START));
            at += 10_000;
        }
    }

    #[test]
    fn what_nobody_could_wait_for_is_told_with_the_next_news_and_not_left_to_nobody() {
        let now = Instant::now();
        let ms = |ms| now + Duration::from_millis(ms);
        let mut told = Told::default();
        told.line("q").keep(place(5));
        assert_eq!(told.when(News::after("q", place(6)), now), Ok(place(5)));
        told.line("q").keep(place(3));
        // Mutant: C150
        let next = told.when(News::after("q", place(4)), ms(1));
        assert_eq!(next, Err(Some(ms(5))));
        assert_eq!(told.kept("q", ms(5)), Some(place(3)));
    }

    #[test]
    fn news_are_read_as_they_were_written_whatever_the_name_and_not_by_whom_they_are_from() {
        let wake = || Wake::new(&PgConnectOptions::new_without_pgpass());
        let (one, other) = (wake(), wake());
        for queue in ["", "q", ":", "0:q", "-1", "a:b:c:d", "0123456789abcdef:1:2"] {
            for (priority, run_at) in [(i16::MIN, i64::MIN), (7, 1000), (-7, -1000)] {
                let after = (priority, run_at, i64::MIN);
                let text = one.text(queue, after);
                assert_eq!(other.read(&text), Some(News::after(queue, after)));
                // Mutant: C141
                assert_eq!(one.read(&text), None);
            }
            // As it is sent by hand.
            assert_eq!(one.read(queue), Some(News::of(queue)));
        }
    }
}
