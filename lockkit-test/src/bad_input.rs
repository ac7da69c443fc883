//! Tables of bad input: each case has a name, gives one call what it cannot serve, and says what must come of it.
//!
//! A case is a task of its own on a runtime of threads. None may panic unless it says so, none may take longer than
//! five seconds, and none may leave a task behind, or whatever else the [`probe`](Cases::probe) of its table looks for.
//! A table says how many cases it has, so that none goes missing.
//!
//! ```
//! use lockkit_test::{bad_input, case};
//!
//! bad_input::check(2, async |cases| {
//!     case!(cases, "number, a letter", "x".parse::<u8>() => Err(_));
//!     cases.panics("number, divided by nothing", "divide by zero", async {
//!         let nothing = "0".parse::<u8>().unwrap();
//!         std::hint::black_box(7 / nothing);
//!     });
//! });
//! ```

use std::any::Any;
use std::collections::HashSet;
use std::pin::Pin;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::soak::Tally;

/// How long a case may take.
pub const LIMIT: Duration = Duration::from_secs(5);

type Body = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
type Probe = Box<dyn Fn() -> Body>;

/// A table, while it is filled.
pub struct Cases {
    all: Vec<Case>,
    probes: Vec<Probe>,
    kept: Vec<Box<dyn Any>>,
    limit: Duration,
    count_tasks: bool,
}

struct Case {
    name: String,
    /// What its panic says, if it is to end in one.
    panics: Option<&'static str>,
    body: Body,
}

/// Adds a case: `case!(cases, "name", answer => pattern)`, where the answer is an expression that may await, or a block
/// of several, and is `Debug`. It is evaluated when the case's turn comes, and owns what it names.
#[macro_export]
macro_rules! case {
    ($cases:expr, $name:expr, $answer:expr => $pattern:pat $(if $guard:expr)?) => {
        $cases.add($name, async move {
            let answer = $answer;
            #[allow(unreachable_patterns, reason = "some patterns match all that there is")]
            match answer {
                $pattern $(if $guard)? => Ok(()),
                other => Err(format!("{other:?}, where {} is due", stringify!($pattern))),
            }
        })
    };
}

impl Cases {
    /// Adds a case, whose error is what is wrong. Mostly by [`case!`](crate::case).
    ///
    /// # Panics
    /// When there is one of that name.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        body: impl Future<Output = Result<(), String>> + Send + 'static,
    ) {
        self.push(name.into(), None, Box::pin(body));
    }

    /// Adds a case that is documented to panic, with a text that has this in it.
    ///
    /// # Panics
    /// When there is one of that name.
    pub fn panics(
        &mut self,
        name: impl Into<String>,
        text: &'static str,
        body: impl Future<Output = ()> + Send + 'static,
    ) {
        let body = async move {
            body.await;
            Ok(())
        };
        self.push(name.into(), Some(text), Box::pin(body));
    }

    /// Looks, after each case, for what it may have left; the error says what there is.
    pub fn probe<F>(&mut self, probe: impl Fn() -> F + 'static)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.probes.push(Box::new(move || Box::pin(probe())));
    }

    /// Keeps something until all cases have run, a server for one.
    pub fn keep(&mut self, value: impl Any) {
        self.kept.push(Box::new(value));
    }

    /// Does not count the tasks that are left: what the cases share has tasks of its own, which come and go.
    pub fn with_tasks_of_their_own(&mut self) {
        self.count_tasks = false;
    }

    /// Bounds each case by this instead of [`LIMIT`].
    pub fn limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    fn push(&mut self, name: String, panics: Option<&'static str>, body: Body) {
        assert!(
            self.all.iter().all(|case| case.name != name),
            "two cases are called {name:?}"
        );
        self.all.push(Case { name, panics, body });
    }

    async fn run(self) -> Vec<String> {
        let mut wrong = Vec::new();
        for Case { name, panics, body } in self.all {
            let before = Handle::current().metrics().num_alive_tasks();
            let mut task = tokio::spawn(body);
            let Some(ended) = within(self.limit, &mut task).await else {
                wrong.push(format!("{name}: it hangs"));
                // It may be in the way of all that follow.
                break;
            };
            match (ended, panics) {
                (Ok(Ok(())), None) => {}
                (Ok(Ok(())), Some(text)) => {
                    wrong.push(format!("{name}: no panic, where {text:?} is due"));
                }
                (Ok(Err(what)), _) => wrong.push(format!("{name}: {what}")),
                (Err(panic), due) => {
                    let text = text_of(panic);
                    if due.is_none_or(|due| !text.contains(due)) {
                        wrong.push(format!("{name}: it panics: {text}"));
                    }
                }
            }
            if self.count_tasks && !tasks_end(before, self.limit).await {
                wrong.push(format!("{name}: a task of it is left"));
            }
            for probe in &self.probes {
                if let Err(left) = probe().await {
                    wrong.push(format!("{name}: it leaves {left}"));
                }
            }
        }
        wrong
    }
}

/// Runs a table of so many cases, and says what is wrong.
///
/// # Errors
/// A line for each thing that is wrong.
///
/// # Panics
/// When the table cannot be filled: two names are the same, or what the cases need is not to be had.
pub fn run(total: usize, fill: impl AsyncFnOnce(&mut Cases)) -> Result<(), Vec<String>> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime");
    let wrong = runtime.block_on(async {
        let mut cases = Cases {
            all: Vec::new(),
            probes: Vec::new(),
            kept: Vec::new(),
            limit: LIMIT,
            count_tasks: true,
        };
        fill(&mut cases).await;
        let count = cases.all.len();
        let groups: HashSet<_> = cases.all.iter().map(|case| group(&case.name)).collect();
        println!("bad input: {count} cases of {} things", groups.len());
        let mut wrong = cases.run().await;
        if count != total {
            wrong.push(format!("{count} cases, where {total} are due"));
        }
        wrong
    });
    // Without waiting for a case that hangs.
    runtime.shutdown_background();
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// Runs a table of so many cases, all of which must be as they say.
///
/// # Panics
/// With a line for each thing that is wrong.
pub fn check(total: usize, fill: impl AsyncFnOnce(&mut Cases)) {
    if let Err(wrong) = run(total, fill) {
        panic!("{} things are wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
    let tally = Tally {
        pattern: "bad input",
        operations: total as u64,
        ..Tally::default()
    };
    tally.print();
}

/// What a case is about: the words of its name before the comma.
fn group(name: &str) -> String {
    name.split(',').next().unwrap_or(name).to_owned()
}

/// The end of a task, or `None` when it does not come. The limit is of many naps, each of which is late on a machine
/// that is late with everything.
async fn within<T>(
    limit: Duration,
    task: &mut JoinHandle<T>,
) -> Option<Result<T, tokio::task::JoinError>> {
    const NAPS: u32 = 100;
    let patience = async {
        for _ in 0..NAPS {
            sleep(limit / NAPS).await;
        }
    };
    tokio::select! {
        ended = task => Some(ended),
        () = patience => None,
    }
}

async fn tasks_end(before: usize, limit: Duration) -> bool {
    let metrics = Handle::current().metrics();
    let mut wait = tokio::spawn(async move {
        while metrics.num_alive_tasks() > before + 1 {
            sleep(Duration::from_millis(1)).await;
        }
    });
    let ended = within(limit, &mut wait).await.is_some();
    wait.abort();
    ended
}

fn text_of(error: tokio::task::JoinError) -> String {
    let Ok(payload) = error.try_into_panic() else {
        return "cancelled".to_owned();
    };
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload
            .downcast::<&str>()
            .map_or_else(|_| "(no text)".to_owned(), |text| (*text).to_owned()),
    }
}
