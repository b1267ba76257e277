//! `ledger check`: walks jobs, listings and sums a piece at a time, each in a state of the database that stands still.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use fetchbox_model::message::{ResourceOutcome, ResourceState};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::check::{Finding, Recount, compare, decode, recount};
use crate::check_letters;
use crate::core::{Core, read_failed};
use crate::db::{Space, View};
use crate::dlq;
use crate::error::HubError;
use crate::job::{JobId, JobRecord, parse_id};
use crate::keys::{self, Listing};
use crate::listing::{self, Place};
use crate::outcome;
use crate::reserve::Reserved;
use crate::shelf::Shelf;
use crate::sweep::{self, Candidate};

/// A piece ends after so many jobs or index entries, or after this time.
const JOBS: usize = 500;
const ENTRIES: usize = 20_000;
/// Parts of lists that are remembered.
const SLOTS: usize = 64;
const TIME: Duration = Duration::from_secs(2);
/// Unsettled jobs whose tasks are looked for at the end.
const UNSETTLED: usize = 20_000;

/// What to check.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Order {
    /// Where the last piece ended.
    cursor: Option<String>,
    /// This job and nothing else.
    job_id: Option<String>,
    /// Also that objects and manifests are in the store.
    store: bool,
    /// Also that their content is what was stored.
    deep: bool,
}

/// A piece.
#[derive(Debug, Default, Serialize)]
pub struct Piece {
    jobs: u64,
    resources: u64,
    objects: u64,
    /// What is not as it must be.
    pub findings: Vec<Finding>,
    /// Where to go on; nothing at the end.
    pub next_cursor: Option<String>,
}

/// Checks a piece. The cursor is `j` and the job to begin with, `i` and the index entry, or `t` for the sums and tasks.
pub fn check(core: &Core, order: &Order) -> Result<Piece, HubError> {
    let known = core.keep.shelf();
    let shelf = match &known {
        _ if !order.store => None,
        Some(shelf) => Some(shelf.as_ref()),
        None => return Err(HubError::refused("STORAGE_UNAVAILABLE", "this hub knows of no store to check against")),
    };
    let work = Work { core, view: core.db.view(), shelf, deep: order.deep, slots: RefCell::default() };
    let mut piece = Piece::default();
    if let Some(text) = &order.job_id {
        let missing = || HubError::not_found("the job").about(text);
        let id = parse_id(text).ok_or_else(missing)?;
        let raw = work.view.get(Space::Jobs, &id).map_err(read_failed)?.ok_or_else(missing)?;
        work.job(&id, raw, &mut piece)?;
        return Ok(piece);
    }
    let bad = || HubError::refused("INVALID_PAYLOAD", "the cursor is not one of ours");
    let cursor = order.cursor.as_deref().unwrap_or("j");
    let from = cursor.get(1..).and_then(unhex).ok_or_else(bad)?;
    match cursor.as_bytes().first() {
        Some(b'j') => work.jobs(from, &mut piece)?,
        Some(b'i') => work.index(from, &mut piece)?,
        Some(b't') => work.sums(&mut piece)?,
        _ => return Err(bad()),
    }
    Ok(piece)
}

struct Work<'a> {
    core: &'a Core,
    view: View<'a>,
    shelf: Option<&'a dyn Shelf>,
    deep: bool,
    /// Parts of lists that were read.
    slots: RefCell<HashMap<(Listing, u64), BTreeSet<Place>>>,
}

impl Work<'_> {
    fn jobs(&self, from: Vec<u8>, piece: &mut Piece) -> Result<(), HubError> {
        let begun = self.core.clock.elapsed();
        for item in self.view.range(Space::Jobs, &from, &[0xff; 17]) {
            let (key, raw) = item.map_err(read_failed)?;
            if piece.jobs as usize == JOBS || self.core.clock.elapsed().saturating_sub(begun) >= TIME {
                piece.next_cursor = Some(format!("j{}", hex(&key)));
                return Ok(());
            }
            match key[..].try_into() {
                Ok(id) => self.job(&id, raw, piece)?,
                Err(_) => piece.findings.push(Finding::global("record_damaged", format!("{} is the key of no job", hex(&key)))),
            }
        }
        piece.next_cursor = Some("i".to_owned());
        Ok(())
    }

    fn job(&self, id: &JobId, raw: Bytes, piece: &mut Piece) -> Result<(), HubError> {
        piece.jobs += 1;
        let record = match JobRecord::decode(raw) {
            Ok(record) if parse_id(&record.facts.job_id) == Some(*id) => record,
            Ok(record) => {
                let message = format!("the record is that of job {:?}", record.facts.job_id);
                piece.findings.push(Finding::of("record_damaged", id, message));
                return Ok(());
            }
            Err(error) => {
                piece.findings.push(Finding::of("record_damaged", id, format!("the record cannot be read: {error}")));
                return Ok(());
            }
        };
        piece.resources += record.counts.total;
        let outcomes = match outcome::stored(&self.view, id).and_then(decode) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                piece.findings.push(Finding::of("outcomes_damaged", id, error.0));
                return Ok(());
            }
        };
        let found = recount(&record, outcomes);
        piece.findings.extend(compare(id, &record, &found));
        self.letters(id, &record, &found, piece)?;
        self.listings(id, &record, piece)?;
        if let Some(shelf) = self.shelf {
            self.objects(shelf, id, found.outcomes.values(), piece)?;
            self.manifest(shelf, id, &record, piece)?;
        }
        Ok(())
    }

    fn letters(&self, id: &JobId, record: &JobRecord, found: &Recount, piece: &mut Piece) -> Result<(), HubError> {
        if found.counts.failed + record.counts.failed + record.counts.replayed == 0 {
            return Ok(());
        }
        let of_job = |shelf| check_letters::of_job(&self.view, shelf, id);
        match of_job(dlq::Shelf::Dead).and_then(|dead| Ok((dead, of_job(dlq::Shelf::Replayed)?))) {
            Ok((dead, replayed)) => piece.findings.extend(check_letters::compare(id, record, found, &dead, &replayed)),
            Err(error) => piece.findings.push(Finding::of("letter_unfounded", id, error.0)),
        }
        Ok(())
    }

    fn listings(&self, id: &JobId, record: &JobRecord, piece: &mut Piece) -> Result<(), HubError> {
        for listing in keys::fixed_listings(record).into_iter().chain([keys::state_listing(record)]) {
            if !self.is_listed(&listing, (record.facts.created_ms, *id))? {
                piece.findings.push(Finding::of("not_listed", id, format!("the job is not in the list {listing:?}")));
            }
        }
        if !record.reservation.is_empty() {
            let raw = self.view.get(Space::Index, &record.reservation).map_err(read_failed)?;
            if !raw.and_then(|raw| Reserved::decode(raw).ok()).is_some_and(|reserved| reserved.accepted && reserved.id() == *id) {
                let message = "its idempotency key does not lead to it: the same post would make another job".to_owned();
                piece.findings.push(Finding::of("reservation_missing", id, message));
            }
        }
        Ok(())
    }

    /// Whether a list holds a job. Jobs are looked at in the order of their ids, which is nearly that of creation, so what was read serves many.
    fn is_listed(&self, listing: &Listing, place: Place) -> Result<bool, HubError> {
        if *listing == Listing::Active && listing::has_own(&self.view, &place).map_err(read_failed)? {
            return Ok(true);
        }
        let slot = if *listing == Listing::Active { 0 } else { listing::slot(place.0) };
        let key = (listing.clone(), slot);
        if let Some(places) = self.slots.borrow().get(&key) {
            return Ok(places.contains(&place));
        }
        let places: BTreeSet<Place> = match listing {
            Listing::Active => listing::recent(&self.view),
            _ => listing::of_slot(&self.view, &listing.prefix(), slot)
                .map(|packs| packs.into_iter().flat_map(|(_, places)| places).collect()),
        }
        .map_err(read_failed)?;
        let found = places.contains(&place);
        let mut slots = self.slots.borrow_mut();
        if slots.len() >= SLOTS {
            slots.retain(|(listing, _), _| *listing == Listing::Active);
        }
        slots.insert(key, places);
        Ok(found)
    }

    fn objects<'o>(
        &self,
        shelf: &dyn Shelf,
        id: &JobId,
        outcomes: impl Iterator<Item = &'o ResourceOutcome>,
        piece: &mut Piece,
    ) -> Result<(), HubError> {
        let kept: Vec<&ResourceOutcome> = outcomes.filter(|o| matches!(o.state(), ResourceState::Stored | ResourceState::Reused)).collect();
        let urls: Vec<String> = kept.iter().map(|outcome| outcome.storage_url.clone()).collect();
        let sizes = shelf.sizes(&urls).map_err(store_failed)?;
        piece.objects += urls.len() as u64;
        for (outcome, size) in kept.into_iter().zip(sizes) {
            let (url, index) = (&outcome.storage_url, outcome.resource_index);
            let mut say = |kind, message| piece.findings.push(Finding::of(kind, id, message).at(index));
            match size {
                None => say("object_missing", format!("{url} is not there")),
                Some(size) if size != outcome.size => {
                    say("object_size_differs", format!("{url} has {size} bytes, not {}", outcome.size));
                }
                Some(_) if self.deep && outcome.sha256.len() == 32 => {
                    let digest = shelf.sha256(url).map_err(store_failed)?;
                    if digest.is_none_or(|digest| digest[..] != outcome.sha256[..]) {
                        say("object_content_differs", format!("{url} has another SHA-256 than what was stored"));
                    }
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn manifest(&self, shelf: &dyn Shelf, id: &JobId, record: &JobRecord, piece: &mut Piece) -> Result<(), HubError> {
        let url = &record.facts.manifest_key;
        let waits = record.manifest_blob != 0
            && self.view.get(Space::Manifests, &(record.manifest_blob - 1).to_be_bytes()).map_err(read_failed)?.is_some();
        if url.is_empty() || waits {
            return Ok(());
        }
        piece.objects += 1;
        if shelf.sizes(std::slice::from_ref(url)).map_err(store_failed)?.first() == Some(&None) {
            piece.findings.push(Finding::of("manifest_missing", id, format!("{url} is not there")));
        }
        Ok(())
    }

    fn index(&self, from: Vec<u8>, piece: &mut Piece) -> Result<(), HubError> {
        let mut looked = 0;
        for item in self.view.range(Space::Index, &from, &[0xff; 2]) {
            let (key, value) = item.map_err(read_failed)?;
            if looked >= ENTRIES {
                piece.next_cursor = Some(format!("i{}", hex(&key)));
                return Ok(());
            }
            looked += 1;
            match key.first() {
                Some(b'a') => match keys::parse_listed(&key) {
                    Some(place) => self.listed(&key, place, piece)?,
                    None => piece.findings.push(wrong_key(&key)),
                },
                Some(b's' | b't' | b'y' | b'w') => {
                    let Some(places) = listing::unpack(&key, &value) else {
                        piece.findings.push(wrong_key(&key));
                        continue;
                    };
                    looked += places.len();
                    for place in places {
                        self.listed(&key, place, piece)?;
                    }
                }
                Some(b'r') => self.reserved(value, piece)?,
                Some(b'd' | b'e') => self.lettered(&key, piece)?,
                _ => {}
            }
        }
        piece.next_cursor = Some("t".to_owned());
        Ok(())
    }

    fn listed(&self, key: &Bytes, (created_ms, id): Place, piece: &mut Piece) -> Result<(), HubError> {
        let raw = self.view.get(Space::Jobs, &id).map_err(read_failed)?;
        let Some(record) = raw.map(JobRecord::decode) else {
            piece.findings.push(Finding::of("listed_wrongly", &id, "the job is in a list and not in the ledger".to_owned()));
            return Ok(());
        };
        // A damaged record has been found with its job.
        let Ok(record) = record else { return Ok(()) };
        let belongs = |listing: Listing| match listing {
            Listing::Active => *key == keys::active(created_ms, &id),
            _ => key.len() == listing.prefix().len() + 16 && key.starts_with(&listing.prefix()),
        };
        let is = keys::fixed_listings(&record).into_iter().chain([keys::state_listing(&record)]).any(belongs);
        if !is || created_ms != record.facts.created_ms {
            piece.findings.push(Finding::of("listed_wrongly", &id, "the job is in a list that it does not belong to".to_owned()));
        }
        Ok(())
    }

    fn reserved(&self, value: Bytes, piece: &mut Piece) -> Result<(), HubError> {
        let Ok(reserved) = Reserved::decode(value) else {
            piece.findings.push(Finding::global("reservation_without_job", "a reservation cannot be read".to_owned()));
            return Ok(());
        };
        if reserved.accepted && self.view.get(Space::Jobs, &reserved.id()).map_err(read_failed)?.is_none() {
            let message = "an idempotency key leads to this job, which is not in the ledger".to_owned();
            piece.findings.push(Finding::of("reservation_without_job", &reserved.id(), message));
        }
        Ok(())
    }

    /// An entry that no look at a job comes by: its job is not there, has nothing that failed, or the outcomes that it belongs to are not there.
    fn lettered(&self, key: &Bytes, piece: &mut Piece) -> Result<(), HubError> {
        let Some((sequence, id)) = dlq::place_of(key) else {
            piece.findings.push(Finding::global("letter_unfounded", format!("{} is the key of no dead letter", hex(key))));
            return Ok(());
        };
        let record = self.view.get(Space::Jobs, &id).map_err(read_failed)?.map(JobRecord::decode);
        // A damaged record has been found with its job.
        let seen = record.is_some_and(|record| record.is_err() || record.is_ok_and(|of| of.counts.failed + of.counts.replayed > 0));
        if !seen || self.view.get(Space::Outcomes, &outcome::key(&id, sequence)).map_err(read_failed)?.is_none() {
            let message = "a dead letter belongs to no outcomes of a job that has failed ones".to_owned();
            piece.findings.push(Finding::of("letter_unfounded", &id, message));
        }
        Ok(())
    }

    /// The sum of what is pending, and whether everything pending is carried by a message.
    fn sums(&self, piece: &mut Piece) -> Result<(), HubError> {
        let (mut pending, mut candidates) = (0u64, Vec::new());
        let recent = listing::recent(&self.view).map_err(read_failed)?;
        let lacks_own = |place: &Place| !matches!(listing::has_own(&self.view, place), Ok(true));
        for place in listing::own(&self.view).chain(recent.into_iter().filter(lacks_own).map(Ok)) {
            let (_, id) = place.map_err(read_failed)?;
            let Some(raw) = self.view.get(Space::Jobs, &id).map_err(read_failed)? else { continue };
            let Ok(record) = JobRecord::decode(raw) else { continue };
            pending += record.counts.pending();
            if record.finished_ms == 0 && candidates.len() < UNSETTLED && !record.spans.is_empty() {
                candidates.push(Candidate { id, record });
            }
        }
        let totals = crate::upkeep::parse_totals(self.view.get(Space::Meta, keys::TOTALS).map_err(read_failed)?);
        if totals.pending() != pending {
            let message = format!("{pending} resources are pending, the sums over all jobs say {}", totals.pending());
            piece.findings.push(Finding::global("totals_differ", message));
        }
        let lost = sweep::lost(self.core, &self.view, &candidates).map_err(read_failed)?;
        for (candidate, lost) in candidates.iter().zip(lost) {
            for index in lost {
                let message = format!("resource {index} is pending, and no task or retry will bring it");
                piece.findings.push(Finding::of("task_lost", &candidate.id, message).at(index));
            }
        }
        Ok(())
    }
}

fn wrong_key(key: &[u8]) -> Finding {
    Finding::global("listed_wrongly", format!("{} is the key of no list", hex(key)))
}

fn store_failed(error: String) -> HubError {
    HubError::refused("STORAGE_UNAVAILABLE", error).after_ms(5000)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back_and_others_are_refused() {
        assert_eq!(unhex(&hex(&[0, 0xff, 16])), Some(vec![0, 0xff, 16]));
        assert_eq!((unhex("0"), unhex("0g"), unhex("ä")), (None, None, None));
    }
}
