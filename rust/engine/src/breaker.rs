//! The circuit of one host: closed, open for a while after failures in a row, half open for one probe. Pure.

use std::time::{Duration, Instant};

/// Failures in a row that open the circuit.
pub const THRESHOLD: u32 = 5;
/// How long it stays open at first; doubles with every failed probe.
pub const FIRST_REST: Duration = Duration::from_secs(5);
/// How long it stays open at most.
pub const LONGEST_REST: Duration = Duration::from_secs(300);

/// What an attempt says about its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The host answered as a host should.
    Good,
    /// The host did not answer, or broke off, or said that it is overloaded.
    Down,
    /// Says nothing about the host: our own fault, the store's, a cancellation.
    Neutral,
}

/// The circuit's state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Breaker {
    failures: u32,
    rests: u32,
    open_until: Option<Instant>,
    failed_at: Option<Instant>,
}

impl Breaker {
    /// Takes in how an attempt ended. Attempts that were under way when the circuit opened do not open it further.
    pub fn record(&mut self, verdict: Verdict, now: Instant) {
        match verdict {
            Verdict::Good => *self = Self::default(),
            Verdict::Down => {
                self.failures = self.failures.saturating_add(1);
                self.failed_at = Some(now);
                let resting = self.open_until.is_some_and(|until| until > now);
                if self.failures >= THRESHOLD && !resting {
                    let rest = FIRST_REST.saturating_mul(1 << self.rests.min(16)).min(LONGEST_REST);
                    self.rests += 1;
                    self.open_until = Some(now + rest);
                }
            }
            Verdict::Neutral => {}
        }
    }

    /// Until when nothing may be started; `None` when something may.
    pub fn open_until(&self, now: Instant) -> Option<Instant> {
        self.open_until.filter(|until| *until > now)
    }

    /// Whether the last attempts failed: such a host gets a small share only.
    pub fn is_suspect(&self) -> bool {
        self.failures > 0
    }

    /// Whether it opened again after a failed probe: the host is not expected back soon.
    pub fn is_down(&self) -> bool {
        self.rests > 1
    }

    /// Whether a single probe is to be sent.
    pub fn is_half_open(&self, now: Instant) -> bool {
        self.open_until.is_some_and(|until| until <= now)
    }

    /// When the state may be forgotten.
    pub fn forget_at(&self) -> Option<Instant> {
        self.open_until.max(self.failed_at).map(|until| until + LONGEST_REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_rests_longer_each_time() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 1..THRESHOLD {
            breaker.record(Verdict::Down, now);
            assert_eq!(breaker.open_until(now), None);
        }
        let mut rests = Vec::new();
        for _ in 0..8 {
            breaker.record(Verdict::Down, now);
            // Stragglers change nothing.
            breaker.record(Verdict::Down, now);
            let until = breaker.open_until(now).unwrap();
            rests.push((until - now).as_secs());
            now = until;
            assert!(breaker.is_half_open(now) && breaker.open_until(now).is_none());
        }
        assert_eq!(rests, [5, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn one_good_answer_closes_it_and_neutral_ones_do_not_count() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..THRESHOLD - 1 {
            breaker.record(Verdict::Down, now);
            breaker.record(Verdict::Neutral, now);
        }
        assert!(breaker.is_suspect() && breaker.open_until(now).is_none());
        breaker.record(Verdict::Good, now);
        assert_eq!(breaker, Breaker::default());
    }
}
