//! A bounded worker pool on a fair semaphore: back-pressure, panics as outcomes, drain.
