//! A limit on bytes per second over all downloads that share it.
//!
//! Bytes are booked when they have come, and whoever received them waits until the rate has caught up. While it waits it does not read, so the
//! origin is slowed by TCP itself. Turns are given in the order of booking: no transfer starves.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// Time without traffic that may be made up for at once: without any, every wake-up that comes late would be lost.
const CREDIT: Duration = Duration::from_millis(50);

/// One limit, shared by all downloads it holds for.
#[derive(Debug)]
pub struct Pace {
    rate: f64,
    /// When everything that was booked has been paid for.
    paid: Mutex<Option<Instant>>,
}

impl Pace {
    /// A limit of so many bytes per second; `None` when 0 says that there is none.
    pub fn new(rate: u64) -> Option<Arc<Self>> {
        (rate > 0).then(|| Arc::new(Self { rate: rate as f64, paid: Mutex::new(None) }))
    }

    /// Books bytes that came and returns until when their receiver has to wait.
    pub fn book(&self, bytes: usize, now: Instant) -> Instant {
        let cost = Duration::try_from_secs_f64(bytes as f64 / self.rate).unwrap_or(Duration::MAX);
        let mut paid = lock(&self.paid);
        let until = booked(*paid, now, cost);
        *paid = Some(until);
        until
    }
}

fn booked(paid: Option<Instant>, now: Instant, cost: Duration) -> Instant {
    let earliest = now.checked_sub(CREDIT).unwrap_or(now);
    // A first transfer begins with nothing to its credit.
    let from = paid.map_or(now, |paid| paid.max(earliest));
    from.checked_add(cost).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn no_rate_is_no_limit() {
        assert!(Pace::new(0).is_none());
    }

    #[test]
    fn what_is_booked_adds_up_whoever_books_it() {
        let now = Instant::now();
        let pace = Pace::new(1000).unwrap();
        assert_eq!(pace.book(500, now), now + SECOND / 2);
        assert_eq!(pace.book(500, now), now + SECOND);
        // Half of it is paid for by then.
        assert_eq!(pace.book(1000, now + SECOND / 2), now + 2 * SECOND);
    }

    #[test]
    fn idle_time_is_forgotten_but_for_a_moment() {
        let now = Instant::now();
        assert_eq!(booked(Some(now), now + 100 * SECOND, SECOND), now + 101 * SECOND - CREDIT);
        assert_eq!(booked(Some(now), now + CREDIT / 2, SECOND), now + SECOND);
        assert_eq!(booked(None, now, SECOND), now + SECOND);
    }

    #[test]
    fn an_absurd_rate_does_not_overflow() {
        let now = Instant::now();
        assert!(booked(Some(now), now, Duration::MAX) >= now);
    }
}
