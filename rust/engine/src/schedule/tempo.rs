//! How fast one host may be asked, learned from its answers: slower when it says that it has too much to do, or takes ever longer; faster again while
//! it is well. Multiplicative both ways, as congestion control does it, so that it finds a host's limit from either side. Pure.

use std::time::{Duration, Instant};

/// Much slower after 429 or 503, a little when answers take longer.
const BUSY_FACTOR: f64 = 2.0;
const STRAINED_FACTOR: f64 = 1.5;
/// A quarter faster, so often at most, while the host is well.
const EASE_FACTOR: f64 = 0.8;
const EASE_EVERY: Duration = Duration::from_secs(5);
/// Longest time between two starts; Retry-After and the circuit have longer ones.
const SLOWEST: Duration = Duration::from_secs(30);
/// Longer answers alone slow a host down to this fraction of the pace at which they began to.
const MOST_STRAINED: f64 = 8.0;
/// Answers have become slow when the last ones took so many times what is usual, and no less than that. Quicker hosts are at nobody's mercy.
const STRAINED: f64 = 3.0;
const STRAINED_FROM: f64 = 0.5;
/// Weights of a new sample: in the pace of starts, in the last answers' time and in the usual one.
const PACE: f64 = 1.0 / 32.0;
const LAST: f64 = 1.0 / 16.0;
const USUAL: f64 = 1.0 / 256.0;
/// Longest time between two starts that says something of the pace.
const PAUSE: f64 = 2.0;
/// What was learned is kept so long.
const KEEP: Duration = Duration::from_secs(300);

/// What an answer says of the host's load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sign {
    /// 429 or 503.
    Busy,
    /// The request's head came after so long.
    Answered(Duration),
    /// Nothing.
    None,
}

/// The pace of one host.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tempo {
    /// Seconds between two starts; 0 for no limit.
    gap: f64,
    /// The pace before the host was slowed down.
    full: f64,
    /// When the gap last grew: what was asked before says nothing of it.
    slowed_at: Option<Instant>,
    /// When it last changed.
    changed_at: Option<Instant>,
    last_start: Option<Instant>,
    starts: u32,
    /// Seconds between two starts, smoothed.
    pace: f64,
    last: f64,
    usual: f64,
}

impl Tempo {
    /// The time that two starts are to be apart.
    pub fn gap(&self) -> Duration {
        Duration::try_from_secs_f64(self.gap).unwrap_or(SLOWEST)
    }

    /// When what was learned may be forgotten.
    pub fn forget_at(&self) -> Option<Instant> {
        self.changed_at.filter(|_| self.gap > 0.0).map(|at| at + KEEP)
    }

    /// A request is about to be sent.
    pub fn started(&mut self, now: Instant) {
        if let Some(last) = self.last_start {
            let gap = now.saturating_duration_since(last).as_secs_f64().min(PAUSE);
            // The first ones count alike.
            self.starts = self.starts.saturating_add(1);
            self.pace += (gap - self.pace) * PACE.max(1.0 / f64::from(self.starts));
        }
        self.last_start = Some(now);
    }

    /// A request that was sent at `sent` had this answer.
    pub fn learn(&mut self, sign: Sign, sent: Instant, now: Instant) {
        match sign {
            Sign::Busy => self.slow_down(BUSY_FACTOR, f64::INFINITY, sent, now),
            Sign::Answered(took) => {
                let took = took.as_secs_f64();
                if self.usual == 0.0 {
                    (self.last, self.usual) = (took, took);
                }
                self.last += (took - self.last) * LAST;
                self.usual += (took - self.usual) * USUAL;
                if self.last > STRAINED_FROM && self.last > self.usual * STRAINED {
                    self.slow_down(STRAINED_FACTOR, MOST_STRAINED, sent, now);
                } else {
                    self.ease(now);
                }
            }
            Sign::None => {}
        }
    }

    fn slow_down(&mut self, factor: f64, most: f64, sent: Instant, now: Instant) {
        if self.slowed_at.is_some_and(|at| sent < at) {
            return;
        }
        if self.gap == 0.0 {
            // Two starts at once are no pace; a millisecond is as good a beginning as any.
            self.full = self.pace.max(0.001);
        }
        let gap = (self.gap.max(self.full) * factor).min(SLOWEST.as_secs_f64());
        if gap > self.full * most {
            return;
        }
        self.gap = gap;
        (self.slowed_at, self.changed_at) = (Some(now), Some(now));
    }

    fn ease(&mut self, now: Instant) {
        if self.gap == 0.0 || self.changed_at.is_some_and(|at| now.saturating_duration_since(at) < EASE_EVERY) {
            return;
        }
        self.gap *= EASE_FACTOR;
        self.changed_at = Some(now);
        if self.gap < self.full / BUSY_FACTOR {
            // Twice as fast as when it was too much, and nobody complains.
            self.gap = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A host that takes `limit` requests a second, and answers more with 429; the client asks as fast as its tempo and `most` let it. Returns good
    /// and refused answers a second over the last minute of ten, and the tempo.
    fn drive(limit: f64, most: f64) -> (f64, f64, Tempo) {
        let begin = Instant::now();
        let mut now = begin;
        let mut tempo = Tempo::default();
        let (mut tokens, mut good, mut refused) = (1.0_f64, 0, 0);
        while now < begin + Duration::from_secs(600) {
            let gap = tempo.gap().as_secs_f64().max(1.0 / most);
            now += Duration::from_secs_f64(gap);
            tokens = (tokens + gap * limit).min(limit.max(1.0));
            tempo.started(now);
            let taken = tokens >= 1.0;
            tokens -= f64::from(u8::from(taken));
            tempo.learn(if taken { Sign::Answered(ms(20)) } else { Sign::Busy }, now, now);
            if now > begin + Duration::from_secs(540) {
                *(if taken { &mut good } else { &mut refused }) += 1;
            }
        }
        (f64::from(good) / 60.0, f64::from(refused) / 60.0, tempo)
    }

    /// | requests/s that the host takes | that we could send |
    #[test]
    fn a_hosts_limit_is_found_from_above() {
        for (limit, most) in [(1.0, 100.0), (10.0, 1000.0), (10.0, 20.0), (200.0, 5000.0)] {
            let (good, refused, _) = drive(limit, most);
            assert!(good >= 0.6 * limit, "{limit} {most}: {good} good ones a second");
            assert!(refused <= 0.1 * good, "{limit} {most}: {refused} refused and {good} good ones a second");
        }
    }

    #[test]
    fn a_host_that_complains_of_nothing_is_not_slowed() {
        let (good, refused, tempo) = drive(1000.0, 100.0);
        assert!(good > 99.0 && refused == 0.0 && tempo.gap().is_zero());
    }

    #[test]
    fn what_was_asked_before_does_not_slow_twice_and_recovery_ends() {
        let mut now = Instant::now();
        let mut tempo = Tempo::default();
        let sent = now;
        for _ in 0..100 {
            tempo.started(now);
            now += ms(10);
        }
        tempo.learn(Sign::Busy, sent, now);
        let first = tempo.gap();
        for _ in 0..7 {
            tempo.learn(Sign::Busy, sent, now + ms(1));
        }
        assert_eq!(tempo.gap(), first, "eight at once were refused for one reason");
        assert!(first >= ms(15) && first <= ms(20), "{first:?}");
        tempo.learn(Sign::Busy, now + ms(2), now + ms(20));
        assert_eq!(tempo.gap().as_micros() / 10, first.as_micros() * 2 / 10);
        let mut steps = 0;
        while !tempo.gap().is_zero() {
            now += EASE_EVERY;
            tempo.learn(Sign::Answered(ms(5)), now, now);
            steps += 1;
            assert!(steps < 20);
        }
        assert_eq!(tempo.forget_at(), None);
    }

    /// | usual | then | slowed down |
    #[test]
    fn answers_that_take_ever_longer() {
        for (usual, then, slowed) in [(100, 2000, true), (100, 250, false), (10, 400, false), (1000, 2000, false), (2000, 2000, false)] {
            let mut now = Instant::now();
            let mut tempo = Tempo::default();
            for n in 0..400 {
                tempo.started(now);
                now += ms(100);
                tempo.learn(Sign::Answered(ms(if n < 350 { usual } else { then })), now, now);
            }
            assert_eq!(!tempo.gap().is_zero(), slowed, "{usual} {then}");
            assert!(tempo.gap() <= ms(900), "by no more than eight times: {:?}", tempo.gap());
            for _ in 0..2000 {
                now += ms(100);
                tempo.learn(Sign::Answered(ms(then)), now, now);
            }
            assert!(tempo.gap().is_zero(), "what lasts becomes usual: {usual} {then}");
        }
    }

    #[test]
    fn it_is_never_slower_than_the_slowest() {
        let mut now = Instant::now();
        let mut tempo = Tempo::default();
        for _ in 0..100 {
            now += ms(1000);
            tempo.learn(Sign::Busy, now, now);
        }
        assert_eq!(tempo.gap(), SLOWEST);
        assert_eq!(tempo.forget_at(), Some(now + KEEP));
    }
}
