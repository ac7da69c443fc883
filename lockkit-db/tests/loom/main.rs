#![cfg(lockkit_loom)]
