//! Outcomes as the projection sees them (a few fields, the rest stays bytes) and as the ledger keeps them: packed, all of one job and commit under
//! one key.

use std::collections::BTreeMap;

use bytes::Bytes;
use fetchbox_model::batch::{self, BatchBuilder};
use fetchbox_model::message::{ResourceOutcome, ResourceState};
use prost::Message;

use crate::db::{DbError, Space, View};
use crate::job::{JobId, id_text};

/// Packs below this are compressed only with the block that they come to stand in.
const WORTH_PACKING: usize = 4 << 10;

/// The part of a `JobStatus` that the projection needs.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct StatusPart {
    #[prost(string, tag = "1")]
    pub job_id: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub job_type: Bytes,
    #[prost(int32, tag = "3")]
    pub state: i32,
    #[prost(uint32, tag = "4")]
    pub resources_total: u32,
    #[prost(bytes = "bytes", tag = "7")]
    pub manifest_key: Bytes,
    #[prost(bytes = "bytes", tag = "8")]
    pub tenant: Bytes,
    #[prost(bytes = "bytes", repeated, tag = "19")]
    pub outcomes: Vec<Bytes>,
}

/// The part of a `ResourceOutcome` that the projection needs; its task is not even looked at.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct OutcomePart {
    #[prost(string, tag = "1")]
    pub resource_id: String,
    #[prost(uint32, tag = "2")]
    pub index: u32,
    #[prost(uint32, tag = "3")]
    pub generation: u32,
    #[prost(int32, tag = "4")]
    pub state: i32,
    #[prost(string, tag = "5")]
    pub code: String,
    #[prost(string, tag = "6")]
    pub message: String,
    #[prost(uint32, tag = "7")]
    pub http_status: u32,
    #[prost(uint64, tag = "12")]
    pub size: u64,
    #[prost(bytes = "bytes", tag = "13")]
    pub sha256: Bytes,
    #[prost(bytes = "bytes", tag = "24")]
    pub reuse_key: Bytes,
}

/// The part of a `JobRecord` that may hold an outcome.
#[derive(Clone, PartialEq, Message)]
struct RecordPart {
    #[prost(bytes = "bytes", tag = "16")]
    outcome: Bytes,
}

impl OutcomePart {
    /// The state, `Unknown` for a number that is none.
    pub fn state(&self) -> ResourceState {
        ResourceState::try_from(self.state).unwrap_or(ResourceState::Unknown)
    }

    /// Whether it names an object of the job's own, stored or reused.
    pub fn has_object(&self) -> bool {
        has_object(self.state())
    }
}

/// Whether outcomes of this state name an object.
pub fn has_object(state: ResourceState) -> bool {
    matches!(state, ResourceState::Stored | ResourceState::Reused)
}

/// The key of a job's outcomes of one commit.
pub fn key(job: &JobId, sequence: u64) -> Bytes {
    let mut key = Vec::with_capacity(24);
    key.extend_from_slice(job);
    key.extend_from_slice(&sequence.to_be_bytes());
    key.into()
}

/// The range of all outcomes of a job, end exclusive.
pub fn bounds(job: &JobId) -> (Vec<u8>, Vec<u8>) {
    let (mut from, mut to) = (job.to_vec(), job.to_vec());
    from.extend_from_slice(&[0; 8]);
    to.extend_from_slice(&[0xff; 9]);
    (from, to)
}

/// Packs encoded outcomes; `None` for none.
pub fn pack(outcomes: &[Bytes]) -> Option<Bytes> {
    let mut builder = BatchBuilder::default();
    for outcome in outcomes {
        builder.push_encoded(outcome);
    }
    let packed = if builder.raw_len() < WORTH_PACKING { builder.finish_stored() } else { builder.finish() };
    packed.map(|batch| batch.bytes)
}

/// Whether an outcome may stand in its job's record: the dead letters look for those that failed in a pack.
pub fn fits_record(total: u64, raw: &Bytes) -> bool {
    total == 1 && OutcomePart::decode(raw.clone()).is_ok_and(|part| part.state() != ResourceState::Failed)
}

fn damaged(job: &JobId, error: impl std::fmt::Display) -> DbError {
    DbError(format!("the outcomes of job {} are damaged: {error}", id_text(job)))
}

/// Every stored outcome of a job, encoded, oldest first.
pub fn stored(view: &View<'_>, job: &JobId) -> Result<Vec<Bytes>, DbError> {
    let (from, to) = bounds(job);
    let mut all = Vec::new();
    // A damaged record is found elsewhere.
    if let Some(record) = view.get(Space::Jobs, job)?.and_then(|raw| RecordPart::decode(raw).ok())
        && !record.outcome.is_empty()
    {
        all.push(record.outcome);
    }
    for item in view.range(Space::Outcomes, &from, &to) {
        all.extend(batch::unpack(&item?.1).map_err(|error| damaged(job, error))?);
    }
    Ok(all)
}

/// The newest outcome of each resource of a job, by index.
pub fn newest(view: &View<'_>, job: &JobId) -> Result<BTreeMap<u32, ResourceOutcome>, DbError> {
    stored(view, job)?
        .into_iter()
        .map(|raw| ResourceOutcome::decode(raw).map(|outcome| (outcome.resource_index, outcome)).map_err(|error| damaged(job, error)))
        .collect()
}

/// What is told apart of a resource's object: as what it was counted, and its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub state: ResourceState,
    pub sha256: Bytes,
}

impl Object {
    /// `None` of an outcome that names no object.
    pub fn of(part: OutcomePart) -> Option<Self> {
        part.has_object().then(|| Self { state: part.state(), sha256: part.sha256 })
    }
}

/// The objects of a job by index: to tell a plain duplicate from one with other content.
pub fn objects(outcomes: impl IntoIterator<Item = Bytes>) -> BTreeMap<u32, Object> {
    let mut objects = BTreeMap::new();
    for raw in outcomes {
        if let Ok(part) = OutcomePart::decode(raw) {
            let index = part.index;
            match Object::of(part) {
                Some(object) => objects.insert(index, object),
                None => objects.remove(&index),
            };
        }
    }
    objects
}

/// An outcome that only describes: it keeps the state as which its resource was counted, so that outcomes and counts agree.
pub fn counted_as(state: ResourceState, raw: Bytes) -> Bytes {
    match ResourceOutcome::decode(raw.clone()) {
        Ok(outcome) if outcome.state() != state => ResourceOutcome { state: state as i32, ..outcome }.encode_to_vec().into(),
        _ => raw,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fetchbox_model::message::{DownloadTask, JobStatus};

    fn outcome(index: u32, sha256: &'static [u8]) -> ResourceOutcome {
        ResourceOutcome {
            resource_id: index.to_string(),
            resource_index: index,
            state: ResourceState::Stored as i32,
            size: 7,
            sha256: Bytes::from_static(sha256),
            task: Some(DownloadTask { url: "http://h/".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn the_parts_read_what_the_whole_messages_wrote() {
        let status = JobStatus { job_id: "j".into(), state: 2, outcomes: vec![outcome(4, b"x")], ..Default::default() };
        let part = StatusPart::decode(&status.encode_to_vec()[..]).unwrap();
        assert_eq!((part.job_id.as_str(), part.state), ("j", 2));
        let first = OutcomePart::decode(part.outcomes[0].clone()).unwrap();
        assert_eq!((first.index, first.state(), first.size, &first.sha256[..]), (4, ResourceState::Stored, 7, &b"x"[..]));
        // And what is kept is the whole outcome, its task included.
        assert_eq!(ResourceOutcome::decode(part.outcomes[0].clone()).unwrap(), outcome(4, b"x"));
    }

    #[test]
    fn objects_are_those_of_the_newest_outcomes() {
        let failed = ResourceOutcome { state: ResourceState::Failed as i32, ..outcome(3, b"") };
        let raws = [outcome(1, b"a"), outcome(2, b"b"), outcome(3, b"d"), outcome(1, b"c"), failed];
        let objects = objects(raws.map(|o| Bytes::from(o.encode_to_vec())));
        assert_eq!((&objects[&1].sha256[..], &objects[&2].sha256[..], objects.get(&3)), (&b"c"[..], &b"b"[..], None));
    }

    #[test]
    fn a_description_takes_the_state_that_was_counted_and_nothing_else() {
        let raw = Bytes::from(outcome(1, b"a").encode_to_vec());
        assert_eq!(counted_as(ResourceState::Stored, raw.clone()), raw);
        let reused = ResourceOutcome::decode(counted_as(ResourceState::Reused, raw)).unwrap();
        assert_eq!(reused, ResourceOutcome { state: ResourceState::Reused as i32, ..outcome(1, b"a") });
    }

    #[test]
    fn bounds_hold_all_packs_of_a_job_and_no_other() {
        let (job, next) = ([7; 16], [8; 16]);
        let (from, to) = bounds(&job);
        for sequence in [0, 1, u64::MAX] {
            assert!(key(&job, sequence) >= from && key(&job, sequence) < to);
            assert!(key(&next, sequence) >= to);
        }
    }
}
