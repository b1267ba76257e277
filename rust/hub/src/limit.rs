//! Token buckets by tenant, for the whole service.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::frame::RateLimit;

/// Buckets of tenants that have not asked for a while are dropped after so many checks.
const SWEEP_EVERY: u32 = 10_000;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Of {
    /// Posted jobs.
    Jobs,
    /// Their resources.
    Resources,
}

/// The buckets, one set for each limit ever asked with (they change only by configuration).
#[derive(Default)]
pub struct Limits {
    buckets: HashMap<(Of, u64, u32), DefaultKeyedRateLimiter<String>>,
    checks: u32,
}

impl Limits {
    /// Takes `count` tokens of the tenant's bucket, or says how long to wait for them.
    pub fn take(&mut self, of: Of, tenant: &str, limit: RateLimit, count: u32) -> Result<(), Duration> {
        let period = Duration::try_from_secs_f64(1.0 / limit.per_second).ok().filter(|period| !period.is_zero());
        // A limit of nothing, or of more than can be counted, limits nothing.
        let Some(quota) = period.and_then(Quota::with_period) else { return Ok(()) };
        let Some(count) = NonZeroU32::new(count) else { return Ok(()) };
        let burst = NonZeroU32::new(limit.burst).unwrap_or(NonZeroU32::MIN);
        self.checks += 1;
        if self.checks >= SWEEP_EVERY {
            self.checks = 0;
            self.buckets.values().for_each(RateLimiter::retain_recent);
        }
        let bucket = self
            .buckets
            .entry((of, limit.per_second.to_bits(), burst.get()))
            .or_insert_with(|| RateLimiter::keyed(quota.allow_burst(burst)));
        // What is more than a full bucket would never pass: a full one is its price.
        match bucket.check_key_n(&tenant.to_owned(), count.min(burst)) {
            Ok(Err(not_yet)) => Err(not_yet.wait_time_from(DefaultClock::default().now())),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_next_waits_tenants_apart() {
        let mut limits = Limits::default();
        let limit = RateLimit { per_second: 0.1, burst: 3 };
        assert!((0..3).all(|_| limits.take(Of::Jobs, "a", limit, 1).is_ok()));
        let wait = limits.take(Of::Jobs, "a", limit, 1).unwrap_err();
        assert!(wait > Duration::from_secs(8) && wait <= Duration::from_secs(10), "{wait:?}");
        assert!(limits.take(Of::Jobs, "b", limit, 1).is_ok());
    }

    #[test]
    fn resources_have_buckets_of_their_own_and_a_job_takes_many_at_once() {
        let mut limits = Limits::default();
        let limit = RateLimit { per_second: 10.0, burst: 100 };
        assert!(limits.take(Of::Resources, "a", limit, 60).is_ok());
        let wait = limits.take(Of::Resources, "a", limit, 60).unwrap_err();
        assert!(wait > Duration::from_millis(1500) && wait <= Duration::from_secs(2), "{wait:?}");
        assert!(limits.take(Of::Resources, "a", limit, 40).is_ok(), "a refusal takes nothing");
        assert!(limits.take(Of::Jobs, "a", limit, 100).is_ok());
        assert!(limits.take(Of::Resources, "a", limit, 0).is_ok());
    }

    #[test]
    fn more_than_a_full_bucket_passes_when_it_is_full() {
        let mut limits = Limits::default();
        let limit = RateLimit { per_second: 0.1, burst: 3 };
        assert!(limits.take(Of::Resources, "a", limit, 1000).is_ok());
        assert!(limits.take(Of::Resources, "a", limit, 1).is_err());
    }

    #[test]
    fn odd_limits_limit_nothing() {
        let mut limits = Limits::default();
        for per_second in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!((0..10).all(|_| limits.take(Of::Jobs, "a", RateLimit { per_second, burst: 1 }, 1).is_ok()), "{per_second}");
        }
    }
}
