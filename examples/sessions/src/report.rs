//! What the run came to: the figures, what was promised, and how both are shown.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::ledger::Verdict;

/// Everything that was counted.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) seed: u64,
    pub(crate) clients: u64,
    pub(crate) instances: u64,
    pub(crate) seconds: f64,
    pub(crate) asked: u64,
    pub(crate) acknowledged: u64,
    pub(crate) acknowledged_again: u64,
    pub(crate) acknowledged_per_second: f64,
    pub(crate) append_p50_ms: u64,
    pub(crate) append_p99_ms: u64,
    pub(crate) reads: u64,
    pub(crate) read_p50_ms: u64,
    pub(crate) read_p99_ms: u64,
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    pub(crate) unasked: u64,
    pub(crate) queue: u64,
    pub(crate) queue_lost: u64,
    pub(crate) queue_twice: u64,
    pub(crate) queue_unasked: u64,
    pub(crate) queue_alone: u64,
    pub(crate) older: u64,
    pub(crate) own_missing: u64,
    pub(crate) shown_otherwise: u64,
    pub(crate) unkept: u64,
    pub(crate) cache_hits: u64,
    pub(crate) cache_misses: u64,
    pub(crate) cache_too_old: u64,
    pub(crate) database_reads: u64,
    pub(crate) tries: u64,
    pub(crate) conflicts: u64,
    pub(crate) locked: u64,
    pub(crate) activity_noted: u64,
    pub(crate) activity_batches: u64,
    pub(crate) activity_rows: u64,
    pub(crate) unavailable: u64,
    pub(crate) slowest_refusal_ms: u64,
    pub(crate) unsent: u64,
    /// Requests whose answer was lost, or said that it may be done or not.
    pub(crate) unknown: u64,
    /// Messages that were never acknowledged: there, and not there.
    pub(crate) unknown_kept: u64,
    pub(crate) unknown_not_kept: u64,
    pub(crate) switch_turns: u64,
    pub(crate) switch_as_told: bool,
    pub(crate) idle: u64,
    pub(crate) idle_ended: u64,
    pub(crate) used_ended: u64,
    pub(crate) strange: Vec<String>,
    pub(crate) ended_well: bool,
    pub(crate) backup: Backup,
    pub(crate) outage: Option<Outage>,
    pub(crate) kill: Option<Kill>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Backup {
    pub(crate) sessions: u64,
    pub(crate) messages: u64,
    pub(crate) queue: u64,
    pub(crate) ms: u64,
    /// Appends that were acknowledged before it began, and while it was made.
    pub(crate) before: u64,
    pub(crate) meanwhile: u64,
    pub(crate) missing: u64,
    pub(crate) wrong: u64,
    /// Entries of the queue without a message.
    pub(crate) queue_alone: u64,
    /// Sessions that are not what the real ones began with.
    pub(crate) not_prefix: u64,
}

/// The time without a database.
#[derive(Debug, Serialize)]
pub(crate) struct Outage {
    /// A crash, or nobody was let in.
    pub(crate) crash: bool,
    pub(crate) ms: u64,
    pub(crate) unavailable: u64,
    pub(crate) acknowledged: u64,
    pub(crate) back_ms: u64,
}

/// The end of an instance.
#[derive(Debug, Serialize)]
pub(crate) struct Kill {
    pub(crate) instance: u64,
    pub(crate) back_ms: u64,
    pub(crate) acknowledged_since: u64,
}

/// Something that was promised, and what was seen of it.
#[derive(Debug, Serialize)]
pub(crate) struct Promise {
    pub(crate) what: &'static str,
    pub(crate) seen: String,
    pub(crate) ok: bool,
}

impl Figures {
    pub(crate) fn verdict(&mut self, verdict: &Verdict) {
        let count = |ids: &Vec<String>| ids.len() as u64;
        self.lost = count(&verdict.lost);
        self.twice = count(&verdict.twice);
        self.unasked = count(&verdict.unasked);
        self.queue_lost = count(&verdict.queue_lost);
        self.queue_twice = count(&verdict.queue_twice);
        self.queue_unasked = count(&verdict.queue_unasked);
        self.queue_alone = count(&verdict.queue_alone);
        self.unkept = count(&verdict.unkept);
        (self.unknown_kept, self.unknown_not_kept) =
            (verdict.unknown.0 as u64, verdict.unknown.1 as u64);
    }

    fn hit_rate(&self) -> f64 {
        let all = self.cache_hits + self.cache_misses + self.cache_too_old;
        100.0 * self.cache_hits as f64 / all.max(1) as f64
    }
}

/// What was promised.
#[expect(clippy::too_many_lines, reason = "one after the other")]
pub(crate) fn promises(figures: &Figures) -> Vec<Promise> {
    let f = figures;
    let mut promises = Vec::new();
    let mut promise = |what, ok, seen| promises.push(Promise { what, seen, ok });
    promise(
        "no acknowledged append is lost",
        f.lost == 0 && f.acknowledged > 0,
        format!(
            "{} acknowledged of {} sent; {} lost",
            f.acknowledged, f.asked, f.lost
        ),
    );
    promise(
        "none is there twice, and none that nobody sent",
        f.twice == 0 && f.unasked == 0,
        format!(
            "{} twice, {} strangers; {} sent again and known",
            f.twice, f.unasked, f.acknowledged_again
        ),
    );
    promise(
        "the queue of manual replies has each of its own once",
        f.queue_lost + f.queue_twice + f.queue_unasked + f.queue_alone == 0 && f.queue > 0,
        format!(
            "{} entries; {} lost, {} twice, {} strangers, {} without a message",
            f.queue, f.queue_lost, f.queue_twice, f.queue_unasked, f.queue_alone
        ),
    );
    promise(
        "no client is shown less than it has seen",
        f.older + f.own_missing + f.shown_otherwise + f.unkept == 0 && f.reads > 0,
        format!(
            "{} reads; {} older, {} without the client's own, {} shown otherwise",
            f.reads,
            f.older,
            f.own_missing,
            f.shown_otherwise + f.unkept
        ),
    );
    promise(
        "reads come from a cache",
        f.cache_hits > 0,
        format!(
            "{:.1} % hits; {} were too old for their client, {} reads of the database",
            f.hit_rate(),
            f.cache_too_old,
            f.database_reads
        ),
    );
    promise(
        "conflicts are counted, and nobody loses by them",
        f.tries > 0,
        format!(
            "{} in {} tries; {} updates under a lock",
            f.conflicts, f.tries, f.locked
        ),
    );
    promise(
        "last activities are written in batches",
        f.activity_batches > 0 && (1..=f.activity_noted).contains(&f.activity_rows),
        format!(
            "{} noted; {} rows in {} statements",
            f.activity_noted, f.activity_rows, f.activity_batches
        ),
    );
    promise(
        "idle sessions end",
        f.idle_ended == f.idle,
        format!("{} of {}; {} in use", f.idle_ended, f.idle, f.used_ended),
    );
    promise(
        "a switch is as it was last turned",
        f.switch_as_told,
        format!("{} turns", f.switch_turns),
    );
    let backup = &f.backup;
    promise(
        "a backup under load restores to a consistent state",
        backup.missing + backup.wrong + backup.queue_alone + backup.not_prefix == 0,
        format!(
            "{} sessions, {} messages, {} queued in {} ms, {} appends meanwhile; of {} acknowledged before\n\
             {} missing, {} strangers or doubles, {} queued without a message, {} sessions no prefix",
            backup.sessions,
            backup.messages,
            backup.queue,
            backup.ms,
            backup.meanwhile,
            backup.before,
            backup.missing,
            backup.wrong,
            backup.queue_alone,
            backup.not_prefix
        ),
    );
    if let Some(outage) = &f.outage {
        promise(
            "without its database the service says so",
            outage.acknowledged == 0 && outage.unavailable > 0,
            format!(
                "{} for {} ms: {} answers 503, {} acknowledged; all well {} ms later",
                if outage.crash {
                    "crashed, down"
                } else {
                    "shut"
                },
                outage.ms,
                outage.unavailable,
                outage.acknowledged,
                outage.back_ms
            ),
        );
    }
    if let Some(kill) = &f.kill {
        promise(
            "an instance may be killed",
            kill.acknowledged_since > 0,
            format!(
                "instance {} was back after {} ms; {} appends acknowledged since",
                kill.instance, kill.back_ms, kill.acknowledged_since
            ),
        );
    }
    promise(
        "what is not known is said to be unknown",
        true,
        format!(
            "{} answers lost or unknown, {} requests not sent; never acknowledged: {} kept, {} not",
            f.unknown, f.unsent, f.unknown_kept, f.unknown_not_kept
        ),
    );
    promise(
        "nothing else is ever answered, and SIGTERM ends well",
        f.strange.is_empty() && f.ended_well,
        match f.strange.first() {
            None => "nothing strange".to_owned(),
            Some(first) => format!("{} strange answers: {first}", f.strange.len()),
        },
    );
    promises
}

/// One JSON object: the verdict, the promises and the figures.
pub(crate) fn json(figures: &Figures, promises: &[Promise]) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Report<'a> {
        ok: bool,
        promises: &'a [Promise],
        #[serde(flatten)]
        figures: &'a Figures,
    }
    let ok = promises.iter().all(|promise| promise.ok);
    serde_json::to_string_pretty(&Report {
        ok,
        promises,
        figures,
    })
}

/// The figures for people.
pub(crate) fn table(figures: &Figures, promises: &[Promise]) -> String {
    let mut table = Table::new();
    table
        .load_preset(UTF8_BORDERS_ONLY)
        .set_header(["promised", "seen", ""]);
    for promise in promises {
        let word = if promise.ok { "ok" } else { "FAILED" };
        table.add_row([promise.what, &promise.seen, word]);
    }
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let f = figures;
    format!(
        "{table}\n{} clients, {} instances, {:.1} s: {:.0} appends/s (p50 {} ms, p99 {} ms), \
         {:.0} reads/s (p50 {} ms, p99 {} ms), {} answers 503, the slowest after {} ms",
        f.clients,
        f.instances,
        f.seconds,
        f.acknowledged_per_second,
        f.append_p50_ms,
        f.append_p99_ms,
        f.reads as f64 / f.seconds,
        f.read_p50_ms,
        f.read_p99_ms,
        f.unavailable,
        f.slowest_refusal_ms
    )
}
