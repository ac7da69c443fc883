//! What a model leaves open, answered in every way.
//!
//! loom branches on schedules and on what an atomic load may see, and on nothing else. So the answers are fixed
//! for a whole exploration, and the exploration is repeated with the next ones until there are none left:
//! whatever schedule asks whatever questions is met under each list of answers. It costs no thread of the model
//! and no preemption.

use std::cell::RefCell;
use std::env;

/// The answers of one exploration, for a replay: numbers with commas between them.
pub(super) const VARIABLE: &str = "LOCKKIT_LOOM_CHOICES";

thread_local! {
    /// Of the model that runs in this thread. loom's threads are stacks within it, so they share it.
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct State {
    /// The answers, in the order of the questions of an execution.
    answers: Vec<Answer>,
    /// How many questions this execution has asked.
    asked: usize,
    /// Only these: they were given from outside.
    fixed: bool,
}

struct Answer {
    value: usize,
    /// The most answers that any execution had to this question, the ones before it being the same.
    of: usize,
}

/// Has the answers of a model's run for as long as it lives.
pub(super) struct Choices(());

/// One of `0..n`, and in other executions each of the others.
///
/// For what a model cannot decide by its schedules alone: whether a reply is lost, which of two keys is asked for.
/// Whatever happens at *some* point (an expiry, a crash) needs no choice: a thread that does it is put between
/// any two steps by the schedules. Each question multiplies the executions by `n`.
///
/// # Panics
/// When `n` is 0, and outside of a model.
///
/// # Examples
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// use lockkit_core::model;
/// # use lockkit_core::sync::{Arc, Mutex, thread};
///
/// static SEEN: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
/// model::check("a choice", 2, || {
///     # let shared = Arc::new(Mutex::new(0));
///     # let other = thread::spawn({ let shared = shared.clone(); move || *shared.lock() += 1 });
///     # *shared.lock() += 1;
///     # other.join().unwrap();
///     SEEN[model::choose(3)].fetch_add(1, Ordering::Relaxed);
/// });
/// assert!(SEEN.iter().all(|seen| seen.load(Ordering::Relaxed) > 0));
/// ```
#[must_use]
pub fn choose(n: usize) -> usize {
    assert!(n > 0, "there is nothing to choose from");
    STATE.with_borrow_mut(|state| {
        let state = state.as_mut().expect("`choose` is called within a model");
        let at = state.asked;
        state.asked += 1;
        if at == state.answers.len() {
            assert!(
                !state.fixed,
                "{VARIABLE} has fewer answers than there are questions"
            );
            state.answers.push(Answer { value: 0, of: n });
        }
        let answer = &mut state.answers[at];
        answer.of = answer.of.max(n);
        // Another schedule may have had more answers here.
        answer.value % n
    })
}

impl Choices {
    pub(super) fn begin(name: &str) -> Self {
        let mut state = State::default();
        if let Ok(given) = env::var(VARIABLE) {
            let answer = |value: &str| {
                value.parse().map_or_else(
                    |_| panic!("model {name}: {VARIABLE}={given} are not numbers with commas"),
                    |value| Answer { value, of: 1 },
                )
            };
            state.answers = given.split(',').map(answer).collect();
            state.fixed = true;
        }
        STATE.set(Some(state));
        Self(())
    }

    /// Goes on to the next answers; `false` if there are none.
    pub(super) fn go_on() -> bool {
        STATE.with_borrow_mut(|state| {
            let state = state.as_mut().expect("set by `begin`");
            if state.fixed {
                return false;
            }
            while let Some(last) = state.answers.last_mut() {
                last.value += 1;
                if last.value < last.of {
                    return true;
                }
                state.answers.pop();
            }
            false
        })
    }
}

impl Drop for Choices {
    fn drop(&mut self) {
        STATE.set(None);
    }
}

/// Begins another execution.
pub(super) fn restart() {
    STATE.with_borrow_mut(|state| {
        if let Some(state) = state {
            state.asked = 0;
        }
    });
}

/// The answers so far, as [`VARIABLE`] takes them; `None` if nothing was asked.
pub(super) fn chosen() -> Option<String> {
    // From a panic, which may be that of a question.
    STATE.with(|state| {
        let state = state.try_borrow().ok()?;
        let answers = &state.as_ref()?.answers;
        let values: Vec<_> = answers
            .iter()
            .map(|answer| answer.value.to_string())
            .collect();
        (!values.is_empty()).then(|| values.join(","))
    })
}
