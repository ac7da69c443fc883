//! Test tools of lockkit: cancellation driver, child processes, histories and checkers, conformance suites.
