//! When the writer begins its next commit: at once while little comes, with more in it while much does.

use std::time::{Duration, Instant};

/// While this many commands a second arrive, commits are put off: each costs about as much as a handful of small jobs in it. Below that they begin at once,
/// since the latency of a few callers is worth more.
const BUSY_COMMANDS: u32 = 4000;
/// They begin at most so long after one another then.
const BUSY_GAP: Duration = Duration::from_millis(5);
/// How often it is looked anew whether that is so, and how much arrives in a gap.
const WINDOW: Duration = Duration::from_millis(100);

/// How fast commands arrive, and what the next commit is therefore put off for.
#[derive(Debug)]
pub struct Pace {
    /// Since when commands are counted, and how many there were.
    since: Instant,
    commands: u32,
    busy: bool,
    /// When the last commit began.
    begun: Instant,
    /// What a whole gap brought, once it was seen: callers that wait for their answers before they send more do not send more in a longer one.
    whole: Option<usize>,
}

/// What to wait for before a commit, whatever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gather {
    /// This has passed.
    pub time: Duration,
    /// So many commands are there.
    pub commands: usize,
}

impl Pace {
    /// Counting from now.
    pub fn new(now: Instant) -> Self {
        Self { since: now, commands: 0, busy: false, begun: now, whole: None }
    }

    /// What to let gather, now that there is a command; `None`: nothing.
    pub fn gather(&mut self, now: Instant) -> Option<Gather> {
        let window = now.duration_since(self.since);
        if window >= WINDOW {
            self.busy = f64::from(self.commands) >= f64::from(BUSY_COMMANDS) * window.as_secs_f64();
            (self.since, self.commands, self.whole) = (now, 0, None);
        }
        let time = BUSY_GAP.checked_sub(now.duration_since(self.begun)).filter(|time| self.busy && !time.is_zero())?;
        Some(Gather { time, commands: self.whole.unwrap_or(usize::MAX) })
    }

    /// So many commands are committed from now.
    pub fn begin(&mut self, now: Instant, commands: usize) {
        if self.busy && self.whole.is_none() {
            self.whole = Some(commands);
        }
        self.begun = now;
        self.commands = self.commands.saturating_add(u32::try_from(commands).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// What is let gather after a second of commits of so many commands each, so many milliseconds after one another.
    fn after_a_second(commands: usize, every_ms: u32) -> Option<Gather> {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        for _ in 0..1000 / every_ms {
            now += every_ms * MS;
            pace.gather(now);
            pace.begin(now, commands);
        }
        pace.gather(now + MS)
    }

    #[test]
    fn commits_are_put_off_only_while_thousands_of_commands_a_second_arrive() {
        for (commands, every_ms, busy) in [(1, 1, false), (3, 1, false), (5, 1, true), (20, 10, false), (60, 10, true), (1, 100, false)] {
            assert_eq!(after_a_second(commands, every_ms).is_some(), busy, "{commands} commands every {every_ms} ms");
        }
    }

    #[test]
    fn a_gap_is_waited_out_once_a_window_and_ends_early_when_as_much_is_there_again() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.begin(start, 100_000);
        let mut now = start + WINDOW;
        pace.gather(now);
        pace.begin(now, 3);
        assert_eq!(pace.gather(now + MS), Some(Gather { time: BUSY_GAP - MS, commands: 3 }));
        pace.begin(now + 2 * MS, 100_000);
        assert_eq!(pace.gather(now + 3 * MS), Some(Gather { time: BUSY_GAP - MS, commands: 3 }));
        now += 2 * WINDOW;
        pace.begin(now - MS, 1);
        assert_eq!(pace.gather(now), Some(Gather { time: BUSY_GAP - MS, commands: usize::MAX }));
        pace.begin(now, 16);
        assert_eq!(pace.gather(now), Some(Gather { time: BUSY_GAP, commands: 16 }));
    }

    #[test]
    fn nothing_is_put_off_after_a_commit_that_took_longer_nor_after_a_pause() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.begin(start, 100_000);
        assert_eq!(pace.gather(start + WINDOW), None);
        pace.begin(start + WINDOW, 100_000);
        assert!(pace.gather(start + WINDOW + MS).is_some());
        assert_eq!(pace.gather(start + WINDOW + BUSY_GAP), None);
        assert_eq!(pace.gather(start + 100 * WINDOW), None);
    }
}
