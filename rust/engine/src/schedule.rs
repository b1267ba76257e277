//! Which task starts next. Pure: time is passed in and tasks are opaque.
//!
//! Tasks wait in queues of their host. A host that may start something stands in one ordered set; whoever is popped goes to its end, so hosts take
//! turns, and within a host jobs take turns. Hosts that fail share a small part of the slots, one that is silent gives its slot up (see [`silent`]), and
//! one whose circuit is open for long gives its tasks back. Every operation is O(log n) in hosts and tasks.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::breaker::Verdict;
use host::{Host, Place};
use tempo::Sign;

pub use silent::{Crowd, HandedOn};

mod host;
mod silent;
pub mod tempo;

/// A retry or pause up to this long is waited for inside the engine.
pub const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// One of so many starts goes to a host without deadlines even when others have some.
const FAIR_EVERY: u64 = 4;
/// This fraction of the slots is for hosts that have not answered yet, while known ones have something to start.
const UNKNOWN_SHARE: usize = 2;
/// Hosts without tasks that are remembered as answering; beyond that all are forgotten.
const MOST_KNOWN: usize = 65_536;
/// Failing hosts share this fraction of the slots.
const SUSPECT_SHARE: usize = 8;

/// Limits that hold for one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    /// Downloads at once.
    pub concurrency: usize,
    /// Shortest time between two starts.
    pub interval: Duration,
    /// Whether the host's answers make it longer.
    pub adaptive: bool,
}

/// A task with what the scheduler needs to know of it.
#[derive(Debug)]
pub struct Entry<T> {
    /// The host it belongs to.
    pub host: Arc<str>,
    /// Its job.
    pub job: Arc<str>,
    /// Wall clock milliseconds; 0 for none. Earlier ones go first.
    pub deadline_ms: u64,
    /// The host's limits as this task's job type has them.
    pub limits: HostLimits,
    /// When it came, earlier attempts included.
    pub since: Instant,
    /// The task.
    pub task: T,
}

/// A host's number while it has tasks.
pub type HostId = usize;

/// What to do next.
#[derive(Debug)]
pub enum Next<T> {
    /// Start it; tell [`Scheduler::finish`] when it ended.
    Start(HostId, Entry<T>),
    /// Its host rests for longer than the engine waits.
    GiveBack(Entry<T>, Instant),
    /// Nothing can be started now.
    Nothing,
}

/// The queues.
pub struct Scheduler<T> {
    concurrency: usize,
    /// Tasks that may wait in silence before further unknown hosts are held.
    most_silent: usize,
    /// Slots in use.
    running: usize,
    /// Running tasks whose silent hosts gave up their slots.
    silent: usize,
    suspects_running: usize,
    queued: usize,
    turn: u64,
    hosts: Vec<Option<Host<T>>>,
    free: Vec<HostId>,
    names: HashMap<Arc<str>, HostId>,
    /// Hosts that answered and have nothing to do at the moment.
    known: HashSet<Arc<str>>,
    /// (deadline or `u64::MAX`, turn, host): hosts that may start something.
    ready: BTreeSet<(u64, u64, HostId)>,
    /// Those of them that have answered before and do not fail.
    ready_well: BTreeSet<(u64, u64, HostId)>,
    /// Hosts that wait for their time.
    timed: BTreeSet<(Instant, HostId)>,
    /// Failing hosts that wait for a slot of the suspects' share.
    parked: VecDeque<HostId>,
    /// Hosts that nobody has heard of, while too many are silent.
    held: BTreeSet<(u64, HostId)>,
    /// Running tasks of hosts that have not answered yet, by their start.
    unanswered: BTreeSet<(Instant, HostId, u64)>,
    /// Hosts that rest for long and still hold tasks.
    draining: BTreeSet<HostId>,
    /// Tasks that wait for their own time.
    delayed: BTreeMap<(Instant, u64), Entry<T>>,
}

impl<T> Scheduler<T> {
    /// `concurrency` is the number of slots.
    pub fn new(concurrency: usize) -> Self {
        Self {
            concurrency: concurrency.max(1),
            most_silent: concurrency.max(1),
            running: 0,
            silent: 0,
            suspects_running: 0,
            queued: 0,
            turn: 0,
            hosts: Vec::new(),
            free: Vec::new(),
            names: HashMap::new(),
            known: HashSet::new(),
            ready: BTreeSet::new(),
            ready_well: BTreeSet::new(),
            timed: BTreeSet::new(),
            parked: VecDeque::new(),
            held: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            draining: BTreeSet::new(),
            delayed: BTreeMap::new(),
        }
    }

    /// Tasks that wait.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Whether an eighth of the slots or more stands free: what waits, waits for something else. One or two are free at any time, between a task
    /// and the next.
    pub fn has_room(&self) -> bool {
        self.running.saturating_mul(8) < self.concurrency.saturating_mul(7)
    }

    /// Tasks started and not finished.
    pub fn running(&self) -> usize {
        self.running + self.silent
    }

    /// Hosts known, and those of them whose circuit is open.
    pub fn host_counts(&self, now: Instant) -> (usize, usize) {
        let open = self.hosts.iter().flatten().filter(|host| host.breaker.open_until(now).is_some()).count();
        (self.names.len(), open)
    }

    /// Queues a task that may start at once.
    pub fn push(&mut self, entry: Entry<T>, now: Instant) {
        self.queued += 1;
        self.enqueue(entry, now);
    }

    /// Queues a task that may start at `at`.
    pub fn push_at(&mut self, entry: Entry<T>, at: Instant) {
        self.queued += 1;
        self.turn += 1;
        self.delayed.insert((at, self.turn), entry);
    }

    fn enqueue(&mut self, entry: Entry<T>, now: Instant) {
        let id = match self.names.get(&entry.host) {
            Some(id) => *id,
            None => self.add_host(entry.host.clone()),
        };
        self.turn += 1;
        let turn = self.turn;
        if let Some(host) = self.hosts.get_mut(id).and_then(Option::as_mut) {
            host.push(entry, turn);
        }
        self.replace(id, now);
    }

    fn add_host(&mut self, name: Arc<str>) -> HostId {
        let known = self.known.remove(&name);
        let host = Some(Host::new(name.clone(), known));
        let id = match self.free.pop() {
            Some(id) => {
                self.hosts[id] = host;
                id
            }
            None => {
                self.hosts.push(host);
                self.hosts.len() - 1
            }
        };
        self.names.insert(name, id);
        id
    }

    /// The next thing to do at `now`.
    pub fn next(&mut self, now: Instant) -> Next<T> {
        self.wake(now);
        if self.running < self.concurrency
            && let Some(id) = self.pick(now)
            && let Some(host) = self.hosts.get_mut(id).and_then(Option::as_mut)
            && let Some(entry) = host.start(now)
        {
            self.queued -= 1;
            self.running += 1;
            self.suspects_running += usize::from(host.breaker.is_suspect());
            host.suspects += usize::from(host.breaker.is_suspect());
            self.turn += 1;
            if !host.is_well() {
                host.unanswered.push_back((now, self.turn));
                self.unanswered.insert((now, id, self.turn));
            }
            self.replace(id, now);
            return Next::Start(id, entry);
        }
        if let Some(id) = self.draining.first().copied()
            && let Some(host) = self.hosts.get_mut(id).and_then(Option::as_mut)
        {
            let until = host.breaker.open_until(now).unwrap_or(now);
            if let Some(entry) = host.pop() {
                self.queued -= 1;
                self.replace(id, now);
                return Next::GiveBack(entry, until);
            }
        }
        Next::Nothing
    }

    /// Deadlines first, but not always: a caller with nothing but deadlines may not starve the others.
    fn pick(&mut self, now: Instant) -> Option<HostId> {
        loop {
            // Unknown hosts may be silent: with half of the slots theirs, known ones go first.
            let in_turn = self.ready_well.is_empty() || self.unanswered.len() * UNKNOWN_SHARE < self.concurrency;
            let ready = if in_turn { &self.ready } else { &self.ready_well };
            let mut first = *ready.first()?;
            if first.0 != u64::MAX && self.turn.is_multiple_of(FAIR_EVERY) {
                first = ready.range((u64::MAX, 0, 0)..).next().copied().unwrap_or(first);
            }
            let id = first.2;
            // The suspects' share may have filled up since the host became ready: then it is parked now.
            self.replace(id, now);
            if self.ready.contains(&first) {
                return Some(id);
            }
        }
    }

    fn wake(&mut self, now: Instant) {
        while let Some((key, _)) = self.delayed.first_key_value()
            && key.0 <= now
        {
            if let Some((_, entry)) = self.delayed.pop_first() {
                self.enqueue(entry, now);
            }
        }
        while let Some((at, id)) = self.timed.first().copied()
            && at <= now
        {
            self.replace(id, now);
        }
        self.free_silent_slots(now);
        self.keep_letting_in(now);
    }

    /// When [`Scheduler::next`] may have something although nothing else happened.
    pub fn next_wake(&self) -> Option<Instant> {
        let delayed = self.delayed.first_key_value().map(|(key, _)| key.0);
        let timed = self.timed.first().map(|(at, _)| *at);
        delayed.into_iter().chain(timed).chain(self.next_silence()).min()
    }

    /// Whether the host has answered before, and does not fail.
    pub fn is_proven(&self, id: HostId) -> bool {
        self.hosts.get(id).and_then(Option::as_ref).is_some_and(|host| host.is_well())
    }

    /// A running task of the host got an answer: the host need not prove itself any more.
    pub fn prove(&mut self, id: HostId, now: Instant) {
        if let Some(host) = self.hosts.get_mut(id).and_then(Option::as_mut)
            && (!host.proven || host.is_unanswered())
        {
            host.proven = true;
            self.heard(id, now);
            self.replace(id, now);
        }
    }

    /// The host wants so much time between two starts. It is forgotten with the host.
    pub fn slow_down(&mut self, name: &str, delay: Duration, now: Instant) {
        if let Some(&id) = self.names.get(name)
            && let Some(host) = self.hosts.get_mut(id).and_then(Option::as_mut)
        {
            host.slow_down(delay, now);
            self.replace(id, now);
        }
    }

    /// A request of `sent` was answered, or not; tell this before [`Scheduler::finish`].
    pub fn learn(&mut self, id: HostId, sign: Sign, sent: Instant, now: Instant) {
        if let Some(host) = self.hosts.get_mut(id).and_then(Option::as_mut) {
            host.learn(sign, sent, now);
        }
    }

    /// A started task ended. `pause` keeps the whole host from starting anything for so long.
    pub fn finish(&mut self, id: HostId, verdict: Verdict, pause: Option<Duration>, now: Instant) {
        self.give_slot_back(id, now);
        let Some(host) = self.hosts.get_mut(id).and_then(Option::as_mut) else { return };
        if host.finish(verdict, pause, now) {
            self.suspects_running -= 1;
        }
        self.replace(id, now);
        if let Some(parked) = self.parked.front().copied() {
            self.replace(parked, now);
        }
    }

    /// Takes out every waiting task of a job.
    pub fn remove_job(&mut self, job: &str, now: Instant) -> Vec<T> {
        let mut removed = Vec::new();
        let keys: Vec<_> = self.delayed.iter().filter(|(_, entry)| *entry.job == *job).map(|(key, _)| *key).collect();
        removed.extend(keys.iter().filter_map(|key| self.delayed.remove(key)).map(|entry| entry.task));
        for id in 0..self.hosts.len() {
            if let Some(host) = self.hosts[id].as_mut() {
                let before = removed.len();
                host.remove_job(job, &mut removed);
                if removed.len() > before {
                    self.replace(id, now);
                }
            }
        }
        self.queued -= removed.len();
        removed
    }

    /// Takes out the waiting tasks that `wanted` names.
    pub fn remove_where(&mut self, wanted: impl Fn(&T) -> bool, now: Instant) -> Vec<T> {
        let mut removed = Vec::new();
        let keys: Vec<_> = self.delayed.iter().filter(|(_, entry)| wanted(&entry.task)).map(|(key, _)| *key).collect();
        removed.extend(keys.iter().filter_map(|key| self.delayed.remove(key)).map(|entry| entry.task));
        for id in 0..self.hosts.len() {
            if let Some(host) = self.hosts[id].as_mut() {
                let before = removed.len();
                host.remove_where(&wanted, &mut removed);
                if removed.len() > before {
                    self.replace(id, now);
                }
            }
        }
        self.queued -= removed.len();
        removed
    }

    /// Takes out every waiting task.
    pub fn remove_all(&mut self, now: Instant) -> Vec<T> {
        let mut removed: Vec<T> = std::mem::take(&mut self.delayed).into_values().map(|entry| entry.task).collect();
        for id in 0..self.hosts.len() {
            if let Some(host) = self.hosts[id].as_mut() {
                removed.extend(std::iter::from_fn(|| host.pop()).map(|entry| entry.task));
                self.replace(id, now);
            }
        }
        self.queued = 0;
        removed
    }

    /// Puts a host where it belongs after anything about it changed.
    fn replace(&mut self, id: HostId, now: Instant) {
        let suspects_full = self.suspects_running >= (self.concurrency / SUSPECT_SHARE).max(1);
        let too_silent = self.is_too_silent();
        let Some(host) = self.hosts.get_mut(id).and_then(Option::as_mut) else { return };
        let old = host.place;
        let place = host.place_at(now, suspects_full, too_silent, self.turn);
        if let Place::Ready(deadline, turn) = old {
            self.ready_well.remove(&(deadline, turn, id));
        }
        if let Place::Ready(deadline, turn) = place
            && host.is_well()
        {
            self.ready_well.insert((deadline, turn, id));
        }
        if place == old && place != Place::Idle {
            return;
        }
        host.place = place;
        match old {
            Place::Ready(deadline, turn) => drop(self.ready.remove(&(deadline, turn, id))),
            Place::Timed(at) => drop(self.timed.remove(&(at, id))),
            Place::Draining => drop(self.draining.remove(&id)),
            // Only the front leaves when a slot is free; a cancelled job may empty one in the middle.
            Place::Parked if self.parked.front() == Some(&id) => drop(self.parked.pop_front()),
            Place::Parked => self.parked.retain(|other| *other != id),
            Place::Held(turn) => drop(self.held.remove(&(turn, id))),
            Place::Idle | Place::Full => {}
        }
        match place {
            Place::Ready(deadline, turn) => drop(self.ready.insert((deadline, turn, id))),
            Place::Timed(at) => drop(self.timed.insert((at, id))),
            Place::Draining => drop(self.draining.insert(id)),
            Place::Parked => self.parked.push_back(id),
            Place::Held(turn) => drop(self.held.insert((turn, id))),
            Place::Full => {}
            Place::Idle => {
                if host.running == 0 {
                    self.names.remove(&host.name);
                    if host.proven {
                        if self.known.len() >= MOST_KNOWN {
                            self.known.clear();
                        }
                        self.known.insert(host.name.clone());
                    }
                    self.hosts[id] = None;
                    self.free.push(id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
