//! The ledger's dead letters: an entry per failed outcome, written by the commit that counts it.
//!
//! The entries of one job and commit share a key, `shelf: u8 | sequence: u64 | job: [u8; 16]`, beside the pack of outcomes of the same job and
//! commit, which holds the tasks. So a commit without failures pays nothing, all of them are in order of time, and filters by code and host read
//! no outcome. A replay moves an entry from the shelf of the dead to that of the replayed, a purge takes it away.

use bytes::{BufMut, Bytes, BytesMut};
use fetchbox_model::batch;
use fetchbox_model::manifest::host_port;
use fetchbox_model::message::{ResourceOutcome, ResourceState};
use prost::Message;

use crate::db::{DbError, Space, View};
use crate::error::HubError;
use crate::job::{JobId, id_text};
use crate::outcome::{self, OutcomePart};

/// Where an entry lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Shelf {
    /// Failed, and nobody has done anything about it.
    Dead = b'd',
    /// Put back to work.
    Replayed = b'e',
}

/// A resource's index and generation: what tells the entries of a job apart.
pub type Which = (u32, u32);

/// An entry, as far as filters need it.
#[derive(Clone, PartialEq, Eq, Message)]
#[allow(missing_docs)]
pub struct Letter {
    #[prost(uint32, tag = "1")]
    pub index: u32,
    #[prost(uint32, tag = "2")]
    pub generation: u32,
    #[prost(string, tag = "3")]
    pub code: String,
    /// Of the task's URL, lower case.
    #[prost(string, tag = "4")]
    pub host: String,
    /// 0 when the URL names none.
    #[prost(uint32, tag = "5")]
    pub port: u32,
    /// When it was put back to work, Unix ms; 0 before.
    #[prost(uint64, tag = "6")]
    pub replayed_ms: u64,
}

impl Letter {
    /// What tells it apart.
    pub fn which(&self) -> Which {
        (self.index, self.generation)
    }
}

/// The entries of one job and commit, in the order of [`Letter::which`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Letters {
    /// Wall clock of the commit, Unix ms.
    #[prost(uint64, tag = "1")]
    pub time_ms: u64,
    /// In order.
    #[prost(message, repeated, tag = "2")]
    pub list: Vec<Letter>,
}

impl Letters {
    /// The entries of a commit.
    pub fn new(time_ms: u64, mut list: Vec<Letter>) -> Self {
        list.sort_unstable_by_key(Letter::which);
        Self { time_ms, list }
    }

    /// Takes an entry out.
    pub fn take(&mut self, which: Which) -> Option<Letter> {
        let at = self.list.binary_search_by_key(&which, Letter::which).ok()?;
        Some(self.list.remove(at))
    }

    /// Puts an entry in; one that is there already is replaced.
    pub fn insert(&mut self, letter: Letter) {
        match self.list.binary_search_by_key(&letter.which(), Letter::which) {
            Ok(at) => self.list[at] = letter,
            Err(at) => self.list.insert(at, letter),
        }
    }

    /// Reads a stored value.
    pub fn read(raw: Bytes) -> Result<Self, DbError> {
        Self::decode(raw).map_err(|error| DbError(format!("an entry of the dead letters is damaged: {error}")))
    }
}

/// The part of a failed outcome that its entry is made of; decoded for failures only.
#[derive(Clone, PartialEq, Message)]
struct FailedPart {
    #[prost(string, tag = "8")]
    final_url: String,
    #[prost(message, optional, tag = "22")]
    task: Option<UrlPart>,
}

#[derive(Clone, PartialEq, Message)]
struct UrlPart {
    #[prost(string, tag = "4")]
    url: String,
}

/// The entry of a failed outcome.
pub fn letter(part: &OutcomePart, raw: &Bytes) -> Letter {
    let failed = FailedPart::decode(raw.clone()).unwrap_or_default();
    let (host, port) = host_port(&failed.task.map_or(failed.final_url, |task| task.url));
    Letter { index: part.index, generation: part.generation, code: part.code.clone(), host, port: port.unwrap_or(0).into(), replayed_ms: 0 }
}

/// Where the entries of a job and commit stand, on any shelf; ordered by time.
pub type Place = (u64, JobId);

/// The key of a place.
pub fn key(shelf: Shelf, place: &Place) -> Bytes {
    let mut key = BytesMut::with_capacity(25);
    key.put_u8(shelf as u8);
    key.put_u64(place.0);
    key.put_slice(&place.1);
    key.freeze()
}

/// The place of a key.
pub fn place_of(key: &[u8]) -> Option<Place> {
    Some((u64::from_be_bytes(key.get(1..9)?.try_into().ok()?), key.get(9..25)?.try_into().ok()?))
}

/// Entries with their places.
pub type Shelved = Box<dyn DoubleEndedIterator<Item = Result<(Place, Letters), HubError>>>;

/// What stands on a shelf from a place on and up to another one, both included; of one job, when one is named.
pub fn shelved(view: &View<'_>, shelf: Shelf, job: Option<&JobId>, from: Place, to: Place) -> Result<Shelved, DbError> {
    let read = |(place, raw): (Place, Bytes)| Letters::read(raw).map(|letters| (place, letters)).map_err(crate::core::read_failed);
    if let Some(job) = job {
        // Its packs of outcomes say which commits to look at.
        let mut found = Vec::new();
        for place in places(view, job)? {
            if (from..=to).contains(&place)
                && let Some(raw) = view.get(Space::Index, &key(shelf, &place))?
            {
                found.push((place, raw));
            }
        }
        return Ok(Box::new(found.into_iter().map(read)));
    }
    let behind = [&key(shelf, &to)[..], &[0]].concat();
    let item = move |item: crate::db::Item| match item {
        Ok((key, raw)) => place_of(&key).map(|place| read((place, raw))),
        Err(error) => Some(Err(crate::core::read_failed(error))),
    };
    Ok(Box::new(view.range(Space::Index, &key(shelf, &from), &behind).filter_map(item)))
}

/// The commits that brought outcomes of a job.
pub fn places(view: &View<'_>, job: &JobId) -> Result<Vec<Place>, DbError> {
    let (from, to) = outcome::bounds(job);
    let mut places = Vec::new();
    for item in view.range(Space::Outcomes, &from, &to) {
        let (key, _) = item?;
        let sequence = key.get(16..24).and_then(|raw| raw.try_into().ok()).map(u64::from_be_bytes);
        places.extend(sequence.map(|sequence| (sequence, *job)));
    }
    Ok(places)
}

/// The failed outcomes that entries of one place stand for, in the order asked; `None` for one that is not there, never without a defect.
pub fn outcomes(view: &View<'_>, place: &Place, wanted: &[Which]) -> Result<Vec<Option<ResourceOutcome>>, DbError> {
    let mut found = vec![None; wanted.len()];
    let Some(pack) = view.get(Space::Outcomes, &outcome::key(&place.1, place.0))? else { return Ok(found) };
    let damaged = |error: &dyn std::fmt::Display| DbError(format!("the outcomes of job {} are damaged: {error}", id_text(&place.1)));
    for raw in batch::unpack(&pack).map_err(|error| damaged(&error))? {
        let part = OutcomePart::decode(raw.clone()).map_err(|error| damaged(&error))?;
        let at = wanted.iter().position(|which| *which == (part.index, part.generation));
        if let Some(at) = at.filter(|_| part.state() == ResourceState::Failed) {
            found[at] = Some(ResourceOutcome::decode(raw).map_err(|error| damaged(&error))?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fetchbox_model::message::DownloadTask;

    fn entry(index: u32, generation: u32) -> Letter {
        Letter { index, generation, ..Default::default() }
    }

    #[test]
    fn an_entry_is_made_of_the_outcomes_task() {
        let mut outcome = ResourceOutcome {
            resource_index: 4,
            generation: 2,
            code: "DOWNLOAD_TLS".into(),
            final_url: "http://elsewhere/".into(),
            task: Some(DownloadTask { url: "https://Host.example:8443/a".into(), ..Default::default() }),
            ..Default::default()
        };
        let read = |outcome: &ResourceOutcome| {
            let raw = Bytes::from(outcome.encode_to_vec());
            letter(&OutcomePart::decode(raw.clone()).unwrap(), &raw)
        };
        let expected =
            Letter { index: 4, generation: 2, code: "DOWNLOAD_TLS".into(), host: "host.example".into(), port: 8443, replayed_ms: 0 };
        assert_eq!(read(&outcome), expected);
        outcome.task = None;
        assert_eq!((read(&outcome).host.as_str(), read(&outcome).port), ("elsewhere", 0));
    }

    #[test]
    fn entries_are_taken_out_once() {
        let mut letters = Letters::new(1, vec![entry(5, 0), entry(1, 1), entry(1, 0)]);
        assert_eq!(letters.take((1, 1)), Some(entry(1, 1)));
        assert_eq!(letters.take((1, 1)), None);
        letters.insert(entry(3, 0));
        letters.insert(Letter { replayed_ms: 9, ..entry(5, 0) });
        let left: Vec<_> = letters.list.iter().map(|l| (l.which(), l.replayed_ms)).collect();
        assert_eq!(left, [((1, 0), 0), ((3, 0), 0), ((5, 0), 9)]);
        assert_eq!(Letters::read(letters.encode_to_vec().into()).unwrap(), letters);
    }

    #[test]
    fn keys_are_in_the_order_of_commits() {
        assert!(key(Shelf::Dead, &(1, [9; 16])) < key(Shelf::Dead, &(2, [0; 16])));
        assert_eq!(place_of(&key(Shelf::Replayed, &(7, [3; 16]))), Some((7, [3; 16])));
        assert_eq!(place_of(b"dshort"), None);
    }
}
