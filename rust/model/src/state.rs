//! The states of jobs and resources, as docs/states.md draws them: total functions, each transition named by the letter it has there.

use crate::message::{JobState, ResourceState};

/// How many resources of a job are in which state; pending is what remains of the total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Resources accepted.
    pub total: u32,
    /// Downloaded and stored.
    pub stored: u32,
    /// An earlier object was still good.
    pub reused: u32,
    /// Left out on purpose.
    pub filtered: u32,
    /// Given up.
    pub failed: u32,
    /// Cancelled before an outcome.
    pub cancelled: u32,
}

impl Counts {
    /// Counts of a job of which nothing has happened yet.
    pub fn new(total: u32) -> Self {
        Self { total, ..Self::default() }
    }

    /// Resources that have an outcome.
    pub fn settled(&self) -> u32 {
        [self.stored, self.reused, self.filtered, self.failed, self.cancelled].into_iter().fold(0, u32::saturating_add)
    }

    /// Resources without an outcome. Never below zero, so that a damaged row cannot make a job look busy for ever.
    pub fn pending(&self) -> u32 {
        self.total.saturating_sub(self.settled())
    }

    /// Whether the parts add up to the total at most: `total = pending + settled`.
    pub fn is_exact(&self) -> bool {
        let settled: u64 = [self.stored, self.reused, self.filtered, self.failed, self.cancelled].into_iter().map(u64::from).sum();
        settled <= u64::from(self.total)
    }

    /// Moves one resource between states. `None`, and no change, when the count it would leave is empty.
    pub fn apply(&mut self, transition: Transition) -> Option<()> {
        if transition == Transition::Replay {
            self.failed = self.failed.checked_sub(1)?;
            return Some(());
        }
        self.pending().checked_sub(1)?;
        *match transition {
            Transition::Store => &mut self.stored,
            Transition::Reuse => &mut self.reused,
            Transition::Filter => &mut self.filtered,
            Transition::Fail | Transition::Replay => &mut self.failed,
            Transition::Cancel => &mut self.cancelled,
        } += 1;
        Some(())
    }
}

/// The state of a job. `started` is set by the first sign of work, an outcome or a worker's start, and stays set.
pub fn job_state(counts: &Counts, started: bool) -> JobState {
    if counts.pending() > 0 {
        let touched = started || counts.settled() > 0;
        return if touched { JobState::InProgress } else { JobState::Queued };
    }
    if counts.cancelled > 0 {
        JobState::Cancelled
    } else if counts.failed == 0 {
        JobState::Completed
    } else if counts.stored > 0 || counts.reused > 0 {
        JobState::Partial
    } else {
        JobState::Failed
    }
}

/// The letter of a job's transition in docs/states.md; `None` when no such transition exists.
pub fn job_transition(from: JobState, to: JobState) -> Option<char> {
    use JobState::{Cancelled, Completed, Failed, InProgress, Partial, Queued};
    Some(match (from, to) {
        (Queued, InProgress) => 'A',
        (Queued | InProgress, Completed) => 'B',
        (Queued | InProgress, Partial) => 'C',
        (Queued | InProgress, Failed) => 'D',
        (Queued | InProgress, Cancelled) => 'E',
        (Partial | Failed, InProgress) => 'F',
        _ => return None,
    })
}

/// The state's name in answers and filters, lower-case.
pub fn job_state_name(state: JobState) -> &'static str {
    match state {
        JobState::Unknown => "unknown",
        JobState::Queued => "queued",
        JobState::InProgress => "in_progress",
        JobState::Partial => "partial",
        JobState::Completed => "completed",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

/// The resource state's name in answers and filters, lower-case; a resource without an outcome is pending.
pub fn resource_state_name(state: ResourceState) -> &'static str {
    match state {
        ResourceState::Unknown => "pending",
        ResourceState::Stored => "stored",
        ResourceState::Reused => "reused",
        ResourceState::Filtered => "filtered",
        ResourceState::Failed => "failed",
        ResourceState::Cancelled => "cancelled",
    }
}

/// What can happen to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceEvent {
    /// An outcome of the current generation arrived. `Unknown` is none.
    Outcome(ResourceState),
    /// Its job was cancelled.
    Cancel,
    /// An operator asked for another try.
    Replay,
}

/// A change of one resource, with its letter in docs/states.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// a: pending → stored.
    Store,
    /// b: pending → reused.
    Reuse,
    /// c: pending → filtered.
    Filter,
    /// d: pending → failed.
    Fail,
    /// e: pending → cancelled.
    Cancel,
    /// f: failed → pending, with the next generation.
    Replay,
}

impl Transition {
    /// The transition's letter in docs/states.md.
    pub fn letter(self) -> char {
        match self {
            Self::Store => 'a',
            Self::Reuse => 'b',
            Self::Filter => 'c',
            Self::Fail => 'd',
            Self::Cancel => 'e',
            Self::Replay => 'f',
        }
    }

    /// The state after it; `Unknown` is pending.
    pub fn target(self) -> ResourceState {
        match self {
            Self::Store => ResourceState::Stored,
            Self::Reuse => ResourceState::Reused,
            Self::Filter => ResourceState::Filtered,
            Self::Fail => ResourceState::Failed,
            Self::Cancel => ResourceState::Cancelled,
            Self::Replay => ResourceState::Unknown,
        }
    }
}

/// What an event does to a resource in state `from` (`Unknown` is pending). `None`: nothing, a duplicate or a late arrival.
pub fn resource_transition(from: ResourceState, event: ResourceEvent) -> Option<Transition> {
    match (from, event) {
        (ResourceState::Unknown, ResourceEvent::Outcome(state)) => match state {
            ResourceState::Unknown => None,
            ResourceState::Stored => Some(Transition::Store),
            ResourceState::Reused => Some(Transition::Reuse),
            ResourceState::Filtered => Some(Transition::Filter),
            ResourceState::Failed => Some(Transition::Fail),
            ResourceState::Cancelled => Some(Transition::Cancel),
        },
        (ResourceState::Unknown, ResourceEvent::Cancel) => Some(Transition::Cancel),
        (ResourceState::Failed, ResourceEvent::Replay) => Some(Transition::Replay),
        _ => None,
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
