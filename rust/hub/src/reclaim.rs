//! Giving back the space of what was deleted.
//!
//! A deletion is a small item of its own, which frees what it deletes when both meet in a compaction. The database compacts by the size of what is new;
//! records and outcomes are large and their deletions are small, so that a ledger that forgets everything after minutes would still grow for hours. So
//! a keyspace that is mostly dead is compacted as a whole: at most as much is written for it as was deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::background::{Signal, spare};
use crate::core::Core;
use crate::db::{DbError, Fill, Space};

/// How often the keyspaces are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// A keyspace with less on disk is left alone.
const WORTH: u64 = 32 << 20;
/// What was just deleted is in memory; so long it gets to be written, and so often it is looked whether it is.
const FLUSH: Duration = Duration::from_secs(30);
const FLUSH_LOOK: Duration = Duration::from_millis(50);
/// Compactions of a keyspace take at most this part of the time: deletions that an open view still needs stay whatever is done.
const REST: u32 = 10;

/// What is known of dead space beside what the database says.
#[derive(Debug, Default)]
pub struct Reclaim {
    /// Ends the thread.
    pub signal: Signal,
    /// Bytes of streams' records deleted since their keyspace was compacted. Records of topics differ so much in size that their number says little.
    records: AtomicU64,
}

impl Reclaim {
    /// Records of so many bytes were deleted.
    pub fn deleted(&self, bytes: u64) {
        self.records.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Which share of a keyspace is dead, of 1: by number, or by bytes where they are known.
fn dead(fill: &Fill, bytes: u64) -> f64 {
    // A deletion is an item, and what it deletes another: what it leaves behind are the others.
    let values = fill.items.saturating_sub(fill.deletions).max(1);
    let by_number = fill.deletions as f64 / values as f64;
    by_number.max(bytes as f64 / fill.bytes.max(1) as f64).min(1.0)
}

/// The thread's work.
pub fn run(core: &Arc<Core>) {
    let mut rests = Space::every().map(|space| (space, Instant::now())).collect::<Vec<_>>();
    while core.reclaim.signal.wait(LOOK) {
        for (space, until) in &mut rests {
            let begun = Instant::now();
            // What failed is tried again; what is fatal the writer has noticed itself.
            if begun >= *until && !core.reclaim.signal.closed() && reclaim(core, *space, WORTH, spare(core)).unwrap_or(true) {
                *until = Instant::now() + begun.elapsed() * REST;
            }
        }
    }
}

/// Compacts a keyspace with more than that on disk when half of it is dead and the disk, if it is known how much that has to spare, has room for what is
/// alive; whether it did.
fn reclaim(core: &Core, space: Space, worth: u64, spare: Option<i64>) -> Result<bool, DbError> {
    let fill = core.db.fill(space);
    let records = if space == Space::Log { core.reclaim.records.load(Ordering::Relaxed) } else { 0 };
    let dead = dead(&fill, records);
    let alive = (fill.bytes as f64 * (1.0 - dead)) as i64;
    if fill.bytes < worth || dead < 0.5 || spare.is_some_and(|spare| spare < alive) {
        return Ok(false);
    }
    core.db.rotate(space)?;
    let until = Instant::now() + FLUSH;
    while !core.db.is_flushed(space) {
        if core.reclaim.signal.closed() || Instant::now() >= until {
            return Ok(false);
        }
        core.reclaim.signal.rest(FLUSH_LOOK);
    }
    core.reclaim.records.fetch_sub(records, Ordering::Relaxed);
    core.db.compact(space)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use fetchbox_model::message::DownloadTask;
    use fetchbox_model::stream::Topic;

    use super::*;
    use crate::frame::Entry;
    use crate::retention::Retainer;
    use crate::upkeep_tests::{Bed, batch};

    const MIB: u64 = 1 << 20;
    const QUARTER_MS: u64 = 91 * 86_400_000;

    #[test]
    fn dead_are_half_of_the_values_or_half_of_the_bytes() {
        let fill = |items, deletions| Fill { bytes: 100 * MIB, items, deletions };
        let dead_of = |items, deletions, bytes| dead(&fill(items, deletions), bytes);
        assert_eq!([dead_of(0, 0, 0), dead_of(100, 0, 0), dead_of(200, 100, 0)], [0.0, 0.0, 1.0]);
        assert_eq!(dead_of(150, 50, 0), 0.5);
        // Few records with almost all of the bytes, and what was deleted in the memtable that it was written to.
        assert_eq!([dead_of(110, 10, 90 * MIB), dead_of(100, 100, 0), dead_of(1, 0, 300 * MIB)], [0.9, 1.0, 1.0]);
    }

    /// An event of about 100 KiB, however it is compressed.
    fn event(seed: u64) -> Entry {
        let mut state = seed + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            format!("{:08x}", state >> 32)
        };
        let url = (0..25_600).map(|_| next()).collect();
        Entry::new(Topic::Events, 0, batch([DownloadTask { url, ..Default::default() }]))
    }

    #[test]
    fn a_log_that_was_forgotten_gives_its_space_back_once() {
        let bed = Bed::new(|_| {});
        let core = bed.core();
        (0..400).for_each(|number| drop(bed.append("", vec![event(number)], vec![]).unwrap()));
        assert!(!reclaim(core, Space::Log, MIB, None).unwrap(), "nothing was forgotten");
        bed.clock.advance(QUARTER_MS);
        bed.append("", vec![event(400)], vec![]).unwrap();
        Retainer::default().step(core).unwrap();
        assert_eq!(core.start.get(Topic::Events, 0), 400);
        let before = core.db.fill(Space::Log);
        assert!(before.bytes > 16 * MIB && before.deletions == 400, "{before:?}");
        assert!(!reclaim(core, Space::Log, u64::MAX, None).unwrap(), "too little to bother");
        assert!(!reclaim(core, Space::Log, MIB, Some(-1)).unwrap(), "the disk is full");
        assert_eq!(core.db.fill(Space::Log).bytes, before.bytes);
        assert!(reclaim(core, Space::Log, MIB, Some(i64::MAX)).unwrap());
        let after = core.db.fill(Space::Log);
        assert!(after.bytes < MIB && after.items == 1 && after.deletions == 0, "{after:?}");
        assert!(!reclaim(core, Space::Log, 0, None).unwrap(), "once");
        assert_eq!(crate::log::records(core, Topic::Events, 0, 400, 401).unwrap().count(), 1);
    }
}
