//! When the writer begins its next commit: at once while little comes, with more in it while much does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// While this many commands a second arrive, commits are put off: each costs about as much as a handful of small jobs in it. Below that they begin at once,
/// since the latency of a few callers is worth more.
const BUSY_COMMANDS: u32 = 4000;
/// They begin at most so long after one another then.
const BUSY_GAP: Duration = Duration::from_millis(25);
/// How often it is looked anew whether that is so, and how much arrives in a gap.
const WINDOW: Duration = Duration::from_millis(100);
/// How often it is looked what has gathered, and after how long without anything new nothing more is waited for.
const LOOK: Duration = Duration::from_micros(500);
const DRY: Duration = Duration::from_millis(2);
/// The same of both while commands come whatever becomes of those before: nobody waits for the commit.
const STEADY_LOOK: Duration = Duration::from_micros(12_500);

/// What the connections' thread sleeps before it waits for more.
const REST: Duration = Duration::from_millis(4);

/// A rest for the thread that reads and answers, while commands come steadily: to be woken for each of them costs more than all else that it does for it,
/// and they wait for the next commit anyway.
#[derive(Debug, Clone, Default)]
pub struct Rest(Arc<AtomicBool>);

impl Rest {
    /// Whether there is to be one.
    pub(crate) fn set(&self, is_due: bool) {
        self.0.store(is_due, Ordering::Relaxed);
    }

    /// Takes it, if there is to be one: for [`tokio::runtime::Builder::on_thread_park`].
    pub fn take(&self) {
        if self.0.load(Ordering::Relaxed) {
            #[expect(clippy::disallowed_methods, reason = "what wakes a thread is what is to be put off")]
            std::thread::sleep(REST);
        }
    }
}

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
    /// The last gap that was looked at whole ended before the commands did.
    steady: bool,
}

/// What is waited for before a commit, whatever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gather {
    /// This moment.
    until: Instant,
    /// So many commands.
    commands: usize,
    /// So long without a new one.
    dry: Duration,
    /// How often it is looked.
    look: Duration,
    /// The most commands that were seen, and since when.
    seen: usize,
    seen_at: Instant,
    /// Whether the time ran out while commands were still coming.
    ran_out: bool,
}

impl Gather {
    /// How long to wait before so many commands are looked at again; `None`: begin.
    pub fn rest(&mut self, now: Instant, commands: usize) -> Option<Duration> {
        if commands > self.seen {
            (self.seen, self.seen_at) = (commands, now);
        }
        let left = self.until.saturating_duration_since(now);
        let is_dry = now.duration_since(self.seen_at) >= self.dry;
        self.ran_out = left.is_zero() && !is_dry;
        (!is_dry && !left.is_zero() && commands < self.commands).then(|| self.look.min(left))
    }
}

impl Pace {
    /// Counting from now.
    pub fn new(now: Instant) -> Self {
        Self { since: now, commands: 0, busy: false, begun: now, whole: None, steady: false }
    }

    /// What to let gather, now that there is a command; `None`: nothing.
    pub fn gather(&mut self, now: Instant) -> Option<Gather> {
        let window = now.duration_since(self.since);
        if window >= WINDOW {
            self.busy = f64::from(self.commands) >= f64::from(BUSY_COMMANDS) * window.as_secs_f64();
            self.steady &= self.busy;
            (self.since, self.commands, self.whole) = (now, 0, None);
        }
        let until = self.begun + BUSY_GAP;
        let (look, dry) = if self.steady { (STEADY_LOOK, STEADY_LOOK) } else { (LOOK, DRY) };
        let commands = self.whole.unwrap_or(usize::MAX);
        (self.busy && until > now).then_some(Gather { until, commands, dry, look, seen: 0, seen_at: now, ran_out: false })
    }

    /// So many commands are committed from now; what was waited for before, if anything.
    pub fn begin(&mut self, now: Instant, commands: usize, gather: Option<Gather>) {
        if self.busy && self.whole.is_none() {
            self.whole = Some(commands);
            self.steady = gather.is_some_and(|gather| gather.ran_out);
        }
        self.begun = now;
        self.commands = self.commands.saturating_add(u32::try_from(commands).unwrap_or(u32::MAX));
    }

    /// Whether commands come fast and whatever becomes of those before.
    pub fn is_steady(&self) -> bool {
        self.steady
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Commits of a second in which commands come `every` so long, at most `waiting` of them unanswered: the commands of each, and what it ends as.
    fn a_second(every: Duration, waiting: usize) -> (Vec<usize>, Pace) {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (mut now, mut next, mut queue, mut commits) = (start, start, 0, Vec::new());
        let arrive = |now: Instant, next: &mut Instant, queue: &mut usize| {
            while *next <= now && *queue < waiting {
                (*next, *queue) = (*next + every, *queue + 1);
            }
            // Whoever waits for an answer asks again after it.
            *next = if *queue < waiting { *next } else { (*next).max(now + every) };
        };
        while now < start + 1000 * MS {
            now = now.max(next);
            arrive(now, &mut next, &mut queue);
            let mut gather = pace.gather(now);
            while let Some(rest) = gather.as_mut().and_then(|gather| gather.rest(now, queue)) {
                now += rest;
                arrive(now, &mut next, &mut queue);
            }
            // What is taken is worked on first.
            now += queue as u32 * MS / 50;
            pace.begin(now, queue, gather);
            commits.push(std::mem::take(&mut queue));
            now += MS / 10;
        }
        (commits, pace)
    }

    #[test]
    fn few_commands_are_committed_as_they_come() {
        for every in [MS, MS / 3] {
            let (commits, pace) = a_second(every, usize::MAX);
            assert!(commits.iter().all(|&commands| commands == 1) && !pace.is_steady(), "{every:?}: {commits:?}");
        }
    }

    #[test]
    fn thousands_a_second_that_wait_for_nothing_are_gathered_for_a_whole_gap() {
        let (commits, pace) = a_second(MS / 10, usize::MAX);
        let late = &commits[commits.len() - 10..];
        assert!(pace.is_steady() && late.iter().all(|&commands| (250..=330).contains(&commands)), "{late:?}");
    }

    #[test]
    fn callers_that_wait_for_their_answers_lose_little() {
        let (commits, pace) = a_second(MS / 10, 16);
        let sum: usize = commits.iter().sum();
        // Without any waiting they would bring 10,000 less what 16 at a time lose to a commit of 0.1 ms each.
        assert!(!pace.is_steady() && sum > 7500, "{sum} in {} commits", commits.len());
        let late = &commits[commits.len() - 30..];
        assert!(late.iter().filter(|&&commands| commands == 16).count() > 20, "{late:?}");
    }

    #[test]
    fn what_was_steady_is_so_no_more_when_it_ends() {
        let (_, mut pace) = a_second(MS / 10, usize::MAX);
        let now = pace.since + 10 * WINDOW;
        assert!(pace.gather(now).is_none() && !pace.is_steady());
    }
}
