//! The time of day for decisions about tasks.

use std::time::{Duration, Instant};

use fetchbox_model::time::cautious;

use crate::core::now_ms;

/// The wall clock at a moment, carried on by a clock that nobody can set.
pub struct Wall {
    begun: Instant,
    begun_ms: u64,
}

impl Wall {
    /// Begins now.
    pub fn new() -> Self {
        Self { begun: Instant::now(), begun_ms: now_ms() }
    }

    /// Milliseconds since the epoch as they would be if nobody had set the clock: what is to be waited for is said and read with this.
    pub fn steady_ms(&self) -> u64 {
        self.begun_ms.saturating_add(millis(self.begun.elapsed()))
    }

    /// Milliseconds since the epoch for deadlines: none passes early because somebody set the clock.
    pub fn cautious_ms(&self) -> u64 {
        cautious(self.steady_ms(), now_ms())
    }
}

/// Whole milliseconds.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
