//! What a worker holds of its partitions: which offsets were delivered, which are settled or handed on, and how far each partition may be committed.
//!
//! The window ahead of a partition's commit is bounded, in tasks and in bytes, so that one slow task cannot make a worker hold a whole stream.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use fetchbox_model::batch;
use fetchbox_model::message::DownloadTask;
use fetchbox_model::watermark::Watermark;
use prost::Message;

/// Most tasks a partition may have between its committed offset and its position.
pub const MAX_TASKS: u64 = 20_000;
/// Most bytes of encoded tasks a partition may have there.
pub const MAX_BYTES: usize = 32 << 20;

const OFFSET_BITS: u32 = 48;

/// Packs a partition and an offset into the token that travels through the engine.
pub fn token(partition: u32, offset: u64) -> u64 {
    (u64::from(partition) << OFFSET_BITS) | (offset & ((1 << OFFSET_BITS) - 1))
}

/// The partition and offset of a token.
pub fn locate(token: u64) -> (u32, u64) {
    ((token >> OFFSET_BITS) as u32, token & ((1 << OFFSET_BITS) - 1))
}

/// A batch as it was polled.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// Partition of `jobs.tasks`.
    pub partition: u32,
    /// Offset of its first message.
    pub base_offset: u64,
    /// Messages in it.
    pub count: u32,
    /// The batch, as `fetchbox_model::batch` packs it.
    pub bytes: Bytes,
}

/// A task with the token of its place.
#[derive(Debug)]
pub struct Placed {
    /// Its place, see [`locate`].
    pub token: u64,
    /// The task.
    pub task: Box<DownloadTask>,
}

/// A message that is no task, kept for the dead letters.
#[derive(Debug)]
pub struct Malformed {
    /// Its place.
    pub token: u64,
    /// Why it cannot be read.
    pub reason: String,
    /// The bytes as they came; empty when the whole batch was unreadable.
    pub raw: Bytes,
}

/// What came out of a delivery.
#[derive(Debug, Default)]
pub struct Intake {
    /// Tasks, in the order of their offsets within each partition.
    pub tasks: Vec<Placed>,
    /// What could not be decoded.
    pub malformed: Vec<Malformed>,
}

/// Partitions that a new assignment takes away. What was not begun of them need not be done here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaving {
    /// To be given up when nothing of them is in flight.
    pub asked_for: BTreeSet<u32>,
    /// Somebody else's already.
    pub lost: BTreeSet<u32>,
}

impl Leaving {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.asked_for.is_empty() && self.lost.is_empty()
    }

    /// Whether the partition of a token is one of them.
    pub fn holds(&self, token: u64) -> bool {
        self.is_asked_for(token) || self.lost.contains(&locate(token).0)
    }

    /// Whether it is, and is still ours.
    pub fn is_asked_for(&self, token: u64) -> bool {
        self.asked_for.contains(&locate(token).0)
    }
}

#[derive(Debug)]
struct Partition {
    watermark: Watermark,
    /// Messages in flight that will not be settled here: they are delivered again to whoever comes next, so no commit may pass them.
    abandoned: u64,
    /// End offset and bytes of every batch that is not wholly below the commit.
    batches: VecDeque<(u64, usize)>,
    bytes: usize,
    revoking: bool,
}

impl Partition {
    fn new(committed: u64) -> Self {
        Self { watermark: Watermark::new(committed), abandoned: 0, batches: VecDeque::new(), bytes: 0, revoking: false }
    }

    fn in_flight(&self) -> u64 {
        self.watermark.in_flight().saturating_sub(self.abandoned)
    }

    fn is_full(&self) -> bool {
        self.watermark.window() >= MAX_TASKS || self.bytes >= MAX_BYTES
    }

    fn settle(&mut self, offset: u64) -> Option<u64> {
        self.watermark.settle(offset);
        self.advance()
    }

    fn advance(&mut self) -> Option<u64> {
        let committed = self.watermark.advance()?;
        while let Some(&(end, bytes)) = self.batches.front() {
            if end > committed {
                break;
            }
            self.bytes -= bytes;
            self.batches.pop_front();
        }
        Some(committed)
    }
}

/// The partitions that a worker owns.
#[derive(Debug, Default)]
pub struct Window {
    partitions: BTreeMap<u32, Partition>,
    pending: BTreeMap<u32, u64>,
    gained: bool,
}

impl Window {
    /// Takes a new assignment: partitions kept go on where they are, new ones start at their committed offset, others are forgotten.
    ///
    /// `revoking` partitions are polled no more and become [`Window::released`] when nothing of them is in flight. One that was, and is not any more,
    /// starts anew where it is committed if something of it was abandoned meanwhile. What was committed of kept partitions is committed again with
    /// the next report: a commit sent while this member was out of the group did not count. Returns what goes from now on.
    pub fn assign(&mut self, owned: &[(u32, u64)], revoking: &[u32]) -> Leaving {
        let mut next = BTreeMap::new();
        let mut leaving = Leaving::default();
        for &(partition, committed) in owned {
            let kept = self.partitions.remove(&partition);
            self.gained |= kept.is_none();
            let mut state = kept.unwrap_or_else(|| Partition::new(committed));
            let reached = state.watermark.committed();
            if reached > committed {
                self.pending.insert(partition, reached);
            }
            let asked_for = revoking.contains(&partition);
            if state.abandoned > 0 && !asked_for {
                state = Partition::new(reached.max(committed));
            }
            if asked_for && !state.revoking {
                leaving.asked_for.insert(partition);
            }
            state.revoking = asked_for;
            next.insert(partition, state);
        }
        leaving.lost = self.partitions.keys().copied().collect();
        self.partitions = next;
        self.pending.retain(|partition, _| self.partitions.contains_key(partition));
        leaving
    }

    /// Whether the message at `token` is to be worked on here: its partition is owned, and stays.
    pub fn wants(&self, token: u64) -> bool {
        self.partitions.get(&locate(token).0).is_some_and(|partition| !partition.revoking)
    }

    /// Notes that the message at `token` will not be settled here. Nothing behind it is committed until it was delivered again.
    pub fn abandon(&mut self, token: u64) {
        let (id, offset) = locate(token);
        if let Some(partition) = self.partitions.get_mut(&id)
            && partition.watermark.is_open(offset)
        {
            partition.abandoned += 1;
        }
    }

    /// Whether partitions came that were not owned before, since this was last asked.
    pub fn take_gained(&mut self) -> bool {
        std::mem::take(&mut self.gained)
    }

    /// Where to poll next: the partitions that have room, with their next offset.
    pub fn positions(&self) -> Vec<(u32, u64)> {
        self.partitions.iter().filter(|(_, p)| !p.revoking && !p.is_full()).map(|(&id, p)| (id, p.watermark.next())).collect()
    }

    /// Partitions that are to be given up and have nothing in flight.
    pub fn released(&self) -> Vec<u32> {
        self.partitions.iter().filter(|(_, p)| p.revoking && p.in_flight() == 0).map(|(&id, _)| id).collect()
    }

    /// The partitions that are owned, revoking or not.
    pub fn owned(&self) -> Vec<u32> {
        self.partitions.keys().copied().collect()
    }

    /// Whether no partition is owned.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Tasks delivered and not yet settled or handed on.
    pub fn in_flight(&self) -> usize {
        self.partitions.values().map(|p| p.in_flight() as usize).sum()
    }

    /// Registers delivered batches and unpacks them. Batches of partitions that are not owned (any more), or that were delivered before, are ignored.
    pub fn admit(&mut self, delivered: Vec<Delivered>) -> Intake {
        let mut intake = Intake::default();
        for batch in delivered {
            let Some(partition) = self.partitions.get_mut(&batch.partition) else { continue };
            // Of a batch that was delivered or committed in part only the rest is taken.
            let fresh = partition.watermark.take(batch.base_offset, batch.count);
            if fresh.is_empty() {
                continue;
            }
            partition.batches.push_back((fresh.end, batch.bytes.len()));
            partition.bytes += batch.bytes.len();
            unpack(&batch, fresh.start, &mut intake);
        }
        intake
    }

    /// Notes that the message at `token` is settled or handed on.
    pub fn settle(&mut self, token: u64) {
        let (id, offset) = locate(token);
        if let Some(partition) = self.partitions.get_mut(&id)
            && let Some(committed) = partition.settle(offset)
        {
            self.pending.insert(id, committed);
        }
    }

    /// The offsets that may be committed since the last call: per partition, everything below is settled or handed on.
    pub fn take_commits(&mut self) -> Vec<(u32, u64)> {
        // Records trimmed ahead of the position leave gaps that the watermark skips without a settle.
        for (&id, partition) in &mut self.partitions {
            if let Some(committed) = partition.advance() {
                self.pending.insert(id, committed);
            }
        }
        std::mem::take(&mut self.pending).into_iter().collect()
    }
}

fn unpack(delivered: &Delivered, first: u64, intake: &mut Intake) {
    let place = |offset: u64| token(delivered.partition, offset);
    let messages = match batch::unpack(&delivered.bytes) {
        Ok(messages) if messages.len() == delivered.count as usize => messages,
        broken => {
            let reason = broken.err().map_or_else(|| "the batch's count is wrong".to_owned(), |error| error.to_string());
            let end = delivered.base_offset + u64::from(delivered.count);
            intake.malformed.extend((first..end).map(|offset| Malformed {
                token: place(offset),
                reason: reason.clone(),
                raw: Bytes::new(),
            }));
            return;
        }
    };
    for (offset, raw) in (delivered.base_offset..).zip(messages) {
        if offset < first {
            continue;
        }
        let mut task = Box::<DownloadTask>::default();
        // A slice is read faster than a buffer that counts who holds it.
        match task.merge(&raw[..]) {
            Ok(()) if !task.job_id.is_empty() && !task.url.is_empty() => intake.tasks.push(Placed { token: place(offset), task }),
            Ok(()) => intake.malformed.push(Malformed { token: place(offset), reason: "the task names no job or no url".into(), raw }),
            Err(error) => intake.malformed.push(Malformed { token: place(offset), reason: error.to_string(), raw }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fetchbox_model::batch::BatchBuilder;

    fn delivered(partition: u32, base_offset: u64, count: u32) -> Delivered {
        let mut builder = BatchBuilder::default();
        for i in 0..count {
            builder.push(&DownloadTask { job_id: "j".into(), url: format!("http://h/{i}"), ..Default::default() });
        }
        Delivered { partition, base_offset, count, bytes: builder.finish().unwrap().bytes }
    }

    #[test]
    fn tokens_keep_partition_and_offset() {
        for (partition, offset) in [(0, 0), (63, 1), (65_535, (1 << 48) - 1)] {
            assert_eq!(locate(token(partition, offset)), (partition, offset));
        }
    }

    #[test]
    fn commits_follow_the_lowest_unsettled_offset() {
        let mut window = Window::default();
        window.assign(&[(3, 10)], &[]);
        let intake = window.admit(vec![delivered(3, 10, 4)]);
        assert_eq!(intake.tasks.len(), 4);
        assert_eq!(window.positions(), vec![(3, 14)]);
        window.settle(token(3, 11));
        assert_eq!(window.take_commits(), vec![]);
        window.settle(token(3, 10));
        assert_eq!(window.take_commits(), vec![(3, 12)]);
        window.settle(token(3, 13));
        window.settle(token(3, 12));
        assert_eq!(window.take_commits(), vec![(3, 14)]);
        assert_eq!(window.in_flight(), 0);
    }

    #[test]
    fn what_was_delivered_before_is_ignored_and_a_batch_cut_by_the_commit_gives_its_rest() {
        let mut window = Window::default();
        window.assign(&[(0, 2)], &[]);
        assert_eq!(window.admit(vec![delivered(0, 0, 5)]).tasks.len(), 3);
        assert_eq!(window.admit(vec![delivered(0, 0, 5)]).tasks.len(), 0);
        assert_eq!(window.admit(vec![delivered(9, 0, 5)]).tasks.len(), 0);
    }

    #[test]
    fn a_full_partition_is_not_polled_until_its_commit_moves() {
        let mut window = Window::default();
        window.assign(&[(0, 0)], &[]);
        for base in 0..(MAX_TASKS / 1000) {
            window.admit(vec![delivered(0, base * 1000, 1000)]);
        }
        assert_eq!(window.positions(), vec![]);
        for offset in 0..1000 {
            window.settle(token(0, offset));
        }
        assert_eq!(window.take_commits(), vec![(0, 1000)]);
        assert_eq!(window.positions(), vec![(0, MAX_TASKS)]);
    }

    #[test]
    fn a_revoked_partition_is_released_when_nothing_is_in_flight() {
        let mut window = Window::default();
        window.assign(&[(0, 0), (1, 0)], &[]);
        window.admit(vec![delivered(0, 0, 1)]);
        window.assign(&[(0, 0), (1, 0)], &[0]);
        assert_eq!(window.positions(), vec![(1, 0)]);
        assert_eq!(window.released(), Vec::<u32>::new());
        window.settle(token(0, 0));
        assert_eq!(window.released(), vec![0]);
        window.assign(&[(1, 0)], &[]);
        window.settle(token(0, 0));
        assert_eq!(window.take_commits(), vec![]);
    }

    fn leaving(asked_for: &[u32], lost: &[u32]) -> Leaving {
        Leaving { asked_for: asked_for.iter().copied().collect(), lost: lost.iter().copied().collect() }
    }

    #[test]
    fn what_is_asked_for_or_lost_is_told_once() {
        let mut window = Window::default();
        assert!(window.assign(&[(0, 0), (1, 0), (2, 0)], &[]).is_empty());
        assert_eq!(window.assign(&[(0, 0), (1, 0)], &[1]), leaving(&[1], &[2]));
        assert_eq!(window.assign(&[(0, 0), (1, 0)], &[1]), leaving(&[], &[]));
        assert!(window.wants(token(0, 0)) && !window.wants(token(1, 0)) && !window.wants(token(2, 0)));
        let going = leaving(&[1], &[2]);
        let held = [0, 1, 2].map(|partition| (going.holds(token(partition, 9)), going.is_asked_for(token(partition, 9))));
        assert_eq!(held, [(false, false), (true, true), (true, false)]);
    }

    #[test]
    fn what_is_abandoned_is_not_committed_and_holds_up_no_handover() {
        let mut window = Window::default();
        window.assign(&[(0, 0)], &[]);
        window.admit(vec![delivered(0, 0, 5)]);
        window.settle(token(0, 0));
        window.assign(&[(0, 0)], &[0]);
        for offset in [1, 3] {
            window.abandon(token(0, offset));
        }
        // Neither what was settled nor what was never taken can be.
        window.abandon(token(0, 0));
        window.abandon(token(0, 9));
        window.abandon(token(7, 1));
        window.settle(token(0, 2));
        assert_eq!((window.in_flight(), window.released()), (1, vec![]));
        window.settle(token(0, 4));
        assert_eq!((window.in_flight(), window.released()), (0, vec![0]));
        assert_eq!(window.take_commits(), vec![(0, 1)], "the first that was abandoned is delivered again");
    }

    #[test]
    fn a_partition_that_stays_after_all_is_delivered_again_from_what_was_abandoned() {
        let mut window = Window::default();
        window.assign(&[(0, 0), (1, 0)], &[]);
        window.admit(vec![delivered(0, 0, 5), delivered(1, 0, 5)]);
        window.settle(token(0, 0));
        window.assign(&[(0, 0), (1, 0)], &[0, 1]);
        window.abandon(token(0, 2));
        // Nothing of the other one was abandoned: it goes on where it is.
        window.assign(&[(0, 0), (1, 0)], &[]);
        assert_eq!(window.positions(), vec![(0, 1), (1, 5)]);
        assert_eq!(window.admit(vec![delivered(0, 0, 5)]).tasks.len(), 4);
        assert_eq!(window.admit(vec![delivered(1, 0, 5)]).tasks.len(), 0);
        // What was begun before ends now, and then once more.
        for offset in [1, 3, 1, 2, 3, 4] {
            window.settle(token(0, offset));
        }
        assert_eq!((window.take_commits(), window.in_flight()), (vec![(0, 5)], 5));
    }

    #[test]
    fn partitions_that_come_are_told_once() {
        let mut window = Window::default();
        assert!(!window.take_gained());
        window.assign(&[(0, 0)], &[]);
        assert!(window.take_gained() && !window.take_gained());
        window.assign(&[(0, 5)], &[0]);
        assert!(!window.take_gained());
        window.assign(&[(0, 5), (1, 0)], &[]);
        assert!(window.take_gained());
    }

    #[test]
    fn a_commit_that_was_lost_with_the_membership_is_sent_again() {
        let mut window = Window::default();
        window.assign(&[(0, 0)], &[]);
        window.admit(vec![delivered(0, 0, 2)]);
        window.settle(token(0, 0));
        assert_eq!(window.take_commits(), vec![(0, 1)]);
        window.assign(&[(0, 0)], &[]);
        assert_eq!(window.take_commits(), vec![(0, 1)]);
        window.assign(&[(0, 1)], &[]);
        assert_eq!(window.take_commits(), vec![]);
    }

    #[test]
    fn unreadable_batches_and_messages_become_malformed_with_every_offset_accounted_for() {
        let mut window = Window::default();
        window.assign(&[(0, 0)], &[]);
        let mut builder = BatchBuilder::default();
        builder.push_encoded(b"\xff\xff");
        builder.push(&DownloadTask::default());
        let bytes = builder.finish().unwrap().bytes;
        let intake = window.admit(vec![
            Delivered { partition: 0, base_offset: 0, count: 2, bytes },
            Delivered { partition: 0, base_offset: 2, count: 3, bytes: Bytes::from_static(b"junk") },
        ]);
        assert_eq!((intake.tasks.len(), intake.malformed.len()), (0, 5));
        for malformed in &intake.malformed {
            window.settle(malformed.token);
        }
        assert_eq!(window.take_commits(), vec![(0, 5)]);
    }
}
