//! Brings retries back: each tier of `jobs.retry` is in order of time, so only its head matters.

use std::time::Duration;

use fetchbox_model::stream::{RETRY_TIERS_SECONDS, Topic};

use crate::config::Broker;
use crate::core::Core;
use crate::error::HubError;
use crate::upkeep::MOVER;
use crate::writer::Command;

/// Records moved in one step of one tier, so that other upkeep gets its turn.
const PER_STEP: usize = 256;

/// Remembers since when each tier's head has been seen.
#[derive(Debug, Default)]
pub struct Mover {
    seen: [Option<(u64, Duration)>; RETRY_TIERS_SECONDS.len()],
}

impl Mover {
    /// Moves what is due.
    pub fn step(&mut self, core: &Core) -> Result<(), HubError> {
        if core.config.broker == Broker::External {
            return Ok(());
        }
        for (tier, &seconds) in (0u32..).zip(&RETRY_TIERS_SECONDS) {
            let delay = Duration::from_secs(seconds);
            let (from, to) = (core.committed(Topic::Retry, MOVER, tier), core.next.get(Topic::Retry, tier));
            if from >= to {
                self.seen[tier as usize] = None;
                continue;
            }
            let records = crate::log::records(core, Topic::Retry, tier, from, to).map_err(crate::core::read_failed)?;
            for item in records.take(PER_STEP) {
                let (base, record) = item.map_err(crate::core::read_failed)?;
                if !self.is_due(core, tier as usize, base, record.time_ms, delay) {
                    break;
                }
                let parts = record.parts;
                core.ask(|reply| Command::Move { tier, base, parts, reply })?;
                self.seen[tier as usize] = None;
            }
        }
        Ok(())
    }

    /// By the wall clock, which survives a restart, or by how long the record has been at the head, which no clock jump stops.
    fn is_due(&mut self, core: &Core, tier: usize, base: u64, time_ms: u64, delay: Duration) -> bool {
        let now = core.clock.elapsed();
        let since = match self.seen[tier] {
            Some((seen, since)) if seen == base => since,
            _ => {
                self.seen[tier] = Some((base, now));
                now
            }
        };
        core.clock.now_ms() >= time_ms.saturating_add(delay.as_millis() as u64) || now.saturating_sub(since) >= delay
    }
}
