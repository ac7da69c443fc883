//! The load: requests that are sent to the app processes in turn, and what became of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::app::refusal::Body;
use crate::crew::{Crew, Http};

/// Between the read and the write of an increment.
pub(crate) const THINK: u64 = 10;

/// What a program that knows nothing better waits for before its first retry. Then twice that, and so on.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Shot {
    path: String,
    /// `None` for a GET.
    body: Option<Value>,
}

/// What became of one request.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The word of a refusal.
    pub(crate) refused: Option<String>,
    /// How often the app tried.
    pub(crate) attempts: u32,
    /// From the moment at which it was sent first.
    pub(crate) took: Duration,
    pub(crate) ended: Instant,
    /// How often it was sent.
    pub(crate) sent: u32,
}

/// What became of many.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) answers: Vec<Answer>,
    pub(crate) took: Duration,
}

#[derive(Deserialize)]
struct Done {
    attempts: u32,
}

impl Shot {
    pub(crate) fn increment(key: &str) -> Self {
        Self::add(key, 1, THINK)
    }

    pub(crate) fn add(key: &str, by: i64, think_ms: u64) -> Self {
        Self::post(
            "increment",
            json!({ "key": key, "by": by, "think_ms": think_ms }),
        )
    }

    pub(crate) fn write(key: &str, think_ms: u64) -> Self {
        Self::post("write", json!({ "key": key, "think_ms": think_ms }))
    }

    pub(crate) fn pay(crosswise: bool, think_ms: u64) -> Self {
        Self::post(
            "pay",
            json!({ "crosswise": crosswise, "think_ms": think_ms }),
        )
    }

    pub(crate) fn post(end_point: &str, body: Value) -> Self {
        Self {
            path: format!("/api/{end_point}"),
            body: Some(body),
        }
    }

    pub(crate) fn get(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            body: None,
        }
    }

    /// Sends it, and once more after each refusal that may pass, so many times at most.
    pub(crate) async fn fire(
        &self,
        http: &Http,
        base: &str,
        retries: u32,
    ) -> anyhow::Result<Answer> {
        let url = format!("{base}{}", self.path);
        let began = Instant::now();
        let mut sent = 0;
        loop {
            sent += 1;
            let (status, text) = match &self.body {
                Some(body) => http.post(&url, body).await?,
                None => http.get(&url).await?,
            };
            let (refused, attempts) = if status.is_success() {
                let done = serde_json::from_str(&text).unwrap_or(Done { attempts: 1 });
                (None, done.attempts)
            } else {
                let body: Body = serde_json::from_str(&text)
                    .with_context(|| format!("{} answered {status}: {text}", self.path))?;
                if !["busy", "deadlock", "duplicate"].contains(&body.refused.as_str()) {
                    bail!("{} answered {status}: {}", self.path, body.error);
                }
                (Some(body.refused), 1)
            };
            if refused.is_none() || sent > retries {
                let (took, ended) = (began.elapsed(), Instant::now());
                return Ok(Answer {
                    refused,
                    attempts,
                    took,
                    ended,
                    sent,
                });
            }
            sleep(FIRST_PAUSE * 2_u32.pow(sent - 1)).await;
        }
    }
}

impl Crew {
    /// Sends all at once, to one process after the other.
    pub(crate) async fn volley(&mut self, shots: Vec<Shot>) -> anyhow::Result<Tally> {
        self.stubborn_volley(shots, 0).await
    }

    /// The same by clients that try again.
    pub(crate) async fn stubborn_volley(
        &mut self,
        shots: Vec<Shot>,
        retries: u32,
    ) -> anyhow::Result<Tally> {
        let mut flying = JoinSet::new();
        let began = Instant::now();
        for (number, shot) in shots.into_iter().enumerate() {
            let base = self.members[number % self.members.len()].url.clone();
            let http = self.http.clone();
            flying.spawn(async move { shot.fire(&http, &base, retries).await });
        }
        self.gather(flying, began, |answer, answers| answers.push(answer))
            .await
    }

    /// As many clients as processes, each with one process, and one request after the other.
    pub(crate) async fn in_rows(&mut self, each: usize, shot: &Shot) -> anyhow::Result<Tally> {
        let mut flying = JoinSet::new();
        let began = Instant::now();
        for member in &self.members {
            let (base, http, shot) = (member.url.clone(), self.http.clone(), shot.clone());
            flying.spawn(async move {
                let mut answers = Vec::new();
                for _ in 0..each {
                    answers.push(shot.fire(&http, &base, 0).await?);
                }
                anyhow::Ok(answers)
            });
        }
        self.gather(flying, began, |row, answers| answers.extend(row))
            .await
    }

    async fn gather<T: Send + 'static>(
        &mut self,
        mut flying: JoinSet<anyhow::Result<T>>,
        began: Instant,
        add: impl Fn(T, &mut Vec<Answer>),
    ) -> anyhow::Result<Tally> {
        let mut answers = Vec::new();
        while let Some(landed) = flying.join_next().await {
            match landed? {
                Ok(answer) => add(answer, &mut answers),
                Err(error) => {
                    return Err(match self.inquire().await {
                        Some(death) => error.context(death),
                        None => error,
                    });
                }
            }
        }
        Ok(Tally {
            answers,
            took: began.elapsed(),
        })
    }
}

impl Tally {
    pub(crate) fn sent(&self) -> u64 {
        self.answers.len() as u64
    }

    pub(crate) fn ok(&self) -> u64 {
        let ok = self
            .answers
            .iter()
            .filter(|answer| answer.refused.is_none());
        ok.count() as u64
    }

    pub(crate) fn failed(&self) -> u64 {
        self.sent() - self.ok()
    }

    /// In percent.
    pub(crate) fn error_rate(&self) -> f64 {
        100.0 * self.failed() as f64 / self.sent().max(1) as f64
    }

    /// Successes in a second.
    pub(crate) fn per_second(&self) -> f64 {
        self.ok() as f64 / self.took.as_secs_f64().max(1e-9)
    }

    pub(crate) fn refusals(&self) -> BTreeMap<&str, u64> {
        let mut words = BTreeMap::new();
        for word in self
            .answers
            .iter()
            .filter_map(|answer| answer.refused.as_deref())
        {
            *words.entry(word).or_default() += 1;
        }
        words
    }

    /// How long callers waited for their answers, good or bad, in microseconds.
    pub(crate) fn waits(&self) -> anyhow::Result<Histogram<u64>> {
        let mut waits = Histogram::new(3)?;
        for answer in &self.answers {
            waits.record(answer.took.as_micros() as u64)?;
        }
        Ok(waits)
    }
}
