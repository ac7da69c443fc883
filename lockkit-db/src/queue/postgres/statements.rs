//! The statements, and what goes into them and comes out.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use lockkit_core::Fence;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::cursor::{END, Place, START};
use crate::Error;
use crate::backend::postgres::connections::Statement;
use crate::queue::job::{kept_error, repeat_answer, seq_must_grow, unix_ms};
use crate::queue::store::{AckBatch, ClaimSpec, Session};
use crate::queue::{ClaimedJob, JobId, NewJob, Schedule, Settlement, Verdict};

macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!("../../../sql/postgres/", $name, ".sql"))
    };
}
pub(super) use sql;

/// The most bytes of payloads that go into one statement: what a server can take in one message has a limit.
const PART: usize = 16 << 20;

// === enqueue ===

/// Jobs in parts that one statement can take; one part, if they are not large, and none, if they are none.
pub(super) fn parts<'a, 'j>(jobs: &'a [&'j NewJob]) -> Vec<&'a [&'j NewJob]> {
    let mut parts = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (at, job) in jobs.iter().enumerate() {
        bytes += job.payload.len();
        if bytes > PART && at > from {
            parts.push(&jobs[from..at]);
            (from, bytes) = (at, job.payload.len());
        }
    }
    if from < jobs.len() {
        parts.push(&jobs[from..]);
    }
    parts
}

/// A place before the first of the jobs that were put in: their priorities are known, and the rows have their times.
pub(super) fn first(jobs: &[&NewJob], rows: &[PgRow]) -> Place {
    let urgency = jobs.iter().map(|job| job.priority).min();
    let time = rows.iter().map(|row| row.get("run_at")).min();
    urgency
        .zip(time)
        .map_or(END, |(priority, run_at)| (priority, run_at, i64::MIN))
}

/// A place before the first of the jobs in the rows.
pub(super) fn earliest(rows: &[PgRow]) -> Place {
    let places = rows
        .iter()
        .map(|row| (row.get("priority"), row.get("run_at"), i64::MIN));
    places.min().unwrap_or(END)
}

/// Of each queue of which jobs were made ready, a place before the first of them.
pub(super) fn made_ready(rows: &[PgRow]) -> HashMap<String, Place> {
    let mut queues = HashMap::new();
    for row in rows {
        // Not each row of an answer is about such jobs.
        let Some(queue) = row.get::<Option<String>, _>("queue") else {
            continue;
        };
        let first = queues.entry(queue).or_insert(END);
        *first = earliest(std::slice::from_ref(row)).min(*first);
    }
    queues
}

pub(super) fn register(queue: &str) -> Statement<'static> {
    sqlx::query(sql!("enqueue_queue")).bind(queue.to_owned())
}

/// Of jobs without keys.
pub(super) fn enqueue<'q>(queue: &'q str, jobs: &'q [&'q NewJob]) -> Statement<'q> {
    match alike(jobs) {
        Some(one) => sqlx::query(sql!("enqueue_alike"))
            .bind(queue)
            .bind(one.priority)
            .bind(delay(one))
            .bind(due(one))
            .bind(one.max_attempts as i32)
            .bind(&*one.kind)
            .bind(each(jobs, |job| &*job.payload)),
        None => said(sql!("enqueue"), queue, jobs),
    }
}

/// What all of these are, but for their payloads; nothing if they are not.
fn alike<'q>(jobs: &[&'q NewJob]) -> Option<&'q NewJob> {
    let rest = |job: &'q NewJob| (job.priority, job.schedule, job.max_attempts, &*job.kind);
    let one = *jobs.first()?;
    jobs.iter().all(|job| rest(job) == rest(one)).then_some(one)
}

/// Of jobs that all have keys, in the order of these.
pub(super) fn enqueue_unique<'q>(queue: &'q str, jobs: &'q [&'q NewJob]) -> Statement<'q> {
    said(sql!("enqueue_unique"), queue, jobs).bind(keys(jobs))
}

pub(super) fn unique_taken<'q>(queue: &'q str, jobs: &'q [&'q NewJob]) -> Statement<'q> {
    said(sql!("unique_taken"), queue, jobs)
        .bind(keys(jobs))
        .bind(each(jobs, NewJob::replaces))
}

pub(super) fn unique_free<'q>(queue: &'q str, jobs: &'q [&'q NewJob]) -> Statement<'q> {
    sqlx::query(sql!("unique_free"))
        .bind(queue)
        .bind(keys(jobs))
}

/// What jobs are, side by side.
fn said<'q>(sql: &'static str, queue: &'q str, jobs: &'q [&'q NewJob]) -> Statement<'q> {
    sqlx::query(sql)
        .bind(queue)
        .bind(each(jobs, |job| job.priority))
        .bind(each(jobs, delay))
        .bind(each(jobs, due))
        .bind(each(jobs, |job| job.max_attempts as i32))
        .bind(each(jobs, |job| &*job.kind))
        .bind(each(jobs, |job| &*job.payload))
}

/// In milliseconds, from now.
fn delay(job: &NewJob) -> i64 {
    match job.schedule {
        Schedule::After(delay) => delay.as_millis() as i64,
        _ => 0,
    }
}

/// In milliseconds since 1970.
fn due(job: &NewJob) -> Option<i64> {
    match job.schedule {
        Schedule::At(time) => unix_ms(time).ok(),
        _ => None,
    }
}

fn each<'q, T>(jobs: &[&'q NewJob], what: impl Fn(&'q NewJob) -> T) -> Vec<T> {
    jobs.iter().map(|job| what(job)).collect()
}

fn keys<'q>(jobs: &[&'q NewJob]) -> Vec<&'q str> {
    jobs.iter().filter_map(|job| job.key()).collect()
}

/// The ids that an enqueue returned, in the order of its jobs.
pub(super) fn ids(rows: &[PgRow]) -> Vec<JobId> {
    let mut ids: Vec<_> = rows.iter().map(|row| JobId(row.get(0))).collect();
    ids.sort();
    ids
}

// === claims ===

/// What a claim asks for.
#[derive(Clone, Copy)]
pub(super) struct Claims<'a> {
    queue: &'a str,
    n: usize,
    seq: u64,
    after: Place,
    /// Larger than the number of the session's last claim, or 0 where that is no matter.
    guard: u64,
}

impl<'a> Claims<'a> {
    /// Nothing.
    pub(super) const NONE: Claims<'static> = Claims {
        queue: "",
        n: 0,
        seq: 0,
        after: START,
        guard: 0,
    };

    /// A claim that is sent for the first time. Its number keeps it from being carried out when it comes late,
    /// after it was sent again.
    pub(super) fn first(spec: &'a ClaimSpec, after: Place) -> Self {
        Self {
            queue: &spec.queue,
            n: spec.n,
            seq: spec.seq,
            after,
            guard: spec.seq,
        }
    }

    /// One that is sent again, in a transaction that keeps all others away.
    pub(super) fn again(spec: &'a ClaimSpec, after: Place) -> Self {
        Self {
            guard: 0,
            ..Self::first(spec, after)
        }
    }

    /// The statement that claims and does nothing else.
    pub(super) fn alone(self, session: &Session) -> Statement<'a> {
        self.bind(sqlx::query(sql!("claim")).bind(session.id))
    }

    fn bind(self, statement: Statement<'a>) -> Statement<'a> {
        statement
            .bind(self.queue)
            .bind(self.n as i64)
            .bind(self.seq as i64)
            .bind(self.after.0)
            .bind(self.after.1)
            .bind(self.after.2)
            .bind(self.guard as i64)
    }
}

/// The place in the queue of the job in a row, if there is one in it.
pub(super) fn place(row: &PgRow) -> Option<Place> {
    let id: Option<i64> = row.get("id");
    id.map(|id| (row.get("priority"), row.get("run_at"), id))
}

/// The jobs in the rows, in the order of the queue.
pub(super) fn claimed(rows: &[PgRow]) -> Result<Vec<ClaimedJob>, Error> {
    let mut jobs = Vec::with_capacity(rows.len());
    for row in rows {
        let Some(place) = place(row) else { continue };
        let epoch: i64 = row.get("epoch");
        let claimed_at: i64 = row.get("claimed_at");
        let job = ClaimedJob {
            id: JobId(place.2),
            epoch: Fence::try_from(epoch).map_err(|error| Error::Schema {
                problem: format!("the epoch of job {}: {error}", place.2),
            })?,
            attempt: row.get::<i32, _>("attempt") as u32,
            max_attempts: row.get::<i32, _>("max_attempts") as u32,
            priority: place.0,
            waited: Duration::from_millis((claimed_at - place.1).max(0) as u64),
            kind: row.get("kind"),
            payload: row.get("payload"),
        };
        jobs.push((place, job));
    }
    jobs.sort_by_key(|(place, _)| *place);
    Ok(jobs.into_iter().map(|(_, job)| job).collect())
}

// === acknowledgements ===

/// A batch of acknowledgements as the statements want it: column by column.
pub(super) struct Batch<'a> {
    of: &'a AckBatch,
    /// The acknowledgements in the order in which they are sent, that of their jobs' ids; by their places in the batch.
    order: Vec<usize>,
    ids: Vec<i64>,
    epochs: Vec<i64>,
    busy: Vec<i64>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(batch: &'a AckBatch) -> Self {
        let acks = &batch.acks;
        let mut order: Vec<usize> = (0..acks.len()).collect();
        order.sort_unstable_by_key(|at| (acks[*at].id.0, acks[*at].epoch));
        let sorted = || order.iter().map(|at| &acks[*at]);
        Self {
            of: batch,
            ids: sorted().map(|ack| ack.id.0).collect(),
            epochs: sorted().map(|ack| ack.epoch.as_i64()).collect(),
            busy: sorted().map(|ack| ack.busy.as_micros() as i64).collect(),
            order,
        }
    }

    /// Whether all of its jobs are done and leave nothing behind, and none is named twice.
    pub(super) fn is_plain(&self) -> bool {
        let plain = |verdict: &Verdict| matches!(verdict, Verdict::Done { result: None });
        self.of.acks.iter().all(|ack| plain(&ack.verdict))
            && self.ids.windows(2).all(|two| two[0] < two[1])
    }

    /// Whether some of its jobs may be claimed anew at once.
    pub(super) fn gives_back(&self) -> bool {
        self.of.acks.iter().any(|ack| match &ack.verdict {
            Verdict::Retry { delay, .. } | Verdict::Snooze { delay } => delay.is_zero(),
            Verdict::Release => true,
            Verdict::Done { .. } | Verdict::Dead { .. } | Verdict::Cancelled => false,
        })
    }

    /// Of each queue of which the batch has made jobs ready, a place before the first of them.
    pub(super) fn made_ready(&self, rows: &[PgRow]) -> HashMap<String, Place> {
        let mut ready = made_ready(rows);
        if ready.is_empty() && self.gives_back() {
            // It may have done so when it was sent before, and what that was is not known any more.
            ready.insert(String::new(), START);
        }
        ready
    }

    /// The statement that settles a plain batch, and claims.
    pub(super) fn exchange<'q>(&'q self, session: &Session, claims: Claims<'q>) -> Statement<'q> {
        claims.bind(self.bind(sqlx::query(sql!("exchange")), session))
    }

    /// The statement that settles any batch.
    pub(super) fn settle<'q>(&'q self, session: &Session) -> Statement<'q> {
        let n = self.of.acks.len();
        let (mut verdicts, mut delays) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let (mut errors, mut results) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for ack in self.order.iter().map(|at| &self.of.acks[*at]) {
            type Row<'q> = (i16, Duration, Option<Cow<'q, str>>, Option<&'q [u8]>);
            let row: Row<'_> = match &ack.verdict {
                Verdict::Done { result } => (0, Duration::ZERO, None, result.as_deref()),
                Verdict::Retry { delay, error } => (1, *delay, Some(kept_error(error)), None),
                Verdict::Dead { error } => (2, Duration::ZERO, Some(kept_error(error)), None),
                Verdict::Release => (3, Duration::ZERO, None, None),
                Verdict::Snooze { delay } => (4, *delay, None, None),
                Verdict::Cancelled => (5, Duration::ZERO, None, None),
            };
            verdicts.push(row.0);
            // Up to the next millisecond, so that a delay that is not zero stays one.
            delays.push(row.1.as_micros().div_ceil(1000) as i64);
            errors.push(row.2);
            results.push(row.3);
        }
        self.bind(sqlx::query(sql!("settle")), session)
            .bind(verdicts)
            .bind(delays)
            .bind(errors)
            .bind(results)
    }

    fn bind<'q>(&'q self, statement: Statement<'q>, session: &Session) -> Statement<'q> {
        statement
            .bind(session.id)
            .bind(self.of.seq as i64)
            .bind(&self.ids)
            .bind(&self.epochs)
            .bind(&self.busy)
    }

    /// The answer, from the row about the session.
    pub(super) fn settled(&self, rows: &[PgRow]) -> Result<Vec<Settlement>, Error> {
        let n = self.ids.len();
        let about = rows.iter().find_map(|row| {
            let lives: Option<bool> = row.get("lives");
            lives.map(|lives| (lives, row))
        });
        let Some((lives, row)) = about else {
            return Ok(vec![Settlement::Stale; n]);
        };
        let last = row.get::<i64, _>("last_batch") as u64;
        let size: i32 = row.get("last_size");
        let mut refused: Vec<i64> = row.get("refused");
        for place in &mut refused {
            // Another batch under this number may have been longer; it is told apart by its size.
            let at = self.order.get(place.unsigned_abs() as usize - 1);
            *place = place.signum() * at.map_or(1, |at| *at as i64 + 1);
        }
        if self.of.seq == last {
            repeat_answer(n, size as usize, &refused)
        } else if !lives {
            Ok(vec![Settlement::Stale; n])
        } else if self.of.seq < last {
            Err(seq_must_grow(last))
        } else {
            repeat_answer(n, n, &refused)
        }
    }
}
