//! Brings retries back: each tier of `jobs.retry` is in order of time, so only its head matters.

use std::collections::VecDeque;
use std::time::Duration;

use fetchbox_model::stream::{RETRY_TIERS_SECONDS, Topic};

use crate::config::Broker;
use crate::core::Core;
use crate::error::HubError;
use crate::upkeep::MOVER;
use crate::writer::Command;

/// Records moved in one step of one tier, so that other upkeep gets its turn.
const PER_STEP: usize = 256;

/// Remembers where the end of each tier was, and when: how old a record is, by a clock that never jumps.
#[derive(Debug, Default)]
pub struct Mover {
    tiers: [Ages; RETRY_TIERS_SECONDS.len()],
    /// Wall clock and steady clock at the first step.
    begun: Option<(u64, Duration)>,
}

/// What is known of the ages of a tier's records.
#[derive(Debug, Default)]
struct Ages {
    /// (end, when it was seen), both rising. Records below an end are at least as old as that.
    ends: VecDeque<(u64, Duration)>,
    /// Records below were there before the first step; their stamps are all that is known of them.
    inherited: u64,
}

impl Ages {
    fn see(&mut self, end: u64, now: Duration, delay: Duration) {
        if self.ends.back().is_none_or(|(last, _)| *last < end) {
            self.ends.push_back((end, now));
        }
        while self.ends.get(1).is_some_and(|(_, at)| now.saturating_sub(*at) >= delay) {
            self.ends.pop_front();
        }
    }

    /// Records below this are as old as `delay`.
    fn due_below(&self, now: Duration, delay: Duration) -> u64 {
        self.ends.front().filter(|(_, at)| now.saturating_sub(*at) >= delay).map_or(0, |(end, _)| *end)
    }
}

impl Mover {
    /// Moves what is due.
    pub fn step(&mut self, core: &Core) -> Result<(), HubError> {
        if core.config.broker == Broker::External {
            return Ok(());
        }
        let now = core.clock.elapsed();
        let first = self.begun.is_none();
        let (wall, since) = *self.begun.get_or_insert_with(|| (core.clock.now_ms(), now));
        // The wall clock as it would be if nobody had set it meanwhile.
        let wall_now = wall.saturating_add(now.saturating_sub(since).as_millis() as u64);
        for (tier, &seconds) in (0u32..).zip(&RETRY_TIERS_SECONDS) {
            let delay = Duration::from_secs(seconds);
            let ages = &mut self.tiers[tier as usize];
            let (from, to) = (core.committed(Topic::Retry, MOVER, tier), core.next.get(Topic::Retry, tier));
            if first {
                ages.inherited = to;
            }
            ages.see(to, now, delay);
            if from >= to {
                continue;
            }
            let due_below = ages.due_below(now, delay);
            let records = crate::log::records(core, Topic::Retry, tier, from, to).map_err(crate::core::read_failed)?;
            for item in records.take(PER_STEP) {
                let (base, record) = item.map_err(crate::core::read_failed)?;
                let by_stamp = base < ages.inherited && wall_now >= record.time_ms.saturating_add(delay.as_millis() as u64);
                if base >= due_below && !by_stamp {
                    break;
                }
                core.ask(|reply| Command::Move { tier, base, parts: record.parts, reply })?;
            }
        }
        Ok(())
    }
}
