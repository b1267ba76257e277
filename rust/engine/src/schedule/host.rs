//! One host's queues and what it may start.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::silent::Hope;
use super::tempo::{Sign, Tempo};
use super::{Entry, LONGEST_WAIT};
use crate::breaker::{Breaker, Verdict};

/// A host that has not answered yet gets this fraction of its concurrency.
const UNPROVEN_SHARE: usize = 4;

/// How much of a start's delay is made up for: timers are no finer than this, and a rate above a thousand a second would not be reached.
const SLACK: Duration = Duration::from_millis(2);

/// Where a host stands in the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing queued, nothing to remember.
    Idle,
    /// All it may run is running.
    Full,
    /// May start: (earliest deadline or `u64::MAX`, turn).
    Ready(u64, u64),
    /// May start, or be forgotten, then.
    Timed(Instant),
    /// Waits for a slot of the suspects' share.
    Parked,
    /// Waits until fewer hosts are silent: turn.
    Held(u64),
    /// Rests for long; its tasks are given back.
    Draining,
}

pub(super) struct Host<T> {
    pub(super) name: Arc<str>,
    pub(super) place: Place,
    pub(super) breaker: Breaker,
    pub(super) proven: bool,
    pub(super) running: usize,
    /// Running tasks that were started while the host was suspect.
    pub(super) suspects: usize,
    /// Running tasks that nobody has answered and that still have their slots, by their start.
    pub(super) unanswered: VecDeque<(Instant, u64)>,
    /// Running tasks that gave their slots up.
    pub(super) silent: usize,
    /// Tasks that wait here.
    pub(super) queued: usize,
    concurrency: usize,
    interval: Duration,
    /// The host's own wish.
    delay: Duration,
    /// Whether its answers decide how fast it is asked.
    adaptive: bool,
    tempo: Tempo,
    /// Earliest next start, by rate or by the host's own wish.
    next_at: Option<Instant>,
    urgent: BTreeMap<(u64, u64), Entry<T>>,
    jobs: HashMap<Arc<str>, VecDeque<Entry<T>>>,
    /// Jobs with queued tasks, in turn.
    turns: VecDeque<Arc<str>>,
    last_turn: u64,
}

impl<T> Host<T> {
    pub(super) fn new(name: Arc<str>, proven: bool) -> Self {
        Self {
            name,
            place: Place::Idle,
            breaker: Breaker::default(),
            proven,
            running: 0,
            suspects: 0,
            unanswered: VecDeque::new(),
            silent: 0,
            queued: 0,
            concurrency: 1,
            interval: Duration::ZERO,
            delay: Duration::ZERO,
            adaptive: false,
            tempo: Tempo::default(),
            next_at: None,
            urgent: BTreeMap::new(),
            jobs: HashMap::new(),
            turns: VecDeque::new(),
            last_turn: 0,
        }
    }

    pub(super) fn push(&mut self, entry: Entry<T>, turn: u64) {
        self.concurrency = entry.limits.concurrency.max(1);
        self.interval = entry.limits.interval;
        self.adaptive = entry.limits.adaptive;
        self.queued += 1;
        if self.is_empty() {
            self.last_turn = turn;
        }
        if entry.deadline_ms > 0 {
            self.urgent.insert((entry.deadline_ms, turn), entry);
            return;
        }
        if let Some(queue) = self.jobs.get_mut(&entry.job) {
            queue.push_back(entry);
            return;
        }
        self.turns.push_back(entry.job.clone());
        self.jobs.insert(entry.job.clone(), VecDeque::from([entry]));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.turns.is_empty()
    }

    /// The next task, earliest deadline first, then job by job.
    pub(super) fn pop(&mut self) -> Option<Entry<T>> {
        if let Some((_, entry)) = self.urgent.pop_first() {
            self.queued -= 1;
            return Some(entry);
        }
        let job = self.turns.pop_front()?;
        let queue = self.jobs.get_mut(&job)?;
        let entry = queue.pop_front();
        if queue.is_empty() {
            self.jobs.remove(&job);
        } else {
            self.turns.push_back(job);
        }
        self.queued -= usize::from(entry.is_some());
        entry
    }

    /// The task that would be the last one: one with a deadline only when there is no other.
    pub(super) fn pop_newest(&mut self) -> Option<Entry<T>> {
        let entry = match self.turns.back().and_then(|job| self.jobs.get_mut(job)) {
            Some(queue) => {
                let entry = queue.pop_back();
                if queue.is_empty()
                    && let Some(job) = self.turns.pop_back()
                {
                    self.jobs.remove(&job);
                }
                entry
            }
            None => self.urgent.pop_last().map(|(_, entry)| entry),
        };
        self.queued -= usize::from(entry.is_some());
        entry
    }

    /// Since when the next task waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        if let Some((_, entry)) = self.urgent.first_key_value() {
            return Some(entry.since);
        }
        let job = self.turns.front()?;
        self.jobs.get(job)?.front().map(|entry| entry.since)
    }

    pub(super) fn start(&mut self, now: Instant) -> Option<Entry<T>> {
        let entry = self.pop()?;
        self.running += 1;
        let mut interval = self.interval.max(self.delay);
        if self.adaptive {
            self.tempo.started(now);
            interval = interval.max(self.tempo.gap());
        }
        if interval > Duration::ZERO {
            let due = self.next_at.unwrap_or(now).max(now.checked_sub(SLACK).unwrap_or(now));
            self.next_at = Some(due + interval);
        }
        self.last_turn = 0;
        Some(entry)
    }

    /// From now on two starts are at least that far apart, whatever the limits of its tasks.
    pub(super) fn slow_down(&mut self, delay: Duration, now: Instant) {
        if self.delay != delay {
            self.delay = delay;
            self.next_at = self.next_at.max(Some(now + delay));
        }
    }

    /// What the answer to a request of `sent` says of the host's load.
    pub(super) fn learn(&mut self, sign: Sign, sent: Instant, now: Instant) {
        if self.adaptive {
            self.tempo.learn(sign, sent, now);
        }
    }

    /// Returns whether the ended task had a slot of the suspects' share.
    pub(super) fn finish(&mut self, verdict: Verdict, pause: Option<Duration>, now: Instant) -> bool {
        self.running -= 1;
        self.breaker.record(verdict, now);
        self.proven = (self.proven || verdict == Verdict::Good) && !self.breaker.is_down();
        if let Some(pause) = pause {
            self.next_at = self.next_at.max(Some(now + pause));
        }
        let counted = self.suspects > 0;
        self.suspects -= usize::from(counted);
        counted
    }

    pub(super) fn remove_job(&mut self, job: &str, removed: &mut Vec<T>) {
        let before = removed.len();
        let keys: Vec<_> = self.urgent.iter().filter(|(_, entry)| *entry.job == *job).map(|(key, _)| *key).collect();
        removed.extend(keys.iter().filter_map(|key| self.urgent.remove(key)).map(|entry| entry.task));
        if let Some(queue) = self.jobs.remove(job) {
            self.turns.retain(|other| **other != *job);
            removed.extend(queue.into_iter().map(|entry| entry.task));
        }
        self.queued -= removed.len() - before;
    }

    /// Takes out what `wanted` says.
    pub(super) fn remove_where(&mut self, wanted: &impl Fn(&T) -> bool, removed: &mut Vec<T>) {
        let before = removed.len();
        let keys: Vec<_> = self.urgent.iter().filter(|(_, entry)| wanted(&entry.task)).map(|(key, _)| *key).collect();
        removed.extend(keys.iter().filter_map(|key| self.urgent.remove(key)).map(|entry| entry.task));
        for queue in self.jobs.values_mut().filter(|queue| queue.iter().any(|entry| wanted(&entry.task))) {
            let (gone, kept) = std::mem::take(queue).into_iter().partition::<VecDeque<_>, _>(|entry| wanted(&entry.task));
            *queue = kept;
            removed.extend(gone.into_iter().map(|entry| entry.task));
        }
        self.jobs.retain(|_, queue| !queue.is_empty());
        self.turns.retain(|job| self.jobs.contains_key(job));
        self.queued -= removed.len() - before;
    }

    fn allowed(&self, now: Instant) -> usize {
        if self.breaker.is_half_open(now) {
            1
        } else if self.proven && !self.breaker.is_suspect() {
            self.concurrency
        } else {
            (self.concurrency / UNPROVEN_SHARE).max(1)
        }
    }

    /// Whether it has answered before and does not fail.
    pub(super) fn is_well(&self) -> bool {
        self.proven && !self.breaker.is_suspect()
    }

    /// Whether tasks run that nobody has answered.
    pub(super) fn is_unanswered(&self) -> bool {
        self.silent > 0 || !self.unanswered.is_empty()
    }

    /// Whether what waits here may have to wait for long: the host fails, or has not said a word.
    pub(super) fn stands_still(&self) -> bool {
        let unheard = || self.silent > 0 || self.breaker.is_suspect() || matches!(self.place, Place::Held(_));
        self.breaker.is_down() || (!self.proven && unheard())
    }

    /// What is to be expected of it while many wait. Unlike [`Host::stands_still`] this does not forgive a first rest.
    pub(super) fn hope(&self, now: Instant) -> Hope {
        if self.stands_still() || self.breaker.open_until(now).is_some() {
            Hope::Still
        } else if self.proven {
            Hope::Well
        } else {
            Hope::Untried
        }
    }

    pub(super) fn place_at(&mut self, now: Instant, suspects_full: bool, too_silent: bool, turn: u64) -> Place {
        if self.is_empty() {
            let remember = self.breaker.forget_at().max(self.next_at).max(self.tempo.forget_at()).filter(|at| *at > now);
            return remember.map_or(Place::Idle, Place::Timed);
        }
        if let Some(until) = self.breaker.open_until(now) {
            return if until - now > LONGEST_WAIT { Place::Draining } else { Place::Timed(until) };
        }
        if self.running >= self.allowed(now) {
            return Place::Full;
        }
        if let Some(at) = self.next_at.filter(|at| *at > now) {
            return Place::Timed(at);
        }
        if self.breaker.is_suspect() && suspects_full {
            return Place::Parked;
        }
        if !self.proven && too_silent {
            return if let Place::Held(_) = self.place { self.place } else { Place::Held(turn) };
        }
        if self.last_turn == 0 {
            self.last_turn = turn;
        }
        let deadline = self.urgent.first_key_value().map_or(u64::MAX, |(key, _)| key.0);
        Place::Ready(deadline, self.last_turn)
    }
}
