//! What is remembered of URLs whose objects are stored, so that unchanged ones are not fetched again.
//!
//! An outcome that may be reused brings the name under which it is remembered, a hash that the worker made of everything its answer may depend on. The
//! commit that counts it writes what is to be remembered, and the names of one commit once more under its time, in packs: what grows too old, or too
//! much, is found by them. Where nothing is reused nothing is written.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use bytes::{BufMut, Bytes, BytesMut};
use fetchbox_model::message::ResourceOutcome;
use fetchbox_model::reuse::{KEY_BYTES, Remembered};
use prost::Message;

use crate::core::{Core, read_failed};
use crate::db::{Db, DbError, Space};
use crate::error::HubError;
use crate::frame::KnownUrl;
use crate::job::JobId;
use crate::outcome::{self, OutcomePart};
use crate::stage::Stage;
use crate::writer::{Command, Writer};

/// Names of one pack at most: what one command of the writer forgets.
const PACK: usize = 1000;
/// Packs forgotten in one step of the upkeep.
const PER_STEP: usize = 16;
/// Bytes on disk of what is remembered of a URL, about, and the share of the ledger that all of it may take.
const BYTES_EACH: u64 = 400;
const SHARE: u64 = 10;

/// What is kept under a name.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    /// Of the object.
    #[prost(message, required, tag = "1")]
    pub remembered: Remembered,
    /// When the origin last confirmed it, by the hub's clock, ms.
    #[prost(uint64, tag = "2")]
    pub verified_ms: u64,
    /// The job that the object belongs to.
    #[prost(bytes = "vec", tag = "3")]
    pub job: Vec<u8>,
    /// Sequence of the commit that wrote this.
    #[prost(uint64, tag = "4")]
    pub sequence: u64,
}

/// Where a URL is remembered.
fn record_key(name: &[u8]) -> Bytes {
    [b"u", name].concat().into()
}

/// The key of a pack of names: when they were remembered, by which commit, and its number in it.
fn pack_key(time_ms: u64, sequence: u64, number: u32) -> Bytes {
    let mut key = BytesMut::with_capacity(21);
    key.put_u8(b'p');
    key.put_u64(time_ms);
    key.put_u64(sequence);
    key.put_u32(number);
    key.freeze()
}

/// Time and sequence in a pack's key.
fn parse_pack_key(key: &[u8]) -> Option<(u64, u64)> {
    let number = |at: usize| Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?));
    Some((number(1)?, number(9)?))
}

/// Names in all packs: at least as many as there are URLs remembered.
pub fn count(db: &Db) -> Result<u64, DbError> {
    db.range(Space::Reuse, b"p", b"q").try_fold(0, |sum, item| Ok(sum + (item?.1.len() / KEY_BYTES) as u64))
}

/// Adds the names of a commit to it.
pub fn stage_packs(stage: &mut Stage) {
    let names = std::mem::take(&mut stage.remembered);
    for (number, names) in (0..).zip(names.chunks(PACK)) {
        stage.put(Space::Reuse, pack_key(stage.now_ms, stage.sequence, number), names.concat());
    }
}

impl Writer {
    /// Remembers the object of an outcome, if it brings a name.
    pub(crate) fn remember(&mut self, id: &JobId, raw: &Bytes) {
        let Ok(outcome) = ResourceOutcome::decode(raw.clone()) else { return };
        let Some(remembered) = Remembered::of(&outcome).filter(|_| outcome.reuse_key.len() == KEY_BYTES) else { return };
        let record = Record { remembered, verified_ms: self.stage.now_ms, job: id.to_vec(), sequence: self.stage.sequence };
        self.stage.put(Space::Reuse, record_key(&outcome.reuse_key), record.encode_to_vec());
        self.stage.remembered.push(outcome.reuse_key);
        self.core.remembered.fetch_add(1, Ordering::Relaxed);
    }

    /// An object that has been reported was replaced by that of another outcome: what was remembered of it is not true any more.
    pub(crate) fn overwritten(&mut self, id: &JobId, raw: &Bytes) -> Result<(), HubError> {
        if self.core.remembered.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let core = std::sync::Arc::clone(&self.core);
        let Ok(new) = OutcomePart::decode(raw.clone()) else { return Ok(()) };
        let mut all = outcome::stored(&core.db.view(), id).map_err(read_failed)?;
        if let Some(job) = self.job(id)? {
            all.extend(job.outcomes.iter().cloned());
        }
        for part in all.into_iter().filter_map(|raw| OutcomePart::decode(raw).ok()) {
            if part.index == new.index && !part.reuse_key.is_empty() {
                self.stage.delete(Space::Reuse, record_key(&part.reuse_key));
            }
        }
        self.remember(id, raw);
        Ok(())
    }

    /// Forgets what a pack names, but for what was remembered anew since.
    pub(crate) fn forget_urls(&mut self, pack: &Bytes) -> Result<(), HubError> {
        let (Some(names), Some((_, sequence))) = (self.get(Space::Reuse, pack)?, parse_pack_key(pack)) else { return Ok(()) };
        for name in names.chunks(KEY_BYTES) {
            let key = record_key(name);
            let record = self.get(Space::Reuse, &key)?.map(Record::decode);
            // One that cannot be read is worth nothing either.
            if record.is_some_and(|record| record.map_or(true, |record| record.sequence == sequence)) {
                self.stage.delete(Space::Reuse, key);
            }
        }
        self.stage.delete(Space::Reuse, pack.clone());
        self.core.remembered.fetch_sub((names.len() / KEY_BYTES) as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// What is remembered under these names. Objects of jobs that the ledger has forgotten are not offered: nobody answers for them any more.
pub fn known(core: &Core, names: &[Bytes]) -> Result<Vec<KnownUrl>, HubError> {
    let now_ms = core.clock.now_ms();
    let mut jobs: HashMap<Vec<u8>, bool> = HashMap::new();
    let mut found = Vec::new();
    for name in names {
        let raw = core.db.get(Space::Reuse, &record_key(name)).map_err(read_failed)?;
        let Some(Ok(Record { mut remembered, verified_ms, job, .. })) = raw.map(Record::decode) else { continue };
        let is_kept = match jobs.get(&job) {
            Some(is_kept) => *is_kept,
            None => {
                let is_kept = core.db.get(Space::Jobs, &job).map_err(read_failed)?.is_some();
                jobs.insert(job, is_kept);
                is_kept
            }
        };
        if is_kept {
            // What was confirmed in the future was confirmed by a clock that was wrong.
            remembered.age_ms = now_ms.checked_sub(verified_ms).unwrap_or(u64::MAX);
            found.push(KnownUrl { key: name.clone(), remembered });
        }
    }
    Ok(found)
}

/// Forgets what is older than jobs may be, and the oldest of what is too much; whether there is more to forget.
pub fn trim(core: &Core) -> Result<bool, HubError> {
    let retention = &core.config.retention;
    let before_ms = core.clock.cautious_ms().saturating_sub((retention.job_ttl * 1000.0) as u64);
    let most = retention.ledger_max_bytes / SHARE / BYTES_EACH;
    for _ in 0..PER_STEP {
        if core.remembered.load(Ordering::Relaxed) == 0 {
            return Ok(false);
        }
        let Some(first) = core.db.range(Space::Reuse, b"p", b"q").next() else { return Ok(false) };
        let (pack, _) = first.map_err(read_failed)?;
        let is_old = parse_pack_key(&pack).is_none_or(|(time_ms, _)| time_ms < before_ms);
        if !is_old && core.remembered.load(Ordering::Relaxed) <= most {
            return Ok(false);
        }
        core.ask(|reply| Command::ForgetUrls { pack, reply })?;
    }
    Ok(true)
}
