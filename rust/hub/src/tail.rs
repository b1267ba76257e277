//! The newest records of `jobs.tasks`, in memory: a worker that keeps up is given what was just written without a search in the database.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;

/// Bytes kept, over all partitions.
const KEPT_BYTES: usize = 16 << 20;

/// A record as it was written.
#[derive(Debug, Clone)]
pub struct Fresh {
    /// Offset of its first message.
    pub base: u64,
    /// Offset behind its last.
    pub end: u64,
    /// As it stands in the log.
    pub value: Bytes,
}

#[derive(Debug, Default)]
struct Kept {
    partitions: Vec<VecDeque<Fresh>>,
    /// Partitions of the records, in the order in which they were written.
    order: VecDeque<u32>,
    bytes: usize,
}

/// What is kept. Records of a partition follow each other without a gap.
#[derive(Debug, Default)]
pub struct Tail(Mutex<Kept>);

impl Tail {
    /// Adds records that are durable; the oldest go.
    pub fn add(&self, records: Vec<(u32, Fresh)>) {
        let kept = &mut *self.0.lock();
        for (partition, record) in records {
            let at = partition as usize;
            if kept.partitions.len() <= at {
                kept.partitions.resize_with(at + 1, VecDeque::new);
            }
            kept.bytes += record.value.len();
            kept.partitions[at].push_back(record);
            kept.order.push_back(partition);
        }
        while kept.bytes > KEPT_BYTES
            && let Some(partition) = kept.order.pop_front()
        {
            let oldest = kept.partitions[partition as usize].pop_front();
            kept.bytes -= oldest.map_or(0, |record| record.value.len());
        }
    }

    /// The records of a partition from the one that holds `from`, if all of them are here; no more than hold `most` messages and the one that does.
    pub fn from(&self, partition: u32, from: u64, most: u64) -> Option<Vec<Fresh>> {
        let kept = self.0.lock();
        let records = kept.partitions.get(partition as usize)?;
        // Whoever keeps up wants the newest one: a search through all of them would be through memory that nobody has touched for long.
        let first = match records.back() {
            Some(newest) if newest.base <= from && from < newest.end => records.len() - 1,
            _ => records.partition_point(|record| record.end <= from),
        };
        if records.get(first)?.base > from {
            return None;
        }
        let enough = from.saturating_add(most);
        Some(records.range(first..).take_while(|record| record.base < enough).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(base: u64, end: u64, size: usize) -> Fresh {
        Fresh { base, end, value: Bytes::from(vec![0; size]) }
    }

    #[test]
    fn what_is_all_here_is_given_from_the_record_that_holds_the_offset() {
        let tail = Tail::default();
        let bases =
            |partition: u32, from: u64, most: u64| tail.from(partition, from, most).map(|r| r.iter().map(|r| r.base).collect::<Vec<_>>());
        assert_eq!(bases(0, 0, 10), None);
        tail.add(vec![(1, record(10, 15, 1)), (1, record(15, 16, 1)), (1, record(16, 30, 1))]);
        assert_eq!((bases(1, 9, 10), bases(1, 30, 10), bases(0, 10, 10)), (None, None, None));
        assert_eq!((bases(1, 10, 100), bases(1, 14, 2)), (Some(vec![10, 15, 16]), Some(vec![10, 15])));
        assert_eq!(bases(1, 15, 1), Some(vec![15]));
    }

    #[test]
    fn the_oldest_of_all_partitions_go_first() {
        let tail = Tail::default();
        tail.add(vec![(0, record(0, 1, KEPT_BYTES / 2)), (1, record(0, 1, KEPT_BYTES / 2)), (0, record(1, 2, 1))]);
        assert!(tail.from(0, 0, 9).is_none() && tail.from(0, 1, 9).is_some() && tail.from(1, 0, 9).is_some());
    }
}
