//! A record of the log: the batches that one commit appended to one partition.
//!
//! Key: `topic: u8 | partition: u16 | base offset: u64`, big-endian, so that a partition is one ordered range. Value, little-endian:
//! `crc32: u32` of what follows, `group sequence: u64`, `time: u64` (Unix ms), `entries: u32`, then per entry `messages: u32 | bytes: u32 | target: u32`
//! (the partition of `jobs.tasks` a retry goes back to, else `u32::MAX`), then the batches one after another, as they came.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::db::DbError;

const FIXED: usize = 24;
const PER_ENTRY: usize = 12;
const NO_TARGET: u32 = u32::MAX;

/// A batch inside a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Messages in it.
    pub count: u32,
    /// Partition of `jobs.tasks` that a retry goes back to.
    pub target: Option<u32>,
    /// The batch.
    pub bytes: Bytes,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Sequence of the commit.
    pub sequence: u64,
    /// Wall clock of the commit, Unix ms.
    pub time_ms: u64,
    /// Its batches in order.
    pub parts: Vec<Part>,
}

impl Record {
    /// Messages in all batches.
    pub fn messages(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.count)).sum()
    }
}

/// The key of the record that begins at `base`.
pub fn key(topic: u8, partition: u32, base: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(11);
    key.put_u8(topic);
    key.put_u16(partition as u16);
    key.put_u64(base);
    key.freeze()
}

/// The base offset in a record's key.
pub fn base_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(3..11)?.try_into().ok()?))
}

/// A record's value.
pub fn encode(sequence: u64, time_ms: u64, parts: &[Part]) -> Bytes {
    let size = FIXED + parts.iter().map(|part| PER_ENTRY + part.bytes.len()).sum::<usize>();
    let mut value = BytesMut::with_capacity(size);
    value.put_u32_le(0);
    value.put_u64_le(sequence);
    value.put_u64_le(time_ms);
    value.put_u32_le(parts.len() as u32);
    for part in parts {
        value.put_u32_le(part.count);
        value.put_u32_le(part.bytes.len() as u32);
        value.put_u32_le(part.target.unwrap_or(NO_TARGET));
    }
    for part in parts {
        value.put_slice(&part.bytes);
    }
    let crc = crc32fast::hash(&value[4..]);
    value[..4].copy_from_slice(&crc.to_le_bytes());
    value.freeze()
}

/// Reads a record; a damaged one is an error that names `topic`, partition and offset.
pub fn decode(topic: &str, partition: u32, base: u64, value: &Bytes) -> Result<Record, DbError> {
    let damaged = |what: &str| DbError(format!("the record of {topic} partition {partition} at offset {base} is damaged: {what}"));
    if value.len() < FIXED {
        return Err(damaged("it is too short"));
    }
    let mut rest = value.clone();
    let crc = rest.get_u32_le();
    if crc32fast::hash(&rest) != crc {
        return Err(damaged("its checksum is wrong"));
    }
    let (sequence, time_ms) = (rest.get_u64_le(), rest.get_u64_le());
    let entries = rest.get_u32_le() as usize;
    if rest.len() < entries.saturating_mul(PER_ENTRY) {
        return Err(damaged("its entries are cut short"));
    }
    let mut heads = rest.split_to(entries * PER_ENTRY);
    let mut parts = Vec::with_capacity(entries);
    for _ in 0..entries {
        let (count, len, target) = (heads.get_u32_le(), heads.get_u32_le() as usize, heads.get_u32_le());
        if rest.len() < len {
            return Err(damaged("a batch is cut short"));
        }
        parts.push(Part { count, target: (target != NO_TARGET).then_some(target), bytes: rest.split_to(len) });
    }
    Ok(Record { sequence, time_ms, parts })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Vec<Part> {
        vec![
            Part { count: 3, target: None, bytes: Bytes::from_static(b"abc") },
            Part { count: 1, target: Some(9), bytes: Bytes::from_static(b"") },
        ]
    }

    #[test]
    fn records_come_back_as_they_were() {
        let record = decode("jobs.tasks", 1, 5, &encode(7, 8, &parts())).unwrap();
        assert_eq!(record, Record { sequence: 7, time_ms: 8, parts: parts() });
        assert_eq!(record.messages(), 4);
        assert_eq!(base_of(&key(1, 2, 77)), Some(77));
    }

    #[test]
    fn any_flipped_byte_or_cut_is_noticed_and_named() {
        let value = encode(7, 8, &parts());
        for at in 0..value.len() {
            let mut flipped = value.to_vec();
            flipped[at] ^= 1;
            let error = decode("jobs.tasks", 1, 5, &Bytes::from(flipped)).unwrap_err();
            assert!(error.0.contains("jobs.tasks partition 1 at offset 5"), "{error}");
            assert!(decode("jobs.tasks", 1, 5, &value.slice(..at)).is_err());
        }
    }
}
