//! How far a partition may be committed while its messages settle in any order.
//!
//! A worker takes ranges ahead of the committed offset and settles messages as they end. The watermark is the highest offset below which
//! everything taken is settled, or handed on to the retry topic, which counts the same.

use std::collections::VecDeque;
use std::ops::Range;

const WORD: u64 = u64::BITS as u64;

/// One delivered range: a bit for each message, set while it is open.
#[derive(Debug)]
struct Segment {
    base: u64,
    end: u64,
    open: u64,
    /// Words before this one have no open bit.
    head: usize,
    words: Box<[u64]>,
}

impl Segment {
    fn new(range: Range<u64>) -> Self {
        let count = range.end - range.start;
        let mut words = vec![u64::MAX; count.div_ceil(WORD) as usize].into_boxed_slice();
        if let (Some(last), spare @ 1..) = (words.last_mut(), (WORD - count % WORD) % WORD) {
            *last >>= spare;
        }
        Self { base: range.start, end: range.end, open: count, head: 0, words }
    }

    fn clear(&mut self, offset: u64) -> bool {
        let index = offset - self.base;
        let mask = 1 << (index % WORD);
        match self.words.get_mut((index / WORD) as usize) {
            Some(word) if *word & mask != 0 => {
                *word &= !mask;
                self.open -= 1;
                true
            }
            _ => false,
        }
    }

    fn is_open(&self, offset: u64) -> bool {
        let index = offset - self.base;
        self.words.get((index / WORD) as usize).is_some_and(|word| *word & (1 << (index % WORD)) != 0)
    }

    /// The lowest open offset, or the end when nothing is open.
    fn first_open(&mut self) -> u64 {
        while let Some(word) = self.words.get(self.head) {
            if *word != 0 {
                return self.base + self.head as u64 * WORD + u64::from(word.trailing_zeros());
            }
            self.head += 1;
        }
        self.end
    }
}

/// The window of one partition between what is committed and what was taken.
#[derive(Debug)]
pub struct Watermark {
    committed: u64,
    next: u64,
    in_flight: u64,
    segments: VecDeque<Segment>,
}

impl Watermark {
    /// Starts at the committed offset, which is the offset of the first message not yet settled.
    pub fn new(committed: u64) -> Self {
        Self { committed, next: committed, in_flight: 0, segments: VecDeque::new() }
    }

    /// Registers a delivered range and returns the part of it that is new: offsets below [`next`](Self::next) were taken before and are not
    /// opened again. A range may begin above `next`, when retention trimmed what lay between; such a gap counts as settled.
    pub fn take(&mut self, base: u64, count: u32) -> Range<u64> {
        let end = base.saturating_add(u64::from(count));
        let fresh = base.max(self.next)..end.max(self.next);
        if fresh.start < fresh.end {
            self.segments.push_back(Segment::new(fresh.clone()));
            self.in_flight += fresh.end - fresh.start;
            self.next = fresh.end;
        }
        fresh.start.min(fresh.end)..fresh.end
    }

    /// Whether a message was taken and is neither settled nor handed on.
    pub fn is_open(&self, offset: u64) -> bool {
        let index = self.segments.partition_point(|segment| segment.end <= offset);
        self.segments.get(index).is_some_and(|segment| segment.base <= offset && segment.is_open(offset))
    }

    /// Marks one message as settled or handed on. False when it is not open: never taken, or settled before.
    pub fn settle(&mut self, offset: u64) -> bool {
        let index = self.segments.partition_point(|segment| segment.end <= offset);
        let cleared = self.segments.get_mut(index).is_some_and(|segment| segment.base <= offset && segment.clear(offset));
        self.in_flight -= u64::from(cleared);
        cleared
    }

    /// Moves the watermark up as far as it goes. `Some` is the new offset to commit: everything below it is settled. `None`: it did not move.
    pub fn advance(&mut self) -> Option<u64> {
        while self.segments.front().is_some_and(|segment| segment.open == 0) {
            self.segments.pop_front();
        }
        let reached = self.segments.front_mut().map_or(self.next, Segment::first_open);
        if reached > self.committed {
            self.committed = reached;
            Some(reached)
        } else {
            None
        }
    }

    /// The offset last returned by [`advance`](Self::advance), or the one it started at.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// The offset to poll from: the end of what was taken.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Messages taken and not settled.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Offsets between the committed one and the end of what was taken: what a restart would deliver again at most. Callers bound it.
    pub fn window(&self) -> u64 {
        self.next - self.committed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn settling_out_of_order_commits_only_the_whole_prefix() {
        let mut mark = Watermark::new(100);
        assert_eq!(mark.take(100, 130), 100..230);
        assert_eq!(mark.advance(), None);
        for offset in (101..230).rev() {
            assert!(mark.settle(offset));
            assert_eq!(mark.advance(), None);
        }
        assert_eq!((mark.in_flight(), mark.window()), (1, 130));
        assert!(mark.settle(100));
        assert_eq!(mark.advance(), Some(230));
        assert_eq!(mark.advance(), None);
        assert_eq!((mark.in_flight(), mark.window(), mark.committed()), (0, 0, 230));
    }

    #[test]
    fn unknown_and_repeated_offsets_change_nothing() {
        let mut mark = Watermark::new(10);
        mark.take(10, 2);
        mark.take(20, 64);
        for offset in [0, 9, 12, 19, 84, u64::MAX] {
            assert!(!mark.settle(offset), "{offset}");
        }
        assert!(mark.settle(11));
        assert!(!mark.settle(11));
        assert_eq!(mark.in_flight(), 65);
    }

    #[test]
    fn gaps_count_as_settled_however_wide() {
        let mut mark = Watermark::new(0);
        assert_eq!(mark.take(1 << 60, 3), 1 << 60..(1 << 60) + 3);
        assert_eq!(mark.advance(), Some(1 << 60));
        assert!(mark.settle(1 << 60));
        assert_eq!(mark.advance(), Some((1 << 60) + 1));
    }

    #[test]
    fn what_was_taken_before_is_not_opened_again() {
        let mut mark = Watermark::new(5);
        assert_eq!(mark.take(0, 10), 5..10);
        assert!(mark.settle(7));
        assert_eq!(mark.take(3, 5), 10..10);
        assert_eq!(mark.take(8, 4), 10..12);
        assert_eq!(mark.take(12, 0), 12..12);
        assert_eq!(mark.in_flight(), 6);
        assert_eq!(mark.take(u64::MAX - 1, 9), u64::MAX - 1..u64::MAX);
    }

    /// Two sets of offsets, and a search from the bottom.
    #[derive(Default)]
    struct Naive {
        committed: u64,
        next: u64,
        open: BTreeSet<u64>,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take { skip: i64, count: u32 },
        Settle(u64),
        Advance,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            1 => (-20i64..40, 0u32..200).prop_map(|(skip, count)| Step::Take { skip, count }),
            12 => (0u64..600).prop_map(Step::Settle),
            3 => Just(Step::Advance),
        ];
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn it_is_the_naive_model(start in 0u64..50, steps in steps()) {
            let mut mark = Watermark::new(start);
            let mut naive = Naive { committed: start, next: start, ..Naive::default() };
            for step in steps {
                match step {
                    Step::Take { skip, count } => {
                        let base = naive.next.saturating_add_signed(skip);
                        let fresh: BTreeSet<u64> = (base..base + u64::from(count)).filter(|offset| *offset >= naive.next).collect();
                        let taken: BTreeSet<u64> = mark.take(base, count).collect();
                        prop_assert_eq!(&taken, &fresh);
                        naive.next = fresh.last().map_or(naive.next, |last| last + 1);
                        naive.open.extend(fresh);
                    }
                    Step::Settle(offset) => prop_assert_eq!(mark.settle(offset), naive.open.remove(&offset)),
                    Step::Advance => {
                        let reached = naive.open.first().copied().unwrap_or(naive.next);
                        let moved = (reached > naive.committed).then_some(reached);
                        naive.committed = naive.committed.max(reached);
                        prop_assert_eq!(mark.advance(), moved);
                    }
                }
                prop_assert_eq!(mark.in_flight(), naive.open.len() as u64);
                prop_assert_eq!(mark.window(), naive.next - naive.committed);
                prop_assert_eq!((mark.next(), mark.committed()), (naive.next, naive.committed));
            }
        }
    }
}
