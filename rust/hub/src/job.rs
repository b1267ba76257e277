//! What the ledger keeps of a job, and the rules by which outcomes count.

use bytes::Bytes;
use fetchbox_model::message::{JobState, ResourceState};
use fetchbox_model::state;
use prost::Message;
use uuid::Uuid;

use crate::frame::{Generation, JobFacts};

/// A job's id as the database knows it.
pub type JobId = [u8; 16];

/// Hashes ids: seeded, and a small part of what the standard library's costs.
pub type JobHash = foldhash::fast::RandomState;

/// The id in a text, if it is a UUID.
pub fn parse_id(text: &str) -> Option<JobId> {
    Uuid::try_parse(text).ok().map(Uuid::into_bytes)
}

/// The id as users know it.
pub fn id_text(id: &JobId) -> String {
    Uuid::from_bytes(*id).to_string()
}

/// How many resources are where.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
#[allow(missing_docs)]
pub struct Counts {
    #[prost(uint64, tag = "1")]
    pub total: u64,
    #[prost(uint64, tag = "2")]
    pub stored: u64,
    #[prost(uint64, tag = "3")]
    pub reused: u64,
    #[prost(uint64, tag = "4")]
    pub filtered: u64,
    #[prost(uint64, tag = "5")]
    pub failed: u64,
    #[prost(uint64, tag = "6")]
    pub cancelled: u64,
    #[prost(uint64, tag = "7")]
    pub bytes_stored: u64,
    /// How often a failed one was put back to work; no part of the sum.
    #[prost(uint64, tag = "8")]
    pub replayed: u64,
}

impl Counts {
    /// Resources without an outcome. Never below zero: a damaged record is for `ledger check` to find.
    pub fn pending(&self) -> u64 {
        [self.stored, self.reused, self.filtered, self.failed, self.cancelled].into_iter().fold(self.total, u64::saturating_sub)
    }

    /// Counts one more outcome; false for a state that is none.
    pub fn count(&mut self, state: ResourceState, size: u64) -> bool {
        match state {
            ResourceState::Stored => {
                self.stored += 1;
                self.bytes_stored += size;
            }
            ResourceState::Reused => self.reused += 1,
            ResourceState::Filtered => self.filtered += 1,
            ResourceState::Failed => self.failed += 1,
            ResourceState::Cancelled => self.cancelled += 1,
            ResourceState::Unknown => return false,
        }
        true
    }
}

/// Where a batch of the job's tasks stands in `jobs.tasks`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
#[allow(missing_docs)]
pub struct TaskSpan {
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    #[prost(uint32, tag = "3")]
    pub count: u32,
}

/// The last failure of a job.
#[derive(Clone, PartialEq, Eq, Message)]
#[allow(missing_docs)]
pub struct LastError {
    #[prost(string, tag = "1")]
    pub code: String,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(string, tag = "3")]
    pub resource_id: String,
    #[prost(uint32, tag = "4")]
    pub resource_index: u32,
    #[prost(uint32, tag = "5")]
    pub http_status: u32,
}

/// A job in the ledger.
#[derive(Clone, PartialEq, Message)]
pub struct JobRecord {
    /// As accepted, without reservation and limit.
    #[prost(message, required, tag = "1")]
    pub facts: JobFacts,
    /// Their sum is the total, always.
    #[prost(message, required, tag = "2")]
    pub counts: Counts,
    /// A bit per settled resource.
    #[prost(bytes = "vec", tag = "3")]
    pub bitmap: Vec<u8>,
    /// Of replayed resources, by index.
    #[prost(message, repeated, tag = "4")]
    pub generations: Vec<Generation>,
    /// Hub's wall clock at the last change, ms.
    #[prost(uint64, tag = "5")]
    pub updated_ms: u64,
    /// When nothing was pending any more, ms; 0 before.
    #[prost(uint64, tag = "6")]
    pub finished_ms: u64,
    /// A worker has begun, even without an outcome yet.
    #[prost(bool, tag = "7")]
    pub started: bool,
    /// The last failure.
    #[prost(message, optional, tag = "8")]
    pub last_error: Option<LastError>,
    /// Partition of `jobs.logs` that holds the job's log.
    #[prost(uint32, tag = "9")]
    pub log_partition: u32,
    /// Offset of its first log there.
    #[prost(uint64, tag = "10")]
    pub log_offset: u64,
    /// Offset behind its "settled" log; 0 before.
    #[prost(uint64, tag = "11")]
    pub log_end: u64,
    /// Its tasks.
    #[prost(message, repeated, tag = "12")]
    pub spans: Vec<TaskSpan>,
    /// Key of the reservation, to delete both together.
    #[prost(bytes = "bytes", tag = "13")]
    pub reservation: Bytes,
    /// Sequence of the pack with the manifest plus one; 0 for none.
    #[prost(uint64, tag = "14")]
    pub manifest_blob: u64,
    /// Failed resources whose dead letters were purged.
    #[prost(uint64, tag = "15")]
    pub purged: u64,
    /// The first outcome of a job of one resource, unless it failed: a pack of its own would cost more than the rest of the job.
    #[prost(bytes = "bytes", tag = "16")]
    pub outcome: Bytes,
    /// Its tasks were published by their producer; see `direct`.
    #[prost(bool, tag = "17")]
    pub direct: bool,
    /// They do not say how many they are.
    #[prost(bool, tag = "18")]
    pub counted_by_id: bool,
    /// Their producer has said that there are no more.
    #[prost(bool, tag = "19")]
    pub closed: bool,
    /// Of the failed resources those that were told of in an event of their own.
    #[prost(uint64, tag = "20")]
    pub announced: u64,
}

/// What an outcome does to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It counts.
    Counts,
    /// The resource has its outcome already.
    Duplicate,
    /// It speaks of another generation.
    Stale,
    /// There is no such resource, or no such state.
    Unknown,
}

impl JobRecord {
    /// Whether nothing will change by itself any more. One that is counted by ids is over when it was said, or was silent for long.
    pub fn is_over(&self) -> bool {
        self.counts.pending() == 0 && (!self.counted_by_id || self.finished_ms != 0)
    }

    /// The state that the counts mean.
    pub fn state(&self) -> JobState {
        if self.counted_by_id && self.finished_ms == 0 {
            return JobState::InProgress;
        }
        let Counts { total, stored, reused, filtered, failed, cancelled, .. } = self.counts;
        let [total, stored, reused, filtered, failed, cancelled] =
            [total, stored, reused, filtered, failed, cancelled].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        state::job_state(&state::Counts { total, stored, reused, filtered, failed, cancelled }, self.started)
    }

    /// Whether this resource has its outcome.
    pub fn is_settled(&self, index: u32) -> bool {
        self.bitmap.get(index as usize / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    }

    /// The resource's current generation.
    pub fn generation(&self, index: u32) -> u32 {
        generation(&self.generations, index)
    }

    /// What an outcome of this index and generation would do.
    pub fn judge(&self, index: u32, generation: u32, state: ResourceState) -> Verdict {
        if u64::from(index) >= self.counts.total || state == ResourceState::Unknown {
            Verdict::Unknown
        } else if generation != self.generation(index) {
            Verdict::Stale
        } else if self.is_settled(index) {
            Verdict::Duplicate
        } else {
            Verdict::Counts
        }
    }

    /// Counts an outcome that was judged to count.
    pub fn settle(&mut self, index: u32, state: ResourceState, size: u64) {
        let byte = index as usize / 8;
        if self.bitmap.len() <= byte {
            self.bitmap.resize(byte + 1, 0);
        }
        self.bitmap[byte] |= 1 << (index % 8);
        self.counts.count(state, size);
        self.started = true;
    }

    /// Puts a failed resource back to work under its next generation (f, and F for a settled job). False, and no change, when it is not failed in
    /// that generation or its job was cancelled.
    pub fn revive(&mut self, index: u32, generation: u32) -> bool {
        if self.state() == JobState::Cancelled || !self.is_settled(index) || self.generation(index) != generation || self.counts.failed == 0
        {
            return false;
        }
        self.bitmap[index as usize / 8] &= !(1 << (index % 8));
        let next = Generation { index, generation: generation + 1 };
        match self.generations.binary_search_by_key(&index, |g| g.index) {
            Ok(at) => self.generations[at] = next,
            Err(at) => self.generations.insert(at, next),
        }
        self.counts.failed -= 1;
        // Perhaps it was none of them: then too few are known to be told, and all are told again.
        self.announced = self.announced.saturating_sub(1);
        self.counts.replayed += 1;
        (self.finished_ms, self.log_end) = (0, 0);
        if self.counts.failed == 0 {
            self.last_error = None;
        }
        true
    }

    /// Dead letters that can be replayed or purged.
    pub fn letters(&self) -> u64 {
        self.counts.failed.saturating_sub(self.purged)
    }

    /// Indexes without an outcome.
    pub fn pending(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.counts.total as u32).filter(|&index| !self.is_settled(index))
    }
}

/// The generation of an index in a list that is in order of indexes; 0 for one that is not in it.
pub fn generation(list: &[Generation], index: u32) -> u32 {
    list.binary_search_by_key(&index, |g| g.index).map_or(0, |at| list[at].generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(total: u64) -> JobRecord {
        JobRecord { counts: Counts { total, ..Default::default() }, ..Default::default() }
    }

    #[test]
    fn an_outcome_counts_once_and_only_for_its_generation() {
        let mut job = job(10);
        assert_eq!(job.judge(9, 0, ResourceState::Stored), Verdict::Counts);
        job.settle(9, ResourceState::Stored, 5);
        assert_eq!(job.judge(9, 0, ResourceState::Failed), Verdict::Duplicate);
        assert_eq!(job.judge(9, 1, ResourceState::Stored), Verdict::Stale);
        assert_eq!(job.judge(10, 0, ResourceState::Stored), Verdict::Unknown);
        assert_eq!(job.judge(0, 0, ResourceState::Unknown), Verdict::Unknown);
        job.generations.push(Generation { index: 3, generation: 2 });
        assert_eq!(job.judge(3, 1, ResourceState::Stored), Verdict::Stale);
        assert_eq!(job.judge(3, 2, ResourceState::Stored), Verdict::Counts);
        assert_eq!((job.counts.pending(), job.counts.bytes_stored, job.pending().count()), (9, 5, 9));
    }

    #[test]
    fn a_failed_resource_is_revived_once_in_each_generation() {
        let mut job = job(3);
        job.settle(2, ResourceState::Failed, 0);
        job.settle(0, ResourceState::Failed, 0);
        assert!(!job.revive(1, 0), "pending");
        assert!(!job.revive(2, 1), "another generation");
        job.last_error = Some(LastError::default());
        assert!(job.revive(2, 0) && !job.revive(2, 0));
        assert!(job.last_error.is_some());
        assert!(job.revive(0, 0) && job.last_error.is_none());
        assert_eq!((job.counts.failed, job.counts.replayed, job.counts.pending(), job.generation(2), job.generation(0)), (0, 2, 3, 1, 1));
        // What the older generation says now is late; the current one counts, and may die and live again.
        assert_eq!(job.judge(2, 0, ResourceState::Stored), Verdict::Stale);
        assert_eq!(job.judge(2, 1, ResourceState::Stored), Verdict::Counts);
        job.settle(2, ResourceState::Failed, 0);
        (job.finished_ms, job.log_end) = (5, 7);
        assert!(job.revive(2, 1));
        assert_eq!((job.generation(2), job.finished_ms, job.log_end, job.state()), (2, 0, 0, JobState::InProgress));
    }

    #[test]
    fn a_cancelled_job_stays_as_it_is() {
        let mut job = job(2);
        job.settle(0, ResourceState::Failed, 0);
        job.settle(1, ResourceState::Cancelled, 0);
        assert!(!job.revive(0, 0));
        assert_eq!((job.counts.failed, job.letters()), (1, 1));
    }

    #[test]
    fn ids_are_uuids() {
        let id = parse_id("0190b6d4-0000-7000-8000-000000000001").unwrap();
        assert_eq!(id_text(&id), "0190b6d4-0000-7000-8000-000000000001");
        assert_eq!(parse_id("../x"), None);
    }
}
