//! Time, injected.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fetchbox_model::time::cautious;

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Wall clock, Unix milliseconds; may jump.
    fn now_ms(&self) -> u64;
    /// Time since some fixed moment; never jumps.
    fn elapsed(&self) -> Duration;
    /// Wall clock, Unix milliseconds, for deciding that something is over: never early because somebody set the clock.
    fn cautious_ms(&self) -> u64 {
        self.now_ms()
    }
}

/// The system's clocks.
#[derive(Debug, Default)]
pub struct SystemClock {
    start: OnceLock<(Instant, u64)>,
}

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    fn elapsed(&self) -> Duration {
        self.start().0.elapsed()
    }

    fn cautious_ms(&self) -> u64 {
        let (begun, begun_ms) = self.start();
        cautious(begun_ms.saturating_add(begun.elapsed().as_millis() as u64), self.now_ms())
    }
}

impl SystemClock {
    fn start(&self) -> (Instant, u64) {
        *self.start.get_or_init(|| (Instant::now(), self.now_ms()))
    }
}

/// RFC 3339 in UTC with milliseconds; `None` for 0, which stands for "not yet".
pub fn rfc3339(ms: u64) -> Option<String> {
    if ms == 0 {
        return None;
    }
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    // Days to a civil date, after Howard Hinnant's public-domain algorithm.
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second, milli) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest % 1000);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z"))
}

#[cfg(test)]
pub mod fake {
    //! A clock that tests move.
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Both clocks, in milliseconds.
    #[derive(Debug, Default)]
    pub struct FakeClock {
        /// Wall clock.
        pub wall: AtomicU64,
        /// Monotonic clock.
        pub steady: AtomicU64,
    }

    impl FakeClock {
        /// Moves both on.
        pub fn advance(&self, ms: u64) {
            self.wall.fetch_add(ms, Ordering::Relaxed);
            self.steady.fetch_add(ms, Ordering::Relaxed);
        }
    }

    impl Clock for FakeClock {
        fn now_ms(&self) -> u64 {
            self.wall.load(Ordering::Relaxed)
        }
        fn elapsed(&self) -> Duration {
            Duration::from_millis(self.steady.load(Ordering::Relaxed))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_at_the_edges() {
        for (ms, text) in [
            (1, "1970-01-01T00:00:00.001Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_709_251_200_000, "2024-03-01T00:00:00.000Z"),
            (1_764_028_800_123, "2025-11-25T00:00:00.123Z"),
            (4_102_444_799_000, "2099-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(rfc3339(ms).as_deref(), Some(text));
        }
        assert_eq!(rfc3339(0), None);
    }
}
