//! `Follower`: a member of a consumer group that reads a topic message by message, and commits how far it came.
//!
//! For what is rare beside tasks, such as jobs that were settled: it says of each message where it ends, and the caller commits what it is done with.

use std::collections::BTreeMap;
use std::sync::Mutex;

use fetchbox_hub::{Assignment, JoinRequest, PollReply, PollRequest, PolledBatch, Position};
use fetchbox_model::batch;
use fetchbox_model::message::{JobStatus, ResourceState};
use fetchbox_model::stream::Topic;
use prost::Message;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::broker::pack;
use crate::completion::lock;
use crate::error::CoreError;

/// Most bytes of one poll.
const POLL_BYTES: u32 = 1 << 20;

/// Where one message ends, the job it speaks of, and index and generation of the resources that it says to have failed.
pub type Told = (u32, u64, String, Vec<(u32, u32)>);

#[derive(Default)]
struct State {
    epoch: u64,
    /// Per partition that it owns, what it reads next.
    positions: BTreeMap<u32, u64>,
}

/// A place in a group.
#[pyclass(frozen, module = "fetchbox._core")]
pub struct Follower {
    pub topic: Topic,
    pub group: String,
    pub member: String,
    state: Mutex<State>,
}

#[pymethods]
impl Follower {
    #[new]
    fn new(topic: &str, group: String, member: String) -> PyResult<Self> {
        let topic = Topic::from_name(topic).ok_or_else(|| CoreError::new("config", "topic", format!("there is no topic {topic}")))?;
        Ok(Self { topic, group, member, state: Mutex::default() })
    }

    fn partitions(&self) -> Vec<u32> {
        lock(&self.state).positions.keys().copied().collect()
    }

    /// Where it reads on, by partition.
    fn positions(&self) -> Vec<(u32, u64)> {
        lock(&self.state).positions.iter().map(|(&partition, &next)| (partition, next)).collect()
    }

    /// Moves on behind messages that were read, and tells of each: partition, offset behind it, the job that it speaks of, and what of it failed.
    #[pyo3(name = "take")]
    fn take_messages(&self, polled: Vec<(u32, u64, Vec<Bound<'_, PyBytes>>)>) -> Vec<Told> {
        let batch = |(partition, base_offset, messages): (u32, u64, Vec<Bound<'_, PyBytes>>)| PolledBatch {
            partition,
            base_offset,
            count: messages.len() as u32,
            bytes: pack(&messages),
        };
        self.take(PollReply { assignment: None, batches: polled.into_iter().map(batch).collect() })
    }
}

impl Follower {
    /// The request with which it joins, leaves, or gives partitions up.
    pub fn request(&self, partitions: Vec<u32>) -> JoinRequest {
        JoinRequest { topic: self.topic as u32, group: self.group.clone(), member: self.member.clone(), partitions }
    }

    /// The next poll.
    pub fn poll(&self, max_messages: u32, wait_ms: u32) -> PollRequest {
        let state = lock(&self.state);
        PollRequest {
            topic: self.topic as u32,
            group: self.group.clone(),
            member: self.member.clone(),
            epoch: state.epoch,
            wait_ms,
            positions: state.positions.iter().map(|(&partition, &next_offset)| Position { partition, next_offset }).collect(),
            max_messages,
            max_bytes: POLL_BYTES,
        }
    }

    /// Takes over an assignment; the partitions to give up. Who gets them begins at what is committed, so nothing has to be finished first.
    pub fn assign(&self, assignment: &Assignment) -> Vec<u32> {
        let mut state = lock(&self.state);
        state.epoch = assignment.epoch;
        let mut positions = BTreeMap::new();
        for owned in assignment.partitions.iter().filter(|owned| !owned.revoking) {
            let known = state.positions.get(&owned.partition).copied();
            positions.insert(owned.partition, known.unwrap_or(owned.committed));
        }
        state.positions = positions;
        assignment.partitions.iter().filter(|owned| owned.revoking).map(|owned| owned.partition).collect()
    }

    /// Moves on behind what came, and tells of it.
    pub fn take(&self, reply: PollReply) -> Vec<Told> {
        let mut state = lock(&self.state);
        let mut told = Vec::new();
        for polled in reply.batches {
            let Some(next) = state.positions.get_mut(&polled.partition) else { continue };
            let first = *next;
            *next = first.max(polled.base_offset + u64::from(polled.count));
            // What cannot be read speaks of no job, and is passed over.
            let messages = batch::unpack(&polled.bytes).unwrap_or_default();
            for (offset, message) in (polled.base_offset..).zip(messages) {
                if offset >= first {
                    let status = JobStatus::decode(message).unwrap_or_default();
                    let failed = status.outcomes.iter().filter(|outcome| outcome.state() == ResourceState::Failed);
                    let failed = failed.map(|outcome| (outcome.resource_index, outcome.generation)).collect();
                    told.push((polled.partition, offset + 1, status.job_id, failed));
                }
            }
        }
        told
    }
}
