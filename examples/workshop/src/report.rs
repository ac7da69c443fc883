//! What the run came to: the figures, the verdict over them, and how both are shown.

use std::fmt::Write as _;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use lockkit_test::total_queue;
use serde::Serialize;

/// Everything that was counted.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    pub(crate) seed: u64,
    pub(crate) load_tests: Vec<LoadTest>,
    /// Tasks of the main job, as asked for.
    pub(crate) asked: u64,
    /// Tasks that were put in: those, the load tests', and those of the locking transaction.
    pub(crate) tasks: u64,
    /// Results in the database.
    pub(crate) done: u64,
    pub(crate) first_results: Vec<String>,
    /// Completions that a worker saw accepted, and that left no result.
    pub(crate) vanished: u64,
    /// Results that no living worker has reported.
    pub(crate) unreported: u64,
    /// Results of another task.
    pub(crate) wrong_results: u64,
    /// What is left in the queue, which should be nothing.
    pub(crate) active: u64,
    pub(crate) live: u64,
    pub(crate) dead: Vec<String>,
    /// Calls of the store that found the database locked until their patience ended.
    pub(crate) lock_errors: u64,
    /// Calls of the store that failed otherwise; each was tried again.
    pub(crate) store_errors: u64,
    pub(crate) workers: Vec<WorkerFigures>,
    pub(crate) nemesis: Option<NemesisFigures>,
    pub(crate) checker: total_queue::Report,
    /// What the database says of its own condition, where it can be asked.
    pub(crate) integrity: Option<String>,
    /// What can be locked for all.
    pub(crate) whole: &'static str,
    /// Whether others have used the database too.
    pub(crate) shared: bool,
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    pub wait_p50_ms: f64,
    pub wait_p99_ms: f64,
}

/// Some tasks, put in at once.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LoadTest {
    pub(crate) tasks: u64,
    pub(crate) ms: u64,
}

/// One worker: by the store's statistics, unless it says otherwise.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WorkerFigures {
    pub(crate) name: String,
    pub(crate) fate: String,
    pub(crate) sessions: u64,
    /// Leases that it lost, by its own count.
    pub(crate) lost: u64,
    pub(crate) done: u64,
    /// Results in the file that bear its name.
    pub(crate) results: u64,
    /// Jobs done by its own count; unknown of a killed one.
    pub(crate) counted: Option<u64>,
    /// Of how many more it may not have heard.
    pub(crate) unheard: u64,
    pub(crate) retried: u64,
    pub(crate) dead: u64,
    pub(crate) given_back: u64,
    /// Acknowledgements that it offered and that were refused, by its own reports.
    pub(crate) stale: u64,
    pub(crate) busy_us: u64,
    /// The same by its results.
    pub(crate) results_busy_us: u64,
}

/// What was done to the workers, and what came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NemesisFigures {
    pub(crate) killed: Struck,
    pub(crate) paused: Struck,
    pub(crate) paused_ms: u64,
    /// Refused between the end of the pause and the lock.
    pub(crate) stale_refused_after_pause: u64,
    /// Done by the paused worker between the end of the pause and the lock.
    pub(crate) done_after_pause: u64,
    pub(crate) locker: String,
    pub(crate) locked_ms: u64,
    pub(crate) all_back_ms: u64,
    /// Jobs that the transaction put in that locked the file, and how many of them are done.
    pub(crate) inside: u64,
    pub(crate) inside_done: u64,
    /// Connections that were ended, where that can be done.
    pub(crate) cut: Option<u64>,
}

/// What a worker held when it was struck.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Struck {
    pub(crate) worker: String,
    pub(crate) running: u64,
    pub(crate) unsettled: u64,
}

/// All that is wrong, in words.
pub(crate) fn problems(figures: &Figures) -> Vec<String> {
    let mut problems = Vec::new();
    let mut demand = |holds: bool, otherwise: String| {
        if !holds {
            problems.push(otherwise);
        }
    };
    let checker = &figures.checker;
    for (fault, jobs) in &checker.faults {
        let first: Vec<_> = jobs.iter().take(8).map(u64::to_string).collect();
        demand(
            false,
            format!("{fault}: {} jobs, first {}", jobs.len(), first.join(" ")),
        );
    }
    for (what, counted, allowed) in [
        (
            "runs that were repeated",
            checker.duplicate_runs,
            checker.allowed.duplicate_runs,
        ),
        (
            "attempts that nobody saw",
            checker.unseen_attempts,
            checker.allowed.unseen_attempts,
        ),
    ] {
        demand(
            counted <= allowed,
            format!("{what}: {counted}, where lost leases explain {allowed}"),
        );
    }
    demand(
        figures.done == figures.tasks,
        format!("{} tasks left {} results", figures.tasks, figures.done),
    );
    for (n, what) in [
        (figures.vanished, "accepted completions have left no result"),
        (figures.wrong_results, "results belong to another task"),
        (figures.active, "jobs are still active"),
        (figures.live, "jobs are still in the queue"),
        (figures.dead.len() as u64, "jobs are dead"),
        (figures.lock_errors, "lock errors have reached the program"),
    ] {
        demand(n == 0, format!("{n} {what}"));
    }
    // Those of which no living worker has heard.
    let unheard = figures.workers.iter().filter_map(|worker| {
        let counted = worker.counted?;
        Some(worker.done.saturating_sub(counted))
    });
    demand(
        figures.unreported == unheard.sum::<u64>(),
        format!(
            "{} results were reported by no worker, and not missed by any",
            figures.unreported
        ),
    );
    statistics(figures, &mut demand);
    if let Some(integrity) = &figures.integrity {
        demand(integrity == "ok", format!("integrity check: {integrity}"));
    }
    if let Some(nemesis) = &figures.nemesis {
        struck(figures, nemesis, &mut demand);
    }
    problems
}

/// Whether the store's statistics, the results and the workers' own counts agree.
fn statistics(figures: &Figures, demand: &mut impl FnMut(bool, String)) {
    let total: u64 = figures.workers.iter().map(|worker| worker.done).sum();
    demand(
        total == figures.tasks,
        format!(
            "statistics: {total} done in all, for {} tasks",
            figures.tasks
        ),
    );
    for worker in &figures.workers {
        let WorkerFigures {
            name,
            done,
            results,
            ..
        } = worker;
        demand(
            done == results,
            format!("statistics: {name} has {done} done, and {results} results bear its name"),
        );
        if let Some(counted) = worker.counted {
            demand(
                counted <= *done && *done <= counted + worker.unheard,
                format!("statistics: {name} has {done} done, and counted {counted} itself"),
            );
        }
        let failed = worker.retried + worker.dead;
        demand(
            failed == 0,
            format!("statistics: {name} has {failed} failures, and no task fails"),
        );
        // A result's time is cut to whole microseconds, their sum only once for each batch.
        demand(
            worker.busy_us.abs_diff(worker.results_busy_us) <= *done,
            format!(
                "statistics: {name} was busy for {} µs, and its results took {}",
                worker.busy_us, worker.results_busy_us
            ),
        );
    }
}

/// Whether the nemesis did what it was to do: a run without trouble proves nothing.
fn struck(figures: &Figures, nemesis: &NemesisFigures, demand: &mut impl FnMut(bool, String)) {
    for (what, struck) in [("killed", &nemesis.killed), ("paused", &nemesis.paused)] {
        demand(
            struck.running > 0 && struck.unsettled > 0,
            format!("{} was {what} with empty hands", struck.worker),
        );
    }
    let paused = &nemesis.paused.worker;
    // What others do to the database may leave a worker no time for either.
    demand(
        figures.shared || nemesis.stale_refused_after_pause > 0,
        format!("no stale write of {paused} was offered and refused"),
    );
    demand(
        figures.shared || nemesis.done_after_pause > 0,
        format!("{paused} has done nothing after its pause"),
    );
    for worker in &figures.workers {
        let least = match &worker.name {
            name if *name == nemesis.killed.worker => continue,
            name if name == paused => 2,
            _ => 1,
        };
        demand(
            // Who shares the database may lock it once more, even at the end.
            worker.lost >= least && worker.sessions > least,
            format!(
                "{} lost {} leases and had {} sessions, where it should have lost {least} and come \
                 back",
                worker.name, worker.lost, worker.sessions
            ),
        );
    }
    demand(nemesis.cut != Some(0), "no connection was ended".to_owned());
    demand(
        nemesis.inside_done == nemesis.inside,
        format!(
            "of {} jobs of the interrupted transaction {} are done",
            nemesis.inside, nemesis.inside_done
        ),
    );
}

/// One JSON object: the figures, the problems and the verdict.
pub(crate) fn json(figures: &Figures, problems: &[String]) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Report<'a> {
        ok: bool,
        problems: &'a [String],
        #[serde(flatten)]
        figures: &'a Figures,
    }
    serde_json::to_string(&Report {
        ok: problems.is_empty(),
        problems,
        figures,
    })
}

/// The figures for people.
pub(crate) fn tables(figures: &Figures) -> String {
    let mut text = format!("{}\n{}\n", totals(figures), workers(figures));
    let _ = writeln!(text, "{} tasks completed; the first of them:", figures.done);
    for result in &figures.first_results {
        let _ = writeln!(text, "  {result}");
    }
    for (at, list) in [
        ("active", figures.active),
        ("dead", figures.dead.len() as u64),
    ] {
        let _ = writeln!(text, "{at} tasks: {list}");
    }
    for dead in &figures.dead {
        let _ = writeln!(text, "  {dead}");
    }
    text.push_str(&figures.checker.to_string());
    text
}

fn totals(figures: &Figures) -> Table {
    let checker = &figures.checker;
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY);
    for test in &figures.load_tests {
        let what = format!("load test, {} tasks at once", test.tasks);
        table.add_row([what, format!("{} ms", test.ms)]);
    }
    table.add_row([
        "tasks done",
        &format!("{} of {}", figures.done, figures.tasks),
    ]);
    table.add_row(["runs begun", &checker.runs.to_string()]);
    table.add_row([
        "stale acks offered, refused",
        &format!("{}, {}", checker.stale_offered, checker.stale_refused),
    ]);
    table.add_row(["lock errors seen", &figures.lock_errors.to_string()]);
    table.add_row(["other store errors", &figures.store_errors.to_string()]);
    if let Some(integrity) = &figures.integrity {
        table.add_row(["integrity check", integrity]);
    }
    if figures.shared {
        table.add_row(["used by others too", "yes"]);
    }
    table.add_row(["main job", &format!("{:.1} s", figures.seconds)]);
    table.add_row(["throughput", &format!("{:.0} tasks/s", figures.per_second)]);
    table.add_row([
        "wait from enqueue to start, p50, p99",
        &format!(
            "{:.1} ms, {:.1} ms",
            figures.wait_p50_ms, figures.wait_p99_ms
        ),
    ]);
    if let Some(nemesis) = &figures.nemesis {
        table.add_row([
            "paused past its lease",
            &format!(
                "{} for {} ms: {} late acks refused, then {} tasks done",
                nemesis.paused.worker,
                nemesis.paused_ms,
                nemesis.stale_refused_after_pause,
                nemesis.done_after_pause
            ),
        ]);
        table.add_row([
            &format!("{} locked for all", figures.whole),
            &format!(
                "by {} for {} ms: all back {} ms later, its {} tasks done",
                nemesis.locker, nemesis.locked_ms, nemesis.all_back_ms, nemesis.inside_done
            ),
        ]);
        if let Some(cut) = nemesis.cut {
            table.add_row(["connections ended at once", &cut.to_string()]);
        }
    }
    table
}

fn workers(figures: &Figures) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_header([
        "worker",
        "done",
        "retried",
        "dead",
        "given back",
        "busy",
        "mean",
        "sessions",
        "leases lost",
        "stale",
        "fate",
    ]);
    for worker in &figures.workers {
        let busy = worker.busy_us as f64 / 1e6;
        table.add_row([
            worker.name.clone(),
            worker.done.to_string(),
            worker.retried.to_string(),
            worker.dead.to_string(),
            worker.given_back.to_string(),
            format!("{busy:.1} s"),
            format!("{:.1} ms", busy * 1000.0 / worker.done.max(1) as f64),
            worker.sessions.to_string(),
            worker.lost.to_string(),
            worker.stale.to_string(),
            worker.fate.clone(),
        ]);
    }
    for column in 1..10 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lockkit_test::total_queue::{Allowed, End, Fault, check};

    use super::*;

    fn worker(name: &str, sessions: u64, lost: u64, done: u64) -> WorkerFigures {
        WorkerFigures {
            name: name.to_owned(),
            fate: String::new(),
            sessions,
            lost,
            done,
            results: done,
            counted: (name != "w1").then_some(done),
            unheard: 0,
            retried: 0,
            dead: 0,
            given_back: 0,
            stale: 0,
            busy_us: 10_000 * done,
            results_busy_us: 10_000 * done,
        }
    }

    fn struck(worker: &str) -> Struck {
        Struck {
            worker: worker.to_owned(),
            running: 3,
            unsettled: 2,
        }
    }

    /// A run in which all went well.
    fn good() -> Figures {
        Figures {
            seed: 1,
            load_tests: vec![LoadTest { tasks: 5, ms: 20 }],
            asked: 20,
            tasks: 30,
            done: 30,
            first_results: Vec::new(),
            vanished: 0,
            unreported: 0,
            wrong_results: 0,
            active: 0,
            live: 0,
            dead: Vec::new(),
            lock_errors: 0,
            store_errors: 0,
            workers: vec![
                worker("w1", 1, 0, 5),
                worker("w2", 3, 2, 10),
                worker("w3", 2, 1, 15),
            ],
            nemesis: Some(NemesisFigures {
                killed: struck("w1"),
                paused: struck("w2"),
                paused_ms: 2000,
                stale_refused_after_pause: 2,
                done_after_pause: 4,
                locker: "w3".to_owned(),
                locked_ms: 3000,
                all_back_ms: 50,
                inside: 5,
                inside_done: 5,
                cut: Some(12),
            }),
            checker: check([], &End::default(), Allowed::default()),
            integrity: Some("ok".to_owned()),
            whole: "file",
            shared: false,
            seconds: 1.0,
            per_second: 20.0,
            wait_p50_ms: 1.0,
            wait_p99_ms: 2.0,
        }
    }

    fn nemesis(figures: &mut Figures) -> &mut NemesisFigures {
        figures.nemesis.as_mut().expect("there was one")
    }

    fn fault(figures: &mut Figures, fault: Fault) {
        figures.checker.faults.insert(fault, BTreeSet::from([7]));
    }

    #[test]
    fn a_good_run_has_no_problem() {
        assert_eq!(problems(&good()), Vec::<String>::new());
    }

    /// A way to make the figures wrong.
    type Doctor = fn(&mut Figures);

    #[test]
    fn each_wrong_figure_is_a_problem() {
        let doctored: &[(&str, Doctor)] = &[
            ("lost: 1 jobs, first 7", |f| fault(f, Fault::Lost)),
            ("accepted twice: 1 jobs", |f| fault(f, Fault::AcceptedTwice)),
            ("out of nowhere: 1 jobs", |f| fault(f, Fault::OutOfNowhere)),
            ("runs that were repeated: 1", |f| {
                f.checker.duplicate_runs = 1;
            }),
            ("attempts that nobody saw: 1", |f| {
                f.checker.unseen_attempts = 1;
            }),
            ("30 tasks left 29 results", |f| f.done = 29),
            ("1 accepted completions have left no result", |f| {
                f.vanished = 1;
            }),
            ("1 results were reported by no worker", |f| f.unreported = 1),
            ("1 results belong to another task", |f| f.wrong_results = 1),
            ("1 jobs are still active", |f| f.active = 1),
            ("1 jobs are still in the queue", |f| f.live = 1),
            ("1 jobs are dead", |f| f.dead.push("job 7: why".to_owned())),
            ("1 lock errors", |f| f.lock_errors = 1),
            ("31 done in all, for 30 tasks", |f| f.workers[0].done += 1),
            ("w1 has 5 done, and 6 results", |f| {
                f.workers[0].results += 1;
            }),
            ("w2 has 10 done, and counted 11", |f| {
                f.workers[1].counted = Some(11);
            }),
            ("w2 has 10 done, and counted 9", |f| {
                f.workers[1].counted = Some(9);
                f.unreported = 1;
            }),
            ("w2 has 1 failures", |f| f.workers[1].retried = 1),
            ("w2 has 1 failures", |f| f.workers[1].dead = 1),
            ("w3 was busy for", |f| f.workers[2].busy_us += 16),
            ("integrity check: page 7", |f| {
                f.integrity = Some("page 7".to_owned());
            }),
            ("w1 was killed with empty hands", |f| {
                nemesis(f).killed.running = 0;
            }),
            ("w1 was killed with empty hands", |f| {
                nemesis(f).killed.unsettled = 0;
            }),
            ("w2 was paused with empty hands", |f| {
                nemesis(f).paused.running = 0;
            }),
            ("w2 was paused with empty hands", |f| {
                nemesis(f).paused.unsettled = 0;
            }),
            ("no stale write of w2", |f| {
                nemesis(f).stale_refused_after_pause = 0;
            }),
            ("w2 has done nothing after", |f| {
                nemesis(f).done_after_pause = 0;
            }),
            ("w2 lost 1 leases", |f| f.workers[1].lost = 1),
            ("w3 lost 0 leases", |f| f.workers[2].lost = 0),
            ("w3 lost 1 leases and had 1 sessions", |f| {
                f.workers[2].sessions = 1;
            }),
            ("no connection was ended", |f| nemesis(f).cut = Some(0)),
            ("of 5 jobs of the interrupted transaction 4", |f| {
                nemesis(f).inside_done = 4;
            }),
        ];
        for (expected, doctor) in doctored {
            let mut figures = good();
            doctor(&mut figures);
            let problems = problems(&figures);
            assert!(
                problems.iter().any(|problem| problem.contains(expected)),
                "{expected}: {problems:?}"
            );
        }
    }

    #[test]
    fn without_a_nemesis_nothing_is_demanded_of_it() {
        let mut figures = good();
        figures.nemesis = None;
        for worker in &mut figures.workers {
            (worker.sessions, worker.lost) = (1, 0);
        }
        assert_eq!(problems(&figures), Vec::<String>::new());
    }

    #[test]
    fn a_batch_that_its_worker_could_not_hear_of_is_no_problem() {
        let mut figures = good();
        let worker = &mut figures.workers[1];
        (worker.counted, worker.unheard) = (Some(8), 2);
        figures.unreported = 2;
        assert_eq!(problems(&figures), Vec::<String>::new());
    }

    #[test]
    fn the_json_carries_the_verdict_and_the_figures() {
        let json = json(&good(), &["why".to_owned()]).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["ok"], false);
        assert_eq!(json["problems"][0], "why");
        assert_eq!(json["workers"][2]["done"], 15);
        assert_eq!(json["nemesis"]["inside_done"], 5);
    }
}
