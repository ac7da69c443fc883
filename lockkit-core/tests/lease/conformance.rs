//! The store in memory does what every store has to.

use lockkit_test::lease::MemoryBench;

lockkit_test::lease_conformance!(async { MemoryBench::new() });
