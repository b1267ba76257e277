//! Dead letters against what failed: an entry for each failed outcome that nobody replayed or purged, and no other.

use std::collections::BTreeMap;

use fetchbox_model::message::ResourceState;

use crate::check::{Finding, Recount};
use crate::db::{DbError, View};
use crate::dlq::{self, Letter, Letters, Shelf};
use crate::job::{JobId, JobRecord};

/// The entries of a job on a shelf.
pub fn of_job(view: &View<'_>, shelf: Shelf, id: &JobId) -> Result<Vec<Letter>, DbError> {
    let mut letters = Vec::new();
    for place in dlq::places(view, id)? {
        if let Some(raw) = view.get(crate::db::Space::Index, &dlq::key(shelf, &place))? {
            letters.extend(Letters::read(raw)?.list);
        }
    }
    Ok(letters)
}

/// How the entries of a job's dead letters differ from its failed outcomes. Purged ones are only counted, so with some it is not known whose are missing.
pub fn compare(id: &JobId, record: &JobRecord, found: &Recount, dead: &[Letter], replayed: &[Letter]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut say = |kind, index, message| findings.push(Finding::of(kind, id, message).at(index));
    let mut lacking: BTreeMap<(u32, u32), &str> = found
        .outcomes
        .iter()
        .filter(|(_, outcome)| outcome.state() == ResourceState::Failed)
        .map(|(index, outcome)| ((*index, outcome.generation), outcome.code.as_str()))
        .collect();
    for letter in dead {
        let index = letter.index;
        match lacking.remove(&letter.which()) {
            None => say("letter_unfounded", index, format!("a dead letter says that resource {index} failed, and its outcome does not")),
            Some(code) if code != letter.code => {
                say(
                    "letter_unfounded",
                    index,
                    format!("the dead letter of resource {index} has the code {}, its outcome {code}", letter.code),
                );
            }
            Some(_) => {}
        }
    }
    for letter in replayed {
        let index = letter.index;
        let generation = record.generations.iter().find(|of| of.index == index).map_or(0, |of| of.generation);
        if letter.generation >= generation {
            say("letter_unfounded", index, format!("a dead letter of resource {index} is put away as replayed, and it was not replayed"));
        }
    }
    if record.purged == 0 {
        for (index, _) in lacking.into_keys() {
            say("letter_missing", index, format!("resource {index} failed, and there is no dead letter of it"));
        }
    } else if lacking.len() as u64 != record.purged {
        let message = format!("{} failed resources have no dead letter, and {} were purged", lacking.len(), record.purged);
        findings.push(Finding::of("letter_missing", id, message));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{KINDS, recount};
    use crate::frame::{Generation, JobFacts};
    use crate::job::Counts;
    use fetchbox_model::message::ResourceOutcome;

    const ID: JobId = [1; 16];

    fn outcome(index: u32, generation: u32, state: ResourceState) -> ResourceOutcome {
        ResourceOutcome { resource_index: index, generation, state: state as i32, code: "X".into(), ..Default::default() }
    }

    fn letter(index: u32, generation: u32) -> Letter {
        Letter { index, generation, code: "X".into(), ..Default::default() }
    }

    /// Four resources: two failed, one of them after a replay; one stored after a replay; one stored.
    fn sound() -> (JobRecord, Vec<ResourceOutcome>, Vec<Letter>, Vec<Letter>) {
        use ResourceState::{Failed, Stored};
        let record = JobRecord {
            facts: JobFacts { resource_count: 4, ..Default::default() },
            counts: Counts { total: 4, stored: 2, failed: 2, replayed: 2, ..Default::default() },
            generations: vec![Generation { index: 1, generation: 1 }, Generation { index: 2, generation: 1 }],
            ..Default::default()
        };
        let outcomes = vec![
            outcome(0, 0, Failed),
            outcome(1, 0, Failed),
            outcome(2, 0, Failed),
            outcome(3, 0, Stored),
            outcome(1, 1, Failed),
            outcome(2, 1, Stored),
        ];
        (record, outcomes, vec![letter(0, 0), letter(1, 1)], vec![letter(1, 0), letter(2, 0)])
    }

    /// | what is done | what is found |
    #[test]
    fn every_damage_is_found() {
        type Damage = fn(&mut JobRecord, &mut Vec<Letter>, &mut Vec<Letter>);
        type Found = &'static [(&'static str, Option<u32>)];
        let table: &[(Damage, Found)] = &[
            (|_, _, _| (), &[]),
            (|_, dead, _| drop(dead.remove(1)), &[("letter_missing", Some(1))]),
            (|_, dead, _| dead.clear(), &[("letter_missing", Some(0)), ("letter_missing", Some(1))]),
            (|job, dead, _| (job.purged, *dead) = (1, vec![letter(1, 1)]), &[]),
            (|job, dead, _| (job.purged, *dead) = (1, vec![]), &[("letter_missing", None)]),
            (|job, _, _| job.purged = 1, &[("letter_missing", None)]),
            (|_, dead, _| dead.push(letter(3, 0)), &[("letter_unfounded", Some(3))]),
            (|_, dead, _| dead.push(letter(2, 0)), &[("letter_unfounded", Some(2))]),
            (|_, dead, _| dead.push(letter(9, 0)), &[("letter_unfounded", Some(9))]),
            (|_, dead, _| dead[0].code = "Y".into(), &[("letter_unfounded", Some(0))]),
            (|_, dead, _| dead[0].generation = 1, &[("letter_unfounded", Some(0)), ("letter_missing", Some(0))]),
            // On both shelves, or on the wrong one.
            (|_, dead, replayed| replayed.push(dead[0].clone()), &[("letter_unfounded", Some(0))]),
            (|_, dead, replayed| replayed.push(dead.remove(1)), &[("letter_unfounded", Some(1)), ("letter_missing", Some(1))]),
            // Those that were replayed may have been purged.
            (|_, _, replayed| replayed.clear(), &[]),
        ];
        for (row, (damage, expected)) in table.iter().enumerate() {
            let (mut record, outcomes, mut dead, mut replayed) = sound();
            damage(&mut record, &mut dead, &mut replayed);
            let findings = compare(&ID, &record, &recount(&record, outcomes), &dead, &replayed);
            let found: Vec<_> = findings.iter().map(|finding| (finding.kind, finding.index)).collect();
            assert_eq!(found, *expected, "row {row}");
            assert!(found.iter().all(|(kind, _)| KINDS.contains(kind)));
        }
    }
}
