//! Forgetting in small steps: old records of the streams, old jobs of the ledger.

use std::time::Duration;

use fetchbox_model::message::JobState;
use fetchbox_model::stream::Topic;
use prost::Message;

use crate::core::{Core, WORKERS, read_failed};
use crate::db::Space;
use crate::error::HubError;
use crate::job::{JobId, JobRecord};
use crate::keys::Listing;
use crate::listing;
use crate::upkeep::MOVER;
use crate::writer::Command;

/// A whole round is made this often.
const ROUND: Duration = Duration::from_secs(30);
/// Records looked at per partition, and jobs per state, in one round.
const PER_STEP: usize = 512;
/// Final states, in the order in which jobs go when the ledger is too large.
const FINAL: [JobState; 4] = [JobState::Completed, JobState::Cancelled, JobState::Partial, JobState::Failed];

/// Remembers where the last round ended: iterating over what was deleted is slow.
#[derive(Debug, Default)]
pub struct Retainer {
    last: Option<Duration>,
    /// Time of creation below which a state has no jobs any more.
    oldest: [u64; FINAL.len()],
}

impl Retainer {
    /// Makes a round when it is time for one.
    pub fn step(&mut self, core: &Core) -> Result<(), HubError> {
        let now = core.clock.elapsed();
        if self.last.is_some_and(|last| now.saturating_sub(last) < ROUND) {
            return Ok(());
        }
        self.last = Some(now);
        for topic in Topic::ALL {
            for partition in 0..core.partitions(topic) {
                trim(core, topic, partition)?;
            }
        }
        let too_large = core.db.disk_bytes() > core.config.retention.ledger_max_bytes;
        for state in 0..FINAL.len() {
            self.prune(core, state, too_large)?;
        }
        Ok(())
    }

    fn prune(&mut self, core: &Core, state: usize, too_large: bool) -> Result<(), HubError> {
        let retention = &core.config.retention;
        let now_ms = core.clock.cautious_ms();
        let listing = Listing::Settled(FINAL[state]);
        let view = core.db.view();
        let mut jobs: Vec<JobId> = Vec::new();
        for place in listing::oldest(&view, &listing, self.oldest[state]).take(PER_STEP) {
            let (created, id) = place.map_err(read_failed)?;
            let Some(raw) = core.db.get(Space::Jobs, &id).map_err(read_failed)? else { continue };
            let Ok(record) = JobRecord::decode(raw) else { continue };
            let ttl = if record.letters() > 0 { retention.job_ttl.max(retention.dlq_ttl) } else { retention.job_ttl };
            if !too_large && now_ms.saturating_sub(record.finished_ms) < (ttl * 1000.0) as u64 {
                break;
            }
            self.oldest[state] = created;
            jobs.push(id);
        }
        drop(view);
        if jobs.is_empty() {
            return Ok(());
        }
        core.ask(|reply| Command::Prune { jobs, reply })
    }
}

/// The offset up to which a partition may be forgotten.
fn limit(core: &Core, topic: Topic, partition: u32) -> u64 {
    let next = core.next.get(topic, partition);
    match topic {
        Topic::Tasks => core.committed(topic, WORKERS, partition),
        Topic::Retry => core.committed(topic, MOVER, partition),
        // The ledger has projected them; other groups hold them back only if they ever committed.
        _ => core.lowest_committed(topic, partition).unwrap_or(next),
    }
}

/// Trims whole records that are old, or too many, and below every committed offset.
fn trim(core: &Core, topic: Topic, partition: u32) -> Result<(), HubError> {
    let (from, limit) = (core.start.get(topic, partition), limit(core, topic, partition));
    if from >= limit {
        return Ok(());
    }
    let before_ms = core.clock.cautious_ms().saturating_sub(core.config.retention.ttl_ms(topic));
    let share = core.config.retention.stream_max_bytes.map(|bytes| bytes / u64::from(core.partitions(topic)));
    let mut excess = match share {
        Some(share) => crate::streams::bytes(core, topic, partition).map_err(read_failed)?.saturating_sub(share),
        None => 0,
    };
    let (mut bases, mut start) = (Vec::new(), from);
    for item in crate::log::records(core, topic, partition, from, limit).map_err(read_failed)?.take(PER_STEP) {
        let (base, record) = item.map_err(read_failed)?;
        let end = base + record.messages();
        if end > limit || (record.time_ms >= before_ms && excess == 0) {
            break;
        }
        let size: usize = record.parts.iter().map(|part| part.bytes.len()).sum();
        excess = excess.saturating_sub(size as u64);
        bases.push(base);
        start = end;
    }
    if bases.is_empty() {
        return Ok(());
    }
    core.ask(|reply| Command::Trim { topic, partition, bases, start, reply })
}
