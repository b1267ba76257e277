//! The listings: jobs by time of creation, packed, because a key for each job and listing would cost more than all the rest of a small job.
//!
//! What one commit adds to a listing stands under one key for each *slot*, a quarter of a second of creation times: prefix, slot, sequence of the
//! commit. So a slot's packs are one range, and whoever walks a listing sorts a slot at a time.
//!
//! Active jobs are listed otherwise, because most of them are settled in no time: what becomes active with a commit stands under that commit's
//! sequence ([`Recent`]), and only a job that is still active a while later gets a key of its own.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::db::{Batch, Db, DbError, Item, Space, View};
use crate::job::{JobHash, JobId, JobRecord};
use crate::keys::{self, Listing};

/// Time of creation and id: what listings are ordered by.
pub type Place = (u64, JobId);

/// A slot, ms. As many values as a byte has.
const SLOT_MS: u64 = 256;
/// A job in a pack: its place in the slot, and its id.
const ENTRY: usize = 17;
/// A job that is active for so long gets a key of its own.
const KEPT: Duration = Duration::from_secs(30);
/// And sooner, when there are more than so many.
const KEPT_JOBS: usize = 100_000;
/// Jobs looked at by one commit, beside its own work.
const RETIRED: usize = 1_000;

/// The slot of a time of creation.
pub fn slot(created_ms: u64) -> u64 {
    created_ms / SLOT_MS
}

/// The key of what commit `sequence` adds to a slot of a listing.
pub fn key(prefix: &[u8], slot: u64, sequence: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(prefix.len() + 16);
    key.put_slice(prefix);
    key.put_u64(slot);
    key.put_u64(sequence);
    key.freeze()
}

/// The slot in a pack's key.
pub fn slot_of(key: &[u8]) -> Option<u64> {
    let at = key.len().checked_sub(16)?;
    Some(u64::from_be_bytes(key[at..at + 8].try_into().ok()?))
}

/// Jobs of one slot as a value.
pub fn pack(places: &[Place]) -> Bytes {
    let mut value = BytesMut::with_capacity(places.len() * ENTRY);
    for (created, id) in places {
        value.put_u8((created % SLOT_MS) as u8);
        value.put_slice(id);
    }
    value.freeze()
}

/// The jobs of a pack; `None` for one that is damaged.
pub fn unpack(key: &[u8], value: &[u8]) -> Option<Vec<Place>> {
    let begin = slot_of(key)?.checked_mul(SLOT_MS)?;
    let entry = |raw: &[u8]| Some((begin + u64::from(raw[0]), raw[1..].try_into().ok()?));
    if !value.len().is_multiple_of(ENTRY) { None } else { value.chunks(ENTRY).map(entry).collect() }
}

fn read(item: Item) -> Result<(Bytes, Vec<Place>), DbError> {
    let (key, value) = item?;
    let places = unpack(&key, &value).ok_or_else(|| DbError("a listing is damaged: check the ledger".into()))?;
    Ok((key, places))
}

/// The packs of one slot.
pub fn of_slot(view: &View<'_>, prefix: &[u8], slot: u64) -> Result<Vec<(Bytes, Vec<Place>)>, DbError> {
    view.range(Space::Index, &key(prefix, slot, 0), &key(prefix, slot + 1, 0)).map(read).collect()
}

/// Whether a listing holds a job.
pub fn holds(view: &View<'_>, prefix: &[u8], place: &Place) -> Result<bool, DbError> {
    Ok(of_slot(view, prefix, slot(place.0))?.iter().any(|(_, places)| places.contains(place)))
}

/// The jobs of a listing below a place, newest first.
pub fn newest(view: &View<'_>, listing: &Listing, before: Option<Place>) -> impl Iterator<Item = Result<Place, DbError>> + use<> {
    let prefix = listing.prefix();
    let end = before.map_or(u64::MAX, |(created, _)| slot(created) + 1);
    let items = view.range(Space::Index, &prefix, &key(&prefix, end, 0)).rev().peekable();
    let below = move |place: &Result<Place, DbError>| place.as_ref().map_or(true, |place| before.is_none_or(|before| *place < before));
    Slots { items, ready: Vec::new(), newest: true }.filter(below)
}

/// The jobs of a listing from the slot of a time of creation on, oldest first.
pub fn oldest(view: &View<'_>, listing: &Listing, from_ms: u64) -> impl Iterator<Item = Result<Place, DbError>> + use<> {
    let prefix = listing.prefix();
    let items = view.range(Space::Index, &key(&prefix, slot(from_ms), 0), &key(&prefix, u64::MAX, 0)).peekable();
    Slots { items, ready: Vec::new(), newest: false }
}

/// Sorts slot by slot.
struct Slots<I: Iterator<Item = Item>> {
    items: std::iter::Peekable<I>,
    /// The rest of a slot, the next one last.
    ready: Vec<Place>,
    newest: bool,
}

impl<I: Iterator<Item = Item>> Slots<I> {
    fn fill(&mut self) -> Result<(), DbError> {
        let Some(first) = self.items.next() else { return Ok(()) };
        let (key, mut places) = read(first)?;
        let slot = slot_of(&key);
        while let Some(item) = self.items.next_if(|item| item.as_ref().is_ok_and(|(key, _)| slot_of(key) == slot)) {
            places.extend(read(item)?.1);
        }
        places.sort_unstable();
        places.dedup();
        if !self.newest {
            places.reverse();
        }
        self.ready = places;
        Ok(())
    }
}

impl<I: Iterator<Item = Item>> Iterator for Slots<I> {
    type Item = Result<Place, DbError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty()
            && let Err(error) = self.fill()
        {
            return Some(Err(error));
        }
        self.ready.pop().map(Ok)
    }
}

/// Jobs that became active not long ago, and so have no key of their own.
#[derive(Debug, Default)]
pub struct Recent {
    /// Sequence of the commit that made a job active.
    since: HashMap<JobId, u64, JobHash>,
    /// What each commit made active, and when.
    packs: VecDeque<(u64, Duration, Vec<Place>)>,
    /// Jobs in all packs.
    jobs: usize,
}

impl Recent {
    /// What is active according to the database: with keys of their own and without.
    pub fn open(db: &Db) -> Result<(Self, BTreeSet<Place>), DbError> {
        let (mut recent, mut active) = (Self::default(), BTreeSet::new());
        for item in db.range(Space::Index, b"a", b"b") {
            active.extend(keys::parse_listed(&item?.0));
        }
        for item in db.range(Space::Index, &keys::recent(0), &keys::recent(u64::MAX)) {
            let (sequence, places) = read_recent(item)?;
            for place in &places {
                // Most are settled.
                let record = db.get(Space::Jobs, &place.1)?.and_then(|raw| <JobRecord as prost::Message>::decode(raw).ok());
                let is_active = record.is_some_and(|record| record.finished_ms == 0);
                // A later commit that made it active goes before; a key of its own goes before all.
                if is_active && (active.insert(*place) || recent.since.contains_key(&place.1)) {
                    recent.since.insert(place.1, sequence);
                }
            }
            recent.jobs += places.len();
            recent.packs.push_back((sequence, Duration::ZERO, places));
        }
        Ok((recent, active))
    }

    /// Jobs become active with a commit.
    pub fn begin(&mut self, sequence: u64, now: Duration, places: Vec<Place>, batch: &mut Batch) {
        if places.is_empty() {
            return;
        }
        let mut value = BytesMut::with_capacity(places.len() * 24);
        for (created, id) in &places {
            self.since.insert(*id, sequence);
            value.put_u64(*created);
            value.put_slice(id);
        }
        batch.put(Space::Index, keys::recent(sequence), value.freeze());
        self.jobs += places.len();
        self.packs.push_back((sequence, now, places));
    }

    /// A job is active no more.
    pub fn end(&mut self, place: &Place, batch: &mut Batch) {
        if self.since.remove(&place.1).is_none() {
            batch.delete(Space::Index, keys::active(place.0, &place.1));
        }
    }

    /// A job gets a key of its own otherwise.
    pub fn disown(&mut self, id: &JobId) {
        self.since.remove(id);
    }

    /// Gives those that have been active for long a key of their own; a bounded number. After [`Self::end`] for all that this commit settles.
    pub fn retire(&mut self, now: Duration, batch: &mut Batch) {
        let mut looked = 0;
        while looked < RETIRED
            && let Some((sequence, since, places)) = self.packs.front()
            && (now.saturating_sub(*since) >= KEPT || self.jobs > KEPT_JOBS)
        {
            for place in places {
                // Otherwise settled meanwhile, and perhaps active again by a later commit.
                if self.since.get(&place.1) == Some(sequence) {
                    self.since.remove(&place.1);
                    batch.put(Space::Index, keys::active(place.0, &place.1), Bytes::new());
                }
            }
            batch.delete(Space::Index, keys::recent(*sequence));
            looked += places.len().max(1);
            self.jobs -= places.len();
            self.packs.pop_front();
        }
    }
}

/// A pack of [`Recent`]: the sequence of its commit, and the jobs.
fn read_recent(item: Item) -> Result<(u64, Vec<Place>), DbError> {
    let (key, value) = item?;
    let sequence = keys::number(key.get(1..));
    let places = value.chunks(24).filter_map(|mut raw| Some((raw.try_get_u64().ok()?, raw.try_into().ok()?)));
    Ok((sequence, places.collect()))
}

/// Jobs with a key of their own.
pub fn own(view: &View<'_>) -> impl Iterator<Item = Result<Place, DbError>> + use<> {
    view.range(Space::Index, b"a", b"b").filter_map(|item| item.map(|(key, _)| keys::parse_listed(&key)).transpose())
}

/// Jobs that became active not long ago; most are settled already.
pub fn recent(view: &View<'_>) -> Result<BTreeSet<Place>, DbError> {
    let mut recent = BTreeSet::new();
    for item in view.range(Space::Index, &keys::recent(0), &keys::recent(u64::MAX)) {
        recent.extend(read_recent(item)?.1);
    }
    Ok(recent)
}

/// Whether a job has a key of its own.
pub fn has_own(view: &View<'_>, place: &Place) -> Result<bool, DbError> {
    Ok(view.get(Space::Index, &keys::active(place.0, &place.1))?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Durability;

    fn db() -> (tempfile::TempDir, Db) {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(dir.path(), Durability::Buffer, Batch::default()).unwrap();
        (dir, db)
    }

    #[test]
    fn packs_come_back_and_damaged_ones_do_not() {
        let places = [(1000, [1; 16]), (1023, [2; 16])];
        let key = key(b"t", slot(1000), 7);
        assert_eq!((slot(1000), slot(1023), slot_of(&key)), (3, 3, Some(3)));
        assert_eq!(unpack(&key, &pack(&places)).unwrap(), places);
        assert_eq!(unpack(&key, &pack(&places)[1..]), None);
        assert_eq!(unpack(b"short", b""), None);
    }

    #[test]
    fn a_listing_is_walked_in_order_both_ways_whatever_commit_added_what() {
        let (_dir, db) = db();
        let place = |created: u64| (created, [created as u8; 16]);
        let listing = Listing::Tenant("t".into());
        let prefix = listing.prefix();
        let mut batch = Batch::default();
        for (sequence, created) in [(1, vec![5, 300]), (2, vec![4, 250]), (3, vec![300, 1000])] {
            for slot_at in [0, 1, 3] {
                let of_slot: Vec<Place> = created.iter().map(|&c| place(c)).filter(|p| slot(p.0) == slot_at).collect();
                if !of_slot.is_empty() {
                    batch.put(Space::Index, key(&prefix, slot_at, sequence), pack(&of_slot));
                }
            }
        }
        batch.put(Space::Index, key(&Listing::Tenant("tt".into()).prefix(), 0, 9), pack(&[place(6)]));
        db.commit(batch).unwrap();
        let view = db.view();
        let walk = |before: Option<Place>| newest(&view, &listing, before).map(|p| p.unwrap().0).collect::<Vec<_>>();
        assert_eq!(walk(None), [1000, 300, 250, 5, 4]);
        assert_eq!((walk(Some(place(300))), walk(Some(place(5)))), (vec![250, 5, 4], vec![4]));
        assert_eq!(oldest(&view, &listing, 0).map(|p| p.unwrap().0).collect::<Vec<_>>(), [4, 5, 250, 300, 1000]);
        assert_eq!(oldest(&view, &listing, 256).map(|p| p.unwrap().0).collect::<Vec<_>>(), [300, 1000]);
        assert!(holds(&view, &prefix, &place(250)).unwrap() && !holds(&view, &prefix, &place(251)).unwrap());
    }

    #[test]
    fn only_jobs_that_stay_active_get_a_key_of_their_own() {
        let (_dir, db) = db();
        let mut recent = Recent::default();
        let at = Duration::from_secs;
        let place = |n: u8| (u64::from(n), [n; 16]);
        let own = || db.range(Space::Index, b"a", b"b").map(|item| keys::parse_listed(&item.unwrap().0).unwrap().0).collect::<Vec<_>>();
        let mut step = |now: u64, sequence: u64, begin: &[u8], end: &[u8]| {
            let mut batch = Batch::default();
            end.iter().for_each(|&n| recent.end(&place(n), &mut batch));
            recent.retire(at(now), &mut batch);
            recent.begin(sequence, at(now), begin.iter().map(|&n| place(n)).collect(), &mut batch);
            db.commit(batch).unwrap();
        };
        step(0, 1, &[1, 2, 3], &[]);
        step(1, 2, &[4], &[2]);
        // Settled and active again: it belongs to the later commit.
        step(2, 3, &[3], &[]);
        step(29, 4, &[], &[]);
        assert_eq!(own(), Vec::<u64>::new());
        step(30, 5, &[], &[]);
        assert_eq!(own(), [1]);
        step(31, 6, &[], &[4]);
        assert_eq!(own(), [1]);
        step(32, 7, &[], &[]);
        assert_eq!(own(), [1, 3]);
        step(33, 8, &[], &[1, 3]);
        assert_eq!((own(), db.range(Space::Index, &keys::recent(0), &keys::recent(u64::MAX)).count()), (vec![], 0));
        assert_eq!((recent.jobs, recent.since.len(), recent.packs.len()), (0, 0, 0));
    }
}
