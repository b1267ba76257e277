//! Hosts that do not answer.
//!
//! A connection that nobody answers costs next to nothing, but for as long as its time-out it would keep a slot from those who could use it. So a
//! task gives its slot up when its host, of which nothing good has been heard before, has been silent for [`PATIENCE`], and takes one again when the
//! host speaks. When many tasks wait in silence, other hosts that nobody knows wait for one of them to end. And what has waited long at such a host is
//! handed on, so that it holds up neither the commit of its partition nor the queue.

use std::time::{Duration, Instant};

use super::{HostId, Scheduler};

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

    /// Takes out what has waited since `before` at hosts that stand still, oldest first, and of them whatever makes more than `most` waiting in all.
    pub fn hand_on(&mut self, before: Instant, most: usize, now: Instant) -> Vec<T> {
        let mut taken = Vec::new();
        for id in 0..self.hosts.len() {
            let Some(host) = self.hosts[id].as_mut().filter(|host| host.queued > 0 && host.stands_still()) else { continue };
            let had = taken.len();
            while self.queued > most || host.oldest().is_some_and(|since| since <= before) {
                let Some(entry) = host.pop() else { break };
                self.queued -= 1;
                taken.push(entry.task);
            }
            if taken.len() > had {
                self.replace(id, now);
            }
        }
        taken
    }
}

#[cfg(test)]
#[path = "silent_tests.rs"]
mod tests;
