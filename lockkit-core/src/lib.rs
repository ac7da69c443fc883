//! In-process concurrency primitives that are model-checked: semaphore, retry, fencing token.
