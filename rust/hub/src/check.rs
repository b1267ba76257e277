//! Recounts jobs from bitmaps and outcomes, and if wanted from the objects themselves. What the counters say is only ever compared.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use fetchbox_model::message::{ResourceOutcome, ResourceState};
use prost::Message;
use serde::Serialize;

use crate::core::read_failed;
use crate::db::{DbError, Space};
use crate::error::HubError;
use crate::job::{Counts, JobId, JobRecord, id_text};
use crate::keys::{self, Listing};
use crate::listing;
use crate::outcome;
use crate::writer::Writer;

/// Something that is not as it must be. Every kind is explained in docs/ledger.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: &'static str,
    /// Whose.
    pub job_id: Option<String>,
    /// Of which resource.
    pub index: Option<u32>,
    /// In words.
    pub message: String,
}

/// Every kind there is.
#[cfg(test)]
pub const KINDS: [&str; 24] = [
    "record_damaged",
    "outcomes_damaged",
    "total_differs",
    "counts_do_not_add_up",
    "count_differs",
    "bytes_differ",
    "bitmap_differs",
    "bitmap_beyond",
    "outcome_missing",
    "outcome_unsettled",
    "outcome_beyond",
    "finished_differs",
    "letter_missing",
    "letter_unfounded",
    "not_listed",
    "listed_wrongly",
    "reservation_missing",
    "reservation_without_job",
    "totals_differ",
    "task_lost",
    "object_missing",
    "object_size_differs",
    "object_content_differs",
    "manifest_missing",
];

impl Finding {
    /// Of a job.
    pub fn of(kind: &'static str, job: &JobId, message: String) -> Self {
        Self { kind, job_id: Some(id_text(job)), index: None, message }
    }

    /// Of no job in particular.
    pub fn global(kind: &'static str, message: String) -> Self {
        Self { kind, job_id: None, index: None, message }
    }

    /// Of one of its resources.
    pub fn at(mut self, index: u32) -> Self {
        self.index = Some(index);
        self
    }
}

/// What the outcomes of a job amount to.
#[derive(Debug, Default)]
pub struct Recount {
    /// The sums; the total is what was accepted.
    pub counts: Counts,
    /// A bit for each resource with an outcome of its generation.
    pub bitmap: Vec<u8>,
    /// That outcome, the newest.
    pub outcomes: BTreeMap<u32, ResourceOutcome>,
    /// Outcomes of resources that the job does not have.
    pub beyond: Vec<u32>,
}

/// Counts a job's outcomes, given oldest first.
pub fn recount(record: &JobRecord, outcomes: impl IntoIterator<Item = ResourceOutcome>) -> Recount {
    let total = u64::from(record.facts.resource_count);
    let generations: HashMap<u32, u32> = record.generations.iter().map(|g| (g.index, g.generation)).collect();
    let mut recount = Recount { counts: Counts { total, replayed: record.counts.replayed, ..Default::default() }, ..Default::default() };
    for outcome in outcomes {
        let index = outcome.resource_index;
        if u64::from(index) >= total {
            recount.beyond.push(index);
        } else if outcome.state() != ResourceState::Unknown && outcome.generation == generations.get(&index).copied().unwrap_or(0) {
            if !recount.outcomes.contains_key(&index) {
                // A later one of the same generation describes the object anew; what was counted is the first.
                recount.counts.count(outcome.state(), outcome.size);
                set(&mut recount.bitmap, index);
            }
            recount.outcomes.insert(index, outcome);
        }
    }
    recount
}

fn set(bitmap: &mut Vec<u8>, index: u32) {
    let byte = index as usize / 8;
    if bitmap.len() <= byte {
        bitmap.resize(byte + 1, 0);
    }
    bitmap[byte] |= 1 << (index % 8);
}

/// How a job's record differs from what its outcomes amount to.
pub fn compare(id: &JobId, record: &JobRecord, found: &Recount) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut say = |kind, message: String| findings.push(Finding::of(kind, id, message));
    let (is, should) = (&record.counts, &found.counts);
    if is.total != should.total {
        say("total_differs", format!("the record counts {} resources, {} were accepted", is.total, should.total));
    }
    let settled = [is.stored, is.reused, is.filtered, is.failed, is.cancelled].iter().fold(0u64, |sum, n| sum.saturating_add(*n));
    if settled > is.total {
        say("counts_do_not_add_up", format!("{settled} resources are settled, of {}", is.total));
    }
    for (name, is, should) in [
        ("stored", is.stored, should.stored),
        ("reused", is.reused, should.reused),
        ("filtered", is.filtered, should.filtered),
        ("failed", is.failed, should.failed),
        ("cancelled", is.cancelled, should.cancelled),
    ] {
        if is != should {
            say("count_differs", format!("{name}: the record says {is}, the outcomes {should}"));
        }
    }
    if is.bytes_stored != should.bytes_stored {
        say("bytes_differ", format!("the record says {} bytes are stored, the outcomes {}", is.bytes_stored, should.bytes_stored));
    }
    let bits: u64 = record.bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
    if bits != settled {
        say("bitmap_differs", format!("the bitmap says that {bits} resources are settled, the counts {settled}"));
    }
    if (record.finished_ms != 0) != (settled >= is.total) {
        let when = if record.finished_ms == 0 { "not finished" } else { "finished" };
        say("finished_differs", format!("the job is {when}, with {settled} of {} resources settled", is.total));
    }
    compare_resources(id, record, found, &mut findings);
    findings
}

fn compare_resources(id: &JobId, record: &JobRecord, found: &Recount, findings: &mut Vec<Finding>) {
    let total = record.facts.resource_count;
    for index in 0..(record.bitmap.len() as u32 * 8).max(total) {
        let (bit, outcome) = (record.is_settled(index), found.outcomes.get(&index));
        if bit && index >= total {
            findings.push(Finding::of("bitmap_beyond", id, format!("resource {index} is settled, and the job has {total}")).at(index));
        } else if bit && outcome.is_none() {
            findings.push(Finding::of("outcome_missing", id, format!("resource {index} is settled without an outcome")).at(index));
        } else if let (false, Some(outcome)) = (bit, outcome) {
            let message = format!("resource {index} has the outcome {:?} and is not settled", outcome.state());
            findings.push(Finding::of("outcome_unsettled", id, message).at(index));
        }
    }
    for &index in &found.beyond {
        findings
            .push(Finding::of("outcome_beyond", id, format!("there is an outcome of resource {index}, and the job has {total}")).at(index));
    }
}

/// Decodes outcomes; with the first one that cannot be read all are given up.
pub fn decode(raw: impl IntoIterator<Item = Bytes>) -> Result<Vec<ResourceOutcome>, DbError> {
    raw.into_iter().map(|raw| ResourceOutcome::decode(raw).map_err(|error| DbError(error.to_string()))).collect()
}

impl Writer {
    /// Makes a job's counts, bitmap and listings again from its outcomes; whether anything was wrong. A resource whose outcome is not there is pending
    /// again, and the sweeper puts its task back.
    pub(crate) fn recount(&mut self, id: &JobId) -> Result<bool, HubError> {
        self.core.check_space()?;
        let core = std::sync::Arc::clone(&self.core);
        let now_ms = self.stage.now_ms;
        let stored = outcome::stored(&core.db.view(), id).map_err(read_failed)?;
        let mut totals = self.totals;
        if self.stage.jobs.get(id).is_none_or(|job| !job.changed) {
            // What counts is what the database says, not what is remembered of it.
            self.forget(id);
        }
        let Some(job) = self.job(id)? else { return Err(HubError::not_found("the job")) };
        let all = decode(stored.into_iter().chain(job.outcomes.iter().cloned())).map_err(|error| HubError::Invalid(error.0))?;
        let found = recount(&job.record, all);
        let wrong = !compare(id, &job.record, &found).is_empty();
        let before = job.record.counts;
        job.record.bitmap = found.bitmap;
        job.record.counts = found.counts;
        let pending = job.record.counts.pending();
        if wrong {
            job.changed = true;
            job.record.updated_ms = now_ms;
            if pending > 0 {
                job.record.finished_ms = 0;
            }
        }
        let settles = pending == 0 && job.record.finished_ms == 0;
        let record = job.record.clone();
        for (total, is, was) in [
            (&mut totals.total, found.counts.total, before.total),
            (&mut totals.stored, found.counts.stored, before.stored),
            (&mut totals.reused, found.counts.reused, before.reused),
            (&mut totals.filtered, found.counts.filtered, before.filtered),
            (&mut totals.failed, found.counts.failed, before.failed),
            (&mut totals.cancelled, found.counts.cancelled, before.cancelled),
            (&mut totals.bytes_stored, found.counts.bytes_stored, before.bytes_stored),
        ] {
            *total = total.saturating_add(is).saturating_sub(was);
        }
        self.totals = totals;
        if settles {
            self.settle(id);
        }
        Ok(self.list_again(id, &record)? || wrong)
    }

    /// Puts a job where it has to be listed; whether it was not.
    fn list_again(&mut self, id: &JobId, record: &JobRecord) -> Result<bool, HubError> {
        let core = std::sync::Arc::clone(&self.core);
        let (view, place, mut missing) = (core.db.view(), (record.facts.created_ms, *id), false);
        // Where its state lists it the commit sees to, when it changed.
        for listing in keys::fixed_listings(record).into_iter().chain([keys::state_listing(record)]) {
            let found = match listing {
                Listing::Active => listing::has_own(&view, &place).and_then(|own| Ok(own || listing::recent(&view)?.contains(&place))),
                _ => listing::holds(&view, &listing.prefix(), &place),
            };
            if found.map_err(read_failed)? {
                continue;
            }
            missing = true;
            match listing {
                Listing::Active => {
                    self.recent.disown(id);
                    self.stage.put(Space::Index, keys::active(place.0, id), Bytes::new());
                }
                listing => self.stage.enlist(listing, place),
            }
        }
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Generation, JobFacts};

    const ID: JobId = [1; 16];

    fn outcome(index: u32, state: ResourceState, size: u64, generation: u32) -> ResourceOutcome {
        ResourceOutcome { resource_index: index, state: state as i32, size, generation, ..Default::default() }
    }

    /// Four resources: stored, replayed and stored then, failed, pending.
    fn sound() -> (JobRecord, Vec<ResourceOutcome>) {
        let record = JobRecord {
            facts: JobFacts { resource_count: 4, ..Default::default() },
            counts: Counts { total: 4, stored: 2, failed: 1, bytes_stored: 12, ..Default::default() },
            bitmap: vec![0b111],
            generations: vec![Generation { index: 1, generation: 1 }],
            ..Default::default()
        };
        use ResourceState::{Failed, Stored};
        let outcomes = vec![
            outcome(0, Stored, 5, 0),
            outcome(1, Failed, 0, 0),
            outcome(2, Failed, 0, 0),
            outcome(1, Stored, 7, 1),
            outcome(0, Stored, 9, 0),
        ];
        (record, outcomes)
    }

    fn kinds(record: &JobRecord, outcomes: Vec<ResourceOutcome>) -> Vec<(&'static str, Option<u32>)> {
        compare(&ID, record, &recount(record, outcomes)).into_iter().map(|finding| (finding.kind, finding.index)).collect()
    }

    #[test]
    fn a_sound_job_is_found_sound_with_replays_and_objects_that_were_replaced() {
        let (record, outcomes) = sound();
        assert_eq!(kinds(&record, outcomes.clone()), []);
        let found = recount(&record, outcomes);
        assert_eq!((found.counts.bytes_stored, found.outcomes[&0].size, found.bitmap), (12, 9, vec![0b111]));
    }

    /// | what is done to the job | what is found |
    #[test]
    fn every_damage_is_found() {
        type Damage = fn(&mut JobRecord, &mut Vec<ResourceOutcome>);
        type Found = &'static [(&'static str, Option<u32>)];
        let table: &[(Damage, Found)] = &[
            (|job, _| job.counts.total = 5, &[("total_differs", None)]),
            (
                |job, _| job.counts.stored = 9,
                &[("counts_do_not_add_up", None), ("count_differs", None), ("bitmap_differs", None), ("finished_differs", None)],
            ),
            (|job, _| (job.counts.stored, job.counts.failed) = (1, 2), &[("count_differs", None), ("count_differs", None)]),
            (|job, _| job.counts.bytes_stored = 0, &[("bytes_differ", None)]),
            (|job, _| job.bitmap = vec![0b1011], &[("outcome_unsettled", Some(2)), ("outcome_missing", Some(3))]),
            (|job, _| job.bitmap = vec![0b111, 1], &[("bitmap_differs", None), ("bitmap_beyond", Some(8))]),
            (|job, _| job.finished_ms = 1, &[("finished_differs", None)]),
            (|_, outcomes| outcomes.truncate(3), &[("count_differs", None), ("bytes_differ", None), ("outcome_missing", Some(1))]),
            (|_, outcomes| outcomes.push(outcome(4, ResourceState::Stored, 1, 0)), &[("outcome_beyond", Some(4))]),
        ];
        for (i, (damage, expected)) in table.iter().enumerate() {
            let (mut record, mut outcomes) = sound();
            damage(&mut record, &mut outcomes);
            let found = kinds(&record, outcomes);
            assert_eq!(found, *expected, "row {i}");
            assert!(found.iter().all(|(kind, _)| KINDS.contains(kind)));
        }
    }
}
