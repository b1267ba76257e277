//! Reading the log: ranges of a partition, and fair polls over many.

use fetchbox_model::stream::Topic;

use crate::core::Core;
use crate::db::{DbError, Space};
use crate::frame::{PolledBatch, Position};
use crate::record::{self, Part, Record};
use crate::tail::Fresh;

/// Records of a partition that hold something in `from..to`, with their base offsets, one after another.
pub struct Records<'a> {
    topic: Topic,
    partition: u32,
    items: Box<dyn Iterator<Item = crate::db::Item> + 'a>,
}

/// The records of a partition from the one that holds `from`.
pub fn records(core: &Core, topic: Topic, partition: u32, from: u64, to: u64) -> Result<Records<'_>, DbError> {
    let first = record::key(topic as u8, partition, 0);
    let behind = record::key(topic as u8, partition, from.saturating_add(1));
    // The record that holds `from` begins at or before it.
    let held = core.db.range(Space::Log, &first, &behind).next_back().transpose()?;
    let begin = held.and_then(|(key, _)| record::base_of(&key)).unwrap_or(from);
    let items = core.db.range(Space::Log, &record::key(topic as u8, partition, begin), &record::key(topic as u8, partition, to));
    Ok(Records { topic, partition, items: Box::new(items) })
}

impl Iterator for Records<'_> {
    type Item = Result<(u64, Record), DbError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.items.next()?;
        Some(item.and_then(|(key, value)| {
            let base = record::base_of(&key).ok_or_else(|| DbError("the log holds a key that is none of its own".into()))?;
            Ok((base, record::decode(self.topic.name(), self.partition, base, &value)?))
        }))
    }
}

/// Batches that hold something in `from..to`, with their base offsets.
pub fn read(core: &Core, topic: Topic, partition: u32, from: u64, to: u64) -> Result<Vec<(u64, Part)>, DbError> {
    let mut batches = Vec::new();
    for item in records(core, topic, partition, from, to)? {
        let (base, record) = item?;
        batches.extend(within(base, record, from, to));
    }
    Ok(batches)
}

fn within(base: u64, record: Record, from: u64, to: u64) -> Vec<(u64, Part)> {
    let mut offset = base;
    let mut batches = Vec::with_capacity(record.parts.len());
    for part in record.parts {
        let end = offset + u64::from(part.count);
        if end > from && offset < to {
            batches.push((offset, part));
        }
        offset = end;
    }
    batches
}

/// Where a poll reads.
enum Source<'a> {
    Kept(std::vec::IntoIter<Fresh>),
    Log(Records<'a>),
}

impl Source<'_> {
    fn next(&mut self, topic: Topic, partition: u32) -> Result<Option<(u64, Record)>, DbError> {
        match self {
            Source::Kept(kept) => {
                kept.next().map(|fresh| Ok((fresh.base, record::decode(topic.name(), partition, fresh.base, &fresh.value)?))).transpose()
            }
            Source::Log(records) => records.next().transpose(),
        }
    }
}

/// What [`poll`] would answer, if all of it is in memory.
pub fn poll_kept(
    core: &Core,
    topic: Topic,
    positions: &[Position],
    max_messages: u32,
    max_bytes: u32,
) -> Result<Option<Vec<PolledBatch>>, DbError> {
    take(core, topic, positions, max_messages, max_bytes, false)
}

/// Batches from the given positions: in order per partition, one record of each in turn, until a limit is reached (the first batch always fits).
pub fn poll(core: &Core, topic: Topic, positions: &[Position], max_messages: u32, max_bytes: u32) -> Result<Vec<PolledBatch>, DbError> {
    Ok(take(core, topic, positions, max_messages, max_bytes, true)?.unwrap_or_default())
}

/// `None` when the database would have to be read and may not.
fn take(
    core: &Core,
    topic: Topic,
    positions: &[Position],
    max_messages: u32,
    max_bytes: u32,
    may_read: bool,
) -> Result<Option<Vec<PolledBatch>>, DbError> {
    let mut batches = Vec::new();
    let (mut messages, mut bytes) = (0u64, 0usize);
    let mut sources = Vec::new();
    for position in positions {
        let next = core.next.get(topic, position.partition);
        // What was trimmed is skipped.
        let from = position.next_offset.max(core.start.get(topic, position.partition));
        if from < next {
            let kept = if topic == Topic::Tasks { core.tail.from(position.partition, from, max_messages.into()) } else { None };
            if kept.is_none() && !may_read {
                return Ok(None);
            }
            let source = kept.map(|kept| Source::Kept(kept.into_iter()));
            sources.push((position.partition, from, next, source, Vec::new().into_iter()));
        }
    }
    while !sources.is_empty() {
        let mut at = 0;
        while at < sources.len() {
            let (partition, from, next, records_of, parts) = &mut sources[at];
            let part = match parts.next() {
                Some(part) => Some(part),
                None => {
                    let source = match records_of {
                        Some(source) => source,
                        None => records_of.insert(Source::Log(records(core, topic, *partition, *from, *next)?)),
                    };
                    match source.next(topic, *partition)? {
                        Some((base, record)) => {
                            *parts = within(base, record, *from, *next).into_iter();
                            continue;
                        }
                        None => None,
                    }
                }
            };
            let Some((base_offset, part)) = part else {
                sources.remove(at);
                continue;
            };
            messages += u64::from(part.count);
            bytes += part.bytes.len();
            batches.push(PolledBatch { partition: *partition, base_offset, count: part.count, bytes: part.bytes });
            if messages >= u64::from(max_messages) || bytes >= max_bytes as usize {
                return Ok(Some(batches));
            }
            at += 1;
        }
    }
    Ok(Some(batches))
}
