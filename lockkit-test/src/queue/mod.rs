//! The conformance suite of job stores, and the random model that they all have to agree with.
//!
//! A back end brings a [`Bench`]; [`queue_conformance!`](crate::queue_conformance) makes one
//! test of every case.

mod bench;
pub mod cases;
pub mod model;
pub mod transactions;

pub use bench::{Bench, DatabaseOf, MemoryBench, PostgresBench, SqliteBench, TransactionalBench};

/// Makes a test of each case about transactions of the caller's, on a bench that `$make` makes anew for each.
#[macro_export]
macro_rules! queue_transactions {
    ($make:expr) => {
        $crate::queue_transactions! { @cases $make =>
            what_a_transaction_enqueues_comes_and_goes_with_it
            a_commit_wakes_whoever_waits_for_work
            what_a_transaction_acknowledges_is_done_with_it_or_not_at_all
            a_settled_job_is_counted_once_whoever_comes_first
            what_was_settled_is_answered_alike_when_it_is_sent_again
            a_claim_that_has_ended_acknowledges_nothing
            a_result_is_kept_with_the_transaction
            only_what_is_done_is_part_of_a_transaction
            a_transaction_of_sqlx_can_carry_jobs
            a_key_comes_and_goes_with_the_transaction
        }
    };
    (@cases $make:expr => $($case:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::queue::transactions::$case($make.await).await;
            }
        )+
    };
}

/// Makes a test of each conformance case, on a bench that `$make` makes anew for each.
#[macro_export]
macro_rules! queue_conformance {
    ($make:expr) => {
        $crate::queue_conformance! { @cases $make =>
            a_job_goes_to_one_session
            claims_follow_priority_then_time_then_id
            a_claim_gets_at_most_what_it_asked_for
            queues_do_not_mix
            a_queue_that_is_not_there_is_empty
            an_old_epoch_is_stale_even_from_the_same_session
            another_session_cannot_settle
            at_the_instant_its_lease_ends_a_session_is_lost_for_everyone
            a_renewed_lease_goes_on_and_a_lost_one_does_not_come_back
            a_job_that_loses_its_workers_is_dead_after_its_last_attempt
            a_failed_job_rests_then_runs_again_then_dies
            a_hopeless_job_dies_at_once
            an_error_is_kept_without_what_no_database_can_hold
            a_job_given_back_costs_no_attempt
            results_are_kept_and_listed
            a_batch_has_any_order_and_may_name_a_job_twice
            a_batch_sent_again_is_answered_alike_and_done_once
            a_stale_entry_harms_no_other
            one_exchange_settles_and_then_claims
            a_claim_sent_again_gets_the_same_jobs
            a_lost_session_claims_nothing
            a_restarted_worker_of_the_same_name_hides_nothing
            closing_a_session_gives_back_what_it_holds
            closing_gives_back_however_much_it_is
            two_queues_wait_for_their_own_work
            counters_add_up_over_sessions
            epochs_grow_while_the_clock_stands
            scheduled_jobs_wait_for_their_time
            a_waiter_hears_of_new_work
            a_unique_job_that_is_queued_stands_for_the_next_one
            a_unique_job_replaces_what_is_queued
            a_running_job_does_not_stand_for_a_new_one
            a_key_is_one_job_however_many_want_it
            a_paused_queue_gives_nothing_until_it_is_resumed
            what_is_queued_is_removed_by_a_cancel
            a_claimed_job_that_is_cancelled_does_not_come_back
            the_dead_can_be_redriven_with_all_their_attempts
            a_lease_that_is_long_over_is_found_until_somebody_ends_it
            a_claim_that_lasts_very_long_is_found
            a_paused_queue_is_found_if_jobs_wait_in_it
            bad_input_is_refused_and_changes_nothing
        }
    };
    (@cases $make:expr => $($case:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::queue::cases::$case($make.await).await;
            }
        )+
    };
}
