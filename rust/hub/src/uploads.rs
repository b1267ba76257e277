//! Which unfinished uploads nobody goes on with.
//!
//! A worker that is killed leaves its multipart uploads behind, and their parts cost space. Nobody can go on with them: an upload belongs to one
//! attempt. Whose it is its key says, and the ledger whether that resource has its outcome; a pending one may be under way anywhere, so its uploads
//! stay until it is settled. The ledger is looked at after the store was: an upload that is listed and whose resource is settled then was begun for
//! an attempt that does not count any more.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use fetchbox_model::batch;
use fetchbox_model::message::DownloadTask;
use fetchbox_model::stream::Topic;
use prost::Message;

use crate::config::Keeping;
use crate::core::Core;
use crate::db::{DbError, Space};
use crate::job::{JobId, JobRecord, parse_id};

/// Younger ones are not worth a look at their job's tasks.
const YOUNG_MS: u64 = 10_000;

/// Judges the uploads of one list.
pub struct Uploads<'a> {
    core: &'a Core,
    now_ms: u64,
    jobs: RefCell<HashMap<JobId, Owner>>,
}

/// What the ledger knows of the job that an upload's key names.
enum Owner {
    /// Nothing, or nothing that can be read.
    Unknown,
    /// Everything has its outcome.
    Settled,
    /// The same of a job that says by silence that it is over, and may go on.
    Silent,
    /// Keys of the resources that have their outcome, and of those that have none.
    Open { settled: HashSet<String>, pending: HashSet<String> },
}

impl<'a> Uploads<'a> {
    /// For uploads that were listed at `now_ms` or later.
    pub fn new(core: &'a Core, now_ms: u64) -> Self {
        Self { core, now_ms, jobs: RefCell::default() }
    }

    /// Whether an upload may be ended: by the key of its object, prefix included, and when it was begun, in ms.
    pub fn is_over(&self, key: &str, begun_ms: u64) -> bool {
        let Keeping { collect_after, uploads_after, .. } = self.core.config.keeping;
        // Something of ours holds the id of its job: what does not is not for us to judge.
        let Some(id) = key.split('/').filter_map(parse_id).next() else { return false };
        let age_ms = self.now_ms.saturating_sub(begun_ms);
        let older = |seconds: f64| age_ms as f64 >= seconds * 1000.0;
        if older(uploads_after) {
            return true;
        }
        if age_ms < YOUNG_MS.min((collect_after * 1000.0) as u64) {
            return false;
        }
        let mut jobs = self.jobs.borrow_mut();
        match jobs.entry(id).or_insert_with(|| owner(self.core, &id).unwrap_or(Owner::Unknown)) {
            Owner::Unknown => false,
            Owner::Settled => true,
            Owner::Silent => older(collect_after),
            Owner::Open { settled, pending } => {
                let is_one_of = |keys: &HashSet<String>| tails(key).any(|tail| keys.contains(tail));
                is_one_of(settled) && !is_one_of(pending)
            }
        }
    }
}

/// A key without ever more of what may be the prefix of its store.
fn tails(key: &str) -> impl Iterator<Item = &str> {
    std::iter::once(key).chain(key.match_indices('/').filter_map(|(at, _)| key.get(at + 1..)))
}

fn owner(core: &Core, id: &JobId) -> Result<Owner, DbError> {
    let view = core.db.view();
    let Some(record) = view.get(Space::Jobs, id)?.and_then(|raw| JobRecord::decode(raw).ok()) else { return Ok(Owner::Unknown) };
    drop(view);
    if record.finished_ms != 0 {
        return Ok(if record.counted_by_id { Owner::Silent } else { Owner::Settled });
    }
    if record.direct {
        return Ok(Owner::Unknown);
    }
    let (mut settled, mut pending) = (HashSet::new(), HashSet::new());
    for span in &record.spans {
        for (_, part) in crate::log::read(core, Topic::Tasks, span.partition, span.offset, span.offset + u64::from(span.count))? {
            let messages = batch::unpack(&part.bytes).map_err(|error| DbError(format!("a batch of tasks cannot be read: {error}")))?;
            for task in messages.into_iter().filter_map(|message| DownloadTask::decode(message).ok()) {
                if task.job_id == record.facts.job_id
                    && let Some((_, key)) = core.keep.places().own(&task)
                {
                    let keys = if record.is_settled(task.resource_index) { &mut settled } else { &mut pending };
                    keys.insert(key.into());
                }
            }
        }
    }
    Ok(Owner::Open { settled, pending })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_looked_for_below_any_prefix() {
        assert_eq!(tails("a/b/c").collect::<Vec<_>>(), ["a/b/c", "b/c", "c"]);
        assert_eq!(tails("a").collect::<Vec<_>>(), ["a"]);
    }
}
