//! Forgetting in small steps: old records of the streams, old jobs of the ledger.
//!
//! Settled jobs are walked by state in the order of their creation, a step at a time. A job may be old and settled only lately, so what a walk finds
//! too fresh is remembered: the next one begins at the oldest of those and of the jobs that were active meanwhile, and once an hour at the very beginning.

use std::ops::AddAssign;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fetchbox_model::message::JobState;
use fetchbox_model::stream::Topic;
use prost::Message;

use crate::config::Broker;
use crate::core::{Core, WORKERS, read_failed};
use crate::db::Space;
use crate::error::HubError;
use crate::job::{JobId, JobRecord};
use crate::keys::Listing;
use crate::listing::{self, Place};
use crate::upkeep::MOVER;
use crate::writer::Command;

/// A round is made this often.
const ROUND: Duration = Duration::from_secs(30);
/// While there is more to forget it goes on at the next tick, for so long.
const SLICE: Duration = Duration::from_millis(250);
/// Records looked at per partition, and jobs per state, in one step.
const PER_STEP: usize = 512;
/// How often a walk begins at the very beginning: what is deleted is slow to walk over until it is compacted.
const WHOLE: Duration = Duration::from_secs(3600);
/// A ledger that is too large is made smaller by so much more than it must, so that this does not happen all the time.
const MARGIN: u64 = 50;
/// How long the database gets to give space back before more is pruned for it.
const COMPACTION: Duration = Duration::from_secs(120);
/// Bytes on disk of a resource and of a job beside its record, about.
const PER_RESOURCE: u64 = 100;
const PER_JOB: u64 = 600;
/// Final states, in the order in which jobs go when the ledger is too large.
const FINAL: [JobState; 4] = [JobState::Completed, JobState::Cancelled, JobState::Partial, JobState::Failed];

/// A walk over the settled jobs of a state.
#[derive(Debug, Default)]
struct Walk {
    /// Looked at last; the walk goes on behind it.
    after: Option<Place>,
    /// When it began, Unix ms; 0 for one that has not.
    begun_ms: u64,
    /// Creation of the oldest job that it left, or that was active when it began.
    left: Option<u64>,
}

impl Walk {
    fn keep(&mut self, created: u64) {
        self.left = Some(self.left.map_or(created, |left| left.min(created)));
    }
}

/// What a step came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Step {
    /// Jobs pruned.
    pruned: usize,
    /// Bytes that this gives back in the end, about.
    bytes: u64,
    /// Whether there may be more to do.
    more: bool,
}

impl AddAssign for Step {
    fn add_assign(&mut self, other: Self) {
        self.pruned += other.pruned;
        self.bytes += other.bytes;
        self.more |= other.more;
    }
}

/// Space that is asked for because the ledger is too large.
#[derive(Debug)]
struct Relief {
    /// Bytes still to be freed.
    wanted: u64,
    /// Until when the ledger is not looked at again.
    until: Duration,
}

/// Remembers where the last step ended.
#[derive(Debug, Default)]
pub struct Retainer {
    next: Option<Duration>,
    whole_at: Duration,
    walks: [Walk; FINAL.len()],
    /// The same for jobs that go before their time.
    early: [Walk; FINAL.len()],
    relief: Option<Relief>,
    /// Another limit than the configured one, for tests.
    most: Option<u64>,
}

impl Retainer {
    /// One that wants the ledger to be no larger than that.
    #[cfg(test)]
    pub fn limited(most: u64) -> Self {
        Self { most: Some(most), ..Self::default() }
    }

    /// Does what there is to do, for a moment; whether there is more.
    pub fn step(&mut self, core: &Core) -> Result<bool, HubError> {
        let now = core.clock.elapsed();
        if self.next.is_some_and(|next| now < next) {
            return Ok(false);
        }
        let begun = Instant::now();
        while self.round(core, now)? {
            if begun.elapsed() >= SLICE {
                return Ok(true);
            }
        }
        self.next = Some(now + ROUND);
        Ok(false)
    }

    /// One step everywhere; whether there is more to do.
    fn round(&mut self, core: &Core, now: Duration) -> Result<bool, HubError> {
        let mut more = false;
        for topic in Topic::ALL {
            for partition in 0..core.partitions(topic) {
                more |= trim(core, topic, partition)?;
            }
        }
        let mut step = Step::default();
        for state in 0..FINAL.len() {
            step += self.prune(core, state, now, false)?;
        }
        more |= crate::reuse::trim(core)?;
        Ok(self.relieve(core, now, step)? || more || step.more)
    }

    /// Prunes jobs before their time when the ledger is too large; whether there is more to do. `step` is what their time alone came to.
    fn relieve(&mut self, core: &Core, now: Duration, step: Step) -> Result<bool, HubError> {
        let (used, most) = (core.db.disk_bytes(), self.most.unwrap_or(core.config.retention.ledger_max_bytes));
        if used <= most {
            (self.relief, self.early) = Default::default();
            core.overfull.store(false, Ordering::Relaxed);
            return Ok(false);
        }
        let fresh = || Relief { wanted: used - most + most / MARGIN, until: now + COMPACTION };
        let relief = match self.relief.take() {
            Some(relief) if now < relief.until => relief,
            _ => fresh(),
        };
        let relief = self.relief.insert(relief);
        relief.wanted = relief.wanted.saturating_sub(step.bytes);
        if relief.wanted == 0 {
            return Ok(false);
        }
        for state in 0..FINAL.len() {
            let early = self.prune(core, state, now, true)?;
            if early.pruned > 0 || early.more {
                if let Some(relief) = &mut self.relief {
                    relief.wanted = relief.wanted.saturating_sub(early.bytes);
                }
                return Ok(true);
            }
        }
        // Nothing settled is left to be forgotten: what fills it is work that nobody may lose.
        core.overfull.store(step.pruned == 0 && !core.active.read().is_empty(), Ordering::Relaxed);
        Ok(false)
    }

    /// A step of a state's walk. `early` takes jobs whatever their age, but none with dead letters that somebody may still replay.
    fn prune(&mut self, core: &Core, state: usize, now: Duration, early: bool) -> Result<Step, HubError> {
        let retention = &core.config.retention;
        let now_ms = core.clock.cautious_ms();
        let ttl_ms = |ttl: f64| (ttl * 1000.0) as u64;
        // Whoever is active now is settled later, and was created before that.
        let oldest_active = core.active.read().first().map(|(created, _)| *created);
        let view = core.db.view();
        let walk = if early { &mut self.early[state] } else { &mut self.walks[state] };
        if walk.begun_ms == 0 {
            (walk.begun_ms, walk.left) = (now_ms, oldest_active);
        }
        let from = walk.after.map_or(0, |(created, _)| created);
        let (mut step, mut jobs, mut looked) = (Step::default(), Vec::<JobId>::new(), 0);
        for place in listing::oldest(&view, &Listing::Settled(FINAL[state]), from) {
            let place = place.map_err(read_failed)?;
            if walk.after.is_some_and(|after| place <= after) {
                continue;
            }
            if !early && now_ms.saturating_sub(place.0) < ttl_ms(retention.job_ttl) {
                // Neither this one nor any that was created later can be old enough.
                walk.keep(place.0);
                break;
            }
            if looked == PER_STEP {
                step.more = true;
                break;
            }
            looked += 1;
            walk.after = Some(place);
            let Some(raw) = view.get(Space::Jobs, &place.1).map_err(read_failed)? else { continue };
            let size = raw.len() as u64;
            let Ok(record) = JobRecord::decode(raw) else { continue };
            let ttl = if record.letters() > 0 { retention.job_ttl.max(retention.dlq_ttl) } else { retention.job_ttl };
            let old = now_ms.saturating_sub(record.finished_ms) >= ttl_ms(ttl);
            if old || (early && record.letters() == 0) {
                step.bytes += size + PER_JOB + PER_RESOURCE * record.counts.total;
                jobs.push(place.1);
            } else {
                walk.keep(place.0);
            }
        }
        drop(view);
        if !step.more {
            self.ended(state, now, early);
        }
        step.pruned = jobs.len();
        if !jobs.is_empty() {
            core.ask(|reply| Command::Prune { jobs, reply })?;
        }
        Ok(step)
    }

    /// A walk has come to its end; the next one begins where this one has to look again.
    fn ended(&mut self, state: usize, now: Duration, early: bool) {
        if early {
            self.early[state] = Walk::default();
            return;
        }
        let walk = &mut self.walks[state];
        let from = walk.left.unwrap_or(walk.begun_ms);
        *walk = Walk { after: from.checked_sub(1).map(|before| (before, [0xff; 16])), ..Walk::default() };
        // A job that was replayed is settled again, and older than its walk knows.
        if now >= self.whole_at {
            self.whole_at = now + WHOLE;
            self.walks = Default::default();
        }
    }
}

/// The offset up to which a partition may be forgotten.
fn limit(core: &Core, topic: Topic, partition: u32) -> u64 {
    let next = core.next.get(topic, partition);
    match topic {
        // With an external broker these are only copies.
        Topic::Tasks if core.config.broker == Broker::External => next,
        Topic::Tasks => core.committed(topic, WORKERS, partition),
        Topic::Retry => core.committed(topic, MOVER, partition),
        // The ledger has projected them; other groups hold them back only if they ever committed.
        _ => core.lowest_committed(topic, partition).unwrap_or(next),
    }
}

/// Trims whole records that are old, or too many, and below every committed offset; whether there may be more of them.
fn trim(core: &Core, topic: Topic, partition: u32) -> Result<bool, HubError> {
    let (from, limit) = (core.start.get(topic, partition), limit(core, topic, partition));
    if from >= limit {
        return Ok(false);
    }
    let before_ms = core.clock.cautious_ms().saturating_sub(core.config.retention.ttl_ms(topic));
    let share = core.config.retention.stream_max_bytes.map(|bytes| bytes / u64::from(core.partitions(topic)));
    let mut excess = match share {
        Some(share) => crate::streams::bytes(core, topic, partition).map_err(read_failed)?.saturating_sub(share),
        None => 0,
    };
    let (mut bases, mut start, mut bytes) = (Vec::new(), from, 0);
    for item in crate::log::records(core, topic, partition, from, limit).map_err(read_failed)?.take(PER_STEP) {
        let (base, record) = item.map_err(read_failed)?;
        let end = base + record.messages();
        if end > limit || (record.time_ms >= before_ms && excess == 0) {
            break;
        }
        let size: usize = record.parts.iter().map(|part| part.bytes.len()).sum();
        excess = excess.saturating_sub(size as u64);
        bytes += size as u64;
        bases.push(base);
        start = end;
    }
    if bases.is_empty() {
        return Ok(false);
    }
    let more = bases.len() == PER_STEP;
    core.ask(|reply| Command::Trim { topic, partition, bases, bytes, start, reply })?;
    Ok(more)
}
