//! Hosts that do not answer.
//!
//! A connection that nobody answers costs next to nothing, but for as long as its time-out it would keep a slot from those who could use it. So a
//! task gives its slot up when its host, of which nothing good has been heard before, has been silent for [`PATIENCE`], and takes one again when the
//! host speaks. When many tasks wait in silence, other hosts that nobody knows wait for one of them to end. And what has waited long at such a host is
//! handed on, so that it holds up neither the commit of its partition nor the queue.

use std::time::{Duration, Instant};

use super::{HostId, Scheduler};

/// How much may wait at hosts that may not answer. What is more is handed on, newest first, so that those which do answer have their place; each
/// such host keeps an even share.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// What has waited since then at a host that stands still is handed on, oldest first, however little it is.
    pub before: Option<Instant>,
    /// With more waiting in all, hosts that stand still keep their share of so many.
    pub still: usize,
    /// With more waiting in all, hosts of which nothing is known keep their share of so many.
    pub most: usize,
}

/// What [`Scheduler::hand_on`] took out.
#[derive(Debug, PartialEq, Eq)]
pub struct HandedOn<T> {
    /// Tasks of hosts that stand still.
    pub still: Vec<T>,
    /// Tasks of hosts that had no turn yet.
    pub untried: Vec<T>,
}

/// What is to be expected of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hope {
    /// It has answered, and goes on.
    Well,
    /// Nothing is known of it.
    Untried,
    /// It fails, or is silent.
    Still,
}

/// How long a host may be silent before its task gives its slot up.
const PATIENCE: Duration = Duration::from_millis(250);

impl<T> Scheduler<T> {
    /// Sets how many tasks may wait in silence; as many as there are slots without.
    pub fn with_silent(mut self, most: usize) -> Self {
        self.most_silent = most.max(1);
        self
    }

    /// Whether no further host may be tried that may turn out to be silent.
    pub(super) fn is_too_silent(&self) -> bool {
        self.silent >= self.most_silent
    }

    /// Takes the slots of those whose hosts have been silent for long enough.
    pub(super) fn free_silent_slots(&mut self, now: Instant) {
        while let Some((at, id, _)) = self.unanswered.first().copied()
            && now.saturating_duration_since(at) >= PATIENCE
        {
            self.unanswered.pop_first();
            if let Some(host) = self.hosts.get_mut(id).and_then(Option::as_mut) {
                host.unanswered.pop_front();
                host.silent += 1;
                self.running -= 1;
                self.silent += 1;
            }
        }
    }

    /// When the next slot is given up.
    pub(super) fn next_silence(&self) -> Option<Instant> {
        self.unanswered.first().map(|(at, ..)| *at + PATIENCE)
    }

    /// The host has spoken: its tasks have slots again, be it more than there are.
    pub(super) fn heard(&mut self, id: HostId, now: Instant) {
        let Some(host) = self.hosts.get_mut(id).and_then(Option::as_mut) else { return };
        for (at, turn) in host.unanswered.drain(..) {
            self.unanswered.remove(&(at, id, turn));
        }
        let silent = std::mem::take(&mut host.silent);
        self.silent -= silent;
        self.running += silent;
        self.let_one_in(now);
    }

    /// One of the host's tasks ended. Which one is all the same: of a silent host the oldest end first.
    pub(super) fn give_slot_back(&mut self, id: HostId, now: Instant) {
        let Some(host) = self.hosts.get_mut(id).and_then(Option::as_mut) else { return };
        if host.silent > 0 {
            host.silent -= 1;
            self.silent -= 1;
            self.let_one_in(now);
            return;
        }
        self.running -= 1;
        if let Some((at, turn)) = host.unanswered.pop_front() {
            self.unanswered.remove(&(at, id, turn));
            self.let_one_in(now);
        }
    }

    /// Looks again at the first host that is held, for each task that was unanswered and is not any more: were all let in at once, they would take
    /// all slots.
    fn let_one_in(&mut self, now: Instant) {
        if let Some((_, held)) = self.held.first().copied() {
            self.replace(held, now);
        }
    }

    /// Whoever was let in may have had nothing to do after all; somebody must be.
    pub(super) fn keep_letting_in(&mut self, now: Instant) {
        if self.ready.is_empty() && self.silent == 0 && self.unanswered.is_empty() {
            self.let_one_in(now);
        }
    }

    /// Takes out what would only wait here, see [`Crowd`].
    pub fn hand_on(&mut self, crowd: Crowd, now: Instant) -> HandedOn<T> {
        let mut handed_on = HandedOn { still: Vec::new(), untried: Vec::new() };
        let (mut still, mut untried) = (0, 0);
        if self.queued > crowd.still {
            for host in self.hosts.iter().flatten().filter(|host| host.queued > 0) {
                match host.hope(now) {
                    Hope::Still => still += 1,
                    Hope::Untried => untried += 1,
                    Hope::Well => {}
                }
            }
        }
        let still_share = crowd.still / still.max(1);
        let untried_share = crowd.most / (still + untried).max(1);
        for id in 0..self.hosts.len() {
            let Some(host) = self.hosts[id].as_mut().filter(|host| host.queued > 0) else { continue };
            let had = host.queued;
            if host.stands_still() {
                while host.oldest().is_some_and(|since| crowd.before.is_some_and(|before| since <= before))
                    && let Some(entry) = host.pop()
                {
                    self.queued -= 1;
                    handed_on.still.push(entry.task);
                }
            }
            let (taken, share, most) = match host.hope(now) {
                Hope::Still => (&mut handed_on.still, still_share, crowd.still),
                Hope::Untried => (&mut handed_on.untried, untried_share, crowd.most),
                Hope::Well => continue,
            };
            while self.queued > most
                && host.queued > share
                && let Some(entry) = host.pop_newest()
            {
                self.queued -= 1;
                taken.push(entry.task);
            }
            if host.queued < had {
                self.replace(id, now);
            }
        }
        handed_on
    }
}

#[cfg(test)]
#[path = "silent_tests.rs"]
mod tests;
