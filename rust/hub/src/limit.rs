//! Token buckets by tenant, for the whole service.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::frame::RateLimit;

/// Buckets of tenants that have not asked for a while are dropped after so many checks.
const SWEEP_EVERY: u32 = 10_000;

/// The buckets, one set for each limit ever asked with (they change only by configuration).
#[derive(Default)]
pub struct Limits {
    buckets: HashMap<(u64, u32), DefaultKeyedRateLimiter<String>>,
    checks: u32,
}

impl Limits {
    /// Takes a token of the tenant's bucket, or says how long to wait for one.
    pub fn take(&mut self, tenant: &str, limit: RateLimit) -> Result<(), Duration> {
        let period = Duration::try_from_secs_f64(1.0 / limit.per_second).ok().filter(|period| !period.is_zero());
        // A limit of nothing, or of more than can be counted, limits nothing.
        let Some(quota) = period.and_then(Quota::with_period) else { return Ok(()) };
        let burst = NonZeroU32::new(limit.burst).unwrap_or(NonZeroU32::MIN);
        self.checks += 1;
        if self.checks >= SWEEP_EVERY {
            self.checks = 0;
            self.buckets.values().for_each(RateLimiter::retain_recent);
        }
        let bucket =
            self.buckets.entry((limit.per_second.to_bits(), burst.get())).or_insert_with(|| RateLimiter::keyed(quota.allow_burst(burst)));
        bucket.check_key(&tenant.to_owned()).map_err(|not_yet| not_yet.wait_time_from(DefaultClock::default().now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_next_waits_tenants_apart() {
        let mut limits = Limits::default();
        let limit = RateLimit { per_second: 0.1, burst: 3 };
        assert!((0..3).all(|_| limits.take("a", limit).is_ok()));
        let wait = limits.take("a", limit).unwrap_err();
        assert!(wait > Duration::from_secs(8) && wait <= Duration::from_secs(10), "{wait:?}");
        assert!(limits.take("b", limit).is_ok());
    }

    #[test]
    fn odd_limits_limit_nothing() {
        let mut limits = Limits::default();
        for per_second in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!((0..10).all(|_| limits.take("a", RateLimit { per_second, burst: 1 }).is_ok()), "{per_second}");
        }
    }
}
