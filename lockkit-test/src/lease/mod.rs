//! The conformance suite of stores that keep locks.
//!
//! A store brings a [`Bench`]; [`lease_conformance!`](crate::lease_conformance) makes one test of every case.
//! [`course`] lets several use a lock at once, and has the history of it.

mod bench;
pub mod cases;
mod course;

pub use bench::{Bench, MemoryBench};
pub use course::course;

/// Makes a test of each conformance case, on a bench that `$make` makes anew for each: a future.
#[macro_export]
macro_rules! lease_conformance {
    ($make:expr) => {
        $crate::lease_conformance! { @cases $make =>
            a_free_lock_is_granted_and_then_busy
            of_many_who_ask_at_once_one_is_granted
            a_repeated_acquire_is_the_same_grant
            a_lock_is_free_at_the_instant_its_time_is_over
            nothing_shortens_what_a_lock_has_left
            an_extension_counts_from_now
            what_is_gone_is_not_extended
            a_batch_is_answered_entry_by_entry
            a_release_takes_the_lock_from_its_token_only
            fences_grow_with_every_grant_and_stay_while_it_lasts
            fences_go_forward_over_a_restart
            a_look_changes_nothing
            a_key_is_any_text_and_no_other_key
            an_owner_is_any_text
            the_shortest_and_the_longest_time_are_kept
            a_watch_hears_of_a_release
            what_a_watch_has_heard_is_kept
            a_step_that_was_dropped_can_be_repeated
            those_in_line_are_served_in_order
            a_place_that_nobody_speaks_for_is_over
            a_place_is_kept_by_asking_again
            a_release_leaves_the_line
            nobody_overtakes_the_line
            a_grant_in_line_that_nobody_takes_goes_on
            who_dies_in_line_is_missed_no_longer_than_his_place_lasts
            the_first_in_line_gets_what_has_expired
            random_steps_are_answered_as_in_memory
            random_steps_that_are_said_again_change_nothing_more
        }
    };
    (@cases $make:expr => $($case:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::lease::cases::$case($make.await).await;
            }
        )+
    };
}
